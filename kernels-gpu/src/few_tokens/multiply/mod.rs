//! The product of a unit's weights and a tile's rows, by sixteen warps; three more add up what these have and
//! store it, while the sixteen are at the next unit.
//!
//! ```text
//!   a unit's rows   row groups of 16                    RG = half_rows / 8 of them: 1, 2, 4 or 8
//!   warp w          row group w % RG, of every stage the 128 of K number w / RG, of up to 16 / RG
//! ```
//!
//! Which rows a group has, and how they are multiplied, is the layout's: [`rows`], [`packed`]. Each lane ends
//! up with four sums, of two rows of weights by two of the inputs.
//!
//! Sums pass through two buffers in turn. Barrier 2 or 3 says that a buffer has a unit's sums, 4 or 5 that it
//! is free again.

pub mod packed;
pub mod rows;

use cuda_std::{sync, thread};

use super::layout::{Layout, Place};
use super::memory::Memory;
use super::queue::Unit;
use super::{CONSUMER_WARPS, CONSUMERS, FINISHERS, Projection};
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

/// The first of two barriers: a buffer has a unit's sums.
const DONE_BARRIERS: u32 = 2;
/// The first of two barriers: a buffer is free.
const FREE_BARRIERS: u32 = 4;

/// Multiplies the unit in the stages from `position` on by the input rows, of which there are `rows`, and
/// leaves the sums of every warp to those who finish the unit. Returns the place after the stages. `turn` is
/// the number of units that the block has multiplied before.
///
/// # Safety
/// As [`Layout::sums`].
#[inline(always)]
pub unsafe fn unit<L: Layout>(
    projection: &Projection,
    unit: &Unit,
    rows: u32,
    memory: &Memory,
    position: Position,
    turn: u32,
) -> Position {
    // SAFETY: the caller's contract.
    let (sums, position) = unsafe { L::sums(projection, unit, rows, memory, position) };
    let buffer = turn % 2;
    if turn >= 2 {
        sync::named(FREE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    }
    let thread = recomputed(thread::thread_idx_x());
    // SAFETY: each lane has a place of its own, and the buffer's last unit is finished.
    unsafe { memory.partials(buffer, thread / 32).add(thread % 32).write(sums) };
    sync::named_arrive(DONE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    position
}

/// Tells those who finish units that none comes behind the `turn` that there were, and waits until they have
/// finished all. All consumers call it together.
#[inline(always)]
pub fn end(turn: u32) {
    let buffer = turn % 2;
    if turn >= 2 {
        sync::named(FREE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    }
    sync::named_arrive(DONE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    if turn >= 1 {
        sync::named(FREE_BARRIERS + (buffer ^ 1), CONSUMERS + FINISHERS);
    }
}

/// Waits until the sums of the block's unit number `turn`, or its end, are there: then the queue tells which.
/// All threads that finish units call it together, for one unit after the other.
#[inline(always)]
pub fn wait_done(turn: u32) {
    sync::named(DONE_BARRIERS + turn % 2, CONSUMERS + FINISHERS);
}

/// Says that unit number `turn` is finished. All threads that finish units call it together.
#[inline(always)]
pub fn finished(turn: u32) {
    sync::named_arrive(FREE_BARRIERS + turn % 2, CONSUMERS + FINISHERS);
}

/// The sum for row `within` of half `half` and input row `row`, over the warps that have parts of it,
/// of which every `1 << log2`th has the row.
///
/// # Safety
/// [`unit`] has left the sums in `buffer`; the unit has the row, and there is the input row.
#[inline(always)]
pub unsafe fn sum<L: Layout>(
    log2: u32,
    memory: &Memory,
    buffer: u32,
    half: u32,
    within: u32,
    row: u32,
) -> f32 {
    let Place { warp, lane, component } = L::place(log2, half, within, row);
    let parts = CONSUMER_WARPS >> log2;
    let first = memory.partials(buffer, warp).add(lane).cast::<f32>().add(component);
    // Four at once, so that their latencies overlap; some twice where there are fewer.
    let part = |part: u32| {
        let from = first.byte_add(part.min(parts - 1) * (512 << log2));
        // SAFETY: the caller's contract.
        let value = unsafe { from.read() };
        if part < parts { value } else { 0.0 }
    };
    let four = |first: u32| {
        let [a, b, c, d] = [part(first), part(first + 1), part(first + 2), part(first + 3)];
        (a + b) + (c + d)
    };
    let mut sum = four(0);
    if parts > 4 {
        sum += four(4);
    }
    if parts > 8 {
        sum += four(8) + four(12);
    }
    sum
}
