//! Checkpoints that are replaced as a whole ([`crate::files`]), with errors that say what to do.

use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind, Problem, Result};
use crate::files::{self, DiskFile, Folder};

/// Writes a new file with `fill` and puts it in the place of `path` once it is on the disk.
///
/// # Errors
///
/// A run error that names the path. The old file, if any, is untouched.
pub fn replace(path: &Path, fill: impl FnOnce(&mut DiskFile) -> io::Result<()>) -> Result<()> {
    files::replace(path, fill).map_err(|error| failed(path, &error))
}

/// As [`replace`], for the file `name` of an open folder.
///
/// # Errors
///
/// As [`replace`].
pub fn replace_in(
    folder: &Folder,
    name: &str,
    fill: impl FnOnce(&mut DiskFile) -> io::Result<()>,
) -> Result<()> {
    folder.replace(name, fill).map_err(|error| failed(&folder.path().join(name), &error))
}

/// Puts `from`'s content in the place of `to`, in the same folder, without writing it again where the file system can.
///
/// # Errors
///
/// A run error that names `to`, which then is what it was before.
pub fn link_or_copy(folder: &Folder, from: &str, to: &str) -> Result<()> {
    folder.link_or_copy(from, to).map_err(|error| failed(&folder.path().join(to), &error))
}

/// Makes two files of `of` and `name`, where they are one.
///
/// # Errors
///
/// A run error that names `name`; both are what they were before.
pub fn separate(folder: &Folder, of: &str, name: &str) -> Result<()> {
    folder.separate(of, name).map(|_| ()).map_err(|error| failed(&folder.path().join(name), &error))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let problem = Problem::new(format!("cannot save {}", path.display())).io(path, error);
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on that disk; what was saved before is whole"
        }
        io::ErrorKind::NotFound => "the folder must exist while the run lasts",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the folder must be one that you may write to"
        }
        _ => return Error::new(ErrorKind::Run, problem),
    };
    Error::new(ErrorKind::Run, problem.hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    #[test]
    fn a_full_disk_is_named_with_its_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.pt");
        replace(&path, |file| file.write_all(b"old")).unwrap();
        let error = replace(&path, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("last.pt") && error.to_string().contains("make room"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/last.pt");
        let error = replace(&path, |file| file.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("gone/last.pt"), "{error}");
        let folder = Folder::open(folder.path()).unwrap();
        let error = link_or_copy(&folder, "none.pt", "last.pt").unwrap_err();
        assert!(error.to_string().contains("/last.pt"), "{error}");
    }
}
