//! What the plain kernels share: where D goes, and which weights an item takes.

use super::slab_scales::{BlockScales, SlabScales};
use super::{B_BOX_ROWS, HopperGemm};
use crate::abi::SLAB;
use crate::gemm::scales::b_block_number;

impl HopperGemm {
    /// The scales that change along K.
    #[inline(always)]
    pub fn slab_scales(&self) -> SlabScales {
        SlabScales::new(self.a_slab_scales, &self.scales)
    }

    /// The first rows of the two boxes of B for 256 columns of `expert` from `column` on, and where their
    /// scales are.
    #[inline(always)]
    pub fn weights(&self, expert: u32, column: u32) -> ([u32; 2], BlockScales) {
        let Self { n, k, .. } = self;
        let row = expert * n + column;
        // Of columns past the last, any scale will do.
        let first = b_block_number(expert, column.min(n - 1), *n, *k);
        let distance = if column + B_BOX_ROWS < *n { k.div_ceil(SLAB) } else { 0 };
        ([row, row + B_BOX_ROWS], BlockScales { first, distance })
    }
}
