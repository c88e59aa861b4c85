//! Launches the Hopper kernels (`kernels-gpu/src/grouped_gemm/hopper`).

use super::heuristics::HopperTile;
use super::slab_scales;
use super::{GemmShape, GroupedGemm, OP, raw_scales};
use crate::error::Result;
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels::launchers;

impl GroupedGemm<'_> {
    pub(super) fn launch_hopper(
        &self,
        stream: &Stream,
        tile: HopperTile,
        promoted: bool,
        blocks: u32,
        schedule_is_settled: bool,
    ) -> Result<()> {
        let GemmShape { rows, n, k, experts } = self.shape;
        let (out, out_type) = self.out.raw();
        let arguments = launchers::HopperGemm {
            a: tensor_map::of_matrix(&self.a, rows, k, tile.numbers().a_box_rows)?,
            b: tensor_map::of_matrix(&self.b, experts * n, k, launchers::B_BOX_ROWS)?,
            a_slab_scales: slab_scales::of_a(OP, &self.a_scale, &self.shape, tile)?,
            scales: raw_scales(&self.a_scale, &self.b_scale),
            schedule: self.schedule.entries.ptr(),
            partials: self.workspace.ptr().cast(),
            out,
            n: n as u32,
            k: k as u32,
            out_type,
            tokens: self.out.raw_tokens(),
            schedule_is_settled,
        };
        let kernel = match (tile, promoted) {
            (HopperTile::Narrow8, _) => launchers::HOPPER_NARROW_8,
            (HopperTile::Narrow16, _) => launchers::HOPPER_NARROW_16,
            (HopperTile::Narrow32, _) => launchers::HOPPER_NARROW_32,
            (HopperTile::Narrow64, _) => launchers::HOPPER_NARROW_64,
            (HopperTile::Wide, true) => launchers::HOPPER_WIDE_PROMOTED,
            (HopperTile::Wide, false) => launchers::HOPPER_WIDE_FAST,
        };
        // SAFETY: `check` has compared lengths, alignments, devices and the schedule's block size with what the kernel asks for,
        // and the maps were made of the matrices; that the schedule belongs to `expert_offsets`, and that these end within P
        // rows, is what the operations that make them guarantee.
        unsafe { stream.device().launch(stream, &kernel, blocks, &arguments) }
    }
}
