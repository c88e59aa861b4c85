//! The weighted sum of each token's expert outputs: the last step of the layer.
//!
//! `out[t] = cast(sum over slots in ascending order of w[t, slot] * f32(y[inverse[t * k + slot]]))`,
//! accumulated in f32 by fused multiply-adds, with one rounding, the same bits at any grid size. Rows at or
//! past `expert_offsets[E_loc]` are skipped without being read; a token with no valid row gives 0. An addend
//! `[T, H]` in f32 is added last, before the rounding; and so may be what is there:
//! `out[t] = cast(f32(out[t]) + sum ..)`.
//!
//! The layer's own `y`, which nobody reads again, is discarded in L2 while it is read; a caller's never is.

use super::permutation::{Permutation, Sizes};
use super::quantize::{Activations, ActivationsMut};
use crate::error::{Error, Result};
use crate::gpu::buffer::Slice;
use crate::gpu::launch::{DevicePtr, Grid};
use crate::gpu::order::Access;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::rows::{checked_columns, warp_rows};

const OP: &str = "unpermute";

/// Bytes of a line of L2: what the kernels discard at a time.
const LINE: usize = 128;

/// What a caller vouches for besides what is checked.
#[derive(Clone, Copy, Default)]
struct Vouched {
    /// See [`unpermute_with_settled_routing`].
    routing_is_settled: bool,
    /// See [`unpermute_and_discard`].
    y_is_dead: bool,
}

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
    enqueue(stream, args, Vouched::default())
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
    enqueue(stream, args, Vouched { routing_is_settled: true, y_is_dead: false })
}

/// As [`unpermute_with_settled_routing`], of a `y` that nobody reads again. Its valid rows are indeterminate
/// afterwards, so that L2 need not write them to device memory. Rows that do not begin and end between lines
/// of L2 stay.
///
/// # Safety
/// - That of [`unpermute_with_settled_routing`].
/// - `y` is lent to the caller to be written, and no byte of it is read before it is written anew; by graphs
///   that this is captured in neither.
/// - No two slots of the permutation have one row, as [`permute`](super::permute::permute) has it.
///
/// # Errors
/// Those of [`unpermute`].
pub(crate) unsafe fn unpermute_and_discard(stream: &Stream, args: Unpermute<'_>) -> Result<()> {
    enqueue(stream, args, Vouched { routing_is_settled: true, y_is_dead: true })
}

fn enqueue(stream: &Stream, args: Unpermute<'_>, vouched: Vouched) -> Result<()> {
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
    // Rows of 16 bits. A line that two of them share would have two readers.
    let is_lines = (2 * args.hidden).is_multiple_of(LINE) && args.y.ptr().raw().is_multiple_of(LINE as u64);
    let discards = vouched.y_is_dead && is_lines;
    if discards {
        stream.uses(args.y.memory(), Access::Write)?;
    }

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
        routing_is_settled: vouched.routing_is_settled,
        adds: args.adds,
        discards,
    };
    let (blocks, segments) = warp_rows(stream.device(), tokens, columns);
    let grid = Grid::from((segments, blocks));
    // SAFETY: every array was checked to have its extent on this device. Of `inverse` the kernel follows what
    // is below `*valid_rows`, which the permutation keeps within its P rows, those of `y`, if its lists are
    // unchanged. Rows are discarded where the caller has vouched for it, and that they are whole lines was
    // checked.
    unsafe { stream.device().launch_over(stream, &kernel, grid, &arguments, &args.permutation.unchanged()) }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::{Unpermute, unpermute, unpermute_and_discard};
    use crate::gpu::buffer::Buffer;
    use crate::gpu::device::Device;
    use crate::ops::permute::{Permute, PermutePath, PermuteShape, permute};
    use crate::ops::quantize::{Activations, ActivationsMut};

    /// Sums rows of `hidden` columns that begin `offset` elements into an allocation, and discards them.
    /// Returns the rows below the valid ones' number that are as they were, and that number.
    fn discarded<T: bytemuck::Pod + PartialEq, O: bytemuck::Pod + PartialEq>(
        device: &Device,
        [top_k, hidden, offset]: [usize; 3],
        element: impl Fn(f32) -> T,
    ) -> (usize, usize)
    where
        for<'a> Activations<'a>: From<crate::Slice<'a, T>>,
        for<'a> ActivationsMut<'a>: From<&'a mut Buffer<O>>,
    {
        let (tokens, experts, stream) = (7, 64, device.default_stream());
        let shape = PermuteShape { tokens, top_k, experts, local_experts: 40, alignment: 1 };
        let ids: Vec<i32> = (0..tokens * top_k).map(|slot| (slot * 29 % experts) as i32).collect();
        let map: Vec<i32> = (0..experts as i32).map(|expert| if expert < 40 { expert } else { -1 }).collect();
        let [ids, map] = [ids, map].map(|list| device.upload(&list).expect("memory"));
        let mut offsets = device.zeros(41).expect("memory");
        let [mut sorted_rows, mut inverse] = [0; 2].map(|_| device.zeros(tokens * top_k).expect("memory"));
        let rows = shape.capacity();
        let numbers = (0..offset + rows * hidden).map(|i| element((i * 37 % 101) as f32 - 50.0));
        let y = device.upload(&numbers.collect::<Vec<T>>()).expect("memory");
        let before = y.to_vec(&stream).expect("a copy");
        let args = Permute {
            topk_ids: ids.as_slice(),
            expert_map: Some(map.as_slice()),
            expert_offsets: offsets.as_mut_slice(),
            sorted_rows: sorted_rows.as_mut_slice(),
            inverse: inverse.as_mut_slice(),
            row_experts: None,
            problem_sizes: None,
            tile_schedule: None,
            path: PermutePath::Auto,
        };
        let permutation = permute(&stream, shape, args).expect("a permutation");
        let sum = |discards| {
            let mut out: Buffer<O> = device.zeros(tokens * hidden).expect("memory");
            let args = Unpermute {
                y: y.slice(offset..).into(),
                topk_weights: None,
                addend: None,
                permutation: &permutation,
                hidden,
                out: (&mut out).into(),
                adds: false,
            };
            // A copy lies between the sort and this.
            if discards {
                // SAFETY: `y` is not read behind this but as bytes, and the sort has made the routing.
                unsafe { unpermute_and_discard(&stream, args) }.expect("sums");
            } else {
                unpermute(&stream, args).expect("sums");
            }
            out.to_vec(&stream).expect("a copy")
        };
        let sums = sum(false);
        assert!(y.to_vec(&stream).expect("a copy") == before, "a caller's rows stay");
        assert!(sum(true) == sums, "k = {top_k}, H = {hidden}, {offset} elements in");
        let valid = offsets.to_vec(&stream).expect("a copy")[40] as usize;
        let after = y.to_vec(&stream).expect("a copy");
        let elements = offset + valid * hidden;
        assert!(after[..offset] == before[..offset] && after[elements..] == before[elements..]);
        let row = |all: &[T], row: usize| all[offset + row * hidden..][..hidden].to_vec();
        let whole = |r: usize| row(&after, r) == row(&before, r);
        let gone = |r: usize| row(&after, r).iter().zip(row(&before, r)).all(|(&now, then)| now != then);
        if device.is_emulated() {
            assert!((0..valid).all(|r| whole(r) || gone(r)), "rows are discarded whole");
        }
        ((0..valid).filter(|&r| whole(r)).count(), valid)
    }

    /// Rows of whole lines are discarded when they have been summed, others never; and the sums are the same.
    #[test]
    fn whole_lines_are_discarded() {
        let device = Device::for_test(None);
        for top_k in [1, 4, 7, 8, 13, 40] {
            for [hidden, offset] in [[64, 0], [192, 64], [256, 0], [320, 128], [72, 0], [128, 8], [31, 1]] {
                let case = [top_k, hidden, offset];
                let stay = [
                    discarded::<bf16, bf16>(&device, case, bf16::from_f32),
                    discarded::<bf16, f32>(&device, case, bf16::from_f32),
                    discarded::<f16, f16>(&device, case, f16::from_f32),
                ];
                for (whole, valid) in stay {
                    assert!(valid > 0 && valid < 7 * top_k, "k = {top_k}: {valid} valid rows");
                    match hidden % 64 == 0 && offset % 64 == 0 {
                        true if device.is_emulated() => assert_eq!(whole, 0, "{case:?}"),
                        true => {}
                        false => assert_eq!(whole, valid, "{case:?}"),
                    }
                }
            }
        }
    }
}
