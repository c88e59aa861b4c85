//! A layer's weights in device memory: given by the caller, or uploaded.

use bytemuck::Pod;
use half::bf16;

use super::shared::{Shared, SharedDeviceWeights};
use super::{OP, check_input_scales, check_table, check_uses_bias};
use crate::config::{MoeConfig, SCALE_BLOCK, WeightScales};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::stream::Stream;
use crate::layer::memory::DeviceMemory;
use crate::ops::pack_weights::{PackedShape, WeightLayout, pack_weights_in_place};

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
