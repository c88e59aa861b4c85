//! What the package `fp8-moe-cli` measures the layer with. No part of the public API: anything here may
//! change in any release.

pub use crate::error::require;
pub use crate::gpu::graph::{Capture, Recorder};
pub use crate::kernels::{KernelSummary, module, ptx, summaries};
pub use crate::plan::tiles::{BLOCK_M, HopperTile, PortableTile};

use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice};
use crate::gpu::device::Device;
use crate::layer::{MoeConfig, MoeLayer};
use crate::plan::Plan;

/// The weights of a layer, as they lie on the device: [`MoeDeviceWeights`](crate::MoeDeviceWeights) says how.
#[derive(Debug)]
pub struct Weights<'a> {
    /// e4m3 `[E_loc, 2I, H]`, I padded.
    pub w13: Slice<'a, E4m3>,
    /// Its scales.
    pub w13_scale: Slice<'a, f32>,
    /// e4m3 `[E_loc, H, I]`, I padded.
    pub w2: Slice<'a, E4m3>,
    /// Its scales.
    pub w2_scale: Slice<'a, f32>,
    /// f32 `[1]` each, empty where the activations' scales are found at run time.
    pub input_scales: &'a [Buffer<f32>; 2],
}

/// The weights of `layer`.
pub fn weights(layer: &MoeLayer) -> Weights<'_> {
    let weights = layer.weights();
    Weights {
        w13: weights.w13.as_slice(),
        w13_scale: weights.w13_scale.as_slice(),
        w2: weights.w2.as_slice(),
        w2_scale: weights.w2_scale.as_slice(),
        input_scales: &weights.input_scales,
    }
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

/// I as the layer's matrices have it: padded to what the kernels take.
pub fn padded_intermediate(config: &MoeConfig) -> usize {
    config.padded_intermediate()
}

/// The local expert of every global one, -1 = not on this rank; none if all are.
pub fn expert_map(config: &MoeConfig) -> Option<Vec<i32>> {
    config.expert_map()
}
