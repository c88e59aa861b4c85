//! The producer warp: slab by slab, two boxes of weights and one of rows by TMA, and the scales that change along K.
//!
//! Weights do not depend on the kernel before this one, rows do. Where the schedule does not either, the producer asks for the weights
//! of its first slabs while that kernel still runs:
//!
//! ```text
//!   kernel before      ..............| end
//!   producer       init | weights 0 1 2 3 4 5 |  wait   | rows and scales 0 1 2 3 4 5 | slab 6 | ..
//! ```

use cuda_std::tma::{self, TensorMap};
use cuda_std::{mbarrier, thread};

use super::share::{Part, Share};
use super::{BN, PlainArguments};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::hopper::gated::GatedArguments;
use crate::grouped_gemm::hopper::ring::{Position, Ring};
use crate::grouped_gemm::hopper::{BlockScales, ROWS_128, ScaleCopies};
use crate::grouped_gemm::scale_arguments::ScaleArguments;

/// What a part takes of the weights.
pub trait Weights {
    fn scales(&self) -> &ScaleArguments;

    /// The first rows of the part's two boxes of B, and where their scales are.
    fn operands(&self, part: &Part) -> ([u32; 2], BlockScales);
}

impl Weights for PlainArguments {
    #[inline(always)]
    fn scales(&self) -> &ScaleArguments {
        &self.scales
    }

    #[inline(always)]
    fn operands(&self, part: &Part) -> ([u32; 2], BlockScales) {
        let Self { scales, n, k, .. } = self;
        let column = part.column * BN;
        let first = scales.b_block_row(part.expert, column, *n, *k);
        // The second block may not exist.
        let distance = if column + 128 < *n { k.div_ceil(SLAB) } else { 0 };
        let row = part.expert * n + column;
        ([row, row + 128], BlockScales { first, distance })
    }
}

impl Weights for GatedArguments {
    #[inline(always)]
    fn scales(&self) -> &ScaleArguments {
        &self.scales
    }

    #[inline(always)]
    fn operands(&self, part: &Part) -> ([u32; 2], BlockScales) {
        let Self { scales, out, k } = self;
        let column = part.column * (BN / 2);
        let first = scales.b_block_row(part.expert, column, 2 * out.intermediate, *k);
        let distance = out.intermediate / 128 * k.div_ceil(SLAB);
        let gate = part.expert * 2 * out.intermediate + column;
        ([gate, gate + out.intermediate], BlockScales { first, distance })
    }
}

/// The producer's place in the ring, and what it copies from.
pub struct Producer<const N: u32, const STAGES: u32, const STAGE_BYTES: u32> {
    ring: Ring<STAGES, STAGE_BYTES, true, 1>,
    position: Position,
    a: *const TensorMap,
    b: *const TensorMap,
    lane: u32,
    /// Slabs from `position` on whose weights are on their way.
    ahead: u32,
}

impl<const N: u32, const STAGES: u32, const STAGE_BYTES: u32> Producer<N, STAGES, STAGE_BYTES> {
    #[inline(always)]
    pub fn new(ring: Ring<STAGES, STAGE_BYTES, true, 1>, a: *const TensorMap, b: *const TensorMap) -> Self {
        Self { ring, position: Position::START, a, b, lane: thread::lane_id(), ahead: 0 }
    }

    /// Asks for the weights of as many slabs of the share as there are stages.
    ///
    /// # Safety
    /// The contract of the kernels, except that A and its scales may not be there yet. The ring is fresh; all lanes of the producer
    /// warp call it together.
    #[inline(always)]
    pub unsafe fn begin(&mut self, mut share: Share, weights: &impl Weights) {
        while self.ahead < STAGES
            && let Some(part) = share.next()
        {
            let (rows, _) = weights.operands(&part);
            let mut slab = part.first_slab;
            while slab < part.first_slab + part.slabs && self.ahead < STAGES {
                if self.lane == 0 {
                    // SAFETY: the stage has not been used yet.
                    unsafe { self.ask_for_weights(self.ahead, slab, rows) };
                }
                self.ahead += 1;
                slab += 1;
            }
        }
    }

    /// Fills stages with a part.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together.
    #[inline(always)]
    pub unsafe fn fill(&mut self, part: &Part, weights: &impl Weights) {
        let (rows, blocks) = weights.operands(part);
        let scales = weights.scales();
        let mut copies = ScaleCopies::new(scales, part.first_row, part.rows, blocks, self.lane);
        copies.skip(scales, part.first_slab);
        let mut slab = part.first_slab;
        while slab < part.first_slab + part.slabs {
            let Position { stage, .. } = self.position;
            let full = self.ring.full(stage);
            self.ring.wait_empty(self.position);
            // SAFETY: the stage is free, or has been given its weights alone.
            unsafe {
                if self.lane == 0 {
                    if self.ahead == 0 {
                        self.ask_for_weights(stage, slab, rows);
                    }
                    let to = self.ring.stage(stage) + 2 * ROWS_128;
                    tma::load_2d(to, self.a, full, [(slab * SLAB) as i32, part.first_row as i32]);
                }
                copies.issue::<N>(scales, self.ring.scales(stage), self.lane);
                mbarrier::arrive_after_copies(full);
            }
            self.ahead = self.ahead.saturating_sub(1);
            self.position = self.ring.next(self.position);
            slab += 1;
        }
    }

    /// Tells a stage's barrier what to expect, and asks for two boxes of B.
    ///
    /// # Safety
    /// The stage is free; it takes two boxes of 128 rows and one of N, whose bytes are expected, whatever of them lies outside the
    /// tensors. One lane calls it, once for a slab.
    #[inline(always)]
    unsafe fn ask_for_weights(&self, stage: u32, slab: u32, rows: [u32; 2]) {
        let (to, full) = (self.ring.stage(stage), self.ring.full(stage));
        let k0 = (slab * SLAB) as i32;
        // SAFETY: the caller's contract; the maps are the kernel's parameters.
        unsafe {
            mbarrier::arrive_expect_tx(full, STAGE_BYTES);
            tma::load_2d(to, self.b, full, [k0, rows[0] as i32]);
            tma::load_2d(to + ROWS_128, self.b, full, [k0, rows[1] as i32]);
        }
    }
}
