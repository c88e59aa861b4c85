//! Launches the portable kernels (`kernels-gpu/src/gemm/portable`).

use super::{GroupedGemm, raw_scales};
use crate::error::Result;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
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
        let (GemmShape { n, k, .. }, promoted) = (self.plan.shape(), self.plan.promoted());
        let (out, out_type) = self.out.raw();
        let arguments = launchers::PortableGemm {
            a: self.a.ptr().cast(),
            b: self.b.ptr().cast(),
            n: n as u32,
            k: k as u32,
            scales: raw_scales(&self.a_scale, &self.b_scale, self.bias),
            schedule,
            out,
            a_scale_strides: self.a_scale.strides(),
            out_type,
        };
        // SAFETY: `check` has compared lengths, alignments and devices with the plan. The permutation has the
        // plan's sizes, so that the tiles of its schedule, built for this height, are inside the P rows and
        // E_loc experts, if its lists are unchanged.
        unsafe {
            let lists = self.permutation.unchanged();
            stream.device().launch_over(stream, &tile.kernel(promoted), blocks, &arguments, &lists)
        }
    }
}
