//! The producer warp: fills stages with a unit's weights, by bulk copies, and with their scales, by `cp.async`.
//!
//! A stage is full when its bytes have come and every lane's copies of scales have landed. Neither is waited
//! for here: the warp waits for free stages alone.

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
pub unsafe fn fill(projection: &Projection, unit: &Unit, memory: &Memory, mut position: Position) -> Position {
    let Projection { weights, k, rows, half_rows, half_distance, .. } = *projection;
    let lane = thread::lane_id();
    // Weights are read once, and leave L2 first.
    let once = Policy::evict_first();
    // The row of the matrices that row `row` of the unit is.
    let row_of = |row: u32| {
        let within = if row < half_rows { row } else { row - half_rows + half_distance };
        unit.expert * rows + unit.row + within
    };
    let address = |row: u32, at: u32| weights.wrapping_add(row_of(row) as usize * k as usize + at as usize);
    let mut at = unit.k;
    while at < unit.k_end {
        let bytes = u32::min(unit.k_end - at, FEW_STAGE_K);
        memory.wait_empty(position);
        let (stage, full) = (memory.stage(position), memory.full(position.stage));
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
            if bytes == k {
                // Rows are neighbours: each half is one line.
                if lane < 2 {
                    let (to, half) = (stage + lane * half_rows * bytes, lane * half_rows);
                    bulk::load_hinted(to, address(half, 0), half_rows * bytes, full, once);
                }
            } else {
                let mut row = lane;
                while row < 2 * half_rows {
                    bulk::load_hinted(stage + row * bytes, address(row, at), bytes, full, once);
                    row += 32;
                }
            }
        }
        at += bytes;
        position = memory.next(position);
    }
    position
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
