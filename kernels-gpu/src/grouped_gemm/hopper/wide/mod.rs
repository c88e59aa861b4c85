//! Many rows per expert: an item is 128 rows of A on the M side of `wgmma`, times 128 or 256 columns.
//!
//! ```text
//!   a stage                            columns of D             accumulators of a thread
//!   +-----------------+
//!   | A: 128 rows     |  warpgroup 0: rows 0..64, warpgroup 1: rows 64..128
//!   +-----------------+
//!   | B: BN rows      |  plain, fast         256 columns          128
//!   |                 |  plain, promoted     128 columns           64 + 64 of the running total
//!   |                 |  gated, fast         128 gate | 128 up    128
//!   |                 |  gated, promoted      64 gate | 64 up      64 + 64
//!   +-----------------+
//! ```
//!
//! The gated kernels produce 128 columns of the intermediate, a whole scale group of the second projection: gate and up of a
//! column are in the same thread, and a row's maximum is in the four lanes of a quad. With promotion, 256 accumulators and as
//! many totals do not fit into registers: the item is made in two passes over K of 64 columns each. The first half's values wait in
//! shared memory.
//!
//! Two blocks, a cluster, take neighbouring items: the same rows, side by side. Pairs of items are numbered as
//! [`schedule`](crate::grouped_gemm::schedule) draws it; cluster `c` of `G` takes pairs `c, c + G, ..`. The right one of a pair may lie
//! past the last column; its block multiplies all the same, for the sake of the other.

mod consume;
mod produce;
mod requantize;
mod store;

use cuda_std::{cluster, grid, kernel, thread};

use super::gated::{GatedArguments, Requantization};
use super::ring::{Position, Ring};
use super::{BlockScales, CONSUMER_WARPS, ROWS_64, ROWS_128, THREADS};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::scale_arguments::ScaleArguments;
use crate::grouped_gemm::schedule::WorkList;
use consume::Rows;
use produce::{BoxRows, Producer};

/// Rows of an item.
const BM: u32 = 128;

/// Blocks of a cluster. They have the same rows and neighbouring columns, and share what they read of A, so that less comes through
/// L2, whose rate limits tiles of this size: 128 x 256 takes 40 KiB instead of 48 for every 8.4 MFLOP, 128 x 128 takes 24 instead of
/// 32 for every 4.2.
const BLOCKS: u32 = 2;

const FAST_STAGES: u32 = 4;
const FAST_STAGE_BYTES: u32 = ROWS_128 + 2 * ROWS_128;
type FastRing = Ring<FAST_STAGES, FAST_STAGE_BYTES, false, BLOCKS>;

const PROMOTED_STAGES: u32 = 6;
const PROMOTED_STAGE_BYTES: u32 = ROWS_128 + ROWS_128;
type PromotedRing = Ring<PROMOTED_STAGES, PROMOTED_STAGE_BYTES, true, BLOCKS>;

/// A stage less than [`PromotedRing`]: the room is for the values of the half that is done.
type GatedPromotedRing = Ring<{ PROMOTED_STAGES - 1 }, PROMOTED_STAGE_BYTES, true, BLOCKS>;

/// What the end of a plain kernel needs to know of a launch.
struct PlainArguments {
    scales: ScaleArguments,
    out: *mut u8,
    n: u32,
    out_type: u32,
}

/// D in tiles of 128 x 256, the sum over all of K in the tensor cores.
///
/// `a`: boxes of 64 rows; `b`: boxes of 128 rows. Scales of A per call or row, of B per expert or column.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within)]
pub unsafe fn hopper_wide_fast(
    a: TensorMap,
    b: TensorMap,
    a_scale: *const f32,
    b_scale: *const f32,
    schedule: *const [u32; 4],
    out: *mut u8,
    n: u32,
    k: u32,
    a_scale_kind: u32,
    b_scale_kind: u32,
    out_type: u32,
) {
    let scales = ScaleArguments::along_rows(a_scale, a_scale_kind, b_scale, b_scale_kind);
    let arguments = PlainArguments { scales, out, n, out_type };
    // SAFETY: the kernel's contract. Warps 0 to 7 and warp 8 take different branches for good, and each role executes its
    // collective operations with whole warps. Stages pass between them by the ring's barriers alone.
    unsafe {
        let ring = FastRing::new();
        grid::wait();
        grid::launch_dependents();
        let work = WorkList::new(schedule, n, BM, BLOCKS * 256);
        let own_columns = cluster::rank() * 256;
        let mut item = thread::block_idx_x() / BLOCKS;
        let mut position = Position::START;
        if thread::warp_id() == CONSUMER_WARPS {
            let mut producer = Producer::new(ring, a, b, &arguments.scales, k);
            while item < work.len() {
                let tile = work.tile(item).right(own_columns);
                let row = tile.expert * n + tile.n0;
                producer.fill(&tile, BoxRows { rows: [row, row + 128], bytes: ROWS_128 }, BlockScales::NONE);
                item += thread::grid_dim_x() / BLOCKS;
            }
            ring.leave();
            return;
        }
        let rows = Rows::new(ring.stage(0));
        while item < work.len() {
            let tile = work.tile(item).right(own_columns);
            let total;
            (total, position) = consume::fast(&ring, position, k.div_ceil(SLAB), &rows);
            store::columns_256(&total, &tile, &rows, &arguments);
            item += thread::grid_dim_x() / BLOCKS;
        }
        ring.leave();
    }
}

/// D in tiles of 128 x 128, the sum folded into f32 every 128 of K.
///
/// `a`: boxes of 64 rows; `b`: boxes of 64 rows. All scales.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within)]
pub unsafe fn hopper_wide_promoted(
    a: TensorMap,
    b: TensorMap,
    a_scale: *const f32,
    b_scale: *const f32,
    schedule: *const [u32; 4],
    out: *mut u8,
    a_scale_row_stride: u64,
    a_scale_group_stride: u64,
    n: u32,
    k: u32,
    a_scale_kind: u32,
    b_scale_kind: u32,
    out_type: u32,
) {
    let scales = ScaleArguments {
        a: a_scale,
        a_row_stride: a_scale_row_stride,
        a_group_stride: a_scale_group_stride,
        a_kind: a_scale_kind,
        b: b_scale,
        b_kind: b_scale_kind,
    };
    let arguments = PlainArguments { scales, out, n, out_type };
    // SAFETY: as in `hopper_wide_fast`.
    unsafe {
        let ring = PromotedRing::new();
        ring.fill_constant_scales(&arguments.scales);
        grid::wait();
        grid::launch_dependents();
        let work = WorkList::new(schedule, n, BM, BLOCKS * 128);
        let own_columns = cluster::rank() * 128;
        let mut item = thread::block_idx_x() / BLOCKS;
        let mut position = Position::START;
        if thread::warp_id() == CONSUMER_WARPS {
            let mut producer = Producer::new(ring, a, b, &arguments.scales, k);
            while item < work.len() {
                let tile = work.tile(item).right(own_columns);
                let row = tile.expert * n + tile.n0;
                // Of a tile past the last column, any scale will do.
                let first = arguments.scales.b_block_row(tile.expert, tile.n0.min(n - 1), n, k);
                let blocks = BlockScales { first, distance: 0 };
                producer.fill(&tile, BoxRows { rows: [row, row + 64], bytes: ROWS_64 }, blocks);
                item += thread::grid_dim_x() / BLOCKS;
            }
            ring.leave();
            return;
        }
        let rows = Rows::new(ring.stage(0));
        rows.begin_turns();
        while item < work.len() {
            let tile = work.tile(item).right(own_columns);
            let total;
            (total, position) = consume::promoted(&ring, position, k.div_ceil(SLAB), &rows);
            store::columns_128(&total, &tile, &rows, &arguments);
            item += thread::grid_dim_x() / BLOCKS;
        }
        rows.end_turns();
        ring.leave();
    }
}

/// 128 rows x 128 columns of the intermediate in one pass: gate and up in one `wgmma` of N = 256, activation, e4m3.
///
/// `a`: boxes of 64 rows; `b`: boxes of 128 rows of w13 `[experts, 2 * intermediate, k]`. Scales of A per call or row, of B per
/// expert or column of 2I. Out: see [`Requantization`].
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within)]
pub unsafe fn hopper_wide_gated_fast(
    a: TensorMap,
    b: TensorMap,
    a_scale: *const f32,
    b_scale: *const f32,
    schedule: *const [u32; 4],
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
) {
    let scales = ScaleArguments::along_rows(a_scale, a_scale_kind, b_scale, b_scale_kind);
    let out = Requantization {
        q,
        intermediate,
        activation,
        given_scale,
        scales: q_scales,
        row_stride: q_row_stride,
        group_stride: q_group_stride,
    };
    let arguments = GatedArguments { scales, out, k };
    // SAFETY: as in `hopper_wide_fast`.
    unsafe {
        let ring = FastRing::new();
        grid::wait();
        grid::launch_dependents();
        let work = WorkList::new(schedule, intermediate, BM, BLOCKS * 128);
        let own_columns = cluster::rank() * 128;
        let mut item = thread::block_idx_x() / BLOCKS;
        let mut position = Position::START;
        if thread::warp_id() == CONSUMER_WARPS {
            let mut producer = Producer::new(ring, a, b, &arguments.scales, k);
            while item < work.len() {
                let tile = work.tile(item).right(own_columns);
                let gate = tile.expert * 2 * intermediate + tile.n0;
                producer.fill(
                    &tile,
                    BoxRows { rows: [gate, gate + intermediate], bytes: ROWS_128 },
                    BlockScales::NONE,
                );
                item += thread::grid_dim_x() / BLOCKS;
            }
            ring.leave();
            return;
        }
        let rows = Rows::new(ring.stage(0));
        while item < work.len() {
            let tile = work.tile(item).right(own_columns);
            let total;
            (total, position) = consume::fast(&ring, position, k.div_ceil(SLAB), &rows);
            let values = requantize::columns_128(&total, &tile, 0, &rows, &arguments);
            requantize::store(values, &tile, &rows, &arguments.out);
            item += thread::grid_dim_x() / BLOCKS;
        }
        ring.leave();
    }
}

/// As [`hopper_wide_gated_fast`], folded into f32 every 128 of K, in two passes of 64 columns. All scales.
///
/// `a`: boxes of 64 rows; `b`: boxes of 64 rows. With block scales, `intermediate` is a multiple of 128.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within)]
pub unsafe fn hopper_wide_gated_promoted(
    a: TensorMap,
    b: TensorMap,
    a_scale: *const f32,
    b_scale: *const f32,
    schedule: *const [u32; 4],
    q: *mut u8,
    given_scale: *const f32,
    q_scales: *mut f32,
    a_scale_row_stride: u64,
    a_scale_group_stride: u64,
    q_row_stride: u64,
    q_group_stride: u64,
    intermediate: u32,
    k: u32,
    a_scale_kind: u32,
    b_scale_kind: u32,
    activation: u32,
) {
    let scales = ScaleArguments {
        a: a_scale,
        a_row_stride: a_scale_row_stride,
        a_group_stride: a_scale_group_stride,
        a_kind: a_scale_kind,
        b: b_scale,
        b_kind: b_scale_kind,
    };
    let out = Requantization {
        q,
        intermediate,
        activation,
        given_scale,
        scales: q_scales,
        row_stride: q_row_stride,
        group_stride: q_group_stride,
    };
    let arguments = GatedArguments { scales, out, k };
    // SAFETY: as in `hopper_wide_fast`.
    unsafe {
        let ring = GatedPromotedRing::new();
        ring.fill_constant_scales(&arguments.scales);
        grid::wait();
        grid::launch_dependents();
        let work = WorkList::new(schedule, intermediate, BM, BLOCKS * 128);
        let own_columns = cluster::rank() * 128;
        let mut item = thread::block_idx_x() / BLOCKS;
        let mut position = Position::START;
        if thread::warp_id() == CONSUMER_WARPS {
            let mut producer = Producer::new(ring, a, b, &arguments.scales, k);
            while item < work.len() {
                let tile = work.tile(item).right(own_columns);
                let gate = tile.expert * 2 * intermediate + tile.n0;
                // Of a tile past the last column, any scale will do.
                let column = tile.n0.min(intermediate - 1);
                let first = arguments.scales.b_block_row(tile.expert, column, 2 * intermediate, k);
                let blocks = BlockScales { first, distance: intermediate / 128 * k.div_ceil(SLAB) };
                let mut half = 0;
                while half < 2 {
                    let first = gate + 64 * half;
                    let rows = BoxRows { rows: [first, first + intermediate], bytes: ROWS_64 };
                    producer.fill(&tile, rows, blocks);
                    half += 1;
                }
                item += thread::grid_dim_x() / BLOCKS;
            }
            ring.leave();
            return;
        }
        let rows = Rows::new(ring.stage(0));
        rows.begin_turns();
        let slabs = k.div_ceil(SLAB);
        while item < work.len() {
            let tile = work.tile(item).right(own_columns);
            let mut total;
            (total, position) = consume::promoted(&ring, position, slabs, &rows);
            let low = requantize::columns_64(&total, &tile, 0, &rows, &arguments);
            requantize::put_aside(&low, ring.end());
            (total, position) = consume::promoted(&ring, position, slabs, &rows);
            let high = requantize::columns_64(&total, &tile, 64, &rows, &arguments);
            let low = requantize::take_back(ring.end());
            requantize::store(requantize::join(&low, &high), &tile, &rows, &arguments.out);
            item += thread::grid_dim_x() / BLOCKS;
        }
        rows.end_turns();
        ring.leave();
    }
}
