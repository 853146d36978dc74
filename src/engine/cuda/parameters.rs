//! A network's parameters on a GPU, with their gradients and moments, and how layers find theirs.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use super::memory::{Activation, Allocator, Slice};
use super::ops::{Ops, Update};
use crate::engine::cuda::kernels::Verdict;
use crate::nn::{Blueprint, Dropout, ParameterSpec, Scope};
use crate::optim::ParameterGroups;
use crate::{Error, Result};

/// Parameters begin at multiples of this many numbers.
const ALIGNED: usize = 64;

/// All parameters of a network one after another, and what belongs to each number. Those that train come first, group after
/// group, in PyTorch's order; then what is frozen and has a gradient all the same, because a backward pass goes through it;
/// then the rest.
pub struct ParameterBuffers {
    allocator: Allocator,
    values: Slice<f32>,
    /// Copies that products take, where those are not f32.
    copies: Option<Slice<Activation>>,
    /// What products take: the copies, or the values themselves.
    operands: Slice<Activation>,
    /// Of those that a backward pass reaches.
    gradients: Slice<f32>,
    /// In the place of the others' gradients, which nothing is added to: as large as the largest of them.
    sink: Slice<f32>,
    /// Of those that train.
    moments: Vec<Slice<f32>>,
    ranges: Vec<Range<usize>>,
    /// What of each group trains.
    groups: Vec<Range<usize>>,
    /// Whether each parameter trains.
    trains: Vec<bool>,
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
    /// Zeros for all parameters of `blueprint`, and for as many `moments` of those that train. No backward pass reaches those
    /// at the positions `unreached`.
    ///
    /// # Errors
    /// Where the GPU's memory is full.
    pub fn new(
        allocator: &Allocator,
        blueprint: &Blueprint,
        groups: &ParameterGroups,
        unreached: &[usize],
        moments: usize,
    ) -> Result<Self> {
        let specs = blueprint.parameters();
        let mut ranges = vec![0..0; specs.len()];
        let mut end = 0usize;
        let mut place = |position: usize| {
            let Some(len) = specs.get(position).map(ParameterSpec::elements) else { return end };
            if let Some(range) = ranges.get_mut(position) {
                *range = end..end.saturating_add(len);
            }
            end = len.checked_next_multiple_of(ALIGNED).map_or(usize::MAX, |len| end.saturating_add(len));
            end
        };
        let trains: Vec<bool> = specs.iter().map(|spec| spec.trains).collect();
        let (mut of_groups, mut start) = (Vec::new(), 0);
        for group in groups.groups() {
            let members = group.members.iter().filter(|&&at| trains.get(at) == Some(&true));
            let group_end = members.map(|&at| place(at)).last().unwrap_or(start);
            of_groups.push(start..group_end);
            start = group_end;
        }
        let trained = start;
        let frozen: Vec<usize> = (0..specs.len()).filter(|at| trains.get(*at) == Some(&false)).collect();
        let (unreached, reached): (Vec<usize>, Vec<usize>) =
            frozen.into_iter().partition(|at| unreached.contains(at));
        let largest = unreached.iter().filter_map(|&at| specs.get(at)).map(ParameterSpec::elements).max();
        let with_gradient = reached.into_iter().map(&mut place).last().unwrap_or(trained);
        let end = unreached.into_iter().map(&mut place).last().unwrap_or(with_gradient);

        let values: Slice<f32> = allocator.zeros(end)?;
        let gradients = allocator.zeros(with_gradient)?;
        let sink = allocator.zeros(largest.unwrap_or(0))?;
        let (copies, operands) = if let Some(operands) = values.as_activations(allocator.dtype()) {
            (None, operands)
        } else {
            let copies = allocator.zeros(end)?;
            (Some(copies.clone()), copies)
        };
        let moments = (0..moments).map(|_| allocator.zeros(trained)).collect::<Result<_>>()?;
        let claimed = RefCell::new(vec![false; ranges.len()]);
        let allocator = allocator.clone();
        let groups = of_groups;
        Ok(Self {
            allocator,
            values,
            copies,
            operands,
            gradients,
            sink,
            moments,
            ranges,
            groups,
            trains,
            claimed,
        })
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

    /// The ranges of those that train, in order.
    fn trained(&self) -> impl Iterator<Item = &Range<usize>> {
        self.ranges.iter().zip(&self.trains).filter(|(_, trains)| **trains).map(|(range, _)| range)
    }

    /// Sets all parameters, given in order.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_all(&self, ops: &Ops, values: &[Vec<f32>]) -> Result<()> {
        write_each(&self.values, values.iter().map(Vec::as_slice), self.ranges.iter())?;
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
        read_each(&self.values, self.ranges.iter())
    }

    /// The gradients of those that train, in order.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_gradients(&self) -> Result<Vec<Vec<f32>>> {
        read_each(&self.gradients, self.trained())
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn zero_gradients(&self) -> Result<()> {
        self.gradients.zero()
    }

    /// Sets the moments of all parameters, given in order, where there are any; those of what does not train are empty.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_moments<'m>(
        &self,
        moments: impl Iterator<Item = (&'m [f32], &'m [f32])> + Clone,
    ) -> Result<()> {
        let of_trained = moments.zip(&self.trains).filter(|(_, trains)| **trains).map(|(pair, _)| pair);
        for (at, to) in self.moments.iter().enumerate() {
            let values = of_trained.clone().map(|(first, second)| if at == 0 { first } else { second });
            write_each(to, values, self.trained())?;
        }
        Ok(())
    }

    /// The moments of all parameters, in order; those of what does not train are empty. As many as there are.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_moments(&self) -> Result<Vec<Vec<Vec<f32>>>> {
        let read = |from: &Slice<f32>| {
            let mut trained = read_each(from, self.trained())?.into_iter();
            let all = self.trains.iter();
            Ok(all
                .map(|&trains| if trains { trained.next().unwrap_or_default() } else { Vec::new() })
                .collect())
        };
        self.moments.iter().map(read).collect()
    }

    /// The gradients of all that trains.
    ///
    /// # Errors
    /// None that the layout allows.
    pub fn trained_gradients(&self) -> Result<Slice<f32>> {
        self.gradients.slice(0..self.groups.last().map_or(0, |group| group.end))
    }

    /// What an update of each group changes by what `verdict` says; none of a group that does not train.
    ///
    /// # Errors
    /// None that the layout allows.
    pub fn updates<'a>(&self, verdict: &'a Slice<Verdict>) -> Result<Vec<Option<Update<'a>>>> {
        let of = |range: &Range<usize>| {
            if range.is_empty() {
                return Ok(None);
            }
            Ok(Some(Update {
                parameters: self.values.slice(range.clone())?,
                gradients: self.gradients.slice(range.clone())?,
                moments: self
                    .moments
                    .iter()
                    .map(|moment| moment.slice(range.clone()))
                    .collect::<Result<_>>()?,
                operands: self.copies.as_ref().map(|copies| copies.slice(range.clone())).transpose()?,
                verdict,
            }))
        };
        self.groups.iter().map(of).collect()
    }
}

fn write_each<'v, 'r>(
    to: &Slice<f32>,
    values: impl Iterator<Item = &'v [f32]>,
    ranges: impl Iterator<Item = &'r Range<usize>>,
) -> Result<()> {
    for (values, range) in values.zip(ranges) {
        to.slice(range.clone())?.write(values)?;
    }
    Ok(())
}

fn read_each<'r>(from: &Slice<f32>, ranges: impl Iterator<Item = &'r Range<usize>>) -> Result<Vec<Vec<f32>>> {
    ranges.map(|range| from.slice(range.clone())?.to_vec()).collect()
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
            gradient: all.gradients.slice(range.clone()).or_else(|_| all.sink.slice(0..range.len()))?,
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
