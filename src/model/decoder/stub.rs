//! The decoder stub: the mean of the valid frames, then one linear layer to the classes that texts are hashed to.

use std::rc::Rc;

use candle_core::{DType, Result as CandleResult, Tensor, Var};

use super::{Classes, Decoder, DecoderKind, DecoderStep, Encoded, Fused, Loss, Score, TextReport, gradient};
use crate::model::search::Hypothesis;
use crate::model::work;
use crate::nn::{Builder, Linear, Operations, Pass, loss};
use crate::{Result, config};

/// The stub, with its loss: cross-entropy with label smoothing.
#[derive(Clone, Debug)]
pub struct StubKind {
    /// The share of the target's probability that is spread over all classes.
    pub label_smoothing: f64,
    /// `model.vocab_size` of them.
    pub classes: Classes,
}

impl DecoderKind for StubKind {
    fn name(&self) -> &'static str {
        Stub::NAME
    }

    fn fused(&self) -> Fused {
        Fused::Stub { label_smoothing: self.label_smoothing }
    }

    /// One number: the class.
    fn target(&self, text: &str) -> Vec<u32> {
        vec![self.classes.of(text)]
    }

    fn any_target(&self, random: &mut dyn FnMut() -> u32) -> Vec<u32> {
        vec![self.classes.of(&random().to_string())]
    }

    /// A training text of the class.
    fn text(&self, prediction: &[u32]) -> Option<String> {
        prediction.first().and_then(|&class| self.classes.text(class)).map(str::to_owned)
    }

    /// Logits and probabilities, in f32.
    fn loss_bytes(&self, c: &config::Model, clips: usize) -> usize {
        [8, clips, c.vocab_size].into_iter().fold(4, usize::saturating_mul)
    }

    fn work(&self, c: &config::Model, clips: usize, _: usize) -> f64 {
        work::of_maps(clips, c.d_model.saturating_mul(c.vocab_size))
    }

    fn report(&self, train: &[&str], validation: &[&str]) -> TextReport {
        self.classes.report(&[train, validation].concat())
    }

    fn saved(&self) -> Vec<(&'static str, String)> {
        vec![(TEXTS, self.classes.to_saved())]
    }

    fn build(&self, b: &Builder, c: &config::Model) -> CandleResult<Box<dyn Decoder>> {
        let lm_head = Linear::new(&b.pp("lm_head"), c.d_model, c.vocab_size)?;
        let known = self.classes.with_texts();
        Ok(Box::new(Stub {
            lm_head,
            operations: b.operations(),
            known,
            label_smoothing: self.label_smoothing,
        }))
    }
}

/// Where a checkpoint has the training texts that stand for classes: JSON, a list.
pub const TEXTS: &str = "class_texts";

/// Mean over valid frames and a classifier (`lm_head`).
pub struct Stub {
    lm_head: Linear,
    operations: Rc<dyn Operations>,
    /// The classes that a training text stands for.
    known: Vec<u32>,
    label_smoothing: f64,
}

impl Stub {
    /// What the configuration calls it.
    pub const NAME: &'static str = "stub";

    /// The mean of the valid frames (B, D), 0 for a clip without one.
    fn mean(encoded: Encoded) -> CandleResult<Tensor> {
        let valid = encoded.pad_mask.to_dtype(DType::F32)?;
        let count = valid.sum_keepdim(1)?.clamp(1f32, f32::MAX)?; // (B, 1)
        encoded.frames.broadcast_mul(&valid.unsqueeze(2)?)?.sum(1)?.broadcast_div(&count)
    }
}

impl Decoder for Stub {
    fn operations(&self) -> &dyn Operations {
        self.operations.as_ref()
    }

    fn head(&self) -> &'static str {
        "lm_head"
    }

    fn logits(&self, encoded: Encoded, _: &Tensor, _: &Pass) -> Result<Tensor> {
        Ok(self.lm_head.forward(&Self::mean(encoded)?)?)
    }

    fn loss(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Loss> {
        let logits = self.logits(encoded, targets, pass)?;
        let mean = loss::cross_entropy(&logits, &targets.squeeze(1)?, self.label_smoothing)?;
        Ok(Loss { mean, weight: targets.dim(0)? })
    }

    fn score(&self, encoded: Encoded, targets: &Tensor) -> Result<Score> {
        let logits = self.logits(encoded, targets, &Pass::EVALUATION)?;
        let targets = targets.squeeze(1)?;
        let loss = loss::cross_entropy(&logits, &targets, self.label_smoothing)?.to_scalar::<f32>()?;
        // Counted on the host: a sum of Candle's u8 comparisons would wrap at 256.
        let right = logits.argmax(1)?.eq(&targets)?.to_vec1::<u8>()?;
        Ok(Score {
            loss: f64::from(loss),
            weight: targets.dim(0)?,
            correct: right.into_iter().map(usize::from).sum(),
        })
    }

    /// The most probable of the classes that a training text stands for, by their log-probabilities.
    fn translate(&self, encoded: Encoded, c: &config::Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let logits = self.lm_head.forward(&Self::mean(encoded)?)?;
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?.to_vec2::<f32>()?;
        let best = |scores: Vec<f32>| {
            let score = |class: u32| scores.get(class as usize).copied().unwrap_or(f32::NEG_INFINITY);
            let mut order = self.known.clone();
            order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
            order.truncate(c.n_best);
            let hypothesis = |class| Hypothesis { tokens: vec![class], score: f64::from(score(class)) };
            order.into_iter().map(hypothesis).collect()
        };
        Ok(log_probabilities.into_iter().map(best).collect())
    }

    fn ranks(&self, encoded: Encoded, targets: &Tensor) -> Result<Option<Vec<usize>>> {
        let logits = self.lm_head.forward(&Self::mean(encoded)?)?.to_vec2::<f32>()?;
        let targets = targets.squeeze(1)?.to_vec1::<u32>()?;
        let rank = |(logits, target): (Vec<f32>, u32)| {
            let own = logits.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
            logits.iter().filter(|&&logit| logit > own).count()
        };
        Ok(Some(logits.into_iter().zip(targets).map(rank).collect()))
    }

    /// As the graph does it, but for the order: the gradient of the classes' weight, the largest of the network's, comes
    /// last, when it is asked for.
    fn train(
        &self,
        encoded: Encoded,
        targets: &Tensor,
        _: &Pass,
        parameters: &[(&str, &Var)],
    ) -> Result<DecoderStep> {
        let frames = Var::from_tensor(&encoded.frames.detach())?;
        let mean = Self::mean(Encoded { frames: frames.as_tensor(), ..encoded })?;
        let (vectors, lm_head) = (mean.detach(), self.lm_head.detached());
        let logits = Var::from_tensor(&lm_head.forward(&vectors)?)?;
        let loss = loss::cross_entropy(&logits, &targets.squeeze(1)?, self.label_smoothing)?;
        let d_logits = gradient(&loss.backward()?, "the logits", &logits)?;
        let d_mean = d_logits.matmul(lm_head.weight())?;
        // The sum's gradient for `mean` is `d_mean`.
        let store = (mean * d_mean)?.sum_all()?.backward()?;
        let are_biases: Vec<bool> = parameters.iter().map(|(name, _)| name.ends_with("bias")).collect();
        let of_one = move |is_bias: bool| {
            Ok(if is_bias { d_logits.sum(0)? } else { d_logits.t()?.matmul(&vectors)? })
        };
        Ok(DecoderStep {
            loss: f64::from(loss.to_scalar::<f32>()?),
            weight: targets.dim(0)?,
            d_frames: gradient(&store, "the encoded frames", &frames)?,
            gradients: Box::new(move || are_biases.into_iter().map(of_one).collect()),
        })
    }
}
