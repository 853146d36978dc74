//! A GPU that does nothing but count memory: what a network takes is found by building it and going through a step.
#![allow(unsafe_code, reason = "the trait's functions are unsafe; here they touch no memory")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;

use super::memory::Allocator;
use super::network::{GpuNetwork, NetworkSpec, StepMemory};
use super::stream::{Address, Gemm, GpuStream, Launch, Upload};
use crate::Result;
use crate::nn::ActivationDtype;

/// Counts what is allocated.
#[derive(Default)]
struct DryRun {
    sizes: RefCell<HashMap<Address, usize>>,
    used: Cell<usize>,
    next: Cell<Address>,
}

/// What steps and evaluations of `clips` clips of `frames` frames, with `chunk` images of a stream at a time, take of a GPU's
/// memory beside parameters and batches.
///
/// # Errors
/// Where `spec` names what its blueprint has not, or a size does not fit a kernel's argument.
pub fn step_memory(
    spec: &NetworkSpec,
    dtype: ActivationDtype,
    clips: usize,
    frames: usize,
    chunk: Option<usize>,
) -> Result<StepMemory> {
    let (mut network, stream) = network(spec, dtype)?;
    network.step_memory(clips, frames, chunk, || stream.used.get())
}

/// The widths of the heads that a network has: which kernels it needs.
///
/// # Errors
/// Where `spec` names what its blueprint has not.
pub fn head_widths(spec: &NetworkSpec) -> Result<Vec<usize>> {
    Ok(network(spec, ActivationDtype::F32)?.0.head_widths())
}

fn network(spec: &NetworkSpec, dtype: ActivationDtype) -> Result<(GpuNetwork, Rc<DryRun>)> {
    let stream = Rc::new(DryRun::default());
    let allocator = Allocator::new(Rc::clone(&stream) as Rc<dyn GpuStream>, dtype);
    Ok((GpuNetwork::new(&allocator, spec)?, stream))
}

impl GpuStream for DryRun {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        let address = self.next.get() + 256;
        self.next.set(address);
        self.used.set(self.used.get().saturating_add(bytes));
        self.sizes.borrow_mut().insert(address, bytes);
        Ok(address)
    }

    unsafe fn free(&self, address: Address) {
        let bytes = self.sizes.borrow_mut().remove(&address).unwrap_or(0);
        self.used.set(self.used.get().saturating_sub(bytes));
    }

    unsafe fn zero(&self, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn write(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn read(&self, _: Address, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn send(&self, _: usize, _: &[Upload]) -> Result<()> {
        Ok(())
    }

    fn receive(&self, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, _: &Launch, _: *const c_void) -> Result<()> {
        Ok(())
    }

    unsafe fn gemm(&self, _: &Gemm) -> Result<()> {
        Ok(())
    }

    fn peak_memory(&self) -> usize {
        self.used.get()
    }
}
