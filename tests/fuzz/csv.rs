//! Metadata and indices: delimiters, quotes, encodings, ids that reach outside.

use std::path::Path;

use slt_run::data::{Source, read_index, read_metadata};
use slt_run::{Error, ErrorKind};

use crate::engine::Target;
use crate::random::Random;

pub fn target() -> Target {
    let seeds = [
        "video_id;texto\na;uno\nb;\"dos; o \"\"tres\"\"\"\n",
        "id,label,x\r\nclip_1,uno,\r\nclip_2,dos,z\r\n",
        "\u{feff}texto,VIDEO_ID\nuno,a\nuno,b\nUNO ,a\n",
        "video_id\nclip_1\nclip_2\n",
        "clip_1\n",
    ];
    Target {
        name: "csv",
        file: "fuzzed.csv",
        seeds: seeds.map(|text| text.as_bytes().to_vec()).into(),
        mutate,
        read,
        memory: (150, 1 << 20),
        cures: true,
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let source = Source { key: "data.metadata_csv", path };
    let index = read_index(&source);
    if let Ok(index) = &index {
        for id in &index.ids {
            let name = Path::new(path.parent().unwrap()).join(format!("{id}_f1.jpg"));
            assert_eq!(name.parent(), path.parent(), "{id:?}");
            assert!(!id.contains(['/', '\\', '\0', '\n']), "{id:?}");
        }
    }
    let metadata = read_metadata(&source);
    // Which of the two was at fault is part of what was said.
    let said = match (&index, &metadata) {
        (Ok(index), Ok(metadata)) => {
            format!("both {} {}", index.warnings.join(" "), metadata.warnings.join(" "))
        }
        (Ok(_), _) => "an index".into(),
        (_, Ok(_)) => "metadata".into(),
        _ => String::new(),
    };
    let fail = |problems| Error { kind: ErrorKind::Data, problems };
    match (index, metadata) {
        (Err(problems), Err(_)) => Err(fail(problems)),
        (Ok(_), Err(problems)) if problems.iter().any(|p| !p.what.contains("no column")) => {
            Err(fail(problems))
        }
        _ => Ok(said),
    }
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [&[u8]; 24] = [
        b";",
        b",",
        b"\"",
        b"\"\"",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b" ",
        b"\xc2\x85",
        b"\x1c",
        b"../a",
        b"/etc/passwd",
        b"a\\b",
        b"..",
        b".",
        b"video_id",
        b"texto",
        b"\"a\nb\"",
        b"clip_1",
        b"\xe2\x80\xae\xe2\x80\xa8",
    ];
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    match random.below(9) {
        0 if !lines.is_empty() => drop(lines.remove(at)),
        1 if !lines.is_empty() => lines.insert(at, lines[random.below(lines.len())].clone()),
        2 if !lines.is_empty() => {
            let (line, times) = (lines[at].clone(), random.count(4000));
            if line.len() * times < 100_000 {
                lines.splice(at..at, std::iter::repeat_n(line, times));
            }
        }
        // Thousands of ids of their own.
        3 => {
            let count = random.count(5000);
            let delimiter = random.pick(&["", ";x", ",x"]);
            let ids = (0..count).map(|n| format!("{n}{delimiter}\n").into_bytes());
            lines.extend(ids);
        }
        4 => {
            let piece = random.pick(&PIECES).repeat(1 + random.count(20_000));
            let mut bytes = lines.concat();
            let at = random.below(bytes.len() + 1);
            bytes.splice(at..at, piece);
            return bytes;
        }
        5..=7 if !lines.is_empty() => {
            let line = &mut lines[at];
            let place = random.range(line.len());
            line.splice(place, random.pick(&PIECES).to_vec());
        }
        _ => {
            let mut bytes = bytes.to_vec();
            random.damage(&mut bytes, others);
            return bytes;
        }
    }
    lines.concat()
}
