//! Training tokenizers, so that the same texts give the same one.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::normalizers::Lowercase;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::tokenizer::{
    AddedToken, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer,
};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{SPECIAL_TOKENS, UNK, failed};
use crate::config::{self, TokenizerKind};
use crate::error::{Error, ErrorKind, Problem, Result};

/// Characters of a word that are trained on together: the trainers' time and memory grow with a word's length, and no word
/// that says anything is longer.
const LONGEST: usize = 256;

/// Trains a tokenizer on `texts`.
///
/// # Errors
/// As [`super::Tokenizer::train`].
pub(super) fn train(c: &config::Tokenizer, texts: &[&str]) -> Result<tokenizers::Tokenizer> {
    let pre_tokenizer = pre_tokenizer(c.kind)?;
    let words = Words::of(c, texts, &pre_tokenizer)?;
    let model = words.model(c)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_normalizer(c.lowercase.then_some(Lowercase)).map_err(failed)?;
    match c.kind {
        TokenizerKind::Unigram | TokenizerKind::Bpe => tokenizer.with_decoder(Some(metaspace())),
        TokenizerKind::Char => tokenizer.with_decoder(Some(Fuse::new())),
        TokenizerKind::Word => &mut tokenizer,
    };
    tokenizer.add_special_tokens(special_tokens()).map_err(failed)?;
    Ok(tokenizer)
}

fn metaspace() -> Metaspace {
    Metaspace::new('▁', PrependScheme::Always, true)
}

/// What parts a text into what its tokens are parts of.
fn pre_tokenizer(kind: TokenizerKind) -> Result<PreTokenizerWrapper> {
    Ok(match kind {
        TokenizerKind::Unigram | TokenizerKind::Bpe => metaspace().into(),
        TokenizerKind::Word => WhitespaceSplit.into(),
        TokenizerKind::Char => {
            // Any character, in the syntax of every implementation.
            let any = SplitPattern::Regex("[\\s\\S]".to_owned());
            Split::new(any, SplitDelimiterBehavior::Isolated, false).map_err(failed)?.into()
        }
    })
}

fn special_tokens() -> Vec<AddedToken> {
    SPECIAL_TOKENS.iter().map(|token| AddedToken::from(*token, true)).collect()
}

/// The words of texts, or their characters, in a fixed order, and how often each occurs.
struct Words(BTreeMap<String, u64>);

impl Words {
    fn of(c: &config::Tokenizer, texts: &[&str], pre_tokenizer: &PreTokenizerWrapper) -> Result<Self> {
        let different: BTreeSet<&str> = texts.iter().flat_map(|text| text.split_whitespace()).collect();
        if different.len() < 2 {
            let problem = Problem::new("the texts of the training split have no two different words");
            return Err(Error::new(
                ErrorKind::Data,
                problem.hint(
                    "a network that translates needs texts that differ: is it the right data.metadata_csv?",
                ),
            ));
        }
        let mut words = BTreeMap::new();
        for text in texts {
            // What stands for special tokens is never a text's own.
            let text = SPECIAL_TOKENS.iter().fold((*text).to_owned(), |text, token| text.replace(token, " "));
            let mut parts = PreTokenizedString::from(text);
            if c.lowercase {
                parts.normalize(|part| Lowercase.normalize(part)).map_err(failed)?;
            }
            pre_tokenizer.pre_tokenize(&mut parts).map_err(failed)?;
            for (word, ..) in parts.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                if c.kind == TokenizerKind::Word {
                    *words.entry(word.to_owned()).or_default() += 1;
                    continue;
                }
                // The trainers part sentences by this character.
                for part in word.split('\0').filter(|part| !part.is_empty()) {
                    let characters: Vec<char> = part.chars().collect();
                    for part in characters.chunks(LONGEST) {
                        *words.entry(part.iter().collect()).or_default() += 1;
                    }
                }
            }
        }
        Ok(Self(words))
    }

    fn alphabet(&self) -> BTreeSet<char> {
        self.0.keys().flat_map(|word| word.chars()).collect()
    }

    fn model(&self, c: &config::Tokenizer) -> Result<ModelWrapper> {
        let least = match c.kind {
            TokenizerKind::Unigram | TokenizerKind::Bpe => self.alphabet().len(),
            TokenizerKind::Word | TokenizerKind::Char => 1,
        };
        if c.vocab_size < least + SPECIAL_TOKENS.len() {
            let what = format!(
                "tokenizer.vocab_size = {} has no room for {} special tokens and {}",
                c.vocab_size,
                SPECIAL_TOKENS.len(),
                match least {
                    1 => "a single other".to_owned(),
                    characters => format!("the {characters} different characters of the training texts"),
                }
            );
            let hint = format!("set it to {} or more", least + SPECIAL_TOKENS.len());
            return Err(Error::new(ErrorKind::Config, Problem::new(what).hint(hint)));
        }
        match c.kind {
            TokenizerKind::Unigram => self.unigram(c),
            TokenizerKind::Bpe => self.bpe(c),
            TokenizerKind::Word | TokenizerKind::Char => self.word_level(c),
        }
    }

    fn word_level(&self, c: &config::Tokenizer) -> Result<ModelWrapper> {
        let least = c.min_frequency as u64;
        if !self.0.values().any(|count| *count >= least) {
            let what =
                format!("no token of the training texts occurs tokenizer.min_frequency = {least} times");
            return Err(Error::new(ErrorKind::Config, Problem::new(what).hint("lower it; the default is 1")));
        }
        let mut trainer = WordLevelTrainer::builder()
            .vocab_size(c.vocab_size)
            .min_frequency(least)
            .special_tokens(special_tokens())
            .show_progress(false)
            .build()
            .map_err(failed)?;
        self.feed(&mut trainer)?;
        let unknown = SPECIAL_TOKENS[UNK as usize].to_owned();
        let mut model = WordLevel::builder().unk_token(unknown).build().map_err(failed)?;
        trainer.train(&mut model).map_err(failed)?;
        Ok(model.into())
    }

    fn bpe(&self, c: &config::Tokenizer) -> Result<ModelWrapper> {
        let mut trainer = BpeTrainer::builder()
            .vocab_size(c.vocab_size)
            .min_frequency(c.min_frequency as u64)
            .special_tokens(special_tokens())
            .show_progress(false)
            .build();
        self.feed(&mut trainer)?;
        let unknown = SPECIAL_TOKENS[UNK as usize].to_owned();
        let mut model = BPE::builder().unk_token(unknown).build().map_err(failed)?;
        trainer.train(&mut model).map_err(failed)?;
        Ok(model.into())
    }

    fn feed(&self, trainer: &mut impl Trainer) -> Result<()> {
        let words = self.0.iter().flat_map(|(word, count)| std::iter::repeat_n(word, *count as usize));
        trainer.feed(words, |word| Ok(vec![word.to_owned()])).map_err(failed)
    }

    /// Words that are rarer than `min_frequency` are left out, but for their characters.
    fn unigram(&self, c: &config::Tokenizer) -> Result<ModelWrapper> {
        let least = c.min_frequency as u64;
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let sentences: Vec<(String, u32)> =
            self.0.iter().filter(|(_, n)| **n >= least).map(|(word, n)| (word.clone(), count(*n))).collect();
        if sentences.is_empty() {
            let what =
                format!("no word of the training texts occurs tokenizer.min_frequency = {least} times");
            return Err(Error::new(ErrorKind::Config, Problem::new(what).hint("lower it; the default is 1")));
        }
        let trainer = UnigramTrainer::builder()
            .vocab_size(u32::try_from(c.vocab_size).unwrap_or(u32::MAX).min(MOST_PIECES))
            .special_tokens(special_tokens())
            .unk_token(Some(SPECIAL_TOKENS[UNK as usize].to_owned()))
            .initial_alphabet(self.alphabet().into_iter().collect())
            .show_progress(false)
            .build()
            .map_err(failed)?;
        // Sums over the parts of several threads depend on how many there are.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(failed)?;
        let mut model = Unigram::default();
        alone.install(|| trainer.do_train(sentences, &mut model)).map_err(failed)?;
        let pieces = in_order(&model, c.vocab_size);
        Ok(Unigram::from(pieces, Some(UNK as usize), false).map_err(failed)?.into())
    }
}

/// The trainer allocates for as many as are asked for.
const MOST_PIECES: u32 = 1 << 20;

/// The pieces of a trained model in an order, and with scores, that depend on the texts alone, `most` at most.
///
/// The trainer gives characters that it has dropped the lowest score, one after another in the order of a hash map, each by
/// 0.0001 more, and leaves pieces of one score in that order, too.
fn in_order(model: &Unigram, most: usize) -> Vec<(String, f64)> {
    const STEP: f64 = 0.0001;
    let all: Vec<(String, f64)> = model.iter().cloned().collect();
    let (special, pieces) = all.split_at(SPECIAL_TOKENS.len().min(all.len()));
    let lowest = pieces.iter().fold(f64::INFINITY, |lowest, (_, score)| lowest.min(*score));
    let is_character = |piece: &str| piece.chars().nth(1).is_none();
    let given: Vec<f64> = std::iter::successors(Some(0.0), |penalty| Some(penalty + STEP))
        .map(|penalty| lowest + penalty)
        .take(pieces.len())
        .collect();
    let is_given = |score: f64| given.iter().any(|other| other.to_bits() == score.to_bits());
    let (mut dropped, mut kept): (Vec<_>, Vec<_>) =
        pieces.iter().cloned().partition(|(piece, score)| is_character(piece) && is_given(*score));
    let mut scores: Vec<f64> = dropped.iter().map(|(_, score)| *score).collect();
    scores.sort_by(f64::total_cmp);
    dropped.sort_by(|a, b| a.0.cmp(&b.0));
    dropped.iter_mut().zip(scores).for_each(|((_, score), given)| *score = given);
    kept.append(&mut dropped);
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut too_many = (special.len() + kept.len()).saturating_sub(most);
    // The least probable go first, and no character.
    let mut chosen: Vec<(String, f64)> = Vec::with_capacity(kept.len());
    for (piece, score) in kept.into_iter().rev() {
        if too_many > 0 && !is_character(&piece) {
            too_many -= 1;
        } else {
            chosen.push((piece, score));
        }
    }
    chosen.reverse();
    special.iter().cloned().chain(chosen).collect()
}
