//! What several commands open before they begin, with what there is to say of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::origins;
use crate::config::{Experiment, OnBadClip, Resolved, Resume};
use crate::data::{Contents, Dataset, Depth, Verified};
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::model::decoder::{self, Texts};
use crate::model::{DecoderKind, TextReport};
use crate::nn::Parameters;
use crate::observe::reporter::Reporter;
use crate::train::Initial;
use crate::train::feed::default_workers;
use crate::train::initial::{InitialBackbones, Told};
use crate::train::resume::Saved;
use crate::{Error, Result};

/// What a run is told beside the experiment itself.
pub struct Call<'a> {
    /// The file whose repository `run.json` describes.
    pub experiment_file: Option<PathBuf>,
    /// Whether to move a run that is in the way aside.
    pub overwrite: bool,
    /// Whether to go on although the experiment has changed.
    pub allow_changes: bool,
    /// The command line.
    pub arguments: &'a [OsString],
}

/// A dataset and the decoder of its texts, with what that makes of them.
pub(super) struct Opened {
    pub dataset: Arc<Dataset>,
    pub decoder: Rc<dyn DecoderKind>,
    pub texts: TextReport,
}

/// Opens the dataset, and passes on what is odd about it and its texts. What texts are to the network is as in the checkpoint
/// `saved`, where that says so.
pub fn open_dataset(resolved: &Resolved, saved: Option<&Saved>, reporter: &Reporter) -> Result<Opened> {
    let c = &resolved.experiment;
    let dataset = Dataset::open(&c.data, &c.model, c.run.seed)?;
    let (train, validation) = (dataset.train_texts(), dataset.validation_texts());
    let texts = Texts { train: &train, validation: &validation };
    let decoder = match saved.map(|saved| saved.decoder(c, texts)).transpose()?.flatten() {
        Some(decoder) => decoder,
        None => decoder::of(c, texts)?,
    };
    let texts = decoder.report(&train, &validation);
    for warning in dataset.warnings().iter().chain(&texts.warning) {
        reporter.warn(&origins::in_line(warning, resolved));
    }
    Ok(Opened { dataset: Arc::new(dataset), decoder, texts })
}

/// Looks into each clip's files, which costs a hundredth of an epoch and may save one. What is in them, as a resume will
/// look for it.
pub(super) fn look_at_clips(
    dataset: &Dataset,
    resolved: &Resolved,
    goes_on: bool,
    reporter: &Reporter,
) -> Result<Contents> {
    let c = &resolved.experiment;
    let mut found = look_into_files(dataset, resolved, Depth::FirstImages, reporter);
    if goes_on && c.data.on_bad_clip == OnBadClip::Skip {
        // What broke while the run trained must not keep it from going on, as long as there is something to go on with:
        // it is counted when its turn comes.
        let lost = found.lost_splits(dataset);
        if lost.is_empty() {
            found.problems.drain(..).for_each(|problem| reporter.warn(&problem.line()));
        }
        found.problems.extend(lost);
    }
    Error::all(ErrorKind::Data, found.problems)?;
    let threads = c.data.num_workers.unwrap_or_else(default_workers).max(1);
    let contents = dataset.contents(threads, &|done, all| reporter.stage("measuring the files", done, all));
    reporter.finish();
    Ok(contents)
}

/// Opens every pose and as many images as `depth` says, on the loader's threads, and passes on what is odd about them.
pub fn look_into_files(
    dataset: &Dataset,
    resolved: &Resolved,
    depth: Depth,
    reporter: &Reporter,
) -> Verified {
    let threads = resolved.experiment.data.num_workers.unwrap_or_else(default_workers).max(1);
    let progress = |done, all| reporter.stage("looking into the files", done, all);
    let found = dataset.verify(threads, depth, &progress);
    reporter.finish();
    for warning in &found.warnings {
        reporter.warn(&origins::in_line(warning, resolved));
    }
    found
}

/// The weights that a run begins with, where they are not random.
#[derive(Debug, Default)]
pub struct Start {
    network: Option<Initial>,
    backbones: Option<InitialBackbones>,
}

impl Start {
    /// Reads them, and says which; `c` has their files' digests then.
    pub fn read(c: &mut Experiment, reporter: &Reporter) -> Result<Self> {
        let mut start = Self::default();
        if let Some(from) = &mut c.run.init_from {
            let initial = Initial::load(from)?;
            *from = initial.from().clone();
            let (path, digest) = (from.path.display(), from.sha1.as_deref().unwrap_or_default());
            reporter.info(&format!("the weights begin as those of {path} (SHA-1 {digest})"));
            say_left_out(&from.path, initial.left_out(), reporter);
            start.network = Some(initial);
        }
        if let Some(from) = &mut c.model.backbone.init {
            let backbones = InitialBackbones::load(from)?;
            *from = backbones.from().clone();
            let (path, digest) = (from.path.display(), from.sha1.as_deref().unwrap_or_default());
            reporter.info(&format!("the backbones begin as that of {path} (SHA-1 {digest})"));
            start.backbones = Some(backbones);
        }
        Ok(start)
    }

    /// Sets the parameters of the host, and says what of the files has no place there.
    pub fn apply(
        &self,
        c: &Experiment,
        decoder: &dyn DecoderKind,
        parameters: &Parameters,
        reporter: &Reporter,
    ) -> Result<()> {
        if let Some(initial) = &self.network {
            initial.apply(c, decoder, parameters)?;
        }
        if let Some(backbones) = &self.backbones {
            let Told { left_out, warnings } = backbones.apply(c, parameters)?;
            say_left_out(&backbones.from().path, &left_out, reporter);
            for warning in &warnings {
                reporter.warn(warning);
            }
        }
        Ok(())
    }
}

fn say_left_out(path: &Path, names: &[String], reporter: &Reporter) {
    const NAMED: usize = 10;
    if names.is_empty() {
        return;
    }
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    let named = names[..names.len().min(NAMED)].join(", ");
    reporter.info(&format!("of {}, this is not used: {named}{more}", path.display()));
}

/// Begins with the weights that a run would begin with. One that goes on has its own.
pub(super) fn begin(
    c: &Experiment,
    decoder: &dyn DecoderKind,
    engine: &mut dyn Engine,
    reporter: &Reporter,
) -> Result<()> {
    if c.run.resume == Resume::Auto && c.run.work_dir.join("last.pt").exists() {
        return Ok(());
    }
    Start::read(&mut c.clone(), reporter)?.apply(c, decoder, engine.host().parameters(), reporter)?;
    engine.push()
}
