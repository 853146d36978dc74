//! What a run is made of while it trains: what a checkpoint holds.

use std::rc::Rc;

use crate::Result;
use crate::config::{BestMetric, Edit, Experiment, with_edits};
use crate::data::{BadClips, Contents, Dataset};
use crate::engine::device::Compute;
use crate::engine::{self, Engine, memory};
use crate::model::DecoderKind;
use crate::optim::Schedule;
use crate::train::Progress;
use crate::train::progress::Partial;

/// Everything that training changes, and what it depends on.
pub struct TrainingState {
    /// The network and its optimizer.
    pub engine: Box<dyn Engine>,
    /// The learning rate.
    pub schedule: Schedule,
    /// Where the run stands.
    pub progress: Progress,
    /// The clips that it had to do without.
    pub bad_clips: BadClips,
    /// What the run went on with from some step, although it made it another experiment.
    pub edits: Vec<Edit>,
    /// What texts are to the network.
    pub decoder: Rc<dyn DecoderKind>,
    /// What the best epoch is the best by.
    pub best_metric: BestMetric,
    /// How many epochs it trains in all.
    pub epochs: usize,
    /// After how many epochs without a better one it ends before.
    pub early_stopping: Option<usize>,
    /// The run's seed.
    pub seed: u64,
    /// Which data it trains on: [`Dataset::fingerprint`].
    pub dataset: String,
    /// Which files these have: [`Dataset::files_fingerprint`].
    pub files: String,
    /// What is in these: [`Dataset::contents`].
    pub contents: Contents,
    config: String,
}

impl TrainingState {
    /// At the start of an experiment on `dataset`, with initial weights from its seed.
    ///
    /// # Errors
    /// Where the tensor library or the GPU fails, or there is less memory than it takes.
    pub fn new(
        c: &Experiment,
        compute: &Compute,
        dataset: &Dataset,
        contents: Contents,
        decoder: Rc<dyn DecoderKind>,
    ) -> Result<Self> {
        // The memory that is planned is that of batches that the dataset can fill.
        let sized = memory::with_batches_of(c, dataset.train.len(), dataset.val.len());
        let engine = engine::with_decoder(&sized, compute, decoder.as_ref())?;
        let schedule = Schedule::new(&c.optimization, engine.host().optimizer.groups());
        Ok(Self {
            engine,
            schedule,
            progress: Progress::default(),
            bad_clips: BadClips::new(dataset.clips.len()),
            edits: Vec::new(),
            decoder,
            best_metric: c.optimization.best_metric,
            epochs: c.optimization.epochs,
            early_stopping: c.optimization.early_stopping,
            seed: c.run.seed,
            dataset: dataset.fingerprint(),
            files: dataset.files_fingerprint(),
            contents,
            config: c.to_checkpoint_toml(),
        })
    }

    /// Whether it has gone on for so long without a better epoch that it ends; for how many epochs.
    #[must_use]
    pub fn is_stopped_early(&self) -> Option<usize> {
        let without = self.progress.epochs_without_better();
        self.early_stopping
            .filter(|&patience| without >= patience && self.progress.partial == Partial::default())
            .map(|_| without)
    }

    /// Whether there is nothing left to train.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.progress.epoch >= self.epochs || self.is_stopped_early().is_some()
    }

    /// The experiment, as a checkpoint keeps it: with what it was changed by.
    #[must_use]
    pub fn config(&self) -> String {
        with_edits(&self.config, &self.edits)
    }
}
