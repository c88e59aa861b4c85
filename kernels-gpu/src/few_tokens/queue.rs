//! Which units a block works on, and how its roles learn of them.
//!
//! ```text
//!   producer:   next unit -> queue -> its stages       consumers, finishers:   queue -> unit, until the end
//! ```
//!
//! The units of all tiles have numbers, tile by tile. The plan says how they are dealt ([`Dealing`]), of
//! either GEMM. In runs a block begins few tiles, whose rows it has to quantise. Drawn, all tiles but the
//! last are complete long before GEMM 1 ends, so that GEMM 2 need not wait for them; and multiprocessors do
//! not read equally fast, so that long streams end together if units are drawn, at least the last ones.
//!
//! The queue's words come to the others with the unit's first stage, those of the first unit with the tables.
//! A place is written again when 16 more units have come, of which the ring and the sums hold fewer.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::warp::{FULL_MASK, shfl_idx};
use cuda_std::{host, sync, thread};

use super::control;
use super::memory::Memory;
use super::{FewTokens, Projection};
use crate::gemm::recomputed;

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
    /// As blocks ask for them, from a counter, but for the first of each.
    Drawn = 1,
    /// Three quarters in runs, the last quarter drawn; all in runs where blocks have fewer than two each.
    RunsThenDrawn = 2,
}

/// The producer's side: the units of a GEMM that the block has not had.
pub struct Units {
    /// 1 or 2; 0 before the first unit.
    gemm: u32,
    /// Tiles.
    tiles: u32,
    /// The number of the next unit.
    index: u32,
    /// What numbers that are dealt are below.
    dealt: u32,
    /// What all of the block's numbers are below.
    end: u32,
    /// The number that is drawn first of all, where some are drawn.
    drawn: u32,
    is_drawn: bool,
    /// Of the projection: units of a tile, about 2^32 / units, the logarithm of the parts, and rows from unit
    /// to unit. They are chosen once, not unit by unit, which is the producer's time.
    units: u32,
    inverse: u32,
    parts_log2: u32,
    stride: u32,
    turn: u32,
}

impl Units {
    /// None yet, of no GEMM: the first that is [`put`](Self::put) is of GEMM 1.
    #[inline(always)]
    pub fn new(tiles: u32) -> Self {
        Self {
            gemm: 0,
            tiles,
            index: 0,
            dealt: 0,
            end: 0,
            drawn: 0,
            is_drawn: false,
            units: 0,
            inverse: 0,
            parts_log2: 0,
            stride: 0,
            turn: 0,
        }
    }

    #[inline(always)]
    fn of(arguments: &FewTokens, tiles: u32, gemm: u32, turn: u32) -> Self {
        let Projection { units, parts, stride, dealing, .. } =
            if gemm == 1 { arguments.first } else { arguments.second };
        let (block, blocks, all) = (thread::block_idx_x(), thread::grid_dim_x(), tiles * units);
        // With fewer a block might have no run to begin with.
        let is_mixed = dealing.is(Dealing::RunsThenDrawn) && all >= 2 * blocks;
        let is_drawn = dealing.is(Dealing::Drawn);
        // The host has checked that the product fits.
        let in_runs = if is_mixed { all - all / 4 } else { all };
        let start = |block: u32| in_runs * block / blocks;
        let (index, dealt) = if is_drawn { (block, 0) } else { (start(block), start(block + 1)) };
        let end = if is_drawn || is_mixed { all } else { dealt };
        let drawn = if is_drawn { blocks } else { in_runs };
        let (inverse, parts_log2) = (u32::MAX / units, parts.trailing_zeros());
        Self {
            gemm,
            tiles,
            index,
            dealt,
            end,
            drawn,
            is_drawn: is_drawn || is_mixed,
            units,
            inverse,
            parts_log2,
            stride,
            turn,
        }
    }

    /// Puts the next unit, or the end, into the queue. All lanes of the producer warp call it together.
    ///
    /// # Safety
    /// The contract of the kernel.
    #[inline(always)]
    pub unsafe fn put(&mut self, arguments: &FewTokens, shared: &Memory) -> Option<Unit> {
        // In one place, as the driver compiles it.
        while self.gemm < 2 && self.index >= self.end {
            *self = Self::of(arguments, self.tiles, recomputed(self.gemm + 1), self.turn);
        }
        let (is_first, index) = (self.gemm == 1, self.index);
        let unit = (index < self.end).then(|| {
            // Low by at most one.
            let mut tile = ((u64::from(index) * u64::from(self.inverse)) >> 32) as u32;
            let mut within = index - tile * self.units;
            if within >= self.units {
                (tile, within) = (tile + 1, within - self.units);
            }
            let (column, part) = (within >> self.parts_log2, within & ((1 << self.parts_log2) - 1));
            Unit { is_first, tile, row: column * self.stride, part }
        });
        if thread::lane_id() == 0 {
            let entry = unit.map_or([0, 0, 0, END], |unit| {
                [unit.tile, unit.row, unit.part, if is_first { FIRST } else { SECOND }]
            });
            // SAFETY: who reads the entry that was here has done so, as the module says.
            unsafe { shared.queued(self.turn).write(entry) };
        }
        sync::warp(FULL_MASK);
        self.turn += 1;
        unit
    }

    /// Draws the number of the unit after the last that was put, if it is drawn: under way until
    /// [`go_on`](Self::go_on).
    ///
    /// # Safety
    /// As [`put`](Self::put).
    #[inline(always)]
    pub unsafe fn draw(&self, arguments: &FewTokens, shared: &Memory) -> u32 {
        let mut drawn = 0;
        if self.draws_next() && thread::lane_id() == 0 {
            // SAFETY: the counter of this launch, which is touched by atomics alone.
            unsafe {
                let counter = control::drawn(arguments, shared, self.gemm == 1);
                drawn = atomic::add(counter, 1, Order::Relaxed, Scope::Gpu);
            }
        }
        drawn
    }

    #[inline(always)]
    fn draws_next(&self) -> bool {
        self.is_drawn && self.index + 1 >= self.dealt
    }

    /// Goes on to the next unit; `drawn` is what [`draw`](Self::draw) has brought.
    #[inline(always)]
    pub fn go_on(&mut self, drawn: u32) {
        if self.draws_next() {
            sync::warp(FULL_MASK);
            self.index = self.drawn + shfl_idx(FULL_MASK, drawn, 0);
        } else {
            self.index += 1;
        }
    }
}
