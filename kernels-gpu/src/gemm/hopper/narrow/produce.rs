//! The producer warp: slab by slab, 256 rows of weights ([`weights`](super::super::weights)), by TMA as many
//! boxes of eight rows as the tile has rows for, and the scales that change along K. Only boxes that hold this
//! tile's rows are loaded. The other rows of a stage are stale, at first zeros, and their sums are discarded.
//!
//! Weights and their scales come from no kernel. Those of the first stages are asked for before this kernel
//! has waited for its predecessor, so that they arrive while that one ends:
//!
//! ```text
//!   predecessor       ............................ | end
//!   producer             schedule | B B B B B B  wait | A A A A A A | B A | B A | ..
//! ```

use cuda_std::l2::Policy;
use cuda_std::tma::{self, TensorMap};
use cuda_std::{mbarrier, thread};

use super::share::{Part, Share};
use crate::abi::SLAB;
use crate::gemm::hopper::ring::{Position, Ring, Shape};
use crate::gemm::hopper::slab_scales::{BlockLanes, SlabScales};
use crate::gemm::hopper::weights::{Matrix, Weights};
use crate::gemm::hopper::{CONSUMERS, ROWS_128};

/// Rows of a box of A: as many as repeat the swizzle.
pub const BOX_ROWS: u32 = 8;

/// Fetches the tensor maps ahead of their first use, by a lane of the producer.
///
/// # Safety
/// They are tensor maps, and so are those of the scales that there are.
#[inline(always)]
pub unsafe fn prefetch_maps(a: *const TensorMap, b: &Matrix, scales: &SlabScales) {
    if thread::thread_idx_x() == CONSUMERS {
        // SAFETY: the caller's contract.
        unsafe {
            b.prefetch_map();
            tma::prefetch_map(a);
            scales.prefetch_map();
        }
    }
}

/// The producer's place in the ring, and what it copies from.
pub struct Producer<S: Shape> {
    ring: Ring<S>,
    position: Position,
    /// Stages from `position` on whose weights are on their way.
    ahead: u32,
    a: *const TensorMap,
    b: Matrix,
    scales: SlabScales,
    /// Weights are read once, and leave L2 first. An expert's rows are read again for each of its items, and
    /// between two of them more weights pass through L2 than it holds.
    once: Policy,
    lane: u32,
}

impl<S: Shape> Producer<S> {
    #[inline(always)]
    pub fn new(ring: Ring<S>, a: *const TensorMap, b: Matrix, scales: SlabScales) -> Self {
        let once = Policy::evict_first();
        Self { ring, position: Position::START, ahead: 0, a, b, scales, once, lane: thread::lane_id() }
    }

    /// Asks for the weights of the first slabs of a share, one to a stage. `weights` says which rows a part
    /// takes, and where their scales are.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together, before
    /// [`fill`](Self::fill), which then fills the stages with the parts of this share.
    #[inline(always)]
    pub unsafe fn begin(&mut self, mut share: Share, weights: impl Fn(&Part) -> Weights) {
        while self.ahead < S::STAGES
            && let Some(part) = share.next()
        {
            let weights = weights(&part);
            // SAFETY: blocks have a scale for every slab of the part.
            let mut blocks =
                unsafe { BlockLanes::new(&self.scales, weights.blocks, part.first_slab, part.slabs) };
            let mut slab = part.first_slab;
            while slab < part.first_slab + part.slabs && self.ahead < S::STAGES {
                // SAFETY: on the first lap all stages are free; the part has the slab.
                unsafe {
                    self.ask_for_weights(self.ahead, slab, &weights, part.rows, blocks.next(&self.scales))
                };
                self.ahead += 1;
                slab += 1;
            }
        }
    }

    /// Fills stages with a part.
    ///
    /// # Safety
    /// The contract of the kernels, and the kernel has waited for its predecessor; all lanes of the producer
    /// warp call it together.
    #[inline(always)]
    pub unsafe fn fill(&mut self, part: &Part, weights: Weights) {
        let begun = self.ahead.min(part.slabs);
        // SAFETY: blocks have a scale for every slab of the part.
        let mut blocks = unsafe {
            BlockLanes::new(&self.scales, weights.blocks, part.first_slab + begun, part.slabs - begun)
        };
        let mut slab = part.first_slab;
        while slab < part.first_slab + part.slabs {
            let Position { stage, .. } = self.position;
            let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
            // SAFETY: the stage is free or has been begun with the weights of this very slab, and takes the
            // tile's rows behind them. The map is the kernel's parameter.
            unsafe {
                if self.ahead > 0 {
                    self.ahead -= 1;
                } else {
                    let scales = blocks.next(&self.scales);
                    self.ring.wait_empty(self.position);
                    self.ask_for_weights(stage, slab, &weights, part.rows, scales);
                }
                if self.lane == 0 {
                    let mut row = 0;
                    while row < part.rows {
                        let corner = [(slab * SLAB) as i32, (part.first_row + row) as i32];
                        tma::load_2d(to + 2 * ROWS_128 + row * SLAB, self.a, full, corner);
                        row += BOX_ROWS;
                    }
                    self.scales.load_a(self.ring.scales(stage), full, part.first_row, slab);
                }
            }
            self.position = self.ring.next(self.position);
            slab += 1;
        }
    }

    /// Begins a stage: says how many bytes it takes, those of the rows and their scales included, and asks
    /// for the weights; `scales` are those of their blocks.
    ///
    /// # Safety
    /// The stage is free.
    #[inline(always)]
    unsafe fn ask_for_weights(
        &self,
        stage: u32,
        slab: u32,
        weights: &Weights,
        tile_rows: u32,
        scales: [f32; 2],
    ) {
        if self.lane != 0 {
            return;
        }
        let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
        // SAFETY: the stage takes two boxes of 128 rows before those of eight; the bytes expected are theirs,
        // whatever of them lies outside the tensors. The map is the kernel's parameter.
        unsafe {
            self.scales.store_b(self.ring.scales(stage), S::A_ROWS, scales);
            let boxes = tile_rows.div_ceil(BOX_ROWS);
            let bytes = self.b.bytes(weights) + boxes * (BOX_ROWS * SLAB) + self.scales.bytes(S::A_ROWS);
            mbarrier::arrive_expect_tx(full, bytes);
            self.b.load(to, full, slab, weights, Some(self.once));
        }
    }
}
