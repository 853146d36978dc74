//! Decoders: what reads the encoded frames of a clip. All that a decoder decides is in its own file: its parameters, its
//! loss, what counts as right, and what a clip's text is to it.
//!
//! A decoder that is written here as Candle operations trains on every engine. One that needs less memory or time than
//! its graph overrides [`Decoder::train`]; an engine with kernels for it says so itself.

mod classes;
mod stub;
mod transformer;

use std::path::Path;
use std::rc::Rc;

use candle_core::{Tensor, Var};

use super::search::Hypothesis;
use crate::config::{self, TextDecoder};
use crate::input;
use crate::nn::{Builder, Operations, Pass};
use crate::text::Tokenizer;
use crate::{Error, ErrorKind, Result};

pub use classes::Classes;
pub use stub::{Stub, StubKind, TEXTS};
pub use transformer::{SPECIALS, TOKENIZER, TOKENIZER_SHA1, Tokens, Transformer, TransformerKind};

/// The encoder's frames, as a decoder reads them.
#[derive(Clone, Copy)]
pub struct Encoded<'a> {
    /// (B, T, D), f32.
    pub frames: &'a Tensor,
    /// (B, T), u8: 1 = a frame of the clip, 0 = padding.
    pub pad_mask: &'a Tensor,
}

/// A batch's loss, as a graph.
pub struct Loss {
    /// The mean over all that was predicted, a scalar.
    pub mean: Tensor,
    /// How much was predicted: what the mean weighs when batches are put together.
    pub weight: usize,
}

/// What a decoder gave for one batch in training.
pub struct DecoderStep {
    /// The mean loss.
    pub loss: f64,
    /// How much was predicted.
    pub weight: usize,
    /// The mean loss's gradient for the encoded frames: (B, T, D), f32.
    pub d_frames: Tensor,
    /// Its gradients for the decoder's parameters, in their order, for when there is memory for them.
    pub gradients: Box<dyn FnOnce() -> Result<Vec<Tensor>>>,
}

/// What one batch gave in evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The mean loss over the batch.
    pub loss: f64,
    /// How much was predicted.
    pub weight: usize,
    /// How much of it was right.
    pub correct: usize,
}

/// A decoder as a part of a network.
pub trait Decoder {
    /// What its modules compute with.
    fn operations(&self) -> &dyn Operations;

    /// The module that gives the logits, below the decoder.
    fn head(&self) -> &'static str;

    /// What each prediction is chosen by: (…, V). `targets` (B, L) are what a decoder that is told the beginning goes on
    /// from.
    ///
    /// # Errors
    /// Where the tensor library fails.
    fn logits(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Tensor>;

    /// The loss that training lowers; `targets` (B, L), u32, as its [`DecoderKind`] makes them of texts.
    ///
    /// # Errors
    /// Where the tensor library fails.
    fn loss(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Loss>;

    /// Loss and number of right predictions, without dropout.
    ///
    /// # Errors
    /// Where the tensor library fails.
    fn score(&self, encoded: Encoded, targets: &Tensor) -> Result<Score>;

    /// The best predictions of each clip, `n_best` at most, the best first.
    ///
    /// # Errors
    /// Where the tensor library fails, or of kind `Numbers` where a logit is not a number.
    fn translate(&self, encoded: Encoded, c: &config::Decoding) -> Result<Vec<Vec<Hypothesis>>>;

    /// Of each clip, how many classes are more probable than its own; none for a decoder that makes more than one
    /// prediction of a clip.
    ///
    /// # Errors
    /// Where the tensor library fails.
    fn ranks(&self, _encoded: Encoded, _targets: &Tensor) -> Result<Option<Vec<usize>>> {
        Ok(None)
    }

    /// Forward and backward: the frames are a constant here, and `parameters` the decoder's own, in order.
    ///
    /// # Errors
    /// Where the tensor library fails, or a parameter has no part in the loss.
    fn train(
        &self,
        encoded: Encoded,
        targets: &Tensor,
        pass: &Pass,
        parameters: &[(&str, &Var)],
    ) -> Result<DecoderStep> {
        let frames = Var::from_tensor(&encoded.frames.detach())?;
        let Loss { mean, weight } =
            self.loss(Encoded { frames: frames.as_tensor(), ..encoded }, targets, pass)?;
        let store = self.operations().backward(&mean, &mean.ones_like()?)?;
        let gradients: Result<Vec<Tensor>> =
            parameters.iter().map(|(name, var)| gradient(&store, name, var)).collect();
        let gradients = gradients?;
        Ok(DecoderStep {
            loss: f64::from(mean.to_scalar::<f32>()?),
            weight,
            d_frames: gradient(&store, "the encoded frames", &frames)?,
            gradients: Box::new(move || Ok(gradients)),
        })
    }
}

/// What a decoder makes of a dataset's texts, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextReport {
    /// As a run begins: `4 texts in 4 classes`.
    pub brief: String,
    /// As `check` shows it: `4 texts on 4 of 32000 classes`.
    pub full: String,
    /// What it cannot learn of them.
    pub problem: Option<String>,
    /// Up to three examples of that.
    pub examples: Vec<String>,
    /// The problem and its remedy, as a warning.
    pub warning: Option<String>,
}

/// A decoder that an engine may have blocks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fused {
    /// None: its graph is what computes it.
    Nothing,
    /// The stub, with its loss: one class a clip.
    Stub {
        /// The share of the target's probability that is spread over all classes.
        label_smoothing: f64,
    },
}

/// A kind of decoder: what it takes besides the network's sizes, and what texts are to it.
pub trait DecoderKind {
    /// What the configuration calls it.
    fn name(&self) -> &'static str;

    /// What engines may have blocks for.
    fn fused(&self) -> Fused {
        Fused::Nothing
    }

    /// What is to be predicted of a clip with this text: L numbers.
    fn target(&self, text: &str) -> Vec<u32>;

    /// What may be to be predicted of a clip with a text of usual length, from random numbers: for benchmarks.
    fn any_target(&self, random: &mut dyn FnMut() -> u32) -> Vec<u32>;

    /// The text that a prediction of a clip stands for; none where it stands for none.
    fn text(&self, prediction: &[u32]) -> Option<String>;

    /// Bytes that the graph of its loss keeps for `clips` clips, gradients included.
    fn loss_bytes(&self, c: &config::Model, clips: usize) -> usize;

    /// The multiply-adds of its forward pass of `clips` whole clips, whose targets have `length` numbers.
    fn work(&self, c: &config::Model, clips: usize, length: usize) -> f64;

    /// What it makes of a dataset's texts, those of the training split and those of the validation split.
    fn report(&self, train: &[&str], validation: &[&str]) -> TextReport;

    /// What a checkpoint keeps beside the weights, by key, so that its predictions are texts: see [`saved`].
    fn saved(&self) -> Vec<(&'static str, String)>;

    /// What makes tokens of its texts, where there are tokens.
    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }

    /// Its modules, below `b`.
    ///
    /// # Errors
    /// Where the tensor library fails.
    fn build(&self, b: &Builder, c: &config::Model) -> candle_core::Result<Box<dyn Decoder>>;
}

/// The texts of a dataset; none where they are not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'t> {
    /// Of the training split.
    pub train: &'t [&'t str],
    /// Of the validation split.
    pub validation: &'t [&'t str],
}

/// The decoder of an experiment on a dataset with these texts.
///
/// # Errors
/// Where a tokenizer cannot be trained on those of the training split, or the experiment's own cannot be read.
pub fn of(c: &config::Experiment, texts: Texts) -> Result<Rc<dyn DecoderKind>> {
    match (c.model.decoder.kind, &c.tokenizer.file) {
        (TextDecoder::Stub, _) => Ok(stub(c, Classes::new(c.model.vocab_size, texts.train))),
        (TextDecoder::Transformer, Some(file)) => Ok(transformer(c, read_tokenizer(file)?, texts)),
        (TextDecoder::Transformer, None) => {
            Ok(transformer(c, Tokenizer::train(&c.tokenizer, texts.train)?, texts))
        }
    }
}

/// The decoder of an experiment whose texts are not known, with as many tokens as it may have.
#[must_use]
pub fn of_no_texts(c: &config::Experiment) -> Rc<dyn DecoderKind> {
    match c.model.decoder.kind {
        TextDecoder::Stub => stub(c, Classes::new(c.model.vocab_size, &[])),
        TextDecoder::Transformer => with_tokens(c, Tokens::Unknown(c.tokenizer.vocab_size), USUAL_TOKENS),
    }
}

/// The decoder of a checkpoint, from what [`DecoderKind::saved`] gave: `find` looks a key up. None where it is not there.
/// `texts` are those that it is to learn or to be measured by.
///
/// # Errors
/// Where it cannot be read.
pub fn saved<'a>(
    c: &config::Experiment,
    texts: Texts,
    find: impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<Rc<dyn DecoderKind>>> {
    Ok(match c.model.decoder.kind {
        TextDecoder::Stub => find(TEXTS)
            .map(|texts| Classes::from_saved(c.model.vocab_size, texts))
            .transpose()?
            .map(|classes| stub(c, classes)),
        TextDecoder::Transformer => find(TOKENIZER)
            .map(Tokenizer::from_json)
            .transpose()?
            .map(|tokenizer| transformer(c, tokenizer, texts)),
    })
}

fn stub(c: &config::Experiment, classes: Classes) -> Rc<dyn DecoderKind> {
    Rc::new(StubKind { label_smoothing: c.optimization.label_smoothing, classes })
}

fn transformer(c: &config::Experiment, tokenizer: Tokenizer, texts: Texts) -> Rc<dyn DecoderKind> {
    let all = texts.train.iter().chain(texts.validation);
    // A batch is as long as its longest text.
    let longest = all.map(|text| tokenizer.encode(text).len()).max().unwrap_or(USUAL_TOKENS);
    with_tokens(c, Tokens::Of(Rc::new(tokenizer)), longest)
}

fn with_tokens(c: &config::Experiment, tokens: Tokens, longest: usize) -> Rc<dyn DecoderKind> {
    let label_smoothing = c.optimization.label_smoothing;
    Rc::new(TransformerKind { tokens, label_smoothing, longest, max_length: c.decoding.max_length })
}

/// Tokens of a text that memory is planned for where no text is known: the corpus's 95th percentile is 37 words.
const USUAL_TOKENS: usize = 48;

/// The tokenizer in `file`.
///
/// # Errors
/// Of kind `Data` where it cannot be read or is none that can be used.
pub fn read_tokenizer(file: &Path) -> Result<Tokenizer> {
    let of_file = |error: Error| error.context(format!("cannot use tokenizer.file {}", file.display()));
    let bytes = input::read(file, MOST_TOKENIZER_BYTES).map_err(|error| {
        Error::io(ErrorKind::Data, "cannot read tokenizer.file", file, &error)
            .hint("correct tokenizer.file, or leave it out to train one on the texts")
    })?;
    let not_text = || Error::data("it is not UTF-8 text").hint("is it a tokenizer.json?");
    let text = String::from_utf8(bytes).map_err(|_| of_file(not_text()))?;
    Tokenizer::from_json(&text).map_err(of_file)
}

/// The largest of the field's tokenizers have 256,000 tokens and take 33 MiB.
const MOST_TOKENIZER_BYTES: u64 = 256 << 20;

/// What a backward pass left for a variable.
///
/// # Errors
/// Where the loss does not depend on it.
pub fn gradient(store: &candle_core::backprop::GradStore, name: &str, var: &Var) -> Result<Tensor> {
    // Detached: a stored gradient can carry a graph of its own.
    store.get(var).map(Tensor::detach).ok_or_else(|| Error::run(format!("{name} got no gradient")))
}
