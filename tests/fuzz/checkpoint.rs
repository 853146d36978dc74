//! `.pt` files: the zip around them, and the object stream opcode by opcode.

use std::path::Path;

use slt_run::Error;
use slt_run::checkpoint::{Checkpoint, Value, load, model_state};

use crate::engine::Target;
use crate::random::Random;
use crate::{files, zips};

pub fn target() -> Target {
    let mut seeds = files("checkpoints", ".pt");
    seeds.retain(|bytes| load_bytes(bytes));
    let small: Vec<Vec<u8>> = [&b"\x80\x02}."[..], NESTED].map(wrap).into();
    seeds.extend(small);
    Target {
        name: "checkpoint",
        file: "fuzzed.pt",
        seeds,
        mutate: |random, bytes, others| zips::mutate(random, bytes, others, damage),
        read,
        memory: (300, 2 << 20),
        cures: true,
    }
}

/// A tensor of four floats twice, and an object of a class.
const NESTED: &[u8] = b"\x80\x02}q\x00(X\x01\0\0\0aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\0\0\0storage\
    ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQK\x00K\x02K\x02\x86K\x02K\x01\x86\x89ccollections\n\
    OrderedDict\n)Rtq\x03Rq\x04X\x01\0\0\0bh\x04X\x01\0\0\0cc__builtin__\nset\n]\x85Ru.";

fn wrap(pickle: &[u8]) -> Vec<u8> {
    let parts = [zips::Part::new("x/data.pkl", pickle), zips::Part::new("x/data/0", &[0x3f; 16])];
    // A seed under which nothing is forged: the first below 100 that gives the same file as the next.
    (0..100)
        .map(|seed| zips::build(&mut Random::new(seed, 0), &parts))
        .find(|bytes| load_bytes(bytes))
        .unwrap()
}

fn load_bytes(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    std::fs::write(&path, bytes).unwrap();
    load(&path).is_ok()
}

fn read(path: &Path) -> Result<String, Error> {
    let value = load(path)?;
    check(&value);
    let words = format!("{} {}", value.describe(), kinds(&value));
    model_state(path, value.clone())?;
    Checkpoint::from_value(path, value)?;
    Ok(words)
}

/// Every tensor has the bytes that its shape needs.
fn check(value: &Value) {
    match value {
        Value::Tensor(tensor) => {
            assert_eq!(tensor.numel().unwrap() * tensor.dtype.size(), tensor.data.len());
        }
        Value::List(items) | Value::Tuple(items) => items.iter().for_each(check),
        Value::Dict(items) => items.iter().for_each(|(key, value)| {
            check(key);
            check(value);
        }),
        _ => {}
    }
}

/// The kinds of values at the top, so that new ones are kept.
fn kinds(value: &Value) -> String {
    let Value::Dict(items) = value else { return String::new() };
    items.iter().take(20).map(|(_, value)| value.describe()).collect::<Vec<_>>().join(" ")
}

fn damage(random: &mut Random, part: &mut zips::Part, others: &[Vec<u8>]) {
    if !part.name.ends_with(b"data.pkl") || random.one_in(8) {
        return random.damage(&mut part.data, others);
    }
    let mut ops = split(&part.data);
    let at = random.below(ops.len());
    match random.below(9) {
        0 => drop(ops.drain(random.range(ops.len()))),
        1 => {
            let piece = ops[random.range(ops.len())].to_vec();
            ops.splice(at..at, piece);
        }
        2 => {
            let (piece, times) = (ops[random.range(ops.len())].to_vec(), random.count(300));
            if piece.len() * times < 20_000 {
                ops.splice(at..at, std::iter::repeat_n(piece, times).flatten());
            }
        }
        3 if !ops.is_empty() => random.damage(&mut ops[at], &[]),
        4 => {
            let other = random.below(ops.len());
            if !ops.is_empty() {
                ops.swap(at, other);
            }
        }
        5 => {
            let other = zips::split(&others[random.below(others.len())]).unwrap_or_default();
            if let Some(other) = other.iter().find(|part| part.name.ends_with(b"data.pkl")) {
                let other = split(&other.data);
                ops.splice(at..at, other[random.range(other.len())].to_vec());
            }
        }
        _ => {
            let count = 1 + random.count(8);
            let new: Vec<Vec<u8>> = (0..count).map(|_| opcode(random)).collect();
            ops.splice(at..at, new);
        }
    }
    part.data = ops.concat();
}

/// The opcodes of a stream with their arguments (`pickletools`); what is none stands alone.
fn split(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut ops, mut at) = (Vec::new(), 0);
    while at < stream.len() {
        let rest = &stream[at..];
        let number = |width: usize| {
            let bytes = rest.get(1..=width)?;
            Some(bytes.iter().rev().fold(0_usize, |all, byte| all << 8 | usize::from(*byte)))
        };
        let lines = |count: usize| {
            let ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(end, _)| end);
            ends.take(count).last()
        };
        let length = match rest[0] {
            b'K' | b'q' | b'h' | 0x80 => Some(2),
            b'M' => Some(3),
            b'J' | b'r' | b'j' => Some(5),
            b'G' | 0x95 => Some(9),
            0x8a | 0x8c | b'C' => number(1).map(|n| n.saturating_add(2)),
            b'X' | b'B' | 0x8b => number(4).map(|n| n.saturating_add(5)),
            0x8d | 0x8e | 0x96 => number(8).map(|n| n.saturating_add(9)),
            b'c' => lines(2).map(|end| end + 1),
            _ => Some(1),
        };
        let end = at + length.unwrap_or(1).min(rest.len());
        ops.push(stream[at..end].to_vec());
        at = end;
    }
    ops
}

/// An opcode of any protocol, those that no checkpoint has included, with an odd argument.
fn opcode(random: &mut Random) -> Vec<u8> {
    const ALONE: &[u8] = b"(.01N]})ltdaesubRQo2\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98";
    const NAMES: [&[u8]; 22] = [
        b"cos\nsystem\n",
        b"c__builtin__\neval\n",
        b"cbuiltins\ngetattr\n",
        b"ios\nsystem\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nBoolStorage\n",
        b"ctorch\nDoubleStorage\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy\nndarray\n",
        b"c_codecs\nencode\n",
        b"c__builtin__\nbytes\n",
        b"c__builtin__\nset\n",
        b"ctorch\ndevice\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"\x8c\x05torch\x8c\x04Size\x93",
        b"Pos.system\n",
        b"\x82\x01",
    ];
    const TEXTS: [&str; 10] = [
        "storage",
        "0",
        "1",
        "cpu",
        "model_state",
        "epoch",
        "f8",
        "i8",
        "../../etc/passwd",
        "\u{7f}ñ\u{1b}[2J",
    ];
    let op = |op: u8, argument: &[u8]| [&[op], argument].concat();
    let (value, few) = (random.odd().to_le_bytes(), random.below(12) as u8);
    match random.below(14) {
        0..=3 => vec![ALONE[random.below(ALONE.len())]],
        4 | 5 => random.pick(&NAMES).to_vec(),
        6 => op([b'K', b'q', b'h', 0x80][random.below(4)], &[few]),
        7 => op(b'M', &value[..2]),
        8 => op([b'J', b'r', b'j'][random.below(3)], &value[..4]),
        9 => op([b'G', 0x95][random.below(2)], &value),
        10 => op(0x8a, &[&[few.min(8)], &value[..usize::from(few.min(8))]].concat()),
        11 => {
            let text = random.pick(&TEXTS);
            op(b'X', &[&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat())
        }
        12 => {
            let bytes = vec![few; random.count(3000)];
            op(b'B', &[&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat())
        }
        // A length that lies.
        _ => op([0x8b, 0x8d, 0x8e, 0x96, b'X', b'B'][random.below(6)], &value),
    }
}
