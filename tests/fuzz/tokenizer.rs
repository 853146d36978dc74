//! Tokenizers: the `tokenizer.json` that an experiment names, or that a checkpoint has.

use std::path::Path;

use slt_run::Error;
use slt_run::config::{self, TokenizerKind};
use slt_run::model::decoder::read_tokenizer;
use slt_run::text::Tokenizer;

use crate::engine::Target;
use crate::random::Random;

pub fn target() -> Target {
    let kinds = [TokenizerKind::Unigram, TokenizerKind::Bpe, TokenizerKind::Word, TokenizerKind::Char];
    let good = |kind| {
        let c = config::Tokenizer { kind, vocab_size: 60, lowercase: true, ..config::Tokenizer::default() };
        let texts = ["el perro ve la casa", "hoy la niña ve el perro", "¿dónde está?"];
        Tokenizer::train(&c, &texts).unwrap().json().as_bytes().to_vec()
    };
    Target {
        name: "tokenizer",
        file: "fuzzed.json",
        seeds: kinds.map(good).to_vec(),
        mutate,
        read,
        memory: (20_000, 64 << 20),
        cures: true,
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let tokenizer = read_tokenizer(path)?;
    let text = "el perro 日本 <eos> ve\u{0}▁ la  casa ";
    let tokens = tokenizer.encode(text);
    assert!(tokens.iter().all(|token| *token > 2), "{tokens:?}");
    let odd: Vec<u32> = (0..tokenizer.len() as u32 + 3).take(2000).collect();
    let said = [tokens.len(), tokenizer.decode(&tokens).len(), tokenizer.decode(&odd).len()];
    // What was read is what a checkpoint keeps.
    let again = Tokenizer::from_json(tokenizer.json()).unwrap();
    assert_eq!((again.encode(text), again.len(), again.sha1()), (tokens, tokenizer.len(), tokenizer.sha1()));
    Ok(format!("a tokenizer {said:?}"))
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [(&str, &str); 14] = [
        ("\"<pad>\"", "\"<eos>\""),
        ("\"<unk>\"", "\"\""),
        ("\"WordLevel\"", "\"BPE\""),
        ("\"BPE\"", "\"Unigram\""),
        ("\"Metaspace\"", "\"ByteLevel\""),
        ("\"Lowercase\"", "\"NFKC\""),
        (
            "\"truncation\":null",
            "\"truncation\":{\"direction\":\"Right\",\"max_length\":1,\"strategy\":\"LongestFirst\",\"stride\":3}",
        ),
        (
            "\"padding\":null",
            "\"padding\":{\"strategy\":{\"Fixed\":9},\"direction\":\"Left\",\"pad_to_multiple_of\":0,\"pad_id\":0,\"pad_type_id\":0,\"pad_token\":\"x\"}",
        ),
        ("\"unk_id\":3", "\"unk_id\":99999"),
        ("-", "1e308"),
        ("0.0", "-1e400"),
        ("[\\\\s\\\\S]", "(a*)*"),
        ("\"vocab\":", "\"merges\":"),
        ("\"merges\":[", "\"merges\":[[\"zz\",\"y\"],"),
    ];
    let text = String::from_utf8_lossy(bytes).into_owned();
    match random.below(4) {
        0 => {
            let (from, to) = PIECES[random.below(PIECES.len())];
            text.replacen(from, to, 1 + random.below(3)).into_bytes()
        }
        1 => {
            // A number somewhere becomes another one.
            let digits: Vec<usize> =
                text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
            let Some(at) = digits.get(random.below(digits.len())) else { return bytes.to_vec() };
            let odd = random.odd().to_string();
            [&text[..*at], &odd, &text[at + 1..]].concat().into_bytes()
        }
        2 => {
            let depth = random.count(3000);
            text.replacen("null", &format!("{}1{}", "[".repeat(depth), "]".repeat(depth)), 1).into_bytes()
        }
        _ => {
            let mut bytes = bytes.to_vec();
            random.damage(&mut bytes, others);
            bytes
        }
    }
}
