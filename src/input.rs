//! Opening files that come from elsewhere: regular ones only, so that no read waits for a writer or never ends.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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
}
