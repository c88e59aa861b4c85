//! Launches the Hopper kernels (`kernels-gpu/src/gemm/hopper`).

use super::slab_scales;
use super::{B_BOX, GemmShape, GroupedGemm, OP, raw_scales};
use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::Slice;
use crate::gpu::launch::{DevicePtr, TensorMap};
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels::launchers;
use crate::plan::packed::WeightLayout;
use crate::plan::tiles::HopperTile;

/// B of `rows` rows as the kernels take it: the map of the matrix, or the address of packed weights.
pub(in crate::ops) fn weights(
    b: &Slice<'_, E4m3>,
    layout: WeightLayout,
    rows: usize,
    k: usize,
) -> Result<(TensorMap, DevicePtr<u8>)> {
    match layout {
        WeightLayout::Checkpoint => Ok((tensor_map::of_matrix(b, (rows, k), B_BOX)?, DevicePtr::null())),
        // A kernel does not read the map then.
        WeightLayout::Packed => Ok((TensorMap([0; 16]), b.ptr().cast())),
    }
}

impl GroupedGemm<'_> {
    pub(super) fn launch_hopper(
        &self,
        stream: &Stream,
        tile: HopperTile,
        blocks: u32,
        schedule: DevicePtr<[u32; 4]>,
        schedule_is_settled: bool,
    ) -> Result<()> {
        let (shape, promoted) = (self.plan.shape(), self.plan.promoted());
        let GemmShape { rows, n, k, experts } = shape;
        let (out, out_type) = self.out.raw();
        let (b, b_packed) = weights(&self.b, self.plan.weights(), experts * n, k)?;
        let arguments = launchers::HopperGemm {
            a: tensor_map::of_matrix(&self.a, (rows, k), tile.a_box())?,
            b,
            b_packed,
            a_slab_scales: slab_scales::of_a(OP, &self.a_scale, &shape, tile)?,
            n: n as u32,
            k: k as u32,
            scales: raw_scales(&self.a_scale, &self.b_scale, self.bias),
            schedule,
            partials: self.workspace.ptr().cast(),
            out,
            tokens: self.out.raw_tokens(&self.permutation),
            out_type,
            schedule_is_settled,
            // Measured: D of a third of L2 stays in it, and the GEMM takes 4 % less; of two thirds it takes
            // 2 % more.
            out_stays: 2 * self.out.bytes() <= stream.device().l2_bytes() as usize,
        };
        let kernel = match (tile, promoted) {
            (HopperTile::Narrow8, _) => launchers::HOPPER_NARROW_8,
            (HopperTile::Narrow16, _) => launchers::HOPPER_NARROW_16,
            (HopperTile::Narrow32, _) => launchers::HOPPER_NARROW_32,
            (HopperTile::Wide, true) => launchers::HOPPER_WIDE_PROMOTED,
            (HopperTile::Wide, false) => launchers::HOPPER_WIDE_FAST,
        };
        // SAFETY: `check` has compared lengths, alignments and devices with the plan, whose grid is the
        // kernel's, and the maps were made of the matrices. The permutation has the plan's sizes, so that the
        // tiles of its schedule, built for this height, are inside the P rows and E_loc experts, if its lists
        // are unchanged; it is borrowed exclusively, as are the partial sums. An element of `sorted_rows`
        // that is no slot is skipped.
        unsafe {
            let lists = self.permutation.unchanged();
            stream.device().launch_over(stream, &kernel, blocks, &arguments, &lists)
        }
    }
}
