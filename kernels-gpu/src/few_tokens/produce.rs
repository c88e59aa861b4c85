//! The producer warp: fills stages with a unit's weights, by bulk copies, and with their scales, by `cp.async`.
//!
//! A stage is full when its bytes have come and every lane's copies of scales have landed. Neither is waited
//! for here: the warp waits for free stages alone.

use cuda_std::code::Flag;
use cuda_std::l2::Policy;
use cuda_std::warp::FULL_MASK;
use cuda_std::{bulk, cp_async, mbarrier, sync, thread};

use super::memory::{Memory, Position};
use super::tiles::Unit;
use super::{FEW_STAGE_K, Projection};
use crate::abi::BScaleKind;

/// Fills stages from `position` on with a unit; returns the place after them. All lanes of the producer warp
/// call it together.
///
/// # Safety
/// The contract of the kernel, for a unit of the projection.
#[inline(always)]
pub unsafe fn fill(
    projection: &Projection,
    packed: Flag,
    unit: &Unit,
    memory: &Memory,
    mut position: Position,
) -> Position {
    let Projection { half_rows, stage_k, .. } = *projection;
    let lane = thread::lane_id();
    // Weights are read once, and leave L2 first.
    let once = Policy::evict_first();
    let mut at = unit.k;
    while at < unit.k_end {
        let bytes = u32::min(unit.k_end - at, stage_k);
        memory.wait_empty(position);
        let full = memory.full(position.stage);
        // SAFETY: the stage is free, has room for the unit's rows and for a scale of each row, or of each half
        // and group; the barrier expects the bytes before any are asked for. Rows, and scales by the kind's
        // number, exist.
        unsafe {
            scales(projection, unit, at, bytes, memory, position);
            mbarrier::arrive_after_copies(full);
            if lane == 0 {
                mbarrier::arrive_expect_tx(full, 2 * half_rows * bytes);
            }
            sync::warp(FULL_MASK);
            let lines = if packed.is_set() {
                Lines::packed(projection, unit, at, bytes)
            } else {
                Lines::of_rows(projection, unit, at, bytes)
            };
            let mut line = lane;
            while line < lines.count {
                let to = memory.stage(position) + line * lines.bytes;
                bulk::load_hinted(to, lines.address(line), lines.bytes, full, once);
                line += 32;
            }
        }
        at += bytes;
        position = memory.next(position);
    }
    position
}

/// The copies that make a stage, one behind the other in it. In memory each second one lies `far` behind the
/// one before, or the second half of them does, and from one to the next of a half it is `near`.
struct Lines {
    first: *const u8,
    count: u32,
    /// Bytes of one.
    bytes: u32,
    /// Bytes from a line of the first half to that of the second.
    far: u64,
    /// Bytes from a line of a half to the next.
    near: u64,
    /// Lines of the first half that come before the first of the second.
    run: u32,
}

impl Lines {
    /// Rows as a checkpoint has them: by the piece, or where a row is one piece, by the half.
    #[inline(always)]
    fn of_rows(projection: &Projection, unit: &Unit, at: u32, bytes: u32) -> Self {
        let Projection { weights, k, rows, half_rows, half_distance, .. } = *projection;
        let is_whole = bytes == k;
        let row = (unit.expert * rows + unit.row) as usize;
        let run = if is_whole { 1 } else { half_rows };
        Self {
            first: weights.wrapping_add(row * k as usize + at as usize),
            count: 2 * run,
            bytes: if is_whole { half_rows * bytes } else { bytes },
            far: u64::from(half_distance) * u64::from(k),
            near: u64::from(k),
            run,
        }
    }

    /// Packed weights (`gemm/hopper/weights.rs` draws them): a slab of a half, or of both where they are
    /// neighbours.
    #[inline(always)]
    fn packed(projection: &Projection, unit: &Unit, at: u32, bytes: u32) -> Self {
        /// Lines of a slab of a whole item, of which gate, or the first 128 rows, are half.
        const ITEM: u32 = 256;
        let Projection { weights, k, rows, half_rows, half_distance, .. } = *projection;
        let are_neighbours = half_distance == half_rows;
        let row =
            if are_neighbours { unit.row } else { unit.row / (ITEM / 2) * ITEM + unit.row % (ITEM / 2) };
        let item = row / ITEM * ITEM;
        let height = u32::min(rows - item, ITEM);
        let line = u64::from(unit.expert * rows + item) * u64::from(k / 128)
            + u64::from(at / 128 * height + row - item);
        let slabs = bytes / 128;
        Self {
            first: weights.wrapping_add(line as usize * 128),
            count: if are_neighbours { slabs } else { 2 * slabs },
            bytes: if are_neighbours { 2 * half_rows * 128 } else { half_rows * 128 },
            far: if are_neighbours { u64::from(height) * 128 } else { u64::from(ITEM / 2) * 128 },
            near: if are_neighbours { 2 * u64::from(height) * 128 } else { u64::from(height) * 128 },
            run: 1,
        }
    }

    /// Where line `line` comes from.
    #[inline(always)]
    fn address(&self, line: u32) -> *const u8 {
        // By half and number in it: rows lie half behind half, slabs half beside half.
        let (half, number) =
            if self.run == 1 { (line % 2, line / 2) } else { (line / self.run, line % self.run) };
        let offset = u64::from(half) * self.far + u64::from(number) * self.near;
        self.first.wrapping_add(offset as usize)
    }
}

/// Copies the scales of a stage into its slot: of blocks, those of both halves for each 128 of K,
///
/// ```text
///   first half: 16 groups | second half: 16 groups
/// ```
///
/// else, with the last stage of a unit, one for each of its rows.
///
/// # Safety
/// As [`fill`]; the stage is free.
#[inline(always)]
unsafe fn scales(
    projection: &Projection,
    unit: &Unit,
    at: u32,
    bytes: u32,
    memory: &Memory,
    position: Position,
) {
    let Projection { weight_scales, weight_scale_kind, k, rows, half_rows, half_distance, .. } = *projection;
    let (lane, slot) = (thread::lane_id(), memory.slot(position));
    let copy = |to: u32, from: usize| {
        // SAFETY: the caller's contract: the scale exists, and the slot is free.
        unsafe { cp_async::copy4_zfill(slot.add(to).address(), weight_scales.add(from).cast(), true) }
    };
    if weight_scale_kind.is(BScaleKind::Block) {
        const GROUPS: u32 = FEW_STAGE_K / 128;
        let (half, group) = (lane / GROUPS, lane % GROUPS);
        if group * 128 < bytes {
            let block = unit.expert * rows.div_ceil(128) + (unit.row + half * half_distance) / 128;
            copy(lane, block as usize * k.div_ceil(128) as usize + (at / 128 + group) as usize);
        }
        return;
    }
    if at + bytes < unit.k_end {
        return;
    }
    let mut row = lane;
    while row < 2 * half_rows {
        if weight_scale_kind.is(BScaleKind::Channel) {
            let within = if row < half_rows { row } else { row - half_rows + half_distance };
            copy(row, (unit.expert * rows + unit.row + within) as usize);
        } else {
            copy(row, unit.expert as usize);
        }
        row += 32;
    }
}
