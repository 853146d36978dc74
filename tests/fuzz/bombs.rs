//! Files that are made to take memory or time, each with what it may take at most.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use slt_run::checkpoint::load;
use slt_run::config::{Layers, resolve};
use slt_run::data::{ImageDecoder, Source, read_index, read_metadata, read_pose};

use crate::memory::peak_of;
use crate::zips::Part;

const MIB: usize = 1 << 20;
/// Under a second each on an idle machine.
const MOST_TIME: Duration = Duration::from_secs(20);

/// Reads `bytes` as a file called `name` and checks what that took.
fn limited(
    what: &str,
    name: &str,
    bytes: &[u8],
    most: usize,
    read: impl FnOnce(&Path) -> Result<(), String>,
) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let begun = Instant::now();
    let (said, peak) = peak_of(|| read(&path).err().unwrap_or_default());
    assert!(peak <= most, "{what}: {peak} bytes for a file of {}, {most} at most", bytes.len());
    assert!(begun.elapsed() < MOST_TIME, "{what}: {:?}", begun.elapsed());
    said
}

/// A zip file of stored or deflated entries, without a lie.
fn zip(parts: &[Part]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for part in parts {
        let method =
            if part.deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(String::from_utf8(part.name.clone()).unwrap(), options).unwrap();
        writer.write_all(&part.data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn pickles() {
    let of = |start: &[u8], middle: &[u8], count: usize, end: &[u8]| {
        let middle = middle.repeat(count);
        [b"\x80\x02", start, &middle, end, b"."].concat()
    };
    let long = |length: usize| [&b"B"[..], &(length as u32).to_le_bytes(), &vec![b'7'; length]].concat();
    let text = |length: usize| [&b"X"[..], &(length as u32).to_le_bytes(), &vec![b'7'; length]].concat();
    let scalar = [
        &b"cnumpy.core.multiarray\nscalar\nq\x00cnumpy\ndtype\nX\x02\0\0\0f8\x85R"[..],
        &long(MIB),
        b"\x86q\x01",
    ]
    .concat();
    let storage = [
        &b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"[..],
        &text(60_000),
        b"X\x03\0\0\0cpuK\x01tQK\0)))tRq\0",
    ]
    .concat();
    for (what, pickle, most) in [
        // A million values is the limit, at some 200 bytes each.
        ("many small values", of(b"(", b"N", 8 * MIB, b"t"), 250 * MIB),
        ("values just within the limit", of(b"(", b"N", 990_000, b"t"), 250 * MIB),
        ("open collections", of(b"", b"(", 32 * MIB, b""), 64 * MIB),
        ("one value again and again", of(b"]q\0(", b"h\0", 16 * MIB, b"t"), 100 * MIB),
        ("memo entries", of(b"N", b"\x94", 8 * MIB, b""), 100 * MIB),
        ("a long number again and again", of(&scalar, b"0h\0h\x01R", 100_000, b""), 40 * MIB),
        ("a long storage name again and again", of(&storage, b"(h\0h\0h\0t", 100_000, b"t"), 40 * MIB),
        ("lists of lists", of(b"]q\0", b"0](h\0h\0eq\0", 60, b""), MIB),
        ("a long string shown often", of(&[&text(MIB)[..], b"q\0("].concat(), b"h\0", 1000, b"t"), 16 * MIB),
    ] {
        let bytes = zip(&[Part::new("x/data.pkl", &pickle)]);
        limited(what, "a.pt", &bytes, most, |path| load(path).map(drop).map_err(|e| e.to_string()));
    }
}

#[test]
fn archives() {
    let pickle = Part::new("x/data.pkl", b"\x80\x02N.");
    let many = |name: &str, count: usize| {
        let parts = (0..count).map(|n| Part::new(&format!("{name}{n}"), b""));
        zip(&[pickle.clone()].into_iter().chain(parts).collect::<Vec<_>>())
    };
    let entries = many("x/data/", 60_000);
    let ends: Vec<u8> = b"PK\x05\x06\0\0\0\0".repeat(MIB / 8);
    for (what, bytes, most) in [
        ("many entries", entries.clone(), 3 * entries.len() + MIB),
        ("many ends", [entries, ends].concat(), 16 * MIB),
    ] {
        limited(what, "a.pt", &bytes, most, |path| load(path).map(drop).map_err(|e| e.to_string()));
    }
}

#[test]
fn poses() {
    let npy = |descr: &str, order: &str, shape: &str, bytes: usize| {
        let dict = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let length = (dict.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\0", &length[..], dict.as_bytes(), &vec![0; bytes]].concat()
    };
    let part = |npy: Vec<u8>| Part { deflated: true, ..Part::new("pose.npy", &npy) };
    let read = |path: &Path| read_pose(path, 2).map(drop).map_err(|e| e.to_string());
    // The largest pose that is read: 64 MiB as f32, twice that in Fortran's order.
    let rows = (16 << 20) / 6;
    let largest = zip(&[part(npy("<f2", "True", &format!("({rows}, 6)"), rows * 12))]);
    assert_eq!(limited("the largest", "a.npz", &largest, 130 * MIB, read), "");
    let larger = zip(&[part(npy("<f2", "True", &format!("({}, 6)", rows + 1), rows * 12 + 12))]);
    assert!(limited("larger", "a.npz", &larger, MIB, read).contains("more than a pose may have"));
    let other = Part { name: b"other.npy".to_vec(), ..part(vec![0; 64 * MIB]) };
    let beside = zip(&[other, part(npy("<f4", "False", "(1, 6)", 24))]);
    assert_eq!(limited("a bomb beside it", "a.npz", &beside, MIB, read), "");
}

#[test]
fn tables() {
    let read = |path: &Path| {
        let source = Source { key: "data.metadata_csv", path };
        let said = |problems: Vec<slt_run::error::Problem>| problems[0].to_string();
        let (index, metadata) = (read_index(&source).map_err(said), read_metadata(&source).map_err(said));
        match (index, metadata) {
            (Err(one), Err(two)) => Err(format!("{one}\n{two}")),
            _ => Ok(()),
        }
    };
    let ids: String = (0..400_000).map(|n| format!("{n:06}\n")).collect();
    let wide = format!("{}\n", ",".repeat(900_000));
    for (what, bytes, factor, says) in [
        ("rows of two bytes", b"a\n".repeat(4 * MIB), 2, "more than 4000000 rows"),
        ("ids", ids.into_bytes(), 30, ""),
        (
            "one field",
            [b"id;text\na;".to_vec(), vec![b'x'; 32 * MIB]].concat(),
            2,
            "line 2: the row is longer",
        ),
        ("NULs", vec![0; 32 * MIB], 2, "line 1: the row is longer"),
        ("an open quote", [b"id;text\na;\"".to_vec(), b"x;y\n".repeat(8 * MIB)].concat(), 2, "never closed"),
        ("a million columns", wide.repeat(3).into_bytes(), 30, "no column `video_id`"),
        ("empty texts", [b"id;text\n".to_vec(), b"a;\n".repeat(MIB)].concat(), 2, ""),
        ("conflicts", [b"id;text\n".to_vec(), b"a;b\na;c\n".repeat(MIB / 4)].concat(), 2, ""),
    ] {
        let said = limited(what, "a.csv", &bytes, factor * bytes.len() + 10 * MIB, read);
        assert!(said.contains(says) && said.len() < 5000, "{what}: {said:.1000}");
    }
}

#[test]
fn images() {
    // A frame header of any size, with `planes`, before `scans` scans of `data` bytes.
    let jpeg = |process: u8, side: u16, scans: usize, data: usize| {
        let [high, low] = side.to_be_bytes();
        let frame = [0xff, process, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0];
        let scan = [&[0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0][..], &vec![0; data]].concat();
        [&[0xff, 0xd8][..], &frame, &scan.repeat(scans), &[0xff, 0xd9]].concat()
    };
    for (what, bytes, most, says) in [
        ("65500 px", jpeg(0xc0, 65_500, 1, 1000), MIB, "65500 x 65500"),
        ("a small file of 64 megapixels", jpeg(0xc0, 8000, 1, 1000), MIB, "cannot hold 64000000 pixels"),
        ("scans", jpeg(0xc2, 64, 5000, 10), MIB, "5000 scans"),
        ("scans of many pixels", jpeg(0xc2, 8000, 99, 1000), 600 * MIB, ""),
        ("no tables", jpeg(0xc0, 8000, 1, 100_000), 600 * MIB, ""),
    ] {
        let said = limited(what, "a.jpg", &bytes, most, |path| {
            ImageDecoder::default().read(path, 8, &mut [0; 192]).map_err(|e| e.to_string())
        });
        assert!(said.contains(says) && !said.is_empty(), "{what}: {said}");
    }
}

#[test]
fn experiments() {
    let read = |path: &Path| {
        let layers = Layers { files: vec![path.into()], ..Layers::default() };
        resolve(&layers).map(drop).map_err(|error| error.to_string())
    };
    let keys: String = (0..30_000).map(|n| format!("k{n}=1\n")).collect();
    let arrays = "[".repeat(200_000);
    let tables = "a.".repeat(100_000);
    let list = format!("extends = [{}]", "\"a.toml\", ".repeat(20_000));
    for (what, text, says) in [
        ("unknown keys", keys, "after 1000 problems"),
        ("a long key", format!("{} = 1\n", "k".repeat(200_000)), "unknown key"),
        ("arrays in arrays", format!("a = {arrays}"), "not valid TOML"),
        ("tables in tables", format!("a = {}", "{a=".repeat(60_000)), "not valid TOML"),
        ("dots", format!("{tables}a = 1"), "not valid TOML"),
        ("a section of dots", format!("[{tables}a]"), "not valid TOML"),
        ("itself, often", list, "more than 100 files are extended"),
        ("a long number", format!("run.seed = {}", "9".repeat(200_000)), "not valid TOML"),
        ("a long string", format!("run.device = \"{}\"", "é".repeat(100_000)), "unknown device"),
    ] {
        let said = limited(what, "a.toml", text.as_bytes(), 400 * MIB, read);
        assert!(said.contains(says), "{what}: {said:.2000}");
    }
    let huge = limited("1 GB", "a.toml", b"", MIB, |path| {
        std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 30).unwrap();
        read(path)
    });
    assert!(huge.contains("larger than 256 KiB"), "{huge}");
}
