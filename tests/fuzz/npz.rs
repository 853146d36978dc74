//! Poses: the zip around them, and the npy header.

use std::path::Path;

use slt_run::Error;
use slt_run::data::read_pose;

use crate::engine::Target;
use crate::random::Random;
use crate::zips::{self, Part};

const LANDMARKS: usize = 2;

pub fn target() -> Target {
    let npy = |descr: &str, fortran: &str, shape: &str, data: &[u8]| header(1, descr, fortran, shape, data);
    let arrays = [
        npy("'<f4'", "False", "(4, 6)", &[0; 96]),
        npy("'>f8'", "False", "(1, 2, 3)", &[0; 48]),
        npy("'<f2'", "True", "(3, 6)", &[0; 36]),
        npy("'<f4'", "False", "(0, 6)", &[]),
        header(2, "'<f4'", "True", "(500, 2, 3)", &[0; 12000]),
    ];
    let seeds = arrays.iter().flat_map(|npy| [false, true].map(|deflated| whole(npy, deflated)));
    Target {
        name: "npz",
        file: "fuzzed.npz",
        seeds: seeds.collect(),
        mutate: |random, bytes, others| zips::mutate(random, bytes, others, damage),
        read,
        // A byte inflates to 1032; halves to four bytes each, twice where the order is Fortran's.
        memory: (1032 * 4, 1 << 20),
        cures: true,
    }
}

/// A file without a lie.
fn whole(npy: &[u8], deflated: bool) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let method = if deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    writer.start_file("pose.npy", options).unwrap();
    std::io::Write::write_all(&mut writer, npy).unwrap();
    writer.finish().unwrap().into_inner()
}

fn header(version: u8, descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let length = (dict.len() as u32).to_le_bytes();
    let width = if version == 1 { 2 } else { 4 };
    [b"\x93NUMPY", &[version, 0][..], &length[..width], dict.as_bytes(), data].concat()
}

fn read(path: &Path) -> Result<String, Error> {
    let pose = read_pose(path, LANDMARKS)?;
    assert_eq!(pose.values.len(), pose.rows * 3 * LANDMARKS);
    assert!(pose.values.iter().all(|value| value.is_finite()));
    Ok(format!("{} rows", if pose.rows == 0 { "no" } else { "some" }))
}

fn damage(random: &mut Random, part: &mut Part, others: &[Vec<u8>]) {
    if random.one_in(3) {
        return random.damage(&mut part.data, others);
    }
    const DESCR: [&str; 14] = [
        "'<f4'",
        "'>f4'",
        "'<f8'",
        "'<f2'",
        "'|O'",
        "'<i8'",
        "'<f16'",
        "'<U9999999999'",
        "[('a', '<f4')]",
        "[('a', [('b', '<f4', (3, 4))])]",
        "'f'",
        "''",
        "3",
        "'<f99999999999999999999'",
    ];
    const ORDER: [&str; 5] = ["False", "True", "None", "1", "()"];
    let odd = random.odd();
    let shapes = [
        "(4, 6)".to_owned(),
        "(4, 2, 3)".to_owned(),
        "()".to_owned(),
        format!("({odd}, 6)"),
        format!("({}, 2, 3)", odd >> 20),
        format!("(0, {odd})"),
        format!("({odd}, {odd}, 3)"),
        format!("(-{odd}, 6)"),
        format!("({})", "1, ".repeat(random.count(1500))),
        format!("{}4, 6{}", "(".repeat(random.count(1500)), ")".repeat(random.count(1500))),
        format!("({}, 6)", random.count(60_000)),
    ];
    let shape = &shapes[random.below(shapes.len())];
    let data = if random.one_in(4) { vec![0; random.count(2 << 20)] } else { vec![0; random.count(2000)] };
    let version = if random.one_in(6) { random.below(256) as u8 } else { 1 + random.below(3) as u8 };
    part.data = header(version, random.pick(&DESCR), random.pick(&ORDER), shape, &data);
    part.deflated |= data.len() > 10_000;
}
