//! Writes a zip of stored entries from front to back, each entry's bytes aligned to 64, as PyTorch does.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use zip::result::{ZipError, ZipResult};
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime};

const ALIGNMENT: u16 = 64;
/// The extra field in which PyTorch's own writer puts its padding.
const PADDING: u16 = 0x4246;
/// From here on 32 bits do not hold an entry's size.
const LARGE: u64 = 0xffff_ffff;

/// A zip file in the making. The output need not seek: checksums stand behind their entries, and in the directory, which
/// is what counts. Equal entries make equal files.
pub(super) struct ZipWriter<W: Write> {
    zip: zip::ZipWriter<StreamWriter<UntilError<W>>>,
    error: Rc<Cell<Option<io::Error>>>,
}

impl<W: Write> ZipWriter<W> {
    /// Starts an archive at the beginning of `out`.
    pub fn new(out: W) -> Self {
        let error = Rc::default();
        let out = UntilError { out, failed: false, error: Rc::clone(&error) };
        Self { zip: zip::ZipWriter::new_stream(out), error }
    }

    /// Adds an entry. Each name may be used once; names are short and ASCII.
    pub fn entry(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        let started = self.zip.start_file(name, options(data.len() as u64));
        self.outcome(started)?;
        let written = self.zip.write_all(data);
        self.outcome(written.map_err(ZipError::Io))
    }

    /// Writes the directory and flushes.
    pub fn finish(mut self) -> io::Result<()> {
        let flushed = self.zip.flush();
        self.outcome(flushed.map_err(ZipError::Io))?;
        let error = Rc::clone(&self.error);
        let mut out = self.zip.finish().map_err(io::Error::from)?.into_inner();
        out.flush()?;
        error.take().map_or(Ok(()), Err)
    }

    /// The output's own error rather than what became of it.
    fn outcome(&self, done: ZipResult<()>) -> io::Result<()> {
        self.error.take().map_or(done.map_err(io::Error::from), Err)
    }
}

fn options(size: u64) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment_and_header_id(ALIGNMENT, PADDING)
        .last_modified_time(DateTime::default())
        .large_file(size >= LARGE)
}

/// An output that keeps its first error and takes everything after it without a word: the archive's writer would go on
/// to write its directory when it is dropped, and complain to the terminal.
struct UntilError<W> {
    out: W,
    failed: bool,
    error: Rc<Cell<Option<io::Error>>>,
}

impl<W> UntilError<W> {
    fn keep<T>(&mut self, done: io::Result<T>, otherwise: T) -> io::Result<T> {
        match done {
            // It is asked again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = true;
                self.error.set(Some(error));
                Ok(otherwise)
            }
            done => done,
        }
    }
}

impl<W: Write> Write for UntilError<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Ok(bytes.len());
        }
        let written = match self.out.write(bytes) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        };
        self.keep(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        let flushed = self.out.flush();
        self.keep(flushed, ())
    }
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
            assert_eq!(entry.data_start().unwrap() % u64::from(ALIGNMENT), 0);
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert_eq!(&read, data);
        }
        // PyTorch reads from the start of the bytes that a local header is followed by, whatever the date.
        let mut again = Vec::new();
        let mut zip = ZipWriter::new(&mut again);
        for (i, data) in data.iter().enumerate() {
            zip.entry(&format!("archive/data/{i}"), data).unwrap();
        }
        zip.finish().unwrap();
        assert_eq!(again, bytes);
    }

    /// An output for so many bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.0.min(bytes.len());
            self.0 -= taken;
            if taken == 0 { Err(io::Error::from_raw_os_error(28)) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_error_of_the_output_is_the_one_that_is_told() {
        let write = |room| {
            let mut zip = ZipWriter::new(Full(room));
            zip.entry("archive/data/0", &[1; 100])?;
            zip.entry("archive/data/1", &[2; 100])?;
            zip.finish()
        };
        let whole = (0..10_000).find(|&room| write(room).is_ok()).unwrap();
        assert!((400..1000).contains(&whole));
        for room in 0..whole {
            assert_eq!(write(room).unwrap_err().raw_os_error(), Some(28), "{room}");
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

    /// Keeps what comes behind `base`.
    struct Tail<'a> {
        sparse: &'a mut Sparse,
    }

    impl Write for Tail<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let before = self.sparse.base.saturating_sub(self.sparse.at).min(bytes.len() as u64);
            self.sparse.tail.extend(&bytes[before as usize..]);
            self.sparse.at += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn entries_of_and_past_4_gib_are_found() {
        // Nothing writes to it, so that it takes no memory.
        let zeros = vec![0_u8; LARGE as usize + 7];
        let mut sparse = Sparse { base: LARGE, tail: Vec::new(), at: 0 };
        let mut zip = ZipWriter::new(Tail { sparse: &mut sparse });
        zip.entry("archive/data/0", &zeros).unwrap();
        zip.entry("archive/data/1", b"far away").unwrap();
        zip.finish().unwrap();

        sparse.at = 0;
        let mut archive = zip::ZipArchive::new(sparse).unwrap();
        let mut entry = archive.by_name("archive/data/1").unwrap();
        assert!(entry.data_start().unwrap() > LARGE && entry.data_start().unwrap().is_multiple_of(64));
        let mut read = String::new();
        entry.read_to_string(&mut read).unwrap();
        assert_eq!(read, "far away");
    }
}
