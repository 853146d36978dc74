//! What `check` says of the parameters' groups: which is in which, at what rate and decay, and whether it trains.

use std::collections::BTreeMap;

use super::text::{amount, table, wrapped};
use crate::config::OptimizerKind;
use crate::nn::Blueprint;
use crate::optim::{Optimizer, ParameterGroups};

/// A table with a row for each group, two where a part of it is frozen, and below it the names in each.
pub(super) fn describe_groups(blueprint: &Blueprint, optimizer: &Optimizer) -> String {
    let decay = match optimizer.kind() {
        OptimizerKind::AdamW => "weight decay",
        OptimizerKind::Adam | OptimizerKind::Sgd => "L2",
    };
    let title = ["parameters of", "trains", "rate", decay, "tensors", "numbers"];
    let (mut rows, mut names) = (vec![title.map(str::to_owned)], String::new());
    for part in parts(blueprint, optimizer.groups()) {
        let numbers = part.members.iter().map(|&at| blueprint.parameters()[at].elements());
        let numbers = amount(numbers.fold(0, usize::saturating_add));
        let tensors = part.members.len().to_string();
        let (trains, rate, decay) = match part.rates {
            Some((lr, decay)) => ("yes", format!("{lr:?}"), format!("{decay:?}")),
            None => ("no", "-".to_owned(), "-".to_owned()),
        };
        rows.push([part.name.clone(), trains.to_owned(), rate, decay, tensors, numbers]);
        let trains = if part.rates.is_some() { "" } else { ", frozen" };
        names += &wrapped(
            &format!("{}{trains}: {}\n", part.name, shortest(blueprint, &part.members).join(", ")),
            2,
        );
    }
    if rows.len() == 2 {
        // One group of everything needs no names.
        names.clear();
    }
    format!("{}{names}", table(&rows))
}

/// The members of a group that train, or those that do not.
struct Part {
    name: String,
    /// Learning rate and weight decay, where they train.
    rates: Option<(f64, f64)>,
    members: Vec<usize>,
}

fn parts(blueprint: &Blueprint, groups: &ParameterGroups) -> Vec<Part> {
    let mut parts = Vec::new();
    let trains = |at: &usize| blueprint.parameters()[*at].trains;
    let numbered = groups.groups().iter().enumerate();
    // The rest, which is the first, comes last.
    for (number, group) in numbered.clone().skip(1).chain(numbered.take(1)) {
        let (trained, frozen): (Vec<usize>, Vec<usize>) = group.members.iter().partition(|at| trains(at));
        let name = match &group.pattern {
            Some(pattern) => format!("{number}: {pattern}"),
            None if groups.groups().len() == 1 => "everything".to_owned(),
            None => "the rest".to_owned(),
        };
        for (members, rates) in [(trained, Some((group.lr, group.weight_decay))), (frozen, None)] {
            if !members.is_empty() {
                parts.push(Part { name: name.clone(), rates, members });
            }
        }
    }
    parts
}

/// `members` by as few names as say it: `module.*` where all of a module are among them, and `blocks.0-7.*` for parts that
/// are numbered on.
fn shortest(blueprint: &Blueprint, members: &[usize]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for &at in members {
        let name = &blueprint.parameters()[at].name;
        let mut modules = name.match_indices('.').map(|(end, _)| &name[..=end]);
        let is_whole = |module: &str| {
            let of_module = |(at, _): &(usize, &crate::nn::ParameterSpec)| members.binary_search(at).is_ok();
            let all = blueprint.parameters().iter().enumerate();
            all.filter(|(_, parameter)| parameter.name.starts_with(module)).all(|entry| of_module(&entry))
        };
        let shown = modules
            .find(|module| is_whole(module))
            .map_or_else(|| name.clone(), |module| format!("{module}*"));
        if names.last() != Some(&shown) {
            names.push(shown);
        }
    }
    in_ranges(&names)
}

/// Names that differ in one number alone, as one.
fn in_ranges(names: &[String]) -> Vec<String> {
    let mut order = Vec::new();
    let mut numbers: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for name in names {
        let parts: Vec<&str> = name.split('.').collect();
        let Some(at) = parts.iter().position(|part| part.parse::<usize>().is_ok()) else {
            order.push((name.clone(), None));
            continue;
        };
        let key = (parts[..at].join("."), parts[at + 1..].join("."));
        let number = parts[at].parse().unwrap_or_default();
        let of_key = numbers.entry(key.clone()).or_default();
        if of_key.is_empty() {
            order.push((name.clone(), Some(key)));
        }
        of_key.push(number);
    }
    let shown = |(name, key): (String, Option<(String, String)>)| {
        let Some(key) = key else { return name };
        let all = numbers.get(&key).map(Vec::as_slice).unwrap_or_default();
        let (before, behind) = key;
        let behind = if behind.is_empty() { behind } else { format!(".{behind}") };
        format!("{before}.{}{behind}", ranges(all))
    };
    order.into_iter().map(shown).collect()
}

/// `0-3,5`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let shown = |(start, end): (usize, usize)| {
        if start == end { start.to_string() } else { format!("{start}-{end}") }
    };
    runs.into_iter().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init};

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let b = Builder::recording();
        for i in 0..4 {
            for name in ["weight", "bias"] {
                b.pp("net").pp("blocks").pp(i).parameter(name, &[1], Init::Zeros).unwrap();
            }
        }
        b.pp("net").parameter("norm", &[1], Init::Zeros).unwrap();
        b.pp("head").parameter("weight", &[1], Init::Zeros).unwrap();
        let blueprint = b.blueprint();
        for (members, expected) in [
            (vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9], vec!["net.*", "head.*"]),
            (vec![0, 1, 2, 3, 6, 7], vec!["net.blocks.0-1,3.*"]),
            (vec![1, 3, 5, 7, 8], vec!["net.blocks.0-3.bias", "net.norm"]),
            (vec![0, 1, 2, 3, 4, 5, 6, 7], vec!["net.blocks.*"]),
        ] {
            assert_eq!(shortest(&blueprint, &members), expected);
        }
    }
}
