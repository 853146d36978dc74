//! Checkpoint files that must not be read: programs, lies, bombs, damage.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rand::Rng;
use slt_run::checkpoint::{Value, load};
use slt_run::random::{Purpose, stream};
use zip::write::SimpleFileOptions;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// The message with which `path` is refused; it must be a data error that names the file.
fn refused(path: &Path) -> String {
    let error = load(path).expect_err("a file that must not be read");
    let text = error.to_string();
    assert_eq!(error.exit_code(), 3, "{text}");
    assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    text
}

#[test]
fn programs_and_old_formats_are_refused() {
    let text = refused(&data("checkpoints/evil.pt"));
    assert!(text.contains("it asks to run `posix.system`") && text.contains("hint:"), "{text}");
    let text = refused(&data("checkpoints/legacy.pt"));
    assert!(text.contains("old format") && text.contains("torch.save(torch.load("), "{text}");
    let text = refused(&data("checkpoints/script.pt"));
    assert!(text.contains("TorchScript"), "{text}");
}

#[test]
fn other_files_are_named_for_what_they_look_like() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    for (content, looks) in [
        (&b""[..], "it is empty"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        (b"\x80\x04N.", "a bare pickle"),
        (b"Salted__\x01\x02", "encrypted"),
        (b"\x00\x01\x02", "not a zip file"),
        (b"PK\x03\x04 and no more", "starts as a zip file"),
    ] {
        fs::write(&path, content).unwrap();
        let text = refused(&path);
        assert!(text.contains(looks), "{looks}: {text}");
    }
    assert!(refused(folder.path()).contains("not a regular file"));
    assert!(refused(&folder.path().join("none.pt")).contains("cannot be opened"));
}

/// A zip file with `pickle` and other entries, as a forger would make it.
fn forge(path: &Path, pickle: &[u8], entries: &[(&str, &[u8])], options: SimpleFileOptions) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, content) in [("x/data.pkl", pickle)].iter().chain(entries) {
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
}

fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)
}

/// The pickle of one f32 tensor; the numbers are `storage length, offset, size, stride`, each a pickled value.
fn tensor(numel: &[u8], offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu";
    [head, numel, b"tQ", offset, size, stride, b"\x89ccollections\nOrderedDict\n)RtR."].concat()
}

/// A class or function that no checkpoint needs, by every way that a pickle has to ask for one.
#[test]
fn every_way_to_name_a_class_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evil.pt");
    let names = "it asks to run `";
    let unknown = "is not one that PyTorch writes";
    let cases: [(&str, &[u8], &str); 22] = [
        ("GLOBAL", b"\x80\x02cos\nsystem\n.", names),
        ("GLOBAL of a method", b"\x80\x02cbuiltins\nstr.join\n.", names),
        ("a listed name of another module", b"\x80\x02cos\nOrderedDict\n.", names),
        ("a listed module's other name", b"\x80\x02ctorch\nload\n.", names),
        ("a name with spaces", b"\x80\x02ctorch \nSize\n.", names),
        ("a name with a NUL", b"\x80\x02ctorch\nSize\0\n.", names),
        ("an empty name", b"\x80\x02c\n\n.", names),
        ("a name of terminal codes", b"\x80\x02c\x1b[2J\nx\n.", names),
        ("STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", names),
        ("STACK_GLOBAL out of the memo", b"\x80\x04\x8c\x02os\x94\x8c\x04exec\x9400h\0h\x01\x93.", names),
        ("deep in other values", b"\x80\x02](]}(K\x01(Ncposix\nsystem\nttue.", names),
        ("as an argument of an allowed call", b"\x80\x02c__builtin__\nset\ncos\nsystem\n\x85R.", names),
        ("behind a value that is dropped", b"\x80\x02cos\nsystem\n0N.", names),
        ("INST", b"\x80\x02(ios\nsystem\n.", unknown),
        ("OBJ", b"\x80\x02(cos\nsystem\no.", names),
        ("OBJ of an allowed class", b"\x80\x02(c__builtin__\nset\no.", unknown),
        ("NEWOBJ_EX", b"\x80\x04c__builtin__\nset\n)}\x92.", unknown),
        ("EXT1", b"\x80\x02\x82\x01.", unknown),
        ("EXT4", b"\x80\x02\x84\x01\0\0\0.", unknown),
        ("PERSID", b"\x80\x02Pos.system\n.", unknown),
        ("NEXT_BUFFER", b"\x80\x05\x97.", unknown),
        ("a text opcode of protocol 0", b"S'os'\n.", unknown),
    ];
    for (what, pickle, says) in cases {
        forge(&path, pickle, &[], stored());
        let text = refused(&path);
        assert!(text.contains(says) && text.contains("hint: "), "{what}: {text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\0'), "{what}: {text}");
    }
}

/// Calls of what is allowed with what is not meant for it: nothing is made, or a plain value.
#[test]
fn allowed_names_do_only_what_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.pt");
    let read = |pickle: &[u8]| {
        forge(&path, pickle, &[], stored());
        load(&path).map_err(|error| error.to_string())
    };
    // Attributes and items of opaque classes are looked over, and they stay opaque.
    for pickle in [
        &b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\0\0\0aK\x01sb."[..],
        b"\x80\x02c__builtin__\nset\n]\x85R.",
        b"\x80\x02cpathlib\nPosixPath\nX\x01\0\0\0/X\x0a\0\0\0etc/passwd\x86R.",
    ] {
        assert!(matches!(read(pickle), Ok(Value::Opaque(_))), "{pickle:?}");
    }
    for (what, pickle) in [
        ("a number is called", &b"\x80\x02K\x01)R."[..]),
        ("a string is called", b"\x80\x02X\x02\0\0\0os)R."),
        ("a class with a list for arguments", b"\x80\x02c__builtin__\nset\n]R."),
        ("an ordered dict with items", b"\x80\x02ccollections\nOrderedDict\n]\x85R."),
        ("bytes of a size", b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R."),
        ("a size that is a dict", b"\x80\x02ctorch\nSize\n}\x85R."),
        ("a parameter that is a number", b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01K\x01}\x87R."),
        ("a tensor without a storage", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\0))tR."),
        ("a storage is called", b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R."),
        ("a text that is no byte string", b"\x80\x02c_codecs\nencode\nX\x02\0\0\0\xc5\x81\x85R."),
        ("attributes of a list", b"\x80\x02]}b."),
        ("attributes of a class", b"\x80\x02c__builtin__\nset\n}b."),
        ("items into a tuple", b"\x80\x02)Na."),
        ("items into a class", b"\x80\x02c__builtin__\nset\nNa."),
        ("a reference that is no storage", b"\x80\x02X\x01\0\0\0aQ."),
        (
            "a storage of another class",
            b"\x80\x02(X\x07\0\0\0storagec__builtin__\nset\nX\x01\0\0\x000NK\x01tQ.",
        ),
        (
            "a storage of negative length",
            b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NJ\xff\xff\xff\xfftQ.",
        ),
    ] {
        assert!(read(pickle).is_err(), "{what}");
    }
    // Numbers of any size are read, those beyond 64 bits as nothing of use.
    let long = [&b"\x80\x02\x8b\0\0\x10\0"[..], &vec![0x77; 1 << 20], b"."].concat();
    assert!(matches!(read(&long), Ok(Value::Opaque(_))));
}

#[test]
fn lying_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged.pt");
    let entries: &[(&str, &[u8])] = &[("x/data/0", &[0; 16])];
    let read = |pickle: &[u8]| {
        forge(&path, pickle, entries, stored());
        load(&path)
    };
    // Four floats, as two by two.
    let good = tensor(b"K\x04", b"K\0", b"K\x02K\x02\x86", b"K\x02K\x01\x86");
    assert!(matches!(read(&good), Ok(Value::Tensor(t)) if t.shape == [2, 2]));
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let pair = |n: &[u8]| [b"K\x02", n, b"\x86"].concat();
    for (why, pickle) in [
        ("longer than the storage", tensor(b"K\x04", b"K\0", b"K\x05\x85", b"K\x01\x85")),
        ("starts behind it", tensor(b"K\x04", b"K\x04", b"K\x01\x85", b"K\x01\x85")),
        ("starts before it", tensor(b"K\x04", b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85")),
        ("strides past the end", tensor(b"K\x04", b"K\0", b"K\x02K\x02\x86", b"K\x03K\x01\x86")),
        ("negative stride", tensor(b"K\x04", b"K\x03", b"K\x02\x85", b"J\xff\xff\xff\xff\x85")),
        ("negative size", tensor(b"K\x04", b"K\0", b"J\xff\xff\xff\xff\x85", b"K\x01\x85")),
        ("one stride for two sizes", tensor(b"K\x04", b"K\0", b"K\x02K\x02\x86", b"K\x01\x85")),
        ("storage says more", tensor(b"K\x05", b"K\0", b"K\x04\x85", b"K\x01\x85")),
        ("storage says far more", tensor(huge, b"K\0", b"K\x04\x85", b"K\x01\x85")),
        ("offset overflows", tensor(b"K\x04", huge, b"K\x04\x85", b"K\x01\x85")),
        ("size overflows", tensor(b"K\x04", b"K\0", &pair(huge), b"K\0K\0\x86")),
        ("stride overflows", tensor(b"K\x04", b"K\0", b"K\x02K\x03\x86", &pair(huge))),
        ("one element shown 2^32 times", tensor(b"K\x04", b"K\0", b"\x8a\x05\0\0\0\0\x01\x85", b"K\0\x85")),
        ("size is text", tensor(b"K\x04", b"K\0", b"X\x01\0\0\x004\x85", b"K\x01\x85")),
    ] {
        let text = read(&pickle).expect_err(why).to_string();
        let says = ["a tensor", "storage", "far more data"];
        assert!(says.iter().any(|says| text.contains(says)) && !text.contains("damaged"), "{why}: {text}");
    }
    // Another storage is named, with a way out of the folder.
    let mut outside = good.clone();
    let key = outside.windows(6).position(|w| w == b"X\x01\0\0\x000").unwrap();
    outside.splice(key..key + 6, *b"X\x05\0\0\0../..");
    forge(&path, &outside, entries, stored());
    assert!(refused(&path).contains("storage `../..` is missing"));
}

/// A view with PyTorch's negative or conjugate bit (`torch._utils.get_tensor_metadata`) is not what is stored.
#[test]
fn views_with_a_lazy_bit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.pt");
    let plain = tensor(b"K\x04", b"K\0", b"K\x04\x85", b"K\x01\x85");
    let with = |metadata: &[u8]| [&plain[..plain.len() - 3], metadata, b"tR."].concat();
    let read = |pickle: &[u8]| {
        forge(&path, pickle, &[("x/data/0", &[0x3f; 16])], stored());
        load(&path)
    };
    let expected = read(&plain).unwrap();
    for harmless in [&b"N"[..], b"}", b"}X\x03\0\0\0neg\x89s", b"}(X\x03\0\0\0neg\x89X\x04\0\0\0conj\x89u"] {
        assert_eq!(read(&with(harmless)).unwrap(), expected);
    }
    for marked in [
        &b"}X\x03\0\0\0neg\x88s"[..],
        b"}X\x04\0\0\0conj\x88s",
        b"}(X\x04\0\0\0conj\x89X\x03\0\0\0neg\x88u",
        b"}X\x05\0\0\0other\x88s",
        b"}X\x03\0\0\0negK\x01s",
        b"\x88",
    ] {
        let text = read(&with(marked)).unwrap_err().to_string();
        assert!(text.contains("negated") && text.contains("resolve_neg()"), "{text}");
    }
}

#[test]
fn small_files_cannot_describe_huge_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.pt");
    // Lists that hold the list before twice, thirty deep; a list in itself; a dict in a dict, a million deep.
    let mut doubling = b"\x80\x02]q\0".to_vec();
    for _ in 0..30 {
        doubling.extend(b"0](h\0h\0eq\0");
    }
    doubling.push(b'.');
    let endless = b"\x80\x02]q\0h\0a.".to_vec();
    let deep = [b"\x80\x02".to_vec(), b"]".repeat(1_000_000), b"a".repeat(999_999), b".".to_vec()].concat();
    let mut long = b"\x80\x02](X\x10\x27\0\0".to_vec();
    long.extend([b'a'; 10_000]);
    long.extend(b"q\0".iter().chain(b"h\0".repeat(1000).iter()).chain(b"e."));
    // The same doubling in tuples and dicts, and a dict that is its own value.
    let mut tuples = b"\x80\x02)q\0".to_vec();
    tuples.extend(b"0h\0h\0\x86q\0".repeat(40));
    tuples.push(b'.');
    let mut dicts = b"\x80\x02}q\0".to_vec();
    dicts.extend(b"0}(K\0h\0K\x01h\0uq\0".repeat(40));
    dicts.push(b'.');
    let own = b"\x80\x02}q\0K\0h\0s.".to_vec();
    for (pickle, says) in [
        (&tuples, "far more data than it holds"),
        (&dicts, "far more data than it holds"),
        (&own, "nest deeper"),
        (&doubling, "far more data than it holds"),
        (&endless, "nest deeper"),
        (&deep, "nest deeper"),
        (&long, "far more data than it holds"),
    ] {
        forge(&path, pickle, &[], stored());
        let text = refused(&path);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn forged_archives_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged.pt");
    let none = b"\x80\x02N.";
    forge(&path, none, &[("x/byteorder", b"little"), ("x/version", b"3\n")], stored());
    assert_eq!(load(&path).unwrap(), Value::None);
    forge(&path, none, &[("x/byteorder", b"big")], stored());
    assert!(refused(&path).contains("big-endian"));
    forge(&path, none, &[("y/data.pkl", none)], stored());
    assert!(refused(&path).contains("two folders"));
    let deflated = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    forge(&path, &[none, &[0; 1000][..]].concat(), &[], deflated);
    assert!(refused(&path).contains("compressed"));

    let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
    zip.start_file("notes.txt", stored()).unwrap();
    zip.finish().unwrap();
    assert!(refused(&path).contains("no data.pkl"));

    // Two entries of one name, and two entries on the same bytes.
    forge(&path, none, &[("x/data/0", b"abcd"), ("x/data/1", b"abcd")], stored());
    let honest = fs::read(&path).unwrap();
    let twice = replace_all(&honest, b"x/data/1", b"x/data/0");
    fs::write(&path, twice).unwrap();
    assert!(refused(&path).contains("same name"));
    let entry = |name: &[u8]| honest.windows(8).rposition(|w| w == name).unwrap();
    let mut shared = honest.clone();
    // The local header's offset stands in the 4 bytes before the name in the directory.
    let (zero, one) = (entry(b"x/data/0"), entry(b"x/data/1"));
    shared.copy_within(zero - 4..zero, one - 4);
    fs::write(&path, shared).unwrap();
    assert!(refused(&path).contains("overlap"));
    // A byte of a tensor changed.
    let good = tensor(b"K\x01", b"K\0", b")", b")");
    forge(&path, &good, &[("x/data/0", b"WXYZ")], stored());
    let flipped = replace_all(&fs::read(&path).unwrap(), b"WXYZ", b"WXYW");
    fs::write(&path, flipped).unwrap();
    let text = refused(&path);
    assert!(text.contains("`x/data/0` is damaged") && text.to_lowercase().contains("checksum"), "{text}");
}

fn replace_all(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    while let Some(at) = out.windows(from.len()).position(|w| w == from) {
        out.splice(at..at + from.len(), to.iter().copied());
    }
    out
}

#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    let whole = fs::read(data("checkpoints/odd_protocol_2.pt")).unwrap();
    for length in (0..whole.len()).step_by(37) {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&path);
    }
}

/// Whatever is done to a file, reading it returns. The seed is fixed, so a failure repeats.
#[test]
fn mutated_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mutated.pt");
    let mut random = stream(7, Purpose::Demo, [0, 0]);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let files =
        ["odd_protocol_2.pt", "odd_protocol_4.pt"].map(|f| fs::read(data("checkpoints").join(f)).unwrap());
    for file in &files {
        let directory = file.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        for round in 0..3000 {
            let mut bytes = file.clone();
            for _ in 0..=below(4) {
                // Headers and the directory are as likely as the rest.
                let at = if round % 2 == 0 {
                    below(bytes.len())
                } else {
                    directory + below(bytes.len() - directory)
                };
                bytes[at] = [below(256) as u8, 0, 0xff, bytes[at] ^ (1 << below(8))][below(4)];
            }
            // Writing over a file waits for the disk on some file systems; a new one does not.
            fs::write(&path, &bytes).unwrap();
            drop(load(&path));
            fs::remove_file(&path).unwrap();
        }
    }
    // Behind the checksum, where the reader itself is hit: the object stream is forged whole.
    let mut stream = Vec::new();
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&files[0])).unwrap();
    std::io::Read::read_to_end(&mut archive.by_name("odd_protocol_2/data.pkl").unwrap(), &mut stream)
        .unwrap();
    for _ in 0..3000 {
        let mut pickle = stream.clone();
        for _ in 0..=below(3) {
            let at = below(pickle.len());
            match below(4) {
                0 => pickle.truncate(at.max(1)),
                1 => pickle.insert(at, below(256) as u8),
                2 => drop(pickle.remove(at)),
                _ => pickle[at] = below(256) as u8,
            }
        }
        forge(&path, &pickle, &[("x/data/0", &[0; 96]), ("x/data/1", &[0; 48])], stored());
        drop(load(&path));
        fs::remove_file(&path).unwrap();
    }
}
