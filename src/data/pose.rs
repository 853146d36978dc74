//! The pose of a clip: the array `pose` of an npz file (a zip of npy files, stored or deflated).

use crate::error::{Error, Problem, Result};
use crate::guard::guarded;
use crate::input;
use crate::zip_read::{Fault, Zip};
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use std::io::{Read, Seek};
use std::path::Path;

/// The most values of a pose: four hours of 13 landmarks at 30 frames a second, 64 MiB as f32. A file of zeros deflates
/// to a thousandth, so this bounds what a small file can ask for.
const MAX_VALUES: u64 = 16 << 20;
/// NumPy's own headers have 118 bytes.
const MAX_HEADER_BYTES: usize = 4096;

/// The pose of a clip, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pose {
    /// `T0p`, the number of rows.
    pub rows: usize,
    /// `(rows, 3 * landmarks)` in C order, all finite.
    pub values: Vec<f32>,
}

/// Reads the array `pose` of `landmarks` landmarks: `(T0p, 3 * landmarks)` or `(T0p, landmarks, 3)`, any float type,
/// C or Fortran order (the npy format, versions 1 to 3).
///
/// # Errors
/// The file, named, is unreadable, damaged, lacks the array, holds something else than floats, has another width,
/// or has a value that is not finite (row, landmark and axis are named).
pub fn read(path: &Path, landmarks: usize) -> Result<Pose> {
    let read = || -> Result<Pose, Problem> {
        let (file, _) =
            input::open(path).map_err(|error| Problem::new("it cannot be opened").io(path, &error))?;
        read_npz(file, landmarks)
    };
    let result = guarded(read).unwrap_or_else(|panic| Err(Problem::new(panic)));
    result.map_err(|mut problem| {
        let what = std::mem::replace(&mut problem.what, format!("cannot read the pose {}", path.display()));
        problem.causes.insert(0, what);
        if problem.hint.is_none() {
            problem.hint = Some("replace the file, or delete it: the pose is then zeros".into());
        }
        Error::new(crate::ErrorKind::Data, problem)
    })
}

fn read_npz<R: Read + Seek>(reader: R, landmarks: usize) -> Result<Pose, Problem> {
    let mut archive = Zip::open(reader).map_err(|fault| match fault {
        Fault::Encrypted => Problem::new(fault.to_string()).hint("decrypt it first"),
        fault => {
            Problem::new("it is not a whole npz file").cause(fault).hint("write it again with numpy.savez")
        }
    })?;
    let Some(size) = archive.find("pose.npy").map(|entry| entry.size) else {
        let names: Vec<String> =
            archive.entries().iter().take(11).map(|entry| format!("`{}`", entry.shown())).collect();
        let more = archive.entries().len().saturating_sub(names.len());
        return Err(Problem::new("it has no array `pose`")
            .cause(format!("it holds {}", super::some_of_many(&names, more)))
            .hint("write it with numpy.savez(path, pose=…)"));
    };
    let broken = |fault: &dyn std::fmt::Display| Problem::new("its array `pose` is damaged").cause(fault);
    let entry = archive.read("pose.npy").map_err(|fault| broken(&fault))?;
    let mut entry = entry.ok_or_else(|| broken(&"it is gone"))?;
    let (header, header_bytes) = read_header(&mut entry)?;
    let layout = Layout::new(&header, landmarks)?;
    let held = size.saturating_sub(header_bytes as u64);
    if layout.bytes() > held {
        return Err(Problem::new(format!(
            "its header promises {} bytes, and it holds {held}",
            layout.bytes()
        )));
    }
    if layout.count() > MAX_VALUES {
        return Err(Problem::new(format!("it has {} rows, more than a pose may have", layout.rows))
            .hint(format!("a pose of up to {} rows is read", MAX_VALUES / (layout.width as u64).max(1))));
    }
    let values = layout.read(&mut entry).map_err(|error| broken(&error))?;
    // The checksum is compared where the entry ends.
    std::io::copy(&mut entry, &mut std::io::sink()).map_err(|error| broken(&error))?;
    layout.checked(values)
}

/// The npy header and how many bytes it takes. What the parser could choke on is refused before it.
fn read_header(entry: &mut impl Read) -> Result<(NpyHeader, usize), Problem> {
    let broken = || Problem::new("its array `pose` has no npy header");
    let mut bytes = vec![0; 10];
    entry.read_exact(&mut bytes).map_err(|error| broken().cause(error))?;
    let mut length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    if bytes[6] > 1 {
        let mut high = [0; 2];
        entry.read_exact(&mut high).map_err(|error| broken().cause(error))?;
        length |= usize::from(u16::from_le_bytes(high)) << 16;
        bytes.extend(high);
    }
    if !bytes.starts_with(b"\x93NUMPY") || length > MAX_HEADER_BYTES {
        return Err(broken());
    }
    let start = bytes.len();
    bytes.resize(start + length, 0);
    let text = bytes.get_mut(start..).unwrap_or_default();
    entry.read_exact(text).map_err(|error| broken().cause(error))?;
    // Depth would exhaust the parser's stack, and 20 digits or more overflow the product of the shape.
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    let brackets = text.iter().filter(|byte| matches!(byte, b'(' | b'[' | b'{')).count();
    if digits > 19 || brackets > 8 {
        return Err(broken().cause(super::shortened(String::from_utf8_lossy(text).trim())));
    }
    let header = NpyHeader::from_reader(bytes.as_slice()).map_err(|error| broken().cause(error))?;
    Ok((header, bytes.len()))
}

/// Where each value of the array lies in its bytes.
struct Layout {
    rows: usize,
    /// Values a row: `3 * landmarks`.
    width: usize,
    /// The second and third dimension of the array; the third is 1 where it has two.
    inner: (usize, usize),
    fortran: bool,
    /// Bytes a value: 2, 4 or 8.
    item: usize,
    big_endian: bool,
}

impl Layout {
    fn new(header: &NpyHeader, landmarks: usize) -> Result<Self, Problem> {
        let DType::Plain(dtype) = header.dtype() else {
            return Err(Problem::new("its array `pose` holds records, not floats"));
        };
        if header.uses_pickled_array() {
            return Err(Problem::new("its array `pose` holds Python objects, not floats")
                .hint("write it as numpy.float32; objects are never unpickled"));
        }
        let item = dtype.num_bytes().unwrap_or(0);
        if dtype.type_char() != TypeChar::Float || !matches!(item, 2 | 4 | 8) {
            return Err(Problem::new(format!("its array `pose` has the type `{dtype}`, not a float"))
                .hint("write it as numpy.float32"));
        }
        let shape: Vec<usize> =
            header.shape().iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        let width = landmarks.saturating_mul(3);
        let inner = match shape[..] {
            // No frames: there is no width to compare.
            [0, ..] => (width, 1),
            [_, columns] if columns == width => (columns, 1),
            [_, points, 3] if points == landmarks => (points, 3),
            _ => return Err(wrong_width(&shape, landmarks)),
        };
        Ok(Self {
            rows: shape.first().copied().unwrap_or(0),
            width,
            inner,
            fortran: header.order() == Order::Fortran,
            item,
            big_endian: dtype.endianness() == Endianness::Big,
        })
    }

    fn count(&self) -> u64 {
        (self.rows as u64).saturating_mul(self.width as u64)
    }

    fn bytes(&self) -> u64 {
        self.count().saturating_mul(self.item as u64)
    }

    /// The values as they are stored, of which there are at most `MAX_VALUES`.
    fn read(&self, entry: &mut impl Read) -> std::io::Result<Vec<f32>> {
        let count = self.count() as usize;
        let mut values = Vec::with_capacity(count);
        let mut bytes = [0; 8192];
        while values.len() < count {
            let most = (count - values.len()).min(bytes.len() / self.item);
            let part = bytes.get_mut(..most * self.item).unwrap_or_default();
            entry.read_exact(part)?;
            values.extend(part.chunks_exact(self.item).map(|item| self.value(item)));
        }
        Ok(values)
    }

    /// The values in C order, each checked.
    fn checked(&self, stored: Vec<f32>) -> Result<Pose, Problem> {
        let values = if self.fortran { self.to_c_order(&stored) } else { stored };
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, column) = (at / self.width, at % self.width);
            let axis = ["x", "y", "z"].get(column % 3).copied().unwrap_or("");
            let value = values.get(at).copied().unwrap_or(f32::NAN);
            return Err(Problem::new(format!("row {row}, landmark {} ({axis}) is {value}", column / 3))
                .hint(
                    "write 0 for a landmark that was not found, or delete the file: the pose is then zeros",
                ));
        }
        Ok(Pose { rows: self.rows, values })
    }

    fn value(&self, item: &[u8]) -> f32 {
        let mut bytes = [0; 8];
        let used = bytes.get_mut(..item.len()).unwrap_or_default();
        used.copy_from_slice(item);
        if self.big_endian {
            used.reverse();
        }
        let [a, b, c, d, ..] = bytes;
        match self.item {
            2 => half::f16::from_le_bytes([a, b]).to_f32(),
            4 => f32::from_le_bytes([a, b, c, d]),
            _ => f64::from_le_bytes(bytes) as f32,
        }
    }

    fn to_c_order(&self, stored: &[f32]) -> Vec<f32> {
        let (points, axes) = self.inner;
        let columns = (0..points).flat_map(|point| (0..axes).map(move |axis| point + points * axis));
        let columns: Vec<usize> = columns.collect();
        let rows = (0..self.rows).flat_map(|row| columns.iter().map(move |column| row + self.rows * column));
        let mut values = Vec::with_capacity(stored.len());
        values.extend(rows.map(|at| stored.get(at).copied().unwrap_or(f32::NAN)));
        values
    }
}

fn wrong_width(shape: &[usize], landmarks: usize) -> Problem {
    let width = landmarks.saturating_mul(3);
    let found = match *shape {
        [_, columns] => format!("{columns} values a frame"),
        [_, points, axes] => format!("{points} x {axes} values a frame"),
        _ => format!("the shape {shape:?}"),
    };
    let problem =
        Problem::new(format!("it has {found}, and model.pose_landmarks = {landmarks} needs {width}"));
    match *shape {
        [_, columns] if columns > 0 && columns % 3 == 0 => {
            problem.hint(format!("set model.pose_landmarks = {}", columns / 3))
        }
        [_, points, 3] => problem.hint(format!("set model.pose_landmarks = {points}")),
        _ => problem.hint(format!("the array is (frames, {width}) or (frames, {landmarks}, 3)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use zip::CompressionMethod::{self, Deflated, Stored};

    fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let fortran = if fortran { "True" } else { "False" };
        let dict = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn npz(name: &str, method: CompressionMethod, npy: &[u8]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(name, options).unwrap();
        writer.write_all(npy).unwrap();
        writer.finish().unwrap().into_inner()
    }

    fn read(npy: &[u8], landmarks: usize) -> Result<Pose, String> {
        read_npz(Cursor::new(npz("pose.npy", Stored, npy)), landmarks).map_err(|p| p.to_string())
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.5, -4.0, 5.0];

    #[test]
    fn every_float_type() {
        let doubles: Vec<u8> = SIX.iter().flat_map(|&v| f64::from(v).to_be_bytes()).collect();
        let halves: Vec<u8> = SIX.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        let halves_big: Vec<u8> = SIX.iter().flat_map(|&v| half::f16::from_f32(v).to_be_bytes()).collect();
        let big: Vec<u8> = SIX.iter().flat_map(|v| v.to_be_bytes()).collect();
        let cases =
            [("<f4", floats(&SIX)), (">f8", doubles), ("<f2", halves), (">f2", halves_big), (">f4", big)];
        for (dtype, data) in cases {
            for method in [Stored, Deflated] {
                let bytes = npz("pose.npy", method, &npy(&format!("'{dtype}'"), false, "(2, 3)", &data));
                let pose = read_npz(Cursor::new(bytes), 1).unwrap();
                assert_eq!((pose.rows, pose.values.as_slice()), (2, &SIX[..]), "{dtype}");
            }
        }
    }

    #[test]
    fn orders_and_dimensions() {
        let c = read(&npy("'<f4'", false, "(1, 2, 3)", &floats(&SIX)), 2).unwrap();
        assert_eq!(c.values, SIX);
        let fortran =
            read(&npy("'<f4'", true, "(2, 3)", &floats(&[0.0, 3.5, 1.0, -4.0, 2.0, 5.0])), 1).unwrap();
        assert_eq!(fortran.values, SIX);
        let fortran =
            read(&npy("'<f4'", true, "(1, 2, 3)", &floats(&[0.0, 3.5, 1.0, -4.0, 2.0, 5.0])), 2).unwrap();
        assert_eq!(fortran.values, SIX);
        for shape in ["(0, 6)", "(0,)", "(0, 2, 3)"] {
            assert_eq!(read(&npy("'<f4'", false, shape, &[]), 2).unwrap(), Pose::default());
        }
    }

    #[test]
    fn a_wrong_width_names_both_numbers() {
        let error = read(&npy("'<f4'", false, "(1, 6)", &floats(&SIX)), 13).unwrap_err();
        assert!(error.contains("6 values a frame, and model.pose_landmarks = 13 needs 39"), "{error}");
        assert!(error.contains("set model.pose_landmarks = 2"), "{error}");
        let error = read(&npy("'<f4'", false, "(1, 3, 2)", &floats(&SIX)), 3).unwrap_err();
        assert!(error.contains("3 x 2 values"), "{error}");
        assert!(read(&npy("'<f4'", false, "(6,)", &floats(&SIX)), 2).is_err());
        assert!(read(&npy("'<f4'", false, "()", &floats(&[1.0])), 2).is_err());
    }

    #[test]
    fn what_is_not_finite_is_located() {
        let error = |value| {
            let mut values = SIX;
            values[4] = value;
            read(&npy("'<f4'", false, "(2, 3)", &floats(&values)), 1).unwrap_err()
        };
        assert!(error(f32::NAN).contains("row 1, landmark 0 (y) is NaN"));
        assert!(error(f32::INFINITY).contains("is inf"));
        let huge = npy("'<f8'", false, "(1, 3)", &[1e300f64, 0.0, 0.0].map(f64::to_le_bytes).concat());
        assert!(read(&huge, 1).unwrap_err().contains("row 0, landmark 0 (x) is inf"));
    }

    #[test]
    fn other_contents_are_refused() {
        let error = |descr| read(&npy(descr, false, "(1, 3)", &[0; 24]), 1).unwrap_err();
        assert!(error("'|O'").contains("Python objects"));
        assert!(error("'<i8'").contains("`<i8`, not a float"));
        assert!(error("'<f16'").contains("not a float"));
        assert!(error("[('a', '<f4')]").contains("records"));
        let other = npz("points.npy", Stored, &npy("'<f4'", false, "(1, 3)", &[0; 12]));
        let error = read_npz(Cursor::new(other), 1).unwrap_err().to_string();
        assert!(error.contains("no array `pose`") && error.contains("`points.npy`"), "{error}");
    }

    #[test]
    fn headers_that_lie_allocate_nothing() {
        for shape in ["(4000000000, 3)", "(1000000000000000, 3)", "(9999999999, 9999999999)", "(3, 3)"] {
            assert!(read(&npy("'<f4'", false, shape, &[0; 24]), 1).is_err(), "{shape}");
        }
        let deep = format!("{}1{}", "(".repeat(3000), ")".repeat(3000));
        assert!(read(&npy("'<f4'", false, &deep, &[0; 24]), 1).is_err());
        let mut long = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
        long.extend([b' '; 100]);
        assert!(read(&long, 1).is_err());
    }

    #[test]
    fn every_truncation_and_a_flipped_value_is_an_error() {
        for method in [Stored, Deflated] {
            let whole = npz("pose.npy", method, &npy("'<f4'", false, "(2, 3)", &floats(&SIX)));
            for end in 0..whole.len() {
                let cut = whole.get(..end).unwrap().to_vec();
                assert!(guarded(|| read_npz(Cursor::new(cut), 1)).is_ok_and(|pose| pose.is_err()), "{end}");
            }
        }
        let mut flipped = npz("pose.npy", Stored, &npy("'<f4'", false, "(2, 3)", &floats(&SIX)));
        let at = flipped.windows(4).position(|bytes| bytes == 3.5f32.to_le_bytes()).unwrap();
        flipped[at] ^= 1;
        let error = read_npz(Cursor::new(flipped), 1).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = super::read(&dir.path().join("a.npz"), 1).unwrap_err();
        assert!(error.to_string().contains("a.npz") && error.exit_code() == 3);
    }
}
