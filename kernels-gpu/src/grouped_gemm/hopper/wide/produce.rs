//! The producer warp: slab by slab, the boxes of A and B by TMA, and the scales that change along K by `cp.async`.
//!
//! The two blocks of a cluster have the same rows of A: each asks for 64 of them, and TMA delivers them to both.

use cuda_std::tma::{self, TensorMap};
use cuda_std::{cluster, mbarrier, thread};

use super::{BLOCKS, BM};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::hopper::ring::{Position, Ring};
use crate::grouped_gemm::hopper::{BlockScales, ROWS_64, ROWS_128, ScaleCopies};
use crate::grouped_gemm::scale_arguments::ScaleArguments;
use crate::grouped_gemm::schedule::Tile;

/// The producer's place in the ring, and what it copies from.
pub struct Producer<'a, const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool> {
    ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
    /// This block's number in its cluster.
    rank: u32,
    position: Position,
    a: *const TensorMap,
    b: *const TensorMap,
    scales: &'a ScaleArguments,
    k: u32,
    lane: u32,
}

impl<'a, const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool>
    Producer<'a, STAGES, STAGE_BYTES, SCALED>
{
    #[inline(always)]
    pub fn new(
        ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
        a: *const TensorMap,
        b: *const TensorMap,
        scales: &'a ScaleArguments,
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

    /// Fills stages with all slabs of an item. `boxes` are the first rows of its two boxes of B, 128 rows each, and `blocks` their
    /// scales, for a scaled ring.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together.
    #[inline(always)]
    pub unsafe fn fill(&mut self, tile: &Tile, boxes: [u32; 2], blocks: BlockScales) {
        let mut copies = ScaleCopies::new(self.scales, tile.first_row, tile.rows, blocks, self.lane);
        let mut k0 = 0;
        while k0 < self.k {
            let Position { stage, .. } = self.position;
            let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
            self.ring.wait_empty(self.position);
            // SAFETY: the stage is free in both blocks and takes A's 128 rows, half of them from either block, and B's two boxes; the
            // bytes expected are theirs, whatever of them lies outside the tensors. The maps are the kernel's parameters.
            unsafe {
                if self.lane == 0 {
                    let [first, second] = boxes;
                    mbarrier::arrive_expect_tx(full, 3 * ROWS_128);
                    let row = tile.first_row + self.rank * 64;
                    let a = to + self.rank * ROWS_64;
                    tma::load_2d_multicast(a, self.a, full, [k0 as i32, row as i32], (1 << BLOCKS) - 1);
                    tma::load_2d(to + ROWS_128, self.b, full, [k0 as i32, first as i32]);
                    tma::load_2d(to + 2 * ROWS_128, self.b, full, [k0 as i32, second as i32]);
                }
                if SCALED {
                    copies.issue::<BM, 32>(self.scales, self.ring.scales(stage), self.lane);
                    mbarrier::arrive_after_copies(full);
                }
            }
            self.position = self.ring.next(self.position);
            k0 += SLAB;
        }
    }
}
