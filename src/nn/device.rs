//! Where a run computes.

use candle_core::Device;

use crate::Result;
use crate::config;

/// The device that the configuration asks for, or the CPU with a warning where it cannot be had; `warn` is also told
/// where mixed precision means f32.
pub fn select(c: &config::Run, warn: impl Fn(&str)) -> Result<Device> {
    let index = match c.device {
        config::Device::Cpu => {
            if c.precision == config::Precision::Amp {
                warn("run.precision = \"amp\" is f32 on the CPU");
            }
            return Ok(Device::Cpu);
        }
        config::Device::Cuda(index) => index,
    };
    if !candle_core::utils::cuda_is_available() {
        warn(&format!(
            "run.device = \"cuda:{index}\", but this build of slt-run has no CUDA: the run goes on on the CPU in f32"
        ));
        return Ok(Device::Cpu);
    }
    match Device::new_cuda(index) {
        Ok(device) => Ok(device),
        Err(error) => {
            warn(&format!(
                "run.device = \"cuda:{index}\" cannot be used ({error}): the run goes on on the CPU in f32"
            ));
            Ok(Device::Cpu)
        }
    }
}

/// As a person reads it.
#[must_use]
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        other => format!("{:?}", other.location()).to_lowercase(),
    }
}
