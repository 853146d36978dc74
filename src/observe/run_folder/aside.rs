//! Moving a run aside: its files, and nothing else of its folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files;

/// Moves `entries`, relative to `work_dir`, into a new folder beside it, all or none of them.
pub(super) fn move_aside(work_dir: &Path, entries: &[PathBuf], now: SystemTime) -> io::Result<PathBuf> {
    // Beside what a link points to, so that the old run stays on its disk; inside a folder that has no
    // side of its own, such as a mount point: a move to another file system would be a copy.
    let target = fs::canonicalize(work_dir)?;
    let outside = fresh_folder(&target, now).and_then(|aside| move_entries(&target, &aside, entries));
    outside.or_else(|_| move_entries(&target, &fresh_folder(&target.join("run"), now)?, entries))
}

/// Creates `<path>.<date and time>`, numbered where that is taken.
fn fresh_folder(path: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::try_from(now).map_err(io::Error::other)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for attempt in 1.. {
        let mut dated = name.to_owned();
        dated.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S")));
        if attempt > 1 {
            dated.push(format!("-{attempt}"));
        }
        let folder = path.with_file_name(dated);
        match files::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Moves entries from one folder to another one that is new, and back again if one cannot be moved.
pub(super) fn move_entries(from: &Path, to: &Path, entries: &[PathBuf]) -> io::Result<PathBuf> {
    let mut made = Vec::new();
    for (done, entry) in entries.iter().enumerate() {
        let moved = make_parents(to, entry, &mut made)
            .and_then(|()| files::rename(&from.join(entry), &to.join(entry)));
        if let Err(error) = moved {
            for entry in entries.iter().take(done) {
                files::rename(&to.join(entry), &from.join(entry))?;
            }
            for folder in made.iter().rev() {
                let _ = files::remove_dir(folder);
            }
            let _ = files::remove_dir(to);
            return Err(error);
        }
    }
    remove_emptied(from, entries);
    Ok(to.to_owned())
}

/// Makes the folders between `to` and `entry` in it, and notes those that were not there.
fn make_parents(to: &Path, entry: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let parents: Vec<&Path> = entry.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let folder = to.join(parent);
        if !folder.is_dir() {
            files::create_dir(&folder)?;
            made.push(folder);
        }
    }
    Ok(())
}

/// Removes the folders in `from` that have nothing in them now that the entries are gone.
fn remove_emptied(from: &Path, entries: &[PathBuf]) {
    for entry in entries {
        for parent in entry.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if files::remove_dir(&from.join(parent)).is_err() {
                break;
            }
        }
    }
}
