//! The training loop.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::Result;
use crate::config::streams::image_streams;
use crate::config::{BestMetric, CheckpointEvery, Decoding, Experiment};
use crate::data::{Contents, Dataset, Phase};
use crate::engine::device::Compute;
use crate::engine::{End, Outcome, Placed, Step};
use crate::error::ErrorKind;
use crate::model::{DecoderKind, Hypothesis, ModuleOutput};
use crate::nn::Pass;
use crate::observe::Observer;
use crate::observe::metrics::{EpochMetrics, TranslationFigures};
use crate::observe::run_folder::{Best, RunFolder};
use crate::text::metrics;
use crate::train::nonfinite::Nonfinite;
use crate::train::progress::{Mean, Partial};
use crate::train::stop::{Signal, Stop};
use crate::train::{Feed, Progress, TrainingState, state};

/// Translations of an epoch that TensorBoard shows.
const SENTENCES: usize = 5;

/// The loop, and what it trains.
pub struct Trainer {
    /// What training changes, and what it depends on.
    pub state: TrainingState,
    rules: Rules,
    images_a_clip: usize,
    /// Images that this process has trained on in this epoch.
    images: usize,
}

/// What the loop does when, as the experiment says.
#[derive(Clone, Debug)]
struct Rules {
    accumulate: usize,
    grad_clip: Option<f64>,
    skip_nonfinite_steps: usize,
    checkpoint_every: CheckpointEvery,
    keep_checkpoints: usize,
    evaluate_every: Option<usize>,
    decoding: Decoding,
}

/// What validating gave.
struct Validated {
    loss: f64,
    accuracy: f64,
    /// Where the epoch translates.
    translation: Option<TranslationFigures>,
}

/// How a training run ended, where it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After its last epoch.
    Finished,
    /// By a signal, after a checkpoint, where there was anything to save.
    Stopped(Signal),
}

/// What a run works with.
pub struct Surroundings<'a, 'o> {
    /// The batches.
    pub feed: &'a mut Feed,
    /// Who is told.
    pub observer: &'a mut Observer<'o>,
    /// Where the checkpoints go.
    pub folder: &'a RunFolder,
    /// Who may end it.
    pub stop: &'a Stop,
}

/// When a checkpoint was written last, and what was in it.
struct LastCheckpoint {
    at: Instant,
    progress: Progress,
}

/// A step, and what the message needs where its numbers are not finite.
struct Window {
    step: Step,
    /// Positions of the clips in the dataset.
    clips: Vec<usize>,
    /// The first batch whose loss is not finite, or else the last one.
    suspect: Option<Placed>,
}

impl Trainer {
    /// At the start of an experiment on `dataset`, with initial weights from its seed.
    ///
    /// # Errors
    /// Where the tensor library or the GPU fails, or there is less memory than it takes.
    pub fn new(
        c: &Experiment,
        compute: &Compute,
        dataset: &Dataset,
        contents: Contents,
        decoder: &Rc<dyn DecoderKind>,
    ) -> Result<Self> {
        Ok(Self {
            state: TrainingState::new(c, compute, dataset, contents, Rc::clone(decoder))?,
            rules: Rules {
                accumulate: c.optimization.accumulate,
                grad_clip: c.optimization.grad_clip,
                skip_nonfinite_steps: c.optimization.skip_nonfinite_steps,
                checkpoint_every: c.run.checkpoint_every,
                keep_checkpoints: c.optimization.keep_checkpoints,
                evaluate_every: c.run.evaluate_every,
                // The metrics are of the best hypothesis.
                decoding: Decoding { n_best: 1, ..c.decoding.clone() },
            },
            images: 0,
            images_a_clip: image_streams().count() * c.model.sequence_length,
        })
    }

    /// Trains to the last epoch: each trains, validates, reports and saves. A signal, and data that cannot be read, end
    /// it after a checkpoint of all whole steps.
    ///
    /// # Errors
    /// Kind `Data` where a clip cannot be read, `Numbers` where a loss or gradient is not finite, `Run` where a
    /// checkpoint cannot be written.
    pub fn run(&mut self, with: &mut Surroundings) -> Result<Ended> {
        let mut saved = LastCheckpoint { at: Instant::now(), progress: self.state.progress.clone() };
        self.state.engine.push()?;
        with.observer.start(self.state.epochs, self.state.progress.epoch + 1, self.steps_an_epoch(with.feed));
        while !self.state.is_over() {
            match self.epoch(with, &mut saved) {
                Ok(None) => {}
                Ok(Some(signal)) => {
                    self.save_if_new(with, &mut saved)?;
                    with.observer.finish();
                    return Ok(Ended::Stopped(signal));
                }
                Err(mut error) => {
                    if error.kind == ErrorKind::Data
                        && let Err(unsaved) = self.save_if_new(with, &mut saved)
                    {
                        error.problems.extend(unsaved.problems);
                    }
                    return Err(error);
                }
            }
        }
        with.observer.finish();
        Ok(Ended::Finished)
    }

    fn steps_an_epoch(&self, feed: &Feed) -> usize {
        feed.steps().div_ceil(self.rules.accumulate)
    }

    /// One epoch, or what is left of it; the signal that ended it early.
    fn epoch(&mut self, with: &mut Surroundings, saved: &mut LastCheckpoint) -> Result<Option<Signal>> {
        let epoch = self.state.progress.epoch + 1;
        let begun = Instant::now();
        self.images = 0;
        with.observer.begin_epoch(epoch, self.steps_an_epoch(with.feed));
        while self.state.progress.partial.batches < with.feed.steps() {
            if let Some(signal) = with.stop.requested() {
                return Ok(Some(signal));
            }
            self.step(epoch, with)?;
            if self.is_due(saved) {
                self.save(with, saved)?;
            }
        }
        self.require_clips(with.feed)?;
        let train_seconds = begun.elapsed().as_secs_f64();
        let validated = match self.validate(epoch, with)? {
            Ok(validated) => validated,
            Err(signal) => return Ok(Some(signal)),
        };
        let Validated { loss: val_loss, accuracy: val_accuracy, translation } = validated;

        let partial = std::mem::take(&mut self.state.progress.partial);
        let metrics = EpochMetrics {
            epoch,
            train_loss: partial.loss.get(),
            val_loss,
            val_accuracy,
            translation,
            lr: self.state.schedule.lr(self.state.progress.step.saturating_sub(1)),
            grad_norm: partial.grad_norm.get(),
            skipped_steps: partial.skipped_steps,
            bad_clips: self.state.bad_clips.ids().keys().cloned().collect(),
            seconds: begun.elapsed().as_secs_f64(),
            images_per_second: self.images as f64 / train_seconds,
            data_wait_seconds: with.feed.take_wait().as_secs_f64(),
        };
        let value = value_of(self.state.best_metric, &metrics);
        self.state.schedule.end_epoch(self.state.progress.step, value);
        let value = value.filter(|value| value.is_finite());
        let best = value.filter(|&value| is_better(self.state.best_metric, value, self.state.progress.best));
        (self.state.progress.epoch, self.state.progress.val_loss) = (epoch, val_loss);
        if let Some(value) = best {
            let best = Best { epoch, value, val_loss, val_accuracy: Some(val_accuracy) };
            self.state.progress.best = Some(best);
        }
        let best = best.is_some();
        // What is another run's by now gets none of this one's lines.
        with.folder.still_held()?;
        // The curves first: resuming cuts off what is ahead of the checkpoint, and could not make up what is missing.
        with.observer.record_epoch(&metrics);
        self.save(with, saved)?;
        if best {
            state::keep_as_best(with.folder)?;
        }
        if self.rules.keep_checkpoints > 1 {
            with.folder.keep_epoch(epoch, self.rules.keep_checkpoints)?;
        }
        with.observer.end_epoch(&metrics, self.state.epochs, best);
        Ok(None)
    }

    /// Refuses an epoch in which no clip could be trained on.
    fn require_clips(&mut self, feed: &Feed) -> Result<()> {
        let partial = &self.state.progress.partial;
        // A step with clips adds to the loss, or is left out and counted.
        if partial.loss.weight > 0 || partial.skipped_steps > 0 {
            return Ok(());
        }
        // So that the epoch begins anew once there are clips again.
        self.state.progress.partial = Partial::default();
        Err(self.state.bad_clips.none_left("training", "data.train_index", &feed.split(Phase::Train)))
    }

    /// One training step, of as many batches as the experiment says or as the epoch still has.
    fn step(&mut self, epoch: usize, with: &mut Surroundings) -> Result<()> {
        let left = with.feed.steps() - self.state.progress.partial.batches;
        let batches = self.rules.accumulate.min(left);
        let mut window = Window { step: Step::of(batches), clips: Vec::new(), suspect: None };
        for _ in 0..batches {
            let batch = with.feed.next(Phase::Train, epoch - 1)?;
            self.count_skipped(&batch, with)?;
            if batch.clips() > 0 {
                self.forward_backward(batch, &mut window, with)?;
            }
        }
        if !window.step.is_empty() {
            self.state.progress.step += 1;
            self.update(epoch, batches, window, with)?;
        }
        self.state.progress.partial.batches += batches;
        Ok(())
    }

    /// Sends the next batch to a GPU while it computes with this one.
    fn look_ahead(&mut self, feed: &mut Feed) -> Result<()> {
        let ahead = if self.state.engine.sends_ahead() { feed.peek() } else { None };
        ahead.filter(|batch| batch.clips() > 0).map_or(Ok(()), |batch| self.state.engine.send(batch))
    }

    /// Notes the clips that a batch lacks.
    fn count_skipped(&mut self, batch: &Placed, with: &Surroundings) -> Result<()> {
        for clip in &batch.batch.skipped {
            if self.state.bad_clips.add(clip)? {
                with.observer.bad_clip(clip);
            }
        }
        Ok(())
    }

    /// Says so where the memory let fewer frames through at a time than before.
    fn note_chunk(&self, before: Option<usize>, with: &Surroundings) {
        if let (Some(frames), true) = (self.state.engine.chunk(), self.state.engine.chunk() != before) {
            with.observer.smaller_chunk(frames);
        }
    }

    fn forward_backward(
        &mut self,
        mut batch: Placed,
        window: &mut Window,
        with: &mut Surroundings,
    ) -> Result<()> {
        // As in one large batch, a clip's dropout masks depend on its place in the step.
        let pass = Pass {
            first_row: window.step.clips(),
            ..Pass::training(self.state.seed, self.state.progress.step)
        };
        let chunk = self.state.engine.chunk();
        let finite = |step: &Step| step.loss().is_none_or(f64::is_finite);
        let was_finite = window.step.is_empty() || finite(&window.step);
        self.state.engine.train(&mut batch, &pass, &mut window.step)?;
        self.note_chunk(chunk, with);
        window.clips.extend(&batch.batch.clips);
        if was_finite {
            window.suspect = Some(batch);
        }
        Ok(())
    }

    /// Updates the parameters, unless a number is not finite.
    fn update(
        &mut self,
        epoch: usize,
        batches: usize,
        window: Window,
        with: &mut Surroundings,
    ) -> Result<()> {
        let Window { step, clips, suspect } = window;
        // The step has been counted already.
        let at = self.state.progress.step - 1;
        let (rates, lr) = (self.state.schedule.rates(at), self.state.schedule.lr(at));
        let (known, weight) = (step.loss(), step.weight());
        let pending = self.state.engine.update(step, &rates, self.rules.grad_clip)?;
        self.look_ahead(with.feed)?;
        let Outcome { loss, norm, end } = self.state.engine.outcome(pending)?;
        let loss = known.unwrap_or(loss);
        match end {
            End::NotFinite => return self.leave_out(epoch, loss, norm, (&clips, suspect), with),
            End::Rescaled(scale) => {
                self.state.progress.partial.skipped_steps += 1;
                with.observer.rescaled(self.state.progress.step, scale);
                return Ok(());
            }
            End::Updated => {}
        }
        self.state.progress.nonfinite_in_a_row = 0;
        let partial = &mut self.state.progress.partial;
        partial.loss.add(loss, weight);
        partial.grad_norm.add(norm, 1);
        let step_of_epoch = (partial.batches + batches).div_ceil(self.rules.accumulate);
        let images = clips.len() * self.images_a_clip;
        self.images += images;
        with.observer.step(step_of_epoch, self.state.progress.step, loss, norm, lr, images);
        Ok(())
    }

    /// Leaves a step out, if the experiment lets it.
    fn leave_out(
        &mut self,
        epoch: usize,
        loss: f64,
        norm: f64,
        (clips, suspect): (&[usize], Option<Placed>),
        with: &mut Surroundings,
    ) -> Result<()> {
        let what = if loss.is_finite() {
            format!("the gradient's norm is {norm}")
        } else {
            format!("the loss is {loss}")
        };
        let mut found = Nonfinite {
            what,
            epoch,
            step: self.state.progress.step,
            lr: self.state.schedule.lr(self.state.progress.step - 1),
            clips: with.feed.ids(clips),
            skipped: self.state.progress.nonfinite_in_a_row,
            in_validation: false,
            activations: Ok(Vec::new()),
        };
        if self.state.progress.nonfinite_in_a_row < self.rules.skip_nonfinite_steps {
            self.state.progress.nonfinite_in_a_row += 1;
            self.state.progress.partial.skipped_steps += 1;
            with.observer.left_out(&found.line());
            return Ok(());
        }
        if let Some(batch) = suspect {
            found.clips = with.feed.ids(&batch.batch.clips);
            found.activations = self.activations(&batch);
        }
        Err(found.into_error())
    }

    /// One pass over the validation clips, or the signal that ended it.
    fn validate(&mut self, epoch: usize, with: &mut Surroundings) -> Result<Result<Validated, Signal>> {
        let (mut loss, mut correct) = (Mean::default(), 0);
        let translates = self.rules.evaluate_every.is_some_and(|every| epoch.is_multiple_of(every));
        let mut translations = Vec::new();
        with.observer.begin_validation(with.feed.validation_steps());
        for _ in 0..with.feed.validation_steps() {
            if let Some(signal) = with.stop.requested() {
                return Ok(Err(signal));
            }
            let mut batch = with.feed.next(Phase::Validation, epoch - 1)?;
            self.count_skipped(&batch, with)?;
            if batch.clips() == 0 {
                with.observer.validation_step();
                continue;
            }
            let chunk = self.state.engine.chunk();
            let evaluating = self.state.engine.evaluate(&mut batch)?;
            self.note_chunk(chunk, with);
            self.look_ahead(with.feed)?;
            let score = self.state.engine.score(evaluating)?;
            if !score.loss.is_finite() {
                let found = Nonfinite {
                    what: format!("the validation loss is {}", score.loss),
                    epoch,
                    step: self.state.progress.step,
                    lr: self.state.schedule.lr(self.state.progress.step.saturating_sub(1)),
                    clips: with.feed.ids(&batch.batch.clips),
                    skipped: 0,
                    in_validation: true,
                    activations: self.activations(&batch),
                };
                return Err(found.into_error());
            }
            loss.add(score.loss, score.weight);
            correct += score.correct;
            if translates {
                translations.extend(self.translate(&mut batch, with.feed)?);
            }
            with.observer.validation_step();
        }
        if loss.weight == 0 {
            let ids = with.feed.split(Phase::Validation);
            return Err(self.state.bad_clips.none_left("validation", "data.val_index", &ids));
        }
        let translation = translates.then(|| {
            with.observer.sentences(epoch, translations.get(..SENTENCES).unwrap_or(&translations));
            let [references, hypotheses] =
                [0, 1].map(|of| -> Vec<&str> { translations.iter().map(|pair| pair[of].as_str()).collect() });
            let (val_bleu, val_chrf, val_wer) = metrics::brief(&hypotheses, &references);
            TranslationFigures { val_bleu, val_chrf, val_wer }
        });
        let accuracy = correct as f64 / loss.weight as f64;
        Ok(Ok(Validated { loss: loss.get(), accuracy, translation }))
    }

    /// Of each clip of a batch, what was signed and what the network makes of it.
    fn translate(&mut self, batch: &mut Placed, feed: &Feed) -> Result<Vec<[String; 2]>> {
        let found = self.state.engine.translate(batch, &self.rules.decoding)?;
        let text = |hypotheses: &Vec<Hypothesis>| {
            hypotheses.first().and_then(|best| self.state.decoder.text(&best.tokens)).unwrap_or_default()
        };
        let pairs = batch.batch.clips.iter().zip(&found);
        Ok(pairs.map(|(&clip, found)| [feed.text(clip).to_owned(), text(found)]).collect())
    }

    /// How large the modules' outputs are for a batch, computed on the CPU.
    fn activations(&mut self, batch: &Placed) -> Result<Vec<ModuleOutput>, String> {
        let found = self.state.engine.pull().and_then(|()| self.state.engine.host().activations(batch));
        found.map_err(|error| error.to_string())
    }

    /// Whether the experiment wants a checkpoint inside the epoch now.
    fn is_due(&self, saved: &LastCheckpoint) -> bool {
        let due = |time: Duration| saved.at.elapsed() >= time;
        match self.rules.checkpoint_every {
            CheckpointEvery::Epoch => false,
            CheckpointEvery::Steps(steps) => self.state.progress.step.is_multiple_of(steps),
            CheckpointEvery::Time(time) => due(time),
        }
    }

    fn save_if_new(&mut self, with: &mut Surroundings, saved: &mut LastCheckpoint) -> Result<()> {
        if self.state.progress == saved.progress { Ok(()) } else { self.save(with, saved) }
    }

    fn save(&mut self, with: &mut Surroundings, saved: &mut LastCheckpoint) -> Result<()> {
        self.state.engine.pull()?;
        with.observer.flush();
        state::save(&self.state, with.folder)?;
        *saved = LastCheckpoint { at: Instant::now(), progress: self.state.progress.clone() };
        with.folder.still_there()
    }
}

/// What the best epoch is chosen by, of this one; none where it was not computed, or is no number.
fn value_of(metric: BestMetric, m: &EpochMetrics) -> Option<f64> {
    match metric {
        BestMetric::ValLoss => Some(m.val_loss),
        BestMetric::ValAccuracy => Some(m.val_accuracy),
        BestMetric::ValBleu => m.translation.map(|figures| figures.val_bleu),
        BestMetric::ValChrf => m.translation.map(|figures| figures.val_chrf),
        BestMetric::ValWer => m.translation.map(|figures| figures.val_wer),
    }
}

/// Whether `value` is strictly better than that of the best epoch so far.
fn is_better(metric: BestMetric, value: f64, best: Option<Best>) -> bool {
    best.is_none_or(|best| if metric.higher_is_better() { value > best.value } else { value < best.value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_its_direction() {
        let best = |value| Some(Best { epoch: 1, value, val_loss: 1.0, val_accuracy: None });
        for (metric, better, worse) in [
            (BestMetric::ValLoss, 0.4, 0.6),
            (BestMetric::ValWer, 0.4, 0.6),
            (BestMetric::ValAccuracy, 0.6, 0.4),
            (BestMetric::ValBleu, 0.6, 0.4),
            (BestMetric::ValChrf, 0.6, 0.4),
        ] {
            assert!(is_better(metric, better, best(0.5)), "{metric}");
            assert!(!is_better(metric, worse, best(0.5)) && !is_better(metric, 0.5, best(0.5)), "{metric}");
            assert!(is_better(metric, worse, None), "{metric}");
        }
    }
}
