//! Groups of parameters: which learning rate and weight decay each parameter has, and which do not train.

use crate::Result;
use crate::config::Optimization;
use crate::error::{Error, ErrorKind, Problem};
use crate::nn::Blueprint;

/// Every parameter's group. The first one is the rest: what no `[[optimization.groups]]` matches, by the experiment's own
/// learning rate and weight decay; the others follow in the experiment's order.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGroups {
    groups: Vec<Group>,
    /// The group of each parameter, in the parameters' order.
    of: Vec<usize>,
    /// Positions of the parameters that train, in order.
    trainable: Vec<usize>,
}

/// Parameters that train alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The pattern that its parameters match; `None` for the rest.
    pub pattern: Option<String>,
    /// Its first learning rate.
    pub lr: f64,
    /// Its weight decay.
    pub weight_decay: f64,
    /// Positions of its parameters, in order; those that are frozen among them.
    pub members: Vec<usize>,
}

impl ParameterGroups {
    /// Those of a network.
    ///
    /// # Errors
    /// A configuration error that names each group which no parameter is of.
    pub fn new(c: &Optimization, blueprint: &Blueprint) -> Result<Self> {
        let rest = Group { pattern: None, lr: c.lr, weight_decay: c.weight_decay, members: Vec::new() };
        let others = c.groups.iter().map(|group| Group {
            pattern: Some(group.pattern.to_string()),
            lr: group.lr(c.lr),
            weight_decay: group.weight_decay.unwrap_or(c.weight_decay),
            members: Vec::new(),
        });
        let mut groups: Vec<Group> = std::iter::once(rest).chain(others).collect();
        let mut of = Vec::with_capacity(blueprint.parameters().len());
        for (position, parameter) in blueprint.parameters().iter().enumerate() {
            let first = c.groups.iter().position(|group| group.pattern.matches(&parameter.name));
            let group = first.map_or(0, |first| 1 + first);
            of.push(group);
            groups[group].members.push(position);
        }
        let empty = groups.iter().zip(0..).skip(1).filter(|(group, _)| group.members.is_empty());
        let problems = empty.map(|(group, number)| matches_nothing(c, blueprint, group, number)).collect();
        Error::all(ErrorKind::Config, problems)?;
        let trainable: Vec<usize> = blueprint.trainable().collect();
        if trainable.is_empty() && !of.is_empty() {
            return Err(Error::config("every parameter is frozen: there is nothing to train").hint(
                "lower model.backbone.freeze, or take freeze = true out of a group in optimization.groups",
            ));
        }
        Ok(Self { groups, of, trainable })
    }

    /// The groups' first learning rates.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        self.groups.iter().map(|group| group.lr).collect()
    }

    /// All groups: the rest first.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group of each parameter, in the parameters' order.
    #[must_use]
    pub fn of(&self) -> &[usize] {
        &self.of
    }

    /// Positions of all parameters, group after group: the order in which PyTorch's optimizer numbers them.
    pub fn order(&self) -> impl Iterator<Item = usize> {
        self.groups.iter().flat_map(|group| group.members.iter().copied())
    }

    /// Positions of the parameters that train, in order.
    #[must_use]
    pub fn trainable(&self) -> &[usize] {
        &self.trainable
    }
}

fn matches_nothing(c: &Optimization, blueprint: &Blueprint, group: &Group, number: usize) -> Problem {
    let pattern = group.pattern.as_deref().unwrap_or_default();
    let glob = c.groups.get(number - 1).map(|group| &group.pattern);
    let taken =
        blueprint.parameters().iter().any(|parameter| glob.is_some_and(|glob| glob.matches(&parameter.name)));
    let problem = Problem::new(if taken {
        format!(
            "optimization.groups: group {number} ({pattern}) is left without a parameter: those that it matches are \
                 of the groups before it"
        )
    } else {
        format!("optimization.groups: group {number} ({pattern}) matches no parameter")
    });
    if taken {
        return problem.hint("the first group that matches counts: put the narrower pattern first");
    }
    let all = blueprint.parameters();
    let names: Vec<&str> =
        all.iter().step_by(1.max(all.len() / 3)).map(|one| one.name.as_str()).take(3).collect();
    problem.hint(format!("names are such as {}; * stands for any characters", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Glob, ParameterGroup};
    use crate::nn::{Builder, Init};

    fn blueprint(names: &[&str]) -> Blueprint {
        let b = Builder::recording();
        for name in names {
            b.parameter(name, &[2], Init::Zeros).unwrap();
        }
        b.blueprint()
    }

    fn group(pattern: &str) -> ParameterGroup {
        let pattern = Glob::new(pattern).unwrap();
        ParameterGroup { pattern, lr: None, lr_factor: None, weight_decay: None, freeze: false }
    }

    #[test]
    fn the_first_group_that_matches_counts() {
        let blueprint = blueprint(&["a.weight", "a.bias", "b.weight", "b.bias"]);
        let c = Optimization {
            lr: 0.5,
            weight_decay: 0.1,
            groups: vec![
                ParameterGroup { weight_decay: Some(0.0), ..group("*.bias") },
                ParameterGroup { lr_factor: Some(0.1), ..group("a.*") },
            ],
            ..Optimization::default()
        };
        let groups = ParameterGroups::new(&c, &blueprint).unwrap();
        assert_eq!(groups.of(), [2, 1, 0, 1]);
        let all: Vec<_> = groups.groups().iter().map(|g| (g.lr, g.weight_decay, g.members.clone())).collect();
        assert_eq!(all, [(0.5, 0.1, vec![2]), (0.5, 0.0, vec![1, 3]), (0.05, 0.1, vec![0])]);
        assert_eq!(groups.trainable(), [0, 1, 2, 3]);
    }

    #[test]
    fn groups_without_parameters_are_named_all() {
        let groups = vec![group("a*"), group("a.weight"), group("nothing")];
        let c = Optimization { groups, ..Optimization::default() };
        let error = ParameterGroups::new(&c, &blueprint(&["a.weight", "b.weight"])).unwrap_err();
        assert_eq!((error.kind, error.problems.len()), (ErrorKind::Config, 2));
        let text = error.to_string();
        assert!(
            text.contains("group 2 (a.weight) is left without")
                && text.contains("group 3 (nothing) matches no"),
            "{text}"
        );
    }
}
