//! The weighted sum of each token's expert outputs: the last step of the layer.
//!
//! `out[t] = cast(sum over slots in ascending order of w[t, slot] * f32(y[inverse[t * k + slot]]))`,
//! accumulated in f32 by fused multiply-adds, with one rounding, the same bits at any grid size. Rows at or
//! past `expert_offsets[E_loc]` are skipped without being read; a token with no valid row gives 0. An addend
//! `[T, H]` in f32 is added last, before the rounding; and so may be what is there:
//! `out[t] = cast(f32(out[t]) + sum ..)`.

use super::permutation::{Permutation, Sizes};
use super::quantize::{Activations, ActivationsMut};
use crate::error::{Error, Result};
use crate::gpu::buffer::Slice;
use crate::gpu::launch::{DevicePtr, Grid};
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::rows::{checked_columns, warp_rows};

const OP: &str = "unpermute";

/// Arguments of [`unpermute`].
#[derive(Debug)]
pub struct Unpermute<'a> {
    /// bf16 or f16 `[P, H]`, in permuted order.
    pub y: Activations<'a>,
    /// f32 `[T, k]`; without it all weights are 1 (Llama-4, which weighs the input).
    pub topk_weights: Option<Slice<'a, f32>>,
    /// f32 `[T, H]`, added to each token's sum before it is rounded: what shared experts beside these gave.
    pub addend: Option<Slice<'a, f32>>,
    /// Where the rows of each token are.
    pub permutation: &'a Permutation<'a>,
    /// H, columns of `y` and `out`.
    pub hidden: usize,
    /// `[T, H]`: the type of `y`, or f32; or f16 of a `y` in bf16, whose rows may leave f16's range where
    /// their sum does not.
    pub out: ActivationsMut<'a>,
    /// Whether the sum is added to what `out` holds, with one rounding at the end, instead of written.
    pub adds: bool,
}

/// Sums the expert outputs of every token.
///
/// With no tokens nothing is launched, and nothing is written.
///
/// # Errors
/// Arrays that are too short or on another device; a permutation without `inverse`; types of `y` and `out`
/// that do not match.
pub fn unpermute(stream: &Stream, args: Unpermute<'_>) -> Result<()> {
    enqueue(stream, args, false)
}

/// As [`unpermute`], for a routing that was complete before the kernel that precedes this call in the stream
/// began. Where the rows are, and their weights, is then read while that kernel ends.
///
/// # Safety
/// The permutation and `topk_weights` were not written by the kernel that directly precedes this call in the
/// stream, and every kernel since they were written orders itself behind its predecessor, as
/// [`grouped_gemm_with_settled_schedule`](super::grouped_gemm::grouped_gemm_with_settled_schedule) says.
///
/// # Errors
/// Those of [`unpermute`].
pub unsafe fn unpermute_with_settled_routing(stream: &Stream, args: Unpermute<'_>) -> Result<()> {
    enqueue(stream, args, true)
}

/// `routing_is_settled`: see [`unpermute_with_settled_routing`].
fn enqueue(stream: &Stream, args: Unpermute<'_>, routing_is_settled: bool) -> Result<()> {
    let Sizes { tokens, top_k, rows: capacity, .. } = args.permutation.sizes;
    let columns = checked_columns(OP, "hidden", args.hidden)?;
    args.y.check(OP, "y", capacity * args.hidden, stream)?;
    args.permutation.check(OP, stream)?;
    let inverse = args.permutation.checked_inverse(OP, stream)?;
    if let Some(topk_weights) = &args.topk_weights {
        topk_weights.check(OP, "topk_weights", tokens * top_k, stream)?;
    }
    if let Some(addend) = &args.addend {
        addend.check(OP, "addend", tokens * args.hidden, stream)?;
    }
    args.out.check(OP, "out", tokens * args.hidden, stream)?;

    let (kernel, y, out) = match (&args.y, &args.out) {
        (Activations::Bf16(y), ActivationsMut::Bf16(out)) => {
            (launchers::UNPERMUTE_BF16, y.ptr().cast(), out.ptr().cast())
        }
        (Activations::Bf16(y), ActivationsMut::F16(out)) => {
            (launchers::UNPERMUTE_BF16_F16, y.ptr().cast(), out.ptr().cast())
        }
        (Activations::Bf16(y), ActivationsMut::F32(out)) => {
            (launchers::UNPERMUTE_BF16_F32, y.ptr().cast(), out.ptr().cast())
        }
        (Activations::F16(y), ActivationsMut::F16(out)) => {
            (launchers::UNPERMUTE_F16, y.ptr().cast(), out.ptr().cast())
        }
        (Activations::F16(y), ActivationsMut::F32(out)) => {
            (launchers::UNPERMUTE_F16_F32, y.ptr().cast(), out.ptr().cast())
        }
        (y, out) => {
            let types = format!("{} from {}", out.as_activations().type_name(), y.type_name());
            let rule = "must be bf16, f16 or f32 from bf16, or f16 or f32 from f16";
            return Err(Error::argument(OP, "out", types, rule));
        }
    };
    let tokens = tokens as u32;
    let arguments = launchers::Unpermute {
        y,
        inverse,
        topk_weights: args.topk_weights.map_or(DevicePtr::null(), |topk_weights| topk_weights.ptr()),
        valid_rows: args.permutation.valid_rows(),
        addend: args.addend.map_or(DevicePtr::null(), |addend| addend.ptr()),
        out,
        tokens,
        columns,
        top_k: top_k as u32,
        routing_is_settled,
        adds: args.adds,
    };
    let (blocks, segments) = warp_rows(stream.device(), tokens, columns);
    let grid = Grid::from((segments, blocks));
    // SAFETY: every array was checked to have its extent on this device. Of `inverse` the kernel follows what
    // is below `*valid_rows`, which the permutation keeps within its P rows, those of `y`, if its lists are
    // unchanged.
    unsafe { stream.device().launch_over(stream, &kernel, grid, &arguments, &args.permutation.unchanged()) }
}
