//! Checkpoints that are replaced as a whole ([`crate::files`]), with errors that say what to do.

use std::io;
use std::path::Path;

use crate::error::{Error, Kind, Problem, Result};
use crate::files::{self, DiskFile};

/// Writes a new file with `fill` and puts it in the place of `path` once it is on the disk.
///
/// # Errors
///
/// A run error that names the path. The old file, if any, is untouched.
pub fn replace(path: &Path, fill: impl FnOnce(&mut DiskFile) -> io::Result<()>) -> Result<()> {
    files::replace(path, fill).map_err(|error| failed(path, &error))
}

/// Makes `to` the same file as `from` without writing it again, where the file system can.
///
/// # Errors
///
/// A run error that names `to`, which then is what it was before.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    files::link_or_copy(from, to).map_err(|error| failed(to, &error))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let problem = Problem::new(format!("cannot save {}", path.display())).io(error);
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on that disk; what was saved before is whole"
        }
        io::ErrorKind::NotFound => "the folder must exist while the run lasts",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the folder must be one that you may write to"
        }
        _ => return Error::new(Kind::Run, problem),
    };
    Error::new(Kind::Run, problem.hint(hint))
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
        let error = link_or_copy(&folder.path().join("none.pt"), &path).unwrap_err();
        assert!(error.to_string().contains("gone/last.pt"), "{error}");
    }
}
