//! Which units a block works on, and how its roles learn of them.
//!
//! ```text
//!   producer:   next unit -> queue -> its stages         consumers, finishers:   queue -> unit, until the end
//! ```
//!
//! The units of all tiles have numbers, tile by tile. The plan says how they are dealt ([`Dealing`]), of either
//! GEMM. In runs a block begins few tiles, whose rows it has to quantise. In turn, and drawn, all tiles but the
//! last are complete long before GEMM 1 ends, so that GEMM 2 need not wait for them. Multiprocessors do not
//! read equally fast, so that long streams end together if units are drawn.
//!
//! The queue's words come to the others with the unit's first stage, those of the first unit with the tables. A
//! place is written again when 16 more units have come, of which the ring and the sums hold fewer.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::warp::{FULL_MASK, shfl_idx};
use cuda_std::{host, sync, thread};

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

/// Who works on which units of a GEMM.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Dealing {
    /// Equal runs of neighbours, one for each block.
    Runs = 0,
    /// To the blocks in turn, one after the other.
    InTurn = 1,
    /// As blocks ask for them, from a counter, but for the first of each.
    Drawn = 2,
}

/// The producer's side.
pub struct Units {
    is_first: bool,
    /// The number of the next unit in its GEMM.
    index: u32,
    /// The number that the block's are below, and from one to the next, where they are not drawn.
    end: u32,
    step: u32,
    /// What a number drawn first of all would be.
    drawn_from: u32,
    /// Tiles.
    tiles: u32,
    turn: u32,
}

impl Units {
    #[inline(always)]
    pub fn new(arguments: &FewTokens, tiles: u32) -> Self {
        let (index, end, step) = dealt(&arguments.first, tiles);
        Self { is_first: true, index, end, step, drawn_from: thread::grid_dim_x(), tiles, turn: 0 }
    }

    /// Puts the next unit, or the end, into the queue. All lanes of the producer warp call it together.
    ///
    /// # Safety
    /// The contract of the kernel.
    #[inline(always)]
    pub unsafe fn put(&mut self, arguments: &FewTokens, shared: &Memory) -> Option<Unit> {
        if self.is_first && self.index >= self.end {
            self.begin_second(arguments);
        }
        let is_first = self.is_first;
        let unit = (self.index < self.end).then(|| {
            let Projection { units, parts, stride, .. } = *arguments.projection(is_first);
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

    /// Goes on to GEMM 2. Numbers that are drawn run through both.
    #[inline(always)]
    fn begin_second(&mut self, arguments: &FewTokens) {
        let FewTokens { first, second, .. } = arguments;
        let past = self.index - self.end;
        self.is_first = false;
        (self.index, self.end, self.step) = dealt(second, self.tiles);
        if first.dealing.is(Dealing::Drawn) && second.dealing.is(Dealing::Drawn) {
            self.index = past;
            self.drawn_from = self.drawn_from.wrapping_sub(self.tiles * first.units);
        }
    }

    /// Takes the number of the unit after the last that was put: under way until [`Self::taken`].
    ///
    /// # Safety
    /// As [`put`](Self::put).
    #[inline(always)]
    pub unsafe fn take(&self, arguments: &FewTokens, shared: &Memory) -> u32 {
        let mut taken = 0;
        if arguments.projection(self.is_first).dealing.is(Dealing::Drawn) && thread::lane_id() == 0 {
            // SAFETY: the counter of this launch, which is touched by atomics alone.
            taken = unsafe { atomic::add(control::taken(arguments, shared), 1, Order::Relaxed, Scope::Gpu) };
        }
        taken
    }

    /// What [`take`](Self::take) has brought.
    #[inline(always)]
    pub fn taken(&mut self, arguments: &FewTokens, taken: u32) {
        if arguments.projection(self.is_first).dealing.is(Dealing::Drawn) {
            sync::warp(FULL_MASK);
            self.index = self.drawn_from.wrapping_add(shfl_idx(FULL_MASK, taken, 0));
        } else {
            self.index += self.step;
        }
    }
}

/// The block's first unit, the number that its units are below, and how far one is from the next.
#[inline(always)]
fn dealt(projection: &Projection, tiles: u32) -> (u32, u32, u32) {
    let (block, blocks, all) = (thread::block_idx_x(), thread::grid_dim_x(), tiles * projection.units);
    if projection.dealing.is(Dealing::Runs) {
        // The host has checked that the product fits.
        let start = |block: u32| all * block / blocks;
        (start(block), start(block + 1), 1)
    } else {
        (block, all, blocks)
    }
}
