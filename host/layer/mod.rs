//! The layer: weights on a device, and a forward.
//!
//! ```text
//! hidden [T, H] --router--> logits [T, E] --top-k--> topk_ids, topk_weights [T, k]
//!        |                                               |
//!        |                                            permute --> offsets, sorted_rows, inverse, tile schedule
//!        |                                               |
//!        +--quantise, scatter--> e4m3 [P, H] --GEMM 1--> [P, 2I] --activation, quantise--> e4m3 [P, I]
//!                                                                                              |
//!                                 out [T, H] <--unpermute, weigh, sum-- [P, H] <--GEMM 2-------+
//! ```
//!
//! With [`Reduction::OrderFree`] the end is another: the quantisation sets sums f32 `[T, H]` to 0, GEMM 2
//! weighs what it has and adds it to them, and an output of 16 bits is cast from them; an output in f32 is
//! the sums.
//!
//! ```text
//!                                 out [T, H] <--cast-- sums [T, H] <--weigh, add-- GEMM 2 <----+
//! ```
//!
//! For up to eight tokens everything behind the router is one launch, where the kernel fits the layer
//! (`few_tokens`).
//!
//! For large batches the rows of the tokens, `[T, H]`, are quantised in place, and GEMM 1 gathers them.
//!
//! A forward enqueues these operations on one stream. It neither allocates nor synchronises, so it can be
//! captured in a graph. How many rows an expert gets is known on the device alone.

mod call;
mod element;
mod few_tokens;
mod forward;
mod memory;
mod plans;
mod shared;
mod step;
mod warm_up;
mod weights;
mod workspace;

pub use crate::config::{
    Accumulation, ActivationFunction, ActivationScales, Gather, Gating, IntermediateScales, MoeConfig,
    MoeConfigBuilder, Quantization, Reduction, Routing, SharedExpert, SharedKind, Tuning, WeightScales,
};
pub use call::{
    ExpertIds, Forward, Hidden, Output, OutputType, RawForward, RawHidden, RawOutput, RawRouting, TokenIds,
};
pub use element::OutputElement;
pub use memory::DeviceMemory;
pub use step::Step;
pub use weights::shared::{SharedDeviceWeights, SharedMatrices, SharedWeights};
pub(crate) use weights::{ExpertSource, Matrix, Scratch};
pub use weights::{ExpertWeights, MoeDeviceWeights, MoeWeights, Progress, RouterWeights};
pub use workspace::Workspace;

use std::sync::Arc;

use half::bf16;

use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::stream::Stream;
use crate::ops::pack_weights::WeightLayout;
use crate::ops::quantize::Activations;
use crate::plan::{self, Plan, SharedPlan};
pub(crate) use call::{Request, Routed};
use plans::Plans;
use step::Call;
use warm_up::{Class, Loaded};
use weights::DeviceWeights;

/// An FP8 MoE layer on a device: from weights, as here, or from a [`Checkpoint`](crate::Checkpoint).
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
/// use half::bf16;
///
/// let device = Device::open(DeviceSpec::Sim)?;
/// let config = MoeConfig::builder().hidden_size(64).intermediate_size(64).experts(2).top_k(1).build()?;
/// let ones = vec![E4m3::from_f32(1.0); 64 * 64];
/// let expert = ExpertWeights::new().gate(&ones, &[1.0]).up(&ones, &[1.0]).down(&ones, &[1.0]);
/// let weights = MoeWeights::new(vec![expert; 2]).router(vec![bf16::ONE; 2 * 64]);
/// let layer = MoeLayer::new(&device, &config, &weights)?;
///
/// let hidden = device.upload(&[bf16::ONE; 3 * 64])?; // [T, H]
/// let (mut workspace, mut out) = (layer.workspace(3)?, device.zeros::<bf16>(3 * 64)?);
/// layer.forward(&device.default_stream(), &hidden, &mut workspace, &mut out)?;
/// assert!(out.to_vec(&device.default_stream())?.iter().all(|y| y.to_f32() > 0.0));
/// # Ok(())
/// # }
/// ```
pub struct MoeLayer {
    device: Device,
    config: MoeConfig,
    weights: Arc<DeviceWeights>,
    loaded: Loaded,
    plans: Plans,
}

impl std::fmt::Debug for MoeLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MoeLayer { device, config, .. } = self;
        f.debug_struct("MoeLayer").field("device", device).field("config", config).finish_non_exhaustive()
    }
}

const OP: &str = "MoeLayer::forward";

impl MoeLayer {
    /// Copies the weights to the device. They are checked against `config` first.
    ///
    /// # Errors
    /// Weights that do not fit `config`; a config that the device has no kernels for; too little memory.
    pub fn new(device: &Device, config: &MoeConfig, weights: &MoeWeights<'_>) -> Result<MoeLayer> {
        Self::with_progress(device, config, weights, &|_| {})
    }

    /// As [`MoeLayer::new`], telling `progress` how far it is as it goes on, from several threads.
    ///
    /// # Errors
    /// Those of [`MoeLayer::new`].
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
    ///
    /// # Errors
    /// Those of [`MoeLayer::new`].
    pub fn from_device(device: &Device, config: &MoeConfig, weights: MoeDeviceWeights) -> Result<MoeLayer> {
        config.validate()?;
        plan::check_device(device, config)?;
        weights.validate(device, config)?;
        Ok(Self::complete(device, config, weights.complete(device, config)?))
    }

    fn complete(device: &Device, config: &MoeConfig, weights: DeviceWeights) -> MoeLayer {
        let (loaded, plans) = (Loaded::default(), Plans::default());
        let weights = Arc::new(weights);
        MoeLayer { device: device.clone(), config: config.clone(), weights, loaded, plans }
    }

    /// This layer, planned by another table: on the same weights in the same memory, which stay as long as
    /// either. Workspaces of one are refused by the other.
    ///
    /// # Errors
    /// A table with a number outside its range.
    pub fn tuned(&self, tuning: Tuning) -> Result<MoeLayer> {
        let config = self.config.to_builder().tuning(tuning).build()?;
        let (device, weights) = (self.device.clone(), self.weights.clone());
        Ok(MoeLayer { device, config, weights, loaded: Loaded::default(), plans: Plans::default() })
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

    /// Whether the first GEMM of a forward of `tokens` tokens gathers their rows, as [`MoeConfig::gather`]
    /// asks.
    ///
    /// # Errors
    /// More tokens than the kernels can count.
    pub fn gathers(&self, tokens: usize) -> Result<bool> {
        Ok(self.plan(tokens)?.gathers())
    }

    /// The plan of forwards of `tokens` tokens.
    pub(crate) fn plan(&self, tokens: usize) -> Result<Arc<Plan>> {
        self.plans.get(tokens, || {
            let mut plan = Plan::new(&self.device, &self.config, tokens, self.weights.layout)?;
            // A layer beside this one has weights of its own.
            if let (SharedPlan::Layer(beside), Some(weights::shared::Shared::Layer(weights))) =
                (&mut plan.shared, &self.weights.shared)
                && weights.layout != WeightLayout::Checkpoint
                && let Some(config) = self.config.shared_layer()
            {
                **beside = Plan::new(&self.device, &config, tokens, weights.layout)?;
            }
            if self.weights.expert_biases.is_some() {
                // The launch for few tokens knows none.
                plan.few_tokens = None;
            }
            Ok(plan)
        })
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
        Workspace::new(self.config.clone(), memory, tokens)
    }

    /// Enqueues the layer: hidden states, routing, workspace and output as `forward` has them.
    ///
    /// The first forward of a batch size's class loads the kernels that the class takes, also during a
    /// capture; on a GPU that may take tenths of a second. [`Device::load_kernels`] does it for all
    /// beforehand.
    ///
    /// A shared expert, [`MoeConfig::shared`], is part of the sum. On a rank with some of the experts the
    /// result is their part of the sum. A routing of the layer's own can be read with [`Workspace::routing`]
    /// afterwards.
    ///
    /// # Errors
    /// Slices that are too short or on another device; a workspace of a layer of another config, or for fewer
    /// tokens; types and routing that cannot be combined.
    pub fn forward_with(&self, stream: &Stream, forward: Forward<'_>) -> Result<()> {
        let Forward { hidden, routed, token_ids, workspace, out, observe } = forward;
        workspace.check(&self.config)?;
        let (workspace, control) = workspace.parts();
        let (control, is_weighed) = (Some(control), false);
        let request = Request { hidden, routed, token_ids, workspace, control, out, observe, is_weighed };
        self.enqueue(stream, request)
    }

    /// [`MoeLayer::forward_with`] of bf16 `hidden` `[T, H]` by the layer's own router, written to `out` `[T,
    /// H]` of bf16, f16 or f32.
    ///
    /// # Errors
    /// Those of [`MoeLayer::forward_with`].
    pub fn forward<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        workspace: &mut Workspace,
        out: impl Into<SliceMut<'a, O>>,
    ) -> Result<()> {
        self.forward_with(stream, Forward::new(hidden.into(), workspace, out.into()))
    }

    /// As [`MoeLayer::forward`] with a given routing: `topk_ids` and `topk_weights` `[T, k]`. Ids below 0 or
    /// past the last expert contribute nothing.
    ///
    /// # Errors
    /// Those of [`MoeLayer::forward_with`].
    pub fn forward_routed<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        topk_ids: impl Into<Slice<'a, i32>>,
        topk_weights: impl Into<Slice<'a, f32>>,
        workspace: &mut Workspace,
        out: impl Into<SliceMut<'a, O>>,
    ) -> Result<()> {
        let out = Output::Write(O::erase(out.into()));
        let forward =
            Forward::new(hidden.into(), workspace, out).routed(topk_ids.into(), topk_weights.into());
        self.forward_with(stream, forward)
    }

    /// As [`MoeLayer::forward_with`], by addresses.
    ///
    /// # Safety
    /// - `stream` is as [`Stream::from_raw`] asks for;
    /// - every address is that of as many elements as its field says, in this device's memory; none overlaps
    ///   `workspace` or `out`;
    /// - all stay allocated, and nothing else writes them or reads `workspace` or `out`, until the stream has
    ///   run what is enqueued here.
    ///
    /// # Errors
    /// Those of [`MoeLayer::forward_with`]; addresses that are not aligned.
    pub unsafe fn forward_raw(&self, forward: RawForward) -> Result<()> {
        // SAFETY: the caller's contract.
        let (stream, request) = unsafe {
            let stream = Stream::from_raw(&self.device, forward.stream);
            (stream, forward.request(&self.device, &self.config)?)
        };
        self.enqueue(&stream, request)
    }

    /// Enqueues the layer's router for `hidden` `[T, H]`: ids and weights, `[T, k]`, by way of `logits` `[T,
    /// E]`. With no tokens nothing is launched. Not for experts that are looked up by token id.
    pub(crate) fn route(
        &self,
        stream: &Stream,
        hidden: Slice<'_, bf16>,
        logits: SliceMut<'_, f32>,
        topk_ids: SliceMut<'_, i32>,
        topk_weights: SliceMut<'_, f32>,
    ) -> Result<()> {
        let plan = self.plan(hidden.len() / self.config.hidden_size)?;
        if plan.tokens() == 0 {
            return Ok(());
        }
        let call = Call { config: &self.config, weights: &self.weights, plan: &plan, observe: None };
        call.route(stream, Activations::Bf16(hidden), None, logits, topk_ids, topk_weights)
    }

    /// Checks the arguments and enqueues the operations.
    pub(crate) fn enqueue(&self, stream: &Stream, request: Request<'_>) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be on the layer's device, {}", self.device);
            return Err(crate::Error::argument(OP, "stream", format!("{stream:?}"), rule));
        }
        // Each launch makes the context current where it is not: once here is less than that.
        let _current = self.device.context().enter()?;
        if request.observe.is_some() {
            // It is code of others, which may use the stream as well.
            return self.enqueue_each(stream, request);
        }
        // SAFETY: what a forward uses is the layer's, which is borrowed here, or in the request, whose slices
        // are borrowed until this returns. Without an observer no code of others is called.
        unsafe { stream.together(|| self.enqueue_each(stream, request)) }
    }

    fn enqueue_each(&self, stream: &Stream, mut request: Request<'_>) -> Result<()> {
        let tokens = request.check(&self.config, stream)?;
        if tokens == 0 {
            return Ok(());
        }
        let plan = self.plan(tokens)?;
        let (bytes, len) = (plan.layout.bytes, request.workspace.len());
        request.workspace.check_device(OP, "workspace", stream)?;
        require(len >= bytes, OP, "workspace", format_args!("{len} bytes"), || {
            format!("must have at least {bytes} bytes for {tokens} tokens")
        })?;
        let call =
            Call { config: &self.config, weights: &self.weights, plan: &plan, observe: request.observe };
        let class = Class::of(&request, &plan, &self.config);
        self.loaded.ensure(&self.device, class, |rehearsal| {
            let call = Call { observe: None, ..call };
            call.enqueue(rehearsal, request.reborrow())
        })?;
        call.enqueue(stream, request)
    }
}
