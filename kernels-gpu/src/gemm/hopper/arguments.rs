//! What a launch is given, and what a kernel reads from it: B as a whole, the weights of one item, the scales
//! that change along K.

use cuda_std::arguments;
use cuda_std::code::{Code, Flag};

use super::slab_scales::{BlockScales, SlabScales};
use super::weights::{Matrix, Weights, gated_lines, plain_lines};
use super::{B_BOX_ROWS, GATED_COLUMNS};
use crate::abi::{SLAB, Scales};
use crate::gemm::scales::b_block_number;

/// Arguments of the Hopper kernels that store D, or add it up by token.
#[arguments]
pub struct HopperGemm {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// B e4m3 `[experts * n, k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle.
    pub b: TensorMap,
    /// B packed, as `weights.rs` draws it, 128-byte aligned; null where it is read by the map.
    pub b_packed: *const u8,
    /// The scales of A per group, group-major, in boxes of a tile's rows and some more; not read where there
    /// are none.
    pub a_slab_scales: TensorMap,
    /// Columns of D, a multiple of 8.
    pub n: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both. Those of A per group are not read from here.
    pub scales: crate::abi::Scales,
    /// A tile schedule for the kernel's rows, 16-byte aligned. Its counters are at 0, and are left so.
    pub schedule: *mut [u32; 4],
    /// As many bytes as the tile says, for every block of the grid, 16-byte aligned.
    pub partials: *mut [f32; 4],
    /// D `[P, n]`, or the sums f32 `[tokens, n]`; 16-byte aligned.
    pub out: *mut u8,
    /// Whose sums rows are added to; not read where D is stored.
    pub tokens: crate::gemm::hopper::token_sums::TokenSums,
    /// What becomes of D.
    pub out_type: Code<crate::abi::OutType>,
    /// Whether the schedule's tiles were complete before the kernel's predecessor began.
    pub schedule_is_settled: Flag,
    /// Whether D may stay in L2: weights that the wide kernels read once leave it first then.
    pub out_stays: Flag,
}

impl HopperGemm {
    /// B.
    #[inline(always)]
    pub fn matrix(&self) -> Matrix {
        Matrix::new(self.b, self.b_packed)
    }

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

/// Arguments of the Hopper kernels that activate and quantise.
#[arguments]
pub struct HopperGated {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// w13 e4m3 `[experts * (intermediate + up), k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle;
    /// `up` as the gating has it.
    pub b: TensorMap,
    /// As `HopperGemm` has it.
    pub b_packed: *const u8,
    /// As `HopperGemm` has them.
    pub a_slab_scales: TensorMap,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both, and the bias; N is I + up.
    pub scales: crate::abi::Scales,
    /// As `HopperGemm` has it.
    pub schedule: *mut [u32; 4],
    /// As `HopperGemm` has them.
    pub partials: *mut [f32; 4],
    /// Where the results go.
    pub out: crate::gemm::hopper::arguments::Requantization,
    /// As `HopperGemm` has it.
    pub schedule_is_settled: Flag,
}

impl HopperGated {
    /// w13.
    #[inline(always)]
    pub fn matrix(&self) -> Matrix {
        Matrix::new(self.b, self.b_packed)
    }

    /// The scales that change along K.
    #[inline(always)]
    pub fn slab_scales(&self) -> SlabScales {
        SlabScales::new(self.a_slab_scales, &self.scales)
    }

    /// What an end needs of it, with the scales that change along K as they are given.
    #[inline(always)]
    pub fn end(&self, slab_scales: SlabScales) -> GatedArguments {
        let Self { scales, out, intermediate, k, .. } = *self;
        GatedArguments { scales, slab_scales, out, intermediate, k, packed: !self.b_packed.is_null() }
    }
}

/// Arguments of the kernels that activate and quantise, and gather their rows of A by token.
#[arguments]
pub struct HopperGathered {
    /// Where A is.
    pub a: crate::gemm::hopper::arguments::TokenRows,
    /// As `HopperGated` has it.
    pub b: TensorMap,
    /// As `HopperGated` has it.
    pub b_packed: *const u8,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// As `HopperGated` has them; A's per group are those of the tokens.
    pub scales: crate::abi::Scales,
    /// As `HopperGated` has it.
    pub schedule: *mut [u32; 4],
    /// Where the results go.
    pub out: crate::gemm::hopper::arguments::Requantization,
    /// As `HopperGated` has it.
    pub schedule_is_settled: Flag,
}

impl HopperGathered {
    /// w13.
    #[inline(always)]
    pub fn matrix(&self) -> Matrix {
        Matrix::new(self.b, self.b_packed)
    }

    /// What an end needs of it, with the scales that change along K as they are given.
    #[inline(always)]
    pub fn end(&self, slab_scales: SlabScales) -> GatedArguments {
        let Self { scales, out, intermediate, k, .. } = *self;
        GatedArguments { scales, slab_scales, out, intermediate, k, packed: !self.b_packed.is_null() }
    }
}

/// A in the order of the tokens.
#[arguments]
pub struct TokenRows {
    /// e4m3 `[tokens, k]`, 16-byte aligned, of fewer than 2^32 chunks of 16 bytes.
    pub a: *const u8,
    /// i32 `[P]`, permuted row to expanded row.
    pub sorted_rows: *const i32,
    /// T.
    pub tokens: u32,
    /// Slots of a token, at least 1.
    pub top_k: u32,
    /// Where the scale of (token, slab) is, if A's scales change along K.
    pub scale_strides: crate::abi::Strides,
}

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
