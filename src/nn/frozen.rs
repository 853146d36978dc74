//! What of a network does not train.

use std::collections::HashSet;

/// Parameters that get no gradient, and modules that drop nothing because all of theirs are such.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    parameters: HashSet<String>,
    modules: Vec<String>,
}

impl Frozen {
    /// Of these parameters and modules, by their names.
    #[must_use]
    pub fn new(parameters: HashSet<String>, modules: Vec<String>) -> Self {
        Self { parameters, modules }
    }

    /// Whether the parameter `name` is frozen.
    #[must_use]
    pub fn parameter(&self, name: &str) -> bool {
        self.parameters.contains(name)
    }

    /// Whether `name` is a part of a module that is frozen as a whole.
    #[must_use]
    pub fn module(&self, name: &str) -> bool {
        let is_within = |module: &String| {
            name.strip_prefix(module.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.modules.iter().any(is_within)
    }

    /// Whether everything trains.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }
}
