//! Writes a drawn clip's crops and poses, and the dataset's tables, in the documented layout.

use std::fs;
use std::io::{self, Cursor, Write};
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder};
use npyz::WriterBuilder;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Options;
use super::clip::Clip;
use super::figure::LANDMARKS;
use super::sentence;
use super::sign::Sign;
use crate::error::{Error, ErrorKind, Result};

const JPEG_QUALITY: u8 = 85;

/// Draws and writes one clip: its crops and its poses. Returns how many files that made.
pub(super) fn clip(dir: &Path, options: &Options, signs: &[Sign], clip: &Clip) -> Result<usize> {
    let mut files = 0;
    for (stream, number) in clip.crops(signs) {
        let path = dir.join(stream.folder()).join(format!("{}_f{number:06}.jpg", clip.id));
        let jpeg = jpeg(&clip.image(options, signs, stream, number), options.size);
        write(&path, jpeg.map_err(io::Error::other))?;
        files += 1;
    }
    let npz = npz(&clip.pose(options, signs), clip.frames);
    write(&dir.join("pose").join(format!("{}.npz", clip.id)), npz)?;
    Ok(files + 1)
}

/// Writes the texts and the two splits.
pub(super) fn tables(dir: &Path, signs: &[Sign], clips: &[Clip]) -> Result<()> {
    let texts: Vec<String> = clips.iter().map(|clip| sentence::text(&clip.sentence, signs)).collect();
    let rows = clips.iter().zip(&texts).map(|(clip, text)| [clip.id.as_str(), text.as_str()]);
    write(&dir.join("subs.csv"), table(["video_id", "texto"], rows))?;
    for (name, validation) in [("train.csv", false), ("val.csv", true)] {
        let ids = clips.iter().filter(|clip| clip.validation == validation).map(|clip| [clip.id.as_str()]);
        write(&dir.join("index").join(name), table(["video_id"], ids))?;
    }
    Ok(())
}

fn write(path: &Path, bytes: io::Result<Vec<u8>>) -> Result<()> {
    bytes.and_then(|bytes| fs::write(path, bytes)).map_err(|error| failed(path, &error))
}

/// A dataset's file or folder that could not be written.
pub(super) fn failed(path: &Path, error: &io::Error) -> Error {
    Error::io(ErrorKind::Run, "cannot write", path, error).hint(
        "make room or choose a folder that can be written; the same command then draws the dataset anew",
    )
}

fn jpeg(rgb: &[u8], size: usize) -> Result<Vec<u8>, jpeg_encoder::EncodingError> {
    let mut bytes = Vec::new();
    // Sizes are at most 2048.
    Encoder::new(&mut bytes, JPEG_QUALITY).encode(rgb, size as u16, size as u16, ColorType::Rgb)?;
    Ok(bytes)
}

/// A compressed npz with the array `pose` of shape `(frames, 3 * LANDMARKS)`, as `numpy.savez_compressed` makes it.
fn npz(pose: &[f32], frames: usize) -> io::Result<Vec<u8>> {
    let mut array = Vec::new();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[frames as u64, 3 * LANDMARKS as u64])
        .writer(&mut array)
        .begin_nd()?;
    writer.extend(pose.iter().copied())?;
    writer.finish()?;
    // A fixed date, so that the same options give the same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(zip::DateTime::default());
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(npyz::npz::file_name_from_array_name("pose"), options).map_err(io::Error::other)?;
    zip.write_all(&array)?;
    Ok(zip.finish().map_err(io::Error::other)?.into_inner())
}

fn table<'a, const N: usize>(
    header: [&'a str; N],
    rows: impl Iterator<Item = [&'a str; N]>,
) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in std::iter::once(header).chain(rows) {
        writer.write_record(row)?;
    }
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}
