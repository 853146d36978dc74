//! "Did you mean": the nearest section, field or word to a misspelt one.

use super::define::Field;
use super::fields::{FIELDS, SECTIONS};

/// A longer word is nobody's misspelling, and comparing costs its length times each candidate's.
const LONGEST: usize = 100;

/// The candidate that `word` is probably a misspelling of: at most 2 edits away, or a third of its length.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = normal(word);
    let most = 2.max(word.chars().count() / 3);
    candidates
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word, name), name))
        // As many edits as there are letters turn anything into anything.
        .filter(|(edits, name)| *edits <= most && *edits < name.len().min(word.len()))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// What other programs call some fields.
const ELSEWHERE: [(&str, &str); 8] = [
    ("learning_rate", "optimization.lr"),
    ("max_epochs", "optimization.epochs"),
    ("num_epochs", "optimization.epochs"),
    ("workers", "data.num_workers"),
    ("output_dir", "run.work_dir"),
    ("out_dir", "run.work_dir"),
    ("gpu", "run.device"),
    ("amp", "run.precision"),
];

/// The field that an unknown key, such as `optimization.learning_rate` or `lr`, was probably meant to be.
pub(super) fn meant(key: &str) -> Option<&'static Field> {
    let key = normal(key);
    let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
    if let Some(field) = FIELDS.iter().find(|f| f.name == name && f.section != section) {
        return Some(field);
    }
    let of_key = |key: &str| FIELDS.iter().find(|f| f.key == key);
    if let Some((_, key)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
        return of_key(key);
    }
    let keys = FIELDS.iter().map(|f| f.key);
    let here = || nearest(&key, keys).filter(|near| near.starts_with(section));
    let there = || {
        let name = nearest(name, FIELDS.iter().map(|f| f.name))?;
        FIELDS.iter().find(|f| f.name == name)
    };
    here().and_then(of_key).or_else(there)
}

/// What to say about an unknown key.
pub(super) fn for_key(key: &str) -> String {
    if let Some(field) = meant(key) {
        return did_you_mean(field.key);
    }
    let key = normal(key);
    let (section, _) = key.rsplit_once('.').unwrap_or(("", &key));
    let fields: Vec<_> = FIELDS.iter().filter(|f| f.section == section).map(|f| f.name).collect();
    if fields.is_empty() { sections() } else { format!("[{section}] has {}", fields.join(", ")) }
}

/// What to say about an unknown section, such as `optimisation` or `backbone`.
pub(super) fn for_section(name: &str) -> String {
    let name = normal(name);
    let last = |section: &'static str| section.rsplit('.').next().unwrap_or(section);
    SECTIONS
        .iter()
        .map(|section| section.name)
        .find(|section| last(section) == name)
        .or_else(|| nearest(&name, SECTIONS.iter().map(|section| section.name)))
        .map_or_else(sections, |section| format!("did you mean [{section}]?"))
}

/// The field of which the environment variable is nearest to `variable`, however far; none for a very long name.
pub(super) fn for_variable(variable: &str) -> Option<&'static Field> {
    if variable.len() > LONGEST {
        return None;
    }
    let variable = variable.to_ascii_uppercase();
    // Jaro-Winkler favours a common beginning, that is the section.
    let likeness = |field: &Field| strsim::jaro_winkler(&variable, &field.env());
    FIELDS.iter().min_by(|a, b| likeness(b).total_cmp(&likeness(a)))
}

fn did_you_mean(key: &str) -> String {
    format!("did you mean {key}?")
}

fn sections() -> String {
    let names: Vec<_> = SECTIONS.iter().map(|section| format!("[{}]", section.name)).collect();
    format!("the sections are {}", names.join(", "))
}

fn normal(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(nearest("adamx", ["adamw", "adam", "sgd"]), Some("adamw"));
        assert_eq!(nearest("gpu", ["cpu", "cuda"]), Some("cpu"));
        assert_eq!(nearest("lion", ["adamw", "adam", "sgd"]), None);
        for (key, hint) in [
            ("data.batchsize", "did you mean data.batch_size?"),
            ("data.batch-size", "did you mean data.batch_size?"),
            ("optimization.batch_size", "did you mean data.batch_size?"),
            ("lr", "did you mean optimization.lr?"),
            ("model.depth", "did you mean model.backbone.depth?"),
            ("model.backbone.dephts", "did you mean model.backbone.depth?"),
            (
                "run.what",
                "[run] has work_dir, device, engine, precision, seed, threads, memory_budget, resume, \
             checkpoint_every",
            ),
            ("zzzzzzz", "the sections are [data], [model], [model.backbone], [optimization], [run]"),
        ] {
            assert_eq!(for_key(key), hint, "{key}");
        }
        assert_eq!(for_section("optimisation"), "did you mean [optimization]?");
        assert_eq!(for_section("backbone"), "did you mean [model.backbone]?");
        assert_eq!(for_variable("SLT_OPTIMIZATION_LR").unwrap().key, "optimization.lr");
    }
}
