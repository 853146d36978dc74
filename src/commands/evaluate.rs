//! `slt-run evaluate` and `slt-run predict`: a trained network on clips.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use super::cache::with_cache;
use super::{origins, print, select_device};
use crate::cli::{ClipsChoice, EvaluateArgs, PredictArgs, SplitChoice, TrainedArgs};
use crate::config::{Decoding, Experiment, Resolved};
use crate::data::{Dataset, Index, Source, read_index};
use crate::engine::{Engine, threads};
use crate::error::{ErrorKind, count};
use crate::evaluate::{
    Place, Results, Trained, Translated, Translation, predictions_csv, translate, write_beside,
};
use crate::files::folder_of;
use crate::model::DecoderKind;
use crate::observe::reporter::Reporter;
use crate::train::stop::Stop;
use crate::{Error, Result};

/// A network that is ready to translate, and the clips.
struct Ready {
    place: Place,
    trained: Trained,
    resolved: Resolved,
    decoder: Rc<dyn DecoderKind>,
    engine: Box<dyn Engine>,
    dataset: Arc<Dataset>,
}

/// What an evaluation gave.
pub struct Evaluated {
    /// The table, and what was translated by what.
    pub table: String,
    /// BLEU-4, 0 to 100.
    pub bleu: f64,
    pub translations: Vec<Translation>,
    /// Where both files are.
    pub folder: PathBuf,
}

pub fn evaluate(args: EvaluateArgs, reporter: &Reporter) -> Result<()> {
    let evaluated = evaluate_split(args.trained, &args.split, reporter)?;
    print(&evaluated.table)?;
    reporter.info(&format!("predictions.csv and metrics.json are in {}", evaluated.folder.display()));
    Ok(())
}

/// Translates a split, measures the translations and writes both beside the run.
pub fn evaluate_split(args: TrainedArgs, split: &SplitChoice, reporter: &Reporter) -> Result<Evaluated> {
    let (place, trained, resolved) = open(args, reporter)?;
    let blamed = |error| origins::in_error(error, &resolved);
    let split = Split::of(split, &resolved.experiment).map_err(blamed)?;
    let clips = read(&split.source()).map_err(blamed)?;
    let name = split.name.clone();
    let index = split.source().to_string();
    let mut ready = Ready::new((place, trained, resolved.clone()), (split.source(), clips), true, reporter)
        .map_err(blamed)?;
    let translated = ready.translate(reporter)?;
    let results = Results::new(
        (&name, index),
        &ready.trained,
        ready.decoder.as_ref(),
        &ready.resolved.experiment,
        &translated,
    );
    let folder = results.write(&ready.place.folder, SystemTime::now())?;
    Ok(Evaluated {
        table: format!("{}\n{}", ready.heading(&translated, &name), results.table()),
        bleu: results.bleu(),
        folder,
        translations: translated.translations,
    })
}

pub fn predict(args: PredictArgs, reporter: &Reporter) -> Result<()> {
    let (place, trained, resolved) = open(args.trained, reporter)?;
    let blamed = |error| origins::in_error(error, &resolved);
    let named = match &args.clips {
        ClipsChoice::Ids(ids) => PathBuf::from(ids.join(",")),
        ClipsChoice::Index(path) => path.clone(),
        ClipsChoice::Validation => resolved.experiment.data.val_index.clone(),
    };
    let (source, clips) = match args.clips {
        ClipsChoice::Ids(ids) => (Source { key: "--ids", path: &named }, Index::of(ids)),
        ClipsChoice::Index(_) => {
            (Source { key: "--index", path: &named }, read(&Source { key: "--index", path: &named })?)
        }
        ClipsChoice::Validation => {
            let source = Source { key: "data.val_index", path: &named };
            (source, read(&source).map_err(blamed)?)
        }
    };
    let mut ready =
        Ready::new((place, trained, resolved.clone()), (source, clips), false, reporter).map_err(blamed)?;
    let translated = ready.translate(reporter)?;
    let csv = predictions_csv(&translated.translations, &["hypothesis", "score"], |it, at| {
        let (text, score) = &it.hypotheses[at];
        vec![text.clone(), score.to_string()]
    })?;
    let Some(path) = args.csv else { return print(&String::from_utf8_lossy(&csv)) };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::config(format!("--csv {} is no file's name", path.display()))
            .hint("give a file, such as predictions.csv")
    })?;
    write_beside(folder_of(&path), &[(name, &csv)], SystemTime::now())?;
    let translated = count(translated.translations.len(), "translation");
    reporter.info(&format!("{translated} are in {}", path.display()));
    Ok(())
}

/// Finds and reads the checkpoint, and settles what is asked of it.
fn open(mut args: TrainedArgs, reporter: &Reporter) -> Result<(Place, Trained, Resolved)> {
    args.layers.env = std::env::vars_os().collect();
    let place = Place::find(&args.run, &args.checkpoint)?;
    let trained = Trained::load(&place.checkpoint)?;
    let resolved = trained.resolve(&place, &args.layers)?;
    resolved.warnings.iter().for_each(|warning| reporter.warn(warning));
    Ok((place, trained, resolved))
}

fn read(source: &Source) -> Result<Index> {
    read_index(source).map_err(|problems| Error::of(ErrorKind::Data, problems))
}

/// A split and the index that it is of.
struct Split {
    name: String,
    key: &'static str,
    path: PathBuf,
}

impl Split {
    fn of(choice: &SplitChoice, c: &Experiment) -> Result<Self> {
        let split =
            |name: &str, key, path: &Path| Ok(Self { name: name.to_owned(), key, path: path.to_owned() });
        match choice {
            SplitChoice::Train => split("train", "data.train_index", &c.data.train_index),
            SplitChoice::Val => split("val", "data.val_index", &c.data.val_index),
            SplitChoice::Test => match &c.data.test_index {
                Some(path) => split("test", "data.test_index", path),
                None => Err(Error::config("the experiment has no test split: data.test_index is unset")
                    .hint("give its index: --test-index FILE, or --index FILE")),
            },
            SplitChoice::Index(path) => {
                let name = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| {
                    Error::config(format!("--index {} is no file's name", path.display()))
                        .hint("give a CSV of video_ids")
                })?;
                split(name, "--index", path)
            }
        }
    }

    fn source(&self) -> Source<'_> {
        Source { key: self.key, path: &self.path }
    }
}

impl Ready {
    fn new(
        (place, trained, resolved): (Place, Trained, Resolved),
        split: (Source, Index),
        with_texts: bool,
        reporter: &Reporter,
    ) -> Result<Self> {
        let c = &resolved.experiment;
        let device = select_device(&resolved, reporter);
        threads::start(threads::available(c.run.threads)?)?;
        let dataset = Dataset::open_split(split, with_texts, &c.data, &c.model)?;
        for warning in dataset.warnings() {
            reporter.warn(&origins::in_line(warning, &resolved));
        }
        let decoder = trained.decoder(c, &dataset.validation_texts(), || Dataset::train_texts_of(&c.data))?;
        let mut engine = trained.engine(c, &device, decoder.as_ref(), dataset.val.len())?;
        let dataset = with_cache(engine.as_mut(), c, Arc::new(dataset), &Stop::default(), reporter)?;
        // Nobody listens for signals here.
        let dataset = dataset.map_err(|signal| Error::run(format!("stopped by {}", signal.name())))?;
        Ok(Self { place, trained, resolved, decoder, engine, dataset })
    }

    fn translate(&mut self, reporter: &Reporter) -> Result<Translated> {
        let c = &self.resolved.experiment;
        let progress = |done, all| reporter.stage("translating", done, all);
        let translated = translate(self.engine.as_mut(), &self.decoder, &self.dataset, c, &progress);
        reporter.finish();
        let translated = translated?;
        for clip in &translated.skipped {
            reporter.warn(&format!("{}; the clip {} is left out", clip.problem, clip.id));
        }
        Ok(translated)
    }

    /// What was translated by what.
    fn heading(&self, translated: &Translated, split: &str) -> String {
        let Decoding { beam_size, length_penalty, length_penalty_rule, max_length, .. } =
            &self.resolved.experiment.decoding;
        let search = match self.decoder.tokenizer() {
            Some(_) => format!(
                "beam of {beam_size}, length penalty {length_penalty} ({length_penalty_rule}), at most {max_length} tokens"
            ),
            None => "the training text of the most probable class".to_owned(),
        };
        format!(
            "{} of {split} by {} (epoch {}): {search}",
            count(translated.translations.len(), "clip"),
            self.trained.checkpoint.display(),
            self.trained.epoch,
        )
    }
}
