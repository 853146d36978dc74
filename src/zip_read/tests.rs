//! Tests of the zip reader: good files of another writer, and every lie that one field can tell.

use super::*;
use std::io::{Cursor, Write};
use zip::CompressionMethod;

fn zip_of(entries: &[(&str, &[u8])], method: CompressionMethod, large: bool) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method).large_file(large);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.set_comment("a comment").unwrap();
    writer.finish().unwrap().into_inner()
}

fn read(bytes: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let mut zip = Zip::open(Cursor::new(bytes)).map_err(|fault| fault.to_string())?;
    let mut read = Vec::new();
    let entry = zip.read(name).map_err(|fault| fault.to_string())?;
    entry.ok_or("no such entry")?.read_to_end(&mut read).map_err(|error| error.to_string())?;
    Ok(read)
}

const TWO: [(&str, &[u8]); 2] = [("b/x", &[7; 5000]), ("a", b"one")];

#[test]
fn both_methods_and_zip64_are_read() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        for large in [false, true] {
            let bytes = zip_of(&TWO, method, large);
            for (name, content) in TWO {
                assert_eq!(read(&bytes, name).unwrap(), content);
            }
            assert_eq!(read(&bytes, "c").unwrap_err(), "no such entry");
            assert_eq!(Zip::open(Cursor::new(&bytes)).unwrap().names().collect::<Vec<_>>(), ["a", "b/x"]);
        }
    }
    assert_eq!(read(&zip_of(&[("e", b"")], CompressionMethod::Stored, false), "e").unwrap(), b"");
}

/// Each lie changes one field of a good file: (record, offset in it, bytes).
#[test]
fn every_lie_is_found() {
    let good = zip_of(&[("a", &[7; 5000]), ("b", b"two")], CompressionMethod::Deflated, false);
    let at = |magic: u32| good.windows(4).position(|bytes| bytes == magic.to_le_bytes()).unwrap();
    let (local, central, end) = (at(LOCAL), at(CENTRAL), at(END));
    let lies: [(&str, usize, &[u8], &str); 15] = [
        ("size", central + 24, &[0x89], "more bytes than it says"),
        ("size below", central + 24, &[0x87], "more bytes than it says"),
        ("size above", central + 24, &[0x89, 0x13], "end too early"),
        ("size of a bomb", central + 24, &[0, 0, 0, 0x7f], "cannot hold"),
        ("64-bit size", central + 24, &[0xff; 4], "64-bit size is missing"),
        ("packed size", central + 20, &[0xff, 0xff, 0, 0], "overlap"),
        ("start", central + 42, &[0xff, 0xff, 0xff, 0x7f], "overlap"),
        ("start in itself", central + 42, &[1], "overlap"),
        ("checksum", central + 16, &[1, 2, 3, 4], "checksum"),
        ("method", central + 10, &[12], "method 12"),
        ("encrypted", central + 8, &[1], "encrypted"),
        ("name", central + 46, b"c", "no such entry"),
        ("its header's name", local + 30, b"z", "belongs to something else"),
        ("entries", end + 8, &[0xff, 0x7f, 0xff, 0x7f], "does not fit"),
        ("directory", end + 16, &[0, 0, 0, 0], "breaks off"),
    ];
    for (what, place, bytes, says) in lies {
        let mut forged = good.clone();
        forged[place..place + bytes.len()].copy_from_slice(bytes);
        if what == "size" || what == "size below" {
            forged[place] = if what == "size" { 0x80 } else { 0x01 };
        }
        let error = read(&forged, "a").expect_err(what);
        assert!(error.contains(says), "{what}: {error}");
    }
}

#[test]
fn names_and_bytes_belong_to_one_entry() {
    let good = zip_of(&[("a", b"one"), ("b", b"two")], CompressionMethod::Stored, false);
    let second = good.windows(4).rposition(|bytes| bytes == CENTRAL.to_le_bytes()).unwrap();
    let mut twice = good.clone();
    twice[second + 46] = b'a';
    assert!(read(&twice, "a").unwrap_err().contains("same name"));
    let mut shared = good;
    shared[second + 42..second + 46].fill(0);
    assert!(read(&shared, "a").unwrap_err().contains("overlap"));
}

#[test]
fn zip64_records_that_lie_cost_nothing() {
    let mut bytes = zip_of(&[("a", b"one")], CompressionMethod::Stored, false);
    bytes.truncate(bytes.len() - END_BYTES - "a comment".len());
    let record = bytes.len() as u64;
    let far = 1_u64 << 62;
    for (entries, size, start) in
        [(far, far, 0), (1 << 20, 46 << 20, 1 << 40), (1, 47, u64::MAX), (2, 47, 31)]
    {
        let mut forged = bytes.clone();
        forged.extend(END_64.to_le_bytes());
        forged.extend(44_u64.to_le_bytes());
        forged.extend([0; 12]);
        for field in [entries, entries, size, start] {
            forged.extend(field.to_le_bytes());
        }
        for place in [record, far, record - 1] {
            let mut forged = forged.clone();
            forged.extend(LOCATOR_64.to_le_bytes());
            forged.extend([0; 4]);
            forged.extend(place.to_le_bytes());
            forged.extend(1_u32.to_le_bytes());
            forged.extend(END.to_le_bytes());
            forged.extend([0; 18]);
            assert!(read(&forged, "a").is_err());
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let good = zip_of(&TWO, CompressionMethod::Deflated, false);
    for length in 0..good.len() {
        assert!(read(&good[..length], "a").is_err(), "{length}");
    }
}
