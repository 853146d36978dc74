//! Where a run computes, and in what.

#[cfg(any(feature = "cuda", test))]
use std::rc::Rc;

#[cfg(any(feature = "cuda", test))]
use crate::config::AmpDtype;
use crate::config::{self, EngineKind, Experiment, Precision};
use crate::engine::cpu::precision::Bf16;
#[cfg(any(feature = "cuda", test))]
use crate::engine::cuda::GpuDevice;
use crate::nn::ActivationDtype;

/// Where a run computes.
#[derive(Clone)]
pub enum Compute {
    /// On the CPU.
    Cpu,
    /// Where Candle's plain operations run.
    Graph(candle_core::Device),
    /// On a GPU.
    #[cfg(any(feature = "cuda", test))]
    Gpu(Rc<dyn GpuDevice>),
}

impl Compute {
    /// Whether it is the CPU.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Graph(device) => device.is_cpu(),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(_) => false,
        }
    }

    /// As `run.device` has it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Graph(device) => graph_device(device),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(device) => device.name(),
        }
    }

    /// As a person reads it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Graph(device) => format!("{}, by plain Candle operations", graph_device(device)),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(device) => device.describe(),
        }
    }

    /// Memory that a GPU has free, in bytes; `None` where it does not tell, and on the CPU.
    #[must_use]
    pub fn free_memory(&self) -> Option<usize> {
        match self {
            Self::Cpu | Self::Graph(_) => None,
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(device) => device.free_memory(),
        }
    }

    /// The dtype of activations.
    #[must_use]
    pub fn activation_dtype(&self, c: &Experiment) -> ActivationDtype {
        match self {
            Self::Cpu if c.run.precision == Precision::Bf16 && Bf16::is_native() => ActivationDtype::Bf16,
            Self::Cpu | Self::Graph(_) => ActivationDtype::F32,
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(device) => match (c.run.precision, c.optimization.amp_dtype) {
                (Precision::Bf16, _) if device.has_bf16() => ActivationDtype::Bf16,
                (Precision::Fp32 | Precision::Bf16, _) => ActivationDtype::F32,
                (Precision::Amp, AmpDtype::Auto | AmpDtype::Bfloat16) if device.has_bf16() => {
                    ActivationDtype::Bf16
                }
                (Precision::Amp, _) => ActivationDtype::F16,
            },
        }
    }
}

/// The device that the configuration asks for, or the CPU where it cannot be had; and what there is to say about that,
/// with the fields concerned as `(section.field)`.
#[must_use]
pub fn select(c: &Experiment) -> (Compute, Option<String>) {
    if c.run.engine == EngineKind::Candle { select_with(c, open_candle) } else { select_with(c, open) }
}

/// The CPU for the engine that `c` asks for.
fn cpu(c: &Experiment) -> Compute {
    match c.run.engine {
        EngineKind::Candle => Compute::Graph(candle_core::Device::Cpu),
        EngineKind::Auto | EngineKind::Fused => Compute::Cpu,
    }
}

/// As the configuration names it.
fn graph_device(device: &candle_core::Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id: 0 } => "cuda".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

fn select_with(
    c: &Experiment,
    open: impl FnOnce(usize) -> Result<Compute, String>,
) -> (Compute, Option<String>) {
    let config::Device::Cuda(index) = c.run.device else {
        let compute = cpu(c);
        let said = lacks(c, &compute).map(|lacks| format!("{lacks}: the run is in f32"));
        return (compute, said);
    };
    match open(index) {
        Ok(compute) => {
            let said = lacks(c, &compute)
                .map(|lacks| format!("{lacks}: activations are {}", compute.activation_dtype(c)));
            (compute, said)
        }
        Err(why) => {
            let (compute, device) = (cpu(c), c.run.device);
            let in_f32 = if lacks(c, &compute).is_some() { ", in f32" } else { "" };
            let said = format!(
                "the device {device} (run.device) cannot be used: {why}; the run goes on on the CPU{in_f32}"
            );
            (compute, Some(said))
        }
    }
}

/// Why `compute` has other activations than `c` asks for, if it has.
fn lacks(c: &Experiment, compute: &Compute) -> Option<&'static str> {
    let has_bf16 = compute.activation_dtype(c) == ActivationDtype::Bf16;
    match (c.run.precision, compute) {
        (Precision::Amp, Compute::Cpu | Compute::Graph(_)) => {
            Some("mixed precision (run.precision) is for GPUs")
        }
        (Precision::Bf16, Compute::Cpu) if !has_bf16 => {
            Some("this processor has no AVX512-BF16 (run.precision)")
        }
        (Precision::Bf16, Compute::Graph(_)) => {
            Some("Candle's plain operations (run.engine) have no bfloat16 (run.precision)")
        }
        #[cfg(any(feature = "cuda", test))]
        (Precision::Amp, Compute::Gpu(_)) if !has_bf16 && c.optimization.amp_dtype == AmpDtype::Bfloat16 => {
            Some("this GPU has no bfloat16 (optimization.amp_dtype)")
        }
        #[cfg(any(feature = "cuda", test))]
        (Precision::Bf16, Compute::Gpu(_)) if !has_bf16 => Some("this GPU has no bfloat16 (run.precision)"),
        _ => None,
    }
}

#[cfg(feature = "cuda")]
fn open(index: usize) -> Result<Compute, String> {
    super::cuda::driver::open(index).map(Compute::Gpu)
}

#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<Compute, String> {
    Err("this slt-run was built without CUDA (cargo build --release --features cuda)".to_owned())
}

/// Candle's own CUDA device.
#[cfg(feature = "candle-cuda")]
fn open_candle(index: usize) -> Result<Compute, String> {
    candle_core::Device::new_cuda(index).map(Compute::Graph).map_err(|error| error.to_string())
}

#[cfg(not(feature = "candle-cuda"))]
fn open_candle(_: usize) -> Result<Compute, String> {
    Err("this slt-run was built without Candle's CUDA (cargo build --release --features candle-cuda)"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(device: &str, precision: &str, amp_dtype: &str) -> Experiment {
        config::for_tests(&[
            ("run.device", device),
            ("run.precision", precision),
            ("optimization.amp_dtype", amp_dtype),
        ])
    }

    fn selected(device: &str, precision: &str) -> (Compute, Option<String>) {
        select_with(&experiment(device, precision, "auto"), |index| {
            Err(format!("there is no number {index}"))
        })
    }

    /// A GPU that has bf16, or not.
    struct Pretended(bool);

    impl GpuDevice for Pretended {
        fn name(&self) -> String {
            "cuda:0".to_owned()
        }

        fn describe(&self) -> String {
            "pretended".to_owned()
        }

        fn has_bf16(&self) -> bool {
            self.0
        }

        fn free_memory(&self) -> Option<usize> {
            None
        }

        fn open(
            &self,
            _: ActivationDtype,
            _: &[usize],
        ) -> crate::Result<Rc<dyn crate::engine::cuda::GpuStream>> {
            Err(crate::Error::run("there is none"))
        }
    }

    #[test]
    fn activations_are_what_the_gpu_has() {
        let dtype = |has_bf16: bool, precision: &str, amp_dtype: &str| {
            let c = experiment("cuda", precision, amp_dtype);
            let (compute, said) = select_with(&c, |_| Ok(Compute::Gpu(Rc::new(Pretended(has_bf16)))));
            (compute.activation_dtype(&c), said.is_some())
        };
        assert_eq!(dtype(true, "amp", "auto"), (ActivationDtype::Bf16, false));
        assert_eq!(dtype(true, "amp", "float16"), (ActivationDtype::F16, false));
        assert_eq!(dtype(true, "fp32", "bfloat16"), (ActivationDtype::F32, false));
        assert_eq!(dtype(false, "amp", "auto"), (ActivationDtype::F16, false));
        assert_eq!(dtype(false, "amp", "bfloat16"), (ActivationDtype::F16, true));
        assert_eq!(dtype(true, "bf16", "float16"), (ActivationDtype::Bf16, false));
        assert_eq!(dtype(false, "bf16", "auto"), (ActivationDtype::F32, true));
        let on_cpu = |precision: &str| {
            let c = experiment("cpu", precision, "bfloat16");
            let (compute, said) = select(&c);
            (compute.activation_dtype(&c), said.is_some())
        };
        assert_eq!(on_cpu("amp"), (ActivationDtype::F32, true));
        let native = (ActivationDtype::Bf16, false);
        assert_eq!(on_cpu("bf16"), if Bf16::is_native() { native } else { (ActivationDtype::F32, true) });
        let graph = experiment("cpu", "bf16", "auto");
        let compute = Compute::Graph(candle_core::Device::Cpu);
        assert_eq!(compute.activation_dtype(&graph), ActivationDtype::F32);
        assert!(lacks(&graph, &compute).unwrap().contains("run.engine"));
    }

    #[test]
    fn what_cannot_be_had_is_said_once() {
        let (compute, said) = selected("cuda:3", "amp");
        assert!(compute.is_cpu());
        assert_eq!(
            said.unwrap(),
            "the device cuda:3 (run.device) cannot be used: there is no number 3; \
             the run goes on on the CPU, in f32"
        );
        let (_, said) = selected("cuda", "fp32");
        assert!(said.unwrap().ends_with("there is no number 0; the run goes on on the CPU"));
        let (_, said) = selected("cpu", "amp");
        assert!(said.unwrap().contains("(run.precision)"));
        assert_eq!(selected("cpu", "fp32").1, None);
    }
}
