//! Which units a block works on, and how its roles learn of them.
//!
//! ```text
//!   producer:   next unit -> queue -> its stages         consumers, finishers:   queue -> unit, until the end
//! ```
//!
//! The units of all tiles have numbers, tile by tile. Those of GEMM 1 are dealt: to the blocks in turn where
//! there is one token, whose hidden states are the inputs of all tiles, else an equal run to each. So with one
//! token all tiles but the last are complete long before GEMM 1 ends. Those of GEMM 2 are taken from a counter,
//! the first of each block aside: multiprocessors do not read equally fast.
//!
//! The queue's words come to the others with the unit's first stage, those of the first unit with the tables. A
//! place is written again when 16 more units have come, of which the ring and the sums hold fewer.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::warp::{FULL_MASK, shfl_idx};
use cuda_std::{sync, thread};

use super::control;
use super::memory::Memory;
use super::{FewTokens, Projection};

/// Some rows of an expert's matrix, by some of K.
#[derive(Clone, Copy)]
pub struct Unit {
    /// Whether it is of GEMM 1.
    pub is_first: bool,
    pub tile: u32,
    /// Its first row.
    pub row: u32,
    /// Its number among the parts of K.
    pub part: u32,
}

/// What the last word of an entry says.
const SECOND: u32 = 0;
const FIRST: u32 = 1;
const END: u32 = 2;

/// The block's unit number `turn`; none behind its last.
///
/// # Safety
/// The entry is visible to the caller.
#[inline(always)]
pub unsafe fn unit(shared: &Memory, turn: u32) -> Option<Unit> {
    // SAFETY: the caller's contract.
    let [tile, row, part, kind] = unsafe { shared.queued(turn).read() };
    (kind != END).then_some(Unit { is_first: kind == FIRST, tile, row, part })
}

/// The producer's side.
pub struct Units {
    is_first: bool,
    /// The number of the next unit.
    index: u32,
    /// The number that GEMM 1's are below, and from one to the next.
    end: u32,
    step: u32,
    /// Units of GEMM 2.
    second: u32,
    turn: u32,
}

impl Units {
    #[inline(always)]
    pub fn new(arguments: &FewTokens, tiles: u32) -> Self {
        let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
        let all = tiles * arguments.first.units;
        let (index, end, step) = if arguments.tokens == 1 {
            (block, all, blocks)
        } else {
            // The host has checked that the product fits.
            let start = |block: u32| all * block / blocks;
            (start(block), start(block + 1), 1)
        };
        Self { is_first: true, index, end, step, second: tiles * arguments.second.units, turn: 0 }
    }

    /// Puts the next unit, or the end, into the queue. All lanes of the producer warp call it together.
    ///
    /// # Safety
    /// The contract of the kernel.
    #[inline(always)]
    pub unsafe fn put(&mut self, arguments: &FewTokens, shared: &Memory) -> Option<Unit> {
        if self.is_first && self.index >= self.end {
            (self.is_first, self.index) = (false, thread::block_idx_x());
        }
        let is_first = self.is_first;
        let unit = (is_first || self.index < self.second).then(|| {
            let Projection { units, parts, stride, .. } =
                if is_first { arguments.first } else { arguments.second };
            let (tile, within) = (self.index / units, self.index % units);
            // Parts are a power of two.
            let (column, part) = (within >> parts.trailing_zeros(), within & (parts - 1));
            Unit { is_first, tile, row: column * stride, part }
        });
        if thread::lane_id() == 0 {
            let entry = unit.map_or([0, 0, 0, END], |unit| {
                [unit.tile, unit.row, unit.part, if unit.is_first { FIRST } else { SECOND }]
            });
            // SAFETY: who reads the entry that was here has done so, as the module says.
            unsafe { shared.queued(self.turn).write(entry) };
        }
        sync::warp(FULL_MASK);
        self.turn += 1;
        unit
    }

    /// Takes the number of the unit after the last that was put: under way until [`Self::taken`].
    ///
    /// # Safety
    /// As [`put`](Self::put).
    #[inline(always)]
    pub unsafe fn take(&self, arguments: &FewTokens, shared: &Memory) -> u32 {
        let mut taken = 0;
        if !self.is_first && thread::lane_id() == 0 {
            // SAFETY: the counter of this launch, which is touched by atomics alone.
            taken = unsafe { atomic::add(control::taken(arguments, shared), 1, Order::Relaxed, Scope::Gpu) };
        }
        taken
    }

    /// What [`take`](Self::take) has brought.
    #[inline(always)]
    pub fn taken(&mut self, taken: u32) {
        if self.is_first {
            self.index += self.step;
        } else {
            sync::warp(FULL_MASK);
            self.index = thread::grid_dim_x() + shfl_idx(FULL_MASK, taken, 0);
        }
    }
}
