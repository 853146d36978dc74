//! Tokens: how texts become numbers and back, as Hugging Face's `tokenizer.json` says.
//!
//! Training, encoding and decoding are the crate `tokenizers`', so that Python's `tokenizers` gives the same numbers from the
//! same file. What is ours is that the same texts give the same file, to the byte, in every process and on any number of
//! threads.
//!
//! What a kind loses of a text, and a translation can therefore not have:
//!
//! | kind | text |
//! |---|---|
//! | `unigram`, `bpe` | a space at its beginning; `▁` is a space; characters that no training text has |
//! | `word` | which white space, and how much, is between words; words that no training text has |
//! | `char` | characters that no training text has |
//!
//! `lowercase` loses capitals.

mod train;

use std::str::FromStr;

use sha1::{Digest, Sha1};

use crate::config;
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::guard::guarded;
use crate::input::hexadecimal;

/// Fills texts up to the length of others.
pub const PAD: u32 = 0;
/// Begins each text.
pub const BOS: u32 = 1;
/// Ends each text.
pub const EOS: u32 = 2;
/// Stands for what no token stands for.
pub const UNK: u32 = 3;

/// The tokens that are not a text's, by their numbers.
pub const SPECIAL_TOKENS: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<unk>"];

/// More tokens than any tokenizer has.
const MOST_TOKENS: usize = 1 << 21;

/// What makes tokens of texts, and texts of tokens.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    tokens: usize,
    json: String,
}

impl Tokenizer {
    /// Trains one on `texts`.
    ///
    /// # Errors
    /// Of kind `Data` where the texts have no two different words; of kind `Config` where `vocab_size` has no room for
    /// their characters.
    pub fn train(c: &config::Tokenizer, texts: &[&str]) -> Result<Self> {
        let trained = guarded(|| train::train(c, texts)).unwrap_or_else(|panic| Err(failed(panic)))?;
        let json = trained.to_string(false).map_err(failed)?;
        Self::from_json(&json)
    }

    /// Reads a `tokenizer.json`. Its padding, its truncation and what it puts around a text are left out.
    ///
    /// # Errors
    /// Of kind `Data` where it is none, or has not the tokens [`SPECIAL_TOKENS`] at their places.
    pub fn from_json(json: &str) -> Result<Self> {
        let read = guarded(|| tokenizers::Tokenizer::from_str(json).map_err(|error| error.to_string()));
        let mut inner = read.and_then(|read| read).map_err(|why| {
            Error::data("it is no tokenizer.json")
                .cause(short(&why))
                .hint("Hugging Face's tokenizers writes one: tokenizer.save(\"tokenizer.json\")")
        })?;
        let tokens = check(&inner)?;
        let mut json = json.to_owned();
        if inner.get_truncation().is_some() || inner.get_padding().is_some() {
            inner.with_truncation(None).map_err(failed)?;
            inner.with_padding(None);
            json = inner.to_string(false).map_err(failed)?;
        }
        // A text that has `<eos>` in it is no text that ends there.
        inner.set_encode_special_tokens(true);
        Ok(Self { inner, tokens, json })
    }

    /// The tokens of a text, without those that begin and end it; never one of these.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoded = guarded(|| self.inner.encode_fast(text, false));
        let Ok(Ok(encoded)) = encoded else { return vec![UNK] };
        encoded.get_ids().iter().map(|&id| if id < UNK { UNK } else { id }).collect()
    }

    /// The text of tokens. Those that are no text's, [`UNK`] among them, are left out.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let of_text: Vec<u32> = tokens.iter().copied().filter(|&token| token > UNK).collect();
        let decoded = guarded(|| self.inner.decode(&of_text, true));
        decoded.ok().and_then(std::result::Result::ok).unwrap_or_default()
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// The `tokenizer.json`.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The SHA-1 of [`Self::json`], in hexadecimal digits.
    #[must_use]
    pub fn sha1(&self) -> String {
        hexadecimal(&Sha1::digest(self.json.as_bytes()))
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::data("the tokenizer cannot be made")
        .cause(short(&why.to_string()))
        .hint("take another tokenizer.kind, or another tokenizer.file where one is set")
}

/// What fits a message of a reason that may quote a file.
fn short(why: &str) -> String {
    const MOST: usize = 300;
    match why.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", why.get(..end).unwrap_or_default()),
        None => why.to_owned(),
    }
}

/// How many tokens a tokenizer has, where the network can work with them.
fn check(inner: &tokenizers::Tokenizer) -> Result<usize> {
    let mut problems = Vec::new();
    for (place, token) in (0_u32..).zip(SPECIAL_TOKENS) {
        let what = match inner.token_to_id(token) {
            Some(id) if id == place => continue,
            Some(id) => format!("its token {token} is number {id}, not {place}"),
            None => format!("it has no token {token}, which must be number {place}"),
        };
        problems.push(Problem::new(what).hint(format!(
            "train it with special_tokens = {SPECIAL_TOKENS:?}, in this order, or leave tokenizer.file out"
        )));
    }
    Error::all(ErrorKind::Data, problems)?;
    let mut ids: Vec<u32> = inner.get_vocab(true).into_values().collect();
    ids.sort_unstable();
    ids.dedup();
    let hole = (0_u32..).zip(&ids).find(|(expected, id)| expected != *id);
    if let Some((missing, _)) = hole {
        return Err(Error::data(format!("it has no token of number {missing}, and others after it"))
            .hint("the numbers of a tokenizer's tokens go from 0 without a gap"));
    }
    if ids.len() > MOST_TOKENS {
        return Err(Error::data(format!("it has {} tokens, more than {MOST_TOKENS}", ids.len()))
            .hint("is it the right file?"));
    }
    Ok(ids.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenizerKind;

    const TEXTS: [&str; 6] = [
        "¿cómo están? yo soy la intérprete, y en el equipo somos muchos.",
        "y además, incorpora un clip nasal.",
        "nos mando sus fotos del eclipse, es nuestro regalo para ustedes.",
        "el equipo soñó con el eclipse: ¡qué regalo!",
        "日本 語 y 😀 con\u{a0}espacio",
        "el equipo soñó, soñó y soñó",
    ];

    const KINDS: [TokenizerKind; 4] =
        [TokenizerKind::Unigram, TokenizerKind::Bpe, TokenizerKind::Word, TokenizerKind::Char];

    fn c(kind: TokenizerKind) -> config::Tokenizer {
        config::Tokenizer { kind, vocab_size: 300, ..config::Tokenizer::default() }
    }

    fn refused(c: &config::Tokenizer, texts: &[&str]) -> Error {
        Tokenizer::train(c, texts).expect_err("such a tokenizer is refused")
    }

    #[test]
    fn texts_come_back_and_the_file_says_the_same() {
        for kind in KINDS {
            let tokenizer = Tokenizer::train(&c(kind), &TEXTS).unwrap();
            let again = Tokenizer::from_json(tokenizer.json()).unwrap();
            assert_eq!((again.json(), again.len()), (tokenizer.json(), tokenizer.len()));
            for text in TEXTS {
                let tokens = tokenizer.encode(text);
                assert!(
                    tokens.iter().all(|&token| token > UNK && (token as usize) < tokenizer.len()),
                    "{kind}"
                );
                let text =
                    if kind == TokenizerKind::Word { text.replace('\u{a0}', " ") } else { text.to_owned() };
                assert_eq!(tokenizer.decode(&tokens), text, "{kind}");
                assert_eq!(again.encode(&text), tokens, "{kind}");
            }
            assert!(tokenizer.len() <= 300 && tokenizer.sha1().len() == 40);
        }
    }

    #[test]
    fn the_same_texts_give_the_same_file_in_any_order_and_on_any_threads() {
        let mut shuffled = TEXTS;
        shuffled.reverse();
        for kind in KINDS {
            let first = Tokenizer::train(&c(kind), &TEXTS).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let second = pool.install(|| Tokenizer::train(&c(kind), &shuffled)).unwrap();
            assert_eq!(first.json(), second.json(), "{kind}");
        }
    }

    #[test]
    fn case_is_lost_where_that_is_asked_for() {
        for kind in KINDS {
            let lower = config::Tokenizer { lowercase: true, ..c(kind) };
            let tokenizer = Tokenizer::train(&lower, &["Él Árbol", "el perro"]).unwrap();
            assert_eq!(tokenizer.decode(&tokenizer.encode("ÉL ÁRBOL")), "él árbol", "{kind}");
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_no_special_tokens() {
        for kind in KINDS {
            let tokenizer = Tokenizer::train(&c(kind), &["uno <eos> dos <pad>", "<unk> tres <bos>"]).unwrap();
            let tokens = tokenizer.encode("uno <eos> dos <pad> tres");
            assert!(tokens.iter().all(|&token| token >= UNK), "{kind}: {tokens:?}");
            assert_eq!(tokenizer.decode(&[PAD, BOS, EOS, UNK, 1 << 30]), "", "{kind}");
        }
    }

    #[test]
    fn what_is_unknown_is_unknown() {
        for kind in KINDS {
            let tokenizer = Tokenizer::train(&c(kind), &TEXTS).unwrap();
            assert!(tokenizer.encode("Ω").contains(&UNK), "{kind}");
            assert!(tokenizer.encode("").is_empty(), "{kind}");
        }
    }

    #[test]
    fn long_and_odd_texts_are_tokens_too() {
        let (long, words) = ("á".repeat(100_000), "uno dos ".repeat(12_500));
        for kind in KINDS {
            let tokenizer =
                Tokenizer::train(&c(kind), &[&long, &words, "\0 \0\0 ▁ ▁▁", "\n\t \r x"]).unwrap();
            assert!(
                !tokenizer.encode(&long).is_empty() && tokenizer.encode(&words).len() >= 25_000,
                "{kind}"
            );
        }
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused() {
        for kind in KINDS {
            for texts in [&[][..], &[""], &["hola hola", "hola"], &["  "]] {
                let error = refused(&c(kind), texts);
                assert!(error.to_string().contains("two different words"), "{kind}: {error}");
            }
            let small = config::Tokenizer { vocab_size: 4, ..c(kind) };
            let error = refused(&small, &TEXTS);
            assert_eq!(error.kind, ErrorKind::Config, "{kind}");
            assert!(error.to_string().contains("tokenizer.vocab_size = 4"), "{kind}: {error}");
        }
        let rare = config::Tokenizer { min_frequency: 1000, ..c(TokenizerKind::Word) };
        assert!(refused(&rare, &TEXTS).to_string().contains("min_frequency"));
    }

    #[test]
    fn a_vocabulary_as_large_as_the_alphabet_is_enough() {
        let alphabet = "▁abcdefg".chars().count();
        for kind in [TokenizerKind::Unigram, TokenizerKind::Bpe] {
            let c = config::Tokenizer { vocab_size: alphabet + 4, ..c(kind) };
            let tokenizer = Tokenizer::train(&c, &["abc def", "gab cab fed", "abcdefg abcd"]).unwrap();
            assert_eq!(tokenizer.len(), alphabet + 4, "{kind}");
            assert_eq!(tokenizer.decode(&tokenizer.encode("gab fed")), "gab fed");
        }
    }

    #[test]
    fn files_that_are_no_tokenizers_are_refused() {
        let good = Tokenizer::train(&c(TokenizerKind::Word), &TEXTS).unwrap().json().to_owned();
        for (json, why) in [
            (String::new(), "no tokenizer.json"),
            ("{}".to_owned(), "no tokenizer.json"),
            ("[1, 2".to_owned(), "no tokenizer.json"),
            (good.replace("<eos>", "</s>"), "no token <eos>, which must be number 2"),
            (good.replacen("\"<pad>\":0", "\"<pad>\":900", 1), "tokenizer"),
        ] {
            let error = Tokenizer::from_json(&json).expect_err(why);
            assert_eq!(error.kind, ErrorKind::Data);
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
        let mut value: serde_json::Value = serde_json::from_str(&good).unwrap();
        value["model"]["vocab"]["además,"] = 2_000_000_000.into();
        let error = Tokenizer::from_json(&value.to_string()).expect_err("a hole");
        assert!(error.to_string().contains("no token of number"), "{error}");
    }

    #[test]
    fn settings_for_batches_do_nothing() {
        let good = Tokenizer::train(&c(TokenizerKind::Word), &TEXTS).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(good.json()).unwrap();
        value["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        let cut = Tokenizer::from_json(&value.to_string()).unwrap();
        assert_eq!(cut.encode(TEXTS[0]), good.encode(TEXTS[0]));
    }
}
