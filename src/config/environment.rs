//! Environment variables: `SLT_<SECTION>__<FIELD>`, such as `SLT_MODEL__BACKBONE__DEPTH`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::fields::SECTIONS;
use super::merge::{Merge, field};
use super::suggest;
use super::value::{from_text, one_line};
use crate::error::Problem;

/// Puts the variables among `variables` that are meant for us on top of `merge`.
///
/// A known section with an unknown field is refused like any unknown key. Any other name that begins with `SLT_` is
/// another program's, or misspelt: a warning names the nearest variable that we know.
pub(super) fn read(variables: &[(OsString, OsString)], merge: &mut Merge) {
    let mut ours: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.to_string_lossy(), value))
        .filter(|(name, _)| name.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("SLT_")))
        .collect();
    ours.sort();
    let mut seen = BTreeMap::new();
    for (name, value) in ours {
        let name = one_line(&name);
        let key = name[4..].to_ascii_lowercase().replace("__", ".");
        let section = key.split_once('.').is_some_and(|(top, _)| SECTIONS.iter().any(|s| s.name == top));
        if !section {
            merge.warnings.extend(warning(&name));
            continue;
        }
        let origin = format!("env {name}");
        let Some(field) = field(&key) else {
            not_a_field(&key, &origin, merge);
            continue;
        };
        if let Some(other) = seen.insert(field.key, name.clone()) {
            let what = format!("{origin}: {other} sets {} too", field.key);
            merge.problems.push(Problem::new(what).hint("unset one of the two variables"));
            continue;
        }
        if let Some(text) = value.to_str() {
            merge.assign(field, from_text(field, text), &origin);
        } else {
            let what = format!("{origin}: {}: the value is not UTF-8 text", field.key);
            merge.refuse(field, Problem::new(what).hint("unset the variable, or set it to UTF-8 text"));
        }
    }
}

fn not_a_field(key: &str, origin: &str, merge: &mut Merge) {
    if SECTIONS.iter().any(|section| section.name == key) {
        let variable = format!("SLT_{}__<FIELD>", key.replace('.', "__").to_ascii_uppercase());
        let what = format!("{origin}: {key} is a section, not a field");
        merge.problems.push(Problem::new(what).hint(format!("name the field: {variable}")));
    } else if let Some(field) = suggest::meant(key) {
        let what = format!("{origin}: unknown key {key}");
        merge.problems.push(Problem::new(what).hint(format!("did you mean {}?", field.env())));
    } else {
        merge.unknown(key, origin);
    }
}

fn warning(name: &str) -> Option<String> {
    let near = suggest::for_variable(name)?;
    Some(format!("the environment variable {name} sets no field; the nearest that does is {}", near.env()))
}
