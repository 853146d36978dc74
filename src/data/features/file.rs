//! One clip's features: a safetensors file (<https://huggingface.co/docs/safetensors>) with a tensor (T0, D) for each image
//! stream.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use super::stream_names;
use crate::ErrorKind;
use crate::checkpoint::safetensors::{Safetensors, short};
use crate::config::FeatureDtype;
use crate::error::{Error, Problem, Result};

/// Where a file notes what its features were made of.
const STAMP: &str = "frames";

/// A clip's features, open for reading: rows are read as they are asked for.
#[derive(Debug)]
pub struct FeatureFile {
    file: File,
    path: PathBuf,
    rows: usize,
    width: usize,
    /// Of each image stream, where its numbers begin and how they are stored.
    streams: Vec<(u64, Dtype)>,
    stamp: Option<String>,
    header: Vec<u8>,
}

impl FeatureFile {
    /// Opens the file at `path` and reads its header.
    ///
    /// # Errors
    /// Kind `Data`, naming the file, where it cannot be read, or is no safetensors file with a tensor of floats (T0, D) for
    /// each image stream.
    pub fn open(path: &Path) -> Result<Self> {
        let Safetensors { file, start, metadata, header } = Safetensors::open(path, WHAT, HINT)?;
        let wrong = |why: String| {
            let problem = Problem::new(format!("cannot read {WHAT} {}", path.display()));
            Error::new(ErrorKind::Data, problem.cause(why).hint(HINT))
        };
        let mut shape: Option<[usize; 2]> = None;
        let mut streams = Vec::new();
        for name in stream_names() {
            let info = metadata.info(name).ok_or_else(|| wrong(format!("it has no tensor `{name}`")))?;
            let &[rows, width] = info.shape.as_slice() else {
                return Err(wrong(format!(
                    "`{name}` has the shape {:?}, not (T0, D)",
                    short(&format!("{:?}", info.shape))
                )));
            };
            if shape.is_some_and(|shape| shape != [rows, width]) {
                return Err(wrong(format!("`{name}` has another shape than the streams before it")));
            }
            if !matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
                return Err(wrong(format!("`{name}` is stored as {:?}; floats are needed", info.dtype)));
            }
            if width == 0 {
                return Err(wrong(format!("`{name}` has rows without a number")));
            }
            shape = Some([rows, width]);
            streams.push((start + info.data_offsets.0 as u64, info.dtype));
        }
        let [rows, width] = shape.unwrap_or_default();
        let stamp = metadata.metadata().as_ref().and_then(|all| all.get(STAMP)).cloned();
        Ok(Self { file, path: path.to_owned(), rows, width, streams, stamp, header })
    }

    /// T0: a row a frame.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// D.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// What the features were made of, where the file says so.
    #[must_use]
    pub fn stamp(&self) -> Option<&str> {
        self.stamp.as_deref()
    }

    /// Whether all streams are stored so.
    #[must_use]
    pub fn is_stored_as(&self, dtype: FeatureDtype) -> bool {
        let dtype = stored(dtype);
        self.streams.iter().all(|(_, other)| *other == dtype)
    }

    /// The header and the first and last row of each stream: what tells this file from another one, without reading it all.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn sample(&mut self) -> Result<Vec<u8>> {
        let mut bytes = self.header.clone();
        let mut row = Vec::new();
        for stream in 0..self.streams.len() {
            for at in [0, self.rows.saturating_sub(1)] {
                if at < self.rows {
                    self.read_row(stream, at, &mut row)?;
                    bytes.extend(&row);
                }
            }
        }
        Ok(bytes)
    }

    /// Rows of image stream `stream` at `rows`, one after another, to `out` (rows, D). A row that is asked for again
    /// is copied.
    ///
    /// # Errors
    /// Kind `Data`, naming the file, where it cannot be read, has no such row, or a number of one is not finite.
    pub fn read(&mut self, stream: usize, rows: &[usize], out: &mut [f32]) -> Result<()> {
        let mut bytes = Vec::new();
        let mut before: Option<(usize, &mut [f32])> = None;
        for (&at, out) in rows.iter().zip(out.chunks_exact_mut(self.width)) {
            match &before {
                Some((last, values)) if *last == at => out.copy_from_slice(values),
                _ => {
                    let dtype = self.read_row(stream, at, &mut bytes)?;
                    to_f32(dtype, &bytes, out);
                    if let Some(value) = out.iter().find(|value| !value.is_finite()) {
                        let name = stream_names().nth(stream).unwrap_or_default();
                        return Err(self.fault(&format!("`{name}` holds {value} in row {at}")));
                    }
                    before = Some((at, out));
                }
            }
        }
        Ok(())
    }

    /// The bytes of a row.
    fn read_row(&mut self, stream: usize, row: usize, bytes: &mut Vec<u8>) -> Result<Dtype> {
        let (start, dtype) = self.streams.get(stream).copied().unwrap_or((0, Dtype::F32));
        if row >= self.rows {
            return Err(self.fault(&format!("it has {} rows; row {row} is needed", self.rows)));
        }
        let size = self.width * dtype.bitsize() / 8;
        bytes.resize(size, 0);
        let at = start + (row as u64) * size as u64;
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(|error| {
            let problem = Problem::new(format!("cannot read the features {}", self.path.display()));
            Error::new(ErrorKind::Data, problem.io(&self.path, &error).hint(HINT))
        })?;
        Ok(dtype)
    }

    fn fault(&self, why: &str) -> Error {
        let problem = Problem::new(format!("cannot read the features {}", self.path.display()));
        Error::new(ErrorKind::Data, problem.cause(why).hint(HINT))
    }
}

/// What such a file holds.
const WHAT: &str = "the features";

/// What to do about a file that cannot be used.
const HINT: &str =
    "delete the file: of a cache it is made again; or make it again with the tool that it is from";

fn stored(dtype: FeatureDtype) -> Dtype {
    match dtype {
        FeatureDtype::Float16 => Dtype::F16,
        FeatureDtype::Float32 => Dtype::F32,
    }
}

fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(numbers).for_each(|(out, bytes)| *out = number(*bytes));
}

/// The bytes of a clip's file: `streams` (T0, D) in the image streams' order, each `width` wide, noted as made of what
/// `stamp` says.
///
/// # Errors
/// Kind `Numbers` where a number is not finite as `dtype` stores it, naming the stream and the row.
pub fn encode(streams: &[Vec<f32>], width: usize, dtype: FeatureDtype, stamp: &str) -> Result<Vec<u8>> {
    let mut stored_as = Vec::with_capacity(streams.len());
    for (name, values) in stream_names().zip(streams) {
        let mut bytes = Vec::with_capacity(4 * values.len());
        for (at, &value) in values.iter().enumerate() {
            let is_finite = match dtype {
                FeatureDtype::Float16 => {
                    let value = f16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
                FeatureDtype::Float32 => {
                    bytes.extend(value.to_le_bytes());
                    value.is_finite()
                }
            };
            if !is_finite {
                let row = at / width.max(1);
                let problem = Problem::new(format!("the features of stream {name} are {value} in row {row}"));
                return Err(Error::new(
                    ErrorKind::Numbers,
                    problem.hint("look at the backbone's weights; data.feature_dtype = \"float32\" holds larger numbers"),
                ));
            }
        }
        stored_as.push((name, values.len() / width.max(1), bytes));
    }
    let failed =
        |error: safetensors::SafeTensorError| Error::run("features cannot be written down").cause(error);
    let mut views = Vec::with_capacity(stored_as.len());
    for (name, rows, bytes) in &stored_as {
        views.push((*name, TensorView::new(stored(dtype), vec![*rows, width], bytes).map_err(failed)?));
    }
    let metadata = HashMap::from([(STAMP.to_owned(), stamp.to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn streams() -> Vec<Vec<f32>> {
        (0..3).map(|stream| (0..15).map(|i| (stream * 15 + i) as f32 / 8.0).collect()).collect()
    }

    #[test]
    fn rows_come_back_as_they_are_asked_for() {
        for dtype in [FeatureDtype::Float16, FeatureDtype::Float32] {
            let (_folder, path) = written(&encode(&streams(), 3, dtype, "of these").unwrap());
            let mut file = FeatureFile::open(&path).unwrap();
            assert_eq!((file.rows(), file.width(), file.stamp()), (5, 3, Some("of these")));
            assert!(file.is_stored_as(dtype));
            let mut out = [0.0; 12];
            file.read(1, &[4, 0, 2, 2], &mut out).unwrap();
            let row = |row: usize| streams()[1][3 * row..3 * row + 3].to_vec();
            assert_eq!(out.to_vec(), [row(4), row(0), row(2), row(2)].concat());
            let error = file.read(1, &[5], &mut out).unwrap_err().to_string();
            assert!(error.contains("it has 5 rows; row 5 is needed"), "{error}");
        }
    }

    #[test]
    fn what_is_not_finite_is_neither_written_nor_read() {
        let mut large = streams();
        large[2][7] = 1e6;
        let error = encode(&large, 3, FeatureDtype::Float16, "").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Numbers);
        assert!(error.to_string().contains("hand_right") && error.to_string().contains("row 2"), "{error}");
        let mut bytes = encode(&large, 3, FeatureDtype::Float32, "").unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        let (_folder, path) = written(&bytes);
        let mut out = [0.0; 3];
        let error = FeatureFile::open(&path).unwrap().read(2, &[4], &mut out).unwrap_err();
        assert!(error.to_string().contains("`hand_right` holds NaN in row 4"), "{error}");
    }

    #[test]
    fn cut_and_hostile_files_are_named() {
        let good = encode(&streams(), 3, FeatureDtype::Float16, "x").unwrap();
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let one = |stream: &str, dtype: &str, shape: &str, end: usize| {
            format!("\"{stream}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}")
        };
        for (bytes, says) in [
            (good[..good.len() - 1].to_vec(), "its header says"),
            (good[..100].to_vec(), "cut off"),
            (vec![1, 2], "it has 2 bytes"),
            (vec![0xff; 64], "its header would have"),
            (text("{"), "no safetensors header"),
            (text("{}"), "it has no tensor `face`"),
            (text(&format!("{{{}}}", one("face", "F32", "[0]", 0))), "not (T0, D)"),
            (text(&format!("{{{}}}", one("face", "I32", "[0,3]", 0))), "floats are needed"),
            (text(&format!("{{{}}}", one("face", "F32", "[0,0]", 0))), "without a number"),
            (
                text(&format!("{{{}}}", one("face", "F32", "[99999999999,99999999999]", 0))),
                "no safetensors header",
            ),
            (
                text(&format!("{{{}}}", one("face", "F32", "[1000000,1000]", 4_000_000_000))),
                "its header says",
            ),
        ] {
            let (_folder, path) = written(&bytes);
            let error = FeatureFile::open(&path).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Data);
            let text = error.to_string();
            assert!(
                text.contains(says) && text.contains("a.safetensors") && text.contains("hint: "),
                "{says}: {text}"
            );
        }
    }
}
