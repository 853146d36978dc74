//! Replacing files as a whole: the one place where a run puts a file in the place of another.
//!
//! A crash, a full disk or a failing write at any moment leaves the earlier file as it was. Tests prove it: everything
//! that is done to the disk goes through `disk`, where `fault` can make each operation fail.

mod disk;
mod fault;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub use disk::{DiskFile, create_dir, hard_link, remove_dir, remove_file, rename};

/// Writes `bytes` as the file `path`, as [`replace`] does.
///
/// # Errors
/// As [`replace`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// Writes a new file with `fill` and puts it in the place of `path` once it is on the disk.
///
/// The steps are: a temporary file `<name>.tmp` in the same folder, fsync, rename, fsync of the folder, so that the
/// name survives a power cut too. A killed process leaves one such file at most, which the next one removes.
///
/// # Errors
/// Whatever the disk says. The temporary file is removed and the old file, if any, is untouched.
pub fn replace(path: &Path, fill: impl FnOnce(&mut DiskFile) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(path)?;
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
/// Whatever the disk says; `to` then is what it was before.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = temporary(to)?;
    let made = remove_leftover(&temporary)
        .and_then(|()| hard_link(from, &temporary).or_else(|_| copy(from, &temporary)));
    finish(to, &temporary, made)
}

/// Flushes a folder's entries to the disk. File systems that cannot do this for folders count as done.
///
/// # Errors
/// Whatever the disk says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match disk::sync_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        // A folder that may be written and searched but not listed cannot be opened; its files are in place.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        done => done,
    }
}

/// The folder that `path` is in; `.` for a bare file name.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Moves a finished temporary file into place, or removes an unfinished one.
fn finish(path: &Path, temporary: &Path, made: io::Result<()>) -> io::Result<()> {
    let moved = made.and_then(|()| rename(temporary, path));
    // Also after success: a rename between two links of one file does nothing and leaves both names.
    let cleaned = remove_leftover(temporary);
    // The first failure is the one to tell.
    moved.and(cleaned).and_then(|()| sync_folder(folder_of(path)))
}

/// A leftover of a killed process may be a link to a good checkpoint: it is removed, never written to.
fn create(temporary: &Path) -> io::Result<DiskFile> {
    remove_leftover(temporary)?;
    DiskFile::create_new(temporary)
}

/// Copies what is in `from` to the new file `to`.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = create(to)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.sync_all(),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

fn remove_leftover(temporary: &Path) -> io::Result<()> {
    match remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's path"))?;
    let mut name = OsString::from(name);
    name.push(".tmp");
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::fault::tests::under;
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomically(&path, b"one, the longer").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // The rename is what fails: a folder with something in it is in the way.
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(write_atomically(&path, b"x").is_err());
        assert_eq!(names(folder.path()), ["taken"]);
        assert!(write_atomically(&folder.path().join("no/such/folder/file"), b"x").is_err());
    }

    #[test]
    fn folders_of_paths() {
        assert_eq!(folder_of(Path::new("a")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/b")), Path::new("a"));
        assert_eq!(folder_of(Path::new("/a")), Path::new("/"));
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
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["last.pt"]);
    }

    #[test]
    fn a_link_keeps_its_content_when_the_original_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last.pt"), folder.path().join("best.pt"));
        write_atomically(&last, b"one").unwrap();
        // Twice: the second time both names are the same file already.
        link_or_copy(&last, &best).unwrap();
        link_or_copy(&last, &best).unwrap();
        assert_eq!(names(folder.path()), ["best.pt", "last.pt"]);
        write_atomically(&last, b"two").unwrap();
        assert_eq!(fs::read(&best).unwrap(), b"one");
        link_or_copy(&last, &best).unwrap();
        assert_eq!(fs::read(&best).unwrap(), b"two");
    }

    #[test]
    fn a_leftover_link_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last.pt"), folder.path().join("best.pt"));
        write_atomically(&last, b"good").unwrap();
        fs::hard_link(&last, folder.path().join("best.pt.tmp")).unwrap();
        write_atomically(&best, b"new").unwrap();
        assert_eq!(fs::read(&last).unwrap(), b"good");
        assert_eq!(fs::read(&best).unwrap(), b"new");
    }

    #[test]
    fn linking_what_is_not_there_leaves_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let best = folder.path().join("best.pt");
        write_atomically(&best, b"old").unwrap();
        assert!(link_or_copy(&folder.path().join("none.pt"), &best).is_err());
        assert_eq!(fs::read(&best).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["best.pt"]);
    }

    /// Lets each operation of `work` fail in turn, in every way, besides those that `always` fail, and looks each time at
    /// what it left in `path`.
    fn fail_each(path: &Path, always: &str, prepare: impl Fn(), work: impl Fn() -> io::Result<()>) {
        let whole = |content: &[u8]| content == b"old" || content == b"the new one";
        prepare();
        let (done, operations) = under(&format!("{always}short:1000000"), &work);
        done.unwrap();
        assert_eq!(fs::read(path).unwrap(), b"the new one");
        assert!(operations >= 5);
        for action in ["ENOSPC", "EIO", "EACCES", "half"] {
            for number in (1..=operations).flat_map(|n| [n.to_string(), format!("{n}+")]) {
                prepare();
                let (result, _) = under(&format!("{always}{action}:{number}"), &work);
                let content = fs::read(path).unwrap();
                assert!(whole(&content), "{action}:{number}: {content:?}");
                assert!(result.is_err() || content == b"the new one", "{action}:{number}");
                // What is left over, also where cleaning up failed, is not in the way of the next.
                work().unwrap();
                assert_eq!(fs::read(path).unwrap(), b"the new one");
            }
        }
        for number in 1..=operations {
            prepare();
            let (result, _) = under(&format!("{always}short:{number}"), &work);
            result.unwrap();
            assert_eq!(fs::read(path).unwrap(), b"the new one");
        }
    }

    #[test]
    fn each_operation_of_replacing_may_fail() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.pt");
        let prepare = || write_atomically(&path, b"old").unwrap();
        fail_each(&path, "", prepare, || write_atomically(&path, b"the new one"));
        assert_eq!(names(folder.path()), ["last.pt"]);
    }

    #[test]
    fn each_operation_of_linking_may_fail() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last.pt"), folder.path().join("best.pt"));
        let prepare = &|| {
            write_atomically(&best, b"old").unwrap();
            write_atomically(&last, b"the new one").unwrap();
        };
        fail_each(&best, "", prepare, || {
            let linked = link_or_copy(&last, &best);
            assert_eq!(fs::read(&last).unwrap(), b"the new one");
            linked
        });
        // Without links it is a copy. The link is the second operation.
        fail_each(&best, "EACCES:2,", prepare, || link_or_copy(&last, &best));
        assert_eq!(names(folder.path()), ["best.pt", "last.pt"]);
    }
}
