//! How an expert's weights lie, in memory and so in a stage: each layout has an entry point of its own.
//!
//! ```text
//!   rows, as a checkpoint has them                     packed: slab behind slab, of 128 bytes of K each
//!
//!   +-----------------------------+                    +--------------+--------------+---
//!   | first half: half_rows rows  |                    | slab 0:      | slab 1:      |
//!   |             of stage_k      |                    |  first half, |  first half, | ..
//!   +-----------------------------+                    |  second half |  second half |
//!   | second half: likewise       |                    +--------------+--------------+---
//!   +-----------------------------+                    a row of a slab has 128 bytes, its 16-byte
//!                                                      chunk c at c ^ (row % 8)
//!   a half is one copy where a stage has all           a half of a slab is one copy, or a slab is,
//!   of K, else each row is one                         where its halves are neighbours in memory
//!
//!   `mma.sync` on f16 ([`Rows`])                       `wgmma` on e4m3 ([`Packed`])
//! ```
//!
//! The inputs lie as the products take them.

use cuda_std::{bulk, sync};

use super::memory::Memory;
use super::queue::Unit;
use super::{FewTokens, Projection};
use crate::gemm::hopper::ring::Position;

/// What depends on it.
pub trait Layout {
    /// Whether the weights are packed.
    const IS_PACKED: bool;

    /// K as the weights have it: with the zeros that packed rows end with.
    #[inline(always)]
    fn padded(k: u32) -> u32 {
        if Self::IS_PACKED { k.next_multiple_of(128) } else { k }
    }

    /// Where eight columns of an input row from `column` on, a multiple of 8, are in shared memory.
    fn input(projection: &Projection, memory: &Memory, row: u32, column: u32) -> u32;

    /// This lane's sums of a unit in the stages from `position` on, by the input rows, of which there are
    /// `rows`: of four values each warp has a part ([`place`](Self::place) says which). Returns the place
    /// behind the stages, too.
    ///
    /// # Safety
    /// The contract of the kernel: the stages are filled with this unit, and inputs and their scales are
    /// those of its GEMM, or tile. All consumer threads call it together.
    unsafe fn sums(
        projection: &Projection,
        unit: &Unit,
        rows: u32,
        memory: &Memory,
        position: Position,
    ) -> ([f32; 4], Position);

    /// Who has sums for row `within` of half `half` and input row `row`; `log2` is that of the unit's
    /// row groups.
    fn place(log2: u32, half: u32, within: u32, row: u32) -> Place;
}

/// Where sums of a value are: with the same lane of every `1 << log2`th warp.
pub struct Place {
    /// The first of them.
    pub warp: u32,
    pub lane: u32,
    /// Which of a lane's four sums.
    pub component: u32,
}

/// Rows as a checkpoint has them: [`rows`](super::multiply::rows).
pub struct Rows;

/// Packed weights: [`packed`](super::multiply::packed).
pub struct Packed;

/// Before the roles part: clears the stages, if products may read of them what no copy has written. All
/// threads of the block call it together.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn begin<L: Layout>(arguments: &FewTokens, memory: &Memory) {
    if L::IS_PACKED && (arguments.first.has_short_tiles() || arguments.second.has_short_tiles()) {
        // SAFETY: nobody uses them yet. The fence shows it to copies and `wgmma`.
        unsafe { memory.clear_stages() };
        bulk::fence_shared();
        sync::block();
    }
}

impl Projection {
    /// Whether a part of K may have fewer slabs of packed weights in its last tile than others.
    #[inline(always)]
    fn has_short_tiles(&self) -> bool {
        // Slabs of a tile, and parts, are powers of two.
        let of_tile = (4 >> self.row_groups_log2()).max(1);
        self.k.div_ceil(128) & (of_tile * self.parts - 1) != 0
    }
}
