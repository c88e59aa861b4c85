//! A layer's weights: as the caller has them on the host, and as they lie on the device.
//!
//! ```text
//! host, per expert                     device
//! gate [I, H], up [I, H]        ->     w13 [E_loc, 2I', H]   gate rows 0..I', up rows I'..2I'
//! down [H, I]                   ->     w2  [E_loc, H, I']
//!
//! scales     per tensor                per channel               128x128 blocks
//! w13        [E_loc, 2I']  (each       [E_loc, 2I']              [E_loc, 2 I'/128, ceil(H/128)]
//!            half its own scale)
//! w2         [E_loc]                   [E_loc, H]                [E_loc, ceil(H/128), I'/128]
//! ```
//!
//! Experts without a gate have up alone in w13, `[E_loc, I', H]`, and biases come per row: `[E_loc, 2I']` and
//! `[E_loc, H]`, f32.
//!
//! `I'` is I, or with block scales I rounded up to a multiple of 128 with zero weights, so that the up half
//! begins at a block. Separate per-tensor scales of gate and up are kept, as scales per channel: nothing is
//! requantised.
//!
//! Where the kernels read packed weights, w13 and w2 are packed on the device when they have been copied
//! ([`WeightLayout`]), in place: no second copy of a layer is in memory.

pub(super) mod shared;
mod upload;

use std::borrow::Cow;

use bytemuck::Pod;
use half::bf16;

use crate::config::{MoeConfig, Routing, SCALE_BLOCK, WeightScales};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::stream::Stream;
use crate::layer::memory::DeviceMemory;
use crate::ops::pack_weights::{PackedShape, WeightLayout, pack_weights_in_place};
use crate::ops::router::bf16_planes;
use shared::{Shared, SharedDeviceWeights, SharedWeights};
pub(crate) use upload::{ExpertSource, Matrix, Scratch};

const OP: &str = "MoeLayer::new";

/// One expert's matrices and scales. A scale multiplies back: `weight ~= e4m3 * scale`.
///
/// Scale lengths, for a matrix `[rows, columns]`: per tensor 1; per channel `rows`; blocks
/// `ceil(rows / 128) * ceil(columns / 128)`, row-major.
///
/// ```
/// # use fp8_moe::{E4m3, ExpertWeights};
/// # let (gate, up, down) = (vec![E4m3::default(); 4096], vec![E4m3::default(); 4096], vec![E4m3::default(); 4096]);
/// // One scale for all of each matrix: I = H = 64 is within one block of 128x128.
/// let expert = ExpertWeights::new().gate(&gate, &[0.5]).up(&up, &[0.5]).down(down, vec![0.25]);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ExpertWeights<'a> {
    /// `[I, H]`, row-major.
    pub gate: Cow<'a, [E4m3]>,
    /// `[I, H]`, row-major.
    pub up: Cow<'a, [E4m3]>,
    /// `[H, I]`, row-major.
    pub down: Cow<'a, [E4m3]>,
    /// Scales of `gate`.
    pub gate_scale: Cow<'a, [f32]>,
    /// Scales of `up`.
    pub up_scale: Cow<'a, [f32]>,
    /// Scales of `down`.
    pub down_scale: Cow<'a, [f32]>,
}

impl<'a> ExpertWeights<'a> {
    /// Matrices without elements, to be given by the methods below, borrowed or owned.
    pub fn new() -> ExpertWeights<'a> {
        ExpertWeights::default()
    }

    /// With `gate` `[I, H]` and its scales.
    pub fn gate(mut self, values: impl Into<Cow<'a, [E4m3]>>, scales: impl Into<Cow<'a, [f32]>>) -> Self {
        (self.gate, self.gate_scale) = (values.into(), scales.into());
        self
    }

    /// With `up` `[I, H]` and its scales.
    pub fn up(mut self, values: impl Into<Cow<'a, [E4m3]>>, scales: impl Into<Cow<'a, [f32]>>) -> Self {
        (self.up, self.up_scale) = (values.into(), scales.into());
        self
    }

    /// With `down` `[H, I]` and its scales.
    pub fn down(mut self, values: impl Into<Cow<'a, [E4m3]>>, scales: impl Into<Cow<'a, [f32]>>) -> Self {
        (self.down, self.down_scale) = (values.into(), scales.into());
        self
    }
}

/// A router's weights `[E, H]`, row-major.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RouterWeights<'a> {
    /// As most checkpoints have them.
    Bf16(Cow<'a, [bf16]>),
    /// For routers that are stored in f32 or f16.
    F32(Cow<'a, [f32]>),
}

impl<'a> From<&'a [bf16]> for RouterWeights<'a> {
    fn from(weights: &'a [bf16]) -> Self {
        RouterWeights::Bf16(weights.into())
    }
}

impl From<Vec<bf16>> for RouterWeights<'_> {
    fn from(weights: Vec<bf16>) -> Self {
        RouterWeights::Bf16(weights.into())
    }
}

impl<'a> From<&'a [f32]> for RouterWeights<'a> {
    fn from(weights: &'a [f32]) -> Self {
        RouterWeights::F32(weights.into())
    }
}

impl RouterWeights<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            RouterWeights::Bf16(weights) => weights.len(),
            RouterWeights::F32(weights) => weights.len(),
        }
    }

    /// Whether element `index` is a finite number.
    fn is_finite(&self, index: usize) -> bool {
        match self {
            RouterWeights::Bf16(weights) => weights[index].is_finite(),
            RouterWeights::F32(weights) => weights[index].is_finite(),
        }
    }

    /// Refuses an element that is not finite.
    pub(super) fn require_finite(&self, name: &str) -> Result<()> {
        match (0..self.len()).find(|&index| !self.is_finite(index)) {
            Some(bad) => {
                require(false, OP, &format!("{name}[{bad}]"), "not finite", || "must be finite".into())
            }
            None => Ok(()),
        }
    }

    /// On the device, as the planes that the kernels take.
    pub(super) fn upload(&self, device: &Device) -> Result<Buffer<bf16>> {
        match self {
            RouterWeights::Bf16(weights) => device.upload(weights),
            RouterWeights::F32(weights) => device.upload(&bf16_planes(weights)),
        }
    }

    /// As [`upload`](Self::upload), with the rows of `below` behind those of this one.
    pub(super) fn upload_stacked(&self, below: &RouterWeights<'_>, device: &Device) -> Result<Buffer<bf16>> {
        match (self, below) {
            (RouterWeights::Bf16(above), RouterWeights::Bf16(below)) => {
                let stream = device.default_stream();
                let mut stacked = device.uninit(above.len() + below.len())?;
                stacked.slice_mut(..above.len()).copy_from(above, &stream)?;
                stacked.slice_mut(above.len()..).copy_from(below, &stream)?;
                Ok(stacked)
            }
            (above, below) => {
                device.upload(&bf16_planes(&[&above.to_f32()[..], &below.to_f32()[..]].concat()))
            }
        }
    }

    /// The elements as f32.
    fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            RouterWeights::Bf16(weights) => weights.iter().map(|w| w.to_f32()).collect(),
            RouterWeights::F32(weights) => Cow::Borrowed(weights),
        }
    }
}

/// All weights of a layer on the host.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MoeWeights<'a> {
    /// Router; without it the layer takes its routing from the caller.
    pub router: Option<RouterWeights<'a>>,
    /// Bias `[E]` of the scores in selection, for [`crate::Routing::Grouped`], and for
    /// [`crate::Routing::SqrtSoftplus`] where scores choose.
    pub correction_bias: Option<Cow<'a, [f32]>>,
    /// `[V, k]`: the experts of each token id, for [`crate::Routing::SqrtSoftplus`] with a vocabulary.
    pub token_experts: Option<Cow<'a, [i32]>>,
    /// This rank's experts, in the order of [`MoeConfig::local_ids`].
    pub experts: Vec<ExpertWeights<'a>>,
    /// For static activations: the scale of the activations before the first projection, and the
    /// second.
    pub input_scales: Option<[f32; 2]>,
    /// `[E]`, added to the logits: gpt-oss.
    pub router_bias: Option<Cow<'a, [f32]>>,
    /// Added to what the projections give, in f32: gate and up `[E_loc, 2I]`, gate first (`[E_loc, I]`
    /// without a gate), and down `[E_loc, H]`. A shared expert has none.
    pub expert_biases: Option<[Cow<'a, [f32]>; 2]>,
    /// For [`MoeConfig::shared`].
    pub shared: Option<SharedWeights<'a>>,
}

impl<'a> MoeWeights<'a> {
    /// `experts` without a router: a layer that takes its routing from the caller.
    pub fn new(experts: Vec<ExpertWeights<'a>>) -> MoeWeights<'a> {
        MoeWeights { experts, ..MoeWeights::default() }
    }

    /// With the layer's own router, `[E, H]` of bf16 or f32.
    pub fn router(self, router: impl Into<RouterWeights<'a>>) -> Self {
        MoeWeights { router: Some(router.into()), ..self }
    }

    /// With [`MoeWeights::correction_bias`].
    pub fn correction_bias(self, bias: impl Into<Cow<'a, [f32]>>) -> Self {
        MoeWeights { correction_bias: Some(bias.into()), ..self }
    }

    /// With [`MoeWeights::token_experts`].
    pub fn token_experts(self, table: impl Into<Cow<'a, [i32]>>) -> Self {
        MoeWeights { token_experts: Some(table.into()), ..self }
    }

    /// With [`MoeWeights::input_scales`].
    pub fn input_scales(self, scales: [f32; 2]) -> Self {
        MoeWeights { input_scales: Some(scales), ..self }
    }

    /// With [`MoeWeights::router_bias`].
    pub fn router_bias(self, bias: impl Into<Cow<'a, [f32]>>) -> Self {
        MoeWeights { router_bias: Some(bias.into()), ..self }
    }

    /// With [`MoeWeights::expert_biases`].
    pub fn expert_biases(self, first: impl Into<Cow<'a, [f32]>>, second: impl Into<Cow<'a, [f32]>>) -> Self {
        MoeWeights { expert_biases: Some([first.into(), second.into()]), ..self }
    }

    /// With [`MoeWeights::shared`].
    pub fn shared(self, shared: SharedWeights<'a>) -> Self {
        MoeWeights { shared: Some(shared), ..self }
    }
}

/// All weights of a layer in device memory, laid out as the kernels read them. For
/// [`crate::MoeLayer::from_device`].
///
/// Each may be the layer's own, shared, or of another program ([`DeviceMemory`]): nothing is copied. Matrices
/// begin at multiples of 16 bytes. The kernels read gate and up as one matrix; [`MoeDeviceWeights::join`]
/// makes it of two.
///
/// I' is I, or with blocks of 128x128 I rounded up to a multiple of 128; what pads it must be zeros, down's
/// columns and gate's and up's rows alike. A scale multiplies back: `weight ~= e4m3 * scale`.
#[derive(Debug)]
#[non_exhaustive]
pub struct MoeDeviceWeights {
    /// Router `[planes, E, H]` (`E + 1` with the gate of a shared expert that is computed as experts), one to
    /// three planes whose sum it is ([`bf16_planes`](crate::ops::router::bf16_planes)); without it the layer
    /// takes its routing from the caller.
    pub router: Option<DeviceMemory<bf16>>,
    /// Bias `[E]` of the scores in selection, for [`crate::Routing::Grouped`], and for
    /// [`crate::Routing::SqrtSoftplus`] where scores choose.
    pub correction_bias: Option<DeviceMemory<f32>>,
    /// `[V, k]`: the experts of each token id, for [`crate::Routing::SqrtSoftplus`] with a vocabulary. An
    /// entry outside `0..E` is a slot that contributes nothing.
    pub token_experts: Option<DeviceMemory<i32>>,
    /// `[E_loc, 2I', H]`: gate rows `0..I'`, up rows `I'..2I'`.
    pub w13: DeviceMemory<E4m3>,
    /// `[E_loc, H, I']`.
    pub w2: DeviceMemory<E4m3>,
    /// `[E_loc, 2I']`, or in blocks `[E_loc, 2I'/128, ceil(H/128)]`. Per-tensor scales are given per channel
    /// too.
    pub w13_scale: DeviceMemory<f32>,
    /// Per tensor `[E_loc]`, per channel `[E_loc, H]`, in blocks `[E_loc, ceil(H/128), I'/128]`.
    pub w2_scale: DeviceMemory<f32>,
    /// For static activations: the scale of the activations before the first projection, and the
    /// second.
    pub input_scales: Option<[f32; 2]>,
    /// How w13 and w2 lie in memory.
    pub layout: WeightLayout,
    /// `[E]`, added to the logits; `E + 1` where the router has so many rows, the last being 0.
    pub router_bias: Option<DeviceMemory<f32>>,
    /// `[E_loc + s, 2I']` and `[E_loc + s, H]`, added to what the projections give, 16-byte aligned; zeros
    /// for the s experts that a shared one is computed as.
    pub expert_biases: Option<[DeviceMemory<f32>; 2]>,
    /// For [`MoeConfig::shared`].
    pub shared: Option<SharedDeviceWeights>,
}

/// How far loading has come, in bytes of expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Read, checked and on their way to the device so far.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// The weights on the device.
pub(crate) struct DeviceWeights {
    pub router: Option<DeviceMemory<bf16>>,
    pub correction_bias: Option<DeviceMemory<f32>>,
    pub token_experts: Option<DeviceMemory<i32>>,
    pub w13: DeviceMemory<E4m3>,
    pub w2: DeviceMemory<E4m3>,
    /// How w13 and w2 lie in memory.
    pub layout: WeightLayout,
    pub w13_scale: DeviceMemory<f32>,
    pub w2_scale: DeviceMemory<f32>,
    /// f32 `[1]` each, empty where the activations' scales are found at run time.
    pub input_scales: [Buffer<f32>; 2],
    /// i32 `[E + s]`, -1 = not on this rank.
    pub expert_map: Option<Buffer<i32>>,
    pub router_bias: Option<DeviceMemory<f32>>,
    pub expert_biases: Option<[DeviceMemory<f32>; 2]>,
    pub shared: Option<Shared>,
}

impl ExpertWeights<'_> {
    /// Refuses matrices and scales that do not fit `config`; `name` is the expert's, for errors.
    pub(super) fn validate(&self, config: &MoeConfig, name: &str) -> Result<()> {
        let (h, i) = (config.hidden_size, config.intermediate_size);
        // Without a gate there is nothing of it.
        let gate = if config.gated { i } else { 0 };
        let matrices = [
            ("gate", &self.gate, &self.gate_scale, gate, h),
            ("up", &self.up, &self.up_scale, i, h),
            ("down", &self.down, &self.down_scale, h, i),
        ];
        for (matrix, data, scale, rows, columns) in matrices {
            exactly(&format!("{name}.{matrix}"), data.len(), rows * columns)?;
            let count = if rows == 0 { 0 } else { config.quantization.weight_scales(rows, columns) };
            exactly(&format!("{name}.{matrix}_scale"), scale.len(), count)?;
        }
        Ok(())
    }
}

/// Refuses a number of elements that is not the expected one.
pub(super) fn exactly(name: &str, len: usize, expected: usize) -> Result<()> {
    require(len == expected, OP, name, format!("{len} elements"), || format!("must have {expected}"))
}

impl MoeWeights<'_> {
    /// Refuses a router that does not fit `config` or is not finite.
    fn validate_router(&self, config: &MoeConfig) -> Result<()> {
        let (h, e) = (config.hidden_size, config.experts);
        if let Some(router) = &self.router {
            exactly("router", router.len(), e * h)?;
            router.require_finite("router")?;
        }
        let finite = |name: &str, values: &[f32], count: usize| {
            exactly(name, values.len(), count)?;
            match values.iter().position(|value| !value.is_finite()) {
                Some(bad) => {
                    require(false, OP, &format!("{name}[{bad}]"), "not finite", || "must be finite".into())
                }
                None => Ok(()),
            }
        };
        if let Some(bias) = &self.correction_bias {
            check_uses_bias(config)?;
            finite("correction_bias", bias, e)?;
        }
        check_table(config, self.router.is_some(), self.token_experts.as_deref().map(<[i32]>::len))?;
        if let Some(bad) =
            self.token_experts.iter().flat_map(|table| table.iter()).find(|&&id| id as u32 as usize >= e)
        {
            require(false, OP, "token_experts", bad, || format!("must be in 0..{e}"))?;
        }
        if let Some(bias) = &self.router_bias {
            finite("router_bias", bias, e)?;
        }
        if let Some([first, second]) = &self.expert_biases {
            let local = config.local_count();
            finite("expert_biases[0]", first, local * config.halves() * config.intermediate_size)?;
            finite("expert_biases[1]", second, local * h)?;
        }
        Ok(())
    }
}

/// Refuses a correction bias where the routing would ignore it.
fn check_uses_bias(config: &MoeConfig) -> Result<()> {
    let uses_bias =
        matches!(config.routing, Routing::Grouped { .. } | Routing::SqrtSoftplus { vocabulary: None, .. });
    require(uses_bias, OP, "correction_bias", "Some", || {
        format!("must be None for {:?}, which ignores it", config.routing)
    })
}

/// Refuses a table of experts by token, of so many elements, that the router does not need, and a router
/// without the one that it needs.
fn check_table(config: &MoeConfig, routes: bool, table: Option<usize>) -> Result<()> {
    match (config.vocabulary(), table) {
        (Some(vocabulary), Some(len)) => exactly("token_experts", len, vocabulary * config.top_k),
        (Some(_), None) => require(!routes, OP, "token_experts", "None", || {
            "must be given: the config's routing looks experts up by token id".into()
        }),
        (None, Some(_)) => require(false, OP, "token_experts", "Some", || {
            format!("must be None for {:?}, which ignores it", config.routing)
        }),
        (None, None) => Ok(()),
    }
}

/// Static activations need scales, others must not have any.
fn check_input_scales(config: &MoeConfig, scales: Option<[f32; 2]>) -> Result<()> {
    let is_static = config.quantization.is_static();
    match scales {
        Some(scales) => {
            let usable = is_static && scales.iter().all(|s| s.is_finite() && *s > 0.0);
            require(usable, OP, "input_scales", format!("{scales:?}"), || {
                "must be positive numbers, and given for static activations only".into()
            })
        }
        None => require(!is_static, OP, "input_scales", "None", || "static activations need them".into()),
    }
}

impl MoeDeviceWeights {
    /// `w13` and `w2`, each with its scales, without a router: a layer that takes its routing from the
    /// caller.
    pub fn new(
        w13: impl Into<DeviceMemory<E4m3>>,
        w13_scale: impl Into<DeviceMemory<f32>>,
        w2: impl Into<DeviceMemory<E4m3>>,
        w2_scale: impl Into<DeviceMemory<f32>>,
    ) -> MoeDeviceWeights {
        MoeDeviceWeights {
            router: None,
            correction_bias: None,
            token_experts: None,
            w13: w13.into(),
            w2: w2.into(),
            w13_scale: w13_scale.into(),
            w2_scale: w2_scale.into(),
            input_scales: None,
            layout: WeightLayout::Checkpoint,
            router_bias: None,
            expert_biases: None,
            shared: None,
        }
    }

    /// With the layer's own router: [`MoeDeviceWeights::router`].
    pub fn router(self, router: impl Into<DeviceMemory<bf16>>) -> Self {
        MoeDeviceWeights { router: Some(router.into()), ..self }
    }

    /// With [`MoeDeviceWeights::correction_bias`].
    pub fn correction_bias(self, bias: impl Into<DeviceMemory<f32>>) -> Self {
        MoeDeviceWeights { correction_bias: Some(bias.into()), ..self }
    }

    /// With [`MoeDeviceWeights::token_experts`].
    pub fn token_experts(self, table: impl Into<DeviceMemory<i32>>) -> Self {
        MoeDeviceWeights { token_experts: Some(table.into()), ..self }
    }

    /// With [`MoeDeviceWeights::input_scales`].
    pub fn input_scales(self, scales: [f32; 2]) -> Self {
        MoeDeviceWeights { input_scales: Some(scales), ..self }
    }

    /// With w13 and w2 that lie in memory so.
    pub fn layout(self, layout: WeightLayout) -> Self {
        MoeDeviceWeights { layout, ..self }
    }

    /// Packs `w13` and `w2` of a layer of `config`, as a checkpoint has them, where they are, if the layer's
    /// kernels read packed weights and these fit there; says how they lie in memory then, which is to be told
    /// by [`MoeDeviceWeights::layout`]. Packed weights take [`PackedShape::len`] elements, more than a
    /// checkpoint has where H or I is no multiple of 128: slices of that length begin with the checkpoint's.
    /// Enqueued on `stream`, with memory for one expert meanwhile.
    ///
    /// # Errors
    /// Slices on another device; too little memory.
    pub fn pack(
        stream: &Stream,
        config: &MoeConfig,
        w13: SliceMut<'_, E4m3>,
        w2: SliceMut<'_, E4m3>,
    ) -> Result<WeightLayout> {
        let device = stream.device();
        let Some([first, second]) = PackedShape::of_layer(device, config).filter(|[first, second]| {
            !first.is_empty() && w13.len() >= first.len() && w2.len() >= second.len()
        }) else {
            return Ok(WeightLayout::Checkpoint);
        };
        let most = first.of_one().checkpoint_len().max(second.of_one().checkpoint_len());
        let mut scratch = device.uninit(most)?;
        pack_weights_in_place(stream, first, w13, scratch.as_mut_slice())?;
        pack_weights_in_place(stream, second, w2, scratch.as_mut_slice())?;
        Ok(WeightLayout::Packed)
    }

    /// With [`MoeDeviceWeights::router_bias`].
    pub fn router_bias(self, bias: impl Into<DeviceMemory<f32>>) -> Self {
        MoeDeviceWeights { router_bias: Some(bias.into()), ..self }
    }

    /// With [`MoeDeviceWeights::expert_biases`].
    pub fn expert_biases(
        self,
        first: impl Into<DeviceMemory<f32>>,
        second: impl Into<DeviceMemory<f32>>,
    ) -> Self {
        MoeDeviceWeights { expert_biases: Some([first.into(), second.into()]), ..self }
    }

    /// With [`MoeDeviceWeights::shared`].
    pub fn shared(self, shared: SharedDeviceWeights) -> Self {
        MoeDeviceWeights { shared: Some(shared), ..self }
    }

    /// Elements that the buffers of a layer must have: of w13, w2, w13_scale and w2_scale. They hold this
    /// rank's experts, and behind them those that a shared expert is computed as. Packed, w13 and w2 have the
    /// elements of their [`PackedShape`].
    pub fn lengths(config: &MoeConfig) -> [usize; 4] {
        let (local, hidden, padded) =
            (config.slot_local_experts(), config.hidden_size, config.padded_intermediate());
        let rows = config.halves() * padded;
        let (w13_scale, w2_scale) = match config.quantization.weights() {
            WeightScales::Tensor => (rows, 1),
            WeightScales::Channel => (rows, hidden),
            WeightScales::Block128 => {
                let (hidden, intermediate) = (hidden.div_ceil(SCALE_BLOCK), padded / SCALE_BLOCK);
                (rows / SCALE_BLOCK * hidden, hidden * intermediate)
            }
        };
        [rows * hidden, hidden * padded, w13_scale, w2_scale].map(|each| local * each)
    }

    /// Gate and up that lie apart, as the one array that the kernels read, enqueued on `stream`: for w13 from
    /// two `[experts, I', H]`, and for `w13_scale` from their scales. The only copy that a layer over memory
    /// of others needs.
    ///
    /// # Errors
    /// Halves of different lengths, on another device than the stream's, or that do not divide by `experts`.
    pub fn join<T: Pod>(
        stream: &Stream,
        experts: usize,
        gate: Slice<'_, T>,
        up: Slice<'_, T>,
    ) -> Result<Buffer<T>> {
        const OP: &str = "MoeDeviceWeights::join";
        let len = gate.len();
        require(up.len() == len, OP, "up", format!("{} elements", up.len()), || {
            format!("must have {len}, as gate has")
        })?;
        require(experts > 0 && len.is_multiple_of(experts), OP, "experts", experts, || {
            format!("must divide the {len} elements of gate")
        })?;
        let mut joined = stream.device().uninit(2 * len)?;
        let each = len / experts;
        for expert in 0..experts {
            let (from, to) = (expert * each, 2 * expert * each);
            joined.slice_mut(to..to + each).copy_from_device(gate.slice(from..from + each), stream)?;
            joined
                .slice_mut(to + each..to + 2 * each)
                .copy_from_device(up.slice(from..from + each), stream)?;
        }
        Ok(joined)
    }

    /// Refuses buffers that do not fit `config` or lie on another device.
    pub(crate) fn validate(&self, device: &Device, config: &MoeConfig) -> Result<()> {
        let exactly = |name: &str, buffer: (usize, &Device), expected: usize| {
            let (len, on) = buffer;
            require(len == expected, OP, name, format!("{len} elements"), || {
                format!("must have {expected}")
            })?;
            require(on.same_as(device), OP, name, format!("memory of {on}"), || {
                format!("must be on the layer's device, {device}")
            })
        };
        let [mut w13, mut w2, w13_scale, w2_scale] = Self::lengths(config);
        if self.layout == WeightLayout::Packed {
            let shapes = PackedShape::of_layer(device, config);
            require(shapes.is_some(), OP, "layout", "Packed", || {
                "must be Checkpoint but for the Hopper kernels and sizes that are nearly multiples of 128"
                    .into()
            })?;
            [w13, w2] = shapes.map_or([w13, w2], |shapes| shapes.map(|shape| shape.len()));
        }
        exactly("w13", (self.w13.len(), self.w13.device()), w13)?;
        exactly("w2", (self.w2.len(), self.w2.device()), w2)?;
        exactly("w13_scale", (self.w13_scale.len(), self.w13_scale.device()), w13_scale)?;
        exactly("w2_scale", (self.w2_scale.len(), self.w2_scale.device()), w2_scale)?;
        if let Some(router) = &self.router {
            let gate = config.logits() * config.hidden_size;
            let planes = (router.len() / gate).clamp(1, 3);
            exactly("router", (router.len(), router.device()), planes * gate)?;
        }
        if let Some(bias) = &self.correction_bias {
            check_uses_bias(config)?;
            exactly("correction_bias", (bias.len(), bias.device()), config.experts)?;
        }
        let table = self.token_experts.as_ref();
        check_table(config, self.router.is_some(), table.map(DeviceMemory::len))?;
        if let Some(table) = table {
            exactly("token_experts", (table.len(), table.device()), table.len())?;
        }
        if let Some(bias) = &self.router_bias {
            let rows = config.logits();
            exactly("router_bias", (bias.len(), bias.device()), rows)?;
        }
        if let Some([first, second]) = &self.expert_biases {
            let (local, columns) =
                (config.slot_local_experts(), config.halves() * config.padded_intermediate());
            exactly("expert_biases[0]", (first.len(), first.device()), local * columns)?;
            exactly("expert_biases[1]", (second.len(), second.device()), local * config.hidden_size)?;
        }
        match (&self.shared, config.shared) {
            (Some(weights), Some(shared)) => weights.validate(device, config, shared)?,
            (weights, shared) => {
                let fits = weights.is_some() == shared.is_some();
                require(fits, OP, "shared", format!("given: {}", weights.is_some()), || {
                    format!("must be given: {}, as the config says", shared.is_some())
                })?;
            }
        }
        check_input_scales(config, self.input_scales)
    }

    /// Adds what the layer needs besides.
    pub(crate) fn complete(self, device: &Device, config: &MoeConfig) -> Result<DeviceWeights> {
        Ok(DeviceWeights {
            router: self.router,
            correction_bias: self.correction_bias,
            token_experts: self.token_experts,
            w13: self.w13,
            w2: self.w2,
            layout: self.layout,
            w13_scale: self.w13_scale,
            w2_scale: self.w2_scale,
            input_scales: match self.input_scales {
                Some([first, second]) => [device.upload(&[first])?, device.upload(&[second])?],
                None => [device.uninit(0)?, device.uninit(0)?],
            },
            router_bias: self.router_bias,
            expert_biases: self.expert_biases,
            expert_map: config.expert_map().map(|map| device.upload(&map)).transpose()?,
            shared: self.shared.map(|shared| shared.complete(device, config)).transpose()?,
        })
    }
}
