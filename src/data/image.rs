//! One JPEG file as RGB bytes of the network's size.

use crate::error::{Error, Problem, Result};
use crate::guard::guarded;
use crate::input;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use std::io::{self, Read};
use std::path::Path;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

/// The largest side that is decoded. A header is 20 bytes; what it makes one allocate must be bounded.
const MAX_SIDE: usize = 16_384;
/// The most pixels that are decoded: twice those of an 8K video's frame.
const MAX_PIXELS: usize = 64 << 20;
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Decodes and resizes images one after another, keeping its buffers. One for each thread.
#[derive(Default)]
pub struct ImageDecoder {
    file: Vec<u8>,
    rgb: Vec<u8>,
    /// `(height, size)` RGB pixels: resized in one direction.
    between: Vec<u8>,
    resizer: Resizer,
}

impl ImageDecoder {
    /// Reads the JPEG at `path` into `out`, `size * size` RGB pixels: `(H, W, 3)`, bytes 0 to 255.
    ///
    /// Grey, CMYK and progressive files become RGB; an EXIF orientation is ignored; the resizing is the bicubic one
    /// with antialiasing that Pillow's `resize` does by default, and none where the image has the size already.
    ///
    /// # Errors
    /// The file, named, is unreadable, empty, truncated, not a JPEG, or larger than 64 megapixels.
    pub fn read(&mut self, path: &Path, size: usize, out: &mut [u8]) -> Result<()> {
        let mut file = std::mem::take(&mut self.file);
        let problem = || Problem::new(format!("cannot read the image {}", path.display()));
        let read = read_file(path, &mut file).map_err(|error| problem().io(path, &error));
        let result = read.and_then(|()| {
            let decoded = guarded(|| self.decode(&file, size, out)).unwrap_or_else(|panic| {
                *self = Self::default();
                Err(panic)
            });
            decoded.map_err(|cause| problem().cause(cause))
        });
        self.file = file;
        result.map_err(|problem| {
            let hint = "replace the file, or delete it: its place is then empty";
            Error::new(crate::ErrorKind::Data, problem.hint(hint))
        })
    }

    /// [`ImageDecoder::read`] on the bytes of a file.
    ///
    /// # Errors
    /// A message that says what is wrong with the bytes.
    pub fn decode(&mut self, bytes: &[u8], size: usize, out: &mut [u8]) -> Result<(), String> {
        let (width, height) = match check_header(bytes)? {
            Chroma::Common => self.decode_common(bytes)?,
            Chroma::Rare => self.decode_rare(bytes)?,
        };
        self.resize(width, height, size, out)
    }

    /// Fills `rgb`; returns width and height.
    fn decode_common(&mut self, bytes: &[u8]) -> Result<(usize, usize), String> {
        // Strict: what a damaged file lacks would otherwise be filled with grey.
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(MAX_SIDE)
            .set_max_height(MAX_SIDE)
            .jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(|error| error.to_string())?;
        let (width, height) = decoder.dimensions().ok_or("it has no size")?;
        check_size(width, height)?;
        self.rgb.clear();
        self.rgb.resize(width * height * 3, 0);
        if decoder.output_buffer_size() != Some(self.rgb.len()) {
            return Err("its colours cannot be turned into RGB".into());
        }
        decoder.decode_into(&mut self.rgb).map_err(|error| error.to_string())?;
        Ok((width, height))
    }

    /// [`ImageDecoder::decode_common`] at half the speed, right for every subsampling.
    fn decode_rare(&mut self, bytes: &[u8]) -> Result<(usize, usize), String> {
        let mut decoder = jpeg_decoder::Decoder::new(bytes);
        self.rgb = decoder.decode().map_err(|error| error.to_string())?;
        let info = decoder.info().ok_or("it has no size")?;
        let (width, height) = (usize::from(info.width), usize::from(info.height));
        if self.rgb.len() != width * height * 3 {
            return Err("its colours cannot be turned into RGB".into());
        }
        Ok((width, height))
    }

    /// Resizes `rgb` into `out`, along the rows and along the columns. Each pass clips to bytes, so that their order shows
    /// at sharp edges, by 25 levels and more; it is Pillow's.
    fn resize(&mut self, width: usize, height: usize, size: usize, out: &mut [u8]) -> Result<(), String> {
        let (between_width, between_height) =
            if columns_first(width, height, size) { (width, size) } else { (size, height) };
        self.between.resize(between_width * between_height * 3, 0);
        let between = (&mut self.between[..], between_width, between_height);
        resize_once(&mut self.resizer, (&self.rgb, width, height), between)?;
        resize_once(&mut self.resizer, (&self.between, between_width, between_height), (out, size, size))
    }
}

/// Whether Pillow resizes an image to a square of `size` along its columns first: where its height shrinks by more than
/// twice what its width does. Found by comparing with Pillow 13 to the bit, for 147 sizes drawn at random.
fn columns_first(width: usize, height: usize, size: usize) -> bool {
    height > size && height + size > 2 * width
}

/// Resizes `(pixels, width, height)` in the direction in which the two differ; copies where they do not.
fn resize_once(
    resizer: &mut Resizer,
    (from, from_width, from_height): (&[u8], usize, usize),
    (to, width, height): (&mut [u8], usize, usize),
) -> Result<(), String> {
    let from = ImageRef::new(from_width as u32, from_height as u32, from, PixelType::U8x3);
    let from = from.map_err(|error| error.to_string())?;
    let to = Image::from_slice_u8(width as u32, height as u32, to, PixelType::U8x3);
    let mut to = to.map_err(|error| error.to_string())?;
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
    resizer.resize(&from, &mut to, &options).map_err(|error| error.to_string())
}

/// How a file's chroma is subsampled, which decides who decodes it. (zune-jpeg 0.5.15 has wrong pixels at the edges of
/// 4:2:2 and 4:4:0, and garbage for 4:1:1 with restarts and for rarer ones.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chroma {
    /// Grey, 4:4:4, 4:2:0, or one of these with a black plane.
    Common,
    /// Any other of up to three planes.
    Rare,
}

impl Chroma {
    /// From the components of a frame header, three bytes each: name, sampling factors, table (ITU T.81, B.2.2).
    fn new(components: &[u8]) -> Result<Self, String> {
        let factors: Vec<u8> = components.chunks_exact(3).map(|component| component[1]).collect();
        match factors[..] {
            [_] | [0x11 | 0x22, 0x11, 0x11] | [0x11, 0x11, 0x11, 0x11] | [0x22, 0x11, 0x11, 0x22] => {
                Ok(Self::Common)
            }
            [_, _, _] => Ok(Self::Rare),
            _ => Err(format!("its {} colour planes are stored in an unusual way", factors.len())),
        }
    }
}

fn read_file(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    let (file, _) = input::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        bytes.clear();
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(())
}

fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width > MAX_SIDE || height > MAX_SIDE || width.saturating_mul(height) > MAX_PIXELS {
        let limit = MAX_PIXELS >> 20;
        return Err(format!(
            "it is {width} x {height} px: more than {limit} megapixels or {MAX_SIDE} px a side"
        ));
    }
    if width == 0 || height == 0 {
        return Err(format!("it is {width} x {height} px"));
    }
    Ok(())
}

/// Looks at the start and the end of a file before anything is decoded: is it a JPEG, how large, is it whole?
fn check_header(bytes: &[u8]) -> Result<Chroma, String> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    if !bytes.starts_with(&[0xff, 0xd8]) {
        return Err(format!("it is {}, not a JPEG", kind_of(bytes)));
    }
    let header = walk_segments(bytes)?.ok_or("it is truncated: it ends before its pixels")?;
    let pixels = bytes.get(header.scan..).unwrap_or_default();
    check_density(&header, pixels)?;
    // Inside the pixels 0xff is always followed by 0: this pair is the end mark, which a truncated file lacks. The
    // decoder alone would not miss the last rows.
    if pixels.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
        Ok(header.chroma)
    } else {
        Err("it is truncated: it has no end mark".into())
    }
}

/// What is known of a file before its pixels.
struct Header {
    chroma: Chroma,
    /// Width times height.
    area: usize,
    progressive: bool,
    /// Where the first scan's data starts.
    scan: usize,
}

/// The most scans of a progressive file; libjpeg writes 10. Each may take a few bytes and a walk over all pixels.
const MAX_SCANS: usize = 100;
/// The most pixels that a byte can stand for: a block of 64 takes a bit at least, and half of the planes' blocks may be
/// missing where the chroma is subsampled in an odd way.
const MAX_PIXELS_A_BYTE: usize = 64 * 8 * 2;

/// Refuses a few bytes that claim many pixels, or many passes over them.
fn check_density(header: &Header, pixels: &[u8]) -> Result<(), String> {
    if pixels.len().saturating_mul(MAX_PIXELS_A_BYTE) < header.area {
        return Err(format!("it is truncated: {} bytes cannot hold {} pixels", pixels.len(), header.area));
    }
    let scans = || 1 + pixels.windows(2).filter(|pair| *pair == [0xff, 0xda]).count();
    if header.progressive && scans() > MAX_SCANS {
        return Err(format!("it has {} scans, more than {MAX_SCANS}", scans()));
    }
    Ok(())
}

/// Follows the segments from the start (ITU T.81, B.1.1) and checks the size in the frame header. `None` where the file
/// ends before its first scan.
fn walk_segments(bytes: &[u8]) -> Result<Option<Header>, String> {
    let mut at = 2;
    let mut frame = None;
    loop {
        let Some(rest) = bytes.get(at..) else { return Ok(None) };
        let Some(marker) = rest.iter().position(|&byte| byte == 0xff) else { return Ok(None) };
        let Some(code) = rest.get(marker..).and_then(|r| r.iter().position(|&byte| byte != 0xff)) else {
            return Ok(None);
        };
        at += marker + code + 1;
        let Some(&code) = bytes.get(at - 1) else { return Ok(None) };
        if matches!(code, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        if code == 0xd9 {
            return Err("it has no pixels".into());
        }
        let Some(&[high, low]) = bytes.get(at..at + 2) else { return Ok(None) };
        // Every SOFn; C4, C8 and CC are other segments.
        if matches!(code, 0xc0..=0xcf) && !matches!(code, 0xc4 | 0xc8 | 0xcc) {
            let Some(&[h1, h0, w1, w0, planes]) = bytes.get(at + 3..at + 8) else { return Ok(None) };
            let planes = bytes.get(at + 8..at + 8 + 3 * usize::from(planes));
            let side = |high, low| usize::from(u16::from_be_bytes([high, low]));
            check_size(side(w1, w0), side(h1, h0))?;
            let Some(planes) = planes else { return Ok(None) };
            if frame.is_some() {
                return Err("it has two sizes".into());
            }
            let area = side(w1, w0) * side(h1, h0);
            frame = Some(Header { chroma: Chroma::new(planes)?, area, progressive: code == 0xc2, scan: 0 });
        }
        at += usize::from(u16::from_be_bytes([high, low]));
        if code == 0xda {
            let frame = frame.ok_or("it has pixels before it has a size")?;
            return Ok(Some(Header { scan: at, ..frame }));
        }
    }
}

/// What a file that is no JPEG looks like.
fn kind_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "a PNG",
        [b'G', b'I', b'F', b'8', ..] => "a GIF",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "a WebP",
        [b'B', b'M', ..] => "a BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an HEIF, AVIF or video file",
        [b'<', ..] => "a text",
        _ if bytes.iter().take(64).all(|&byte| byte == 0) => "a run of zero bytes",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use std::io::Cursor;
    use std::path::PathBuf;

    fn cases() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
    }

    /// A smooth `width` x `height` JPEG.
    fn jpeg(width: u16, height: u16, progressive: bool) -> Vec<u8> {
        let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height))
            .flat_map(|i| [(i * 7 % 251) as u8, (i / 3 % 256) as u8, 90])
            .collect();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 90);
        encoder.set_progressive(progressive);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(&pixels, width, height, ColorType::Rgb).unwrap();
        bytes
    }

    fn error_of(bytes: &[u8]) -> String {
        ImageDecoder::default().decode(bytes, 8, &mut [0; 192]).unwrap_err()
    }

    #[test]
    fn pixels_are_pillows() {
        let archive = std::fs::read(cases().join("images_expected.npz")).unwrap();
        let mut archive = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
        let mut decoder = ImageDecoder::default();
        assert!(archive.len() >= 20);
        for at in 0..archive.len() {
            let entry = archive.by_index(at).unwrap();
            let name = entry.name().unwrap().to_string();
            let expected: Vec<u8> = npyz::NpyFile::new(entry).unwrap().into_vec().unwrap();
            let (file, size) = name.trim_end_matches(".npy").split_once('@').unwrap();
            let size = size.parse().unwrap();
            let mut got = vec![0; size * size * 3];
            decoder.read(&cases().join("images").join(file), size, &mut got).unwrap();
            assert_eq!(got.len(), expected.len());
            let differences: Vec<u32> =
                got.iter().zip(&expected).map(|(a, b)| u32::from(a.abs_diff(*b))).collect();
            let mean = f64::from(differences.iter().sum::<u32>()) / differences.len() as f64;
            assert!(*differences.iter().max().unwrap() <= 5 && mean <= 0.5, "{name}: mean {mean}");
        }
    }

    #[test]
    fn an_image_of_the_size_is_not_resampled() {
        let bytes = jpeg(32, 32, false);
        let (mut got, mut decoder) = (vec![0; 32 * 32 * 3], ImageDecoder::default());
        decoder.decode(&bytes, 32, &mut got).unwrap();
        assert_eq!(got, decoder.rgb);
    }

    /// A smooth image survives JPEG almost unchanged, whatever its chroma's resolution: no other decoder needed.
    #[test]
    fn every_subsampling_decodes() {
        use SamplingFactor as S;
        let mut decoder = ImageDecoder::default();
        let all = [S::F_1_1, S::F_2_1, S::F_1_2, S::F_2_2, S::F_4_1, S::F_4_2, S::F_1_4, S::F_2_4];
        for (factor, side) in
            all.into_iter().flat_map(|factor| [(factor, 64_u16), (factor, 51), (factor, 83)])
        {
            for (progressive, restart) in [(false, 0), (false, 3), (true, 0), (true, 3)] {
                let at = |i: u16| (usize::from(i % side), usize::from(i / side));
                let colour = |(x, y)| [(40 + 2 * x) as u8, (40 + 2 * y) as u8, (220 - x - y) as u8];
                let pixels: Vec<u8> = (0..side * side).flat_map(|i| colour(at(i))).collect();
                let mut bytes = Vec::new();
                let mut encoder = Encoder::new(&mut bytes, 97);
                encoder.set_sampling_factor(factor);
                encoder.set_progressive(progressive);
                if restart > 0 {
                    encoder.set_restart_interval(restart);
                }
                encoder.encode(&pixels, side, side, ColorType::Rgb).unwrap();
                let mut got = vec![0; pixels.len()];
                decoder.decode(&bytes, usize::from(side), &mut got).unwrap();
                let worst = got.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst <= 16, "{factor:?} {side} px, restart {restart}: {worst}");
            }
        }
    }

    #[test]
    fn the_passes_clip_in_pillows_order() {
        // Pillow 13: Image.fromarray(a).resize((3, 3), Image.BICUBIC); with the columns first, one value differs by 12.
        let pixel = |i: usize| if i * i % 113 < 56 { 0 } else { 255 };
        let rgb: Vec<u8> = (0..30).flat_map(|i| [pixel(i); 3]).collect();
        let mut decoder = ImageDecoder { rgb, ..ImageDecoder::default() };
        let mut out = [0; 27];
        decoder.resize(6, 5, 3, &mut out).unwrap();
        for (got, expected) in out.iter().step_by(3).zip([4_u8, 103, 58, 115, 240, 145, 147, 177, 120].iter())
        {
            assert!(got.abs_diff(*expected) <= 1, "{out:?}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        for progressive in [false, true] {
            let bytes = jpeg(40, 40, progressive);
            for end in 0..bytes.len() {
                assert!(!error_of(&bytes[..end]).is_empty(), "cut at {end}");
            }
        }
        assert!(error_of(&jpeg(40, 40, false)[..400]).contains("truncated"));
    }

    #[test]
    fn an_end_mark_in_a_thumbnail_does_not_hide_a_truncation() {
        let mut bytes = jpeg(40, 40, false);
        let thumbnail = [0xff, 0xe1, 0, 8, 0xff, 0xd8, 0xff, 0xda, 0xff, 0xd9];
        bytes.splice(2..2, thumbnail);
        assert!(ImageDecoder::default().decode(&bytes, 8, &mut [0; 192]).is_ok());
        bytes.truncate(bytes.len() - 2);
        assert!(error_of(&bytes).contains("no end mark"));
    }

    #[test]
    fn other_formats_are_named() {
        assert!(error_of(b"").contains("empty"));
        assert!(error_of(b"\x89PNG\r\n\x1a\n").contains("a PNG, not a JPEG"));
        assert!(error_of(b"GIF89a").contains("a GIF"));
        assert!(error_of(&[0; 100]).contains("zero bytes"));
    }

    #[test]
    fn absurd_sizes_are_refused_by_the_header() {
        let mut bytes = jpeg(16, 16, false);
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bytes[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
        assert!(error_of(&bytes).contains("60000 x 60000 px"), "{}", error_of(&bytes));
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x2e, 0xe0, 0x2e, 0xe0]);
        assert!(error_of(&bytes).contains("12000 x 12000 px: more than 64 megapixels"));
        bytes[frame + 5..frame + 9].copy_from_slice(&[0, 0, 0, 16]);
        assert!(error_of(&bytes).contains("16 x 0 px"));
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = ImageDecoder::default().read(&dir.path().join("x_f1.jpg"), 8, &mut [0; 192]).unwrap_err();
        assert!(error.to_string().contains("x_f1.jpg") && error.exit_code() == 3);
        assert!(ImageDecoder::default().read(dir.path(), 8, &mut [0; 192]).is_err());
    }

    /// Flipping bytes must never panic through [`ImageDecoder::read`]; here the guard is what is under test.
    #[test]
    fn damaged_bytes_never_escape_the_guard() {
        let whole = jpeg(24, 24, true);
        let mut decoder = ImageDecoder::default();
        for at in 0..whole.len() {
            for flip in [0xff, 0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let _ = guarded(|| decoder.decode(&bytes, 8, &mut [0; 192]));
            }
        }
    }

    /// A tall picture of hard edges, as Pillow 13 resizes it: the other order of passes is off by more than 20 levels.
    #[test]
    fn tall_images_are_resized_columns_first() {
        let pixel = |x: usize, y: usize, c: usize| {
            if (x * x * 7 + y * y * 11 + c * 5 + x * y * 3) % 5 < 2 { 255 } else { 0 }
        };
        let rgb = (0..40 * 9 * 3).map(|i| pixel(i / 3 % 9, i / 27, i % 3)).collect();
        let mut decoder = ImageDecoder { rgb, ..ImageDecoder::default() };
        let mut found = [0; 8 * 8 * 3];
        decoder.resize(9, 40, 8, &mut found).unwrap();
        let expected: [u8; 8 * 8 * 3] = [
            153, 153, 153, 134, 134, 134, 96, 96, 96, 114, 114, 114, 156, 156, 156, 146, 146, 146, 112, 112,
            112, 91, 91, 91, 154, 154, 154, 144, 144, 144, 97, 97, 97, 125, 125, 125, 156, 156, 156, 156,
            156, 156, 112, 112, 112, 102, 102, 102, 154, 154, 154, 143, 143, 143, 97, 97, 97, 124, 124, 124,
            156, 156, 156, 156, 156, 156, 112, 112, 112, 101, 101, 101, 154, 154, 154, 143, 143, 143, 97, 97,
            97, 124, 124, 124, 156, 156, 156, 156, 156, 156, 112, 112, 112, 101, 101, 101, 154, 154, 154,
            143, 143, 143, 97, 97, 97, 124, 124, 124, 156, 156, 156, 156, 156, 156, 112, 112, 112, 101, 101,
            101, 154, 154, 154, 143, 143, 143, 97, 97, 97, 124, 124, 124, 156, 156, 156, 156, 156, 156, 112,
            112, 112, 101, 101, 101, 155, 155, 155, 142, 142, 142, 96, 96, 96, 123, 123, 123, 157, 157, 157,
            155, 155, 155, 111, 111, 111, 100, 100, 100, 145, 145, 145, 154, 154, 154, 103, 103, 103, 137,
            137, 137, 152, 152, 152, 159, 159, 159, 118, 118, 118, 113, 113, 113,
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.abs_diff(expected) <= 5, "{found} is not {expected}");
        }
        assert!(!columns_first(40, 9, 8) && !columns_first(6, 7, 8) && columns_first(7, 9, 8));
    }
}
