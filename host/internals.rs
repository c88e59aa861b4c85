//! What the package `fp8-moe-cli` measures the layer with. No part of the public API: anything here may
//! change in any release.

pub use crate::error::require;
pub use crate::gpu::graph::{Capture, Recorder};
pub use crate::kernels::{KernelSummary, module, ptx, summaries};
pub use crate::ops::read_stream::read_stream;
pub use crate::parallel::Step as ParallelStep;
pub use crate::plan::tiles::{BLOCK_M, HopperTile, PortableTile};

use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice};
use crate::gpu::device::Device;
use crate::gpu::stream::Stream;
use crate::layer::{MoeConfig, MoeDeviceWeights, MoeLayer};
use crate::ops::pack_weights::{PackedShape, WeightLayout, unpack_weights};
use crate::parallel::{Batch, ExpertParallel, ParallelWorkspace};
use crate::plan::few_tokens::{Cut, bytes_read};
use crate::plan::{Plan, mean_rows};

use half::bf16;

/// The weights of a layer on the device, w13 and w2 as a checkpoint has them.
///
/// [`MoeDeviceWeights`](crate::MoeDeviceWeights) has the layouts.
#[derive(Debug)]
pub struct Weights<'a> {
    /// e4m3 `[E_loc, 2I, H]`, I padded.
    pub w13: Buffer<E4m3>,
    /// Its scales.
    pub w13_scale: Slice<'a, f32>,
    /// e4m3 `[E_loc, H, I]`, I padded.
    pub w2: Buffer<E4m3>,
    /// Its scales.
    pub w2_scale: Slice<'a, f32>,
    /// f32 `[1]` each, empty where the activations' scales are found at run time.
    pub input_scales: &'a [Buffer<f32>; 2],
}

/// The weights of `layer`; w13 and w2 are copies, of the local experts that are `wanted` alone.
pub fn weights<'l>(layer: &'l MoeLayer, wanted: &[bool], stream: &Stream) -> Result<Weights<'l>> {
    let (weights, device) = (layer.weights(), layer.device());
    let [w13, w2, ..] = MoeDeviceWeights::lengths(layer.config());
    let mut copies = [device.uninit(w13)?, device.uninit(w2)?];
    let packed =
        PackedShape::of_layer(device, layer.config()).filter(|_| weights.layout == WeightLayout::Packed);
    for (index, (copy, matrix)) in copies.iter_mut().zip([&weights.w13, &weights.w2]).enumerate() {
        let experts = layer.config().slot_local_experts().max(1);
        let of_expert = |all: usize, expert: usize| all / experts * expert..all / experts * (expert + 1);
        for expert in (0..wanted.len()).filter(|&expert| wanted[expert]) {
            let (from, to) = (of_expert(matrix.len(), expert), of_expert(copy.len(), expert));
            let (from, mut to) = (matrix.as_slice().slice(from), copy.slice_mut(to));
            match packed {
                Some(shapes) => unpack_weights(stream, shapes[index].of_one(), from, to)?,
                None => to.copy_from_device(from, stream)?,
            }
        }
    }
    let [w13, w2] = copies;
    Ok(Weights {
        w13,
        w13_scale: weights.w13_scale.as_slice(),
        w2,
        w2_scale: weights.w2_scale.as_slice(),
        input_scales: &weights.input_scales,
    })
}

/// Bytes of workspace that a forward of up to `tokens` tokens needs.
///
/// # Errors
/// More tokens than the kernels can count.
pub fn workspace_bytes(device: &Device, config: &MoeConfig, tokens: usize) -> Result<usize> {
    Plan::workspace_bytes(device, config, tokens)
}

/// Whether GEMM 1 and the activation of a forward of `tokens` tokens are one launch.
///
/// # Errors
/// More tokens than the kernels can count.
pub fn is_gated(layer: &MoeLayer, tokens: usize) -> Result<bool> {
    Ok(layer.plan(tokens)?.is_gated())
}

/// What the plan of `tokens` tokens reads its table by: bytes of weights that they read, and the mean number
/// of rows of an expert that has any, both if tokens spread evenly.
pub fn expected(config: &MoeConfig, tokens: usize) -> (f64, usize) {
    (bytes_read(config, tokens), mean_rows(config, tokens))
}

/// Of a forward that is one launch behind the router how it cuts w13 and w2: half the rows of a unit and
/// parts of K. None where it is several.
///
/// # Errors
/// More tokens than the kernels can count.
pub fn one_launch_cuts(layer: &MoeLayer, tokens: usize) -> Result<Option<[[usize; 2]; 2]>> {
    let of = |cut: Cut| [cut.half_rows, cut.parts];
    Ok(layer.plan(tokens)?.few_tokens.as_ref().map(|few| [of(few.first), of(few.second)]))
}

/// Rows of the tiles of a forward of `tokens` tokens.
///
/// # Errors
/// More tokens than the kernels can count.
pub fn block_m(layer: &MoeLayer, tokens: usize) -> Result<usize> {
    Ok(layer.plan(tokens)?.block_m)
}

/// I as the layer's matrices have it: padded to what the kernels take.
pub fn padded_intermediate(config: &MoeConfig) -> usize {
    config.padded_intermediate()
}

/// The local expert of every global one, -1 = not on this rank; none if all are.
pub fn expert_map(config: &MoeConfig) -> Option<Vec<i32>> {
    config.expert_map()
}

/// A step of an expert-parallel forward of one chunk, by itself, on what the workspace holds.
pub fn parallel_step(
    experts: &mut ExpertParallel,
    step: ParallelStep,
    stream: &Stream,
    batch: Batch<'_>,
    workspace: &mut ParallelWorkspace,
    out: &mut Buffer<bf16>,
) -> Result<()> {
    experts.step(step, stream, batch, workspace, out.into())
}
