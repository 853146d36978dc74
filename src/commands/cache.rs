//! `slt-run cache`, and what every command that computes with frozen backbones does first where there is a cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::prepare::{begin, open_dataset};
use super::text::about;
use super::{origins, resolve, select_device};
use crate::cli::CacheArgs;
use crate::config::{Experiment, Resolved};
use crate::data::features::{CacheKey, FeatureCache, Missing};
use crate::data::{Dataset, Pixels};
use crate::engine::{self, Engine, memory, threads};
use crate::error::{Error, Result, count};
use crate::limits::size;
use crate::observe::reporter::Reporter;
use crate::train::cache::{Filled, Filling, fill, key};
use crate::train::feed::default_workers;
use crate::train::stop::{Signal, Stop};
use crate::train::trainer::Ended;

pub fn cache(args: CacheArgs, reporter: &Reporter) -> Result<Ended> {
    let resolved = resolve(args.layers, reporter)?;
    let stop = Stop::on_signals()?;
    cache_resolved(&resolved, &stop, reporter).map_err(|error| origins::in_error(error, &resolved))
}

fn cache_resolved(resolved: &Resolved, stop: &Stop, reporter: &Reporter) -> Result<Ended> {
    let c = &resolved.experiment;
    if c.data.feature_cache.is_none() {
        return Err(Error::config("data.feature_cache is unset: there is no cache to fill")
            .hint("name its folder: --feature-cache features"));
    }
    let device = select_device(resolved, reporter);
    threads::start(threads::available(c.run.threads)?)?;
    let opened = open_dataset(resolved, None, reporter)?;
    let sized = memory::with_batches_of(c, opened.dataset.train.len(), opened.dataset.val.len());
    let mut engine = engine::with_decoder(&sized, &device, opened.decoder.as_ref())?;
    begin(c, opened.decoder.as_ref(), engine.as_mut(), reporter)?;
    stop.let_steps_end();
    match with_cache(engine.as_mut(), c, opened.dataset, stop, reporter)? {
        Ok(_) => Ok(Ended::Finished),
        Err(signal) => Ok(Ended::Stopped(signal)),
    }
}

/// The dataset with cached features in the place of its images, where the experiment has a cache; what that lacks is made
/// first. Or the signal that ended this.
pub(super) fn with_cache(
    engine: &mut dyn Engine,
    c: &Experiment,
    dataset: Arc<Dataset>,
    stop: &Stop,
    reporter: &Reporter,
) -> Result<Result<Arc<Dataset>, Signal>> {
    let Some(Planned { key, cache, missing }) = plan(engine, c, &dataset, reporter)? else {
        return Ok(Ok(dataset));
    };
    let folder = cache.source().folder.display().to_string();
    if missing.clips.is_empty() {
        reporter.info(&format!("the features of {} are in {folder}", count(dataset.clips.len(), "clip")));
    } else {
        cache.require_room(&missing)?;
        cache.make(&key)?;
        reporter.info(&format!(
            "{} of {} go through the backbones once: {}, {} in {folder}",
            count(missing.clips.len(), "clip"),
            dataset.clips.len(),
            count(missing.images, "image"),
            size(missing.bytes),
        ));
        let filled = fill(engine, c, &dataset, &cache, &missing, stop, &|filling| {
            reporter.stage_with("caching", filling.done, filling.all, &told(filling, &missing));
        });
        reporter.finish();
        let Filled { clips, images, time, skipped, stopped } = filled?;
        for clip in &skipped {
            reporter.warn(&format!("{}; the clip {} is not cached", clip.problem, clip.id));
        }
        let speed = images as f64 / time.as_secs_f64().max(1e-9);
        let made = format!("{} cached in {}, {speed:.1} images/s", count(clips, "clip"), about(time));
        if let Some(signal) = stopped {
            reporter.warn(&format!(
                "stopped by {} while the features were made: {made}; the same command goes on from there",
                signal.name()
            ));
            return Ok(Err(signal));
        }
        reporter.info(&made);
    }
    let dataset = Arc::unwrap_or_clone(dataset).with_features(cache.source().clone());
    Ok(Ok(Arc::new(dataset)))
}

/// What a bar says beside its count.
fn told(Filling { done, all, speed }: Filling, missing: &Missing) -> String {
    let left = (all - done) as f64 / speed;
    let left =
        Duration::try_from_secs_f64(left).map(|left| format!(", {} left", about(left))).unwrap_or_default();
    format!("{speed:.1} images/s{left}, {}", size(missing.bytes))
}

/// A cache, and what it lacks of a dataset.
struct Planned {
    key: CacheKey,
    cache: FeatureCache,
    missing: Missing,
}

fn plan(
    engine: &dyn Engine,
    c: &Experiment,
    dataset: &Dataset,
    reporter: &Reporter,
) -> Result<Option<Planned>> {
    let Some(folder) = &c.data.feature_cache else { return Ok(None) };
    let key = key(c, engine)?;
    let cache = FeatureCache::new(folder, &key, c);
    let threads = c.data.num_workers.unwrap_or_else(default_workers).max(1);
    let missing =
        cache.missing(dataset, threads, &|done, all| reporter.stage("looking into the cache", done, all));
    reporter.finish();
    Ok(Some(Planned { key, cache, missing }))
}

/// What a cache will cost, before it is filled, for `check`; nothing without one. And the features of a frame of each
/// image stream, as any cached ones would be.
pub(super) fn foretell(
    engine: &mut dyn Engine,
    c: &Experiment,
    dataset: &Dataset,
    reporter: &Reporter,
) -> Result<Option<(String, Vec<f32>)>> {
    /// Enough to tell the speed by.
    const TRIED: usize = 8;
    let Some(Planned { cache, missing, .. }) = plan(engine, c, dataset, reporter)? else { return Ok(None) };
    let images = dataset.sizes.image_bytes() * TRIED;
    let pixels = Pixels::Bytes((0..images).map(|i| (i % 251) as u8).collect());
    // The first pass makes room for the next ones.
    engine.features(0, &pixels, TRIED, dataset.sizes.image_size)?;
    let begun = Instant::now();
    let features = engine.features(0, &pixels, TRIED, dataset.sizes.image_size)?;
    let each = begun.elapsed().as_secs_f64() / TRIED as f64;
    let row = features.into_iter().take(cache.source().width).collect();
    let folder = cache.source().folder.display();
    if missing.clips.is_empty() {
        return Ok(Some((format!("cache        all features are in {folder}\n"), row)));
    }
    cache.require_room(&missing)?;
    let time = Duration::try_from_secs_f64(each * missing.images as f64).unwrap_or(Duration::MAX);
    let free = cache.free_space().map(|free| format!(", which has {} free", size(free))).unwrap_or_default();
    let text = format!(
        "cache        {} of {} go through the backbones once: {}, about {} at {:.1} images/s; {} in {folder}{free}\n",
        count(missing.clips.len(), "clip"),
        dataset.clips.len(),
        count(missing.images, "image"),
        about(time),
        1.0 / each,
        size(missing.bytes),
    );
    Ok(Some((text, row)))
}
