//! Images: segments changed, moved, doubled; sizes and scans that lie; entropy-coded data damaged.

use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use slt_run::Error;
use slt_run::data::ImageDecoder;

use crate::engine::Target;
use crate::files;
use crate::random::Random;

pub fn target() -> Target {
    let mut seeds = files("images", ".jpg");
    seeds.retain(|bytes| bytes.len() < 5000);
    for (i, factor) in
        [SamplingFactor::F_1_1, SamplingFactor::F_2_2, SamplingFactor::F_2_1, SamplingFactor::F_1_4]
            .into_iter()
            .enumerate()
    {
        for progressive in [false, true] {
            seeds.push(image(17 + 9 * i as u16, 24, factor, progressive, ColorType::Rgb));
        }
    }
    seeds.push(image(16, 16, SamplingFactor::F_1_1, false, ColorType::Luma));
    seeds.push(image(16, 16, SamplingFactor::F_1_1, true, ColorType::Cmyk));
    Target {
        name: "jpeg",
        file: "fuzzed.jpg",
        seeds,
        mutate,
        read,
        // A byte of pixels stands for up to 1024 of them: 3 bytes each, and 2 more a plane where they come in scans.
        memory: (16 << 10, 4 << 20),
        cures: true,
    }
}

fn image(width: u16, height: u16, factor: SamplingFactor, progressive: bool, colour: ColorType) -> Vec<u8> {
    let planes = match colour {
        ColorType::Luma => 1,
        ColorType::Cmyk => 4,
        _ => 3,
    };
    let pixels: Vec<u8> =
        (0..usize::from(width) * usize::from(height) * planes).map(|i| (i * 7 % 251) as u8).collect();
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 80);
    encoder.set_sampling_factor(factor);
    encoder.set_progressive(progressive);
    encoder.set_restart_interval(if progressive { 0 } else { 2 });
    encoder.encode(&pixels, width, height, colour).unwrap();
    bytes
}

fn read(path: &Path) -> Result<String, Error> {
    let mut out = vec![0; 24 * 24 * 3];
    ImageDecoder::default().read(path, 24, &mut out)?;
    Ok("an image".into())
}

/// Markers with their segments, each scan with its data.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match rest {
            [0xff, 0xd8 | 0xd9 | 0x01, ..] => 2,
            [0xff, 0xda, ..] => {
                let data = rest.windows(2).skip(2);
                let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7);
                data.take_while(|pair| !ends(pair)).count() + 2
            }
            [0xff, _, high, low, ..] => 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => 1,
        };
        let end = at + length.min(rest.len());
        parts.push(bytes[at..end].to_vec());
        at = end;
    }
    parts
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = split(bytes);
    if parts.len() < 3 || random.one_in(6) {
        let mut bytes = bytes.to_vec();
        random.damage(&mut bytes, others);
        return bytes;
    }
    // The first and the last mark stay most of the time.
    let at = 1 + random.below(parts.len() - 2);
    let of_kind = |parts: &[Vec<u8>], marks: &[u8]| {
        parts.iter().position(|part| part.get(1).is_some_and(|mark| marks.contains(mark)) && part[0] == 0xff)
    };
    match random.below(12) {
        0 => drop(parts.remove(at)),
        1 => parts.insert(at, parts[random.below(parts.len())].clone()),
        2 => {
            let other = 1 + random.below(parts.len() - 2);
            parts.swap(at, other);
        }
        3 => {
            let other = split(&others[random.below(others.len())]);
            let piece = random.range(other.len());
            parts.splice(at..at, other[piece].to_vec());
        }
        4 | 5 => {
            if let Some(frame) = of_kind(&parts, &[0xc0, 0xc1, 0xc2, 0xc3, 0xc9, 0xca]) {
                frame_lies(random, &mut parts[frame]);
            }
        }
        6 => {
            // Many scans.
            let scan = of_kind(&parts, &[0xda]).unwrap_or(at);
            let (scan_bytes, times) = (parts[scan].clone(), random.count(150));
            if scan_bytes.len() * times < 60_000 {
                parts.splice(scan..scan, std::iter::repeat_n(scan_bytes, times));
            }
        }
        7 => {
            let interval = random.odd().to_be_bytes();
            parts.insert(at, [&[0xff, 0xdd, 0, 4], &interval[6..]].concat());
        }
        8 => {
            let length = 2 + random.count(3000);
            let marker = [0xe0, 0xe1, 0xe2, 0xee, 0xfe, 0xdc, 0xc8, 0xcc][random.below(8)];
            let start = [&[0xff, marker], &(length as u16).to_be_bytes()[..]].concat();
            parts.insert(at, [start, vec![random.next() as u8; length - 2]].concat());
        }
        // Past the marker and the length.
        _ => {
            let most = parts[at].len().min(4);
            let head: Vec<u8> = parts[at].drain(..most).collect();
            random.damage(&mut parts[at], &[]);
            parts[at].splice(..0, head);
        }
    }
    parts.concat()
}

/// Another size, depth, number of planes, sampling or process.
fn frame_lies(random: &mut Random, frame: &mut [u8]) {
    let side = [random.odd() as u16, random.count(5000) as u16][random.below(2)].to_be_bytes();
    let (at, bytes): (usize, &[u8]) = match random.below(7) {
        0 => (5, &side),
        1 => (7, &side),
        2 => (4, &[12]),
        3 => (9, &[random.below(6) as u8]),
        4 => (1, &[[0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc9, 0xcb][random.below(7)]]),
        _ => (
            11 + 3 * random.below(4),
            &[[0x11, 0x22, 0x21, 0x12, 0x41, 0x44, 0x13, 0, 0xff][random.below(9)]],
        ),
    };
    for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}
