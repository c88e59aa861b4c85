//! The weighted sum of each token's expert outputs: the last step of the layer.
//!
//! `out[t] = cast(sum over slots in ascending order of w[t, slot] * f32(y[inverse[t * k + slot]]))`, accumulated in f32 by fused
//! multiply-adds, with one rounding, the same bits at any grid size. Rows at or past `expert_offsets[E_loc]` are skipped without
//! being read; a token with no valid row gives 0.

use super::permute::checked_i32;
use super::quantize::{Activations, ActivationsMut, checked_columns, valid_rows, warp_rows_grid};
use crate::error::{Error, Result, require};
use crate::gpu::buffer::Slice;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;

const OP: &str = "unpermute";

/// Sizes of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpermuteShape {
    /// T.
    pub tokens: usize,
    /// k.
    pub top_k: usize,
    /// H.
    pub hidden: usize,
    /// P, rows of `y`.
    pub capacity: usize,
}

/// Arguments of [`unpermute`].
pub struct Unpermute<'a> {
    /// bf16 or f16 `[P, H]`, in permuted order.
    pub y: Activations<'a>,
    /// i32 `[T, k]`, from `permute`.
    pub inverse: Slice<'a, i32>,
    /// f32 `[T, k]`; without it all weights are 1 (Llama-4, which weighs the input).
    pub topk_weights: Option<Slice<'a, f32>>,
    /// i64 `[E_loc + 1]`, from `permute`.
    pub expert_offsets: Slice<'a, i64>,
    /// `[T, H]`: the type of `y`, or f32.
    pub out: ActivationsMut<'a>,
}

/// Sums the expert outputs of every token.
///
/// With no tokens nothing is launched, and nothing is written.
pub fn unpermute(stream: &Stream, shape: UnpermuteShape, args: Unpermute<'_>) -> Result<()> {
    enqueue(stream, shape, args, false)
}

/// As [`unpermute`], for a routing that was complete before the kernel that precedes this call in the stream began. Where the rows are,
/// and their weights, is then read while that kernel ends.
///
/// # Safety
/// `inverse`, `expert_offsets` and `topk_weights` were not written by the kernel that directly precedes this call in the stream, and
/// every kernel since they were written orders itself behind its predecessor, as
/// [`grouped_gemm_with_settled_schedule`](super::grouped_gemm::grouped_gemm_with_settled_schedule) says.
pub unsafe fn unpermute_with_settled_routing(
    stream: &Stream,
    shape: UnpermuteShape,
    args: Unpermute<'_>,
) -> Result<()> {
    enqueue(stream, shape, args, true)
}

/// `routing_is_settled`: see [`unpermute_with_settled_routing`].
fn enqueue(
    stream: &Stream,
    shape: UnpermuteShape,
    args: Unpermute<'_>,
    routing_is_settled: bool,
) -> Result<()> {
    let columns = checked_columns(OP, "hidden", shape.hidden)?;
    let tokens = checked_i32(OP, "tokens", shape.tokens)?;
    let most = i32::MAX as usize / shape.tokens.max(1);
    require((1..=most).contains(&shape.top_k), OP, "top_k", shape.top_k, || {
        format!("must be in 1..={most} with {tokens} tokens: expanded rows are counted in i32")
    })?;
    checked_i32(OP, "capacity", shape.capacity)?;
    let rows = shape.tokens * shape.top_k;
    args.y.check(OP, "y", shape.capacity * shape.hidden, stream)?;
    args.inverse.check(OP, "inverse", rows, stream)?;
    if let Some(topk_weights) = &args.topk_weights {
        topk_weights.check(OP, "topk_weights", rows, stream)?;
    }
    let valid_rows = valid_rows(OP, &args.expert_offsets, stream)?;
    args.out.as_activations().check(OP, "out", shape.tokens * shape.hidden, stream)?;

    let (kernel, y, out) = match (&args.y, &args.out) {
        (Activations::Bf16(y), ActivationsMut::Bf16(out)) => {
            (launchers::UNPERMUTE_BF16, y.ptr().cast(), out.ptr().cast())
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
            let rule = "must be bf16 from bf16, f16 from f16, or f32 from either";
            return Err(Error::argument(OP, "out", types, rule));
        }
    };
    let arguments = launchers::Unpermute {
        y,
        inverse: args.inverse.ptr(),
        topk_weights: args.topk_weights.map_or(DevicePtr::null(), |topk_weights| topk_weights.ptr()),
        valid_rows,
        out,
        tokens,
        columns,
        top_k: shape.top_k as u32,
        routing_is_settled,
    };
    // SAFETY: every array was checked to have its extent on this device; `permute` keeps `*valid_rows` within P.
    unsafe { stream.device().launch(stream, &kernel, warp_rows_grid(stream, tokens, columns), &arguments) }
}
