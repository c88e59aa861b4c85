//! Activation of GEMM 1's output and its quantisation for GEMM 2, in one launch.
//!
//! `x [P, 2I]` holds gate in columns `0..I` and up in `I..2I`. The activation is computed in f32 and rounded
//! once, to e4m3; the scales are those of [`quantize`](super::quantize). The error of the activation
//! functions is documented in `kernels-gpu/src/elementwise/activation/functions.rs`: a few units in the last
//! place of f32.
//!
//! [`activation_plain`] rounds to bf16 instead, for a second projection that is not quantised.

use half::bf16;

use super::permutation::Permutation;
use super::quantize::{Activations, check_groups, group_scales_out};
use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::Unchanged;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::rows::{BlockRows, ScaleLayout, checked_columns, warp_rows_grid};
use crate::plan::{checked_i32, elements};

pub use crate::config::{ActivationFunction, Gating};

const OP: &str = "activation";

/// Sizes of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationShape {
    /// P, rows of `x` and `q`.
    pub rows: usize,
    /// I.
    pub intermediate: usize,
}

/// How to scale the activated values.
#[derive(Debug)]
#[non_exhaustive]
pub enum Requantization<'a> {
    /// One scale, given: `q = value * (1 / scale)`.
    TensorStatic {
        /// f32 `[1]`.
        scale: Slice<'a, f32>,
    },
    /// One scale per row.
    Token {
        /// f32 `[P]`.
        scales: SliceMut<'a, f32>,
    },
    /// One scale per row and group of columns.
    Group {
        /// Columns that share a scale: 128 or 64.
        group_size: usize,
        /// f32, of P rows.
        scales: SliceMut<'a, f32>,
        /// Layout of `scales`, e.g. `ScaleLayout::row_major(intermediate.div_ceil(group_size))`.
        layout: ScaleLayout,
    },
}

/// Arguments of [`activation`].
#[derive(Debug)]
pub struct Activation<'a> {
    /// bf16, f16 or f32 `[P, 2I]`; `[P, I]` without a gate.
    pub x: Activations<'a>,
    /// Rows from its last offset on are neither read nor written. Without it, all are.
    pub permutation: Option<&'a Permutation<'a>>,
    /// What joins gate and up.
    pub gating: Gating,
    /// How to scale.
    pub requantization: Requantization<'a>,
    /// e4m3 `[P, I]`.
    pub q: SliceMut<'a, E4m3>,
}

/// Joins gate and up of every valid row, and quantises the result.
///
/// With no rows nothing is launched, and nothing is written.
///
/// # Errors
/// Arrays that are too short or on another device; a permutation of another number of rows.
pub fn activation(stream: &Stream, shape: ActivationShape, args: Activation<'_>) -> Result<()> {
    let intermediate = checked_columns(OP, "intermediate", shape.intermediate)?;
    let rows = checked_i32(OP, "rows", shape.rows)?;
    args.gating.check(OP, "gating.limit")?;
    let columns = shape.intermediate + args.gating.up(shape.intermediate);
    args.x.check(OP, "x", elements(OP, "x", &[shape.rows, columns])?, stream)?;
    let valid_rows = match args.permutation {
        Some(permutation) => {
            permutation.check_size(OP, "rows", shape.rows, (permutation.rows(), "rows"))?;
            permutation.check(OP, stream)?;
            permutation.valid_rows()
        }
        None => DevicePtr::null(),
    };
    args.q.check(OP, "q", shape.rows * shape.intermediate, stream)?;
    match &args.requantization {
        Requantization::TensorStatic { scale } => scale.check(OP, "scale", 1, stream)?,
        Requantization::Token { scales } => scales.check(OP, "scales", shape.rows, stream)?,
        Requantization::Group { group_size, scales, layout } => {
            check_groups(OP, *group_size, scales, layout, (shape.rows, shape.intermediate), stream)?;
        }
    }
    if rows == 0 {
        return Ok(());
    }

    let common = launchers::Activate {
        x: args.x.ptr(),
        valid_rows,
        q: args.q.ptr().cast(),
        rows,
        intermediate,
        gating: args.gating.raw(intermediate),
    };
    let device = stream.device();
    let lists = args.permutation.map_or(Unchanged::NOTHING, Permutation::unchanged);
    let grid = warp_rows_grid(device, rows, intermediate);
    // SAFETY: every array was checked to have its extent on this device, for all rows, whatever the last
    // offset is; no two scales have one place, and the shared memory holds the kept spans.
    unsafe {
        match args.requantization {
            Requantization::TensorStatic { scale } => {
                let kernel = args.x.pick(
                    launchers::ACTIVATION_TENSOR_BF16,
                    launchers::ACTIVATION_TENSOR_F16,
                    launchers::ACTIVATION_TENSOR_F32,
                );
                let arguments = launchers::ActivateTensor { common, scale: scale.ptr() };
                device.launch_over(stream, &kernel, grid, &arguments, &lists)
            }
            Requantization::Token { scales } => {
                let kernel = args.x.pick(
                    launchers::ACTIVATION_TOKEN_BF16,
                    launchers::ACTIVATION_TOKEN_F16,
                    launchers::ACTIVATION_TOKEN_F32,
                );
                let BlockRows { blocks, shared, kept_spans } = BlockRows::new(device, rows, intermediate);
                let arguments = launchers::ActivateToken { common, scales: scales.ptr(), kept_spans };
                device.launch_over(stream, &kernel.with_shared(shared), blocks, &arguments, &lists)
            }
            Requantization::Group { group_size, scales, layout } => {
                let kernel = args.x.pick(
                    launchers::ACTIVATION_GROUP_BF16,
                    launchers::ACTIVATION_GROUP_F16,
                    launchers::ACTIVATION_GROUP_F32,
                );
                let scales = group_scales_out(&scales, &layout, group_size);
                let arguments = launchers::ActivateGroup { common, scales };
                device.launch_over(stream, &kernel, grid, &arguments, &lists)
            }
        }
    }
}

/// Arguments of [`activation_plain`].
#[derive(Debug)]
pub struct ActivationPlain<'a> {
    /// f32 `[rows, 2I]`; `[rows, I]` without a gate.
    pub x: Slice<'a, f32>,
    /// f32 `[rows]`: each row is multiplied by the sigmoid of its own.
    pub row_logits: Option<Slice<'a, f32>>,
    /// What joins gate and up.
    pub gating: Gating,
    /// bf16 `[rows, I]`.
    pub out: SliceMut<'a, bf16>,
}

/// Joins gate and up of every row, rounding to bf16: for a second projection that is not quantised.
///
/// With no rows nothing is launched.
///
/// # Errors
/// Arrays that are too short or on another device.
pub fn activation_plain(stream: &Stream, shape: ActivationShape, args: ActivationPlain<'_>) -> Result<()> {
    const OP: &str = "activation_plain";
    let intermediate = checked_columns(OP, "intermediate", shape.intermediate)?;
    let rows = checked_i32(OP, "rows", shape.rows)?;
    args.gating.check(OP, "gating.limit")?;
    let columns = shape.intermediate + args.gating.up(shape.intermediate);
    args.x.check(OP, "x", elements(OP, "x", &[shape.rows, columns])?, stream)?;
    if let Some(row_logits) = &args.row_logits {
        row_logits.check(OP, "row_logits", shape.rows, stream)?;
    }
    args.out.check(OP, "out", shape.rows * shape.intermediate, stream)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = launchers::ActivatePlain {
        x: args.x.ptr(),
        row_logits: args.row_logits.map_or(DevicePtr::null(), |logits| logits.ptr()),
        out: args.out.ptr(),
        rows,
        intermediate,
        gating: args.gating.raw(intermediate),
    };
    let device = stream.device();
    let grid = warp_rows_grid(device, rows, intermediate);
    // SAFETY: every array was checked to have its extent on this device.
    unsafe { device.launch(stream, &launchers::ACTIVATION_PLAIN, grid, &arguments) }
}
