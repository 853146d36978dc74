//! The network's parameters: named as PyTorch names them, in the order of `model.parameters()`.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, Var};

use super::operations::{Graph, Operations};
use super::{Blueprint, Dropout, Frozen, Init};
use crate::random::{Purpose, stream};

/// Every parameter of a network, f32, in PyTorch's order (which is the order of construction).
#[derive(Clone, Default)]
pub struct Parameters {
    entries: Vec<(String, Var)>,
}

impl Parameters {
    /// Name and variable of each parameter.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// How many parameters (tensors) there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many numbers they hold together, for those whose name starts with `prefix` ("" = all).
    #[must_use]
    pub fn elements(&self, prefix: &str) -> usize {
        self.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, var)| var.elem_count()).sum()
    }

    /// Name and shape of each, as a checkpoint must have them.
    #[must_use]
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.iter().map(|(name, var)| (name.to_owned(), var.dims().to_vec())).collect()
    }
}

/// Lends the numbers of contiguous f32 tensors to `work`, as slices in the tensors' order: without a copy on the CPU,
/// through one from another device.
pub fn with_slices<R>(tensors: &[&Tensor], work: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let on_host: Result<Vec<Tensor>> = tensors.iter().map(|tensor| tensor.to_device(&Device::Cpu)).collect();
    let on_host = on_host?;
    let guards: Vec<_> = on_host.iter().map(Tensor::storage_and_layout).collect();
    let slices: Result<Vec<&[f32]>> =
        guards.iter().map(|(storage, layout)| floats(storage, layout)).collect();
    Ok(work(&slices?))
}

/// The numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn floats<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => cpu_floats(storage, layout),
        _ => Err(not_floats()),
    }
}

/// As [`floats`].
pub(crate) fn cpu_floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => Err(not_floats()),
    }
}

fn not_floats() -> candle_core::Error {
    candle_core::Error::Msg("contiguous f32 numbers on the CPU are needed here".into())
}

fn missing(path: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("the network that shares its parameters has no {path} at this place"))
}

/// Where a module creates its parameters: a path into the `state_dict`, as `vb.pp("name")` in Candle.
///
/// A module creates its own parameters before its children's, and its children in the order in which the
/// PyTorch module assigns them, so that the order is `model.parameters()`'s.
#[derive(Clone)]
pub struct Builder {
    state: Rc<RefCell<State>>,
    path: String,
}

struct State {
    parameters: Parameters,
    blueprint: Blueprint,
    source: ValueSource,
    frozen: Frozen,
    operations: Rc<dyn Operations>,
}

/// Where the values of parameters come from.
enum ValueSource {
    /// They are drawn from this seed, on this device.
    Seed(u64, Device),
    /// They are those of a network that exists, taken in its order.
    Existing(Parameters),
    /// There are none: names and shapes are all that is wanted.
    Nowhere,
}

/// More parameters than any network has: each costs memory for itself beside its numbers.
const MOST_TENSORS: usize = 1 << 20;

impl Builder {
    /// The root of a network whose initial weights are drawn from `seed`.
    #[must_use]
    pub fn new(device: &Device, seed: u64) -> Self {
        Self::from_source(ValueSource::Seed(seed, device.clone()))
    }

    /// The root of a second copy of the network over the same memory, without a graph: its results keep no
    /// activations and cannot be differentiated.
    #[must_use]
    pub fn without_graph(existing: &Parameters) -> Self {
        Self::from_source(ValueSource::Existing(existing.clone()))
    }

    /// The root of a network without values, whatever its size: what is wanted is its [`Self::blueprint`].
    #[must_use]
    pub fn recording() -> Self {
        Self::from_source(ValueSource::Nowhere)
    }

    fn from_source(source: ValueSource) -> Self {
        let (parameters, blueprint, frozen) = Default::default();
        let state = State { parameters, blueprint, source, frozen, operations: Rc::new(Graph) };
        Self { state: Rc::new(RefCell::new(state)), path: String::new() }
    }

    /// As it is, of a network in which `frozen` does not train.
    #[must_use]
    pub fn with_frozen(self, frozen: Frozen) -> Self {
        self.state.borrow_mut().frozen = frozen;
        self
    }

    /// As it is, of a network whose modules compute with `operations`.
    #[must_use]
    pub fn with_operations(self, operations: Rc<dyn Operations>) -> Self {
        self.state.borrow_mut().operations = operations;
        self
    }

    /// What its modules compute with: Candle's graph, unless others were given.
    #[must_use]
    pub fn operations(&self) -> Rc<dyn Operations> {
        Rc::clone(&self.state.borrow().operations)
    }

    /// The builder of the child `name`.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { state: Rc::clone(&self.state), path: super::blueprint::join(&self.path, name) }
    }

    /// Creates the parameter `name` of `shape`.
    pub fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let mut state = self.state.borrow_mut();
        let State { parameters, blueprint, source, frozen, .. } = &mut *state;
        let path = super::blueprint::join(&self.path, name);
        let trains = !frozen.parameter(&path);
        let at = blueprint.add_parameter(&path, shape, init, trains);
        let var = match source {
            ValueSource::Nowhere if at >= MOST_TENSORS => {
                return Err(candle_core::Error::Msg(format!("more than {MOST_TENSORS} parameters")));
            }
            ValueSource::Nowhere => return Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape),
            ValueSource::Existing(existing) => {
                let (known, var) = existing.entries.get(at).ok_or_else(|| missing(&path))?;
                if *known != path || var.dims() != shape {
                    return Err(missing(&path));
                }
                parameters.entries.push((path, var.clone()));
                return Ok(var.as_detached_tensor());
            }
            ValueSource::Seed(seed, device) => {
                let mut rng = stream(*seed, Purpose::Init, [at as u64, 0]);
                let values = init.draw(shape.iter().product(), &mut rng);
                Var::from_vec(values, shape, device)?
            }
        };
        // What is no variable to the graph gets no gradient, and what comes before it is not kept.
        let tensor = if trains { var.as_tensor().clone() } else { var.as_detached_tensor() };
        parameters.entries.push((path, var));
        Ok(tensor)
    }

    /// The dropout `name` of probability `p`, with a site of its own in the run's random streams.
    #[must_use]
    pub fn dropout(&self, name: &str, p: f64) -> Dropout {
        let path = super::blueprint::join(&self.path, name);
        let mut state = self.state.borrow_mut();
        let p = if state.frozen.module(&path) { 0.0 } else { p };
        state.blueprint.add_dropout(&path, p)
    }

    /// The parameters created so far.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        self.state.borrow().parameters.clone()
    }

    /// What was built so far, without values.
    #[must_use]
    pub fn blueprint(&self) -> Blueprint {
        self.state.borrow().blueprint.clone()
    }
}
