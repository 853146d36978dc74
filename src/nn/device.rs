//! Where a run computes.

use candle_core::Device;

use crate::Error;
use crate::config;
use crate::error::{Kind, Problem};

/// The device that the configuration asks for, or the CPU where it cannot be had; and what there is to say about that,
/// with the fields concerned as `(section.field)`.
#[must_use]
pub fn select(c: &config::Run) -> (Device, Option<String>) {
    select_with(c, open)
}

fn select_with(
    c: &config::Run,
    open: impl FnOnce(usize) -> Result<Device, String>,
) -> (Device, Option<String>) {
    let amp = c.precision == config::Precision::Amp;
    let config::Device::Cuda(index) = c.device else {
        let said = "mixed precision (run.precision) is for GPUs: on the CPU, the run is in f32";
        return (Device::Cpu, amp.then(|| said.to_owned()));
    };
    match open(index) {
        Ok(device) => (device, None),
        Err(why) => {
            let in_f32 = if amp { ", in f32" } else { "" };
            let device = c.device;
            (
                Device::Cpu,
                Some(format!(
                    "the device {device} (run.device) cannot be used: {why}; the run goes on on the CPU{in_f32}"
                )),
            )
        }
    }
}

#[cfg(feature = "cuda")]
use super::cuda::open;

#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<Device, String> {
    Err("this slt-run was built without CUDA (cargo build --release --features cuda)".to_owned())
}

/// Memory that a GPU has free, in bytes; `None` where it does not tell, and on the CPU.
#[must_use]
pub fn free_memory(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::free_memory(device),
        _ => None,
    }
}

/// Whether a GPU's memory was full. Told by the names that CUDA's driver and cuBLAS give it: their error types exist only
/// in builds with CUDA, and come wrapped in several ways.
#[must_use]
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| text.contains(name))
}

/// A GPU's memory is full: `with` what, and which fields to `lower` beside those that always help ("a.b, ").
#[must_use]
pub fn out_of_memory(with: &str, lower: &str, error: &candle_core::Error) -> Error {
    // Backtraces, which some of Candle's errors carry, say nothing to a person.
    let cause = error.to_string().lines().next().unwrap_or_default().to_owned();
    Error::new(Kind::Run, Problem::new(format!("the GPU's memory is full{with}"))).cause(cause).hint(format!(
        "lower {lower}data.batch_size or model.sequence_length; nvidia-smi shows who else uses the GPU's memory"
    ))
}

/// As a person reads it.
#[must_use]
pub fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(device: &str, precision: config::Precision) -> (Device, Option<String>) {
        let c = config::Run {
            work_dir: "x".into(),
            device: config::Device::from_text(device).unwrap(),
            precision,
            seed: 0,
            threads: None,
            memory_budget: config::MemoryBudget::Auto,
            resume: config::Resume::Never,
            checkpoint_every: config::CheckpointEvery::Epoch,
        };
        select_with(&c, |index| Err(format!("there is no number {index}")))
    }

    #[test]
    fn what_cannot_be_had_is_said_once() {
        let (device, said) = selected("cuda:3", config::Precision::Amp);
        assert!(device.is_cpu());
        assert_eq!(
            said.unwrap(),
            "the device cuda:3 (run.device) cannot be used: there is no number 3; \
             the run goes on on the CPU, in f32"
        );
        let (_, said) = selected("cuda", config::Precision::Fp32);
        assert!(said.unwrap().ends_with("there is no number 0; the run goes on on the CPU"));
        let (_, said) = selected("cpu", config::Precision::Amp);
        assert!(said.unwrap().contains("(run.precision)"));
        assert_eq!(selected("cpu", config::Precision::Fp32).1, None);
    }

    #[test]
    fn a_full_gpu_is_told_from_other_errors() {
        let cuda = |text: &str| candle_core::Error::Cuda(text.to_owned().into());
        let driver = cuda("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        assert!(is_out_of_memory(&driver.context("in a step").bt()));
        assert!(is_out_of_memory(&cuda("CublasError(CUBLAS_STATUS_ALLOC_FAILED)")));
        assert!(!is_out_of_memory(&cuda("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"\")")));
        let error = Error::from(cuda("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        assert!(error.to_string().contains("the GPU's memory is full\n"), "{error}");
        assert!(error.to_string().contains("lower data.batch_size"), "{error}");
    }
}
