//! The producer warp: slab by slab, the boxes of A and B by TMA, and the scales that change along K.
//!
//! Of the operand that the two blocks of a cluster share, each asks for a half, and TMA delivers it to both:
//!
//! ```text
//!                    A: rows 0..64   64..128     B: first box   second box
//!   sharing A              block 0   block 1     each its own   each its own
//!   sharing B     each its own 128 rows               block 0        block 1
//! ```

use cuda_std::tma::{self, TensorMap};
use cuda_std::{cluster, mbarrier, thread};

use super::fill::{BOTH, Fill};
use super::items::Item;
use super::notes::Notes;
use super::{BLOCKS, BM};
use crate::abi::SLAB;
use crate::gemm::hopper::ring::{Position, Ring};
use crate::gemm::hopper::slab_scales::{BlockLanes, SlabScales};
use crate::gemm::hopper::weights::{Matrix, Weights};
use crate::gemm::hopper::{ROWS_64, ROWS_128};
use crate::schedule::work::Tile;

/// The producer's place in the ring, and what it copies from.
pub struct Producer<const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool> {
    ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
    /// This block's number in its cluster.
    rank: u32,
    position: Position,
    a: *const TensorMap,
    b: Matrix,
    scales: SlabScales,
    k: u32,
    lane: u32,
}

impl<const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool> Producer<STAGES, STAGE_BYTES, SCALED> {
    #[inline(always)]
    pub fn new(
        ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
        a: *const TensorMap,
        b: Matrix,
        scales: SlabScales,
        k: u32,
    ) -> Self {
        Self {
            ring,
            rank: cluster::rank(),
            position: Position::START,
            a,
            b,
            scales,
            k,
            lane: thread::lane_id(),
        }
    }

    /// Fills stages with all slabs of an item, whose `weights` these are.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together.
    #[inline(always)]
    pub unsafe fn fill(&mut self, item: &Item, weights: Weights) {
        let tile = &item.tile;
        self.ring.wait_empty(self.position);
        if self.lane == 0 {
            // SAFETY: the stage is free, and the thread will arrive at it, with bytes to expect.
            unsafe { Notes::of(&self.ring).write(self.position.stage, tile) };
        }
        // SAFETY: blocks have a scale for every slab.
        let mut blocks = unsafe { BlockLanes::new(&self.scales, weights.blocks, 0, self.k.div_ceil(SLAB)) };
        let mut k0 = 0;
        while k0 < self.k {
            let Position { stage, .. } = self.position;
            let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
            // SAFETY: as above; the item has the slab.
            let block_scales = if SCALED { unsafe { blocks.next(&self.scales) } } else { [1.0; 2] };
            self.ring.wait_empty(self.position);
            // SAFETY: the stage is free in both blocks and takes A's 128 rows and B's two boxes, one half of
            // either from each block; the bytes expected are theirs and the scales', whatever of them lies
            // outside the tensors. The maps are the kernel's parameters.
            unsafe {
                if self.lane == 0 {
                    let (a, fill) = (to, Fill { to: to + ROWS_128, full, slab: k0 / SLAB });
                    let [upper, lower] =
                        [tile.first_row, tile.first_row + 64].map(|row| [k0 as i32, row as i32]);
                    let slots = self.ring.scales(stage);
                    let a_scales = if SCALED { self.scales.bytes(BM) } else { 0 };
                    let bytes = ROWS_128 + self.b.bytes(&weights) + a_scales;
                    fill.begin::<SCALED>(&self.scales, slots, block_scales, bytes);
                    if item.shares_b {
                        tma::load_2d(a, self.a, full, upper);
                        tma::load_2d(a + ROWS_64, self.a, full, lower);
                    } else {
                        let half = if self.rank == 0 { upper } else { lower };
                        tma::load_2d_multicast(a + self.rank * ROWS_64, self.a, full, half, BOTH);
                    }
                    fill.weights(&self.b, &weights, item.shares_b, self.rank);
                    if SCALED {
                        self.scales.load_a(slots, full, tile.first_row, k0 / SLAB);
                    }
                }
            }
            self.position = self.ring.next(self.position);
            k0 += SLAB;
        }
    }

    /// Tells the consumers that there are no more items.
    ///
    /// # Safety
    /// All lanes of the producer warp call it together, last.
    #[inline(always)]
    pub unsafe fn finish(self) {
        let full = self.ring.full(self.position.stage);
        self.ring.wait_empty(self.position);
        // SAFETY: the stage is free. No bytes are expected in it.
        unsafe {
            if self.lane == 0 {
                Notes::of(&self.ring).write(self.position.stage, &Tile::NONE);
                mbarrier::arrive(full);
            }
        }
    }
}
