//! Reads zip files from elsewhere with distrust: `.pt` checkpoints and `.npz` poses. Our own, because the `zip`
//! crate bounds neither the directory's nor an entry's cost by the file's size, and looks for overlaps and doubles only
//! where asked, when the whole directory is in memory already.
//!
//! What a file may cost is bounded by its size on the disk: the directory must lie inside the file and hold as many
//! entries as it says, no two entries may share a name or a byte, an entry's size may not exceed what its bytes can
//! inflate to, and its checksum is compared where it ends. Format: PKWARE's APPNOTE 6.3, with zip64; one disk, stored
//! and deflated entries. The directory at the end is what counts; the headers before the entries are only compared.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};

use flate2::read::DeflateDecoder;

/// A directory beyond this is no checkpoint's and no pose's: some 600,000 entries.
const MAX_DIRECTORY: u64 = 64 << 20;
/// The most that a byte of deflated data can stand for is 1032 bytes (zlib's documentation).
const MAX_INFLATION: u64 = 1032;
const MAX_COMMENT: u64 = 0xffff;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Sizes of these records without their variable parts.
const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_64_BYTES: usize = 20;
/// The extra field with the sizes that 32 bits do not hold.
const ZIP64: u16 = 1;

/// Why a zip file or an entry is refused.
#[derive(Debug)]
pub enum Fault {
    /// Damaged, cut short or forged.
    Damaged(String),
    /// Encrypted.
    Encrypted,
    /// The disk failed.
    Io(io::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what) => f.write_str(what),
            Self::Encrypted => f.write_str("its entries are encrypted"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged(what: impl Into<String>) -> Fault {
    Fault::Damaged(what.into())
}

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// Compressed.
    Deflated,
    /// With a method that is not read.
    Other(u16),
}

/// What the directory says of one entry.
#[derive(Clone, Debug)]
pub struct Entry {
    name: Box<[u8]>,
    /// How its bytes are kept.
    pub method: Method,
    /// Its bytes, once unpacked.
    pub size: u64,
    packed: u64,
    crc: u32,
    /// Where its local header starts.
    start: u64,
    /// Where the next entry, or the directory, starts.
    until: u64,
}

impl Entry {
    /// Its name, odd bytes escaped and cut to a length that fits a message.
    pub fn shown(&self) -> String {
        let name = self.name.escape_ascii().to_string();
        if name.len() > 100 { format!("{}…", &name[..100]) } else { name }
    }
}

/// An open zip file.
pub struct Zip<R> {
    reader: BufReader<R>,
    /// Sorted by name.
    entries: Vec<Entry>,
}

impl<R: Read + Seek> Zip<R> {
    /// Opens a file by its directory.
    ///
    /// # Errors
    /// It has no directory, or one that lies.
    pub fn open(mut reader: R) -> Result<Self, Fault> {
        let end = find_end(&mut reader)?;
        let mut directory = Vec::new();
        reader.seek(SeekFrom::Start(end.start))?;
        (&mut reader).take(end.size).read_to_end(&mut directory)?;
        let mut entries = parse_directory(&directory, &end)?;
        check_places(&mut entries, &end)?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some([entry, _]) = entries.array_windows().find(|[a, b]| a.name == b.name) {
            return Err(damaged(format!("two entries have the same name, `{}`", entry.shown())));
        }
        Ok(Self { reader: BufReader::new(reader), entries })
    }

    /// All entries, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The names that are UTF-8.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|entry| std::str::from_utf8(&entry.name).ok())
    }

    /// The entry `name`.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| (*entry.name).cmp(name.as_bytes())).ok()?;
        self.entries.get(at)
    }

    /// The bytes of the entry `name`, exactly `size` of them unless an error comes first; the last comes only if the
    /// checksum is right. `None` where there is no such entry.
    ///
    /// # Errors
    /// Its header belongs to another entry, it overlaps the next one, or it is kept in a way that is not read.
    pub fn read(&mut self, name: &str) -> Result<Option<EntryReader<'_, R>>, Fault> {
        let Some(entry) = self.find(name).cloned() else { return Ok(None) };
        let mut header = [0; LOCAL_BYTES];
        self.reader.seek(SeekFrom::Start(entry.start))?;
        self.reader.read_exact(&mut header)?;
        let record = Record(&header);
        let (name_bytes, extra_bytes) = (u64::from(record.u16(26)), u64::from(record.u16(28)));
        let mut name = Vec::new();
        (&mut self.reader).take(name_bytes).read_to_end(&mut name)?;
        if record.u32(0) != LOCAL || *name != *entry.name {
            return Err(damaged(format!("the header of `{}` belongs to something else", entry.shown())));
        }
        // Cannot overflow: `start + packed` was checked, and the others have 16 bits.
        let data = entry.start + LOCAL_BYTES as u64 + name_bytes + extra_bytes;
        if data.saturating_add(entry.packed) > entry.until {
            return Err(damaged(format!("entries overlap, as in a zip bomb: `{}`", entry.shown())));
        }
        self.reader.seek(SeekFrom::Start(data))?;
        let packed = (&mut self.reader).take(entry.packed);
        let body = match entry.method {
            Method::Stored => Body::Stored(packed),
            Method::Deflated => Body::Deflated(Box::new(DeflateDecoder::new(packed))),
            Method::Other(method) => {
                let what = format!("`{}` is compressed with method {method}", entry.shown());
                return Err(damaged(format!("{what}; only stored and deflated entries are read")));
            }
        };
        let crc = crc32fast::Hasher::new();
        Ok(Some(EntryReader { body, crc, left: entry.size, expected: entry.crc, checked: false }))
    }
}

/// Where the directory is.
struct End {
    start: u64,
    size: u64,
    entries: u64,
}

/// Finds the record at the end of a file: the last one whose comment reaches exactly to the end.
fn find_end(reader: &mut (impl Read + Seek)) -> Result<End, Fault> {
    let size = reader.seek(SeekFrom::End(0))?;
    let tail_start = size.saturating_sub(MAX_COMMENT + (END_BYTES + LOCATOR_64_BYTES) as u64);
    let mut tail = Vec::new();
    reader.seek(SeekFrom::Start(tail_start))?;
    reader.take(size - tail_start).read_to_end(&mut tail)?;
    let is_end = |at: &usize| {
        let comment = tail.len().checked_sub(at + END_BYTES);
        tail.get(*at..)
            .and_then(|rest| Record::of(rest, END_BYTES))
            .is_some_and(|record| record.u32(0) == END && comment == Some(usize::from(record.u16(20))))
    };
    let at = (0..tail.len()).rev().find(is_end).ok_or_else(|| damaged("it has no directory at its end"))?;
    let record = Record(&tail[at..]);
    let mut end = End {
        start: u64::from(record.u32(16)),
        size: u64::from(record.u32(12)),
        entries: u64::from(record.u16(10)),
    };
    // Where the directory must be over.
    let mut limit = tail_start + at as u64;
    let locator = at.checked_sub(LOCATOR_64_BYTES).and_then(|at| tail.get(at..)).map(Record);
    if let Some(locator) = locator.filter(|record| record.u32(0) == LOCATOR_64) {
        limit = locator.u64(8);
        end = read_end_64(reader, limit)?;
    } else if record.u16(4) != 0 || record.u16(6) != 0 || record.u16(8) != record.u16(10) {
        return Err(damaged("it is one of several disks of an archive"));
    }
    let fits = end.start.checked_add(end.size).is_some_and(|over| over <= limit && limit <= size);
    if !fits || end.size > MAX_DIRECTORY || end.entries.saturating_mul(CENTRAL_BYTES as u64) > end.size {
        return Err(damaged("its directory does not fit into it"));
    }
    Ok(end)
}

fn read_end_64(reader: &mut (impl Read + Seek), at: u64) -> Result<End, Fault> {
    let mut record = [0; END_64_BYTES];
    reader.seek(SeekFrom::Start(at)).and_then(|_| reader.read_exact(&mut record)).map_err(
        |error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                damaged("its zip64 record is missing")
            }
            _ => Fault::Io(error),
        },
    )?;
    let record = Record(&record);
    if record.u32(0) != END_64 {
        return Err(damaged("its zip64 record is missing"));
    }
    if record.u32(16) != 0 || record.u32(20) != 0 || record.u64(24) != record.u64(32) {
        return Err(damaged("it is one of several disks of an archive"));
    }
    Ok(End { start: record.u64(48), size: record.u64(40), entries: record.u64(32) })
}

fn parse_directory(directory: &[u8], end: &End) -> Result<Vec<Entry>, Fault> {
    let mut entries = Vec::new();
    let mut rest = directory;
    for number in 0..end.entries {
        let cut = || damaged(format!("its directory breaks off at entry {number}"));
        let record = Record::of(rest, CENTRAL_BYTES).filter(|r| r.u32(0) == CENTRAL).ok_or_else(cut)?;
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(record.u16(at)));
        let name = rest.get(CENTRAL_BYTES..CENTRAL_BYTES + name).ok_or_else(cut)?;
        let extra_start = CENTRAL_BYTES + name.len();
        let extra = rest.get(extra_start..extra_start + extra).ok_or_else(cut)?;
        entries.push(parse_entry(&record, name, extra)?);
        rest = rest.get(extra_start + extra.len() + comment..).ok_or_else(cut)?;
    }
    Ok(entries)
}

fn parse_entry(record: &Record, name: &[u8], extra: &[u8]) -> Result<Entry, Fault> {
    // Bit 0: encrypted; bit 6: strongly.
    if record.u16(8) & 0x41 != 0 {
        return Err(Fault::Encrypted);
    }
    let mut wide = zip64(extra);
    let mut field = |at: usize| -> Result<u64, Fault> {
        match record.u32(at) {
            u32::MAX => {
                let missing = || damaged("an entry's 64-bit size is missing");
                let (value, rest) = wide.split_first_chunk::<8>().ok_or_else(missing)?;
                wide = rest;
                Ok(u64::from_le_bytes(*value))
            }
            value => Ok(u64::from(value)),
        }
    };
    // In this order: the extra field has those of them that the record has not.
    let (size, packed, start) = (field(24)?, field(20)?, field(42)?);
    let method = match record.u16(10) {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => Method::Other(other),
    };
    let entry = Entry { name: name.into(), method, size, packed, crc: record.u32(16), start, until: 0 };
    let possible = match method {
        Method::Stored => size == packed,
        _ => size / MAX_INFLATION <= packed,
    };
    if !possible {
        return Err(damaged(format!(
            "`{}` claims {size} bytes, which its {packed} bytes cannot hold",
            entry.shown()
        )));
    }
    Ok(entry)
}

/// The zip64 field among the extra fields.
fn zip64(mut extra: &[u8]) -> &[u8] {
    while let Some(record) = Record::of(extra, 4) {
        let body = 4..4 + usize::from(record.u16(2));
        if record.u16(0) == ZIP64 {
            return extra.get(body).unwrap_or_default();
        }
        extra = extra.get(body.end..).unwrap_or_default();
    }
    &[]
}

/// Notes where each entry must be over, and refuses entries that share bytes with others or the directory.
fn check_places(entries: &mut [Entry], end: &End) -> Result<(), Fault> {
    entries.sort_unstable_by_key(|entry| entry.start);
    let mut until = end.start;
    for entry in entries.iter_mut().rev() {
        let least = (LOCAL_BYTES + entry.name.len()) as u64;
        let over = entry.start.checked_add(entry.packed).and_then(|over| over.checked_add(least));
        if over.is_none_or(|over| over > until) {
            return Err(damaged("entries of the zip file overlap, as in a zip bomb"));
        }
        entry.until = until;
        until = entry.start;
    }
    Ok(())
}

/// An entry's bytes.
pub struct EntryReader<'z, R> {
    body: Body<'z, R>,
    crc: crc32fast::Hasher,
    left: u64,
    expected: u32,
    checked: bool,
}

enum Body<'z, R> {
    Stored(Take<&'z mut BufReader<R>>),
    Deflated(Box<DeflateDecoder<Take<&'z mut BufReader<R>>>>),
}

impl<R: Read> Body<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(body) => body.read(out),
            Self::Deflated(body) => body.read(out),
        }
    }
}

impl<R: Read> Read for EntryReader<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let out = out.get_mut(..most).unwrap_or_default();
        let read = if most > 0 { self.body.read(out)? } else { 0 };
        self.crc.update(out.get(..read).unwrap_or_default());
        self.left -= read as u64;
        if most > 0 && read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its bytes end too early"));
        }
        if self.left == 0 && !self.checked {
            if self.body.read(&mut [0])? != 0 {
                return Err(invalid("it has more bytes than it says"));
            }
            if self.crc.clone().finalize() != self.expected {
                return Err(invalid("its checksum is wrong"));
            }
            self.checked = true;
        }
        Ok(read)
    }
}

/// The bytes of a record of fixed fields; a field beyond them reads as 0, so lengths are checked where records are made.
#[derive(Clone, Copy)]
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    /// The record at the start of `bytes`, where there are as many as `least`.
    fn of(bytes: &'a [u8], least: usize) -> Option<Self> {
        (bytes.len() >= least).then_some(Self(bytes))
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.field(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.field(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.field(at))
    }
}
