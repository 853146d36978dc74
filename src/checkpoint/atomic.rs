//! Files that are replaced as a whole: a crash, a full disk or a failing write leaves the old one as it was.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Problem, Result};

/// Writes a new file with `fill` and puts it in the place of `path` once it is on the disk.
///
/// The steps are: a temporary file `<name>.tmp` in the same folder, fsync, rename, fsync of the folder.
///
/// # Errors
///
/// A run error that names the path. The temporary file is removed and the old file, if any, is untouched.
pub fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let written = create(&temporary).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all()
    });
    finish(path, &temporary, written)
}

/// Makes `to` the same file as `from` without writing it again: a hard link, or a copy where the file system has
/// none. `from` must itself only ever be replaced, never written in place.
///
/// # Errors
///
/// A run error that names `to`, which then is what it was before.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    let temporary = temporary(to);
    let made = remove_leftover(&temporary).and_then(|()| {
        fs::hard_link(from, &temporary).or_else(|_| {
            fs::copy(from, &temporary)?;
            File::open(&temporary)?.sync_all()
        })
    });
    finish(to, &temporary, made)
}

/// Moves a finished temporary file into place, or removes an unfinished one.
fn finish(path: &Path, temporary: &Path, made: io::Result<()>) -> Result<()> {
    let moved = made.and_then(|()| fs::rename(temporary, path));
    // Also after success: a rename between two links of one file does nothing and leaves both names.
    let cleaned = remove_leftover(temporary);
    moved.and(cleaned).and_then(|()| sync_folder(path)).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let problem = Problem::new(format!("cannot save {}", path.display())).cause(error);
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that disk",
        io::ErrorKind::NotFound => "the folder must exist while the run lasts",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the folder must be one that you may write to"
        }
        _ => return Error::new(Kind::Run, problem),
    };
    Error::new(Kind::Run, problem.hint(hint))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".tmp");
    path.with_file_name(name)
}

/// A leftover of a killed process may be a link to a good checkpoint: it is removed, never written to.
fn create(temporary: &Path) -> io::Result<File> {
    remove_leftover(temporary)?;
    OpenOptions::new().write(true).create_new(true).open(temporary)
}

fn remove_leftover(temporary: &Path) -> io::Result<()> {
    match fs::remove_file(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes a rename durable. Some network file systems cannot sync a folder; there is nothing more to do there.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.pt");
        replace(&path, |file| file.write_all(b"old")).unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("last.pt") && error.to_string().contains("make room"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["last.pt"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/last.pt");
        let error = replace(&path, |file| file.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("gone/last.pt"), "{error}");
    }

    #[test]
    fn a_link_keeps_its_content_when_the_original_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last.pt"), folder.path().join("best.pt"));
        replace(&last, |file| file.write_all(b"one")).unwrap();
        // Twice: the second time both names are the same file already.
        link_or_copy(&last, &best).unwrap();
        link_or_copy(&last, &best).unwrap();
        assert_eq!(names(folder.path()), ["best.pt", "last.pt"]);
        replace(&last, |file| file.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&best).unwrap(), b"one");
        link_or_copy(&last, &best).unwrap();
        assert_eq!(fs::read(&best).unwrap(), b"two");
    }

    #[test]
    fn a_leftover_link_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last.pt"), folder.path().join("best.pt"));
        replace(&last, |file| file.write_all(b"good")).unwrap();
        fs::hard_link(&last, folder.path().join("best.pt.tmp")).unwrap();
        replace(&best, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&last).unwrap(), b"good");
        assert_eq!(fs::read(&best).unwrap(), b"new");
    }

    #[test]
    fn linking_what_is_not_there_leaves_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let best = folder.path().join("best.pt");
        replace(&best, |file| file.write_all(b"old")).unwrap();
        assert!(link_or_copy(&folder.path().join("none.pt"), &best).is_err());
        assert_eq!(fs::read(&best).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["best.pt"]);
    }
}
