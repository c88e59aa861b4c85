//! A layer's weights: as the caller has them on the host, and in `device` as they lie on the device.
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
//! ([`WeightLayout`](crate::ops::pack_weights::WeightLayout)), in place: no second copy of a layer is in memory.

mod device;
pub(super) mod shared;
mod upload;

use std::borrow::Cow;

use half::bf16;

use crate::config::{MoeConfig, Routing};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::Buffer;
use crate::gpu::device::Device;
use crate::ops::router::bf16_planes;
pub(crate) use device::DeviceWeights;
pub use device::MoeDeviceWeights;
use shared::SharedWeights;
pub(crate) use upload::{ExpertSource, Matrix, Scratch};

const OP: &str = "MoeLayer::new";

/// One expert's matrices and scales. A scale multiplies back: `weight ~= e4m3 * scale`.
///
/// Scale lengths, for a matrix `[rows, columns]`: per tensor 1; per channel `rows`; blocks
/// `ceil(rows / 128) * ceil(columns / 128)`, row-major.
///
/// ```
/// # use fp8_moe::{E4m3, ExpertWeights};
/// # let zeros = || vec![E4m3::default(); 4096];
/// # let (gate, up, down) = (zeros(), zeros(), zeros());
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

/// How far loading has come, in bytes of expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Read, checked and on their way to the device so far.
    pub done: u64,
    /// In all.
    pub total: u64,
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
