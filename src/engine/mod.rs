//! How the network is computed: the one seam between training and computing.
//!
//! An [`Engine`] computes as much of the network's beginning as it covers by blocks of its own, and leaves the rest to
//! the Candle modules of [`crate::model`], as a graph on the host: `candle` covers nothing, `cpu` the backbones, `cuda`
//! all up to the loss of the decoders that it has kernels for. So whatever is written once as a Candle module works on
//! every engine. Nobody above asks which one it is.

mod batch;
mod candle;
#[cfg(any(feature = "cuda", test))]
mod chunks;
pub mod cpu;
#[cfg(any(feature = "cuda", test))]
pub mod cuda;
pub mod device;
mod graph;
mod host;
pub mod memory;
#[cfg(any(feature = "cuda", test))]
mod oom;
mod seam;
pub mod threads;
mod trained;

use std::rc::Rc;

use crate::Result;
use crate::config::Experiment;
use crate::error::{Error, ErrorKind, Problem};
use crate::model::{Network, decoder};
use crate::nn::{ActivationDtype, Blueprint};
use cpu::precision::{Bf16, F32};
use device::Compute;

pub use batch::Placed;
pub use host::Host;
pub use seam::{End, Engine, Evaluating, Outcome, Pending, Step, Times};

/// The engine of an experiment that knows no texts yet: see [`with_decoder`].
///
/// # Errors
/// As [`with_decoder`].
pub fn new(c: &Experiment, compute: &Compute) -> Result<Box<dyn Engine>> {
    with_decoder(c, compute, decoder::of_no_texts(c).as_ref())
}

/// The engine of an experiment with this decoder, at its start, with initial weights from its seed.
///
/// # Errors
/// Where the tensor library or the GPU fails, or the engine that is asked for cannot compute the network.
pub fn with_decoder(
    c: &Experiment,
    compute: &Compute,
    decoder: &dyn decoder::DecoderKind,
) -> Result<Box<dyn Engine>> {
    let blueprint = blueprint(c, decoder)?;
    match compute {
        Compute::Graph(device) => Ok(Box::new(candle::Candle::new(c, decoder, &blueprint, device)?)),
        Compute::Cpu => match compute.activation_dtype(c) {
            ActivationDtype::Bf16 => Ok(Box::new(cpu::Cpu::<Bf16>::new(c, decoder, &blueprint)?)),
            ActivationDtype::F32 | ActivationDtype::F16 => {
                Ok(Box::new(cpu::Cpu::<F32>::new(c, decoder, &blueprint)?))
            }
        },
        #[cfg(any(feature = "cuda", test))]
        Compute::Gpu(device) => {
            let dtype = compute.activation_dtype(c);
            Ok(Box::new(cuda::Cuda::new(c, decoder, &blueprint, (device.as_ref(), dtype))?))
        }
    }
}

/// What the network of an experiment is made of.
///
/// # Errors
/// Where it has too many layers.
pub fn blueprint(c: &Experiment, decoder: &dyn decoder::DecoderKind) -> Result<Rc<Blueprint>> {
    Network::plan(c, decoder).map_err(|error| {
        let problem = Problem::new("the network cannot be built").cause(error);
        Error::new(
            ErrorKind::Config,
            problem.hint("lower model.backbone.depth, model.temporal_layers or model.decoder.layers"),
        )
    })
}

#[cfg(test)]
mod tests;
