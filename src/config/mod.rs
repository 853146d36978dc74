//! The experiment's configuration: layers in, a checked [`Experiment`] out.
//!
//! `fields` defines every field once. `file`, `environment` and the command line's settings put values on top of the
//! defaults (`merge`), each with its origin; `check` says what cannot work; `snapshot` writes the result down.
//! A new field is a new line in `fields`; a new kind of value is a variant of [`Kind`] and an arm in `value`.

mod auto;
mod changes;
mod check;
mod define;
mod environment;
mod fields;
mod file;
mod flags;
mod groups;
mod interval;
mod merge;
mod places;
mod reference;
mod snapshot;
pub mod streams;
mod suggest;
/// An experiment whose paths lead nowhere, with `settings` (key and value) over the defaults.
#[cfg(test)]
pub(crate) fn for_tests(settings: &[(&str, &str)]) -> Experiment {
    let paths =
        FIELDS.iter().filter(|field| field.default == Preset::Required).map(|field| (field.key, "unused"));
    let all = paths.chain(settings.iter().copied());
    let setting = |(key, value): (&str, &str)| Setting {
        key: key.to_owned(),
        value: value.to_owned(),
        origin: "a test".to_owned(),
    };
    let layers = Layers { settings: all.map(setting).collect(), ..Layers::default() };
    resolve(&layers).expect("the settings are an experiment").experiment
}

#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

pub use auto::{Chunk, MemoryBudget};
pub use changes::{Change, Edit, changes, saved_field, saved_settings, saved_value, with_edits};
pub use check::MOST_BYTES;
pub use define::{Field, FieldType, Kind, Preset, Role, Rule, Section};
pub use fields::{
    AmpDtype, Backbone, BestMetric, Data, Decoder, Decoding, Device, EngineKind, Experiment, FIELDS,
    FeatureDtype, LengthPenaltyRule, MOST_THREADS, Model, OnBadClip, Optimization, OptimizerKind, Precision,
    Resume, Run, SECTIONS, SchedulerKind, TextDecoder, Tokenizer, TokenizerKind,
};
pub use flags::for_flag;
pub use groups::{Freeze, Glob, ParameterGroup};
pub use interval::CheckpointEvery;
pub use places::{EventFolder, InitFrom};
pub use reference::reference_table;
pub use streams::Stream;

use crate::error::{Error, ErrorKind, Result};
use merge::Merge;

/// Everything that an experiment is made of, lowest layer first; the built-in defaults are below them.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Experiment files; later ones win.
    pub files: Vec<PathBuf>,
    /// What a command puts in the place of values that it has no use for; below the files.
    pub presets: Vec<Setting>,
    /// The environment, as `std::env::vars_os` gives it.
    pub env: Vec<(OsString, OsString)>,
    /// The command line's values; later ones win.
    pub settings: Vec<Setting>,
    /// What reading the command line already found worth a warning.
    pub warnings: Vec<String>,
}

/// A value for one field from the command line or from the program itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field's key, such as `optimization.lr`.
    pub key: String,
    /// The value as text; empty unsets an optional field.
    pub value: String,
    /// What to call it in messages and snapshots: the argument as it was written.
    pub origin: String,
}

/// A checked experiment, and where its values came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The experiment.
    pub experiment: Experiment,
    /// What a person should know before it runs, a sentence each.
    pub warnings: Vec<String>,
    /// The experiment files that it was read from, those that others extend among them.
    pub files: Vec<PathBuf>,
    /// The values that come from the environment or the command line, in the fields' order.
    pub overrides: Vec<Override>,
    /// The origin of each field's value, by key.
    origins: BTreeMap<&'static str, String>,
    /// The fields that a person gave a value.
    asked: BTreeSet<&'static str>,
    folders: Vec<PathBuf>,
}

/// A value that is neither a default nor from an experiment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The field's key, such as `optimization.lr`.
    pub key: &'static str,
    /// The value, as TOML writes it.
    pub value: String,
    /// `env NAME`, or the argument as it was written.
    pub origin: String,
}

impl Resolved {
    /// Where a field's value came from: `default`, `file:line`, `env NAME`, or the argument as it was written.
    #[must_use]
    pub fn origin(&self, key: &str) -> &str {
        self.origins.get(key).map_or(merge::DEFAULT, String::as_str)
    }

    /// Whether a person gave the field its value. A resolved experiment that is read again says everything, so that what
    /// it has of the defaults is nobody's wish.
    #[must_use]
    pub fn is_asked_for(&self, key: &str) -> bool {
        self.asked.contains(key)
    }

    /// The folders of the experiment files, those that they extend included, as they were given.
    #[must_use]
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

/// Merges the layers and checks the result.
///
/// # Errors
/// All that is wrong at once, of kind [`ErrorKind::Config`]: files that cannot be read, unknown keys, values of a wrong
/// type in any layer (an overridden value too), missing values and values that cannot work.
pub fn resolve(layers: &Layers) -> Result<Resolved> {
    let mut merge = Merge::defaults();
    merge.warnings.clone_from(&layers.warnings);
    settle(&layers.presets, &mut merge);
    file::read(&layers.files, &mut merge);
    environment::read(&layers.env, &mut merge);
    settle(&layers.settings, &mut merge);
    check::check(&mut merge);
    Error::all(ErrorKind::Config, std::mem::take(&mut merge.problems))?;
    let experiment = merge.extract()?;
    let origins = FIELDS.iter().map(|field| (field.key, merge.origin(field))).collect();
    let overrides = overrides(layers, &experiment, &origins);
    let asked = FIELDS.iter().filter(|field| merge.asked(field)).map(|field| field.key).collect();
    let (warnings, files, folders) = (merge.warnings, merge.files, merge.folders);
    Ok(Resolved { experiment, warnings, files, overrides, origins, asked, folders })
}

fn overrides(
    layers: &Layers,
    experiment: &Experiment,
    origins: &BTreeMap<&'static str, String>,
) -> Vec<Override> {
    let json = experiment.to_json();
    // What the command line sets wins, so that its value is the one that is there.
    let is_set = |field: &Field| layers.settings.iter().any(|setting| setting.key == field.key);
    let of = |field: &&'static Field| {
        let origin = origins.get(field.key)?;
        let counts = is_set(field) || origin.starts_with("env SLT_");
        let value = snapshot::value(field, &json);
        counts.then(|| Override { key: field.key, value, origin: origin.clone() })
    };
    FIELDS.iter().filter_map(|field| of(&field)).collect()
}

/// Puts `settings` on top.
fn settle(settings: &[Setting], merge: &mut merge::Merge) {
    for setting in settings {
        let origin = argument(&setting.origin);
        match merge::field(&setting.key) {
            Some(field) => merge.assign(field, value::from_text(field, &setting.value), &origin),
            None => merge.unknown(&setting.key, &origin),
        }
    }
}

/// An argument as it was written, on one line and at a length that fits a message.
fn argument(text: &str) -> String {
    const MOST: usize = 300;
    let mut line = value::one_line(text);
    if let Some((end, _)) = line.char_indices().nth(MOST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

impl Backbone {
    /// The hidden width of a block's MLP: `int(embed_dim * mlp_ratio)`.
    #[must_use]
    pub fn mlp_width(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }
}
