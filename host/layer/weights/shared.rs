//! The weights of a shared expert: on the host, and as they lie on the device.
//!
//! ```text
//! host                                      device
//! gate, up [Is, H], down [H, Is] e4m3  ->   as experts: the last s of w13 and w2, columns j I .. (j + 1) I
//!                                           of its intermediate being expert E + j
//!                                      ->   beside them: w13, w2 of a layer of one expert
//! the same in bf16 or f32              ->   w13 [planes, 2 Is, H], w2 [planes, H, Is] bf16
//! w_gate [H]                           ->   one more row of the router, and by itself [planes, H]
//! ```
//!
//! To cut an expert into parts changes nothing: the activation goes column by column, and the second
//! projection is a sum over them.

use std::borrow::Cow;

use half::bf16;

use super::{ExpertWeights, MoeDeviceWeights, MoeWeights, RouterWeights, exactly};
use crate::config::{MoeConfig, SCALE_BLOCK, SharedExpert, SharedKind, SharedRun, WeightScales};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::device::Device;
use crate::layer::memory::DeviceMemory;

const OP: &str = "MoeLayer::new";

/// The weights of [`MoeConfig::shared`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SharedWeights<'a> {
    /// Its projections.
    pub matrices: SharedMatrices<'a>,
    /// `[H]`, where the config says that there is a gate.
    pub gate: Option<RouterWeights<'a>>,
}

impl<'a> SharedWeights<'a> {
    /// `matrices`, without a gate.
    pub fn new(matrices: SharedMatrices<'a>) -> SharedWeights<'a> {
        SharedWeights { matrices, gate: None }
    }

    /// With the gate `[H]`.
    pub fn gate(self, gate: impl Into<RouterWeights<'a>>) -> SharedWeights<'a> {
        SharedWeights { gate: Some(gate.into()), ..self }
    }
}

/// The projections of a shared expert, `Is` being the columns of its intermediate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SharedMatrices<'a> {
    /// For [`SharedKind::Quantised`].
    Quantised {
        /// gate and up `[Is, H]`, down `[H, Is]`, with scales as its quantisation has them.
        expert: ExpertWeights<'a>,
        /// For static activations, where it is not computed as experts, which have those of the layer.
        input_scales: Option<[f32; 2]>,
    },
    /// For [`SharedKind::Bf16`].
    Bf16 {
        /// `[Is, H]`, row-major.
        gate: RouterWeights<'a>,
        /// `[Is, H]`, row-major.
        up: RouterWeights<'a>,
        /// `[H, Is]`, row-major.
        down: RouterWeights<'a>,
    },
}

/// The weights of [`MoeConfig::shared`] in device memory.
#[derive(Debug)]
#[non_exhaustive]
pub enum SharedDeviceWeights {
    /// Its matrices are the last `s = Is / I` experts of the layer's; with a gate the router has one more
    /// row, which is the gate.
    Experts {
        /// bf16 `[planes, H]`, for a routing that is given.
        gate: Option<DeviceMemory<bf16>>,
    },
    /// In bf16, each a sum of one to three planes.
    Bf16 {
        /// `[planes, 2 Is, H]`: gate rows, then up rows.
        w13: DeviceMemory<bf16>,
        /// `[planes, H, Is]`.
        w2: DeviceMemory<bf16>,
        /// `[planes, H]`.
        gate: Option<DeviceMemory<bf16>>,
    },
    /// A layer of one expert, whose router is the gate `[planes, 1, H]`, or any numbers if there is none.
    Layer(Box<MoeDeviceWeights>),
}

impl SharedWeights<'_> {
    /// Refuses weights that do not fit `config`, or are not finite.
    pub(in crate::layer) fn validate(&self, config: &MoeConfig, shared: SharedExpert) -> Result<()> {
        let (h, size) = (config.hidden_size, shared.intermediate_size);
        require(self.gate.is_some() == shared.gate, OP, "shared.gate", self.gate.is_some(), || {
            format!("must be given: {}, as the config says", shared.gate)
        })?;
        if let Some(gate) = &self.gate {
            exactly("shared.gate", gate.len(), h)?;
            gate.require_finite("shared.gate")?;
        }
        match (&self.matrices, shared.weights) {
            (SharedMatrices::Quantised { expert, input_scales }, SharedKind::Quantised(quantization)) => {
                let of_expert = MoeConfig { intermediate_size: size, quantization, ..config.clone() };
                expert.validate(&of_expert, "shared")?;
                for (name, matrix) in [("gate", &expert.gate), ("up", &expert.up), ("down", &expert.down)] {
                    if let Some(at) = E4m3::first_nan(matrix) {
                        let name = format!("shared.{name}[{at}]");
                        return require(false, OP, &name, "NaN", || "must be a number".into());
                    }
                }
                let own = config.shared_run() == SharedRun::Beside && quantization.is_static();
                require(
                    input_scales.is_some() == own,
                    OP,
                    "shared.input_scales",
                    format!("{input_scales:?}"),
                    || {
                        "must be given for static activations of a shared expert beside the others, and only there".into()
                    },
                )
            }
            (SharedMatrices::Bf16 { gate, up, down }, SharedKind::Bf16) => {
                for (name, matrix) in [("gate", gate), ("up", up), ("down", down)] {
                    let elements = if name == "gate" && !config.gated { 0 } else { size * h };
                    let name = format!("shared.{name}");
                    exactly(&name, matrix.len(), elements)?;
                    matrix.require_finite(&name)?;
                }
                Ok(())
            }
            (_, kind) => require(false, OP, "shared.matrices", "of another kind", || {
                format!("must be {kind:?}, as the config says")
            }),
        }
    }

    /// The experts that it is computed as, in order; none where it runs beside them.
    pub(in crate::layer) fn parts(&self, config: &MoeConfig) -> Vec<ExpertWeights<'_>> {
        match (&self.matrices, config.shared_slots()) {
            (SharedMatrices::Quantised { expert, .. }, parts) => {
                (0..parts).map(|part| part_of(expert, config, part, parts)).collect()
            }
            (SharedMatrices::Bf16 { .. }, _) => Vec::new(),
        }
    }

    /// Uploads what is not part of the layer's experts.
    pub(in crate::layer) fn upload(
        &self,
        device: &Device,
        config: &MoeConfig,
    ) -> Result<SharedDeviceWeights> {
        let upload = |weights: &RouterWeights<'_>| weights.upload(device).map(DeviceMemory::from);
        let gate = || self.gate.as_ref().map(upload).transpose();
        match (&self.matrices, config.shared_layer()) {
            (SharedMatrices::Bf16 { gate: left, up, down }, _) => Ok(SharedDeviceWeights::Bf16 {
                w13: left.upload_stacked(up, device)?.into(),
                w2: upload(down)?,
                gate: gate()?,
            }),
            (SharedMatrices::Quantised { .. }, None) => Ok(SharedDeviceWeights::Experts { gate: gate()? }),
            (SharedMatrices::Quantised { expert, input_scales }, Some(layer)) => {
                let none = || RouterWeights::Bf16(vec![bf16::ZERO; config.hidden_size].into());
                let weights = MoeWeights {
                    router: Some(self.gate.clone().unwrap_or_else(none)),
                    experts: vec![expert.clone()],
                    input_scales: *input_scales,
                    ..MoeWeights::default()
                };
                weights
                    .upload_all(device, &layer)
                    .map(|weights| SharedDeviceWeights::Layer(Box::new(weights)))
            }
        }
    }
}

/// Columns `part * I .. (part + 1) * I` of the intermediate of an expert that has `parts` times as many as
/// `config` says.
fn part_of<'a>(
    expert: &'a ExpertWeights<'_>,
    config: &MoeConfig,
    part: usize,
    parts: usize,
) -> ExpertWeights<'a> {
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let blocks = h.div_ceil(SCALE_BLOCK);
    // Without a gate there is nothing of it.
    let rows = |matrix: &'a [_]| match matrix {
        [] => Cow::Borrowed(matrix),
        matrix => Cow::Borrowed(&matrix[part * i * h..(part + 1) * i * h]),
    };
    let row_scales = |scales: &'a [f32]| {
        Cow::Borrowed(match config.quantization.weights() {
            _ if scales.is_empty() => scales,
            WeightScales::Tensor => scales,
            WeightScales::Channel => &scales[part * i..(part + 1) * i],
            WeightScales::Block128 if parts == 1 => scales,
            WeightScales::Block128 => {
                &scales[part * (i / SCALE_BLOCK) * blocks..(part + 1) * (i / SCALE_BLOCK) * blocks]
            }
        })
    };
    ExpertWeights {
        gate: rows(&expert.gate),
        up: rows(&expert.up),
        down: columns(&expert.down, parts * i, part * i, i),
        gate_scale: row_scales(&expert.gate_scale),
        up_scale: row_scales(&expert.up_scale),
        down_scale: match config.quantization.weights() {
            WeightScales::Block128 if parts > 1 => columns(
                &expert.down_scale,
                parts * (i / SCALE_BLOCK),
                part * (i / SCALE_BLOCK),
                i / SCALE_BLOCK,
            ),
            _ => Cow::Borrowed(&expert.down_scale),
        },
    }
}

/// `count` columns from `first` on of a matrix with rows of `width`.
fn columns<T: Copy>(matrix: &[T], width: usize, first: usize, count: usize) -> Cow<'_, [T]> {
    if count == width {
        return Cow::Borrowed(matrix);
    }
    matrix.chunks_exact(width).flat_map(|row| row[first..first + count].iter().copied()).collect()
}

/// The weights of a shared expert, as a forward finds them.
pub(crate) enum Shared {
    Experts { gate: Option<DeviceMemory<bf16>> },
    Bf16 { w13: DeviceMemory<bf16>, w2: DeviceMemory<bf16>, gate: Option<DeviceMemory<bf16>> },
    Layer(Box<super::DeviceWeights>),
}

impl SharedDeviceWeights {
    /// Refuses buffers that do not fit `config` or lie on another device.
    pub(in crate::layer) fn validate(
        &self,
        device: &Device,
        config: &MoeConfig,
        shared: SharedExpert,
    ) -> Result<()> {
        let (h, size) = (config.hidden_size, shared.intermediate_size);
        let planes = |name: &str, memory: &DeviceMemory<bf16>, elements: usize| {
            let planes = (memory.len() / elements).clamp(1, 3);
            exactly(name, memory.len(), planes * elements)?;
            require(
                memory.device().same_as(device),
                OP,
                name,
                format!("memory of {}", memory.device()),
                || format!("must be on the layer's device, {device}"),
            )
        };
        let has_gate = |gate: &Option<DeviceMemory<bf16>>| {
            require(gate.is_some() == shared.gate, OP, "shared.gate", gate.is_some(), || {
                format!("must be given: {}, as the config says", shared.gate)
            })?;
            gate.as_ref().map_or(Ok(()), |gate| planes("shared.gate", gate, h))
        };
        let wrong = || {
            require(false, OP, "shared", "of another kind", || {
                format!("must be what {:?} is here: {:?}", shared, config.shared_run())
            })
        };
        match self {
            SharedDeviceWeights::Experts { gate } if config.shared_slots() > 0 => has_gate(gate),
            SharedDeviceWeights::Bf16 { w13, w2, gate } if shared.weights == SharedKind::Bf16 => {
                planes("shared.w13", w13, config.halves() * size * h)?;
                planes("shared.w2", w2, h * size)?;
                has_gate(gate)
            }
            SharedDeviceWeights::Layer(weights) => match config.shared_layer() {
                Some(layer) => {
                    require(weights.router.is_some(), OP, "shared.router", "None", || {
                        "must be the gate, or numbers in its place".into()
                    })?;
                    weights.validate(device, &layer)
                }
                None => wrong(),
            },
            _ => wrong(),
        }
    }

    /// As a forward takes them.
    pub(in crate::layer) fn complete(self, device: &Device, config: &MoeConfig) -> Result<Shared> {
        Ok(match self {
            SharedDeviceWeights::Experts { gate } => Shared::Experts { gate },
            SharedDeviceWeights::Bf16 { w13, w2, gate } => Shared::Bf16 { w13, w2, gate },
            SharedDeviceWeights::Layer(weights) => {
                let layer = config.shared_layer().unwrap_or_else(|| config.clone());
                Shared::Layer(Box::new(weights.complete(device, &layer)?))
            }
        })
    }
}
