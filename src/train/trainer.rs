//! The training loop.

use std::time::Instant;

use crate::Result;
use crate::config::Experiment;
use crate::data::Phase;
use crate::nn::Pass;
use crate::observe::metrics::EpochMetrics;
use crate::observe::{Observer, run_folder::RunFolder};
use crate::train::memory::Plan;
use crate::train::{Feed, Network, Optimizer, Schedule, state};

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
    epochs: usize,
    seed: u64,
    images_a_clip: usize,
    config: String,
}

/// Where a run stands; all of it is in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Epochs that are done.
    pub epoch: usize,
    /// Training steps that are done, over all epochs.
    pub step: u64,
    /// The lowest validation loss of any epoch; infinite before the first.
    pub best_val_loss: f64,
}

/// A mean over clips of what comes as means over batches.
#[derive(Default)]
struct Mean {
    sum: f64,
    clips: usize,
}

impl Mean {
    fn add(&mut self, mean: f64, clips: usize) {
        self.sum += mean * clips as f64;
        self.clips += clips;
    }

    fn get(&self) -> f64 {
        self.sum / self.clips as f64
    }
}

impl Trainer {
    /// At the start of an experiment, with initial weights from its seed.
    pub fn new(c: &Experiment, device: &candle_core::Device) -> Result<Self> {
        let network = Network::new(&c.model, c.optimization.label_smoothing, device, c.run.seed)?;
        let plan = Plan::new(c, &network.backbone_shape(), network.parameters().elements(""));
        let network = network.in_chunks(plan.chunk);
        let optimizer = Optimizer::new(&c.optimization, network.parameters());
        Ok(Self {
            network,
            plan,
            optimizer,
            schedule: Schedule::new(&c.optimization),
            progress: Progress { epoch: 0, step: 0, best_val_loss: f64::INFINITY },
            epochs: c.optimization.epochs,
            seed: c.run.seed,
            images_a_clip: 3 * c.model.sequence_length,
            config: c.to_checkpoint_toml(),
        })
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

    /// Trains to the last epoch: each trains, validates, reports and saves.
    pub fn run(&mut self, feed: &mut Feed, observer: &mut Observer, folder: &RunFolder) -> Result<()> {
        observer.start(self.epochs, self.progress.epoch + 1, feed.steps());
        for epoch in self.progress.epoch + 1..=self.epochs {
            let begun = Instant::now();
            let (train_loss, clips) = self.train_epoch(epoch, feed, observer)?;
            let train_seconds = begun.elapsed().as_secs_f64();
            let (val_loss, val_accuracy) = self.validate(epoch, feed, observer)?;
            let metrics = EpochMetrics {
                epoch,
                train_loss,
                val_loss,
                val_accuracy,
                lr: self.schedule.lr(),
                seconds: begun.elapsed().as_secs_f64(),
                images_per_second: (clips * self.images_a_clip) as f64 / train_seconds,
                data_wait_seconds: feed.take_wait().as_secs_f64(),
            };
            self.schedule.step();
            self.progress.epoch = epoch;
            let best = val_loss < self.progress.best_val_loss;
            if best {
                self.progress.best_val_loss = val_loss;
            }
            state::save_epoch(self, val_loss, best, folder)?;
            observer.end_epoch(&metrics, self.epochs, best);
        }
        observer.finish();
        Ok(())
    }

    /// One pass over the training clips; its mean loss and the number of clips.
    fn train_epoch(
        &mut self,
        epoch: usize,
        feed: &mut Feed,
        observer: &mut Observer,
    ) -> Result<(f64, usize)> {
        let mut loss = Mean::default();
        observer.begin_epoch(epoch, feed.steps());
        for step in 1..=feed.steps() {
            let batch = feed.next(Phase::Train, epoch - 1)?;
            let pass = Pass::training(self.seed, self.progress.step);
            let result = self.network.train(&batch.inputs, &batch.targets, &pass)?;
            let lr = self.schedule.lr();
            self.optimizer.step(self.network.parameters(), &result.gradients, lr)?;
            self.progress.step += 1;
            loss.add(result.loss, batch.clips);
            observer.step(step, self.progress.step, result.loss, lr, batch.clips * self.images_a_clip);
        }
        Ok((loss.get(), loss.clips))
    }

    /// One pass over the validation clips; its mean loss and the share of clips whose class was right.
    fn validate(&self, epoch: usize, feed: &mut Feed, observer: &mut Observer) -> Result<(f64, f64)> {
        let (mut loss, mut correct) = (Mean::default(), 0);
        observer.begin_validation(feed.validation_steps());
        for _ in 0..feed.validation_steps() {
            let batch = feed.next(Phase::Validation, epoch - 1)?;
            let score = self.network.evaluate(&batch.inputs, &batch.targets)?;
            loss.add(score.loss, batch.clips);
            correct += score.correct;
            observer.validation_step();
        }
        Ok((loss.get(), correct as f64 / loss.clips as f64))
    }
}
