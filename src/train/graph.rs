//! The training step as one graph of Candle's operations, on any device, in chunks of frames where memory asks for it.

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Error, Result, Tensor, Var};

use super::network::Step;
use crate::model::{Classifier, Inputs};
use crate::nn::{Pass, loss};

/// A classifier, and its twin over the same parameters that keeps no graph.
pub(super) struct Graph<'a> {
    pub classifier: &'a Classifier,
    pub evaluator: &'a Classifier,
    pub label_smoothing: f64,
}

impl Graph<'_> {
    /// Forward and backward; `targets` (B) are class indices, u32. With a `chunk`, that many frames of a stream go
    /// through its backbone at a time: the forward pass keeps no graph, and each chunk is computed again, with a graph
    /// of its own, when the gradients of its features are there. Losses and gradients are the same but for rounding.
    pub fn train(
        &self,
        chunk: Option<usize>,
        inputs: &Inputs,
        targets: &Tensor,
        pass: &Pass,
    ) -> Result<Step> {
        let images = inputs.images[0].count()?;
        match chunk.filter(|&chunk| chunk < images) {
            None => self.train_at_once(inputs, targets, pass),
            Some(chunk) => self.train_in_chunks(chunk, inputs, targets, pass),
        }
    }

    fn train_at_once(&self, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        let begun = Instant::now();
        let logits = self.classifier.forward(inputs, pass)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let forward = begun.elapsed();
        let store = loss.backward()?;
        let parameters = self.classifier.parameters();
        let gradients: Result<_> = parameters.iter().map(|(name, var)| gradient(&store, name, var)).collect();
        let (gradients, loss) = (gradients?, f64::from(loss.to_scalar::<f32>()?));
        Ok(Step { loss, gradients, forward, backward: begun.elapsed().saturating_sub(forward) })
    }

    fn train_in_chunks(&self, chunk: usize, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        let begun = Instant::now();
        let features: Result<Vec<Var>> =
            self.features(Some(chunk), inputs, pass)?.iter().map(Var::from_tensor).collect();
        let features = features?;
        let leaves: Vec<Tensor> = features.iter().map(|var| var.as_tensor().clone()).collect();
        let logits = self.classifier.head(&leaves, inputs, pass)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let forward = begun.elapsed();
        let store = loss.backward()?;

        let images_pass = inputs.images_pass(pass)?;
        let mut parameters = self.classifier.parameters().iter();
        let mut gradients = Vec::with_capacity(parameters.size_hint().0);
        for ((net, images), features) in self.classifier.backbones().iter().zip(&inputs.images).zip(&features)
        {
            let vars: Vec<(&str, &Var)> = parameters.by_ref().take(net.parameter_count()).collect();
            let d_features = gradient(&store, "a backbone's features", features)?;
            let mut sums: Vec<Tensor> = Vec::new();
            for (start, count) in parts(images.count()?, chunk) {
                let pass = Pass { first_row: images_pass.first_row + start, ..images_pass };
                let part = net.forward(&images.narrow(start, count)?, &pass)?;
                // The gradient of this sum for `part` is that of the loss.
                let store = (part * d_features.narrow(0, start, count)?)?.sum_all()?.backward()?;
                for (i, (name, var)) in vars.iter().enumerate() {
                    let here = gradient(&store, name, var)?;
                    match sums.get_mut(i) {
                        Some(sum) => *sum = (&*sum + here)?,
                        None => sums.push(here),
                    }
                }
            }
            gradients.append(&mut sums);
        }
        for (name, var) in parameters {
            gradients.push(gradient(&store, name, var)?);
        }
        let loss = f64::from(loss.to_scalar::<f32>()?);
        Ok(Step { loss, gradients, forward, backward: begun.elapsed().saturating_sub(forward) })
    }

    /// Logits (B, V), without dropout and without a graph.
    pub fn logits(&self, chunk: Option<usize>, inputs: &Inputs) -> Result<Tensor> {
        let features = self.features(chunk, inputs, &Pass::EVALUATION)?;
        self.evaluator.head(&features, inputs, &Pass::EVALUATION)
    }

    /// Each backbone's features (N, D), without a graph.
    fn features(&self, chunk: Option<usize>, inputs: &Inputs, pass: &Pass) -> Result<Vec<Tensor>> {
        let images_pass = inputs.images_pass(pass)?;
        let of_stream = |(net, images): (&crate::model::VisionTransformer, &crate::nn::Images)| {
            let count = images.count()?;
            let parts: Result<Vec<Tensor>> = parts(count, chunk.unwrap_or(count))
                .map(|(start, count)| {
                    let pass = Pass { first_row: images_pass.first_row + start, ..images_pass };
                    net.forward(&images.narrow(start, count)?, &pass)
                })
                .collect();
            Tensor::cat(&parts?, 0)
        };
        self.evaluator.backbones().iter().zip(&inputs.images).map(of_stream).collect()
    }
}

/// Start and length of each part of at most `size` out of `all`.
fn parts(all: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = size.max(1);
    (0..all).step_by(size).map(move |start| (start, size.min(all - start)))
}

fn gradient(store: &GradStore, name: &str, var: &Var) -> Result<Tensor> {
    // Detached: a stored gradient can carry a graph of its own.
    let found = store.get(var).map(Tensor::detach);
    found.ok_or_else(|| Error::Msg(format!("{name} got no gradient")))
}
