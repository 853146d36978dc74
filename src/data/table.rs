//! A CSV file row by row with line numbers: delimiter, BOM and encoding settled, every row as wide as the first.

use super::FirstTen;
use crate::error::Problem;
use crate::input;
use csv::StringRecord;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

/// Far beyond any corpus (the real one's metadata is 4 MB), and small enough to hold.
const MAX_BYTES: u64 = 512 << 20;
/// Beyond the largest corpora, of 2 million clips. A clip takes some 400 bytes, and 15 in its files.
const MAX_ROWS: u64 = 4_000_000;
/// A longer row is a quote that is not closed, or no CSV.
const MAX_ROW_BYTES: usize = 1 << 20;

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

/// One record and the line that it starts on, counted from 1.
pub struct Row<'r> {
    pub line: u64,
    pub fields: &'r StringRecord,
}

impl Row<'_> {
    /// The field in `column`, or "" where the row has none.
    pub fn get(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or("")
    }
}

/// Shows `each` all records of the file, the header (if it has one) as the first. There is at least one.
pub fn read(source: &Source, mut each: impl FnMut(&Row)) -> Result<(), Problem> {
    let bytes = read_bytes(source)?;
    let text = as_text(source, &bytes)?;
    let delimiter = delimiter(text);
    let left = Cell::new(0);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(Metered { text: text.as_bytes(), left: &left });
    let mut fields = StringRecord::new();
    let (mut rows, mut widths, mut last) = (0, Widths::default(), (0, 0));
    loop {
        let line = reader.position().line();
        // The reader is a buffer ahead of the row that it is at.
        left.set(MAX_ROW_BYTES + READ_AHEAD);
        match reader.read_record(&mut fields) {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) if left.get() == 0 => return Err(long_row(source, line)),
            Err(error) => return Err(Problem::new(format!("cannot read {source}")).cause(error)),
        }
        rows += 1;
        if rows > MAX_ROWS {
            return Err(
                Problem::new(format!("{source} has more than {MAX_ROWS} rows")).hint("is it the right file?")
            );
        }
        last = fields.position().map_or((line, 0), |at| (at.line(), at.byte()));
        let row = Row { line: last.0, fields: &fields };
        widths.add(&row);
        each(&row);
    }
    if rows == 0 {
        return Err(empty(source));
    }
    check_last_quote(source, text, last)?;
    widths.check(source, delimiter)
}

/// What a reader of the `csv` crate takes at a time.
const READ_AHEAD: usize = 8 << 10;

/// A text of which no more than `left` bytes are read before a row is over.
struct Metered<'a> {
    text: &'a [u8],
    left: &'a Cell<usize>,
}

impl Read for Metered<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = self.left.get().min(out.len());
        if most == 0 && !self.text.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.text.read(out.get_mut(..most).unwrap_or_default())?;
        self.left.set(self.left.get() - read);
        Ok(read)
    }
}

fn long_row(source: &Source, line: u64) -> Problem {
    Problem::new(format!("{source}, line {line}: the row is longer than {} MiB", MAX_ROW_BYTES >> 20))
        .hint("is a quote opened there and never closed, or is it another file?")
}

fn empty(source: &Source) -> Problem {
    Problem::new(format!("{source} is empty")).hint("is it the right file, and was it written completely?")
}

fn read_bytes(source: &Source) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| {
        let problem = Problem::new(format!("cannot read {source}")).io(source.path, &error);
        problem.hint(format!("correct {}", source.key))
    };
    let (file, size) = input::open(source.path).map_err(failed)?;
    let mut bytes = Vec::new();
    if size <= MAX_BYTES {
        bytes.reserve_exact(size as usize);
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if size > MAX_BYTES || bytes.len() as u64 > MAX_BYTES {
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

/// A quote that is never closed swallows the rest of the file into one field, silently for the CSV reader. `last` is the
/// line and the byte at which the last row starts.
fn check_last_quote(source: &Source, text: &str, last: (u64, u64)) -> Result<(), Problem> {
    let (line, start) = last;
    let last = text.get(start as usize..).unwrap_or("").trim();
    if last.contains('\n') && last.bytes().filter(|&byte| byte == b'"').count() % 2 == 1 {
        return Err(Problem::new(format!("{source}, line {line}: a quote is opened and never closed"))
            .hint("close it, or double it if it belongs to the text"));
    }
    Ok(())
}

/// How wide the rows are.
#[derive(Default)]
struct Widths {
    /// Line and width of the first row, and of the first that differs.
    first: Option<(u64, usize)>,
    other: Option<(u64, usize)>,
    /// The lines that differ.
    ragged: FirstTen<u64>,
}

impl Widths {
    fn add(&mut self, row: &Row) {
        let here = (row.line, row.fields.len());
        let (_, width) = *self.first.get_or_insert(here);
        if here.1 != width {
            self.other.get_or_insert(here);
            self.ragged.push(|| row.line);
        }
    }

    fn check(&self, source: &Source, delimiter: u8) -> Result<(), Problem> {
        let (Some((first, width)), Some((line, found))) = (self.first, self.other) else { return Ok(()) };
        let delimiter = char::from(delimiter);
        let ragged = &self.ragged;
        Err(Problem::new(format!("{source} has rows of another width than its first: lines {ragged}"))
            .cause(format!("line {line} has {found} fields, line {first} has {width}"))
            .hint(format!(
                "the fields are separated by `{delimiter}`; put a field that contains it in quotes"
            )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(bytes: &[u8]) -> Result<Vec<(u64, Vec<String>)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        let mut rows = Vec::new();
        let each = |row: &Row| rows.push((row.line, row.fields.iter().map(str::to_owned).collect()));
        match read(&Source { key: "data.metadata_csv", path: &path }, each) {
            Ok(()) => Ok(rows),
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

    #[test]
    fn long_rows_are_refused_and_a_long_file_is_not() {
        let error = |text: &str| rows_of(text.as_bytes()).map(|rows| rows.len()).unwrap_err();
        let error_of_long = error(&format!("a;b\n1;{}\n", "x".repeat(2 * MAX_ROW_BYTES)));
        assert!(error_of_long.contains("line 2: the row is longer than 1 MiB"), "{error_of_long}");
        let quote = format!("a;b\n1;2\n3;\"{}", "x;y\n".repeat(MAX_ROW_BYTES / 2));
        let open = error(&quote);
        assert!(open.contains("line 3: the row is longer") && open.contains("quote"), "{open}");
        let row = format!("1;{}\n", "x".repeat(MAX_ROW_BYTES / 2));
        assert_eq!(rows_of(format!("a;b\n{}", row.repeat(5)).as_bytes()).unwrap().len(), 6);
        let wide = format!("{0}\n{0}\n", ",".repeat(1_000_000));
        assert_eq!(rows_of(wide.as_bytes()).unwrap()[1].1.len(), 1_000_001);
    }
}
