//! Tokenizers on the corpus's own texts, where they are at hand, and on drawn sentences elsewhere.
//!
//! `TOKENS=FOLDER` leaves each tokenizer, the texts and their tokens there, for Python's `tokenizers` to look at.

use std::fs;
use std::path::Path;

use slt_run::config::{self, TokenizerKind};
use slt_run::text::Tokenizer;

fn texts() -> Vec<String> {
    let corpus = Path::new("../shared/data/lsa_t_meta.csv");
    if !corpus.exists() {
        let drawn = |i: usize| format!("¿el perro {} ve mañana {}?", i % 17, i * 7919 % 1000);
        return (0..500).map(drawn).collect();
    }
    let mut reader = csv::ReaderBuilder::new().delimiter(b';').from_path(corpus).unwrap();
    let column = reader.headers().unwrap().iter().position(|name| name == "text").unwrap();
    reader.records().map(|row| row.unwrap()[column].to_owned()).collect()
}

/// What a kind loses of a text.
fn kept(kind: TokenizerKind, text: &str) -> String {
    match kind {
        TokenizerKind::Word => text.split_whitespace().collect::<Vec<_>>().join(" "),
        TokenizerKind::Char => text.to_owned(),
        _ => text.strip_prefix(' ').unwrap_or(text).to_owned(),
    }
}

#[test]
fn tokens_of_the_corpus_are_its_texts() {
    let texts = texts();
    let all: Vec<&str> = texts.iter().map(String::as_str).collect();
    let out = std::env::var_os("TOKENS");
    for (name, kind, lowercase) in [
        ("unigram", TokenizerKind::Unigram, false),
        ("unigram_lowercase", TokenizerKind::Unigram, true),
        ("bpe", TokenizerKind::Bpe, false),
        ("word", TokenizerKind::Word, false),
        ("char", TokenizerKind::Char, true),
    ] {
        let c = config::Tokenizer { kind, lowercase, vocab_size: 60_000, ..config::Tokenizer::default() };
        let c = if matches!(kind, TokenizerKind::Unigram | TokenizerKind::Bpe) {
            config::Tokenizer { vocab_size: 8000, ..c }
        } else {
            c
        };
        let tokenizer = Tokenizer::train(&c, &all).unwrap();
        assert!(tokenizer.len() <= c.vocab_size);
        let ids: Vec<Vec<u32>> = all.iter().map(|text| tokenizer.encode(text)).collect();
        for (text, ids) in all.iter().zip(&ids) {
            let text = if lowercase { text.to_lowercase() } else { (*text).to_owned() };
            assert_eq!(tokenizer.decode(ids), kept(kind, &text), "{name}");
        }
        if let Some(out) = &out {
            let path = Path::new(out);
            fs::write(path.join(format!("{name}.json")), tokenizer.json()).unwrap();
            fs::write(path.join(format!("{name}.ids")), serde_json::to_string(&ids).unwrap()).unwrap();
            fs::write(path.join("texts.json"), serde_json::to_string(&all).unwrap()).unwrap();
        }
    }
}
