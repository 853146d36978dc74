//! The layers on top of one another: every value goes in alone, with its own origin, and later ones win.
//!
//! Each value is a figment provider of its own, read by its field's type before it goes in. So figment's record of
//! where a value came from is right for every single value, `1e-4` is a number wherever it stands, and nothing that
//! no field is made for gets in.

use std::collections::BTreeSet;
use std::path::PathBuf;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::define::{Field, Preset};
use super::fields::{Experiment, FIELDS};
use super::suggest;
use super::value::{self, Mismatch};
use crate::error::{Error, Problem, Result};

/// The origin of a value that no layer gives.
pub(super) const DEFAULT: &str = "default";

/// What the layers add up to, and everything that is wrong with them.
pub(super) struct Merge {
    figment: Figment,
    /// Fields of which the winning value was refused.
    refused: BTreeSet<&'static str>,
    /// Whether a file could not be read, so that a missing value may well be in it.
    pub(super) unreadable: bool,
    /// The files that were read.
    pub(super) files: Vec<PathBuf>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    /// The folders of the experiment files, as they were given.
    pub(super) folders: Vec<PathBuf>,
    /// The files among them that are resolved experiments, which say everything, as they are shown.
    pub(super) snapshots: BTreeSet<String>,
}

/// One value for one field, from one place.
struct Assignment<'a> {
    field: &'static Field,
    value: Value,
    origin: &'a str,
}

impl Provider for Assignment<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_owned())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let nested = figment::util::nest(self.field.key, self.value.clone());
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}

impl Merge {
    /// The built-in defaults.
    pub(super) fn defaults() -> Self {
        let mut merge = Self {
            figment: Figment::new(),
            refused: BTreeSet::new(),
            unreadable: false,
            files: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            folders: Vec::new(),
            snapshots: BTreeSet::new(),
        };
        for field in FIELDS {
            match field.default {
                Preset::Required => {}
                Preset::Unset => merge.assign(field, value::from_text(field, ""), DEFAULT),
                Preset::Text(text) => merge.assign(field, value::from_text(field, text), DEFAULT),
            }
        }
        merge
    }

    /// Puts a value on top of what there is, or notes why it was refused.
    pub(super) fn assign(&mut self, field: &'static Field, value: Result<Value, Mismatch>, origin: &str) {
        match value {
            Ok(value) => {
                self.refused.remove(field.key);
                let assignment = Assignment { field, value, origin };
                self.figment = std::mem::take(&mut self.figment).merge(assignment);
            }
            Err(Mismatch { what, hint }) => {
                self.refused.insert(field.key);
                let what = format!("{origin}: {}: {what}", field.key);
                self.problems.push(Problem { hint, ..Problem::new(what) });
            }
        }
    }

    /// Notes a key that no field has.
    pub(super) fn unknown(&mut self, key: &str, origin: &str) {
        let what = format!("{origin}: unknown key {}", value::one_line(&value::shorten(key)));
        self.problems.push(Problem::new(what).hint(suggest::for_key(key)));
    }

    /// The winning value of a field and where it came from; `None` where there is none or it was refused.
    pub(super) fn get(&self, field: &Field) -> Option<(Value, String)> {
        if self.refused.contains(field.key) {
            return None;
        }
        let value = self.figment.find_value(field.key).ok()?;
        Some((value, self.origin(field)))
    }

    /// Notes that a field's winning value cannot be worked with.
    pub(super) fn refuse(&mut self, field: &Field, problem: Problem) {
        self.refused.insert(field.key);
        self.problems.push(problem);
    }

    /// Whether a layer gave the field a value, a refused one included.
    pub(super) fn has(&self, field: &Field) -> bool {
        self.refused.contains(field.key) || self.figment.find_value(field.key).is_ok()
    }

    /// Where a field's winning value came from.
    pub(super) fn origin(&self, field: &Field) -> String {
        self.figment.find_metadata(field.key).map_or_else(|| DEFAULT.to_owned(), |m| m.name.to_string())
    }

    /// Whether the field's value is a person's: given by a layer, and not as a default in a resolved experiment.
    pub(super) fn asked(&self, field: &Field) -> bool {
        let origin = self.origin(field);
        let file = origin.rsplit_once(':').map_or("", |(file, _)| file);
        let is_default = || match field.default {
            Preset::Text(text) => {
                value::from_text(field, text).ok() == self.figment.find_value(field.key).ok()
            }
            _ => false,
        };
        origin != DEFAULT && !(self.snapshots.contains(file) && is_default())
    }

    /// The values as the section structs; they fit, unless a kind and its type disagree.
    pub(super) fn extract(&self) -> Result<Experiment> {
        self.figment
            .extract()
            .map_err(|error| Error::config("the configuration does not fit its sections").cause(error))
    }
}

/// The field of this key.
pub(super) fn field(key: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.key == key)
}
