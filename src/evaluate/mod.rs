//! A trained network on clips: what it makes of them, how good that is, and the files that tell of it.

mod results;
mod trained;

use std::rc::Rc;
use std::sync::Arc;

use crate::config::Experiment;
use crate::data::{Dataset, Phase, Request, SkippedClip};
use crate::engine::{Engine, Placed};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::DecoderKind;
use crate::train::Feed;
use crate::train::feed::default_workers;
use crate::train::progress::Mean;

pub use results::{Results, predictions_csv, write_beside};
pub use trained::{CheckpointChoice, Place, Trained};

/// A clip, and what the network makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// The `video_id`.
    pub id: String,
    /// Its text, where there is one.
    pub reference: String,
    /// The texts that were found, the best first, with their scores; at least one.
    pub hypotheses: Vec<(String, f64)>,
}

impl Translation {
    /// The best hypothesis.
    #[must_use]
    pub fn hypothesis(&self) -> &str {
        self.hypotheses.first().map_or("", |(text, _)| text)
    }
}

/// What a network gave for the clips of a split.
#[derive(Debug, Default)]
pub struct Translated {
    /// The clips, in the split's order.
    pub translations: Vec<Translation>,
    /// How well it predicts the texts themselves, where there are texts.
    pub score: Option<TextScore>,
    /// Clips that could not be loaded, where the experiment says to skip them.
    pub skipped: Vec<SkippedClip>,
}

/// How well a network predicts the texts of clips, told what came before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextScore {
    /// The loss that training lowers, over all that was predicted.
    pub loss: Mean,
    /// How much of it was right.
    pub correct: usize,
    /// Of each clip, how many classes are more probable than its own; for a decoder of classes.
    pub ranks: Vec<usize>,
}

/// Translates the validation split of `dataset`; `progress` is told of the clips that are done and of all.
///
/// # Errors
/// Of kind `Data` where a clip cannot be loaded and may not be skipped, or where none is left; as [`Engine::translate`].
pub fn translate(
    engine: &mut dyn Engine,
    decoder: &Rc<dyn DecoderKind>,
    dataset: &Arc<Dataset>,
    c: &Experiment,
    progress: &dyn Fn(usize, usize),
) -> Result<Translated> {
    let has_texts = dataset.val.iter().any(|&clip| !dataset.clips[clip].text.is_empty());
    let size = c.data.val_batch_size.unwrap_or(c.data.batch_size).max(1);
    let request = |clips: &[usize]| Request { phase: Phase::Validation, epoch: 0, clips: clips.to_vec() };
    let requests: Vec<Request> = dataset.val.chunks(size).map(request).collect();
    let (batches, workers) = (requests.len(), c.data.num_workers.unwrap_or_else(default_workers));
    let mut feed = Feed::of(dataset, decoder.as_ref(), workers, requests.into_iter());
    let mut found = Translated { score: has_texts.then(TextScore::default), ..Translated::default() };
    for _ in 0..batches {
        let mut batch = feed.next(Phase::Validation, 0)?;
        found.skipped.append(&mut batch.batch.skipped);
        if batch.clips() == 0 {
            continue;
        }
        if let Some(score) = &mut found.score {
            score.add(engine, &mut batch)?;
        }
        let hypotheses = engine.translate(&mut batch, &c.decoding)?;
        for (&clip, hypotheses) in batch.batch.clips.iter().zip(hypotheses) {
            let text = |tokens: &[u32]| decoder.text(tokens).unwrap_or_default();
            let mut hypotheses: Vec<_> = hypotheses.iter().map(|it| (text(&it.tokens), it.score)).collect();
            if hypotheses.is_empty() {
                hypotheses.push((String::new(), f64::NEG_INFINITY));
            }
            let clip = &dataset.clips[clip];
            let (id, reference) = (clip.id.clone(), clip.text.clone());
            found.translations.push(Translation { id, reference, hypotheses });
        }
        progress(found.translations.len(), dataset.val.len());
    }
    if found.translations.is_empty() {
        let problem = Problem::new("none of the clips can be loaded");
        let problem = found.skipped.first().map_or(problem.clone(), |first| problem.cause(&first.problem));
        return Err(Error::new(ErrorKind::Data, problem));
    }
    Ok(found)
}

impl TextScore {
    fn add(&mut self, engine: &mut dyn Engine, batch: &mut Placed) -> Result<()> {
        engine.send(batch)?;
        let evaluating = engine.evaluate(batch)?;
        let score = engine.score(evaluating)?;
        self.loss.add(score.loss, score.weight);
        self.correct += score.correct;
        let frames = engine.encode(batch)?;
        self.ranks.extend(engine.host().ranks(&frames, batch)?.into_iter().flatten());
        Ok(())
    }

    /// The share of what was predicted that was right, 0 to 1.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.loss.weight as f64
    }

    /// The share of clips whose class is among the `most` most probable ones; none for a decoder without classes.
    #[must_use]
    pub fn among(&self, most: usize) -> Option<f64> {
        let within = self.ranks.iter().filter(|&&rank| rank < most).count();
        (!self.ranks.is_empty()).then(|| within as f64 / self.ranks.len() as f64)
    }
}
