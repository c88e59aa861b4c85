//! Few rows per expert: the weights are on the M side of `wgmma` and the rows of A are its N = 8, 16, 32 or 64 columns, so that
//! nothing is padded to 64 rows. The work is a stream of weights; what counts is that every SM streams its share of it.
//!
//! ```text
//!   a stage                            product of a warpgroup: two tiles of 64 x N
//!   +--------------------+
//!   | 128 rows of B      |  plain: columns n0 .. n0 + 128 of D              gated: gate of 128 columns
//!   +--------------------+
//!   | 128 rows of B      |  plain: columns n0 + 128 .. n0 + 256             gated: up of the same columns
//!   +--------------------+    warpgroup 0: the upper 64 rows of both, warpgroup 1: the lower
//!   | N rows of A        |
//!   +--------------------+
//! ```
//!
//! Sums are always folded into f32 registers, every 128 of K: there are few of them. How items are cut for the grid is in
//! [`share`].
//!
//! # Before the predecessor has ended
//! With `schedule_is_settled` a block reads its share of the schedule and asks for its first weights and their scales before it waits
//! for the kernel before it. The caller vouches that the number of tiles and the tiles were written by a kernel before that one, and
//! that every thread of that one waits before it signals or exits, which is what makes them visible ([`grid`] says why). Everything
//! else is touched behind the wait: rows and scales, which the predecessor may have written, partial sums and counters, which it may still
//! use (the counters lie beside the number of tiles, but are words of their own), and the output.

mod consume;
mod produce;
mod requantize;
mod share;
mod store;

use cuda_std::{grid, kernel, thread};

use super::gated::{GatedArguments, Requantization};
use super::plain::PlainArguments;
use super::ring::{Position, Ring};
use super::slab_scales::SlabScales;
use super::token_sums::TokenSums;
use super::{CONSUMER_WARPS, CONSUMERS, ROWS_128};

/// Threads of a block: the consumers and the producer warp.
const THREADS: u32 = CONSUMERS + 32;
use crate::grouped_gemm::scale_arguments::ScaleArguments;
use crate::grouped_gemm::{SLAB, TOKEN_SUMS};
use consume::Columns;
use produce::Producer;
use share::{Parts, Share};

/// Columns of D of a plain item; a gated one has half as many of the intermediate.
const BN: u32 = 256;

/// Bytes of a stage for N rows of A.
const fn stage_bytes(n: u32) -> u32 {
    2 * ROWS_128 + n * SLAB
}

macro_rules! plain {
    ($name:ident, $n:literal, $registers:literal, $stages:literal) => {
        #[doc = concat!("D in items of 256 columns x ", stringify!($n), " rows. All scales.")]
        ///
        /// `a`: boxes of 8 rows; `b`: boxes of 128 rows. `partials`: for every block of the grid
        #[doc = concat!("twice 256 x ", stringify!($n), " f32; counters of the schedule are at 0, and are left so. ")]
        /// `schedule_is_settled`: see [`narrow`](self).
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(threads = THREADS, wgmma_n = $n, overlap = within)]
        pub unsafe fn $name(
            a: TensorMap,
            b: TensorMap,
            a_slab_scales: TensorMap,
            a_scale: *const f32,
            b_scale: *const f32,
            schedule: *mut [u32; 4],
            partials: *mut [f32; 4],
            out: *mut u8,
            n: u32,
            k: u32,
            a_scale_kind: u32,
            b_scale_kind: u32,
            out_type: u32,
            sorted_rows: *const i32,
            topk_weights: *const f32,
            slots: u32,
            top_k: u32,
            schedule_is_settled: u32,
        ) {
            let scales = ScaleArguments::of_whole_sums(a_scale, a_scale_kind, b_scale, b_scale_kind);
            let slab_scales =
                SlabScales { a: a_slab_scales, a_kind: a_scale_kind, b: b_scale, b_kind: b_scale_kind };
            let tokens = TokenSums { sorted_rows, topk_weights, slots, top_k };
            let arguments = PlainArguments { scales, slab_scales, out, n, k, out_type, tokens };
            // SAFETY: the kernel's contract. Warps 0 to 7 and warp 8 take different branches for good, and each role executes
            // its collective operations with whole warps; branches depend on the schedule and the block alone. Stages pass
            // between the roles by the ring's barriers alone.
            unsafe {
                produce::prefetch_maps(a, b, &slab_scales);
                let ring = Ring::<$stages, { stage_bytes($n) }, true, 1>::new();
                produce::clear_rows::<$n, $stages, _>(&ring);
                if schedule_is_settled == 0 {
                    grid::wait();
                }
                let mut share = Share::new(schedule, n.div_ceil(BN), k.div_ceil(SLAB));
                if thread::warp_id() == CONSUMER_WARPS {
                    let mut producer = Producer::<$n, $stages, { stage_bytes($n) }>::new(ring, a, b, slab_scales);
                    producer.begin(share, |part| arguments.weights(part.expert, part.column * BN));
                    grid::wait();
                    grid::launch_dependents();
                    while let Some(part) = share.next() {
                        let weights = arguments.weights(part.expert, part.column * BN);
                        producer.fill(&part, weights);
                    }
                    return;
                }
                grid::wait();
                grid::launch_dependents();
                let columns = Columns::new(ring.stage(0));
                let parts = Parts::new(schedule, partials, ring.end());
                let mut position = Position::START;
                while let Some(part) = share.next() {
                    let mut totals;
                    (totals, position) =
                        consume::sums::<[f32; $registers], $n, $stages, _>(&ring, position, &part, &columns, &slab_scales);
                    // Sums by token take a part as well as the whole.
                    let by_token = out_type == TOKEN_SUMS;
                    if by_token || share.is_whole(&part) || parts.complete(&share, &part, &mut totals) {
                        store::store(&totals, &part, &columns, &arguments);
                    }
                }
            }
        }
    };
}

plain!(hopper_narrow_8, 8, 4, 6);
plain!(hopper_narrow_16, 16, 8, 6);
plain!(hopper_narrow_32, 32, 16, 6);
plain!(hopper_narrow_64, 64, 32, 5);

macro_rules! gated {
    ($name:ident, $n:literal, $registers:literal, $stages:literal) => {
        #[doc = concat!("128 columns of the intermediate x ", stringify!($n), " rows: gate and up, activation, e4m3. All scales.")]
        ///
        /// `a`: boxes of 8 rows; `b`: boxes of 128 rows of w13 `[experts, 2 * intermediate, k]`. Out: see
        /// [`Requantization`]; `partials`, counters and `schedule_is_settled` as the plain kernels have them. With block scales,
        /// `intermediate` is a multiple of 128.
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(threads = THREADS, wgmma_n = $n, overlap = within)]
        pub unsafe fn $name(
            a: TensorMap,
            b: TensorMap,
            a_slab_scales: TensorMap,
            a_scale: *const f32,
            b_scale: *const f32,
            schedule: *mut [u32; 4],
            partials: *mut [f32; 4],
            q: *mut u8,
            given_scale: *const f32,
            q_scales: *mut f32,
            q_row_stride: u64,
            q_group_stride: u64,
            intermediate: u32,
            k: u32,
            a_scale_kind: u32,
            b_scale_kind: u32,
            activation: u32,
            schedule_is_settled: u32,
        ) {
            let scales = ScaleArguments::of_whole_sums(a_scale, a_scale_kind, b_scale, b_scale_kind);
            let slab_scales =
                SlabScales { a: a_slab_scales, a_kind: a_scale_kind, b: b_scale, b_kind: b_scale_kind };
            let out = Requantization {
                q,
                intermediate,
                activation,
                given_scale,
                scales: q_scales,
                row_stride: q_row_stride,
                group_stride: q_group_stride,
            };
            let arguments = GatedArguments { scales, slab_scales, out, k };
            // SAFETY: as in the plain kernels.
            unsafe {
                produce::prefetch_maps(a, b, &slab_scales);
                let ring = Ring::<$stages, { stage_bytes($n) }, true, 1>::new();
                produce::clear_rows::<$n, $stages, _>(&ring);
                if schedule_is_settled == 0 {
                    grid::wait();
                }
                let mut share = Share::new(schedule, intermediate.div_ceil(BN / 2), k.div_ceil(SLAB));
                if thread::warp_id() == CONSUMER_WARPS {
                    let mut producer = Producer::<$n, $stages, { stage_bytes($n) }>::new(ring, a, b, slab_scales);
                    producer.begin(share, |part| arguments.weights(part.expert, part.column * (BN / 2)));
                    grid::wait();
                    grid::launch_dependents();
                    while let Some(part) = share.next() {
                        let weights = arguments.weights(part.expert, part.column * (BN / 2));
                        producer.fill(&part, weights);
                    }
                    return;
                }
                grid::wait();
                grid::launch_dependents();
                let columns = Columns::new(ring.stage(0));
                let parts = Parts::new(schedule, partials, ring.end());
                let mut position = Position::START;
                while let Some(part) = share.next() {
                    let mut totals;
                    (totals, position) =
                        consume::sums::<[f32; $registers], $n, $stages, _>(&ring, position, &part, &columns, &slab_scales);
                    if share.is_whole(&part) || parts.complete(&share, &part, &mut totals) {
                        requantize::store::<_, $n>(&totals, &part, &columns, &arguments, Parts::end(ring.end()));
                    }
                }
            }
        }
    };
}

gated!(hopper_narrow_gated_8, 8, 4, 6);
gated!(hopper_narrow_gated_16, 16, 8, 6);
gated!(hopper_narrow_gated_32, 32, 16, 6);
gated!(hopper_narrow_gated_64, 64, 32, 5);
