//! Launches the portable kernels (`kernels-gpu/src/grouped_gemm/portable`).

use super::GroupedGemm;
use crate::error::Result;
use crate::gpu::launch::{DevicePtr, Kernel};
use crate::gpu::stream::Stream;
use crate::kernels;
use crate::plan::gemm::GemmShape;
use crate::plan::tiles::PortableTile;

impl GroupedGemm<'_> {
    pub(super) fn launch_portable(
        &self,
        stream: &Stream,
        tile: PortableTile,
        blocks: u32,
        schedule: DevicePtr<[u32; 4]>,
    ) -> Result<()> {
        use kernels::{
            GroupedGemmFast16, GroupedGemmFast64, GroupedGemmFast128, GroupedGemmPromoted16,
            GroupedGemmPromoted64, GroupedGemmPromoted128,
        };
        let (GemmShape { n, k, .. }, promoted) = (self.plan.shape(), self.plan.promoted());
        let (a_scale, a_scale_kind, a_scale_row_stride, a_scale_group_stride) = self.a_scale.raw();
        let (b_scale, b_scale_kind) = self.b_scale.raw();
        let (out, out_type) = self.out.raw();
        // Every entry point takes the same arguments.
        macro_rules! launch {
            ($kernel:ident) => {{
                let kernel = $kernel {
                    a: self.a.ptr().cast(),
                    b: self.b.ptr().cast(),
                    a_scale,
                    b_scale,
                    schedule,
                    out,
                    a_scale_row_stride,
                    a_scale_group_stride,
                    n: n as u32,
                    k: k as u32,
                    a_scale_kind,
                    b_scale_kind,
                    out_type,
                };
                debug_assert_eq!($kernel::THREADS, tile.threads());
                // SAFETY: `check` has compared lengths, alignments and devices with the plan. The permutation has the plan's
                // sizes, so that the tiles of its schedule, built for this height, are inside the P rows and E_loc experts.
                unsafe { stream.device().launch(stream, blocks, tile.shared_bytes(promoted), &kernel) }
            }};
        }
        match (tile, promoted) {
            (PortableTile::Rows16, false) => launch!(GroupedGemmFast16),
            (PortableTile::Rows64, false) => launch!(GroupedGemmFast64),
            (PortableTile::Rows128, false) => launch!(GroupedGemmFast128),
            (PortableTile::Rows16, true) => launch!(GroupedGemmPromoted16),
            (PortableTile::Rows64, true) => launch!(GroupedGemmPromoted64),
            (PortableTile::Rows128, true) => launch!(GroupedGemmPromoted128),
        }
    }
}
