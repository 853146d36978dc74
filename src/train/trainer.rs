//! The training loop.

use std::time::{Duration, Instant};

use candle_core::Tensor;

use crate::Result;
use crate::config::{CheckpointEvery, Chunk, Experiment};
use crate::data::{BadClips, Dataset, Phase};
use crate::error::Kind;
use crate::nn::Pass;
use crate::observe::metrics::EpochMetrics;
use crate::observe::{Observer, run_folder::RunFolder};
use crate::train::feed::DeviceBatch;
use crate::train::gradients::{self, Accumulator};
use crate::train::memory::Plan;
use crate::train::nonfinite::Nonfinite;
use crate::train::progress::Mean;
use crate::train::stop::{Signal, Stop};
use crate::train::{Feed, Network, Optimizer, Progress, Schedule, state};

/// Everything that training changes, and what it depends on.
pub struct Trainer {
    /// The network and its loss.
    pub network: Network,
    /// How much of a batch it takes at a time.
    pub plan: Plan,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// The learning rate.
    pub schedule: Schedule,
    /// Where the run stands.
    pub progress: Progress,
    /// The clips that it had to do without.
    pub bad_clips: BadClips,
    accumulator: Accumulator,
    rules: Rules,
    seed: u64,
    images_a_clip: usize,
    config: String,
    dataset: String,
    files: String,
}

/// What the loop does when, as the experiment says.
#[derive(Clone, Copy, Debug)]
struct Rules {
    epochs: usize,
    accumulate: usize,
    grad_clip: Option<f64>,
    skip_nonfinite_steps: usize,
    checkpoint_every: CheckpointEvery,
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
struct Saved {
    at: Instant,
    progress: Progress,
}

/// What came of the batches of one step.
#[derive(Default)]
struct Window {
    batches: usize,
    loss: Mean,
    /// Positions of the clips in the dataset.
    clips: Vec<usize>,
    /// The gradients of a window of one batch; those of several are in the accumulator.
    gradients: Vec<Tensor>,
    /// The first batch whose loss is not finite, or else the last one.
    suspect: Option<DeviceBatch>,
}

impl Trainer {
    /// At the start of an experiment, with initial weights from its seed.
    pub fn new(c: &Experiment, device: &candle_core::Device) -> Result<Self> {
        let network = Network::new(&c.model, c.optimization.label_smoothing, device, c.run.seed)?;
        let plan = Plan::new(c, &network.backbone_shape(), network.parameters().elements(""), device);
        let network =
            network.in_chunks(plan.chunk).or_fewer(matches!(c.optimization.frames_per_chunk, Chunk::Auto));
        let optimizer = Optimizer::new(&c.optimization, network.parameters());
        Ok(Self {
            network,
            plan,
            optimizer,
            schedule: Schedule::new(&c.optimization),
            progress: Progress::default(),
            bad_clips: BadClips::new(0),
            accumulator: Accumulator::default(),
            rules: Rules {
                epochs: c.optimization.epochs,
                accumulate: c.optimization.accumulate,
                grad_clip: c.optimization.grad_clip,
                skip_nonfinite_steps: c.optimization.skip_nonfinite_steps,
                checkpoint_every: c.run.checkpoint_every,
            },
            seed: c.run.seed,
            images_a_clip: 3 * c.model.sequence_length,
            config: c.to_checkpoint_toml(),
            dataset: String::new(),
            files: String::new(),
        })
    }

    /// Notes which data it trains on.
    #[must_use]
    pub fn on_dataset(mut self, dataset: &Dataset) -> Self {
        (self.dataset, self.files) = (dataset.fingerprint(), dataset.files_fingerprint());
        self.bad_clips = BadClips::new(dataset.clips.len());
        self
    }

    /// How many epochs it trains in all.
    #[must_use]
    pub fn epochs(&self) -> usize {
        self.rules.epochs
    }

    /// The run's seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The experiment, as a checkpoint keeps it.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Which data it trains on: [`Dataset::fingerprint`].
    #[must_use]
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Which files these have: [`Dataset::files_fingerprint`].
    #[must_use]
    pub fn files(&self) -> &str {
        &self.files
    }

    /// Trains to the last epoch: each trains, validates, reports and saves. A signal, and data that cannot be read, end
    /// it after a checkpoint of all whole steps.
    ///
    /// # Errors
    /// Kind `Data` where a clip cannot be read, `Numbers` where a loss or gradient is not finite, `Run` where a
    /// checkpoint cannot be written.
    pub fn run(&mut self, with: &mut Surroundings) -> Result<Ended> {
        let mut saved = Saved { at: Instant::now(), progress: self.progress.clone() };
        with.observer.start(self.rules.epochs, self.progress.epoch + 1, self.steps_an_epoch(with.feed));
        while self.progress.epoch < self.rules.epochs {
            match self.epoch(with, &mut saved) {
                Ok(None) => {}
                Ok(Some(signal)) => {
                    self.save_if_new(with, &mut saved)?;
                    with.observer.finish();
                    return Ok(Ended::Stopped(signal));
                }
                Err(mut error) => {
                    if error.kind == Kind::Data
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
    fn epoch(&mut self, with: &mut Surroundings, saved: &mut Saved) -> Result<Option<Signal>> {
        let epoch = self.progress.epoch + 1;
        let (begun, clips) = (Instant::now(), self.progress.partial.loss.weight);
        with.observer.begin_epoch(epoch, self.steps_an_epoch(with.feed));
        while self.progress.partial.batches < with.feed.steps() {
            if let Some(signal) = with.stop.requested() {
                return Ok(Some(signal));
            }
            self.step(epoch, with)?;
            if self.is_due(saved) {
                self.save(with, saved)?;
            }
        }
        let (train_seconds, clips) =
            (begun.elapsed().as_secs_f64(), self.progress.partial.loss.weight - clips);
        let (val_loss, val_accuracy) = match self.validate(epoch, with)? {
            Ok(scores) => scores,
            Err(signal) => return Ok(Some(signal)),
        };

        let partial = std::mem::take(&mut self.progress.partial);
        let metrics = EpochMetrics {
            epoch,
            train_loss: partial.loss.get(),
            val_loss,
            val_accuracy,
            lr: self.schedule.lr(),
            grad_norm: partial.grad_norm.get(),
            skipped_steps: partial.skipped_steps,
            bad_clips: self.bad_clips.ids().keys().cloned().collect(),
            seconds: begun.elapsed().as_secs_f64(),
            images_per_second: (clips * self.images_a_clip) as f64 / train_seconds,
            data_wait_seconds: with.feed.take_wait().as_secs_f64(),
        };
        self.schedule.step();
        let best = val_loss < self.progress.best_val_loss;
        (self.progress.epoch, self.progress.val_loss) = (epoch, val_loss);
        if best {
            (self.progress.best_val_loss, self.progress.best_epoch) = (val_loss, epoch);
        }
        // The curves first: resuming cuts off what is ahead of the checkpoint, and could not make up what is missing.
        with.observer.record_epoch(&metrics);
        self.save(with, saved)?;
        if best {
            state::keep_as_best(with.folder)?;
        }
        with.observer.end_epoch(&metrics, self.rules.epochs, best);
        Ok(None)
    }

    /// One training step, of as many batches as the experiment says or as the epoch still has.
    fn step(&mut self, epoch: usize, with: &mut Surroundings) -> Result<()> {
        let left = with.feed.steps() - self.progress.partial.batches;
        let mut window = Window { batches: self.rules.accumulate.min(left), ..Window::default() };
        for _ in 0..window.batches {
            let batch = with.feed.next(Phase::Train, epoch - 1)?;
            self.count_skipped(&batch, with)?;
            if !batch.clips.is_empty() {
                self.forward_backward(batch, &mut window, with)?;
            }
        }
        if window.loss.weight > 0 {
            self.progress.step += 1;
            self.update(epoch, &window, with)?;
        }
        self.accumulator.clear()?;
        self.progress.partial.batches += window.batches;
        Ok(())
    }

    /// Notes the clips that a batch lacks.
    fn count_skipped(&mut self, batch: &DeviceBatch, with: &Surroundings) -> Result<()> {
        for clip in &batch.skipped {
            if self.bad_clips.add(clip)? {
                with.observer.bad_clip(clip);
            }
        }
        Ok(())
    }

    /// Says so where the GPU's memory let fewer frames through at a time than were planned.
    fn note_chunk(&mut self, with: &Surroundings) {
        let chunk = self.network.chunk();
        if let (Some(frames), true) = (chunk, chunk != self.plan.chunk) {
            with.observer.smaller_chunk(frames);
            self.plan.chunk = chunk;
        }
    }

    fn forward_backward(
        &mut self,
        batch: DeviceBatch,
        window: &mut Window,
        with: &Surroundings,
    ) -> Result<()> {
        // As in one large batch, a clip's dropout masks depend on its place in the step.
        let pass = Pass { first_row: window.loss.weight, ..Pass::training(self.seed, self.progress.step) };
        let result = self.network.train(&batch.inputs, &batch.targets, &pass)?;
        self.note_chunk(with);
        if window.batches > 1 {
            self.accumulator.add(&result.gradients, batch.clips.len())?;
        } else {
            window.gradients = result.gradients;
        }
        let was_finite = window.loss.sum.is_finite();
        window.loss.add(result.loss, batch.clips.len());
        window.clips.extend(&batch.clips);
        if was_finite {
            window.suspect = Some(batch);
        }
        Ok(())
    }

    /// Updates the parameters, unless a number is not finite.
    fn update(&mut self, epoch: usize, window: &Window, with: &mut Surroundings) -> Result<()> {
        let (gradients, share) = if window.batches > 1 {
            let (sums, clips) = self.accumulator.sums();
            (sums, 1.0 / clips as f64)
        } else {
            (window.gradients.as_slice(), 1.0)
        };
        let (loss, norm) = (window.loss.get(), gradients::norm(gradients)? * share);
        let lr = self.schedule.lr();
        if !(loss.is_finite() && norm.is_finite()) {
            return self.leave_out(epoch, window, norm, with);
        }
        let factor = self.rules.grad_clip.map_or(1.0, |most| gradients::clip_factor(norm, most));
        self.optimizer.step(self.network.parameters(), gradients, lr, share * factor)?;

        self.progress.nonfinite_in_a_row = 0;
        let partial = &mut self.progress.partial;
        partial.loss.add(loss, window.loss.weight);
        partial.grad_norm.add(norm, 1);
        let step_of_epoch = (partial.batches + window.batches).div_ceil(self.rules.accumulate);
        let images = window.loss.weight * self.images_a_clip;
        with.observer.step(step_of_epoch, self.progress.step, loss, norm, lr, images);
        Ok(())
    }

    /// Leaves a step out, if the experiment lets it.
    fn leave_out(&mut self, epoch: usize, window: &Window, norm: f64, with: &mut Surroundings) -> Result<()> {
        let loss = window.loss.get();
        let what = if loss.is_finite() {
            format!("the gradient's norm is {norm}")
        } else {
            format!("the loss is {loss}")
        };
        let mut found = Nonfinite {
            what,
            epoch,
            step: self.progress.step,
            lr: self.schedule.lr(),
            clips: with.feed.ids(&window.clips),
            skipped: self.progress.nonfinite_in_a_row,
            in_validation: false,
            activations: Ok(Vec::new()),
        };
        if self.progress.nonfinite_in_a_row < self.rules.skip_nonfinite_steps {
            self.progress.nonfinite_in_a_row += 1;
            self.progress.partial.skipped_steps += 1;
            with.observer.left_out(&found.line());
            return Ok(());
        }
        if let Some(batch) = &window.suspect {
            found.clips = with.feed.ids(&batch.clips);
            found.activations = self.network.activations(&batch.inputs).map_err(|error| error.to_string());
        }
        Err(found.into_error())
    }

    /// One pass over the validation clips: its mean loss and the share of clips whose class was right, or the signal
    /// that ended it.
    fn validate(&mut self, epoch: usize, with: &mut Surroundings) -> Result<Result<(f64, f64), Signal>> {
        let (mut loss, mut correct) = (Mean::default(), 0);
        with.observer.begin_validation(with.feed.validation_steps());
        for _ in 0..with.feed.validation_steps() {
            if let Some(signal) = with.stop.requested() {
                return Ok(Err(signal));
            }
            let batch = with.feed.next(Phase::Validation, epoch - 1)?;
            self.count_skipped(&batch, with)?;
            if batch.clips.is_empty() {
                with.observer.validation_step();
                continue;
            }
            let score = self.network.evaluate(&batch.inputs, &batch.targets)?;
            self.note_chunk(with);
            if !score.loss.is_finite() {
                let found = Nonfinite {
                    what: format!("the validation loss is {}", score.loss),
                    epoch,
                    step: self.progress.step,
                    lr: self.schedule.lr(),
                    clips: with.feed.ids(&batch.clips),
                    skipped: 0,
                    in_validation: true,
                    activations: self.network.activations(&batch.inputs).map_err(|error| error.to_string()),
                };
                return Err(found.into_error());
            }
            loss.add(score.loss, batch.clips.len());
            correct += score.correct;
            with.observer.validation_step();
        }
        Ok(Ok((loss.get(), correct as f64 / loss.weight as f64)))
    }

    /// Whether the experiment wants a checkpoint inside the epoch now.
    fn is_due(&self, saved: &Saved) -> bool {
        let due = |time: Duration| saved.at.elapsed() >= time;
        match self.rules.checkpoint_every {
            CheckpointEvery::Epoch => false,
            CheckpointEvery::Steps(steps) => self.progress.step.is_multiple_of(steps),
            CheckpointEvery::Time(time) => due(time),
        }
    }

    fn save_if_new(&self, with: &mut Surroundings, saved: &mut Saved) -> Result<()> {
        if self.progress == saved.progress { Ok(()) } else { self.save(with, saved) }
    }

    fn save(&self, with: &mut Surroundings, saved: &mut Saved) -> Result<()> {
        with.observer.flush();
        state::save(self, with.folder)?;
        *saved = Saved { at: Instant::now(), progress: self.progress.clone() };
        Ok(())
    }
}
