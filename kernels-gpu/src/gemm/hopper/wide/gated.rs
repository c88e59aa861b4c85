//! The gated end, and its entry points: those of silu, and those of the other activations.
//!
//! It makes 128 columns of the intermediate, a whole scale group of the second projection: gate and up of a
//! column are in the same thread, and a row's maximum is in the four lanes of a quad ([`requantize`]).
//!
//! The driver compiles a kernel when it is first used. An activation, written out for the 64 values of a
//! thread, is a good part of a gated kernel, and nearly all models have silu: it has entry points of its own,
//! without the others.

use cuda_std::code::Flag;
use cuda_std::kernel;

use super::{
    BLOCKS, End, Fast, Launch, Promoted, Rows, THREADS, multiply, requantize, shared_bytes, wgmma_n,
};
use crate::abi::Scales;
use crate::gemm::hopper::GATED_COLUMNS;
use crate::gemm::hopper::arguments::{GatedArguments, HopperGated};
use crate::gemm::hopper::ring::Shape;
use crate::gemm::hopper::slab_scales::SlabScales;
use crate::gemm::hopper::weights::Weights;
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

// rustfmt would indent the attribute further each time.
#[rustfmt::skip]
macro_rules! gated {
    ($name:ident, $pipeline:ty, $is_silu:literal, $what:literal) => {
        #[doc = concat!("128 columns of the intermediate: gate, up, activation, e4m3; ", $what)]
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super::super). The activation is one of
        /// those.
        #[kernel(
            threads = THREADS,
            cluster = BLOCKS,
            wgmma_n = wgmma_n::<$pipeline>(),
            overlap = within,
            shared = shared_bytes::<$pipeline>()
        )]
        pub unsafe fn $name(arguments: HopperGated) {
            let slab_scales = if <$pipeline>::SCALED { arguments.slab_scales() } else { SlabScales::NONE };
            let end = Gated::<$is_silu>(arguments.end(slab_scales));
            let HopperGated { a, schedule, k, schedule_is_settled, .. } = arguments;
            let b = arguments.matrix();
            let launch = Launch { b, schedule, k, schedule_is_settled, out_stays: Flag::SET };
            // SAFETY: the kernel's contract.
            unsafe { multiply::<$pipeline, _>(&launch, a, &end) }
        }
    };
}

gated!(
    hopper_wide_gated_fast_silu,
    Fast,
    true,
    "silu. Scales of A per call or row, of B per expert or channel."
);
gated!(
    hopper_wide_gated_fast,
    Fast,
    false,
    "other activations than silu. Scales of A per call or row, of B per expert or channel."
);
gated!(hopper_wide_gated_promoted_silu, Promoted, true, "silu. All scales.");
gated!(hopper_wide_gated_promoted, Promoted, false, "other activations than silu. All scales.");
