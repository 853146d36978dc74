//! Writes a zip of stored entries from front to back, each entry's bytes aligned to 64 as PyTorch does.
//!
//! Sizes and checksums are known before an entry is written, so nothing is patched afterwards and the output
//! need not seek. Format: PKWARE's APPNOTE 6.3, with zip64 records where 32 bits do not suffice.

use std::io::{self, Write};

const ALIGNMENT: u64 = 64;
const MAX_32: u64 = 0xffff_ffff;
const ZIP64: u16 = 1;
/// The extra field in which PyTorch's own writer puts its padding.
const PADDING: u16 = 0x4246;
/// 1 January 1980, the earliest date of the format: equal checkpoints are equal files.
const DATE: u16 = 0x21;

/// A zip file in the making.
pub(super) struct ZipWriter<W: Write> {
    out: W,
    position: u64,
    directory: Vec<u8>,
    entries: u64,
}

impl<W: Write> ZipWriter<W> {
    /// Starts an archive at the beginning of `out`.
    pub fn new(out: W) -> Self {
        Self { out, position: 0, directory: Vec::new(), entries: 0 }
    }

    /// Adds an entry. Each name may be used once; names are short and ASCII.
    pub fn entry(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.entry_with_checksum(name, data, crc32fast::hash(data))
    }

    /// [`Self::entry`] with `crc`, the CRC-32 of `data`, known already.
    pub fn entry_with_checksum(&mut self, name: &str, data: &[u8], crc: u32) -> io::Result<()> {
        let header = Header { name, size: data.len() as u64, crc, offset: self.position };
        self.put(&header.local())?;
        self.put(data)?;
        self.directory.extend(header.central());
        self.entries += 1;
        Ok(())
    }

    /// Writes the directory and flushes.
    pub fn finish(mut self) -> io::Result<()> {
        let (start, size, entries) = (self.position, self.directory.len() as u64, self.entries);
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        self.put(&end_of_directory(start, size, entries))?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

struct Header<'n> {
    name: &'n str,
    size: u64,
    crc: u32,
    /// Where the entry's local header starts.
    offset: u64,
}

impl Header<'_> {
    /// The fields that the local and the central header share, from the version needed to the name's length.
    fn common(&self, large: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.name.len());
        let version: u16 = if large { 45 } else { 20 };
        // No flags, stored, midnight.
        for field in [version, 0, 0, 0, DATE] {
            out.extend(field.to_le_bytes());
        }
        out.extend(self.crc.to_le_bytes());
        for _ in 0..2 {
            out.extend(low(self.size).to_le_bytes());
        }
        out.extend((self.name.len() as u16).to_le_bytes());
        out
    }

    fn local(&self) -> Vec<u8> {
        let mut extra = Vec::new();
        if self.size >= MAX_32 {
            extra.extend(field(ZIP64, &[self.size, self.size]));
        }
        let data_start = self.offset + 30 + (self.name.len() + extra.len() + 4) as u64;
        let padding = data_start.next_multiple_of(ALIGNMENT) - data_start;
        extra.extend(PADDING.to_le_bytes());
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        let mut out = b"PK\x03\x04".to_vec();
        out.extend(self.common(self.size >= MAX_32));
        out.extend((extra.len() as u16).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend(extra);
        out
    }

    fn central(&self) -> Vec<u8> {
        let mut wide = Vec::new();
        if self.size >= MAX_32 {
            wide.extend([self.size, self.size]);
        }
        if self.offset >= MAX_32 {
            wide.push(self.offset);
        }
        let extra = if wide.is_empty() { Vec::new() } else { field(ZIP64, &wide) };

        let mut out = b"PK\x01\x02".to_vec();
        // Made by version 4.5 of the format, on a system whose attributes are left at 0.
        out.extend(45_u16.to_le_bytes());
        out.extend(self.common(!wide.is_empty()));
        out.extend((extra.len() as u16).to_le_bytes());
        // No comment, first disk, no attributes.
        out.extend([0; 10]);
        out.extend(low(self.offset).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend(extra);
        out
    }
}

/// The end record, with zip64's before it where a number does not fit.
fn end_of_directory(start: u64, size: u64, entries: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if start >= MAX_32 || size >= MAX_32 || entries >= 0xffff {
        out.extend(b"PK\x06\x06");
        out.extend(44_u64.to_le_bytes());
        out.extend([45, 0, 45, 0]);
        // This disk and the directory's disk.
        out.extend([0; 8]);
        for number in [entries, entries, size, start] {
            out.extend(number.to_le_bytes());
        }
        out.extend(b"PK\x06\x07");
        out.extend([0; 4]);
        out.extend((start + size).to_le_bytes());
        out.extend(1_u32.to_le_bytes());
    }
    out.extend(b"PK\x05\x06");
    out.extend([0; 4]);
    let count = entries.min(0xffff) as u16;
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(low(size).to_le_bytes());
    out.extend(low(start).to_le_bytes());
    // No comment.
    out.extend([0; 2]);
    out
}

/// An extra field of 64-bit numbers.
fn field(id: u16, numbers: &[u64]) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend((8 * numbers.len() as u16).to_le_bytes());
    out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    out
}

/// `n` in 32 bits, or the mark that says that it is in the zip64 field.
fn low(n: u64) -> u32 {
    n.min(MAX_32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Read, Seek, SeekFrom};

    #[test]
    fn entries_are_stored_aligned_and_readable() {
        let mut bytes = Vec::new();
        let mut zip = ZipWriter::new(&mut bytes);
        let data = [vec![], vec![7_u8; 100], (0..=255).collect()];
        for (i, data) in data.iter().enumerate() {
            zip.entry(&format!("archive/data/{i}"), data).unwrap();
        }
        zip.finish().unwrap();

        let mut archive = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
        assert!(!archive.has_overlapping_entries().unwrap());
        for (i, data) in data.iter().enumerate() {
            let mut entry = archive.by_index(i).unwrap();
            assert_eq!(entry.data_start().unwrap() % ALIGNMENT, 0);
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert_eq!(&read, data);
        }
    }

    /// A file of which only the end is kept: everything before `base` reads as zeros.
    struct Sparse {
        base: u64,
        tail: Vec<u8>,
        at: u64,
    }

    impl Read for Sparse {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let skipped = self.at.checked_sub(self.base);
            let n = match skipped.map(|from| self.tail.get(from as usize..).unwrap_or_default()) {
                Some(rest) => rest.len().min(out.len()),
                None => out.len().min((self.base - self.at) as usize),
            };
            for (i, byte) in out.iter_mut().take(n).enumerate() {
                *byte = skipped.map_or(0, |from| self.tail[from as usize + i]);
            }
            self.at += n as u64;
            Ok(n)
        }
    }

    impl Seek for Sparse {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let end = self.base + self.tail.len() as u64;
            let at = match to {
                SeekFrom::Start(at) => Some(at),
                SeekFrom::End(by) => end.checked_add_signed(by),
                SeekFrom::Current(by) => self.at.checked_add_signed(by),
            };
            self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(self.at)
        }
    }

    #[test]
    fn entries_past_4_gib_are_found() {
        let base = 5 << 30;
        let mut tail = Vec::new();
        let mut zip = ZipWriter { out: &mut tail, position: base, directory: Vec::new(), entries: 0 };
        zip.entry("archive/data/0", b"far away").unwrap();
        zip.finish().unwrap();

        let mut archive = zip::ZipArchive::new(Sparse { base, tail, at: 0 }).unwrap();
        let mut entry = archive.by_name("archive/data/0").unwrap();
        assert!(entry.data_start().unwrap() > base);
        let mut read = String::new();
        entry.read_to_string(&mut read).unwrap();
        assert_eq!(read, "far away");
    }

    #[test]
    fn large_entries_say_their_size_in_64_bits() {
        let header = Header { name: "a", size: 5 << 30, crc: 0, offset: 0 };
        let size = (5_u64 << 30).to_le_bytes();
        for bytes in [header.local(), header.central()] {
            assert!(bytes.windows(8).any(|w| w == size));
        }
        assert_eq!(header.local().len() % 64, 0);
    }
}
