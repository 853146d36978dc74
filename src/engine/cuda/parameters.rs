//! A network's parameters on a GPU, with their gradients and moments, and how layers find theirs.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use super::memory::{Activation, Allocator, Slice};
use super::ops::{Ops, Update};
use crate::engine::cuda::kernels::Verdict;
use crate::nn::{Blueprint, Dropout, Scope};
use crate::{Error, Result};

/// Parameters begin at multiples of this many numbers.
const ALIGNED: usize = 64;

/// All parameters of a network one after another, in PyTorch's order, and what belongs to each number.
pub struct ParameterBuffers {
    allocator: Allocator,
    values: Slice<f32>,
    /// Copies that products take, where those are not f32.
    copies: Option<Slice<Activation>>,
    /// What products take: the copies, or the values themselves.
    operands: Slice<Activation>,
    gradients: Slice<f32>,
    moments: Option<[Slice<f32>; 2]>,
    ranges: Vec<Range<usize>>,
    /// Which of them a layer has.
    claimed: RefCell<Vec<bool>>,
}

/// A parameter on the GPU.
#[derive(Clone)]
pub struct Parameter {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub value: Slice<f32>,
    /// The same as products take them.
    pub operand: Slice<Activation>,
    /// Its gradient.
    pub gradient: Slice<f32>,
}

/// Where a layer finds its parameters and dropouts: a module of the network by its name in PyTorch.
#[derive(Clone)]
pub struct Module<'a> {
    scope: Scope<'a>,
    parameters: &'a ParameterBuffers,
}

impl ParameterBuffers {
    /// Zeros for all parameters of `blueprint`, and for their moments if there are to be any.
    ///
    /// # Errors
    /// Where the GPU's memory is full.
    pub fn new(allocator: &Allocator, blueprint: &Blueprint, moments: bool) -> Result<Self> {
        let mut ranges = Vec::new();
        let mut end = 0usize;
        for parameter in blueprint.parameters() {
            let len = parameter.elements();
            ranges.push(end..end.saturating_add(len));
            end = len.checked_next_multiple_of(ALIGNED).map_or(usize::MAX, |len| end.saturating_add(len));
        }
        let values: Slice<f32> = allocator.zeros(end)?;
        let gradients = allocator.zeros(end)?;
        let (copies, operands) = if let Some(operands) = values.as_activations(allocator.dtype()) {
            (None, operands)
        } else {
            let copies = allocator.zeros(end)?;
            (Some(copies.clone()), copies)
        };
        let moments = if moments { Some([allocator.zeros(end)?, allocator.zeros(end)?]) } else { None };
        let claimed = RefCell::new(vec![false; ranges.len()]);
        let allocator = allocator.clone();
        Ok(Self { allocator, values, copies, operands, gradients, moments, ranges, claimed })
    }

    /// The whole network, for its layers to find their parts in.
    #[must_use]
    pub fn root<'a>(&'a self, blueprint: &'a Blueprint) -> Module<'a> {
        Module { scope: blueprint.root(), parameters: self }
    }

    /// The positions of those that no layer has.
    #[must_use]
    pub fn unclaimed(&self) -> Vec<usize> {
        let claimed = self.claimed.borrow();
        claimed.iter().enumerate().filter(|(_, claimed)| !**claimed).map(|(position, _)| position).collect()
    }

    fn range(&self, position: usize) -> Result<Range<usize>> {
        let range = self.ranges.get(position).cloned();
        range.ok_or_else(|| Error::run(format!("the network has no parameter number {position}")))
    }

    /// Sets the parameter at `position`.
    ///
    /// # Errors
    /// Where it has other numbers, or the GPU fails.
    pub fn write(&self, ops: &Ops, position: usize, values: &[f32]) -> Result<()> {
        let range = self.range(position)?;
        let to = self.values.slice(range.clone())?;
        to.write(values)?;
        match &self.copies {
            Some(copies) => ops.cast(&to, &copies.slice(range)?),
            None => Ok(()),
        }
    }

    /// The parameter at `position`.
    ///
    /// # Errors
    /// Where there is none, or the GPU fails.
    pub fn read(&self, position: usize) -> Result<Vec<f32>> {
        self.values.slice(self.range(position)?)?.to_vec()
    }

    /// The gradient of the parameter at `position`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn gradient(&self, position: usize) -> Result<Slice<f32>> {
        self.gradients.slice(self.range(position)?)
    }

    /// Sets all parameters, given in order.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_all(&self, ops: &Ops, values: &[Vec<f32>]) -> Result<()> {
        self.write_each(&self.values, values.iter().map(Vec::as_slice))?;
        match &self.copies {
            Some(copies) => ops.cast(&self.values, copies),
            None => Ok(()),
        }
    }

    /// All parameters, in order.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_all(&self) -> Result<Vec<Vec<f32>>> {
        self.read_each(&self.values)
    }

    /// All gradients, in order.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.read_each(&self.gradients)
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn zero_gradients(&self) -> Result<()> {
        self.gradients.zero()
    }

    /// Sets both moments of all parameters, given in order, where there are any.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_moments<'m>(
        &self,
        moments: impl Iterator<Item = (&'m [f32], &'m [f32])> + Clone,
    ) -> Result<()> {
        let Some([m, v]) = &self.moments else { return Ok(()) };
        self.write_each(m, moments.clone().map(|(m, _)| m))?;
        self.write_each(v, moments.map(|(_, v)| v))
    }

    /// Both moments of all parameters, in order, where there are any.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_moments(&self) -> Result<Option<[Vec<Vec<f32>>; 2]>> {
        match &self.moments {
            Some([m, v]) => Ok(Some([self.read_each(m)?, self.read_each(v)?])),
            None => Ok(None),
        }
    }

    /// Both moments.
    #[must_use]
    pub fn moments(&self) -> Option<&[Slice<f32>; 2]> {
        self.moments.as_ref()
    }

    /// All gradients.
    #[must_use]
    pub fn gradients(&self) -> &Slice<f32> {
        &self.gradients
    }

    /// What an update changes by what `verdict` says.
    #[must_use]
    pub fn update<'a>(&'a self, verdict: &'a Slice<Verdict>) -> Update<'a> {
        Update {
            parameters: &self.values,
            gradients: &self.gradients,
            operands: self.copies.as_ref(),
            verdict,
        }
    }

    fn write_each<'v>(&self, to: &Slice<f32>, values: impl Iterator<Item = &'v [f32]>) -> Result<()> {
        for (values, range) in values.zip(&self.ranges) {
            to.slice(range.clone())?.write(values)?;
        }
        Ok(())
    }

    fn read_each(&self, from: &Slice<f32>) -> Result<Vec<Vec<f32>>> {
        self.ranges.iter().map(|range| from.slice(range.clone())?.to_vec()).collect()
    }
}

impl Module<'_> {
    /// The child `name`.
    #[must_use]
    pub fn pp(&self, name: impl Display) -> Self {
        Self { scope: self.scope.pp(name), parameters: self.parameters }
    }

    /// The parameter `name` of this module.
    ///
    /// # Errors
    /// Where the network has none of that name.
    pub fn parameter(&self, name: &str) -> Result<Parameter> {
        let id = self.scope.parameter(name)?;
        let all = self.parameters;
        let range = all.range(id.position)?;
        if let Some(claimed) = all.claimed.borrow_mut().get_mut(id.position) {
            *claimed = true;
        }
        Ok(Parameter {
            shape: id.shape,
            value: all.values.slice(range.clone())?,
            operand: all.operands.slice(range.clone())?,
            gradient: all.gradients.slice(range)?,
        })
    }

    /// The dropout `name` of this module.
    ///
    /// # Errors
    /// Where the network has none of that name.
    pub fn dropout(&self, name: &str) -> Result<Dropout> {
        self.scope.dropout(name)
    }

    /// How many children `0`, `1`, … there are: the length of a `ModuleList`.
    #[must_use]
    pub fn children(&self) -> usize {
        self.scope.children()
    }

    /// Where a layer's own buffers come from.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.parameters.allocator
    }

    /// The module's name in PyTorch.
    #[must_use]
    pub fn path(&self) -> &str {
        self.scope.path()
    }
}
