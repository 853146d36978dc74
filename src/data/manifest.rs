//! What the CSVs say: the text of each clip, and the ids of each split.

use super::table::{self, Row};
use super::target::normalize;
use super::{count, some_of};
use crate::error::Problem;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

/// A path of the dataset together with the configuration key that it came from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The key, such as `data.face_dir`.
    pub key: &'static str,
    /// The path as it was given.
    pub path: &'a Path,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), self.key)
    }
}

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

/// An index CSV: the ids of a split.
#[derive(Debug)]
pub struct Index {
    /// Each id once, in the order of the file.
    pub ids: Vec<String>,
    /// What was odd but harmless.
    pub warnings: Vec<String>,
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
    let rows = table::read(source).map_err(|problem| vec![problem])?;
    let Some((header, rows)) = rows.split_first() else { return Err(Vec::new()) };
    let (Some(id_column), Some(text_column)) = (column(header, ID_COLUMNS), column(header, TEXT_COLUMNS))
    else {
        return Err(missing_columns(source, header));
    };
    let mut texts = HashMap::<String, (u64, String)>::with_capacity(rows.len());
    let (mut empty, mut repeated, mut without_id) = (Vec::new(), Vec::new(), Vec::new());
    let mut problems = Vec::new();
    for row in rows {
        let (id, text) = (row.get(id_column).trim(), row.get(text_column));
        if id.is_empty() {
            without_id.push(row.line);
        } else if normalize(text).is_empty() {
            empty.push(format!("{} ({id})", row.line));
        } else if let Some((line, other)) = texts.get(id) {
            if normalize(other) == normalize(text) {
                repeated.push(id.to_owned());
            } else {
                problems.push(two_texts(source, id, (*line, other), (row.line, text)));
            }
        } else {
            texts.insert(id.to_owned(), (row.line, text.to_owned()));
        }
    }
    if !empty.is_empty() {
        let what =
            format!("{source} has {} without a text: lines {}", count(empty.len(), "row"), some_of(&empty));
        problems.push(Problem::new(what).hint("fill the texts in, or delete these rows"));
    }
    if rows.is_empty() {
        problems.push(Problem::new(format!("{source} has a header and no rows")));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut warnings = Vec::new();
    if !repeated.is_empty() {
        warnings.push(format!("{source} repeats {}: {}", count(repeated.len(), "id"), some_of(&repeated)));
    }
    if !without_id.is_empty() {
        let rows = count(without_id.len(), "row");
        warnings.push(format!("{source} has {rows} without an id, left out: lines {}", some_of(&without_id)));
    }
    Ok(Metadata { texts: texts.into_iter().map(|(id, (_, text))| (id, text)).collect(), warnings })
}

fn missing_columns(source: &Source, header: &Row) -> Vec<Problem> {
    let found: Vec<String> = header.fields.iter().map(|field| format!("`{}`", field.trim())).collect();
    let wanted = [(ID_COLUMNS, "`video_id` (or `id`)"), (TEXT_COLUMNS, "`texto` (or `text`, `label`)")];
    let missing = wanted.into_iter().filter(|(names, _)| column(header, names).is_none());
    missing
        .map(|(_, name)| {
            Problem::new(format!("{source} has no column {name}"))
                .cause(format!("its first line has the columns {}", some_of(&found)))
                .hint("name the columns in the file's first line")
        })
        .collect()
}

fn two_texts(source: &Source, id: &str, first: (u64, &str), second: (u64, &str)) -> Problem {
    Problem::new(format!("{source} has two texts for {id}: lines {} and {}", first.0, second.0))
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
    let rows = table::read(source).map_err(|problem| vec![problem])?;
    let header = rows.first().and_then(|row| column(row, ID_COLUMNS));
    let body = rows.get(usize::from(header.is_some())..).unwrap_or_default();
    let mut index = Index { ids: Vec::new(), warnings: Vec::new() };
    let mut seen = HashSet::new();
    let (mut repeated, mut refused) = (Vec::new(), Vec::new());
    for row in body {
        let id = row.get(header.unwrap_or(0)).trim();
        if let Some(reason) = unfit(id) {
            refused.push(format!("{} ({reason})", row.line));
        } else if seen.insert(id) {
            index.ids.push(id.to_owned());
        } else {
            repeated.push(id);
        }
    }
    if !refused.is_empty() {
        let what = format!("{source} has ids that no file can have: lines {}", some_of(&refused));
        return Err(vec![Problem::new(what).hint("an id is part of a file's name: <id>_f<number>.jpg")]);
    }
    if index.ids.is_empty() {
        return Err(vec![Problem::new(format!("{source} lists no ids"))]);
    }
    if !repeated.is_empty() {
        let ids = count(repeated.len(), "id");
        index.warnings.push(format!("{source} repeats {ids}, kept once: {}", some_of(&repeated)));
    }
    Ok(index)
}

/// Why an id cannot be part of a file's name, or could reach outside its folder.
fn unfit(id: &str) -> Option<String> {
    if id.is_empty() {
        Some("empty".into())
    } else if id.contains(['/', '\\']) {
        Some(format!("{:?}: a path separator", shortened(id)))
    } else if id.contains("..") {
        Some(format!("{:?}: `..`", shortened(id)))
    } else if id.contains(char::is_control) {
        Some(format!("{:?}: a control character", shortened(id)))
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
        assert!(index("video_id\n").unwrap_err().contains("lists no ids"));
        assert!(index("").unwrap_err().contains("is empty"));
    }
}
