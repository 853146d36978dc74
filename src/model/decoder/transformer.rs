//! The text decoder: PyTorch's pre-norm transformer decoder over tokens, which writes a text token by token.
//!
//! Legend beside that of [`crate::nn`]: `L` tokens of a text, `R` hypotheses that are followed, of all clips.

use std::collections::HashSet;
use std::rc::Rc;

use candle_core::{Result as CandleResult, Tensor, Var};

use super::{Decoder, DecoderKind, DecoderStep, Encoded, Loss, Score, TextReport, gradient};
use crate::error::count;
use crate::model::search::{Hypothesis, Logits, NextTokens, Row, Specials, search};
use crate::model::work;
use crate::nn::attention::{causal_bias, key_bias};
use crate::nn::embedding::sinusoid;
use crate::nn::operations::Affine;
use crate::nn::{
    Activation, Builder, Dropout, Embedding, Init, LayerNorm, Linear, MultiheadAttention, Operations, Pass,
    loss,
};
use crate::text::Tokenizer;
use crate::text::tokenizer::{BOS, EOS, PAD, UNK};
use crate::{Result, config};

/// The text decoder with its tokens and its loss: cross-entropy with label smoothing, a mean over tokens.
#[derive(Clone)]
pub struct TransformerKind {
    /// What texts are made of.
    pub tokens: Tokens,
    /// The share of the target's probability that is spread over all tokens.
    pub label_smoothing: f64,
    /// Tokens of the longest text.
    pub longest: usize,
    /// The most tokens of a hypothesis, to say which texts are longer.
    pub max_length: usize,
}

/// What texts are made of.
#[derive(Clone)]
pub enum Tokens {
    /// Those of a tokenizer.
    Of(Rc<Tokenizer>),
    /// So many that are not known: no text is read or written.
    Unknown(usize),
}

impl Tokens {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Of(tokenizer) => tokenizer.len(),
            Self::Unknown(count) => *count,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Self::Of(tokenizer) => Some(tokenizer),
            Self::Unknown(_) => None,
        }
    }
}

impl DecoderKind for TransformerKind {
    fn name(&self) -> &'static str {
        Transformer::NAME
    }

    /// `<bos>`, the text's tokens, `<eos>`.
    fn target(&self, text: &str) -> Vec<u32> {
        let tokens = self.tokens.tokenizer().map(|tokenizer| tokenizer.encode(text)).unwrap_or_default();
        [[BOS].as_slice(), &tokens, &[EOS]].concat()
    }

    fn any_target(&self, random: &mut dyn FnMut() -> u32) -> Vec<u32> {
        const LENGTH: usize = 24;
        let specials = [PAD, BOS, EOS, UNK].len() as u32;
        let others = (self.tokens.len() as u32).saturating_sub(specials).max(1);
        let tokens: Vec<u32> = (0..LENGTH).map(|_| specials + random() % others).collect();
        [[BOS].as_slice(), &tokens, &[EOS]].concat()
    }

    fn text(&self, prediction: &[u32]) -> Option<String> {
        Some(self.tokens.tokenizer()?.decode(prediction))
    }

    /// Logits, probabilities and their gradients of texts that are as long as the longest, and what the layers leave.
    fn loss_bytes(&self, c: &config::Model, clips: usize) -> usize {
        let product = |factors: &[usize]| factors.iter().fold(4, |bytes: usize, n| bytes.saturating_mul(*n));
        let length = self.longest.saturating_add(1);
        let tokens = clips.saturating_mul(length);
        let frames = clips.saturating_mul(c.sequence_length);
        let logits = product(&[6, tokens, self.tokens.len()]);
        let widths = c.d_model.saturating_mul(40).saturating_add(c.decoder.dim_feedforward.saturating_mul(6));
        let keys = length.saturating_add(c.sequence_length);
        let scores = product(&[8, tokens, c.decoder.nhead, keys]);
        let layer = product(&[tokens, widths]).saturating_add(product(&[6, frames, c.d_model]));
        let layer = layer.saturating_add(scores);
        logits.saturating_add(layer.saturating_mul(c.decoder.layers))
    }

    fn work(&self, c: &config::Model, clips: usize, length: usize) -> f64 {
        let (d, frames, length) = (c.d_model, c.sequence_length, length.saturating_sub(1));
        // Of a token: queries, keys, values and output of the one attention, queries and output of the other, the MLP.
        let of_token = 6 * d * d + 2 * d * c.decoder.dim_feedforward;
        let layer = work::of_maps(length, of_token)
            + work::of_maps(frames, 2 * d * d)
            + work::of_attention(length, length + frames, d);
        (layer * c.decoder.layers as f64 + work::of_maps(length, d * self.tokens.len())) * clips as f64
    }

    fn report(&self, train: &[&str], validation: &[&str]) -> TextReport {
        let tokenizer = self.tokens.tokenizer();
        tokenizer.map(|it| report(it, self.max_length, train, validation)).unwrap_or_default()
    }

    fn saved(&self) -> Vec<(&'static str, String)> {
        let of = |it: &Tokenizer| vec![(TOKENIZER, it.json().to_owned()), (TOKENIZER_SHA1, it.sha1())];
        self.tokens.tokenizer().map(of).unwrap_or_default()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokens.tokenizer()
    }

    fn build(&self, b: &Builder, c: &config::Model) -> CandleResult<Box<dyn Decoder>> {
        Ok(Box::new(Transformer::new(b, c, self.tokens.len(), self.label_smoothing)?))
    }
}

/// How the texts of a dataset fall into tokens, and what of the validation texts training does not know.
fn report(tokenizer: &Tokenizer, max_length: usize, train: &[&str], validation: &[&str]) -> TextReport {
    let lengths = |texts: &[&str]| texts.iter().map(|text| tokenizer.encode(text).len()).collect::<Vec<_>>();
    let lengths = [lengths(train), lengths(validation)].concat();
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
    let most = lengths.iter().max().copied().unwrap_or_default();
    // `<eos>` counts.
    let long = lengths.iter().filter(|&&length| length >= max_length).count();
    let unknown = unknown_words(train, validation) * 100.0;
    let vocabulary = count(tokenizer.len(), "token");
    let too_long = (long > 0).then(|| {
        let has = if long == 1 { "has" } else { "have" };
        format!("{} {has} more than decoding.max_length = {max_length} tokens", count(long, "text"))
    });
    TextReport {
        brief: format!("{} of {vocabulary}", count(lengths.len(), "text")),
        full: format!(
            "{} of {vocabulary}, {mean:.1} a text and {most} at most; of the words of the validation texts \
             {unknown:.1} % do not occur in training",
            count(lengths.len(), "text"),
        ),
        problem: None,
        examples: Vec::new(),
        warning: too_long.map(|what| {
            format!("{what}: they are trained on whole, and no translation is that long; a larger one reaches them")
        }),
    }
}

/// The share of the words of `validation`, split at white space and without regard to capitals, that `train` has not.
fn unknown_words(train: &[&str], validation: &[&str]) -> f64 {
    let words = |texts: &[&str]| -> Vec<String> {
        texts.iter().flat_map(|text| text.split_whitespace()).map(str::to_lowercase).collect()
    };
    let known: HashSet<String> = words(train).into_iter().collect();
    let all = words(validation);
    all.iter().filter(|word| !known.contains(*word)).count() as f64 / all.len().max(1) as f64
}

/// Where a checkpoint has its tokenizer: Hugging Face's `tokenizer.json`, as text.
pub const TOKENIZER: &str = "tokenizer";

/// Where a checkpoint has the SHA-1 of that text, in hexadecimal digits.
pub const TOKENIZER_SHA1: &str = "tokenizer_sha1";

/// Tokens and encoded frames to the logits of the next tokens.
pub struct Transformer {
    embedding: Embedding,
    dropout: Dropout,
    layers: Vec<Layer>,
    norm: LayerNorm,
    /// (V, D), where the logits are not by the embedding's weight.
    lm_head: Option<Tensor>,
    label_smoothing: f64,
    operations: Rc<dyn Operations>,
}

/// `nn.TransformerDecoderLayer` with `norm_first` and `ReLU`.
struct Layer {
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm3: LayerNorm,
    /// After self-attention, after attention to the frames, inside the feed-forward part, after it.
    dropout: [Dropout; 4],
    operations: Rc<dyn Operations>,
}

impl Transformer {
    /// What the configuration calls it.
    pub const NAME: &'static str = "transformer";

    /// For a vocabulary of so many tokens.
    fn new(b: &Builder, c: &config::Model, vocabulary: usize, label_smoothing: f64) -> CandleResult<Self> {
        let (d, width) = (&c.decoder, c.d_model);
        let embedding = Embedding::new(&b.pp("embedding"), vocabulary, width)?;
        let dropout = b.dropout("dropout", d.dropout);
        let layers = b.pp("layers");
        let layers: CandleResult<_> = (0..d.layers).map(|i| Layer::new(&layers.pp(i), d, width)).collect();
        let norm = LayerNorm::new(&b.pp("norm"), width)?;
        let weight = |b: &Builder| b.parameter("weight", &[vocabulary, width], Init::FanIn(width));
        let lm_head = if d.tied { None } else { Some(weight(&b.pp("lm_head"))?) };
        let operations = b.operations();
        Ok(Self { embedding, dropout, layers: layers?, norm, lm_head, label_smoothing, operations })
    }

    /// Tokens (B, L) to what the logits are products of, (B, L, D).
    fn decode(&self, encoded: Encoded, tokens: &Tensor, pass: &Pass) -> CandleResult<Tensor> {
        self.decode_vectors(encoded, tokens, &self.embedding.forward(tokens)?, pass)
    }

    /// As [`Self::decode`], from the tokens' vectors (B, L, D).
    fn decode_vectors(
        &self,
        encoded: Encoded,
        tokens: &Tensor,
        vectors: &Tensor,
        pass: &Pass,
    ) -> CandleResult<Tensor> {
        let (_, length) = tokens.dims2()?;
        let mut x = self.dropout.forward(&placed(vectors, 0)?, pass)?;
        let bias = causal_bias(length, tokens.device())?.broadcast_add(&key_bias(&tokens.ne(PAD)?)?)?;
        let memory_bias = key_bias(encoded.pad_mask)?;
        for layer in &self.layers {
            x = layer.forward(&x, encoded.frames, [&bias, &memory_bias], pass)?;
        }
        self.norm.forward(&x)
    }

    /// What the logits are products with, (V, D).
    fn output_weight(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(self.embedding.weight())
    }

    /// (…, D) to (…, V).
    fn project(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.operations.affine(x, Affine::whole(self.output_weight(), None)?)
    }

    /// The logits (N, V) of all N tokens of `targets` (B, L + 1) that are to be predicted, which are not padding, and these
    /// tokens (N).
    fn predictions(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> CandleResult<[Tensor; 2]> {
        let Asked { tokens, places, next } = Asked::of(targets)?;
        let x = self.decode(encoded, &tokens, pass)?.flatten_to(1)?;
        Ok([self.project(&x.index_select(&places, 0)?)?, next])
    }
}

/// What is to be predicted of a batch.
struct Asked {
    /// The tokens that are told, (B, L).
    tokens: Tensor,
    /// The places of the tokens that are followed by what is no padding, among all B L: (N).
    places: Tensor,
    /// What follows them: (N).
    next: Tensor,
}

impl Asked {
    /// Of `targets` (B, L + 1).
    fn of(targets: &Tensor) -> CandleResult<Self> {
        let length = targets.dim(1)?.saturating_sub(1);
        let next = targets.narrow(1, 1, length)?.flatten_all()?;
        let places = (0_u32..).zip(next.to_vec1::<u32>()?).filter(|(_, token)| *token != PAD);
        let places = Tensor::from_iter(places.map(|(place, _)| place), targets.device())?;
        let next = next.index_select(&places, 0)?;
        Ok(Self { tokens: targets.narrow(1, 0, length)?.contiguous()?, places, next })
    }
}

/// The tokens' vectors (B, L, D), scaled and with their places, of which the first is `first`.
fn placed(vectors: &Tensor, first: usize) -> CandleResult<Tensor> {
    let (_, length, width) = vectors.dims3()?;
    (vectors * (width as f64).sqrt())?.broadcast_add(&sinusoid(first, length, width, vectors.device())?)
}

impl Decoder for Transformer {
    fn operations(&self) -> &dyn Operations {
        self.operations.as_ref()
    }

    fn head(&self) -> &'static str {
        if self.lm_head.is_some() { "lm_head" } else { "embedding" }
    }

    /// (B, L, V) of the tokens that follow all but the last of `targets` (B, L + 1).
    fn logits(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Tensor> {
        let tokens = targets.narrow(1, 0, targets.dim(1)?.saturating_sub(1))?;
        Ok(self.project(&self.decode(encoded, &tokens, pass)?)?)
    }

    fn loss(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Loss> {
        let [logits, next] = self.predictions(encoded, targets, pass)?;
        Ok(Loss { mean: loss::cross_entropy(&logits, &next, self.label_smoothing)?, weight: next.dim(0)? })
    }

    fn score(&self, encoded: Encoded, targets: &Tensor) -> Result<Score> {
        let [logits, next] = self.predictions(encoded, targets, &Pass::EVALUATION)?;
        let loss = loss::cross_entropy(&logits, &next, self.label_smoothing)?.to_scalar::<f32>()?;
        let right = logits.argmax(1)?.eq(&next)?.to_vec1::<u8>()?;
        Ok(Score {
            loss: f64::from(loss),
            weight: next.dim(0)?,
            correct: right.into_iter().map(usize::from).sum(),
        })
    }

    /// As the graph does it, but for the tensors of the vocabulary's size, which are the largest: the logits become their
    /// gradient in place, and the embedding's gradient is one sum.
    fn train(
        &self,
        encoded: Encoded,
        targets: &Tensor,
        pass: &Pass,
        parameters: &[(&str, &Var)],
    ) -> Result<DecoderStep> {
        let Asked { tokens, places, next } = Asked::of(targets)?;
        let frames = Var::from_tensor(&encoded.frames.detach())?;
        let vectors = Var::from_tensor(&self.embedding.look_up(&tokens)?)?;
        let encoded = Encoded { frames: frames.as_tensor(), ..encoded };
        let x = self.decode_vectors(encoded, &tokens, vectors.as_tensor(), pass)?.flatten_to(1)?;
        let x = x.index_select(&places, 0)?;
        let (constant, weight) = (x.detach(), self.output_weight().detach());
        let logits = self.operations.affine(&constant, Affine::whole(&weight, None)?)?;
        let (loss, d_logits) = loss::cross_entropy_and_gradient(&logits, &next, self.label_smoothing)?;
        drop(logits);
        let (d_x, mut d_weight) = self.operations.affine_gradients(&constant, &weight, &d_logits)?;
        drop(d_logits);
        let store = self.operations.backward(&x, &d_x)?;
        let d_vectors = gradient(&store, "the tokens' vectors", &vectors)?;
        let mut d_embedding = Vec::new();
        let of_vectors = if self.lm_head.is_some() { &mut d_embedding } else { &mut d_weight };
        of_vectors.resize(weight.elem_count(), 0.0);
        Embedding::add_gradient(&tokens, &d_vectors, of_vectors)?;
        let tensor =
            |values: &mut Vec<f32>| Tensor::from_vec(std::mem::take(values), weight.dims(), weight.device());
        let mut of = |(name, var): &(&str, &Var)| match &self.lm_head {
            Some(_) if name.ends_with("embedding.weight") => Ok(tensor(&mut d_embedding)?),
            Some(_) if name.ends_with("lm_head.weight") => Ok(tensor(&mut d_weight)?),
            None if name.ends_with("embedding.weight") => Ok(tensor(&mut d_weight)?),
            _ => gradient(&store, name, var),
        };
        let gradients: Result<Vec<Tensor>> = parameters.iter().map(&mut of).collect();
        let gradients = gradients?;
        Ok(DecoderStep {
            loss,
            weight: next.dim(0)?,
            d_frames: gradient(&store, "the encoded frames", &frames)?,
            gradients: Box::new(move || Ok(gradients)),
        })
    }

    fn translate(&self, encoded: Encoded, c: &config::Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let clips = encoded.frames.dim(0)?;
        search(&mut Steps::new(self, encoded)?, clips, SPECIALS, c)
    }
}

/// The tokens that are not a text's.
pub const SPECIALS: Specials<'static> = Specials { begin: BOS, end: EOS, never: &[PAD, BOS, UNK] };

impl Layer {
    fn new(b: &Builder, c: &config::Decoder, width: usize) -> CandleResult<Self> {
        let attention =
            |name| MultiheadAttention::new(&b.pp(name), width, c.nhead, c.dropout, Init::FanIn(width));
        let norm = |name| LayerNorm::new(&b.pp(name), width);
        Ok(Self {
            self_attn: attention("self_attn")?,
            multihead_attn: attention("multihead_attn")?,
            linear1: Linear::new(&b.pp("linear1"), width, c.dim_feedforward)?,
            linear2: Linear::new(&b.pp("linear2"), c.dim_feedforward, width)?,
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            norm3: norm("norm3")?,
            dropout: ["dropout1", "dropout2", "dropout", "dropout3"].map(|name| b.dropout(name, c.dropout)),
            operations: b.operations(),
        })
    }

    /// (B, L, D) to (B, L, D), with what is added to the scores of both attentions.
    fn forward(
        &self,
        x: &Tensor,
        memory: &Tensor,
        [bias, memory_bias]: [&Tensor; 2],
        pass: &Pass,
    ) -> CandleResult<Tensor> {
        let ([first, second, _, third], operations) = (&self.dropout, &self.operations);
        let y = self.self_attn.forward(&self.norm1.forward(x)?, Some(bias), pass)?;
        let x = operations.residual(x, &y, first, pass)?;
        let y = self.multihead_attn.forward_to(&self.norm2.forward(&x)?, memory, Some(memory_bias), pass)?;
        let x = operations.residual(&x, &y, second, pass)?;
        let y = self.feed_forward(&self.norm3.forward(&x)?, pass)?;
        operations.residual(&x, &y, third, pass)
    }

    fn feed_forward(&self, x: &Tensor, pass: &Pass) -> CandleResult<Tensor> {
        let hidden = self.linear1.forward(x)?;
        self.linear2.forward(&self.operations.activate(&hidden, Activation::Relu, &self.dropout[2], pass)?)
    }
}

/// The decoder token by token: keys and values of earlier tokens and of the frames are kept.
struct Steps<'d> {
    decoder: &'d Transformer,
    layers: Vec<Kept>,
    /// (B, 1, 1, T).
    memory_bias: Tensor,
    /// Tokens before the next one.
    length: usize,
    /// The clip of each row of the last step.
    clips: Vec<usize>,
}

/// What a layer keeps.
struct Kept {
    /// Keys and values of the frames, (B, H, T, D/H).
    memory: [Tensor; 2],
    /// Of the tokens so far, (R, H, L, D/H); none before the first.
    tokens: Option<[Tensor; 2]>,
}

impl<'d> Steps<'d> {
    fn new(decoder: &'d Transformer, encoded: Encoded) -> Result<Self> {
        let keep = |layer: &Layer| {
            let memory = layer.multihead_attn.keys_values(encoded.frames)?;
            CandleResult::Ok(Kept { memory, tokens: None })
        };
        let layers: CandleResult<_> = decoder.layers.iter().map(keep).collect();
        let memory_bias = key_bias(encoded.pad_mask)?;
        let clips = (0..encoded.frames.dim(0)?).collect();
        Ok(Self { decoder, layers: layers?, memory_bias, length: 0, clips })
    }

    /// What each hypothesis finds in its clip's frames: queries (R, H, 1, D/H) to (R, 1, D).
    fn look_at_frames(&self, layer: usize, queries: &Tensor) -> CandleResult<Tensor> {
        let attention = &self.decoder.layers[layer].multihead_attn;
        let [keys, values] = &self.layers[layer].memory;
        let mut found = Vec::new();
        let mut first = 0;
        for rows in self.clips.chunk_by(|a, b| a == b) {
            let clip = rows[0];
            // The hypotheses of a clip are as the queries of one sequence.
            let asked = queries.narrow(0, first, rows.len())?.permute((2, 1, 0, 3))?.contiguous()?;
            let part = |all: &Tensor| all.narrow(0, clip, 1);
            let bias = part(&self.memory_bias)?;
            let got = attention.attend_by_heads(&asked, [&part(keys)?, &part(values)?], Some(&bias))?;
            found.push(got.transpose(0, 1)?);
            first += rows.len();
        }
        Tensor::cat(&found, 0)
    }

    /// One layer of one step, (R, 1, D) to (R, 1, D).
    fn layer(&mut self, at: usize, x: &Tensor, parents: &Tensor) -> CandleResult<Tensor> {
        let (pass, decoder) = (Pass::EVALUATION, self.decoder);
        let layer = &decoder.layers[at];
        let y = layer.norm1.forward(x)?;
        let [mut keys, mut values] = layer.self_attn.keys_values(&y)?;
        if let Some([earlier_keys, earlier_values]) = &self.layers[at].tokens {
            keys = Tensor::cat(&[&earlier_keys.index_select(parents, 0)?, &keys], 2)?;
            values = Tensor::cat(&[&earlier_values.index_select(parents, 0)?, &values], 2)?;
        }
        let y = layer.self_attn.attend_by_heads(&layer.self_attn.queries(&y)?, [&keys, &values], None)?;
        self.layers[at].tokens = Some([keys, values]);
        let x = (x + y)?;
        let queries = layer.multihead_attn.queries(&layer.norm2.forward(&x)?)?;
        let x = (&x + self.look_at_frames(at, &queries)?)?;
        &x + layer.feed_forward(&layer.norm3.forward(&x)?, &pass)?
    }
}

impl NextTokens for Steps<'_> {
    fn step(&mut self, rows: &[Row]) -> Result<Logits> {
        let device = self.memory_bias.device().clone();
        let clip = |row: &Row| self.clips.get(row.parent).copied().unwrap_or_default();
        self.clips = rows.iter().map(clip).collect();
        let parents = Tensor::from_iter(rows.iter().map(|row| row.parent as u32), &device)?;
        let tokens = Tensor::from_iter(rows.iter().map(|row| row.token), &device)?;
        let mut x = placed(&self.decoder.embedding.look_up(&tokens.unsqueeze(1)?)?, self.length)?;
        for at in 0..self.layers.len() {
            x = self.layer(at, &x, &parents)?;
        }
        self.length += 1;
        let logits = self.decoder.project(&self.decoder.norm.forward(&x)?)?;
        Ok(Logits::new(logits.flatten_all()?.to_vec1::<f32>()?, rows.len()))
    }
}
