//! Safetensors files (<https://huggingface.co/docs/safetensors>): eight bytes with the header's length, the header in JSON,
//! the numbers.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype as Stored, Metadata};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::value::{Dtype, TensorData};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;

/// A header of some 100,000 tensors.
const MOST_HEADER: u64 = 64 << 20;

/// An open file, of which the header was read and found sound: every tensor lies inside the file.
#[derive(Debug)]
pub struct Safetensors {
    /// The file.
    pub file: File,
    /// Where the numbers begin.
    pub start: u64,
    /// The tensors, and what else the header says.
    pub metadata: Metadata,
    /// The header's bytes.
    pub header: Vec<u8>,
}

impl Safetensors {
    /// Opens the file at `path`; `what` says what it is to hold, and `hint` what to do where it does not.
    ///
    /// # Errors
    /// Kind `Data`, naming the file, where it cannot be read, was cut off, or is no such file. Memory stays in proportion to
    /// its header, which is in the file.
    pub fn open(path: &Path, what: &str, hint: &str) -> Result<Self> {
        let problem = || Problem::new(format!("cannot read {what} {}", path.display()));
        let failed = |error: &io::Error| Error::new(ErrorKind::Data, problem().io(path, error).hint(hint));
        let wrong = |why: String| Error::new(ErrorKind::Data, problem().cause(why).hint(hint));
        let (mut file, size) = input::open(path).map_err(|error| failed(&error))?;
        let header = read_header(&mut file, size).map_err(|error| failed(&error))?;
        let start = 8 + header.len() as u64;
        let metadata = parse(&header).map_err(|error| {
            wrong(format!("its header is no safetensors header: {}", short(&error.to_string())))
        })?;
        let end = start.saturating_add(metadata.data_len() as u64);
        if end != size {
            return Err(wrong(format!(
                "it has {size} bytes; its header says {end}: it was cut off, or damaged"
            )));
        }
        Ok(Self { file, start, metadata, header })
    }

    /// Whether the file at `path` begins as one.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn is_one(path: &Path) -> io::Result<bool> {
        let (mut file, size) = input::open(path)?;
        let mut first = [0; 9];
        if size < 9 {
            return Ok(false);
        }
        file.read_exact(&mut first)?;
        // Whatever its length says: one that was cut off is one, too.
        Ok(first.ends_with(b"{") && !first.starts_with(b"PK\x03\x04"))
    }

    /// All tensors, by their names in the order of the file.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn read_all(&mut self) -> io::Result<Vec<(String, Option<TensorData<'static>>)>> {
        let mut all = Vec::new();
        for name in self.metadata.offset_keys() {
            let Some(info) = self.metadata.info(&name) else { continue };
            let (begin, end) = info.data_offsets;
            let Some(dtype) = dtype(info.dtype) else {
                all.push((name, None));
                continue;
            };
            let mut data = vec![0; end - begin];
            self.file.seek(SeekFrom::Start(self.start + begin as u64))?;
            self.file.read_exact(&mut data)?;
            all.push((name, Some(TensorData { dtype, shape: info.shape.clone(), data: data.into() })));
        }
        Ok(all)
    }
}

/// The header's bytes.
fn read_header(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut length = [0; 8];
    if size < 8 {
        return Err(invalid(format!("it has {size} bytes: it was cut off, or is no safetensors file")));
    }
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER || length > size - 8 {
        let why = format!("its header would have {length} bytes: it was cut off, or is no safetensors file");
        return Err(invalid(why));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    Ok(header)
}

/// What a header says, checked: every tensor has the bytes that its type and shape need, and none are another's.
fn parse(header: &[u8]) -> serde_json::Result<Metadata> {
    serde_json::Deserializer::from_slice(header).deserialize_map(NoneTwice)?;
    serde_json::from_slice(header)
}

/// Looks a map through for keys that it has twice: whoever reads it into a map keeps one of them.
struct NoneTwice;

impl<'de> Visitor<'de> for NoneTwice {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from names to tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut names = HashSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<Cow<'de, str>, _>()? {
            if let Some(twice) = names.replace(name) {
                return Err(M::Error::custom(format!("`{twice}` is there twice")));
            }
        }
        Ok(())
    }
}

/// A type of numbers that PyTorch's files have, too.
fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::BF16,
        Stored::F32 => Dtype::F32,
        Stored::F64 => Dtype::F64,
        Stored::I64 => Dtype::I64,
        Stored::I32 => Dtype::I32,
        Stored::I16 => Dtype::I16,
        Stored::I8 => Dtype::I8,
        Stored::U8 => Dtype::U8,
        Stored::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// A reason at a length that fits a message: it may quote the file.
#[must_use]
pub fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
        let header = header.as_ref();
        [&(header.len() as u64).to_le_bytes(), header, data].concat()
    }

    type All = Vec<(String, Option<TensorData<'static>>)>;

    fn read(bytes: &[u8]) -> Result<All> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let mut file = Safetensors::open(&path, "the numbers", "take another file")?;
        Ok(file.read_all().unwrap())
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},
        "a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;

    #[test]
    fn every_length_and_byte_of_a_damaged_file_is_an_error_or_fine() {
        let good = file(TWO, &[0; 8]);
        assert_eq!(read(&good).unwrap().len(), 2);
        for length in 0..good.len() {
            let error = read(&good[..length]).unwrap_err();
            assert!(
                error.to_string().contains("a.safetensors") && error.to_string().contains("hint: "),
                "{error}"
            );
        }
        for at in 0..good.len() {
            for byte in [0, b'"', b'9', b'{', 0xff] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                for tensor in read(&bytes).unwrap_or_default().into_iter().filter_map(|(_, tensor)| tensor) {
                    assert_eq!(tensor.numel().unwrap() * tensor.dtype.size(), tensor.data.len());
                }
            }
        }
    }

    #[test]
    fn lies_of_a_header_are_told() {
        let f32 = |shape: &str, offsets: &str| {
            file(format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#), &[0; 8])
        };
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let overlapping = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
        for (bytes, words) in [
            ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "would have 18446744073709551615 bytes"),
            (f32("[2]", "[0,4]"), "invalid shape, data type, or offset"),
            (f32("[200]", "[0,800]"), "its header says"),
            (f32("[4611686018427387904,4611686018427387904]", "[0,8]"), "overflow"),
            (f32("[2]", "[8,0]"), "invalid offset"),
            (f32("[2]", "[4,12]"), "invalid offset"),
            (f32("[-2]", "[0,8]"), "invalid value: integer `-2`"),
            (file(twice, &[0; 4]), "`a` is there twice"),
            (file(overlapping, &[0; 8]), "invalid offset"),
            (file(b"{\"a\xff", &[]), "header"),
            (
                file(format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)), &[]),
                "recursion limit",
            ),
        ] {
            let text = read(&bytes).unwrap_err().to_string();
            assert!(text.contains(words), "{words:?} in\n{text}");
        }
    }
}
