//! The scales that change along K: those of A come by TMA with the operands of a slab, those of B through the
//! lanes of the producer warp.
//!
//! ```text
//!   A, group-major                    first_row ..       B, all of them in a row
//!     slab 0   | . . . . . . . . . . . . . . . |           | .. | block c: slab 0, 1, 2 .. | block c + 1: .. |
//!     slab 1   | . . [ . . a box     . ] . . . |                    lane 0, 1, 2 .. 31
//!     slab 2   | . . . . . . . . . . . . . . . |
//!
//!   slots of a stage     | A: up to 3 rows before the tile's, its N | B: first block, second |
//! ```
//!
//! TMA asks for multiples of 16 bytes, begins at multiples of 16 bytes in memory and of 128 in shared memory.
//! A tile begins at any row, so that its box begins up to three rows earlier. Rows past the end of a tile
//! come along as well. Nobody may have written their scales: the consumers do not read them. Of B one scale a
//! slab is wanted, too little for TMA: every lane of the producer warp loads that of another slab, and one of
//! them stores the slab's when its turn comes, before it arrives at the barrier.

use cuda_std::code::Code;
use cuda_std::shared::Shared;
use cuda_std::tma::{self, TensorMap};
use cuda_std::{host, memory, thread, warp};

use crate::abi::{AScaleKind, BScaleKind, Scales};

/// Rows that a box has besides a tile's: up to three before it, and as many behind it that the size is one.
#[host]
const SLAB_SCALES_EXTRA_ROWS: u32 = 4;

/// The offset of the scales of B in the slots of a stage of `rows` rows of A, in elements.
pub const fn block_slot(rows: u32) -> u32 {
    rows + SLAB_SCALES_EXTRA_ROWS
}

/// Bytes of the slots of a stage of `rows` rows of A.
pub const fn slot_bytes(rows: u32) -> u32 {
    ((block_slot(rows) + 2) * 4).next_multiple_of(128)
}

/// The slot of the first row of a tile that begins with `first_row`.
#[inline(always)]
pub fn first_slot(first_row: u32) -> u32 {
    first_row % SLAB_SCALES_EXTRA_ROWS
}

/// The slot of a row of a tile of `rows` rows from `first_row` on.
///
/// Rows past the end of the tile reuse the last row's slot. Their own may be uninitialised.
#[inline(always)]
pub fn row_slot(row: u32, first_row: u32, rows: u32) -> u32 {
    first_slot(first_row) + row.min(rows - 1)
}

/// Where the scales of an item's two blocks of B are: the number of that of the first for slab 0, and how far
/// behind it that of the second is.
#[derive(Clone, Copy)]
pub struct BlockScales {
    pub first: u32,
    pub distance: u32,
}

/// Where the scales that change along K are. There are such of A, of B, of both or of neither.
#[derive(Clone, Copy)]
pub struct SlabScales {
    /// f32 `[slabs, rows]`, in boxes of four more than a tile's rows of one slab, where A has a scale per
    /// group.
    a: *const TensorMap,
    a_kind: Code<AScaleKind>,
    /// f32, all scales of B, where B has a scale per block.
    b: *const f32,
    b_kind: Code<BScaleKind>,
}

impl SlabScales {
    /// None: for kernels that apply scales to whole sums.
    pub const NONE: Self = Self {
        a: core::ptr::null(),
        a_kind: Code::from_raw(AScaleKind::Call as u32),
        b: core::ptr::null(),
        b_kind: Code::from_raw(BScaleKind::Expert as u32),
    };

    /// Those among `scales`, of A by the map `a`.
    #[inline(always)]
    pub fn new(a: *const TensorMap, scales: &Scales) -> Self {
        // The kinds as they are: what they were compared with would stay in registers.
        Self { a, a_kind: scales.a_kind, b: scales.b, b_kind: scales.b_kind }
    }

    /// Whether A has a scale for every slab.
    #[inline(always)]
    pub fn has_a(&self) -> bool {
        self.a_kind.is(AScaleKind::Group)
    }

    /// Whether B has a scale for every slab.
    #[inline(always)]
    pub fn has_b(&self) -> bool {
        self.b_kind.is(BScaleKind::Block)
    }

    /// Bytes of a slab's scales of a tile of up to `rows` rows: what the barrier of a stage expects besides
    /// the operands.
    #[inline(always)]
    pub fn bytes(&self, rows: u32) -> u32 {
        if self.has_a() { (rows + SLAB_SCALES_EXTRA_ROWS) * 4 } else { 0 }
    }

    /// Fetches the map ahead of its first use, by the calling thread.
    ///
    /// # Safety
    /// It exists, if A has scales for every slab.
    #[inline(always)]
    pub unsafe fn prefetch_map(&self) {
        if self.has_a() {
            // SAFETY: the caller's contract.
            unsafe { tma::prefetch_map(self.a) };
        }
    }

    /// Asks for the scales of a slab of A, of the tile of rows from `first_row` on, to the slots at `slots`,
    /// completing on `full`.
    ///
    /// # Safety
    /// The calling thread alone asks. The stage is free, `full` expects the [`bytes`](Self::bytes), and the
    /// map is the kernel's parameter.
    #[inline(always)]
    pub unsafe fn load_a(&self, slots: u32, full: u32, first_row: u32, slab: u32) {
        if self.has_a() {
            let start = first_row - first_slot(first_row);
            // SAFETY: the caller's contract; the slots begin with room for the box.
            unsafe { tma::load_2d(slots, self.a, full, [start as i32, slab as i32]) };
        }
    }

    /// Stores the scales of a slab's two blocks of B to the slots at `slots` of a stage of `rows` rows of A.
    ///
    /// # Safety
    /// The calling thread alone stores. The stage is free, and the thread arrives at its barrier afterwards.
    #[inline(always)]
    pub unsafe fn store_b(&self, slots: u32, rows: u32, scales: [f32; 2]) {
        if self.has_b() {
            // SAFETY: the caller's contract; behind A's slots there is room for two, 8-byte aligned.
            unsafe { Shared::<[f32; 2]>::from_address(slots + block_slot(rows) * 4).write(scales) };
        }
    }
}

/// The scales of an item's two blocks of B, in the lanes of a warp: those of 32 slabs at a time.
pub struct BlockLanes {
    /// The number of this lane's of the first block, and how far behind it that of the second is.
    first: u32,
    distance: u32,
    /// Slabs from the first lane's on.
    slabs: u32,
    loaded: [f32; 2],
    /// How many lanes have had their turn.
    used: u32,
}

impl BlockLanes {
    /// Those of `slabs` slabs from `slab` on.
    ///
    /// # Safety
    /// Scales that there are exist for these slabs of the blocks. All lanes of the warp call it together.
    #[inline(always)]
    pub unsafe fn new(scales: &SlabScales, blocks: BlockScales, slab: u32, slabs: u32) -> Self {
        let first = blocks.first + slab + thread::lane_id();
        let mut lanes = Self { first, distance: blocks.distance, slabs, loaded: [1.0; 2], used: 0 };
        // SAFETY: the caller's contract.
        unsafe { lanes.load(scales) };
        lanes
    }

    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    unsafe fn load(&mut self, scales: &SlabScales) {
        if scales.has_b() && thread::lane_id() < self.slabs {
            // SAFETY: the caller's contract.
            self.loaded = [self.first, self.first + self.distance]
                .map(|number| unsafe { memory::load_nc(scales.b.add(number as usize)) });
        }
    }

    /// Those of the next slab, of which there is one.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub unsafe fn next(&mut self, scales: &SlabScales) -> [f32; 2] {
        if self.used == 32 {
            (self.used, self.slabs) = (0, self.slabs - 32);
            self.first += 32;
            // SAFETY: the caller's contract.
            unsafe { self.load(scales) };
        }
        self.used += 1;
        self.loaded.map(|scale| warp::shfl_idx(warp::FULL_MASK, scale, self.used - 1))
    }
}
