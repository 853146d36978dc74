//! What a network is made of, without the numbers: the one description that everything else derives from.
//!
//! The constructors of the modules in [`crate::model`] write it as they run. Whoever computes the network in another way
//! than they do finds parameters, sizes and dropouts here by their names in PyTorch, once, when it is built.

use std::collections::HashMap;
use std::fmt::Display;

use super::{Dropout, Init};
use crate::{Error, Result};

/// Parameters and dropouts of a network, in the order of construction.
#[derive(Clone, Debug, Default)]
pub struct Blueprint {
    parameters: Vec<ParameterSpec>,
    positions: HashMap<String, usize>,
    dropouts: HashMap<String, Dropout>,
}

/// A parameter, but for its values.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Its key in the `state_dict`.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How its initial values are drawn.
    pub init: Init,
    /// Whether it trains.
    pub trains: bool,
}

/// A parameter found by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterId {
    /// Its position in `model.parameters()`.
    pub position: usize,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// How many numbers it has; `usize::MAX` where they cannot be counted.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, n| product.saturating_mul(*n))
    }
}

impl Blueprint {
    /// Notes a parameter; gives its position.
    pub(super) fn add_parameter(&mut self, name: &str, shape: &[usize], init: Init, trains: bool) -> usize {
        let position = self.parameters.len();
        self.parameters.push(ParameterSpec { name: name.to_owned(), shape: shape.to_vec(), init, trains });
        self.positions.insert(name.to_owned(), position);
        position
    }

    /// Notes a dropout and gives it its site: they are numbered from 1.
    pub(super) fn add_dropout(&mut self, name: &str, p: f64) -> Dropout {
        let dropout = Dropout::new(p, 1 + self.dropouts.len() as u64);
        self.dropouts.insert(name.to_owned(), dropout);
        dropout
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    /// Positions of the parameters that train, in order.
    pub fn trainable(&self) -> impl Iterator<Item = usize> {
        self.parameters.iter().enumerate().filter(|(_, parameter)| parameter.trains).map(|(at, _)| at)
    }

    /// How many numbers the parameters that train hold together; `usize::MAX` where they cannot be counted.
    #[must_use]
    pub fn trainable_elements(&self) -> usize {
        let ours = self.parameters.iter().filter(|parameter| parameter.trains);
        ours.fold(0, |sum, parameter| sum.saturating_add(parameter.elements()))
    }

    /// How many numbers the parameters hold together, for those whose name starts with `prefix` ("" = all);
    /// `usize::MAX` where they cannot be counted.
    #[must_use]
    pub fn elements(&self, prefix: &str) -> usize {
        let ours = self.parameters.iter().filter(|parameter| parameter.name.starts_with(prefix));
        ours.fold(0, |sum, parameter| sum.saturating_add(parameter.elements()))
    }

    /// The whole network.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope { blueprint: self, path: String::new() }
    }
}

/// A module of a [`Blueprint`]: where its parts are found by name.
#[derive(Clone, Debug)]
pub struct Scope<'b> {
    blueprint: &'b Blueprint,
    path: String,
}

impl Scope<'_> {
    /// The child `name`.
    #[must_use]
    pub fn pp(&self, name: impl Display) -> Self {
        Self { blueprint: self.blueprint, path: join(&self.path, name) }
    }

    /// The module's name in PyTorch.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The parameter `name` of this module.
    ///
    /// # Errors
    /// Where the network has none of that name.
    pub fn parameter(&self, name: &str) -> Result<ParameterId> {
        let path = join(&self.path, name);
        let found = self.blueprint.positions.get(&path).and_then(|&position| {
            let shape = self.blueprint.parameters.get(position)?.shape.clone();
            Some(ParameterId { position, shape })
        });
        found.ok_or_else(|| Error::run(format!("the network has no parameter {path}")))
    }

    /// The dropout `name` of this module.
    ///
    /// # Errors
    /// Where the network has none of that name.
    pub fn dropout(&self, name: &str) -> Result<Dropout> {
        let path = join(&self.path, name);
        let found = self.blueprint.dropouts.get(&path).copied();
        found.ok_or_else(|| Error::run(format!("the network has no dropout {path}")))
    }

    /// The positions of all parameters of this module, in order.
    pub fn parameters(&self) -> impl Iterator<Item = usize> {
        let prefix = join(&self.path, "");
        let ours = move |(_, parameter): &(usize, &ParameterSpec)| parameter.name.starts_with(&prefix);
        self.blueprint.parameters.iter().enumerate().filter(ours).map(|(position, _)| position)
    }

    /// The positions of those of them that train, in order.
    pub fn trainable(&self) -> impl Iterator<Item = usize> {
        self.parameters()
            .filter(|&position| self.blueprint.parameters.get(position).is_some_and(|it| it.trains))
    }

    /// How many children `0`, `1`, … with parameters there are: the length of a `ModuleList`.
    #[must_use]
    pub fn children(&self) -> usize {
        let has = |i: &usize| {
            let prefix = join(&join(&self.path, i), "");
            self.blueprint.parameters.iter().any(|parameter| parameter.name.starts_with(&prefix))
        };
        (0..self.blueprint.parameters.len()).take_while(has).count()
    }
}

/// `name` below `path`.
pub(super) fn join(path: &str, name: impl Display) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Builder;

    #[test]
    fn parts_are_found_by_name() {
        let b = Builder::recording();
        for i in 0..3 {
            let layer = b.pp("layers").pp(i);
            layer.parameter("weight", &[1 << 40, 1 << 40], Init::Zeros).unwrap();
            assert_eq!(layer.dropout("drop", 0.5).site(), 1 + i);
        }
        b.pp("layers10").parameter("bias", &[7], Init::Ones).unwrap();
        let blueprint = b.blueprint();
        assert!(b.parameters().is_empty());
        let layers = blueprint.root().pp("layers");
        assert_eq!(layers.children(), 3);
        assert_eq!(layers.parameters().collect::<Vec<_>>(), [0, 1, 2]);
        let weight = layers.pp(2).parameter("weight").unwrap();
        assert_eq!((weight.position, weight.shape), (2, vec![1 << 40, 1 << 40]));
        assert_eq!(layers.pp(1).dropout("drop").unwrap(), Dropout::new(0.5, 2));
        let error = layers.pp(3).parameter("weight").unwrap_err().to_string();
        assert!(error.contains("no parameter layers.3.weight"), "{error}");
        assert!(layers.pp(0).dropout("other").is_err());
        assert_eq!(blueprint.elements("layers10"), 7);
        assert_eq!(blueprint.elements(""), usize::MAX);
    }
}
