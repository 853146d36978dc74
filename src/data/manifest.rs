//! What the CSVs say: the text of each clip, and the ids of each split.

use super::table::{self, Row, Source};
use super::{FirstTen, SHOWN, some_of_many};
use crate::error::{Problem, count};
use crate::text::normalize;
use std::collections::{HashMap, HashSet};

/// The longest name that a file can have, without `_f0.jpg`.
const MAX_ID: usize = 255 - 7;
const ID_COLUMNS: &[&str] = &["video_id", "id"];
const TEXT_COLUMNS: &[&str] = &["texto", "text", "label"];

/// The metadata CSV.
#[derive(Debug)]
pub struct Metadata {
    /// The text of each id, as written.
    pub texts: HashMap<String, String>,
    /// What was odd but harmless.
    pub warnings: Vec<String>,
}

impl Metadata {
    /// For ids of which nobody wants the texts.
    #[must_use]
    pub(super) fn without_texts(indices: [&Index; 2]) -> Self {
        let ids = indices.into_iter().flat_map(|index| &index.ids);
        Self { texts: ids.map(|id| (id.clone(), String::new())).collect(), warnings: Vec::new() }
    }
}

/// An index CSV: the ids of a split.
#[derive(Debug, Default)]
pub struct Index {
    /// Each id once, in the order of the file.
    pub ids: Vec<String>,
    /// What was odd but harmless.
    pub warnings: Vec<String>,
}

impl Index {
    /// These ids, each once, without a file.
    #[must_use]
    pub fn of(ids: Vec<String>) -> Self {
        let mut seen = HashSet::new();
        let ids = ids.into_iter().filter(|id| !id.is_empty() && seen.insert(id.clone())).collect();
        Self { ids, warnings: Vec::new() }
    }
}

/// The column that one of `names` heads, the earlier name first; any case, spaces around it ignored.
fn column(header: &Row, names: &[&str]) -> Option<usize> {
    let matches = |field: &str, name: &str| field.trim().eq_ignore_ascii_case(name);
    names.iter().find_map(|name| header.fields.iter().position(|field| matches(field, name)))
}

/// Reads `video_id` (or `id`) and `texto` (or `text`, `label`) of every row.
///
/// # Errors
/// All that is wrong with the file: unreadable, not UTF-8, ragged, a column missing, no rows, an empty text, an id
/// that has two texts.
pub fn read_metadata(source: &Source) -> Result<Metadata, Vec<Problem>> {
    let mut reader: Option<Result<MetadataReader, Vec<Problem>>> = None;
    let read = table::read(source, |row| match &mut reader {
        None => {
            let columns = (column(row, ID_COLUMNS), column(row, TEXT_COLUMNS));
            reader = Some(match columns {
                (Some(id), Some(text)) => Ok(MetadataReader::new(source, id, text)),
                _ => Err(missing_columns(source, row)),
            });
        }
        Some(Ok(reader)) => reader.row(row),
        Some(Err(_)) => {}
    });
    read.map_err(|problem| vec![problem])?;
    reader.unwrap_or(Err(Vec::new()))?.finish()
}

/// A metadata CSV, half read.
struct MetadataReader<'s> {
    source: &'s Source<'s>,
    id_column: usize,
    text_column: usize,
    rows: usize,
    /// Line and text of each id.
    texts: HashMap<String, (u64, String)>,
    empty: FirstTen<String>,
    repeated: FirstTen<String>,
    without_id: FirstTen<u64>,
    /// Ids with two texts: a problem each, for the first ten.
    problems: Vec<Problem>,
    more_problems: usize,
}

impl<'s> MetadataReader<'s> {
    fn new(source: &'s Source<'s>, id_column: usize, text_column: usize) -> Self {
        Self {
            source,
            id_column,
            text_column,
            rows: 0,
            texts: HashMap::new(),
            empty: FirstTen::default(),
            repeated: FirstTen::default(),
            without_id: FirstTen::default(),
            problems: Vec::new(),
            more_problems: 0,
        }
    }

    fn row(&mut self, row: &Row) {
        self.rows += 1;
        let (id, text) = (row.get(self.id_column).trim(), row.get(self.text_column));
        if id.is_empty() {
            self.without_id.push(|| row.line);
        } else if normalize(text).is_empty() {
            self.empty.push(|| format!("{} ({})", row.line, shortened(id)));
        } else if let Some((line, other)) = self.texts.get(id) {
            if normalize(other) == normalize(text) {
                self.repeated.push(|| shortened(id));
            } else if self.problems.len() < SHOWN {
                self.problems.push(two_texts(self.source, id, (*line, other), (row.line, text)));
            } else {
                self.more_problems += 1;
            }
        } else {
            self.texts.insert(id.to_owned(), (row.line, text.to_owned()));
        }
    }

    fn finish(self) -> Result<Metadata, Vec<Problem>> {
        let Self { source, mut problems, empty, repeated, without_id, .. } = self;
        if self.more_problems > 0 {
            let rows = count(self.more_problems, "more row");
            problems.push(
                Problem::new(format!("{source} has {rows} with a second text for an id"))
                    .hint("keep one row for each id"),
            );
        }
        if !empty.is_empty() {
            let rows = count(empty.all, "row");
            problems.push(
                Problem::new(format!("{source} has {rows} without a text: lines {empty}"))
                    .hint("fill the texts in, or delete these rows"),
            );
        }
        if self.rows == 0 {
            problems.push(
                Problem::new(format!("{source} has a header and no rows"))
                    .hint("is it the right file, and was it written completely?"),
            );
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut warnings = Vec::new();
        if !repeated.is_empty() {
            warnings.push(format!("{source} repeats {}: {repeated}", count(repeated.all, "id")));
        }
        if !without_id.is_empty() {
            let rows = count(without_id.all, "row");
            warnings.push(format!("{source} has {rows} without an id, left out: lines {without_id}"));
        }
        Ok(Metadata { texts: self.texts.into_iter().map(|(id, (_, text))| (id, text)).collect(), warnings })
    }
}

fn missing_columns(source: &Source, header: &Row) -> Vec<Problem> {
    let names = header.fields.iter().take(SHOWN);
    let found: Vec<String> = names.map(|field| format!("`{}`", shortened(field.trim()))).collect();
    let found = some_of_many(&found, header.fields.len() - found.len());
    let wanted = [(ID_COLUMNS, "`video_id` (or `id`)"), (TEXT_COLUMNS, "`texto` (or `text`, `label`)")];
    let missing = wanted.into_iter().filter(|(names, _)| column(header, names).is_none());
    missing
        .map(|(_, name)| {
            Problem::new(format!("{source} has no column {name}"))
                .cause(format!("its first line has the columns {found}"))
                .hint("name the columns in the file's first line")
        })
        .collect()
}

fn two_texts(source: &Source, id: &str, first: (u64, &str), second: (u64, &str)) -> Problem {
    Problem::new(format!("{source} has two texts for {}: lines {} and {}", shortened(id), first.0, second.0))
        .cause(format!("{:?} and {:?}", shortened(first.1), shortened(second.1)))
        .hint("keep one of the two rows")
}

/// The first 40 characters of a text.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        text.into()
    } else {
        text.chars().take(SHOWN).chain(['…']).collect()
    }
}

/// Reads the ids of a split: the column `video_id` (or `id`), or the first column of a file without a header.
///
/// # Errors
/// The file is unreadable, not UTF-8, ragged, has no ids, or has ids that cannot be part of a file's name.
pub fn read_index(source: &Source) -> Result<Index, Vec<Problem>> {
    let mut column_of_ids: Option<usize> = None;
    let mut index = Index { ids: Vec::new(), warnings: Vec::new() };
    let mut seen = HashSet::<String>::new();
    let (mut repeated, mut refused) = (FirstTen::default(), FirstTen::default());
    let read = table::read(source, |row| {
        let header = if column_of_ids.is_none() { column(row, ID_COLUMNS) } else { None };
        let first = *column_of_ids.get_or_insert(header.unwrap_or(0));
        if header.is_some() {
            return;
        }
        let id = row.get(first).trim();
        if let Some(reason) = unfit(id) {
            refused.push(|| format!("{} ({reason})", row.line));
        } else if seen.contains(id) {
            repeated.push(|| shortened(id));
        } else {
            seen.insert(id.to_owned());
            index.ids.push(id.to_owned());
        }
    });
    read.map_err(|problem| vec![problem])?;
    if !refused.is_empty() {
        let what = format!("{source} has ids that no file can have: lines {refused}");
        return Err(vec![Problem::new(what).hint("an id is part of a file's name: <id>_f<number>.jpg")]);
    }
    if index.ids.is_empty() {
        return Err(vec![
            Problem::new(format!("{source} lists no ids"))
                .hint("write one video_id a line, below the header `video_id`"),
        ]);
    }
    if !repeated.is_empty() {
        let ids = count(repeated.all, "id");
        index.warnings.push(format!("{source} repeats {ids}, kept once: {repeated}"));
    }
    Ok(index)
}

/// Why an id cannot be part of a file's name, or could reach outside its folder.
fn unfit(id: &str) -> Option<String> {
    if id.is_empty() {
        Some("empty".into())
    } else if id.contains(['/', '\\']) {
        Some(format!("{:?}: a path separator", shortened(id)))
    } else if id == ".." {
        // Files could have it in their names; as a folder's name it is the folder above.
        Some(format!("{:?}: `..`", shortened(id)))
    } else if id.contains(char::is_control) {
        Some(format!("{:?}: a control character", shortened(id)))
    } else if id.len() > MAX_ID {
        Some(format!("{:?}: {} bytes", shortened(id), id.len()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file<T>(
        bytes: &[u8],
        read: impl FnOnce(&Source) -> Result<T, Vec<Problem>>,
    ) -> Result<T, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        read(&Source { key: "data.metadata_csv", path: &path })
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn metadata(text: &str) -> Result<Metadata, String> {
        with_file(text.as_bytes(), read_metadata)
    }

    fn index(text: &str) -> Result<Index, String> {
        with_file(text.as_bytes(), read_index)
    }

    #[test]
    fn columns_by_name_in_any_case_and_order() {
        for text in [
            "video_id;texto\na;uno\n",
            "Texto,VIDEO_ID\nuno,a\n",
            "id;label;x\na;uno;\n",
            "x;TEXT; Id \n;uno;a\n",
            "id;text;video_id\nz;uno;a\n",
        ] {
            let got = metadata(text).unwrap();
            assert_eq!(got.texts.get("a").map(String::as_str), Some("uno"), "{text:?}");
            assert_eq!(got.texts.len(), 1);
        }
    }

    #[test]
    fn bad_metadata_is_named() {
        let error = metadata("name;what\na;uno\n").unwrap_err();
        assert!(error.contains("no column `video_id`") && error.contains("no column `texto`"), "{error}");
        assert!(error.contains("`name`, `what`") && error.contains("(data.metadata_csv)"), "{error}");
        let error = metadata("id;text\na;uno\nb; \na;dos\nc;\n").unwrap_err();
        assert!(error.contains("two texts for a: lines 2 and 4") && error.contains("\"dos\""), "{error}");
        assert!(error.contains("2 rows without a text: lines 3 (b), 5 (c)"), "{error}");
        assert!(metadata("id;text\n").unwrap_err().contains("no rows"));
    }

    #[test]
    fn many_empty_texts_are_counted() {
        let text: String = (0..12).fold("id;text\n".into(), |text, i| format!("{text}{i};\n"));
        let error = metadata(&text).unwrap_err();
        assert!(error.contains("12 rows") && error.contains("and 2 more"), "{error}");
    }

    #[test]
    fn the_same_text_twice_is_a_warning() {
        let got = metadata("id;text\na;uno\na;UNO \n;x\n").unwrap();
        assert_eq!(got.texts.len(), 1);
        assert!(got.warnings[0].contains("repeats 1 id: a"), "{:?}", got.warnings);
        assert!(got.warnings[1].contains("without an id, left out: lines 4"), "{:?}", got.warnings);
    }

    #[test]
    fn an_index_with_and_without_a_header() {
        assert_eq!(index("video_id\nb\na\n").unwrap().ids, ["b", "a"]);
        assert_eq!(index("b\r\na\r\n").unwrap().ids, ["b", "a"]);
        assert_eq!(index("n,Video_ID\n0,b\n1,a").unwrap().ids, ["b", "a"]);
        assert_eq!(index("b;1\na;2\n").unwrap().ids, ["b", "a"]);
        let got = index("b\na\nb\n").unwrap();
        assert_eq!(got.ids, ["b", "a"]);
        assert!(got.warnings[0].contains("repeats 1 id, kept once: b"));
    }

    #[test]
    fn ids_that_leave_the_folder_are_refused() {
        for id in ["../a", "a/b", "a\\b", "..", "a\0b", "\"\""] {
            let error = index(&format!("video_id\nok\n{id}\n")).unwrap_err();
            assert!(error.contains("no file can have: lines 3"), "{error}");
        }
        // Dots and spaces inside are part of a name.
        assert_eq!(
            index("video_id\n..x\na..b\nx...\n.\nx y\n").unwrap().ids,
            ["..x", "a..b", "x...", ".", "x y"]
        );
        assert!(index("video_id\n").unwrap_err().contains("lists no ids"));
        assert!(index("").unwrap_err().contains("is empty"));
    }
}
