//! Launches the Hopper kernels (`kernels-gpu/src/grouped_gemm/hopper`).

use super::slab_scales;
use super::token_sums::RawTokens;
use super::{GemmShape, GroupedGemm, OP};
use crate::error::Result;
use crate::gpu::launch::{DevicePtr, Kernel};
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels;
use crate::plan::tiles::HopperTile;

impl GroupedGemm<'_> {
    pub(super) fn launch_hopper(
        &self,
        stream: &Stream,
        tile: HopperTile,
        blocks: u32,
        schedule: DevicePtr<[u32; 4]>,
        schedule_is_settled: bool,
    ) -> Result<()> {
        use kernels::{
            HopperNarrow8, HopperNarrow16, HopperNarrow32, HopperNarrow64, HopperWideFast, HopperWidePromoted,
        };
        let (shape, promoted) = (self.plan.shape(), self.plan.promoted());
        let GemmShape { rows, n, k, experts } = shape;
        let a = tensor_map::of_matrix(&self.a, rows, k, tile.a_box_rows())?;
        let b = tensor_map::of_matrix(&self.b, experts * n, k, 128)?;
        let a_slab_scales = slab_scales::of_a(OP, &self.a_scale, &shape, tile)?;
        let (a_scale, a_scale_kind, ..) = self.a_scale.raw();
        let (b_scale, b_scale_kind) = self.b_scale.raw();
        let (out, out_type) = self.out.raw();
        let RawTokens { sorted_rows, topk_weights, slots, top_k } = self.out.raw_tokens(&self.permutation);
        let (n, k) = (n as u32, k as u32);
        let partials = self.workspace.ptr().cast();
        let (shared, schedule_is_settled) = (tile.shared_bytes(promoted), schedule_is_settled.into());
        macro_rules! launch {
            ($kernel:ident { $($field:ident),* }) => {{
                let kernel = $kernel {
                    a, b, a_scale, b_scale, schedule, out, n, k, a_scale_kind, b_scale_kind, out_type, sorted_rows, topk_weights,
                    slots, top_k, $($field),*
                };
                debug_assert_eq!(($kernel::THREADS, $kernel::CLUSTER), (tile.threads(), tile.cluster()));
                // SAFETY: `check` has compared lengths, alignments and devices with the plan, whose grid is the kernel's, and the
                // maps were made of the matrices. The permutation has the plan's sizes, so that the tiles of its schedule,
                // built for this height, are inside the P rows and E_loc experts; it is borrowed exclusively, as are the partial
                // sums. An element of `sorted_rows` that is no slot is skipped.
                unsafe { stream.device().launch(stream, blocks, shared, &kernel) }
            }};
            ($kernel:ident) => {
                launch!($kernel { a_slab_scales, partials, schedule_is_settled })
            };
        }
        match (tile, promoted) {
            (HopperTile::Narrow8, _) => launch!(HopperNarrow8),
            (HopperTile::Narrow16, _) => launch!(HopperNarrow16),
            (HopperTile::Narrow32, _) => launch!(HopperNarrow32),
            (HopperTile::Narrow64, _) => launch!(HopperNarrow64),
            (HopperTile::Wide, true) => {
                launch!(HopperWidePromoted { a_slab_scales })
            }
            (HopperTile::Wide, false) => launch!(HopperWideFast {}),
        }
    }
}
