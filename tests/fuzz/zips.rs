//! Zip files as a forger makes them: any part of a good one changed, with the checksums right or wrong.

use std::io::{Cursor, Read, Write};

use crate::random::Random;

/// An entry.
#[derive(Clone)]
pub struct Part {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    pub deflated: bool,
}

impl Part {
    pub fn new(name: &str, data: &[u8]) -> Self {
        Self { name: name.into(), data: data.into(), deflated: false }
    }
}

/// The entries of a file that is good enough to be read.
pub fn split(bytes: &[u8]) -> Option<Vec<Part>> {
    let read = || {
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
        let mut parts = Vec::new();
        for at in 0..zip.len().min(50) {
            let entry = zip.by_index(at).ok()?;
            let deflated = entry.compression() == zip::CompressionMethod::Deflated;
            let name = entry.name_raw().to_vec();
            let mut data = Vec::new();
            entry.take(1 << 20).read_to_end(&mut data).ok()?;
            parts.push(Part { name, data, deflated });
        }
        Some(parts)
    };
    // Somebody else's reader, which is not under test here.
    std::panic::catch_unwind(read).ok().flatten()
}

/// A file of `parts`; one in four has a lie in its headers.
pub fn build(random: &mut Random, parts: &[Part]) -> Vec<u8> {
    let lies = if random.one_in(4) { 1 + random.below(3) } else { 0 };
    let mut records = Vec::new();
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for part in parts {
        let packed = if part.deflated { deflate(&part.data) } else { part.data.clone() };
        let mut common = vec![20, 0, 0, 0, 8 * u8::from(part.deflated), 0, 0, 0, 0x21, 0];
        common.extend(crc32fast::hash(&part.data).to_le_bytes());
        common.extend((packed.len() as u32).to_le_bytes());
        common.extend((part.data.len() as u32).to_le_bytes());
        common.extend((part.name.len() as u16).to_le_bytes());
        let start = out.len() as u32;
        records.push((false, out.len()));
        out.extend(b"PK\x03\x04".iter().chain(&common).chain(&[0, 0]).chain(&part.name));
        out.extend(packed);
        if random.one_in(20) {
            // A data descriptor that nothing announces.
            out.extend(b"PK\x07\x08".iter().chain(&common[10..22]));
        }
        records.push((true, directory.len()));
        directory.extend(b"PK\x01\x02\x14\0".iter().chain(&common).chain(&[0; 12]));
        directory.extend(start.to_le_bytes());
        directory.extend(&part.name);
    }
    let start = out.len();
    let count = parts.len() as u64;
    let (size, mut end) = (directory.len() as u64, Vec::new());
    if random.one_in(8) {
        end.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        for field in [count, count, size, start as u64] {
            end.extend(field.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend((start as u64 + size).to_le_bytes());
        end.extend(1_u32.to_le_bytes());
    }
    end.extend(b"PK\x05\x06\0\0\0\0");
    end.extend([(count as u16).to_le_bytes(); 2].concat());
    end.extend((size as u32).to_le_bytes());
    end.extend((start as u32).to_le_bytes());
    end.extend([0, 0]);
    for _ in 0..lies {
        let (record, length) = match random.below(6) {
            0 => (&mut end, 22),
            1 | 2 => (&mut out, 30),
            _ => (&mut directory, 46),
        };
        let starts: Vec<usize> = match length {
            22 => vec![0],
            _ => records.iter().filter(|(central, _)| *central == (length == 46)).map(|r| r.1).collect(),
        };
        if let Some(start) = starts.get(random.below(starts.len())) {
            let length = if length == 22 { record.len() } else { length };
            lie(random, record, *start, length);
        }
    }
    [out, directory, end].concat()
}

/// Changes a field of the record at `start`.
fn lie(random: &mut Random, bytes: &mut [u8], start: usize, length: usize) {
    let at = start + 4 + 2 * random.below((length - 4) / 2);
    let width = [2, 4, 8][random.below(3)];
    let value = if random.one_in(2) { random.odd() } else { random.below(300) as u64 };
    for (to, from) in bytes.iter_mut().skip(at).zip(&value.to_le_bytes()[..width]) {
        *to = *from;
    }
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Damages one part with `damage`, or the set of parts.
pub fn mutate(
    random: &mut Random,
    bytes: &[u8],
    others: &[Vec<u8>],
    damage: impl Fn(&mut Random, &mut Part, &[Vec<u8>]),
) -> Vec<u8> {
    let parts = if random.one_in(5) { None } else { split(bytes).filter(|parts| !parts.is_empty()) };
    let Some(mut parts) = parts else {
        let mut bytes = bytes.to_vec();
        random.damage(&mut bytes, others);
        return bytes;
    };
    let at = random.below(parts.len());
    match random.below(16) {
        0 => drop(parts.remove(at)),
        1 => parts.push(parts[at].clone()),
        2 => parts[at].deflated ^= true,
        3 => random.damage(&mut parts[at].name, &[]),
        4 => {
            let other = random.below(parts.len());
            parts.swap(at, other);
        }
        5 => {
            if let Some(other) = split(&others[random.below(others.len())]).filter(|o| !o.is_empty()) {
                parts.push(other[random.below(other.len())].clone());
            }
        }
        _ => damage(random, &mut parts[at], others),
    }
    build(random, &parts)
}
