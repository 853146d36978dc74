//! A resolved experiment as TOML and JSON.

use serde_json::Value as Json;

use super::Resolved;
use super::define::{Field, Kind, Preset};
use super::fields::{Experiment, FIELDS, SECTIONS};

/// How a resolved experiment begins.
pub(super) const HEADER: &str =
    "# Every value of the experiment. Relative paths are relative to the working directory.\n";

impl Experiment {
    /// The experiment as a file that resolves to it: every value, an empty string for an unset one.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let json = self.to_json();
        render(|field| Some((value(field, &json), None)))
    }

    /// What the checkpoints keep of it: all that decides the numbers, without where the run goes and how it loads. So
    /// the same experiment gives the same file, to the byte, in any folder and with any number of workers.
    #[must_use]
    pub fn to_checkpoint_toml(&self) -> String {
        let json = self.to_json();
        render(|field| field.decides_numbers().then(|| (value(field, &json), None)))
    }

    /// The experiment as the Python script reads it: a dictionary a section, `model.backbone` in `model`.
    #[must_use]
    pub fn to_json(&self) -> Json {
        serde_json::json!({
            "data": self.data.json(),
            "model": self.model.json(),
            "tokenizer": self.tokenizer.json(),
            "decoding": self.decoding.json(),
            "optimization": self.optimization.json(),
            "run": self.run.json(),
        })
    }
}

impl Resolved {
    /// As [`Experiment::to_toml`].
    #[must_use]
    pub fn to_toml(&self) -> String {
        self.experiment.to_toml()
    }

    /// As [`Experiment::to_json`].
    #[must_use]
    pub fn to_json(&self) -> Json {
        self.experiment.to_json()
    }

    /// As [`Resolved::to_toml`], with a comment behind each value that says where it came from.
    #[must_use]
    pub fn to_toml_with_origins(&self) -> String {
        let json = self.to_json();
        render(|field| {
            let value = value(field, &json);
            let mut origin = self.origin(field.key).to_owned();
            if let (true, Some(note)) = (value == UNSET, unset(field)) {
                origin = format!("{origin} (unset: {note})");
            }
            Some((value, Some(origin)))
        })
    }
}

/// How an unset field is written, so that it stays unset on top of other files too.
pub(super) const UNSET: &str = "\"\"";

/// What an unset field means.
fn unset(field: &Field) -> Option<&'static str> {
    (field.default == Preset::Unset).then_some(field.note).flatten()
}

/// The sections with a line for each field: value, and comment where there is one, aligned in each section.
fn render(line: impl Fn(&Field) -> Option<(String, Option<String>)>) -> String {
    let mut text = HEADER.to_owned();
    for section in SECTIONS {
        text.extend(["\n[", section.name, "]\n"]);
        let lines: Vec<_> = FIELDS
            .iter()
            .filter(|field| field.section == section.name)
            .filter_map(|field| {
                let (value, comment) = line(field)?;
                Some((format!("{} = {value}", field.name), comment))
            })
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        for (line, comment) in lines {
            match comment {
                Some(comment) => text.extend([&format!("{line:width$}"), "  # ", &comment, "\n"]),
                None => text.extend([&line, "\n"]),
            }
        }
    }
    text
}

/// A field's value in TOML, looked up in the experiment's JSON form.
pub(super) fn value(field: &Field, experiment: &Json) -> String {
    let json = field.key.split('.').try_fold(experiment, |json, name| json.get(name)).unwrap_or(&Json::Null);
    match (json, field.kind) {
        (Json::Number(number), Kind::Number) => float(number),
        (Json::Null, _) => UNSET.to_owned(),
        (json, _) => literal(json),
    }
}

/// A value in TOML, on one line.
fn literal(json: &Json) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match json {
        Json::Number(number) if number.is_f64() => float(number),
        Json::Number(number) => number.to_string(),
        Json::Bool(on) => on.to_string(),
        Json::String(text) => string(text),
        Json::Array(items) => format!("[{}]", list(items.iter().map(literal).collect())),
        Json::Object(items) => {
            let item = |(name, value): (&String, &Json)| format!("{name} = {}", literal(value));
            format!("{{ {} }}", list(items.iter().map(item).collect()))
        }
        Json::Null => UNSET.to_owned(),
    }
}

/// Debug writes the shortest digits that read back as the same f64, and always marks it as a float.
fn float(number: &serde_json::Number) -> String {
    format!("{:?}", number.as_f64().unwrap_or(f64::NAN))
}

/// A TOML string on one line.
pub(super) fn string(text: &str) -> String {
    if text.contains(char::is_control) {
        let escaped: String = text
            .chars()
            .map(|c| match c {
                '"' | '\\' => format!("\\{c}"),
                c if c.is_control() => format!("\\U{:08X}", u32::from(c)),
                c => c.to_string(),
            })
            .collect();
        return format!("\"{escaped}\"");
    }
    toml_edit::Value::from(text).to_string()
}
