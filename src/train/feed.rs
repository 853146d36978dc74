//! What the training loop eats: the batches of every epoch in order, loaded ahead.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::data::{Dataset, Loader, Phase, Request, requests};
use crate::engine::Placed;
use crate::model::DecoderKind;
use crate::{Error, Result};

/// The batches of a run from one epoch to its last, training and validation in turn, so that loading ahead does not
/// stop where an epoch ends.
pub struct Feed {
    loader: Loader,
    dataset: Arc<Dataset>,
    /// Of each of the dataset's clips.
    targets: Vec<Vec<u32>>,
    /// The batch after the one that was given last, where it has been looked at.
    ahead: Option<Result<(Request, Placed)>>,
    steps: usize,
    validation_steps: usize,
}

impl Feed {
    /// Over `epochs` (counted from 0) of `dataset`, without the first `done` training batches of the first of them. What is
    /// to be predicted of its texts, `decoder` says.
    #[must_use]
    pub fn new(
        dataset: &Arc<Dataset>,
        decoder: &dyn DecoderKind,
        c: &config::Data,
        seed: u64,
        epochs: Range<usize>,
        done: usize,
    ) -> Self {
        let sizes = [c.batch_size, c.val_batch_size.unwrap_or(c.batch_size)];
        let clips = [dataset.train.clone(), dataset.val.clone()];
        let [steps, validation_steps] = [0, 1].map(|split| clips[split].len().div_ceil(sizes[split]));
        let workers = c.num_workers.unwrap_or_else(default_workers);
        let requests = requests(seed, clips, sizes, epochs).skip(done);
        Self { steps, validation_steps, ..Self::of(dataset, decoder, workers, requests) }
    }

    /// Of these requests, on so many threads.
    #[must_use]
    pub fn of(
        dataset: &Arc<Dataset>,
        decoder: &dyn DecoderKind,
        workers: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Self {
        let loader = Loader::new(Arc::clone(dataset), workers, requests);
        let targets = dataset.clips.iter().map(|clip| decoder.target(&clip.text)).collect();
        let dataset = Arc::clone(dataset);
        Self { loader, dataset, targets, ahead: None, steps: 0, validation_steps: 0 }
    }

    /// Training batches an epoch.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Validation batches an epoch.
    #[must_use]
    pub fn validation_steps(&self) -> usize {
        self.validation_steps
    }

    /// The ids of the split that batches of `phase` are of.
    #[must_use]
    pub fn split(&self, phase: Phase) -> Vec<String> {
        self.ids(match phase {
            Phase::Train => &self.dataset.train,
            Phase::Validation => &self.dataset.val,
        })
    }

    /// The ids of the clips at `positions`.
    #[must_use]
    pub fn ids(&self, positions: &[usize]) -> Vec<String> {
        let id = |&position: &usize| self.dataset.clips.get(position).map(|clip| clip.id.clone());
        positions.iter().filter_map(id).collect()
    }

    /// The text of the clip at `position`, as written.
    #[must_use]
    pub fn text(&self, position: usize) -> &str {
        self.dataset.clips.get(position).map_or("", |clip| clip.text.as_str())
    }

    /// The next batch, which is of `phase` and `epoch` (from 0): the loop asks for them in the order of the plan.
    pub fn next(&mut self, phase: Phase, epoch: usize) -> Result<Placed> {
        let (request, batch) = match self.ahead.take() {
            Some(ahead) => ahead?,
            None => self
                .load()
                .ok_or_else(|| Error::run("the loader has no batch where the loop expects one"))??,
        };
        if request.phase != phase || request.epoch != epoch {
            return Err(Error::run("the loader's batches are out of step with the loop"));
        }
        Ok(batch)
    }

    /// The batch that [`Self::next`] will give, once it is loaded; none after the last, or where it cannot be had.
    pub fn peek(&mut self) -> Option<&mut Placed> {
        if self.ahead.is_none() {
            self.ahead = self.load();
        }
        self.ahead.as_mut().and_then(|ahead| ahead.as_mut().ok()).map(|(_, batch)| batch)
    }

    fn load(&mut self) -> Option<Result<(Request, Placed)>> {
        let loaded = self.loader.next()?;
        Some(loaded.and_then(|(request, batch)| {
            let targets: Option<_> =
                batch.clips.iter().map(|&clip| self.targets.get(clip).cloned()).collect();
            let targets = targets.ok_or_else(|| Error::run("a batch has a clip that the dataset has not"))?;
            Ok((request, Placed::new(batch, targets)))
        }))
    }

    /// How long [`Self::next`] has waited for data since the last call.
    pub fn take_wait(&mut self) -> Duration {
        self.loader.take_wait()
    }
}

/// The cores at hand, at most 8.
#[must_use]
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8)
}
