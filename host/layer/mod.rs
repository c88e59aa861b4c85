//! The layer: weights on a device, and a forward.
//!
//! ```text
//! hidden [T, H] --router--> logits [T, E] --top-k--> topk_ids, topk_weights [T, k]
//!        |                                               |
//!        |                                            permute --> expert_offsets, sorted_rows, inverse, tile schedule
//!        |                                               |
//!        +--quantise, scatter--> e4m3 [P, H] --GEMM 1--> [P, 2I] --activation, quantise--> e4m3 [P, I]
//!                                                                                              |
//!                                 out [T, H] <--unpermute, weigh, sum-- [P, H] <--GEMM 2-------+
//! ```
//!
//! With [`Reduction::OrderFree`] the end is another: the quantisation sets sums f32 `[T, H]` to 0, GEMM 2 weighs what it has and adds it
//! to them, and an output of 16 bits is cast from them; an output in f32 is the sums.
//!
//! ```text
//!                                 out [T, H] <--cast-- sums [T, H] <--weigh, add-- GEMM 2 <----+
//! ```
//!
//! For large batches the rows of the tokens, `[T, H]`, are quantised in place, and GEMM 1 gathers them.
//!
//! A forward enqueues these operations on one stream. It neither allocates nor synchronises, so it can be captured in a
//! graph. How many rows an expert gets is known on the device alone.

mod forward;
mod warm_up;
mod weights;
mod workspace;

pub use crate::config::{
    Accumulation, ActivationFunction, Gather, IntermediateScales, MoeConfig, Quantization, Reduction, Routing,
};
pub use forward::{OutputElement, Step};
pub(crate) use weights::ExpertSource;
pub use weights::{ExpertWeights, MoeDeviceWeights, MoeWeights, Progress, RouterWeights};
pub use workspace::Workspace;

use std::ffi::c_void;

use half::bf16;

use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::plan::{self, Plan};
use forward::Call;
pub(crate) use forward::Routed;
use warm_up::{Class, Loaded};
use weights::DeviceWeights;

/// An FP8 MoE layer on a device.
pub struct MoeLayer {
    device: Device,
    config: MoeConfig,
    weights: DeviceWeights,
    loaded: Loaded,
}

const OP: &str = "MoeLayer::forward";

impl MoeLayer {
    /// Copies the weights to the device. They are checked against `config` first.
    pub fn new(device: &Device, config: &MoeConfig, weights: &MoeWeights<'_>) -> Result<MoeLayer> {
        Self::with_progress(device, config, weights, &|_| {})
    }

    /// As [`MoeLayer::new`], telling `progress` after every expert how far it is (from several threads).
    pub fn with_progress(
        device: &Device,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<MoeLayer> {
        plan::check_device(device, config)?;
        Ok(Self::complete(device, config, weights.upload(device, config, progress)?))
    }

    /// As [`MoeLayer::with_progress`], with experts from `source` instead of `weights`, which has none.
    pub(crate) fn from_source(
        device: &Device,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
        source: &dyn ExpertSource,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<MoeLayer> {
        plan::check_device(device, config)?;
        Ok(Self::complete(device, config, weights.upload_from(device, config, source, progress)?))
    }

    /// A layer on weights that are in device memory already. They are checked against `config` first.
    pub fn from_device(device: &Device, config: &MoeConfig, weights: MoeDeviceWeights) -> Result<MoeLayer> {
        config.validate()?;
        plan::check_device(device, config)?;
        weights.validate(device, config)?;
        Ok(Self::complete(device, config, weights.complete(device, config)?))
    }

    fn complete(device: &Device, config: &MoeConfig, weights: DeviceWeights) -> MoeLayer {
        MoeLayer { device: device.clone(), config: config.clone(), weights, loaded: Loaded::default() }
    }

    /// What the layer computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weights.
    pub(crate) fn weights(&self) -> &DeviceWeights {
        &self.weights
    }

    /// Whether the first GEMM of a forward of `tokens` tokens gathers their rows, as [`MoeConfig::gather`] asks.
    ///
    /// # Errors
    /// More tokens than the kernels can count.
    pub fn gathers(&self, tokens: usize) -> Result<bool> {
        Ok(self.plan(tokens)?.gathers())
    }

    /// The plan of forwards of `tokens` tokens.
    pub(crate) fn plan(&self, tokens: usize) -> Result<Plan> {
        Plan::new(&self.device, &self.config, tokens)
    }

    /// Bytes of workspace that a forward of up to `tokens` tokens needs.
    ///
    /// # Errors
    /// More tokens than the kernels can count.
    pub fn workspace_bytes(&self, tokens: usize) -> Result<usize> {
        Plan::workspace_bytes(&self.device, &self.config, tokens)
    }

    /// A workspace for forwards of up to `tokens` tokens.
    ///
    /// # Errors
    /// More tokens than the kernels can count, or than the device has memory for.
    pub fn workspace(&self, tokens: usize) -> Result<Workspace> {
        let memory = self.device.uninit(self.workspace_bytes(tokens)?)?;
        Ok(Workspace::new(self.config.clone(), memory))
    }

    /// Enqueues the layer on `hidden` `[T, H]`, into `out` `[T, H]` of bf16, f16 or f32.
    ///
    /// The first forward of a batch size's class loads the kernels that the class takes, also during a capture; on a GPU that may take
    /// tenths of a second. [`Device::load_kernels`] does it for all beforehand.
    ///
    /// Every row of `out` is written; on a rank with some of the experts it is their part of the sum. The routing can be
    /// read with [`Workspace::routing`] afterwards.
    pub fn forward<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        workspace: &mut Workspace,
        out: impl Into<SliceMut<'a, O>>,
    ) -> Result<()> {
        self.forward_observed(stream, hidden, workspace, out, &|_| {})
    }

    /// As [`MoeLayer::forward`], telling `observe` of every operation before it is enqueued. The emulated device runs an
    /// operation when it is enqueued, so there this shows how far the forward is.
    pub fn forward_observed<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        workspace: &mut Workspace,
        out: impl Into<SliceMut<'a, O>>,
        observe: &dyn Fn(Step),
    ) -> Result<()> {
        self.enqueue(stream, hidden.into(), None, workspace.memory(), out.into(), observe)
    }

    /// As [`MoeLayer::forward`] with a given routing: `topk_ids` and `topk_weights` `[T, k]`. Ids below 0 or past the last
    /// expert contribute nothing.
    pub fn forward_routed<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        topk_ids: impl Into<Slice<'a, i32>>,
        topk_weights: impl Into<Slice<'a, f32>>,
        workspace: &mut Workspace,
        out: impl Into<SliceMut<'a, O>>,
    ) -> Result<()> {
        let routed = Routed { topk_ids: topk_ids.into(), topk_weights: topk_weights.into() };
        self.enqueue(stream, hidden.into(), Some(routed), workspace.memory(), out.into(), &|_| {})
    }

    /// As [`MoeLayer::forward`] for programs that manage device memory and streams themselves (cudarc, candle, their own).
    ///
    /// # Safety
    /// - `stream` is a `CUstream` of the context of the layer's device, or null for its legacy default stream;
    /// - `hidden` is the address of `tokens * H` bf16, `out` of `tokens * H` elements of `O`, `workspace` of
    ///   `workspace_bytes` bytes, all in this device's memory, at multiples of 16 bytes (256 for `workspace`), none
    ///   overlapping another;
    /// - all three stay allocated, and nothing else writes them or reads `workspace` or `out`, until the stream has run
    ///   what is enqueued here.
    pub unsafe fn forward_raw<O: OutputElement>(
        &self,
        stream: *mut c_void,
        tokens: usize,
        hidden: u64,
        workspace: u64,
        workspace_bytes: usize,
        out: u64,
    ) -> Result<()> {
        let aligned = |name, address: u64, alignment: u64| {
            require(address.is_multiple_of(alignment), OP, name, format!("{address:#x}"), || {
                format!("must be a multiple of {alignment}")
            })
        };
        aligned("hidden", hidden, 16)?;
        aligned("workspace", workspace, 256)?;
        aligned("out", out, 16)?;
        let elements = tokens * self.config.hidden_size;
        // SAFETY: the caller's contract is that of `from_raw`, for each of the four.
        let (stream, hidden, workspace, out) = unsafe {
            (
                Stream::from_raw(&self.device, stream),
                Slice::from_raw(&self.device, DevicePtr::from_raw(hidden), elements),
                SliceMut::from_raw(&self.device, DevicePtr::from_raw(workspace), workspace_bytes),
                SliceMut::from_raw(&self.device, DevicePtr::from_raw(out), elements),
            )
        };
        self.enqueue::<O>(&stream, hidden, None, workspace, out, &|_| {})
    }

    /// Checks the arguments and enqueues the operations.
    pub(crate) fn enqueue<O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: Slice<'_, bf16>,
        routed: Option<Routed<'_>>,
        mut workspace: SliceMut<'_, u8>,
        mut out: SliceMut<'_, O>,
        observe: &dyn Fn(Step),
    ) -> Result<()> {
        let h = self.config.hidden_size;
        require(hidden.len().is_multiple_of(h), OP, "hidden", format!("{} elements", hidden.len()), || {
            format!("must be a multiple of {h}, the hidden size")
        })?;
        let tokens = hidden.len() / h;
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be on the layer's device, {}", self.device);
            return Err(crate::Error::argument(OP, "stream", format!("{stream:?}"), rule));
        }
        hidden.check(OP, "hidden", tokens * h, stream)?;
        out.check(OP, "out", tokens * h, stream)?;
        if let Some(Routed { topk_ids, topk_weights }) = &routed {
            topk_ids.check(OP, "topk_ids", tokens * self.config.top_k, stream)?;
            topk_weights.check(OP, "topk_weights", tokens * self.config.top_k, stream)?;
        }
        if tokens == 0 {
            return Ok(());
        }
        let plan = self.plan(tokens)?;
        let bytes = plan.layout.bytes;
        workspace.check_device(OP, "workspace", stream)?;
        require(workspace.len() >= bytes, OP, "workspace", format!("{} bytes", workspace.len()), || {
            format!("must have at least {} bytes for {tokens} tokens", bytes)
        })?;
        let call = Call { config: &self.config, weights: &self.weights, plan: &plan, observe };
        let class = Class::of::<O>(routed.is_some(), &plan);
        self.loaded.ensure(&self.device, class, |rehearsal| {
            let call = Call { observe: &|_| {}, ..call };
            call.enqueue(rehearsal, hidden, routed, workspace.reborrow(), out.reborrow())
        })?;
        call.enqueue(stream, hidden, routed, workspace, out)
    }
}
