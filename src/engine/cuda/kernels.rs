//! The kernels: their sources, put together for a dtype and the widths of heads, and their arguments.

use super::memory::{Activation, DevicePtr};
use crate::nn::ActivationDtype;

/// Arguments of a kernel, laid out as C lays them out.
pub trait Args: Copy + Default {}

macro_rules! rust_type {
    (int) => {
        i32
    };
    (long) => {
        i64
    };
    (uint) => {
        u32
    };
    (float) => {
        f32
    };
    (float3) => {
        [f32; 3]
    };
    (double) => {
        f64
    };
    (f32s) => {
        DevicePtr<f32>
    };
    (f64s) => {
        DevicePtr<f64>
    };
    (ints) => {
        DevicePtr<i32>
    };
    (uints) => {
        DevicePtr<u32>
    };
    (bytes) => {
        DevicePtr<u8>
    };
    (words) => {
        DevicePtr<u16>
    };
    (stored) => {
        DevicePtr<Activation>
    };
    (verdict) => {
        DevicePtr<Verdict>
    };
}

macro_rules! c_field {
    ($name:ident, int) => {
        concat!("    int ", stringify!($name), ";\n")
    };
    ($name:ident, long) => {
        concat!("    i64 ", stringify!($name), ";\n")
    };
    ($name:ident, uint) => {
        concat!("    u32 ", stringify!($name), ";\n")
    };
    ($name:ident, float) => {
        concat!("    float ", stringify!($name), ";\n")
    };
    ($name:ident, float3) => {
        concat!("    float ", stringify!($name), "[3];\n")
    };
    ($name:ident, double) => {
        concat!("    double ", stringify!($name), ";\n")
    };
    ($name:ident, f32s) => {
        concat!("    float *", stringify!($name), ";\n")
    };
    ($name:ident, f64s) => {
        concat!("    double *", stringify!($name), ";\n")
    };
    ($name:ident, ints) => {
        concat!("    int *", stringify!($name), ";\n")
    };
    ($name:ident, uints) => {
        concat!("    u32 *", stringify!($name), ";\n")
    };
    ($name:ident, bytes) => {
        concat!("    unsigned char *", stringify!($name), ";\n")
    };
    ($name:ident, words) => {
        concat!("    unsigned short *", stringify!($name), ";\n")
    };
    ($name:ident, stored) => {
        concat!("    T *", stringify!($name), ";\n")
    };
    ($name:ident, verdict) => {
        concat!("    struct Verdict *", stringify!($name), ";\n")
    };
}

/// Each struct in Rust, and the same in C.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ident),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[repr(C)]
            #[allow(missing_docs, reason = "each is described beside its kernel")]
            pub struct $name { $(pub $field: rust_type!($type)),+ }
            impl Args for $name {}
        )+
        const DECLARATIONS: &str = concat!(
            $("struct ", stringify!($name), " {\n", $(c_field!($field, $type),)+ "};\n",)+
        );
        /// Name and size of each.
        #[cfg(test)]
        pub(super) const SIZES: &[(&str, usize)] =
            &[$((stringify!($name), size_of::<$name>())),+];
    };
}

arguments! {
    /// `rows.cu`: residual sum and layer norm.
    NormForward {
        x: f32s, branch: stored, bias: f32s, position: f32s, drop: words, path: words, sum: f32s, weight: f32s,
        shift: f32s, y: f32s, y_t: stored, xhat: stored, rstd: f32s, rows: int, width: int, x_step: int,
        rows_a_sample: int, period: int, drop_scale: float, path_scale: float, eps: float,
    }
    /// `rows.cu`: the gradient of [`NormForward`].
    NormBackward {
        dy: f32s, dy_t: stored, xhat: stored, rstd: f32s, weight: f32s, shift: f32s, d_in: f32s, d_x: f32s,
        y: stored, d_branch: stored, drop: words, path: words, partial: f32s, rows: int, width: int, in_step: int,
        rows_a_sample: int, rows_a_block: int, drop_scale: float, path_scale: float,
    }
    /// `rows.cu`: sums, dropout and column sums.
    Combine {
        f: f32s, t: stored, out: stored, drop: words, partial: f32s, rows: int, width: int, rows_a_sample: int,
        rows_a_block: int, drop_scale: float,
    }
    /// `rows.cu`: bias, activation, dropout.
    Activate {
        hidden: stored, bias: f32s, out: stored, drop: words, rows: int, width: int, rows_a_sample: int,
        rows_a_block: int, relu: int, drop_scale: float,
    }
    /// `rows.cu`: the gradient of [`Activate`].
    ActivateBackward {
        hidden: stored, d: stored, bias: f32s, drop: words, partial: f32s, rows: int, width: int,
        rows_a_sample: int, rows_a_block: int, relu: int, drop_scale: float,
    }
    /// `attention.cu`, forward and backward.
    Attention {
        q: stored, k: stored, v: stored, q_bias: f32s, k_bias: f32s, v_bias: f32s, valid: bytes, drop: words,
        mixed: stored, lse: f32s, d_mixed: stored, delta: f32s, d_q: stored, d_k: stored, d_v: stored,
        q_sample: long, kv_sample: long, queries: int, keys: int, heads: int, width: int, q_row: int, kv_row: int,
        scale: float, drop_scale: float,
    }
    /// `training.cu`: a dropout's mask.
    Mask {
        out: words, seed: long, step: long, site: long, first_sample: long, samples: long, elements: long,
        purpose: uint, threshold: uint,
    }
    /// `training.cu`: images to patches.
    Patches {
        bytes: bytes, normalised: f32s, out: stored, images: int, size: int, patch: int, factor: float3,
        offset: float3,
    }
    /// `training.cu`: patches to tokens.
    Embed {
        patches: stored, bias: f32s, class_token: f32s, position: f32s, drop: words, x: f32s, images: int,
        tokens: int, width: int, drop_scale: float,
    }
    /// `training.cu`: the gradient of [`Embed`].
    EmbedBackward {
        d_x: f32s, drop: words, d_patches: stored, sums: f32s, images: int, tokens: int, width: int,
        drop_scale: float,
    }
    /// `training.cu`: sums of partial sums.
    Reduce { partial: f32s, out0: f32s, out1: f32s, out2: f32s, width: long, parts: int, outs: int }
    /// `training.cu`: the mean over frames.
    Pool { x: f32s, valid: bytes, mean: stored, clips: int, frames: int, width: int }
    /// `training.cu`: the gradient of [`Pool`].
    PoolBackward { d_mean: f32s, valid: bytes, d_x: f32s, clips: int, frames: int, width: int }
    /// `training.cu`: the loss and its gradient.
    CrossEntropy {
        logits: f32s, bias: f32s, targets: uints, d_logits: stored, loss: f32s, right: ints, classes: int,
        smoothing: float, scale: float,
    }
    /// `training.cu`: sums of squares.
    Squares { x: f32s, partial: f64s, count: long }
    /// `training.cu`: what becomes of a step.
    Judge { partial: f64s, loss: f32s, verdict: verdict, share: double, most: double, parts: int, clips: int }
    /// `training.cu`: `AdamW` and Adam.
    Adam {
        parameter: f32s, gradient: f32s, m: f32s, v: f32s, stored: stored, verdict: verdict, count: long,
        decay: float, l2: float, step_size: float, root_correction: float, rest1: float, beta2: float,
        rest2: float, eps: float,
    }
    /// `training.cu`: SGD.
    Sgd {
        parameter: f32s, gradient: f32s, m: f32s, stored: stored, verdict: verdict, count: long, lr: float, l2: float,
        momentum: float,
    }
    /// `training.cu`: f32 to the activations' dtype.
    Cast { x: f32s, out: stored, count: long }
}

/// What `judge` makes of a step: as `VERDICT` has it in C.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in C")]
pub struct Verdict {
    pub loss: f64,
    pub norm: f64,
    pub factor: f32,
    pub sound: i32,
}

// SAFETY: four numbers without a gap, and any bits are some.
#[allow(unsafe_code, reason = "it is read from a GPU's memory as bytes")]
unsafe impl bytemuck::Zeroable for Verdict {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "it is read from a GPU's memory as bytes")]
unsafe impl bytemuck::Pod for Verdict {}

const VERDICT: &str = "struct Verdict {\n    double loss, norm;\n    float factor;\n    int sound;\n};\n";

/// The numbers that a thread of the row kernels takes together: each is a variant of its own.
pub const VECTORS: [usize; 2] = [1, 4];

/// What the source calls a dtype.
#[must_use]
pub fn define(dtype: ActivationDtype) -> &'static str {
    match dtype {
        ActivationDtype::F32 => "T_F32",
        ActivationDtype::Bf16 => "T_BF16",
        ActivationDtype::F16 => "T_F16",
    }
}

/// The source of all kernels, with attention for each width of `heads`, for a GPU of compute capability `arch` (80 = 8.0).
#[must_use]
pub fn source(dtype: ActivationDtype, heads: &[usize], arch: usize) -> String {
    let mut parts = vec![
        format!("#define {}\n#define ARCH {arch}\n", define(dtype)),
        include_str!("kernels/prelude.h").to_owned(),
        VERDICT.to_owned(),
        DECLARATIONS.to_owned(),
        include_str!("kernels/tiles.h").to_owned(),
        include_str!("kernels/training.cu").to_owned(),
    ];
    for vector in VECTORS {
        let rows = include_str!("kernels/rows.cu");
        parts.push(format!("#define VEC {vector}\n{rows}#undef VEC\n"));
    }
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    heads.dedup();
    for head in heads {
        let attention = include_str!("kernels/attention.cu");
        parts.push(format!("#define HEAD {head}\n{attention}#undef HEAD\n"));
    }
    parts.concat()
}
