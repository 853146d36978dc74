//! Replacing files as a whole: the one place where a run puts a file in the place of another.
//!
//! A crash, a full disk or a failing write at any moment leaves the earlier file as it was. Tests prove it: everything
//! that is done to the disk goes through `disk`, where `fault` can make each operation fail.

mod disk;
mod fault;
mod folder;

use std::io;
use std::path::Path;

pub use disk::{DiskFile, create_dir, remove_dir, rename};
pub use folder::Folder;

/// Writes `bytes` as the file `path`, as [`Folder::replace`] does.
///
/// # Errors
/// As [`Folder::replace`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, name) = Folder::of(path)?;
    folder.write_atomically(name, bytes)
}

/// [`Folder::replace`] of the file at `path`.
///
/// # Errors
/// As there.
pub fn replace(path: &Path, fill: impl FnOnce(&mut DiskFile) -> io::Result<()>) -> io::Result<()> {
    let (folder, name) = Folder::of(path)?;
    folder.replace(name, fill)
}

/// The folder that `path` is in; `.` for a bare file name.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::fault::tests::under;
    use super::*;
    use std::ffi::OsString;
    use std::fs;
    use std::io::Write;

    /// Both in one folder.
    fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
        let (folder, from) = Folder::of(from)?;
        folder.link_or_copy(from, to.file_name().unwrap())
    }

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
        fs::hard_link(&last, folder.path().join(".slt-run.best.pt.tmp")).unwrap();
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
        // Without clones it is a link, and without links a copy. A clone that fails is removed before the link.
        fail_each(&best, "EACCES:3,", prepare, || link_or_copy(&last, &best));
        fail_each(&best, "EACCES:3,EACCES:5,", prepare, || link_or_copy(&last, &best));
        assert_eq!(names(folder.path()), ["best.pt", "last.pt"]);
    }
}
