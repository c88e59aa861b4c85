//! What the gated ends share: the activation of gate and up, and quantisation to e4m3 for the second
//! projection.

use cuda_std::arguments;

use super::slab_scales::{BlockScales, SlabScales};
use super::weights::{Weights, gated_lines};
use super::{GATED_COLUMNS, HopperGated};
use crate::abi::{SLAB, Scales};
use crate::gemm::scales::b_block_number;

/// Where activated and quantised values go.
#[arguments]
pub struct Requantization {
    /// e4m3 `[P, intermediate]`, 16-byte aligned.
    pub q: *mut u8,
    /// f32, the given scale of all values; null where each row has a scale per 128 columns.
    pub given_scale: *const f32,
    /// f32, the scales per row and 128 columns; null where one is given.
    pub scales: *mut f32,
    /// Where in `scales`.
    pub strides: crate::abi::Strides,
    /// What joins gate and up; rows of B for its columns.
    pub gating: crate::abi::Gating,
}

/// What the ends of a gated kernel need to know of a launch.
#[derive(Clone, Copy)]
pub struct GatedArguments {
    pub scales: Scales,
    pub slab_scales: SlabScales,
    pub out: Requantization,
    /// Columns of the results.
    pub intermediate: u32,
    pub k: u32,
    /// Whether B is packed.
    pub packed: bool,
}

impl HopperGated {
    /// The scales that change along K.
    #[inline(always)]
    pub fn slab_scales(&self) -> SlabScales {
        SlabScales::new(self.a_slab_scales, &self.scales)
    }
}

impl GatedArguments {
    /// B, gate and up, for 128 columns of the intermediate of `expert` from `column` on, which may lie past
    /// the last.
    #[inline(always)]
    pub fn weights(&self, expert: u32, column: u32) -> Weights {
        let Self { intermediate, k, .. } = self;
        let up = self.out.gating.up;
        let gate = expert * (intermediate + up) + column;
        // Of columns past the last, any scale will do.
        let first = b_block_number(expert, column.min(intermediate - 1), intermediate + up, *k);
        let distance = up / GATED_COLUMNS * k.div_ceil(SLAB);
        let blocks = BlockScales { first, distance };
        if !self.packed {
            return Weights { starts: [gate, gate + up], halves: [GATED_COLUMNS; 2], blocks };
        }
        // Past the last column those of the last item, which nobody takes the results of. There is a gate.
        let (starts, halves) = gated_lines(expert, column, *intermediate, *k);
        Weights { starts, halves, blocks }
    }
}
