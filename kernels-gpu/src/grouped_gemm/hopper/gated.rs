//! What the gated ends share: the activation of gate and up, and quantisation to e4m3 for the second projection.

use super::slab_scales::{BlockScales, SlabScales};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::scale_arguments::{ScaleArguments, b_block_number};

/// Where activated and quantised values go.
#[derive(Clone, Copy)]
pub struct Requantization {
    /// `q [P, intermediate]`, e4m3.
    pub q: *mut u8,
    /// Columns of `q`: a multiple of 16.
    pub intermediate: u32,
    /// Code of an [activation](crate::activation::functions).
    pub activation: u32,
    /// The given scale of all values; null where each row has a scale per 128 columns.
    pub given_scale: *const f32,
    /// Where the scale of (row, group) goes: `scales[row * row_stride + group * group_stride]`.
    pub scales: *mut f32,
    pub row_stride: u64,
    pub group_stride: u64,
}

/// What the ends of a gated kernel need to know of a launch.
pub struct GatedArguments {
    pub scales: ScaleArguments,
    pub slab_scales: SlabScales,
    pub out: Requantization,
    pub k: u32,
}

impl GatedArguments {
    /// The first rows of the two boxes of B, gate and up, for 128 columns of the intermediate of `expert` from `column` on, 128 rows
    /// each, and where their scales are.
    #[inline(always)]
    pub fn weights(&self, expert: u32, column: u32) -> ([u32; 2], BlockScales) {
        let Self { out: Requantization { intermediate, .. }, k, .. } = self;
        let gate = expert * 2 * intermediate + column;
        // Of columns past the last, any scale will do.
        let first = b_block_number(expert, column.min(intermediate - 1), 2 * intermediate, *k);
        let distance = intermediate / 128 * k.div_ceil(SLAB);
        ([gate, gate + intermediate], BlockScales { first, distance })
    }
}
