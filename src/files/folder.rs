//! A folder that is held open: its files are found in it, whatever becomes of its name.
//!
//! On Unix every operation names a file relative to the open folder. So a folder that is renamed while a run writes to
//! it takes the run's files along, and what has come in its old place is never touched. Elsewhere an open folder cannot be
//! renamed, and names are joined to its path.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{DiskFile, before};
use super::folder_of;

/// A folder that is open.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    handle: Arc<Handle>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Read,
    /// For writing a file that is not there yet.
    New,
    /// For writing at the end, making it where it is missing, as it must be where `new`.
    Append {
        new: bool,
    },
    /// For reading and writing from the start, making it where it is missing; never through a link.
    Update,
}

impl Folder {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), handle: Arc::new(Handle::open(path)?) })
    }

    /// The folder that the file at `path` is in, and the file's name.
    ///
    /// # Errors
    /// `path` names no file, or the folder cannot be opened.
    pub fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "not a file's path");
        let name = path.file_name().ok_or_else(no_name)?;
        Ok((Self::open(folder_of(path))?, name))
    }

    /// Where it was when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is now, as far as the system tells.
    #[must_use]
    pub fn here(&self) -> PathBuf {
        if self.is_at(&self.path) {
            return self.path.clone();
        }
        self.handle.path().filter(|path| self.is_at(path)).unwrap_or_else(|| self.path.clone())
    }

    /// Whether it is the one that `path` names. Where the system cannot tell, it is.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        match fs::metadata(path) {
            Ok(there) => self.handle.is(&there),
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Whether there is anything of this name; a link that leads nowhere counts.
    #[must_use]
    pub fn has(&self, name: impl AsRef<OsStr>) -> bool {
        self.handle.has(name.as_ref())
    }

    /// Opens a regular file for reading, through links.
    ///
    /// # Errors
    /// As the system says; `InvalidInput` for what is not a regular file.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.handle.file(name.as_ref(), How::Read)
    }

    /// The bytes of a regular file, of which there may be at most `most`.
    ///
    /// # Errors
    /// As [`Self::open_file`]; `FileTooLarge`.
    pub fn read(&self, name: impl AsRef<OsStr>, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {most} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// Whether `name` is of the file that is open as `file`. Takes no further handle.
    #[must_use]
    pub fn names(&self, name: impl AsRef<OsStr>, file: &File) -> bool {
        self.handle.names(name.as_ref(), file)
    }

    /// Whether both names are of one file.
    #[must_use]
    pub fn is_one_file(&self, a: &str, b: &str) -> bool {
        let metadata = |name| self.open_file(name).and_then(|file: File| file.metadata());
        matches!((metadata(a), metadata(b)), (Ok(a), Ok(b)) if same_file(&a, &b))
    }

    /// Opens a file for writing at its end. It is made where it is missing; where `new` is set it must be.
    ///
    /// # Errors
    /// As said, or the disk fails; `InvalidInput` for what is not a regular file.
    pub fn append(&self, name: impl AsRef<OsStr>, new: bool) -> io::Result<DiskFile> {
        self.disk_file(name.as_ref(), How::Append { new })
    }

    /// Opens a file for reading and writing, from its start, as it is. It is made where it is missing.
    ///
    /// # Errors
    /// The disk fails; the name is a link's, or of what is not a regular file.
    pub fn update(&self, name: impl AsRef<OsStr>) -> io::Result<DiskFile> {
        self.disk_file(name.as_ref(), How::Update)
    }

    fn disk_file(&self, name: &OsStr, how: How) -> io::Result<DiskFile> {
        let path = self.path.join(name);
        before("create", &path)?;
        Ok(DiskFile::new(self.handle.file(name, how)?, path))
    }

    /// Gives a file another name, in the place of what had it.
    ///
    /// # Errors
    /// The disk fails.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        before("rename", &self.path.join(from.as_ref()))?;
        self.handle.rename(from.as_ref(), to.as_ref())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// It is not there, or the disk fails.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        before("remove", &self.path.join(name.as_ref()))?;
        self.handle.remove_file(name.as_ref())
    }

    /// Hands the folder's entries to the disk. File systems that cannot do this for folders count as done.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn sync(&self) -> io::Result<()> {
        let done = before("sync folder", &self.path).and_then(|()| self.handle.sync());
        match done.as_ref().map_err(io::Error::kind) {
            // A folder that may be written and searched but not listed cannot be opened; its files are in place.
            Err(
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied,
            ) => Ok(()),
            _ => done,
        }
    }

    /// Writes `bytes` as the file `name`, as [`Self::replace`] does.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn write_atomically(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<()> {
        self.replace(name, |file| file.write_all(bytes))
    }

    /// Writes a new file with `fill` and puts it in the place of `name` once it is on the disk.
    ///
    /// The steps are: a temporary file `.slt-run.<name>.tmp`, fsync, rename, fsync of the folder, so that the name
    /// survives a power cut too. A killed process leaves one such file at most, which the next one removes.
    ///
    /// # Errors
    /// Whatever the disk says. The temporary file is removed and the old file, if any, is untouched.
    pub fn replace(
        &self,
        name: impl AsRef<OsStr>,
        fill: impl FnOnce(&mut DiskFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = temporary(name.as_ref());
        let written = self.create(&temporary).and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()
        });
        self.finish(name.as_ref(), &temporary, written)
    }

    /// Puts what is in `from` in the place of `to` without writing it again: a clone that shares `from`'s blocks until
    /// one of them is written to, where the file system has that; else a second name of the same file (a hard link);
    /// else a copy. After a link, whoever writes into one of the two ruins the other: [`Self::separate`].
    ///
    /// # Errors
    /// Whatever the disk says; `to` then is what it was before.
    pub fn link_or_copy(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let temporary = temporary(to);
        let made = self
            .share_blocks(from, &temporary)
            .or_else(|_| self.hard_link(from, &temporary))
            .or_else(|_| self.copy(from, &temporary));
        self.finish(to, &temporary, made)
    }

    /// Where `of` and `name` are one file, puts a copy in the place of `name`. Says whether it did.
    ///
    /// # Errors
    /// Whatever the disk says; both then are what they were before.
    pub fn separate(&self, of: &str, name: &str) -> io::Result<bool> {
        if !self.is_one_file(of, name) {
            return Ok(false);
        }
        let temporary = temporary(OsStr::new(name));
        let made = self.copy(OsStr::new(of), &temporary);
        self.finish(OsStr::new(name), &temporary, made).map(|()| true)
    }

    /// Removes what a killed process was about to write as `name`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn remove_leftover_of(&self, name: &str) -> io::Result<()> {
        self.remove_leftover(&temporary(OsStr::new(name)))
    }

    /// Moves a finished temporary file into place, or removes an unfinished one.
    fn finish(&self, name: &OsStr, temporary: &OsStr, made: io::Result<()>) -> io::Result<()> {
        let moved = made.and_then(|()| self.rename(temporary, name));
        // Also after success: a rename between two links of one file does nothing and leaves both names.
        let cleaned = self.remove_leftover(temporary);
        // The first failure is the one to tell.
        moved.and(cleaned).and_then(|()| self.sync())
    }

    /// A leftover of a killed process may be a link to a good checkpoint: it is removed, never written to.
    fn create(&self, temporary: &OsStr) -> io::Result<DiskFile> {
        self.remove_leftover(temporary)?;
        self.disk_file(temporary, How::New)
    }

    /// Makes `to` a clone of `from`; where that cannot be, `to` is not there.
    fn share_blocks(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let file = self.create(to)?;
        let cloned = before("clone", &self.path.join(to))
            .and_then(|()| clone_blocks(&self.open_file(from)?, file.file()))
            .and_then(|()| file.sync_all());
        if cloned.is_err() {
            self.remove_leftover(to)?;
        }
        cloned
    }

    /// Gives a file a second name.
    fn hard_link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        before("link", &self.path.join(to))?;
        self.handle.hard_link(from, to)
    }

    /// Copies what is in `from` to the new file `to`.
    fn copy(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut from = self.open_file(from)?;
        let mut to = self.create(to)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer)? {
                0 => return to.sync_all(),
                read => to.write_all(&buffer[..read])?,
            }
        }
    }

    fn remove_leftover(&self, temporary: &OsStr) -> io::Result<()> {
        match self.remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Nobody but slt-run gives files such names: what has one is a killed process's.
fn temporary(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".slt-run.");
    temporary.push(name);
    temporary.push(".tmp");
    temporary
}

/// Refuses what is not a regular file.
fn regular(file: File) -> io::Result<File> {
    crate::input::regular(&file.metadata()?).map(|()| file)
}

#[cfg(target_os = "linux")]
fn clone_blocks(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

#[cfg(not(target_os = "linux"))]
fn clone_blocks(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    false
}

/// What holds the folder.
#[cfg(unix)]
#[derive(Debug)]
struct Handle(File);

#[cfg(unix)]
impl Handle {
    fn open(path: &Path) -> io::Result<Self> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        // Without asking to read it: a folder may be one that can be written to but not listed.
        let how = if cfg!(target_os = "linux") { PATH_ONLY } else { OFlags::RDONLY };
        let handle = openat(CWD, path, how | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(handle.into()))
    }

    fn is(&self, there: &fs::Metadata) -> bool {
        self.0.metadata().is_ok_and(|held| same_file(&held, there))
    }

    /// Where the system says that the folder is.
    fn path(&self) -> Option<PathBuf> {
        use std::os::fd::AsRawFd;
        fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())).ok()
    }

    fn has(&self, name: &OsStr) -> bool {
        rustix::fs::statat(&self.0, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn names(&self, name: &OsStr, file: &File) -> bool {
        let named = rustix::fs::statat(&self.0, name, rustix::fs::AtFlags::empty());
        let open = rustix::fs::fstat(file);
        matches!((named, open), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    fn file(&self, name: &OsStr, how: How) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags, openat};
        let flags = match how {
            How::Read => OFlags::RDONLY,
            How::New => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
            How::Append { new } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
                if new { flags | OFlags::EXCL } else { flags }
            }
            How::Update => OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW,
        };
        // Opening a named pipe would wait for its other end.
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        regular(openat(&self.0, name, flags, Mode::from_raw_mode(0o666))?.into())
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn hard_link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.0, from, &self.0, to, rustix::fs::AtFlags::empty())?)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, rustix::fs::AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        use rustix::fs::{Mode, OFlags, openat};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        File::from(openat(&self.0, ".", flags, Mode::empty())?).sync_all()
    }
}

#[cfg(target_os = "linux")]
const PATH_ONLY: rustix::fs::OFlags = rustix::fs::OFlags::PATH;
#[cfg(all(unix, not(target_os = "linux")))]
const PATH_ONLY: rustix::fs::OFlags = rustix::fs::OFlags::RDONLY;

/// What stands for the folder where there are no handles to work with.
#[cfg(not(unix))]
#[derive(Debug)]
struct Handle(PathBuf);

#[cfg(not(unix))]
impl Handle {
    fn open(path: &Path) -> io::Result<Self> {
        fs::read_dir(path).map(|_| Self(path.to_owned()))
    }

    fn is(&self, _there: &fs::Metadata) -> bool {
        true
    }

    fn path(&self) -> Option<PathBuf> {
        None
    }

    fn has(&self, name: &OsStr) -> bool {
        self.0.join(name).symlink_metadata().is_ok()
    }

    /// Here a file that is open is not removed.
    fn names(&self, name: &OsStr, _file: &File) -> bool {
        self.has(name)
    }

    fn file(&self, name: &OsStr, how: How) -> io::Result<File> {
        let mut options = fs::OpenOptions::new();
        match how {
            How::Read => options.read(true),
            How::New => options.write(true).create_new(true),
            How::Append { new } => options.append(true).create(true).create_new(new),
            How::Update => options.read(true).write(true).create(true).truncate(false),
        };
        regular(options.open(self.0.join(name))?)
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn hard_link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        fs::hard_link(self.0.join(from), self.0.join(to))
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_renamed_folder_takes_its_files_along() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("run"), root.path().join("moved"));
        fs::create_dir(&old).unwrap();
        let folder = Folder::open(&old).unwrap();
        folder.write_atomically("last.pt", b"one").unwrap();
        let mut log = folder.append("log", true).unwrap();
        fs::rename(&old, &new).unwrap();
        assert!(!folder.is_at(&old) && folder.is_at(&new));
        // Another folder comes in its place.
        fs::create_dir(&old).unwrap();
        fs::write(old.join("last.pt"), b"theirs").unwrap();
        assert!(!folder.is_at(&old));
        folder.write_atomically("last.pt", b"two").unwrap();
        folder.link_or_copy("last.pt", "best.pt").unwrap();
        folder.update("lock").unwrap().write_all(b"x").unwrap();
        log.write_all(b"line").unwrap();
        assert_eq!(
            (names(&old), fs::read(old.join("last.pt")).unwrap()),
            (vec!["last.pt".into()], b"theirs".into())
        );
        assert_eq!(names(&new), ["best.pt", "last.pt", "lock", "log"]);
        assert_eq!(fs::read(new.join("best.pt")).unwrap(), b"two");
        assert_eq!(folder.read("log", 9).unwrap(), b"line");
        if cfg!(target_os = "linux") {
            assert_eq!(folder.here(), fs::canonicalize(&new).unwrap());
        }
        folder.remove_file("log").unwrap();
        assert!(!folder.has("log") && !new.join("log").exists());
        folder.sync().unwrap();
    }

    #[test]
    fn one_file_with_two_names_becomes_two() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        folder.write_atomically("last.pt", b"good").unwrap();
        assert!(!folder.separate("last.pt", "best.pt").unwrap(), "there is no best.pt");
        fs::hard_link(root.path().join("last.pt"), root.path().join("best.pt")).unwrap();
        assert!(folder.is_one_file("last.pt", "best.pt"));
        assert!(folder.separate("last.pt", "best.pt").unwrap());
        assert!(!folder.separate("last.pt", "best.pt").unwrap());
        // As `torch.save` writes.
        fs::write(root.path().join("best.pt"), b"other").unwrap();
        assert_eq!(fs::read(root.path().join("last.pt")).unwrap(), b"good");
        assert_eq!(names(root.path()), ["best.pt", "last.pt"]);
    }

    #[test]
    fn what_is_no_regular_file_is_neither_read_nor_written() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let pipe = root.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::write(root.path().join("theirs"), b"theirs").unwrap();
        std::os::unix::fs::symlink("theirs", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
        for name in ["pipe", ".."] {
            assert!(folder.read(name, 9).is_err() && folder.append(name, false).is_err(), "{name}");
            assert!(folder.update(name).is_err(), "{name}");
        }
        assert!(folder.update("link").is_err());
        assert_eq!(folder.read("link", 9).unwrap(), b"theirs");
        assert!(folder.has("dangling") && folder.read("dangling", 9).is_err());
        assert!(folder.read("theirs", 5).is_err());
    }
}
