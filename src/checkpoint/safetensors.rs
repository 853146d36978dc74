//! Safetensors files (<https://huggingface.co/docs/safetensors>): eight bytes with the header's length, the header in JSON,
//! the numbers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype as Stored, Metadata};

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
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
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
        let (length, brace) = first.split_at(8);
        let length = length.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        Ok(brace == b"{" && length <= size - 8)
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
pub fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}
