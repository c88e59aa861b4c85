//! The producer warp: fills stages with a unit's weights, by bulk copies, and with their scales, by
//! `cp.async`.
//!
//! A stage is full when its bytes have come and every lane's copies of scales have landed. Neither is waited
//! for here: the warp waits for free stages alone.

use cuda_std::l2::Policy;
use cuda_std::shared::Shared;
use cuda_std::warp::{FULL_MASK, elect};
use cuda_std::{bulk, cp_async, mbarrier, sync, thread};

use super::layout::Layout;
use super::memory::Memory;
use super::queue::Unit;
use super::{FEW_STAGE_K, Projection};
use crate::abi::BScaleKind;
use crate::gemm::hopper::ring::Position;

/// Fills stages from `position` on with a unit of `expert`; returns the place after them. All lanes of the
/// producer warp call it together.
///
/// # Safety
/// The contract of the kernel, for a unit of the projection.
#[inline(always)]
pub unsafe fn fill<L: Layout>(
    projection: &Projection,
    unit: &Unit,
    expert: u32,
    memory: &Memory,
    mut position: Position,
) -> Position {
    let Projection { half_rows, stage_k, .. } = *projection;
    // Weights are read once, and leave L2 first.
    let once = Policy::evict_first();
    let (start, end) = projection.part(unit.part);
    let scales = Scales::new(projection, unit, expert);
    let weights = if L::IS_PACKED {
        Weights::packed(projection, unit, expert)
    } else {
        Weights::of_rows(projection, unit, expert)
    };
    let mut at = start;
    while at < end {
        let bytes = u32::min(end - at, stage_k);
        let copies = weights.copies::<L>(projection, at, bytes);
        memory.wait_empty(position);
        let full = memory.full(position.stage);
        // SAFETY: the stage is free, has room for the unit's rows and for a scale of each row, or of each
        // half and group; the barrier expects the bytes before any are asked for. Rows, and scales by the
        // kind's number, exist.
        unsafe {
            if elect() {
                mbarrier::arrive_expect_tx(full, 2 * half_rows * bytes);
                let (mut to, mut from, mut copy) = (memory.stage(position), copies.first, 0);
                while copy < copies.count {
                    bulk::load_hinted(to, from, copies.bytes, full, once);
                    copy += 1;
                    (to, from) = (to + copies.bytes, from.wrapping_add(copies.near));
                    if copy & copies.mask == 0 {
                        from = from.wrapping_add(copies.jump);
                    }
                }
            }
            sync::warp(FULL_MASK);
            scales.copy(at, bytes, at + bytes == end, memory.slot(position));
            mbarrier::arrive_after_copies(full);
        }
        at += bytes;
        position = memory.next(position);
    }
    position
}

/// Fills a stage with nothing: the end of the queue comes with it. All lanes of the producer warp call it
/// together.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn fill_nothing(memory: &Memory, position: Position) {
    memory.wait_empty(position);
    let full = memory.full(position.stage);
    // SAFETY: an initialised barrier, in a phase that nobody has arrived in.
    unsafe {
        if elect() {
            mbarrier::arrive_expect_tx(full, 0);
        }
        sync::warp(FULL_MASK);
        mbarrier::arrive_after_copies(full);
    }
}

/// The copies that make a stage, one behind the other in it. In memory they lie in runs.
struct Copies {
    first: *const u8,
    count: u32,
    /// Copies of a run, less 1: of a power of two.
    mask: u32,
    /// Bytes of one.
    bytes: u32,
    /// Bytes from one to the next of a run.
    near: usize,
    /// Bytes from there to the next run.
    jump: usize,
}

/// Where a unit's weights are: the first copy at K = 0, and what lies between copies.
struct Weights {
    first: *const u8,
    /// Bytes from half to half, or of packed weights from slab to slab, which both halves share evenly.
    far: usize,
    /// Bytes from row to row; of packed weights unused.
    near: usize,
}

impl Weights {
    /// Rows as a checkpoint has them: half by half, row by row.
    #[inline(always)]
    fn of_rows(projection: &Projection, unit: &Unit, expert: u32) -> Self {
        let Projection { weights, k, rows, half_distance, .. } = *projection;
        let (row, k) = ((expert * rows + unit.row) as usize, k as usize);
        let first = weights.wrapping_add(row * k);
        Self { first, far: half_distance as usize * k, near: k }
    }

    /// Packed weights (`gemm/hopper/weights.rs` draws them): slab by slab, half by half.
    #[inline(always)]
    fn packed(projection: &Projection, unit: &Unit, expert: u32) -> Self {
        let Projection { weights, k, rows, .. } = *projection;
        let row = if projection.has_neighbours() {
            unit.row
        } else {
            unit.row / (ITEM / 2) * ITEM + unit.row % (ITEM / 2)
        };
        let item = row / ITEM * ITEM;
        let line = (expert * rows + item) as usize * (k / 128) as usize + (row - item) as usize;
        let height = u32::min(rows - item, ITEM) as usize;
        let first = weights.wrapping_add(line * 128);
        Self { first, far: height * 128, near: 0 }
    }

    /// Those of `bytes` bytes of K from `at` on.
    #[inline(always)]
    fn copies<L: Layout>(&self, projection: &Projection, at: u32, bytes: u32) -> Copies {
        let Self { first, far, near } = *self;
        let half_rows = projection.half_rows;
        if L::IS_PACKED {
            let (slab, slabs) = (at as usize / 128, bytes / 128);
            let first = first.wrapping_add(slab * far);
            let halves = if projection.has_neighbours() { 1 } else { 2 };
            let bytes = 2 / halves * half_rows * 128;
            Copies { first, count: halves * slabs, mask: 0, bytes, near: far / halves as usize, jump: 0 }
        } else if bytes == projection.k {
            // Rows are neighbours: each half is one line.
            Copies { first, count: 2, mask: 0, bytes: half_rows * bytes, near: far, jump: 0 }
        } else {
            let (first, mask) = (first.wrapping_add(at as usize), half_rows - 1);
            let jump = far - half_rows as usize * near;
            Copies { first, count: 2 * half_rows, mask, bytes, near, jump }
        }
    }
}

/// Lines of a slab of a whole item of packed weights: gate and up of 128 columns, or 256 rows.
const ITEM: u32 = 256;

impl Projection {
    /// Whether the halves of a unit are neighbours, as those of GEMM 2 are.
    #[inline(always)]
    fn has_neighbours(&self) -> bool {
        self.half_distance == self.half_rows
    }
}

/// The scales of a unit. In a stage's slot lie those of blocks, of both halves for each 128 of K,
///
/// ```text
///   first half: 16 groups | second half: 16 groups
/// ```
///
/// or, with the last stage of a unit, one for each of its rows.
struct Scales {
    /// That of this lane: of its half and group for K = 0, or of the lane's row.
    first: *const f32,
    /// Scales from there to that of the same row of the second half.
    distance: usize,
    half_rows: u32,
    has_blocks: bool,
    has_channels: bool,
}

/// Groups of K of a half in a slot.
const GROUPS: u32 = FEW_STAGE_K / 128;

impl Scales {
    #[inline(always)]
    fn new(projection: &Projection, unit: &Unit, expert: u32) -> Self {
        let Projection { weight_scales, weight_scale_kind, k, rows, half_rows, half_distance, .. } =
            *projection;
        let lane = thread::lane_id();
        let (has_blocks, has_channels) =
            (weight_scale_kind.is(BScaleKind::Block), weight_scale_kind.is(BScaleKind::Channel));
        let first = if has_blocks {
            let (half, group) = (lane / GROUPS, lane % GROUPS);
            let block = expert * rows.div_ceil(128) + (unit.row + half * half_distance) / 128;
            block as usize * k.div_ceil(128) as usize + group as usize
        } else if has_channels {
            (expert * rows + unit.row + lane) as usize
        } else {
            expert as usize
        };
        let distance = half_distance as usize;
        Self { first: weight_scales.wrapping_add(first), distance, half_rows, has_blocks, has_channels }
    }

    /// Copies those of a stage into its slot.
    ///
    /// # Safety
    /// As [`fill`]; the slot's stage is free.
    #[inline(always)]
    unsafe fn copy(&self, at: u32, bytes: u32, is_last: bool, slot: Shared<f32>) {
        let lane = thread::lane_id();
        let copy = |to: u32, from: *const f32| {
            // SAFETY: the caller's contract: the scale exists, and the slot is free.
            unsafe { cp_async::copy4_zfill(slot.add(to).address(), from.cast(), true) }
        };
        if self.has_blocks {
            if lane % GROUPS * 128 < bytes {
                copy(lane, self.first.wrapping_add(at as usize / 128));
            }
        } else if is_last {
            let mut row = lane;
            while row < self.half_rows {
                let (from, distance) = if self.has_channels {
                    (self.first.wrapping_add((row - lane) as usize), self.distance)
                } else {
                    (self.first, 0)
                };
                copy(row, from);
                copy(self.half_rows + row, from.wrapping_add(distance));
                row += 32;
            }
        }
    }
}
