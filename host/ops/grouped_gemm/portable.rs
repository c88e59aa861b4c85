//! Launches the portable kernels (`kernels-gpu/src/grouped_gemm/portable`).

use super::heuristics::PortableTile;
use super::{GroupedGemm, raw_scales};
use crate::error::Result;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;

impl GroupedGemm<'_> {
    pub(super) fn launch_portable(
        &self,
        stream: &Stream,
        tile: PortableTile,
        promoted: bool,
        blocks: u32,
    ) -> Result<()> {
        let (out, out_type) = self.out.raw();
        let arguments = launchers::PortableGemm {
            a: self.a.ptr().cast(),
            b: self.b.ptr().cast(),
            scales: raw_scales(&self.a_scale, &self.b_scale),
            a_scale_strides: self.a_scale.strides(),
            schedule: self.schedule.entries.ptr(),
            out,
            n: self.shape.n as u32,
            k: self.shape.k as u32,
            out_type,
        };
        // SAFETY: `check` has compared lengths, alignments, devices and the schedule's block size with what the kernel asks for;
        // that the schedule belongs to `expert_offsets`, and that these end within P rows, is what the operations that make
        // them guarantee.
        unsafe { stream.device().launch(stream, &tile.kernel(promoted), blocks, &arguments) }
    }
}
