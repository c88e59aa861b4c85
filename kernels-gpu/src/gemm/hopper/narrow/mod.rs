//! Few rows per expert: the weights are on the M side of `wgmma` and the rows of A are its N = 8, 16 or 32
//! columns, so that nothing is padded to 64 rows. The work is a stream of weights; what counts is that every
//! SM streams its share of it. Tiles of up to 32 rows take the lowest N that their rows fit into: where rows
//! are uneven, fewer experts have a second tile, for which their weights are streamed again.
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
//! Sums are always folded into f32 registers, every 128 of K: there are few of them. How items are cut for
//! the grid is in [`share`].
//!
//! # Before the predecessor has ended
//! With `schedule_is_settled` a block reads its share of the schedule and asks for its first weights and
//! their scales before it waits for the kernel before it. The caller vouches that the number of tiles and the
//! tiles were written by a kernel before that one, and that every thread of that one waits before it signals
//! or exits, which is what makes them visible ([`grid`] says why). Everything else is touched behind the
//! wait: rows and scales, which the predecessor may have written, partial sums and counters, which it may
//! still use (the counters lie beside the number of tiles, but are words of their own), and the output.

mod consume;
mod produce;
mod requantize;
mod share;
mod store;

use cuda_std::{grid, host, kernel, thread};

use super::arguments::{HopperGated, HopperGemm};
use super::ring::{Position, Ring, Shape};
use super::{CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS, ROWS_128};
use crate::abi::{GemmTile, OutType, SLAB};
use consume::Columns;
use produce::{BOX_ROWS, Producer};
use share::{Parts, Share};

/// Threads of a block: the consumers and the producer warp.
const THREADS: u32 = CONSUMERS + 32;

/// Columns of D of a plain item; a gated one has half as many of the intermediate.
const BN: u32 = 2 * GATED_COLUMNS;

/// The ring of the kernels of tiles of up to `N` rows.
#[derive(Clone, Copy)]
struct Narrow<const N: u32>;

impl<const N: u32> Shape for Narrow<N> {
    const STAGES: u32 = STAGES;
    const A_ROWS: u32 = N;
    const SCALED: bool = true;
    const BLOCKS: u32 = 1;
    const COPIERS: u32 = 0;
}

/// From which byte of a stage on copies may leave something out: rows of A, where a box has fewer than the
/// tile's `N`, and of B too where an item is `short`.
const fn cleared<const N: u32>(short: bool) -> u32 {
    match (short, N == BOX_ROWS) {
        (true, _) => 0,
        (false, true) => Narrow::<N>::STAGE_BYTES,
        (false, false) => 2 * ROWS_128,
    }
}

/// Bytes of the sums of an item that were cut: for its head and for its tail, f32.
const fn partial_bytes(n: u32) -> u32 {
    2 * BN * n * 4
}

/// Dynamic shared memory: the ring, and what the consumers exchange behind it.
const fn shared_bytes<const N: u32>() -> u32 {
    Ring::<Narrow<N>>::BYTES + share::SHARED_BYTES + requantize::shared_bytes(N)
}

/// Stages of the ring. On an H200 five and six are 0.5 to 1 % slower.
const STAGES: u32 = 4;

/// Up to 8 rows.
#[host]
pub const NARROW_8: GemmTile = GemmTile {
    rows: 8,
    columns: BN,
    stages: STAGES,
    operand_bytes: Narrow::<8>::STAGE_BYTES,
    a_box_rows: BOX_ROWS,
    partial_bytes: partial_bytes(8),
};
/// Up to 16 rows.
#[host]
pub const NARROW_16: GemmTile = GemmTile {
    rows: 16,
    columns: BN,
    stages: STAGES,
    operand_bytes: Narrow::<16>::STAGE_BYTES,
    a_box_rows: BOX_ROWS,
    partial_bytes: partial_bytes(16),
};

/// Up to 32 rows: products of 8, 16 or 32, by the rows that a tile has.
#[host]
pub const NARROW_32: GemmTile = GemmTile {
    rows: 32,
    columns: BN,
    stages: STAGES,
    operand_bytes: Narrow::<32>::STAGE_BYTES,
    a_box_rows: BOX_ROWS,
    partial_bytes: partial_bytes(32),
};

/// `$item!(registers)` for the lowest product that takes the part's rows: of those of up to so many rows,
/// each with the registers that a thread has of it, else of the highest.
macro_rules! by_height {
    ($part:expr, [$($most:literal: $lower:literal,)*] $highest:literal, $item:ident) => {
        $(if $part.rows <= $most { $item!($lower) } else)* { $item!($highest) }
    };
}

// rustfmt would indent the attribute further each time.
#[rustfmt::skip]
macro_rules! plain {
    ($name:ident, $n:literal, $wgmma_n:tt, $lower:tt $registers:literal) => {
        #[doc = concat!("D in items of 256 columns x ", stringify!($n), " rows. All scales.")]
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(
            threads = THREADS,
            wgmma_n = $wgmma_n,
            overlap = within,
            shared = shared_bytes::<$n>()
        )]
        pub unsafe fn $name(arguments: HopperGemm) {
            let HopperGemm { a, schedule, partials, n, k, schedule_is_settled, .. } = arguments;
            let (b, slab_scales) = (arguments.matrix(), arguments.slab_scales());
            // SAFETY: the kernel's contract. Warps 0 to 7 and warp 8 take different branches for good, and
            // each role executes its collective operations with whole warps; branches depend on the schedule
            // and the block alone. Stages pass between the roles by the ring's barriers alone.
            unsafe {
                produce::prefetch_maps(a, &b, &slab_scales);
                let ring =
                    Ring::<Narrow<$n>>::new(cleared::<$n>(b.may_be_short(n, BN)));
                if schedule_is_settled.is_clear() {
                    grid::wait();
                }
                let mut share = Share::new(schedule, n.div_ceil(BN), k.div_ceil(SLAB));
                if thread::warp_id() == CONSUMER_WARPS {
                    let mut producer = Producer::new(ring, a, b, slab_scales);
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
                let parts = Parts::<$n>::new(schedule, partials, ring.end());
                let mut position = Position::START;
                while let Some(part) = share.next() {
                    let first = store::first_columns(&part, &columns);
                    let scales = consume::column_scales(&arguments.scales, part.expert, first, n);
                    macro_rules! item {
                        ($r:literal) => {{
                            let mut totals;
                            (totals, position) = consume::sums::<[f32; $r], _>(
                                &ring, position, &part, &columns, &slab_scales,
                            );
                            // Sums by token take a part as well as the whole.
                            let by_token = arguments.out_type.is(OutType::TokenSums);
                            if by_token || share.is_whole(&part) || parts.complete(&share, &part, &mut totals) {
                                store::store(&totals, &part, scales, &columns, &arguments);
                            }
                        }};
                    }
                    by_height!(part, $lower $registers, item);
                }
            }
        }
    };
}

plain!(hopper_narrow_8, 8, [8], [] 4);
plain!(hopper_narrow_16, 16, [16], [] 8);
plain!(hopper_narrow_32, 32, [8, 16, 32], [8: 4, 16: 8,] 16);

// rustfmt would indent the attribute further each time.
#[rustfmt::skip]
macro_rules! gated {
    ($name:ident, $n:literal, $wgmma_n:tt, $lower:tt $registers:literal) => {
        #[doc = concat!("128 columns of the intermediate x ", stringify!($n), " rows: gate and up, activation, e4m3. All scales.")]
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(
            threads = THREADS,
            wgmma_n = $wgmma_n,
            overlap = within,
            shared = shared_bytes::<$n>()
        )]
        pub unsafe fn $name(launch: HopperGated) {
            let HopperGated { a, scales, schedule, partials, out, intermediate, k, schedule_is_settled, .. } =
                launch;
            let (b, slab_scales) = (launch.matrix(), launch.slab_scales());
            let arguments = launch.end(slab_scales);
            // SAFETY: as in the plain kernels.
            unsafe {
                produce::prefetch_maps(a, &b, &slab_scales);
                let ring = Ring::<Narrow<$n>>::new(cleared::<$n>(b.may_be_short(intermediate, GATED_COLUMNS)));
                if schedule_is_settled.is_clear() {
                    grid::wait();
                }
                let mut share = Share::new(schedule, intermediate.div_ceil(GATED_COLUMNS), k.div_ceil(SLAB));
                if thread::warp_id() == CONSUMER_WARPS {
                    let mut producer = Producer::new(ring, a, b, slab_scales);
                    producer.begin(share, |part| arguments.weights(part.expert, part.column * GATED_COLUMNS));
                    grid::wait();
                    grid::launch_dependents();
                    while let Some(part) = share.next() {
                        let weights = arguments.weights(part.expert, part.column * GATED_COLUMNS);
                        producer.fill(&part, weights);
                    }
                    return;
                }
                grid::wait();
                grid::launch_dependents();
                let columns = Columns::new(ring.stage(0));
                let parts = Parts::<$n>::new(schedule, partials, ring.end());
                let mut position = Position::START;
                let all = intermediate + out.gating.up;
                while let Some(part) = share.next() {
                    let first = requantize::first_columns(&part, &columns, &arguments);
                    let scales = consume::column_scales(&scales, part.expert, first, all);
                    macro_rules! item {
                        ($r:literal) => {{
                            let mut totals;
                            (totals, position) = consume::sums::<[f32; $r], _>(
                                &ring, position, &part, &columns, &slab_scales,
                            );
                            if share.is_whole(&part) || parts.complete(&share, &part, &mut totals) {
                                let exchange = Parts::<$n>::end(ring.end());
                                requantize::store::<_, $n>(&totals, &part, scales, &columns, &arguments, exchange);
                            }
                        }};
                    }
                    by_height!(part, $lower $registers, item);
                }
            }
        }
    };
}

gated!(hopper_narrow_gated_8, 8, [8], [] 4);
gated!(hopper_narrow_gated_16, 16, [16], [] 8);
gated!(hopper_narrow_gated_32, 32, [8, 16, 32], [8: 4, 16: 8,] 16);
