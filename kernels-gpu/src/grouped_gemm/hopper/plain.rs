//! What the plain kernels share: where D goes, and which weights an item takes.

use super::slab_scales::{BlockScales, SlabScales};
use super::token_sums::TokenSums;
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::scale_arguments::{ScaleArguments, b_block_number};

/// What a plain kernel needs to know of a launch.
pub struct PlainArguments {
    pub scales: ScaleArguments,
    pub slab_scales: SlabScales,
    /// D `[P, n]`, of type `out_type`; or the sums `[tokens, n]`.
    pub out: *mut u8,
    pub n: u32,
    pub k: u32,
    pub out_type: u32,
    pub tokens: TokenSums,
}

impl PlainArguments {
    /// The first rows of the two boxes of B for 256 columns of `expert` from `column` on, 128 rows each, and where their scales are.
    #[inline(always)]
    pub fn weights(&self, expert: u32, column: u32) -> ([u32; 2], BlockScales) {
        let Self { n, k, .. } = self;
        let row = expert * n + column;
        // Of columns past the last, any scale will do.
        let first = b_block_number(expert, column.min(n - 1), *n, *k);
        let distance = if column + 128 < *n { k.div_ceil(SLAB) } else { 0 };
        ([row, row + 128], BlockScales { first, distance })
    }
}
