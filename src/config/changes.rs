//! What differs between two experiments, field by field.

use std::fs;

use toml_edit::{DocumentMut, Item};

use super::define::{Field, Kind, Preset};
use super::fields::FIELDS;
use super::snapshot::{self, HEADER};
use super::value::one_line;
use super::{Experiment, Setting};

/// A field of which the value is another one than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The field's key, such as `optimization.lr`.
    pub key: String,
    /// What it was, as an experiment file has it.
    pub from: String,
    /// What it is.
    pub to: String,
}

impl Change {
    /// Whether both values are paths that lead to one place from here, such as `data/face` and `./data/face/`.
    #[must_use]
    pub fn is_one_place(&self) -> bool {
        let real = |literal: &str| fs::canonicalize(literal.parse::<toml_edit::Value>().ok()?.as_str()?).ok();
        real(&self.from).is_some_and(|from| Some(from) == real(&self.to))
    }
}

/// A change that a run went on with from some step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The training steps that were done.
    pub step: u64,
    /// The epochs that were done.
    pub epoch: usize,
    /// What was changed.
    pub change: Change,
}

/// What `old`, a resolved experiment that an slt-run wrote, has for the field `key`, as a file has it; `None` where it is
/// from before that field, or no TOML.
#[must_use]
pub fn saved_value(old: &str, key: &str) -> Option<String> {
    find(&old.parse().ok()?, FIELDS.iter().find(|field| field.key == key)?)
}

/// As [`saved_value`], as its field's type.
#[must_use]
pub fn saved_field<T: serde::de::DeserializeOwned>(old: &str, key: &str) -> Option<T> {
    let field = FIELDS.iter().find(|field| field.key == key)?;
    let literal: toml_edit::Value = saved_value(old, key)?.parse().ok()?;
    super::value::from_toml(field, &Item::Value(literal)).ok()?.deserialize().ok()
}

/// All that `old`, a resolved experiment that an slt-run wrote, says, as settings whose origin is `origin`.
///
/// # Errors
/// The reason why `old` is no TOML.
pub fn saved_settings(old: &str, origin: &str) -> Result<Vec<Setting>, String> {
    let old: DocumentMut = old.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    let setting = |field: &Field| {
        let literal = find(&old, field)?;
        let text =
            literal.parse::<toml_edit::Value>().ok().and_then(|value| value.as_str().map(str::to_owned));
        let value = text.unwrap_or(literal);
        Some(Setting { key: field.key.to_owned(), value, origin: origin.to_owned() })
    };
    Ok(FIELDS.iter().filter_map(setting).collect())
}

/// The fields out of `which` that differ between `old`, a resolved experiment that an slt-run wrote, and `new`. A field
/// that `old` does not have was added since, and had what is its default now.
///
/// # Errors
/// The reason why `old` is no TOML.
pub fn changes(old: &str, new: &Experiment, which: impl Fn(&Field) -> bool) -> Result<Vec<Change>, String> {
    let old: DocumentMut = old.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    let json = new.to_json();
    let mut found = Vec::new();
    for field in FIELDS.iter().filter(|field| which(field)) {
        let to = snapshot::value(field, &json);
        let from = find(&old, field).or_else(|| default(field));
        let from = from.unwrap_or_else(|| "nothing".to_owned());
        if from != to {
            found.push(Change { key: field.key.to_owned(), from, to });
        }
    }
    Ok(found)
}

/// A field's value as `old` writes it.
fn find(old: &DocumentMut, field: &Field) -> Option<String> {
    let item = field.key.split('.').try_fold(old.as_item(), |item, name| item.get(name))?;
    match item {
        Item::Value(value) => Some(value.clone().decorated("", "").to_string()),
        _ => None,
    }
}

/// A field's default as a snapshot writes it.
fn default(field: &Field) -> Option<String> {
    match (field.default, field.kind) {
        (Preset::Required, _) => None,
        (Preset::Unset, _) => Some(snapshot::UNSET.to_owned()),
        (Preset::Text(text), Kind::Whole | Kind::Switch | Kind::Pair | Kind::Groups) => Some(text.to_owned()),
        (Preset::Text(text), Kind::Number) => text.parse::<f64>().ok().map(|number| format!("{number:?}")),
        (Preset::Text(text), _) => Some(snapshot::string(text)),
    }
}

/// `toml`, a resolved experiment, with a comment at its top that says what a run that has it was changed by. Nobody must
/// take it for a file that repeats the run.
#[must_use]
pub fn with_edits(toml: &str, edits: &[Edit]) -> String {
    if edits.is_empty() {
        return toml.to_owned();
    }
    let mut text = HEADER.to_owned();
    text.push_str("#\n# The run was changed while it trained, and this file does not repeat it:\n");
    for Edit { step, epoch, change: Change { key, from, to } } in edits {
        let line = format!("{key} was {from} and is {to} after step {step} (epoch {epoch})");
        text.extend(["#   ", &one_line(&line), "\n"]);
    }
    text + toml.strip_prefix(HEADER).unwrap_or(toml)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Setting, resolve};

    fn experiment(settings: &[(&str, &str)]) -> Experiment {
        let required = FIELDS.iter().filter(|f| f.default == Preset::Required).map(|f| (f.key, "here"));
        let setting = |(key, value): (&str, &str)| Setting {
            key: key.to_owned(),
            value: value.to_owned(),
            origin: String::new(),
        };
        let settings = required.chain(settings.iter().copied()).map(setting).collect();
        resolve(&Layers { settings, ..Layers::default() }).unwrap().experiment
    }

    #[test]
    fn each_change_is_named_with_both_values() {
        let old = experiment(&[("optimization.lr", "0.01"), ("data.val_batch_size", "2")]).to_toml();
        let new = experiment(&[("optimization.optimizer", "sgd"), ("model.backbone.depth", "6")]);
        let found = changes(&old, &new, |_| true).unwrap();
        let found: Vec<_> = found.iter().map(|c| (c.key.as_str(), c.from.as_str(), c.to.as_str())).collect();
        assert_eq!(
            found,
            [
                ("data.val_batch_size", "2", "\"\""),
                ("model.backbone.depth", "12", "6"),
                ("optimization.optimizer", "\"adamw\"", "\"sgd\""),
                ("optimization.lr", "0.01", "0.001"),
            ]
        );
        assert_eq!(changes(&old, &new, |field| field.section == "run").unwrap(), []);
        assert!(changes("[run", &new, |_| true).is_err());
    }

    #[test]
    fn paths_to_one_place_are_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| snapshot::string(&folder.path().join(name).to_string_lossy());
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        let change = |from, to| Change { key: "data.face_dir".into(), from: path(from), to: path(to) };
        assert!(change("a", "a/").is_one_place() && change("a", "b/../a").is_one_place());
        assert!(!change("a", "b").is_one_place() && !change("a", "none").is_one_place());
        assert!(!change("none", "none").is_one_place());
    }

    #[test]
    fn saved_values_are_found_as_they_stand() {
        let old = experiment(&[("model.backbone.num_heads", "3")]).to_checkpoint_toml();
        assert_eq!(saved_value(&old, "model.backbone.num_heads").as_deref(), Some("3"));
        assert_eq!(saved_value(&old, "run.init_from").as_deref(), Some("\"\""));
        assert_eq!(saved_value(&old, "run.work_dir"), None);
        assert_eq!(saved_value("[", "run.init_from"), None);
    }

    #[test]
    fn a_field_that_is_new_had_its_default() {
        let same = experiment(&[]);
        let old: String = same
            .to_toml()
            .lines()
            .filter(|line| !line.contains(" = ") || line.contains("here"))
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(changes(&old, &same, |_| true).unwrap(), []);
        let other = experiment(&[("optimization.accumulate", "2")]);
        let found = changes(&old, &other, |_| true).unwrap();
        assert_eq!(
            found,
            [Change { key: "optimization.accumulate".into(), from: "1".into(), to: "2".into() }]
        );
    }

    #[test]
    fn edits_stand_at_the_top_and_leave_the_experiment_as_it_is() {
        let experiment = crate::config::for_tests(&[("optimization.lr", "0.5")]);
        let toml = experiment.to_toml();
        assert_eq!(with_edits(&toml, &[]), toml);
        let change =
            Change { key: "optimization.lr".into(), from: "0.001".into(), to: "0.5\n[run]\nseed = 1".into() };
        let text = with_edits(&toml, &[Edit { step: 6, epoch: 2, change }]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], HEADER.trim_end());
        assert!(lines[2].contains("does not repeat it"), "{text}");
        assert_eq!(
            lines[3],
            "#   optimization.lr was 0.001 and is 0.5\\n[run]\\nseed = 1 after step 6 (epoch 2)"
        );
        assert_eq!(text.lines().skip(4).collect::<Vec<_>>(), toml.lines().skip(1).collect::<Vec<_>>());
    }
}
