//! Batches ahead of the trainer: threads load single clips, and the batches come out in the order of the requests.

use super::bad_clips::SkippedClip;
use super::batch::{Batch, Request, Sample};
use super::dataset::Dataset;
use super::image::ImageDecoder;
use crate::config::OnBadClip;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::guarded;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many batches are loaded while the trainer works on one.
const AHEAD: usize = 2;

/// Loads batches on threads, or in the calling thread where it has none. What comes out depends on the requests
/// alone, never on the number of threads. The threads never call the tensor library.
pub struct Loader {
    dataset: Arc<Dataset>,
    requests: Box<dyn Iterator<Item = Request> + Send>,
    /// What has been asked of the threads and not been handed out yet, in order.
    pending: VecDeque<(Request, Arc<Slot>)>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    waited: Duration,
    /// For loading without threads.
    scratch: Scratch,
}

/// One clip to load, and where it goes.
struct Task {
    slot: Arc<Slot>,
    request: Request,
    position: usize,
}

/// A batch that is being loaded.
struct Slot(Mutex<Filling>);

struct Filling {
    batch: Option<Batch>,
    /// Clips that are not done.
    left: usize,
    /// The errors of the clips that have one, by their position in the batch.
    errors: BTreeMap<usize, Error>,
}

/// What the threads and the loader share.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a task, or the end.
    work: Condvar,
    /// A batch is complete.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    stop: bool,
}

/// What one thread keeps from clip to clip.
#[derive(Default)]
struct Scratch {
    decoder: ImageDecoder,
    sample: Option<Sample>,
}

impl Loader {
    /// Starts `workers` threads, which begin at once with the first of `requests`; with none, each batch is loaded
    /// when it is asked for. The requests are drawn in the calling thread, a few batches ahead.
    pub fn new(
        dataset: Arc<Dataset>,
        workers: usize,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let spawn = |number| {
            let (dataset, shared) = (Arc::clone(&dataset), Arc::clone(&shared));
            std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || work(&dataset, &shared))
        };
        // Where the system grants fewer threads, the batches are the same and come later.
        let threads: Vec<_> = (0..workers).map_while(|number| spawn(number).ok()).collect();
        let mut loader = Self {
            dataset,
            requests: Box::new(requests),
            pending: VecDeque::new(),
            shared,
            threads,
            waited: Duration::ZERO,
            scratch: Scratch::default(),
        };
        loader.ask_ahead();
        loader
    }

    /// The next batch, in the order of the requests; `None` after the last. An error belongs to its batch alone: of
    /// several, the first clip's; the batches after it follow. Where the dataset says to skip bad clips, they are left
    /// out of the batch, and only what is no file's fault is an error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<(Request, Batch)>> {
        let start = Instant::now();
        let result = if self.threads.is_empty() { self.load_here() } else { self.take_next() };
        self.waited += start.elapsed();
        if !self.threads.is_empty() {
            self.ask_ahead();
        }
        result
    }

    /// How long [`Loader::next`] has waited for data since this was last asked.
    pub fn take_wait(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    fn load_here(&mut self) -> Option<Result<(Request, Batch)>> {
        let request = self.requests.next()?;
        let slot = Slot::new(&request);
        for position in 0..request.clips.len() {
            load_clip(&self.dataset, &request, position, &slot, &mut self.scratch);
        }
        Some(slot.take(&self.dataset, request))
    }

    fn take_next(&mut self) -> Option<Result<(Request, Batch)>> {
        let (request, slot) = self.pending.pop_front()?;
        let mut queue = lock(&self.shared.queue);
        while lock(&slot.0).left > 0 {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        Some(slot.take(&self.dataset, request))
    }

    /// Keeps two batches in the making, or as many as give each thread a clip.
    fn ask_ahead(&mut self) {
        let mut clips: usize = self.pending.iter().map(|(request, _)| request.clips.len()).sum();
        while !self.threads.is_empty() && (self.pending.len() < AHEAD || clips < self.threads.len()) {
            let Some(request) = self.requests.next() else { return };
            clips += request.clips.len().max(1);
            let slot = Arc::new(Slot::new(&request));
            let tasks = (0..request.clips.len()).map(|position| Task {
                slot: Arc::clone(&slot),
                request: request.clone(),
                position,
            });
            lock(&self.shared.queue).tasks.extend(tasks);
            self.shared.work.notify_all();
            self.pending.push_back((request, slot));
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.shared.queue);
            queue.stop = true;
            queue.tasks.clear();
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panics are caught where they happen; there is nothing left to report.
            let _ = thread.join();
        }
    }
}

impl Slot {
    fn new(request: &Request) -> Self {
        Self(Mutex::new(Filling { batch: None, left: request.clips.len(), errors: BTreeMap::new() }))
    }

    /// The complete batch, or the error of its first clip that has one and may not be skipped.
    fn take(&self, dataset: &Dataset, request: Request) -> Result<(Request, Batch)> {
        let mut filling = lock(&self.0);
        let batch = filling.batch.take();
        let mut batch = batch.unwrap_or_else(|| Batch::new(request.clips.clone(), dataset.sizes));
        let mut keep = vec![true; request.clips.len()];
        for (position, error) in std::mem::take(&mut filling.errors) {
            let clip = request.clips.get(position).and_then(|&clip| dataset.clips.get(clip));
            let id = clip.map_or("", |clip| clip.id.as_str());
            if dataset.on_bad_clip == OnBadClip::Error || error.kind != ErrorKind::Data {
                let blame = |error: Error| error.context(format!("cannot load the clip {id}"));
                return Err(if error.is_limit() { error } else { blame(error) });
            }
            batch.skipped.push(SkippedClip::new(id, &error));
            keep.get_mut(position).into_iter().for_each(|keep| *keep = false);
        }
        if !batch.skipped.is_empty() {
            batch.retain(&keep);
        }
        Ok((request, batch))
    }
}

/// A poisoned lock guards nothing half-written here: every change under it is complete or harmless.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's life: clip after clip until the loader goes.
fn work(dataset: &Dataset, shared: &Shared) {
    let mut scratch = Scratch::default();
    loop {
        let task = {
            let mut queue = lock(&shared.queue);
            loop {
                if queue.stop {
                    return;
                }
                if let Some(task) = queue.tasks.pop_front() {
                    break task;
                }
                queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        if load_clip(dataset, &task.request, task.position, &task.slot, &mut scratch) {
            // Under the queue's lock, so that it cannot fall between the loader's look and its wait.
            let queue = lock(&shared.queue);
            shared.done.notify_all();
            drop(queue);
        }
    }
}

/// Loads one clip of a batch into its slot; true if it was the last one to come.
fn load_clip(
    dataset: &Dataset,
    request: &Request,
    position: usize,
    slot: &Slot,
    scratch: &mut Scratch,
) -> bool {
    let clip = request.clips.get(position).copied().unwrap_or(usize::MAX);
    let mut sample = scratch.sample.take().unwrap_or_else(|| Sample::new(dataset.sizes));
    let decoder = &mut scratch.decoder;
    let load = || dataset.load_into(clip, request.phase, request.epoch, decoder, &mut sample);
    let result =
        guarded(load).unwrap_or_else(|panic| Err(Error::run("a clip cannot be loaded").cause(panic)));
    let mut filling = lock(&slot.0);
    match result {
        Ok(()) => {
            let batch = || Batch::new(request.clips.clone(), dataset.sizes);
            filling.batch.get_or_insert_with(batch).put(position, &sample);
        }
        Err(error) => {
            filling.errors.insert(position, error);
        }
    }
    scratch.sample = Some(sample);
    filling.left = filling.left.saturating_sub(1);
    filling.left == 0
}
