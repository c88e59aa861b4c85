//! What the plain kernels share: where D goes, and which weights an item takes.

use super::slab_scales::{BlockScales, SlabScales};
use super::weights::{Weights, plain_lines};
use super::{B_BOX_ROWS, HopperGemm};
use crate::abi::SLAB;
use crate::gemm::scales::b_block_number;

impl HopperGemm {
    /// The scales that change along K.
    #[inline(always)]
    pub fn slab_scales(&self) -> SlabScales {
        SlabScales::new(self.a_slab_scales, &self.scales)
    }

    /// B for 256 columns of `expert` from `column` on, which may lie past the last.
    #[inline(always)]
    pub fn weights(&self, expert: u32, column: u32) -> Weights {
        let Self { n, k, .. } = self;
        let row = expert * n + column;
        // Of columns past the last, any scale will do.
        let first = b_block_number(expert, column.min(n - 1), *n, *k);
        let distance = if column + B_BOX_ROWS < *n { k.div_ceil(SLAB) } else { 0 };
        let blocks = BlockScales { first, distance };
        if self.b_packed.is_null() {
            return Weights { starts: [row, row + B_BOX_ROWS], halves: [B_BOX_ROWS; 2], blocks };
        }
        // Past the last column those of the last item, which nobody takes the results of.
        let (starts, halves) = plain_lines(expert, column, *n, *k);
        Weights { starts, halves, blocks }
    }
}
