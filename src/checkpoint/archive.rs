//! The zip container of a PyTorch file: what kind of file it is, and its entries by name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;
use crate::zip_read::{Fault, Method, Zip};

/// Some 100,000 tensors take this much to describe; a network of today has hundreds.
const MAX_PICKLE: u64 = 64 << 20;

/// How the files of PyTorch before 1.6 start: a pickled magic number (`torch.serialization.MAGIC_NUMBER`).
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// First bytes of what a file may be instead of a zip.
const LOOKS: [(&[u8], &str); 9] = [
    (b"\x80", "a bare pickle"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a Git LFS pointer, so the file itself was not downloaded"),
    (b"<", "an HTML or XML page, so perhaps a failed download"),
    (b"Salted__", "encrypted data"),
    (b"-----BEGIN", "armoured encrypted data"),
    (b"{", "JSON text"),
];

/// An open PyTorch file.
pub(super) struct Archive {
    zip: Zip<File>,
    /// The folder that holds everything, with its slash.
    top: String,
    /// The file's size in bytes.
    pub file_size: u64,
}

impl Archive {
    /// Opens `path` and looks its directory through.
    ///
    /// # Errors
    ///
    /// A data error that says what the file looks like where it is not a zip-format PyTorch file. None of the
    /// messages names the path: the caller puts it in front.
    pub fn open(path: &Path) -> Result<Self> {
        let opened =
            |e: io::Error| Error::new(ErrorKind::Data, Problem::new("it cannot be opened").io(path, &e));
        let (mut file, file_size) = input::open(path).map_err(opened)?;
        sniff(path, &mut file)?;
        let zip = Zip::open(file).map_err(unreadable)?;
        let top = top_folder(&zip)?;
        let mut archive = Self { zip, top, file_size };
        archive.check_kind()?;
        Ok(archive)
    }

    /// Refuses programs and big-endian files.
    fn check_kind(&mut self) -> Result<()> {
        if self.size("constants.pkl").is_some() {
            return Err(Error::data("it is a TorchScript program, not a checkpoint").hint(
                "save the weights alone: torch.save({\"model_state\": torch.jit.load(path).state_dict()}, …)",
            ));
        }
        if self.size("byteorder").is_some() && self.read("byteorder", 16)? != b"little" {
            return Err(Error::data("its numbers are big-endian")
                .hint("load it in Python on a usual (little-endian) machine and save it again"));
        }
        Ok(())
    }

    /// The stream that describes the objects.
    pub fn object_stream(&mut self) -> Result<Vec<u8>> {
        self.read("data.pkl", MAX_PICKLE)
    }

    /// How many bytes the entry `name` has, or `None` where there is no such entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.zip.find(&format!("{}{name}", self.top)).map(|entry| entry.size)
    }

    /// The bytes of the entry `name`, of which there must be at most `limit`, with their checksum verified.
    pub fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let full_name = format!("{}{name}", self.top);
        let missing = || Error::data(format!("it has no entry `{}`", name.escape_debug()));
        let entry = self.zip.find(&full_name).ok_or_else(missing)?;
        if entry.method != Method::Stored {
            return Err(Error::data("its entries are compressed, which PyTorch's never are")
                .hint("unpack it and save it again with torch.save, or zip it with -0"));
        }
        let (size, shown) = (entry.size, entry.shown());
        if size > limit {
            return Err(Error::data(format!("entry `{shown}` claims {size} bytes")));
        }
        let mut bytes = Vec::new();
        let reserved = usize::try_from(size).ok().and_then(|n| bytes.try_reserve_exact(n).ok());
        reserved.ok_or_else(|| Error::data(format!("no memory for the {size} bytes of `{shown}`")))?;
        let mut reader = self.zip.read(&full_name).map_err(unreadable)?.ok_or_else(missing)?;
        match reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(e) => Err(Error::data(format!("`{shown}` is damaged")).cause(e).hint(CUT_SHORT)),
        }
    }
}

const CUT_SHORT: &str = "the file is damaged or was cut short: copy it again, or take another checkpoint";

fn unreadable(fault: Fault) -> Error {
    match fault {
        Fault::Encrypted => Error::data("its entries are encrypted").hint("decrypt it first"),
        fault => Error::data("it starts as a zip file and is damaged").cause(fault).hint(CUT_SHORT),
    }
}

/// Refuses what is not a zip file, saying what it is instead.
fn sniff(path: &Path, file: &mut File) -> Result<()> {
    let mut start = Vec::new();
    let read = file.take(64).read_to_end(&mut start).and_then(|_| file.seek(SeekFrom::Start(0)));
    read.map_err(|e: io::Error| Error::new(ErrorKind::Data, Problem::new("it cannot be read").io(path, &e)))?;
    if start.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    if start.starts_with(LEGACY) {
        return Err(Error::data("it is in PyTorch's old format, from before version 1.6")
            .hint("save it again: torch.save(torch.load(path, weights_only=True), new_path)"));
    }
    let looks = if start.is_empty() {
        "it is empty"
    } else if start.get(8..9) == Some(b"{") {
        "it looks like a safetensors file"
    } else {
        let found = LOOKS.iter().find(|(magic, _)| start.starts_with(magic));
        return Err(Error::data(match found {
            Some((_, looks)) => format!("it looks like {looks}"),
            None => "it is not a zip file, and nothing else that is known".to_owned(),
        })
        .hint("a checkpoint is a file that torch.save wrote"));
    };
    Err(Error::data(looks).hint("a checkpoint is a file that torch.save wrote"))
}

/// The one folder that has a `data.pkl`; PyTorch names it after the file.
fn top_folder(zip: &Zip<File>) -> Result<String> {
    let mut tops = zip.names().filter_map(|name| {
        let top = name.strip_suffix("data.pkl")?;
        let folder = top.strip_suffix('/')?;
        (!folder.is_empty() && !folder.contains('/')).then(|| top.to_owned())
    });
    match (tops.next(), tops.next()) {
        (Some(top), None) => Ok(top),
        (None, _) => Err(Error::data("it is a zip file, but not one that PyTorch wrote: it has no data.pkl")
            .hint("a checkpoint is a file that torch.save wrote")),
        (Some(_), Some(_)) => Err(Error::data("it has two folders with a data.pkl")),
    }
}
