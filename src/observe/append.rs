//! A file that grows by whole records: a failed write leaves no half of one behind.

use std::io::{self, Seek, SeekFrom, Write};

use crate::files::{DiskFile, Folder};

/// A file open for adding records at its end.
#[derive(Debug)]
pub(super) struct AppendFile {
    file: DiskFile,
    /// The length up to the last whole record.
    whole: u64,
    /// Whether bytes of a failed record may lie behind `whole`.
    torn: bool,
}

impl AppendFile {
    /// Opens `name` in `folder`, which must not exist yet where `new` is set.
    pub fn open(folder: &Folder, name: &str, new: bool) -> io::Result<Self> {
        let file = folder.append(name, new)?;
        let whole = file.file().seek(SeekFrom::End(0))?;
        Ok(Self { file, whole, torn: false })
    }

    /// Adds `record` in one write. After an error the next call first cuts the file back to its last whole record.
    pub fn add(&mut self, record: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.whole)?;
        }
        self.torn = true;
        self.file.write_all(record)?;
        self.torn = false;
        self.whole += record.len() as u64;
        Ok(())
    }

    /// Hands everything to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_is_cut_off_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let folder = Folder::open(folder.path()).unwrap();
        let mut log = AppendFile::open(&folder, "log", true).unwrap();
        log.add(b"one\n").unwrap();
        // What a write that stopped halfway leaves.
        log.file.write_all(b"tw").unwrap();
        log.torn = true;
        log.add(b"three\n").unwrap();
        drop(log);
        AppendFile::open(&folder, "log", false).unwrap().add(b"four\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\nthree\nfour\n");
        assert!(AppendFile::open(&folder, "log", true).is_err());
    }
}
