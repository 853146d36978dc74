//! NVIDIA GPUs: finding one that can be used, and what it says of itself.

pub mod libraries;
mod symbols;

use candle_core::cuda_backend::cudarc::driver::result::{self, device};
use candle_core::{CudaDevice, DType, Device, Tensor};

/// GPU number `index`, after it has computed something.
///
/// # Errors
/// Why it cannot be used, as the middle of a sentence: no driver, no such GPU, a library that is missing, a GPU or a
/// driver that is too old for this build.
pub fn open(index: usize) -> Result<Device, String> {
    libraries::load()?;
    let count = count_devices()?;
    match count {
        0 => return Err("there is no NVIDIA GPU here".to_owned()),
        1 if index > 0 => return Err("there is one GPU, cuda:0".to_owned()),
        _ if index >= count => return Err(format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1)),
        _ => {}
    }
    let works = |device: &Device| -> candle_core::Result<f32> {
        // A kernel of Candle's and a matrix product: what a GPU or a driver that is too old fails at.
        let x = (Tensor::ones((4, 4), DType::F32, device)? * 0.5)?;
        x.matmul(&x)?.sum_all()?.to_scalar()
    };
    let device = Device::new_cuda(index).map_err(|error| first_line(&error))?;
    match works(&device) {
        Ok(16.0) => Ok(device),
        Ok(other) => {
            Err(format!("it computes wrongly: 4 x 4 products of halves add up to {other}, not to 16"))
        }
        Err(error) => Err(first_line(&error)),
    }
}

fn count_devices() -> Result<usize, String> {
    result::init().map_err(|error| first_line(&error))?;
    let count = device::get_count().map_err(|error| first_line(&error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Memory that a GPU has free, in bytes.
#[must_use]
pub fn free_memory(device: &CudaDevice) -> Option<usize> {
    device.cuda_stream().context().bind_to_thread().ok()?;
    result::mem_get_info().ok().map(|(free, _)| free)
}

fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
