//! The producer warp: slab by slab, two boxes of weights and one of rows by TMA, and the scales that change along K.

use cuda_std::tma::{self, TensorMap};
use cuda_std::{mbarrier, thread};

use super::share::Part;
use super::{BN, PlainArguments};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::hopper::gated::GatedArguments;
use crate::grouped_gemm::hopper::ring::{Position, Ring};
use crate::grouped_gemm::hopper::{BlockScales, ROWS_128, ScaleCopies};
use crate::grouped_gemm::scale_arguments::ScaleArguments;

/// The producer's place in the ring, and what it copies from.
pub struct Producer<const N: u32, const STAGES: u32, const STAGE_BYTES: u32> {
    ring: Ring<STAGES, STAGE_BYTES, true, 1>,
    position: Position,
    a: *const TensorMap,
    b: *const TensorMap,
    lane: u32,
}

impl<const N: u32, const STAGES: u32, const STAGE_BYTES: u32> Producer<N, STAGES, STAGE_BYTES> {
    #[inline(always)]
    pub fn new(ring: Ring<STAGES, STAGE_BYTES, true, 1>, a: *const TensorMap, b: *const TensorMap) -> Self {
        Self { ring, position: Position::START, a, b, lane: thread::lane_id() }
    }

    /// Fills stages with a part of a plain item.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together.
    #[inline(always)]
    pub unsafe fn fill_plain(&mut self, part: &Part, arguments: &PlainArguments) {
        let PlainArguments { scales, n, k, .. } = arguments;
        let column = part.column * BN;
        let first = scales.b_block_row(part.expert, column, *n, *k);
        // The second block may not exist.
        let distance = if column + 128 < *n { k.div_ceil(SLAB) } else { 0 };
        let row = part.expert * n + column;
        // SAFETY: the caller's contract.
        unsafe { self.fill(part, [row, row + 128], scales, BlockScales { first, distance }) }
    }

    /// Fills stages with a part of a gated item.
    ///
    /// # Safety
    /// As [`fill_plain`](Self::fill_plain).
    #[inline(always)]
    pub unsafe fn fill_gated(&mut self, part: &Part, arguments: &GatedArguments) {
        let GatedArguments { scales, out, k } = arguments;
        let column = part.column * (BN / 2);
        let first = scales.b_block_row(part.expert, column, 2 * out.intermediate, *k);
        let blocks = BlockScales { first, distance: out.intermediate / 128 * k.div_ceil(SLAB) };
        let gate = part.expert * 2 * out.intermediate + column;
        // SAFETY: the caller's contract.
        unsafe { self.fill(part, [gate, gate + out.intermediate], scales, blocks) }
    }

    #[inline(always)]
    unsafe fn fill(&mut self, part: &Part, rows: [u32; 2], scales: &ScaleArguments, blocks: BlockScales) {
        let mut copies = ScaleCopies::new(scales, part.first_row, part.rows, blocks, self.lane);
        copies.skip(scales, part.first_slab);
        let mut slab = part.first_slab;
        while slab < part.first_slab + part.slabs {
            let Position { stage, .. } = self.position;
            let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
            let k0 = (slab * SLAB) as i32;
            self.ring.wait_empty(self.position);
            // SAFETY: the stage is free and takes two boxes of 128 rows and one of N; the bytes expected are theirs, whatever
            // of them lies outside the tensors. The maps are the kernel's parameters.
            unsafe {
                if self.lane == 0 {
                    mbarrier::arrive_expect_tx(full, STAGE_BYTES);
                    tma::load_2d(to, self.b, full, [k0, rows[0] as i32]);
                    tma::load_2d(to + ROWS_128, self.b, full, [k0, rows[1] as i32]);
                    tma::load_2d(to + 2 * ROWS_128, self.a, full, [k0, part.first_row as i32]);
                }
                copies.issue::<N>(scales, self.ring.scales(stage), self.lane);
                mbarrier::arrive_after_copies(full);
            }
            self.position = self.ring.next(self.position);
            slab += 1;
        }
    }
}
