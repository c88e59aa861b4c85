//! The scales that change along K, as TMA brings them: with the operands of a slab, on the same barrier.
//!
//! ```text
//!   A, group-major                    first_row ..             B, all of them in a row
//!     slab 0   | . . . . . . . . . . . . . . . |                 | .. | block c: slab 0, 1, 2 .. | block c + 1: .. |
//!     slab 1   | . . . . [ a box of N rows ] . |                                     [ . . . ]      a box of 4, of which the
//!     slab 2   | . . . . . . . . . . . . . . . |                                                    first is the one
//!
//!   slots of a stage     | A: N x 4 bytes, to a multiple of 128 | B: first block | 128 further: second |
//! ```
//!
//! TMA asks for 16 bytes at least, and for places in shared memory that are multiples of 128; its coordinates are any. Rows past the
//! end of a tile come along. Nobody may have written their scales: the consumers do not read them.

use cuda_std::tma::{self, TensorMap};

use crate::grouped_gemm::scale_arguments::{A_PER_GROUP, B_PER_BLOCK};

/// Bytes from the scale of a stage's first block of B to that of the second.
const BLOCK_SLOT_BYTES: u32 = 128;
/// Bytes that TMA brings of a scale of B.
const BLOCK_BOX_BYTES: u32 = 16;

/// The offset of the scales of B in the slots of a stage of `rows` rows of A, bytes.
const fn block_slots(rows: u32) -> u32 {
    (rows * 4).next_multiple_of(128)
}

/// Bytes of the slots of a stage of `rows` rows of A.
pub const fn slot_bytes(rows: u32) -> u32 {
    block_slots(rows) + 2 * BLOCK_SLOT_BYTES
}

/// The offset of the scale of an item's block of B, its first or second, in the slots of a stage of `rows` rows of A, in elements.
pub const fn block_slot(rows: u32, second: bool) -> u32 {
    (block_slots(rows) + if second { BLOCK_SLOT_BYTES } else { 0 }) / 4
}

/// Where the scales of an item's two blocks of B are: the number of that of the first for slab 0, and how far behind it that of the
/// second is.
#[derive(Clone, Copy)]
pub struct BlockScales {
    pub first: u32,
    pub distance: u32,
}

/// Where the scales that change along K are. There are such of A, of B, of both or of neither.
#[derive(Clone, Copy)]
pub struct SlabScales {
    /// f32 `[slabs, rows]`, in boxes of a tile's rows of one slab, where A has a scale per group.
    pub a: *const TensorMap,
    pub a_kind: u32,
    /// f32, one row of all scales of B, in boxes of 4, where B has a scale per block.
    pub b: *const TensorMap,
    pub b_kind: u32,
}

impl SlabScales {
    /// None: for kernels that apply scales to whole sums.
    pub const NONE: Self = Self { a: core::ptr::null(), a_kind: 0, b: core::ptr::null(), b_kind: 0 };

    /// Whether A has a scale for every slab.
    #[inline(always)]
    pub fn has_a(&self) -> bool {
        self.a_kind == A_PER_GROUP
    }

    /// Whether B has a scale for every slab.
    #[inline(always)]
    pub fn has_b(&self) -> bool {
        self.b_kind == B_PER_BLOCK
    }

    /// Bytes of a slab's scales, of a tile of `rows` rows: what the barrier of a stage expects besides the operands.
    #[inline(always)]
    pub fn bytes(&self, rows: u32) -> u32 {
        let a = if self.has_a() { rows * 4 } else { 0 };
        a + if self.has_b() { 2 * BLOCK_BOX_BYTES } else { 0 }
    }

    /// Fetches the maps ahead of their first use, by the calling thread.
    ///
    /// # Safety
    /// Those of the kinds that there are exist.
    #[inline(always)]
    pub unsafe fn prefetch_maps(&self) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.has_b() {
                tma::prefetch_map(self.b);
            }
            if self.has_a() {
                tma::prefetch_map(self.a);
            }
        }
    }

    /// Asks for the scales of a slab of A, of the tile of rows from `first_row` on, to the slots at `slots`, completing on `full`.
    ///
    /// # Safety
    /// The calling thread alone asks. The stage is free, `full` expects the [`bytes`](Self::bytes), and the map is the kernel's
    /// parameter.
    #[inline(always)]
    pub unsafe fn load_a(&self, slots: u32, full: u32, first_row: u32, slab: u32) {
        if self.has_a() {
            // SAFETY: the caller's contract; the slots begin with room for the box.
            unsafe { tma::load_2d(slots, self.a, full, [first_row as i32, slab as i32]) };
        }
    }

    /// As [`load_a`](Self::load_a), for the scales of two blocks of B, to the slots of a stage of `rows` rows of A.
    ///
    /// # Safety
    /// As [`load_a`](Self::load_a).
    #[inline(always)]
    pub unsafe fn load_b(&self, slots: u32, full: u32, rows: u32, blocks: BlockScales, slab: u32) {
        if self.has_b() {
            let to = slots + block_slots(rows);
            let first = (blocks.first + slab) as i32;
            // SAFETY: the caller's contract; there are two slots with room for a box each.
            unsafe {
                tma::load_2d(to, self.b, full, [first, 0]);
                tma::load_2d(to + BLOCK_SLOT_BYTES, self.b, full, [first + blocks.distance as i32, 0]);
            }
        }
    }
}
