//! A CSV file as records with their line numbers: delimiter, BOM and encoding settled, every row as wide as the first.

use super::manifest::Source;
use super::some_of;
use crate::error::Problem;
use csv::StringRecord;
use std::io::Read;

/// Far beyond any corpus (the real one's metadata is 4 MB), and small enough to hold.
const MAX_BYTES: u64 = 512 << 20;

/// One record and the line that it starts on, counted from 1.
pub struct Row {
    pub line: u64,
    pub fields: StringRecord,
}

impl Row {
    /// The field in `column`, or "" where the row has none.
    pub fn get(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or("")
    }
}

/// All records of the file, the header (if it has one) as the first. There is at least one.
pub fn read(source: &Source) -> Result<Vec<Row>, Problem> {
    let bytes = read_bytes(source)?;
    let text = as_text(source, &bytes)?;
    let delimiter = delimiter(text);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut rows = Vec::new();
    let mut last_start = 0;
    for record in reader.records() {
        let fields = record.map_err(|error| Problem::new(format!("cannot read {source}")).cause(error))?;
        let position = fields.position().map_or((0, 0), |at| (at.line(), at.byte()));
        last_start = position.1;
        rows.push(Row { line: position.0, fields });
    }
    if rows.is_empty() {
        return Err(empty(source));
    }
    check_last_quote(source, text, &rows, last_start)?;
    check_widths(source, &rows, delimiter)?;
    Ok(rows)
}

fn empty(source: &Source) -> Problem {
    Problem::new(format!("{source} is empty")).hint("is it the right file, and was it written completely?")
}

fn read_bytes(source: &Source) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(format!("cannot read {source}")).cause(&error).hint(format!("correct {}", source.key))
    };
    let file = std::fs::File::open(source.path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Problem::new(format!("{source} is larger than {} MiB", MAX_BYTES >> 20))
            .hint("is it the right file?"));
    }
    Ok(bytes)
}

/// The bytes as UTF-8 without a byte order mark.
fn as_text<'a>(source: &Source, bytes: &'a [u8]) -> Result<&'a str, Problem> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Problem::new(format!("{source} is UTF-16, not UTF-8"))
            .hint(format!("convert it: iconv -f UTF-16 -t UTF-8 {} > utf8.csv", source.path.display())));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|&byte| byte == b'\n').count();
            Err(Problem::new(format!("{source} is not UTF-8: line {line}")).hint(format!(
                "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {} > utf8.csv",
                source.path.display()
            )))
        }
    }
}

/// The one of `;` and `,` that the first line has more of outside quotes; `,` where it has neither.
fn delimiter(text: &str) -> u8 {
    let (mut semicolons, mut commas, mut quoted) = (0, 0, false);
    for byte in text.trim_start_matches(['\r', '\n']).bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            b';' if !quoted => semicolons += 1,
            b',' if !quoted => commas += 1,
            _ => {}
        }
    }
    if semicolons > commas { b';' } else { b',' }
}

/// A quote that is never closed swallows the rest of the file into one field, silently for the CSV reader.
fn check_last_quote(source: &Source, text: &str, rows: &[Row], start: u64) -> Result<(), Problem> {
    let last = text.get(start as usize..).unwrap_or("").trim();
    if last.contains('\n') && last.bytes().filter(|&byte| byte == b'"').count() % 2 == 1 {
        let line = rows.last().map_or(0, |row| row.line);
        return Err(Problem::new(format!("{source}, line {line}: a quote is opened and never closed"))
            .hint("close it, or double it if it belongs to the text"));
    }
    Ok(())
}

fn check_widths(source: &Source, rows: &[Row], delimiter: u8) -> Result<(), Problem> {
    let Some(first) = rows.first() else { return Ok(()) };
    let width = first.fields.len();
    let ragged: Vec<&Row> = rows.iter().filter(|row| row.fields.len() != width).collect();
    let Some(row) = ragged.first() else { return Ok(()) };
    let lines: Vec<u64> = ragged.iter().map(|row| row.line).collect();
    let delimiter = char::from(delimiter);
    Err(Problem::new(format!("{source} has rows of another width than its first: lines {}", some_of(&lines)))
        .cause(format!("line {} has {} fields, line {} has {width}", row.line, row.fields.len(), first.line))
        .hint(format!("the fields are separated by `{delimiter}`; put a field that contains it in quotes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(bytes: &[u8]) -> Result<Vec<(u64, Vec<String>)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        match read(&Source { key: "data.metadata_csv", path: &path }) {
            Ok(rows) => Ok(rows
                .iter()
                .map(|row| (row.line, row.fields.iter().map(str::to_owned).collect()))
                .collect()),
            Err(problem) => Err(problem.to_string()),
        }
    }

    #[test]
    fn delimiters_marks_line_ends_and_quotes() {
        for text in ["a;b\n1;x,y\n", "\u{feff}a;b\r\n1;\"x,y\"\r\n", "a,b\n1,\"x,y\"", "\r\na;b\n\n1;x,y"] {
            let rows = rows_of(text.as_bytes()).unwrap();
            assert_eq!(rows[0].1, ["a", "b"], "{text:?}");
            assert_eq!(rows[1].1, ["1", "x,y"], "{text:?}");
        }
        let rows = rows_of(b"a,b\n1,\"two\nlines \"\"q\"\"\"\n3,z\n").unwrap();
        assert_eq!(rows[1].1[1], "two\nlines \"q\"");
        assert_eq!(rows[2].0, 4);
    }

    #[test]
    fn bad_files_say_where() {
        let error = |bytes: &[u8]| rows_of(bytes).unwrap_err();
        assert!(error(b"").contains("is empty"));
        assert!(error(b"\n\n").contains("is empty"));
        let ragged = error(b"a;b\n1;2\n1;2;3\n4\n");
        assert!(ragged.contains("lines 3, 4") && ragged.contains("3 fields, line 1 has 2"), "{ragged}");
        let latin = error(b"a;b\n1;se\xf1a\n");
        assert!(latin.contains("not UTF-8: line 2") && latin.contains("iconv"), "{latin}");
        assert!(error(b"\xff\xfea\x00").contains("UTF-16"));
        assert!(error(b"a;b\n1;\"x\n2;y\n").contains("line 2: a quote is opened"));
    }
}
