//! Optimizer states in the layout of PyTorch's `optimizer.state_dict()`, so that both sides load each other's.
//!
//! `{"state": {0: {…}, 1: {…}}, "param_groups": [{"lr": …, "params": [0, 1, …]}, …]}`: each group with the keys that
//! PyTorch 2.15 writes, its parameters in the order of `model.parameters()`, numbered on from group to group. What does
//! not train has a number and no state, as in PyTorch.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::value::{TensorData, Value};
use crate::error::{Error, ErrorKind, Problem, Result};

/// The state of `torch.optim.AdamW` or `torch.optim.Adam`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamState<'a> {
    /// The groups.
    pub groups: Vec<GroupState>,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// True for `AdamW`, false for Adam.
    pub decoupled: bool,
    /// For each parameter, group after group; `None` before its first step, and where it does not train.
    pub moments: Vec<Option<AdamMoments<'a>>>,
}

/// What a group has of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupState {
    /// The current learning rate.
    pub lr: f64,
    /// `AdamW` scales the parameters by it, Adam and SGD add it to the gradient, times the parameter.
    pub weight_decay: f64,
    /// The learning rate that a scheduler started from; `None` without a scheduler.
    pub initial_lr: Option<f64>,
    /// How many parameters it has.
    pub parameters: usize,
}

/// A parameter that a state must have a place for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Whether it trains: otherwise it has no state.
    pub trains: bool,
}

/// What Adam remembers of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamMoments<'a> {
    /// Updates made so far.
    pub step: u64,
    /// Running mean of the gradient, in the parameter's shape.
    pub exp_avg: TensorData<'a>,
    /// Running mean of its square.
    pub exp_avg_sq: TensorData<'a>,
}

/// The state of `torch.optim.SGD`.
#[derive(Clone, Debug, PartialEq)]
pub struct SgdState<'a> {
    /// The groups.
    pub groups: Vec<GroupState>,
    /// How much of the previous update is kept.
    pub momentum: f64,
    /// For each parameter, group after group; `None` without momentum, before the first step, and where it does not
    /// train.
    pub momentum_buffers: Vec<Option<TensorData<'a>>>,
}

/// The largest count that every float up to it can be.
const MOST_STEPS: f64 = 9_007_199_254_740_992.0;

impl<'a> AdamState<'a> {
    /// The `state_dict`.
    #[must_use]
    pub fn into_value(self) -> Value<'a> {
        let state = self.moments.into_iter().map(|moments| {
            moments.map(|m| {
                Value::dict([
                    // PyTorch keeps the step as a tensor of f32, exact up to 2^24.
                    ("step", TensorData::scalar(m.step as f32).into()),
                    ("exp_avg", m.exp_avg.into()),
                    ("exp_avg_sq", m.exp_avg_sq.into()),
                ])
            })
        });
        let ((beta1, beta2), eps, decoupled) = (self.betas, self.eps, self.decoupled);
        let group = |group: &GroupState| {
            vec![
                ("lr", Value::Float(group.lr)),
                ("betas", Value::Tuple(vec![beta1.into(), beta2.into()])),
                ("eps", Value::Float(eps)),
                ("weight_decay", Value::Float(group.weight_decay)),
                ("amsgrad", Value::Bool(false)),
                ("maximize", Value::Bool(false)),
                ("foreach", Value::None),
                ("capturable", Value::Bool(false)),
                ("differentiable", Value::Bool(false)),
                ("fused", Value::None),
                ("decoupled_weight_decay", Value::Bool(decoupled)),
            ]
        };
        state_dict(state, &self.groups, group)
    }

    /// Reads a `state_dict` for the parameters in `expected`, by their groups, of `AdamW` where `decoupled` and of Adam
    /// otherwise.
    ///
    /// # Errors
    ///
    /// A data error naming `path` and each parameter whose state does not fit or is missing where others have one, or
    /// what else is unlike such a state.
    pub fn from_value(
        path: &Path,
        value: &'a Value<'a>,
        expected: &[Vec<Expected>],
        decoupled: bool,
    ) -> Result<Self> {
        let reader = Reader::new(path, value, expected)?;
        let group = reader.first();
        let name = if decoupled { "AdamW" } else { "Adam" };
        let Some(Value::Tuple(betas) | Value::List(betas)) = group.value.get("betas") else {
            return Err(group.wrong(&format!("is not that of {name}: it has no `betas`")));
        };
        // PyTorch before 2.7 does not write the key: then the experiment's word is taken.
        if group.flag("decoupled_weight_decay").is_some_and(|found| found != decoupled) {
            let other = if decoupled { "Adam" } else { "AdamW" };
            return Err(group.wrong(&format!("is that of {other}, not of {name}")));
        }
        for key in ["amsgrad", "maximize"] {
            group.refuse(key)?;
        }
        let beta = |i: usize| {
            betas.get(i).and_then(Value::as_number).ok_or_else(|| group.wrong("has no two `betas`"))
        };
        Ok(Self {
            groups: reader.group_states()?,
            betas: (beta(0)?, beta(1)?),
            eps: group.number("eps")?,
            decoupled,
            moments: reader.all_or_none(|state, shape| {
                let step = state.get("step").and_then(Value::as_number);
                // Above 2^53 a float counts nothing.
                let step = step.filter(|n| (0.0..=MOST_STEPS).contains(n)).ok_or("has no count `step`")?;
                Ok(Some(AdamMoments {
                    step: step as u64,
                    exp_avg: tensor(state, "exp_avg", shape)?,
                    exp_avg_sq: tensor(state, "exp_avg_sq", shape)?,
                }))
            })?,
        })
    }
}

impl<'a> SgdState<'a> {
    /// The `state_dict`. Without momentum its `state` is empty, as PyTorch leaves it.
    #[must_use]
    pub fn into_value(self) -> Value<'a> {
        let buffers = self.momentum_buffers.into_iter();
        let state = buffers.map(|buffer| buffer.map(|b| Value::dict([("momentum_buffer", b.into())])));
        let momentum = self.momentum;
        let group = |group: &GroupState| {
            vec![
                ("lr", Value::Float(group.lr)),
                ("momentum", Value::Float(momentum)),
                ("dampening", Value::Float(0.0)),
                ("weight_decay", Value::Float(group.weight_decay)),
                ("nesterov", Value::Bool(false)),
                ("maximize", Value::Bool(false)),
                ("foreach", Value::None),
                ("differentiable", Value::Bool(false)),
                ("fused", Value::None),
            ]
        };
        state_dict(state, &self.groups, group)
    }

    /// Reads a `state_dict` for the parameters in `expected`, by their groups.
    ///
    /// # Errors
    ///
    /// A data error naming `path` and each parameter whose state does not fit, or what else is unlike such a state.
    pub fn from_value(path: &Path, value: &'a Value<'a>, expected: &[Vec<Expected>]) -> Result<Self> {
        let reader = Reader::new(path, value, expected)?;
        let group = reader.first();
        if group.value.get("momentum").is_none() {
            return Err(group.wrong("is not that of SGD: it has no `momentum`"));
        }
        for key in ["nesterov", "maximize"] {
            group.refuse(key)?;
        }
        if group.optional("dampening").is_some_and(|d| d != 0.0) {
            return Err(group.wrong("uses `dampening`, which slt-run does not have"));
        }
        Ok(Self {
            groups: reader.group_states()?,
            momentum: group.number("momentum")?,
            momentum_buffers: reader.parameters(|state, shape| match state.get("momentum_buffer") {
                None | Some(Value::None) => Ok(None),
                Some(_) => tensor(state, "momentum_buffer", shape).map(Some),
            })?,
        })
    }
}

/// Puts the parts together: ints as keys, and the parameters' numbers at the end of each group.
fn state_dict<'a>(
    state: impl Iterator<Item = Option<Value<'a>>>,
    groups: &[GroupState],
    values: impl Fn(&GroupState) -> Vec<(&'static str, Value<'a>)>,
) -> Value<'a> {
    let state = (0..).zip(state).filter_map(|(i, state)| Some((Value::Int(i), state?))).collect();
    let mut numbers = 0_i64..;
    let groups = groups.iter().map(|group| {
        let params = numbers.by_ref().take(group.parameters).map(Value::Int).collect();
        let initial_lr = group.initial_lr.map(|lr| ("initial_lr", Value::Float(lr)));
        Value::dict(values(group).into_iter().chain(initial_lr).chain([("params", Value::List(params))]))
    });
    let groups = groups.collect();
    Value::dict([("state", Value::Dict(state)), ("param_groups", Value::List(groups))])
}

/// A parameter group's hyper-parameters.
struct Group<'v> {
    path: &'v Path,
    value: &'v Value<'v>,
}

impl Group<'_> {
    fn wrong(&self, what: &str) -> Error {
        Error::data(format!("{}: `optimizer_state` {what}", self.path.display()))
            .hint("the optimizer and its settings must be those of the run that saved it")
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.optional(key).ok_or_else(|| self.wrong(&format!("has no number `{key}`")))
    }

    fn optional(&self, key: &str) -> Option<f64> {
        self.value.get(key).and_then(Value::as_number)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.value.get(key).and_then(Value::as_bool)
    }

    /// Refuses a variant of the algorithm that slt-run does not have.
    fn refuse(&self, key: &str) -> Result<()> {
        let used = self.flag(key) == Some(true);
        if used { Err(self.wrong(&format!("uses `{key}`, which slt-run does not have"))) } else { Ok(()) }
    }
}

struct Reader<'r, 'v> {
    groups: Vec<Group<'r>>,
    /// Of all groups, one after another.
    expected: Vec<&'r Expected>,
    state: &'v [(Value<'v>, Value<'v>)],
    /// The number under which each parameter's state is kept.
    params: Vec<i64>,
}

impl<'r, 'v: 'r> Reader<'r, 'v> {
    fn new(path: &'r Path, value: &'v Value<'v>, expected: &'r [Vec<Expected>]) -> Result<Self> {
        let whole = Group { path, value };
        let (Some(Value::Dict(state)), Some(Value::List(groups))) =
            (value.get("state"), value.get("param_groups"))
        else {
            return Err(whole.wrong("has no `state` and `param_groups`"));
        };
        if groups.len() != expected.len() {
            let what =
                format!("has {} parameter groups; slt-run trains with {}", groups.len(), expected.len());
            return Err(whole.wrong(&what));
        }
        let groups: Vec<Group> = groups.iter().map(|value| Group { path, value }).collect();
        let mut params = Vec::new();
        for (group, expected) in groups.iter().zip(expected) {
            let numbers: Option<Vec<i64>> = match group.value.get("params") {
                Some(Value::List(params)) => params.iter().map(Value::as_int).collect(),
                _ => None,
            };
            let numbers = numbers.ok_or_else(|| group.wrong("does not number its parameters"))?;
            if numbers.len() != expected.len() {
                let what = format!("is for {} parameters; the model has {}", numbers.len(), expected.len());
                return Err(group.wrong(&what));
            }
            params.extend(numbers);
        }
        Ok(Self { groups, expected: expected.iter().flatten().collect(), state, params })
    }

    /// The first group, which has what all have: there is one at least, as there are parameters.
    fn first(&self) -> &Group<'r> {
        &self.groups[0]
    }

    fn group_states(&self) -> Result<Vec<GroupState>> {
        let read = |group: &Group| {
            Ok(GroupState {
                lr: group.number("lr")?,
                weight_decay: group.number("weight_decay")?,
                initial_lr: group.optional("initial_lr"),
                parameters: match group.value.get("params") {
                    Some(Value::List(params)) => params.len(),
                    _ => 0,
                },
            })
        };
        self.groups.iter().map(read).collect()
    }

    /// The states by their parameters' numbers. A key that is none of these would be left out without a word.
    fn by_number(&self) -> Result<HashMap<i64, &'v Value<'v>>> {
        let numbers: HashSet<i64> = self.params.iter().copied().collect();
        if numbers.len() < self.params.len() {
            return Err(self.first().wrong("numbers two parameters alike"));
        }
        let numbered = |(key, value): &'v (Value<'v>, Value<'v>)| {
            let number = key.as_int().filter(|number| numbers.contains(number));
            number.map(|number| (number, value)).ok_or_else(|| {
                let shown: String = match key {
                    Value::Str(name) => format!("`{}`", name.escape_debug().take(100).collect::<String>()),
                    Value::Int(number) => number.to_string(),
                    other => other.describe(),
                };
                self.first().wrong(&format!("has a state under {shown}, which is no parameter's number"))
            })
        };
        self.state.iter().map(numbered).collect()
    }

    /// As [`Self::parameters`], where either every parameter that trains has a state or, before the first step, none.
    fn all_or_none<T>(
        &self,
        read: impl Fn(&'v Value<'v>, &[usize]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<Option<T>>> {
        let states = self.parameters(read)?;
        let trained = || states.iter().zip(&self.expected).filter(|(_, expected)| expected.trains);
        let missing = trained().filter(|(state, _)| state.is_none()).count();
        let all = trained().count();
        let first = trained().find(|(state, _)| state.is_none());
        match first {
            Some((_, Expected { name, .. })) if missing < all => Err(self
                .first()
                .wrong(&format!("has no state for {missing} of {all} parameters, {name} first"))),
            _ => Ok(states),
        }
    }

    /// Reads each parameter's state with `read`, which gets the shape and gives a reason where it does not fit.
    fn parameters<T>(
        &self,
        read: impl Fn(&'v Value<'v>, &[usize]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<Option<T>>> {
        let by_number = self.by_number()?;
        let (mut states, mut problems) = (Vec::with_capacity(self.params.len()), Vec::new());
        for (number, Expected { name, shape, .. }) in self.params.iter().zip(&self.expected) {
            match by_number.get(number).map_or(Ok(None), |state| read(state, shape)) {
                Ok(state) => states.push(state),
                Err(why) => problems.push(Problem::new(format!(
                    "{}: `optimizer_state` of parameter {number} ({name}, {shape:?}) {why}",
                    self.first().path.display()
                ))),
            }
        }
        if problems.len() > 10 {
            let more = problems.split_off(10).len();
            problems.push(Problem::new(format!("and {more} more parameters")));
        }
        Error::all(ErrorKind::Data, problems).map(|()| states)
    }
}

fn tensor<'a>(state: &'a Value<'a>, key: &str, shape: &[usize]) -> Result<TensorData<'a>, &'static str> {
    match state.get(key) {
        Some(Value::Tensor(tensor)) if tensor.shape == shape => Ok(tensor.borrowed()),
        Some(Value::Tensor(_)) => Err("has another shape"),
        _ => Err("lacks a tensor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELEMENTS: [f32; 3] = [1.0, 2.0, 3.0];

    fn expected() -> Vec<Vec<Expected>> {
        let parameter =
            |name: &str, shape: &[usize]| Expected { name: name.into(), shape: shape.to_vec(), trains: true };
        vec![vec![parameter("a", &[3]), parameter("b", &[])]]
    }

    fn group(lr: f64, parameters: usize) -> GroupState {
        GroupState { lr, weight_decay: 0.01, initial_lr: Some(3e-3), parameters }
    }

    fn adam() -> AdamState<'static> {
        let moments = |tensor: TensorData<'static>| AdamMoments {
            step: 5,
            exp_avg: tensor.clone(),
            exp_avg_sq: tensor,
        };
        AdamState {
            groups: vec![group(1e-3, 2)],
            betas: (0.9, 0.999),
            eps: 1e-8,
            decoupled: true,
            moments: vec![
                Some(moments(TensorData::f32([3], &ELEMENTS))),
                Some(moments(TensorData::scalar(4.0))),
            ],
        }
    }

    fn path() -> &'static Path {
        Path::new("last.pt")
    }

    #[test]
    fn adam_survives_the_dict() {
        let value = adam().into_value();
        assert_eq!(AdamState::from_value(path(), &value, &expected(), true).unwrap(), adam());
        let fresh = AdamState { moments: vec![None, None], ..adam() };
        let value = fresh.clone().into_value();
        assert_eq!(AdamState::from_value(path(), &value, &expected(), true).unwrap(), fresh);
    }

    #[test]
    fn sgd_survives_the_dict() {
        let buffers = vec![Some(TensorData::f32([3], &ELEMENTS)), None];
        let group = GroupState { initial_lr: None, ..group(0.1, 2) };
        let sgd = SgdState { groups: vec![group], momentum: 0.9, momentum_buffers: buffers };
        let value = sgd.clone().into_value();
        assert_eq!(SgdState::from_value(path(), &value, &expected()).unwrap(), sgd);
    }

    #[test]
    fn groups_are_numbered_on_and_what_is_frozen_has_no_state() {
        let mut two = expected();
        let b = two[0].pop().unwrap();
        two.push(vec![b]);
        two[0][0].trains = false;
        let mut state = adam();
        (state.groups, state.moments[0]) = (vec![group(1e-3, 1), group(0.5, 1)], None);
        let value = state.clone().into_value();
        assert_eq!(AdamState::from_value(path(), &value, &two, true).unwrap(), state);
        let error = AdamState::from_value(path(), &value, &expected(), true).unwrap_err();
        assert!(error.to_string().contains("has 2 parameter groups; slt-run trains with 1"), "{error}");
        two[0][0].trains = true;
        let error = AdamState::from_value(path(), &value, &two, true).unwrap_err();
        assert!(error.to_string().contains("has no state for 1 of 2 parameters, a first"), "{error}");
    }

    #[test]
    fn another_optimizer_is_named() {
        let value = adam().into_value();
        let error = AdamState::from_value(path(), &value, &expected(), false).unwrap_err();
        assert!(error.to_string().contains("is that of AdamW, not of Adam"), "{error}");
        let error = SgdState::from_value(path(), &value, &expected()).unwrap_err();
        assert!(error.to_string().contains("not that of SGD"), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn misfits_name_the_parameter() {
        let value = adam().into_value();
        let mut other = expected();
        other[0][0].shape = vec![4];
        let error = AdamState::from_value(path(), &value, &other, true).unwrap_err();
        assert!(error.to_string().contains("parameter 0 (a, [4]) has another shape"), "{error}");
        let error = AdamState::from_value(path(), &value, &[other[0][..1].to_vec()], true).unwrap_err();
        assert!(error.to_string().contains("is for 2 parameters; the model has 1"), "{error}");
    }

    /// The state of parameter `at` taken out, or its key replaced.
    fn with_key(at: usize, key: Option<Value<'static>>) -> Value<'static> {
        let Value::Dict(mut top) = adam().into_value() else { unreachable!() };
        let Value::Dict(states) = &mut top[0].1 else { unreachable!() };
        match key {
            Some(key) => states[at].0 = key,
            None => drop(states.remove(at)),
        }
        Value::Dict(top)
    }

    #[test]
    fn states_that_would_be_lost_are_refused() {
        for (value, says) in [
            (with_key(1, Some("1".into())), "a state under `1`, which is no parameter's number"),
            (with_key(1, Some(Value::Int(2))), "a state under 2, which is no parameter's number"),
            (with_key(1, None), "has no state for 1 of 2 parameters, b first"),
        ] {
            let error = AdamState::from_value(path(), &value, &expected(), true).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        // SGD without momentum has no state at all; one under a name is still somebody's.
        let named = Value::Dict(vec![("a".into(), Value::Dict(vec![]))]);
        let group = Value::dict([
            ("lr", 0.1.into()),
            ("momentum", Value::Int(0)),
            ("weight_decay", Value::Int(0)),
            ("params", Value::List(vec![Value::Int(0), Value::Int(1)])),
        ]);
        let value = Value::dict([("state", named), ("param_groups", Value::List(vec![group]))]);
        let error = SgdState::from_value(path(), &value, &expected()).unwrap_err();
        assert!(error.to_string().contains("a state under `a`"), "{error}");
    }

    #[test]
    fn a_step_that_counts_nothing_is_refused() {
        for step in [f64::INFINITY, f64::NAN, -1.0, 1e300] {
            let Value::Dict(mut top) = adam().into_value() else { unreachable!() };
            let Value::Dict(states) = &mut top[0].1 else { unreachable!() };
            let Value::Dict(state) = &mut states[0].1 else { unreachable!() };
            state[0].1 = Value::Float(step);
            let value = Value::Dict(top);
            let error = AdamState::from_value(path(), &value, &expected(), true).unwrap_err();
            assert!(error.to_string().contains("parameter 0 (a, [3]) has no count `step`"), "{error}");
        }
    }

    #[test]
    fn a_plain_step_and_a_none_buffer_are_taken() {
        let Value::Dict(mut top) = adam().into_value() else { unreachable!() };
        let Value::Dict(states) = &mut top[0].1 else { unreachable!() };
        for (_, state) in states {
            let Value::Dict(state) = state else { unreachable!() };
            state[0].1 = Value::Int(5);
        }
        let value = Value::Dict(top);
        assert_eq!(AdamState::from_value(path(), &value, &expected(), true).unwrap(), adam());

        let none = Value::dict([("momentum_buffer", Value::None)]);
        let values = |_: &GroupState| {
            vec![("lr", 0.1.into()), ("momentum", Value::Int(0)), ("weight_decay", Value::Int(0))]
        };
        let value = state_dict([Some(none), None].into_iter(), &[group(0.1, 2)], values);
        let sgd = SgdState::from_value(path(), &value, &expected()).unwrap();
        assert_eq!(sgd.momentum_buffers, [None, None]);
    }
}
