//! The gated end, and its entry points: those of silu, and those of the other activations.
//!
//! The driver compiles a kernel when it is first used. An activation, written out for the 64 values of a thread, is a good part of a
//! gated kernel, and nearly all models have silu: it has entry points of its own, without the others.

use cuda_std::kernel;

use super::consume::Rows;
use super::{BLOCKS, End, THREADS, requantize, run};
use crate::grouped_gemm::hopper::gated::{GatedArguments, Requantization};
use crate::grouped_gemm::hopper::slab_scales::{BlockScales, SlabScales};
use crate::grouped_gemm::scale_arguments::ScaleArguments;
use crate::grouped_gemm::schedule::Tile;

/// 128 columns of the intermediate: gate and up in one item. The activation is silu if `IS_SILU`, and another if not.
pub struct Gated<const IS_SILU: bool>(pub GatedArguments);

impl<const IS_SILU: bool> End for Gated<IS_SILU> {
    const COLUMNS: u32 = 128;

    #[inline(always)]
    fn n(&self) -> u32 {
        self.0.out.intermediate
    }

    #[inline(always)]
    fn slab_scales(&self) -> SlabScales {
        self.0.slab_scales
    }

    #[inline(always)]
    fn operands(&self, tile: &Tile) -> ([u32; 2], BlockScales) {
        self.0.weights(tile.expert, tile.n0)
    }

    #[inline(always)]
    fn scales(&self) -> &ScaleArguments {
        &self.0.scales
    }

    #[inline(always)]
    fn columns(&self, tile: &Tile) -> ([u32; 2], u32) {
        let intermediate = self.0.out.intermediate;
        ([tile.n0, intermediate + tile.n0], 2 * intermediate)
    }

    #[inline(always)]
    unsafe fn finish(&self, total: &[f32; 128], tile: &Tile, rows: &Rows) {
        // SAFETY: the caller's contract.
        unsafe {
            let values = requantize::activated::<IS_SILU>(total, tile, rows, &self.0);
            requantize::store(values, tile, rows, &self.0.out);
        }
    }
}

macro_rules! fast {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("128 columns of the intermediate: gate and up in one item, activation, e4m3; ", $activations, ".")]
        ///
        /// `a`: boxes of 64 rows; `b`: boxes of 128 rows of w13 `[experts, 2 * intermediate, k]`. Scales of A per call or row, of B per
        /// expert or column of 2I. Out: see [`Requantization`].
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super::super). `activation` is one of those.
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within)]
        pub unsafe fn $name(
            a: TensorMap,
            b: TensorMap,
            a_scale: *const f32,
            b_scale: *const f32,
            schedule: *const [u32; 4],
            q: *mut u8,
            given_scale: *const f32,
            q_scales: *mut f32,
            q_row_stride: u64,
            q_group_stride: u64,
            intermediate: u32,
            k: u32,
            a_scale_kind: u32,
            b_scale_kind: u32,
            activation: u32,
        ) {
            let scales = ScaleArguments::of_whole_sums(a_scale, a_scale_kind, b_scale, b_scale_kind);
            let out = Requantization {
                q,
                intermediate,
                activation,
                given_scale,
                scales: q_scales,
                row_stride: q_row_stride,
                group_stride: q_group_stride,
            };
            // SAFETY: the kernel's contract.
            unsafe {
                let arguments = GatedArguments { scales, slab_scales: SlabScales::NONE, out, k };
                run::<false, _>(a, b, schedule, k, &Gated::<$is_silu>(arguments))
            }
        }
    };
}

fast!(hopper_wide_gated_fast_silu, true, "silu");
fast!(hopper_wide_gated_fast, false, "other activations than silu");

macro_rules! promoted {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("As [`hopper_wide_gated_fast`], the sums folded into f32 every 128 of K; ", $activations, ".")]
        ///
        /// All scales; with block scales, `intermediate` is a multiple of 128.
        ///
        /// # Safety
        /// As [`hopper_wide_gated_fast`].
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within)]
        pub unsafe fn $name(
            a: TensorMap,
            b: TensorMap,
            a_slab_scales: TensorMap,
            a_scale: *const f32,
            b_scale: *const f32,
            schedule: *const [u32; 4],
            q: *mut u8,
            given_scale: *const f32,
            q_scales: *mut f32,
            q_row_stride: u64,
            q_group_stride: u64,
            intermediate: u32,
            k: u32,
            a_scale_kind: u32,
            b_scale_kind: u32,
            activation: u32,
        ) {
            let scales = ScaleArguments::of_whole_sums(a_scale, a_scale_kind, b_scale, b_scale_kind);
            let slab_scales =
                SlabScales { a: a_slab_scales, a_kind: a_scale_kind, b: b_scale, b_kind: b_scale_kind };
            let out = Requantization {
                q,
                intermediate,
                activation,
                given_scale,
                scales: q_scales,
                row_stride: q_row_stride,
                group_stride: q_group_stride,
            };
            // SAFETY: the kernel's contract.
            unsafe {
                let arguments = GatedArguments { scales, slab_scales, out, k };
                run::<true, _>(a, b, schedule, k, &Gated::<$is_silu>(arguments))
            }
        }
    };
}

promoted!(hopper_wide_gated_promoted_silu, true, "silu");
promoted!(hopper_wide_gated_promoted, false, "other activations than silu");
