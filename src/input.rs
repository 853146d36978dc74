//! Opening files that come from elsewhere: regular ones only, so that no read waits for a writer or never ends; and what
//! there is to say of their paths.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

/// Opens the regular file at `path`, through symbolic links; returns it with its size in bytes.
///
/// # Errors
/// Whatever the system says; [`io::ErrorKind::InvalidInput`], saying what it is, for a folder, a named pipe, a device
/// or a socket.
pub fn open(path: &Path) -> io::Result<(File, u64)> {
    // Before opening, because opening a named pipe waits for its writer.
    regular(&path.metadata()?)?;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    // Again, because another file may have come in its place.
    regular(&metadata)?;
    Ok((file, metadata.len()))
}

/// The bytes of the regular file at `path`, of which there may be at most `most`.
///
/// # Errors
/// As [`open`]; [`io::ErrorKind::FileTooLarge`] for a larger file.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, _) = open(path)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// The SHA-1 of the regular file at `path`, and its size in bytes.
///
/// # Errors
/// As [`open`], and whatever reading says.
pub fn sha1(path: &Path) -> io::Result<([u8; 20], u64)> {
    let (mut file, _) = open(path)?;
    let (mut digest, mut size, mut buffer) = (Sha1::new(), 0, vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((digest.finalize().into(), size)),
            Ok(read) => {
                digest.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `bytes` in hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.extend(format!("{byte:02x}").chars());
        text
    })
}

/// Why a path cannot be used, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub what: &'static str,
    /// The cure.
    pub hint: &'static str,
}

/// `path` with a leading `~` replaced by the home folder, as a shell does it. Shells leave `--work-dir=~/x` as it is, and
/// never see what stands in a file; a folder that is called `~` helps nobody.
///
/// # Errors
/// For `~name`, another user's home, and where there is no home folder.
pub fn expand_home(path: &Path) -> Result<PathBuf, Refusal> {
    let Some(first) =
        path.iter().next().and_then(|first| first.to_str()).filter(|first| first.starts_with('~'))
    else {
        return Ok(path.to_owned());
    };
    if first != "~" {
        let what = "a path that begins with ~ and a name would be in another user's home folder";
        return Err(Refusal { what, hint: "write that folder out, or begin the path with ./" });
    }
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    match home {
        Some(home) => Ok(path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))),
        None => Err(Refusal { what: "there is no home folder for ~", hint: "write the folder out" }),
    }
}

/// For a path where nothing is: where it was looked for, and whether it is there as seen from one of `folders`, which
/// experiment files are in, or from a folder above the working directory. `None` for an absolute path.
#[must_use]
pub fn whereabouts(path: &Path, folders: &[PathBuf]) -> Option<String> {
    if let Ok(target) = std::fs::read_link(path) {
        return Some(format!("it is a link to {}, which is not there", target.display()));
    }
    if path.is_absolute() {
        return None;
    }
    let here = std::env::current_dir().ok()?;
    let said = format!("relative paths start at the working directory, {}", here.display());
    let real = |folder: &Path| here.join(folder).canonicalize().ok();
    let mut others: Vec<&Path> = Vec::new();
    for folder in folders.iter().map(PathBuf::as_path) {
        if real(folder) != real(&here) && !others.contains(&folder) {
            others.push(folder);
        }
    }
    let found = others.iter().copied().chain(here.ancestors().skip(1)).map(|folder| folder.join(path));
    if let Some(found) = found.into_iter().find(|path| path.exists()) {
        return Some(format!("{said}; {} is there", found.display()));
    }
    let shown: Vec<String> = others.iter().map(|folder| folder.display().to_string()).collect();
    Some(match (folders, shown.join(" or ")) {
        ([], _) => said,
        (_, others) if others.is_empty() => format!("{said}, where the experiment file is"),
        (_, others) => format!("{said}; seen from the experiment file, in {others}, it is not there either"),
    })
}

/// Refuses what is not a regular file, saying what it is.
pub(crate) fn regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    let Some(what) = kind(metadata) else { return Ok(()) };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

/// What a file is, where it is not a regular one.
pub(crate) fn kind(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return None;
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a named pipe");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
    }
    Some("something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_open_with_their_size_and_nothing_else_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(open(&path).unwrap().1, 4);
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(read(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(open(folder.path()).unwrap_err().to_string().contains("a folder, not a regular file"));
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_known_by_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![b'a'; 1_000_000]).unwrap();
        // The third example of FIPS 180-2, appendix A.
        let (digest, size) = sha1(&path).unwrap();
        assert_eq!(hexadecimal(&digest), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
        assert_eq!(size, 1_000_000);
        assert!(sha1(folder.path()).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn devices_sockets_and_loops_do_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let zero = open(Path::new("/dev/zero")).unwrap_err();
        assert!(zero.to_string().contains("a device"), "{zero}");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(open(&socket).unwrap_err().to_string().contains("a socket"));
        let circle = folder.path().join("loop");
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        assert!(open(&circle).is_err());
    }

    #[test]
    fn a_tilde_is_the_home_folder_and_no_name() {
        let home = std::env::home_dir().unwrap();
        let expanded = |path: &str| expand_home(Path::new(path));
        assert_eq!(expanded("~/a/b"), Ok(home.join("a/b")));
        assert_eq!(expanded("~"), Ok(home.join("")));
        for path in ["./~/a", "a/~", "a~", "/~", "", "."] {
            assert_eq!(expanded(path), Ok(path.into()), "{path}");
        }
        assert!(expanded("~other/a").unwrap_err().what.contains("another user's"));
    }

    #[test]
    fn a_path_where_nothing_is_is_looked_for_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.csv"), "").unwrap();
        let here = std::env::current_dir().unwrap().display().to_string();
        let dir = folder.path().to_owned();
        let said = |path: &str, folders: &[PathBuf]| whereabouts(Path::new(path), folders).unwrap();
        let found = said("a.csv", std::slice::from_ref(&dir));
        assert!(
            found.contains(&here) && found.ends_with(&format!("{} is there", dir.join("a.csv").display()))
        );
        let none = said("b.csv", std::slice::from_ref(&dir));
        assert!(none.ends_with(&format!("in {}, it is not there either", dir.display())), "{none}");
        assert!(said("b.csv", &["".into()]).ends_with(&format!("{here}, where the experiment file is")));
        assert!(said("b.csv", &[]).ends_with(&here));
        assert_eq!(whereabouts(Path::new("/none"), &[]), None);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("gone", dir.join("link")).unwrap();
            let link = dir.join("link");
            assert_eq!(whereabouts(&link, &[]).unwrap(), "it is a link to gone, which is not there");
        }
    }
}
