//! The gated end, and its entry points: those of silu, and those of the other activations.
//!
//! The driver compiles a kernel when it is first used. An activation, written out for the 64 values of a
//! thread, is a good part of a gated kernel, and nearly all models have silu: it has entry points of its own,
//! without the others.

use cuda_std::kernel;

use super::consume::Rows;
use super::{BLOCKS, End, THREADS, requantize, run, shared_bytes};
use crate::abi::Scales;
use crate::gemm::hopper::gated::GatedArguments;
use crate::gemm::hopper::slab_scales::SlabScales;
use crate::gemm::hopper::weights::Weights;
use crate::gemm::hopper::{GATED_COLUMNS, HopperGated};
use crate::schedule::work::Tile;

/// 128 columns of the intermediate: gate and up in one item. The activation is silu if `IS_SILU`, and another
/// if not.
pub struct Gated<const IS_SILU: bool>(pub GatedArguments);

impl<const IS_SILU: bool> End for Gated<IS_SILU> {
    const COLUMNS: u32 = GATED_COLUMNS;

    #[inline(always)]
    fn n(&self) -> u32 {
        self.0.intermediate
    }

    #[inline(always)]
    fn slab_scales(&self) -> SlabScales {
        self.0.slab_scales
    }

    #[inline(always)]
    fn operands(&self, tile: &Tile) -> Weights {
        self.0.weights(tile.expert, tile.n0)
    }

    #[inline(always)]
    fn scales(&self) -> &Scales {
        &self.0.scales
    }

    #[inline(always)]
    fn columns(&self, tile: &Tile) -> ([u32; 2], u32) {
        let GatedArguments { intermediate, out, .. } = &self.0;
        ([tile.n0, out.gating.up + tile.n0], intermediate + out.gating.up)
    }

    #[inline(always)]
    unsafe fn finish(&self, total: &[f32; 128], tile: &Tile, rows: &Rows) {
        // SAFETY: the caller's contract.
        unsafe {
            let values = requantize::activated::<IS_SILU>(total, tile, rows, &self.0);
            requantize::store(values, tile, rows, &self.0);
        }
    }
}

macro_rules! fast {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("128 columns of the intermediate: gate and up in one item, activation, e4m3; ", $activations, ".")]
        ///
        /// Scales of A per call or row, of B per expert or channel.
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super::super). The activation is one of
        /// those.
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within, shared = shared_bytes::<false>())]
        pub unsafe fn $name(arguments: HopperGated) {
            let (b, packed) = (arguments.matrix(), !arguments.b_packed.is_null());
            let HopperGated { a, scales, schedule, out, intermediate, k, .. } = arguments;
            let end = Gated::<$is_silu>(GatedArguments { scales, slab_scales: SlabScales::NONE, out, intermediate, k, packed });
            // SAFETY: the kernel's contract.
            unsafe { run::<false, _>(a, b, schedule, k, &end) }
        }
    };
}

fast!(hopper_wide_gated_fast_silu, true, "silu");
fast!(hopper_wide_gated_fast, false, "other activations than silu");

macro_rules! promoted {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("As [`hopper_wide_gated_fast`], the sums folded into f32 every 128 of K; ", $activations, ".")]
        ///
        /// All scales.
        ///
        /// # Safety
        /// As [`hopper_wide_gated_fast`].
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within, shared = shared_bytes::<true>())]
        pub unsafe fn $name(arguments: HopperGated) {
            let (b, packed) = (arguments.matrix(), !arguments.b_packed.is_null());
            let HopperGated { a, scales, schedule, out, intermediate, k, .. } = arguments;
            let slab_scales = arguments.slab_scales();
            let end = Gated::<$is_silu>(GatedArguments { scales, slab_scales, out, intermediate, k, packed });
            // SAFETY: the kernel's contract.
            unsafe { run::<true, _>(a, b, schedule, k, &end) }
        }
    };
}

promoted!(hopper_wide_gated_promoted_silu, true, "silu");
promoted!(hopper_wide_gated_promoted, false, "other activations than silu");
