//! Going on with an optimizer: what a checkpoint's `optimizer_state` says of each parameter, by the groups that it was
//! saved by.

use std::path::Path;

use crate::checkpoint::{AdamState, Expected, SgdState, TensorData, Value};
use crate::config::{Experiment, OptimizerKind, saved_field};
use crate::error::{Error, Result};
use crate::model::{DecoderKind, Network};
use crate::nn::{Blueprint, ParameterSpec};
use crate::optim::{Moments, Optimizer, ParameterGroups};

/// An optimizer's state in a checkpoint.
pub(super) struct SavedOptimizer<'a> {
    pub(super) path: &'a Path,
    pub(super) state: &'a Value<'a>,
    /// The steps that it has taken, where the checkpoint counts them. PyTorch keeps the count as an f32, which is exact up
    /// to 2^24 steps only.
    pub(super) steps: Option<u64>,
    /// The training steps that were done.
    pub(super) done: u64,
    /// The experiment that the checkpoint is of.
    pub(super) config: &'a str,
}

/// Which parameters were in which group, and whether they trained.
struct Layout {
    groups: ParameterGroups,
    parameters: Vec<ParameterSpec>,
}

impl Layout {
    fn new(c: &Experiment, blueprint: &Blueprint) -> Result<Self> {
        let groups = ParameterGroups::new(&c.optimization, blueprint)?;
        Ok(Self { groups, parameters: blueprint.parameters().to_vec() })
    }

    /// Of each group that has parameters, what a state has a place for.
    fn expected(&self) -> Vec<Vec<Expected>> {
        let of = |&position: &usize| {
            let ParameterSpec { name, shape, trains, .. } = self.parameters.get(position)?.clone();
            Some(Expected { name, shape, trains })
        };
        let groups = self.groups.groups().iter().filter(|group| !group.members.is_empty());
        groups.map(|group| group.members.iter().filter_map(of).collect()).collect()
    }
}

impl SavedOptimizer<'_> {
    /// Puts `optimizer`, that of the experiment `c`, where it was. What to say where it cannot go on from there because
    /// something trains now that did not: it begins anew then, as PyTorch's would for those parameters.
    ///
    /// # Errors
    /// A data error where a state does not fit its parameter, or is not there.
    pub(super) fn restore(
        &self,
        c: &Experiment,
        decoder: &dyn DecoderKind,
        blueprint: &Blueprint,
        optimizer: &mut Optimizer,
    ) -> Result<Option<String>> {
        let layout = self.layout(c, decoder, blueprint)?;
        let (steps, in_order) = match optimizer.kind() {
            OptimizerKind::Sgd => (0, self.sgd(&layout, optimizer.momentum())?),
            kind => self.adam(&layout, kind)?,
        };
        let mut saved: Vec<Option<Moments>> = vec![None; layout.parameters.len()];
        for (position, moments) in layout.groups.order().zip(in_order) {
            saved[position] = moments;
        }
        let mut all = optimizer.moments().to_vec();
        let mut new = 0;
        for &position in optimizer.groups().trainable() {
            match saved[position].take() {
                Some(moments) => all[position] = moments,
                None => new += 1,
            }
        }
        // SGD's first step is that of zero moments, and so is everybody's.
        if new > 0 && steps > 0 {
            return Ok(Some(format!(
                "{new} parameters train now that did not: the optimizer begins anew, without its moments"
            )));
        }
        optimizer.restore(self.steps.unwrap_or(steps.max(self.done)), all);
        Ok(None)
    }

    /// The layout that the state was saved by: the experiment's, unless groups or frozen parts were changed since.
    fn layout(&self, c: &Experiment, decoder: &dyn DecoderKind, blueprint: &Blueprint) -> Result<Layout> {
        let mut was = c.clone();
        was.optimization.groups = saved_field(self.config, "optimization.groups").unwrap_or_default();
        was.model.backbone.freeze =
            saved_field(self.config, "model.backbone.freeze").unwrap_or(crate::config::Freeze::None);
        let is_same = was.optimization.groups == c.optimization.groups
            && was.model.backbone.freeze == c.model.backbone.freeze;
        if is_same {
            return Layout::new(c, blueprint);
        }
        Layout::new(&was, &*Network::plan(&was, decoder)?)
    }

    /// SGD's moments, group after group; none where there is no momentum.
    fn sgd(&self, layout: &Layout, momentum: f64) -> Result<Vec<Option<Moments>>> {
        let expected = layout.expected();
        let state = SgdState::from_value(self.path, self.state, &expected)?;
        if state.momentum != 0.0 && momentum == 0.0 {
            let what =
                format!("{}: `optimizer_state` has a momentum of {}", self.path.display(), state.momentum);
            return Err(Error::data(what)
                .hint("the experiment has none: set optimization.momentum, or take another checkpoint"));
        }
        let buffers = state.momentum_buffers.iter().zip(expected.iter().flatten());
        buffers
            .map(|(buffer, parameter)| {
                let first =
                    buffer.as_ref().map(|buffer| finite(self.path, &parameter.name, buffer)).transpose()?;
                Ok(first.map(|first| Moments { first, second: Vec::new() }))
            })
            .collect()
    }

    /// The steps that Adam's state counts, and its moments, group after group, of which there must be some once a step was
    /// done.
    fn adam(&self, layout: &Layout, kind: OptimizerKind) -> Result<(u64, Vec<Option<Moments>>)> {
        let (decoupled, expected) = (kind == OptimizerKind::AdamW, layout.expected());
        let state = AdamState::from_value(self.path, self.state, &expected, decoupled)?;
        let done = self.steps.unwrap_or(self.done);
        let (mut steps, mut all) = (0, Vec::with_capacity(state.moments.len()));
        for (moments, Expected { name, trains, .. }) in state.moments.iter().zip(expected.iter().flatten()) {
            let Some(moments) = moments else {
                if done > 0 && *trains {
                    let path = self.path.display();
                    let what = format!("{path}: `optimizer_state` is empty after {done} updates");
                    return Err(Error::data(what).hint("the file is incomplete: take another checkpoint"));
                }
                all.push(None);
                continue;
            };
            let read = |tensor: &TensorData| finite(self.path, name, tensor);
            steps = moments.step.max(steps);
            all.push(Some(Moments { first: read(&moments.exp_avg)?, second: read(&moments.exp_avg_sq)? }));
        }
        Ok((steps, all))
    }
}

fn finite(path: &Path, name: &str, tensor: &TensorData) -> Result<Vec<f32>> {
    let values = tensor.to_f32()?;
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => {
            let what = format!("{}: `optimizer_state` of {name} holds {value}", path.display());
            Err(Error::data(what).hint("go on from a checkpoint whose training was healthy"))
        }
    }
}
