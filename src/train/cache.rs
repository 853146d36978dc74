//! Filling a feature cache: every frame of every clip goes through the frozen backbones once.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use rand::seq::SliceRandom;
use sha1::{Digest, Sha1};

use crate::config::streams::{Stream, image_streams};
use crate::config::{Experiment, OnBadClip};
use crate::data::features::{CacheKey, FeatureCache, Missing};
use crate::data::{Clip, Dataset, Pixels, SkippedClip, frame_at};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::input::hexadecimal;
use crate::nn::parameters::with_slices;
use crate::train::feed::default_workers;
use crate::train::stop::{Signal, Stop};

/// Images of a stream that are decoded, and go through a backbone, together.
const AT_A_TIME: usize = 64;

/// How many such parts are decoded ahead.
const AHEAD: usize = 2;

/// What became of filling a cache.
#[derive(Debug, Default)]
pub struct Filled {
    /// Clips that were made, and the images that this took.
    pub clips: usize,
    /// Images that went through the backbones.
    pub images: usize,
    /// How long it took.
    pub time: Duration,
    /// Clips that could not be loaded, where the experiment says to skip them.
    pub skipped: Vec<SkippedClip>,
    /// The signal that ended it early.
    pub stopped: Option<Signal>,
}

/// What filling tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// Images that are done, by this process or another.
    pub done: usize,
    /// All that were missing.
    pub all: usize,
    /// Images a second of this process.
    pub speed: f64,
}

/// The key of an experiment's backbones as they are in `engine`.
///
/// # Errors
/// Where the weights cannot be read.
pub fn key(c: &Experiment, engine: &dyn Engine) -> Result<CacheKey> {
    let host = engine.host();
    let encoder = host.network.blueprint().root().pp("encoder");
    let positions = image_streams()
        .filter_map(Stream::backbone)
        .flat_map(|name| encoder.pp(name).parameters().collect::<Vec<_>>());
    let all: Vec<_> = host.parameters().iter().collect();
    let backbones = positions.filter_map(|position| all.get(position));
    let (names, tensors): (Vec<&str>, Vec<&Tensor>) =
        backbones.map(|(name, var)| (*name, var.as_tensor())).unzip();
    let mut digest = Sha1::new();
    with_slices(&tensors, |slices| {
        for (name, values) in names.iter().zip(slices) {
            digest.update((name.len() as u64).to_le_bytes());
            digest.update(name);
            digest.update((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| digest.update(value.to_le_bytes()));
        }
    })?;
    Ok(CacheKey::new(c, &hexadecimal(&digest.finalize())))
}

/// Makes the features of the clips that `cache` lacks: `missing`, but for those that another process makes meanwhile.
///
/// # Errors
/// Kind `Data` where a clip cannot be loaded and may not be skipped; kind `Numbers` where a feature is not finite; kind `Run`
/// where the disk or the engine fails. What was made stays.
pub fn fill(
    engine: &mut dyn Engine,
    c: &Experiment,
    dataset: &Dataset,
    cache: &FeatureCache,
    missing: &Missing,
    stop: &Stop,
    progress: &dyn Fn(Filling),
) -> Result<Filled> {
    // In an order of its own, so that two processes seldom make the same clip.
    let mut order = missing.clips.clone();
    order.shuffle(&mut crate::random::stream(
        u64::from(std::process::id()),
        crate::random::Purpose::Order,
        [0, 0],
    ));
    let workers = c.data.num_workers.unwrap_or_else(default_workers).max(1);
    let (send, receive) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let decoding = std::thread::Builder::new().name("cache".to_owned()).spawn_scoped(scope, move || {
            Decoding { dataset, cache, workers, send }.run(&order);
        });
        let receive = match decoding {
            Ok(_) => receive,
            Err(error) => {
                let what = "the system does not grant a thread to decode images in";
                return Err(Error::run(what).cause(error).hint("raise the limit on threads (ulimit -u)"));
            }
        };
        let mut filler = Filler {
            engine,
            c,
            dataset,
            cache,
            progress,
            all: missing.images,
            done: 0,
            begun: Instant::now(),
            blank: Vec::new(),
            filled: Filled::default(),
        };
        // Dropped with it, the channel ends the thread.
        filler.run(receive, stop)
    })
}

/// A part of a clip on its way from the decoding thread.
enum Part {
    /// A clip that another process has made meanwhile.
    Made(usize),
    /// A clip begins; what its frames are.
    Begin(usize, String),
    /// Decoded images of an image stream, so many.
    Images(usize, Pixels, usize),
    /// A clip cannot be loaded.
    Failed(usize, Error),
    /// The clip is complete.
    End,
}

struct Decoding<'a> {
    dataset: &'a Dataset,
    cache: &'a FeatureCache,
    workers: usize,
    send: SyncSender<Part>,
}

/// The filler has gone: there is nobody to decode for.
struct Gone;

impl Decoding<'_> {
    fn run(&self, order: &[usize]) {
        for &at in order {
            let Some(clip) = self.dataset.clips.get(at) else { continue };
            if self.clip(at, clip).is_err() {
                return;
            }
        }
    }

    fn clip(&self, at: usize, clip: &Clip) -> Result<(), Gone> {
        if self.cache.has(self.dataset, clip) {
            return self.give(Part::Made(at));
        }
        // Before the frames are read: a later change makes another stamp.
        self.give(Part::Begin(at, self.dataset.stamp(clip)))?;
        for (stream, table) in clip.frames.iter().enumerate() {
            for numbers in table.numbers().chunks(AT_A_TIME) {
                match self.dataset.decode(clip, stream, numbers, self.workers) {
                    Ok(images) => self.give(Part::Images(stream, images, numbers.len()))?,
                    Err(error) => return self.give(Part::Failed(at, error)),
                }
            }
        }
        self.give(Part::End)
    }

    fn give(&self, part: Part) -> Result<(), Gone> {
        self.send.send(part).map_err(|_| Gone)
    }
}

struct Filler<'a> {
    engine: &'a mut dyn Engine,
    c: &'a Experiment,
    dataset: &'a Dataset,
    cache: &'a FeatureCache,
    progress: &'a dyn Fn(Filling),
    all: usize,
    done: usize,
    begun: Instant,
    /// Of each image stream, what a black image gives.
    blank: Vec<Vec<f32>>,
    filled: Filled,
}

impl Filler<'_> {
    fn run(&mut self, parts: Receiver<Part>, stop: &Stop) -> Result<Filled> {
        let mut clip: Option<(usize, String, Vec<Vec<f32>>)> = None;
        for part in parts {
            if let Some(signal) = stop.requested() {
                self.filled.stopped = Some(signal);
                break;
            }
            match part {
                Part::Made(at) => {
                    self.done += self.images(at);
                    self.tell();
                }
                // Another process may have made it since it was decoded.
                Part::Begin(at, _)
                    if self.dataset.clips.get(at).is_some_and(|it| self.cache.has(self.dataset, it)) =>
                {
                    clip = None;
                    self.done += self.images(at);
                    self.tell();
                }
                Part::Begin(at, stamp) => {
                    clip = Some((at, stamp, vec![Vec::new(); self.dataset.streams.len()]));
                }
                Part::Images(..) if clip.is_none() => {}
                Part::Images(stream, pixels, count) => {
                    let size = self.dataset.sizes.image_size;
                    let features = self.engine.features(stream, &pixels, count, size)?;
                    if let Some((_, _, streams)) = &mut clip {
                        streams[stream].extend(features);
                    }
                    (self.done, self.filled.images) = (self.done + count, self.filled.images + count);
                    self.tell();
                }
                Part::Failed(at, error) => {
                    clip = None;
                    self.fail(at, error)?;
                }
                Part::End => {
                    if let Some((at, stamp, streams)) = clip.take() {
                        self.store(at, &stamp, &streams)?;
                    }
                }
            }
        }
        self.filled.time = self.begun.elapsed();
        Ok(std::mem::take(&mut self.filled))
    }

    /// How many images a clip has.
    fn images(&self, at: usize) -> usize {
        let tables = self.dataset.clips.get(at).into_iter().flat_map(|clip| &clip.frames);
        tables.map(|table| table.numbers().len()).sum()
    }

    fn tell(&self) {
        let speed = self.filled.images as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        (self.progress)(Filling { done: self.done.min(self.all), all: self.all, speed });
    }

    fn fail(&mut self, at: usize, error: Error) -> Result<()> {
        let id = self.dataset.clips.get(at).map_or("", |clip| clip.id.as_str());
        if self.c.data.on_bad_clip == OnBadClip::Error || error.kind != ErrorKind::Data {
            return Err(if error.is_limit() {
                error
            } else {
                error.context(format!("cannot load the clip {id}"))
            });
        }
        self.filled.skipped.push(SkippedClip::new(id, &error));
        Ok(())
    }

    /// Writes a clip's rows: of each of its numbers what the stream shows there.
    fn store(&mut self, at: usize, stamp: &str, features: &[Vec<f32>]) -> Result<()> {
        let Some(clip) = self.dataset.clips.get(at) else { return Ok(()) };
        let (numbers, width) = (clip.numbers(), self.cache.source().width);
        let mut rows = Vec::with_capacity(features.len());
        for (stream, (table, features)) in clip.frames.iter().zip(features).enumerate() {
            let mut out = Vec::with_capacity(clip.rows() * width);
            let shown = numbers.iter().map(|&number| frame_at(table.numbers(), number));
            // A clip without frames is a black image.
            let shown: Vec<Option<u32>> = if numbers.is_empty() { vec![None] } else { shown.collect() };
            for number in shown {
                let at = number.and_then(|number| table.numbers().binary_search(&number).ok());
                match at.and_then(|at| features.get(at * width..(at + 1) * width)) {
                    Some(row) => out.extend(row),
                    None => out.extend(self.blank(stream)?),
                }
            }
            rows.push(out);
        }
        self.cache.store(&clip.id, &rows, stamp)?;
        self.filled.clips += 1;
        Ok(())
    }

    /// What the backbone of an image stream makes of a black image.
    fn blank(&mut self, stream: usize) -> Result<&[f32]> {
        self.blank.resize_with(self.dataset.streams.len(), Vec::new);
        if self.blank[stream].is_empty() {
            let pixels = Pixels::Bytes(vec![0; self.dataset.sizes.image_bytes()]);
            self.blank[stream] = self.engine.features(stream, &pixels, 1, self.dataset.sizes.image_size)?;
        }
        Ok(&self.blank[stream])
    }
}
