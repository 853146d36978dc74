//! How far down a backbone its backward pass goes.

use crate::nn::Scope;

/// What of a backbone trains: how far down the backward pass goes, and what it needs of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// All of it, from the embedding on.
    All,
    /// From this block on; from the last norm on, where there is no such block.
    From(usize),
    /// Nothing.
    Nothing,
}

impl Trained {
    /// Of the backbone `scope`: all from the lowest parameter on that trains.
    #[must_use]
    pub fn of(scope: &Scope) -> Self {
        let blocks: Vec<Scope> =
            (0..scope.pp("blocks").children()).map(|i| scope.pp("blocks").pp(i)).collect();
        let all = scope.trainable().count();
        let in_blocks: usize = blocks.iter().map(|block| block.trainable().count()).sum();
        let in_norm = scope.pp("norm").trainable().count();
        if all == 0 {
            return Self::Nothing;
        }
        if all > in_blocks + in_norm {
            return Self::All;
        }
        Self::From(blocks.iter().position(|block| block.trainable().next().is_some()).unwrap_or(blocks.len()))
    }

    /// The first of `depth` blocks that the backward pass goes through; `depth`, where it goes through none.
    #[must_use]
    pub fn first_block(self, depth: usize) -> usize {
        match self {
            Self::All => 0,
            Self::From(block) => block.min(depth),
            Self::Nothing => depth,
        }
    }

    /// The positions of the parameters of the backbone `scope` that no backward pass reaches.
    #[must_use]
    pub fn unreached(self, scope: &Scope) -> Vec<usize> {
        let blocks = scope.pp("blocks");
        let above = |first: usize| -> Vec<usize> {
            let blocks =
                (first..blocks.children()).flat_map(|i| blocks.pp(i).parameters().collect::<Vec<_>>());
            blocks.chain(scope.pp("norm").parameters()).collect()
        };
        let reached = match self {
            Self::All => return Vec::new(),
            Self::From(first) => above(first),
            Self::Nothing => Vec::new(),
        };
        scope.parameters().filter(|position| !reached.contains(position)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Freeze, for_tests};
    use crate::model::{Network, decoder};

    #[test]
    fn the_backward_pass_goes_as_far_as_something_trains() {
        let of = |freeze: &str, groups: &str| {
            let settings = [
                ("model.backbone.freeze", freeze),
                ("optimization.groups", groups),
                ("model.backbone.depth", "3"),
            ];
            let c = for_tests(&settings);
            let blueprint = Network::plan(&c, decoder::of_no_texts(&c).as_ref()).unwrap();
            let scope = blueprint.root().pp("encoder").pp("face_backbone");
            let trained = Trained::of(&scope);
            (trained, trained.unreached(&scope).len(), scope.parameters().count())
        };
        assert_eq!(Freeze::from_text("none"), Some(Freeze::None));
        let (_, _, all) = of("none", "[]");
        let block = (all - 6) / 3;
        assert_eq!(of("none", "[]"), (Trained::All, 0, all));
        assert_eq!(of("0", "[]"), (Trained::From(0), 4, all));
        assert_eq!(of("2", "[]"), (Trained::From(2), 4 + 2 * block, all));
        assert_eq!(of("3", "[]"), (Trained::From(3), 4 + 3 * block, all));
        assert_eq!(of("all", "[]"), (Trained::Nothing, all, all));
        // Single parameters above what trains are reached all the same.
        let biases = "[{ match = '*blocks.2.*', freeze = true }]";
        assert_eq!(of("1", biases), (Trained::From(1), 4 + block, all));
        assert_eq!(of("2", biases), (Trained::From(3), 4 + 3 * block, all));
        assert_eq!(of("0", "[{ match = '*backbone*', freeze = true }]"), (Trained::Nothing, all, all));
    }
}
