//! Everything that a run does to the disk, one function an operation, so that tests can make each one fail.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::fault;

/// A file that a run writes.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
}

impl DiskFile {
    /// The open `file`, which `path` names.
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self { file, path }
    }

    /// The open file, for what changes nothing on the disk.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle of the same open file.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, path: self.path.clone() })
    }

    /// Cuts the file off at `length` bytes, or fills it up with zeros.
    ///
    /// # Errors
    /// The disk fails.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        before("cut", &self.path)?;
        self.file.set_len(length)
    }

    /// Hands content and metadata to the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync_all(&self) -> io::Result<()> {
        before("sync", &self.path)?;
        self.file.sync_all()
    }

    /// Hands the content to the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync_data(&self) -> io::Result<()> {
        before("sync", &self.path)?;
        self.file.sync_data()
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(fault) = fault::next("write", &self.path)? else { return self.file.write(bytes) };
        // Half of a byte is a byte: a write of none would not be a write.
        let half = bytes.get(..bytes.len().div_ceil(2)).filter(|_| fault.half).unwrap_or_default();
        let written = self.file.write(half)?;
        fault.then.happen()?;
        if fault.half { Ok(written) } else { self.file.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Gives a file another name, in the place of what had it.
///
/// # Errors
/// The disk fails.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before("rename", from)?;
    fs::rename(from, to)
}

/// Makes a folder in one that is there.
///
/// # Errors
/// The name is taken, or the disk fails.
pub fn create_dir(path: &Path) -> io::Result<()> {
    before("make folder", path)?;
    fs::create_dir(path)
}

/// Removes an empty folder.
///
/// # Errors
/// It is not empty, not there, or the disk fails.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    before("remove folder", path)?;
    fs::remove_dir(path)
}

/// Lets a planned fault happen to an operation that is not a write.
pub(super) fn before(operation: &str, path: &Path) -> io::Result<()> {
    match fault::next(operation, path)? {
        Some(fault) => fault.then.happen(),
        None => Ok(()),
    }
}
