//! The memory that a forward works in. What lies where is the plan's (`host/plan/workspace.rs`).

use super::OP;
use crate::config::MoeConfig;
use crate::error::{Result, require};
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::ops::few_tokens::{Control, ControlWords};
use crate::ops::pack_weights::WeightLayout;
use crate::plan::Plan;
use crate::plan::few_tokens::FewTokensPlan;

/// Device memory for the forwards of a layer, one at a time. From [`crate::MoeLayer::workspace`].
///
/// It serves any number of tokens up to that it was made for, and all layers of the same config.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
/// # use half::bf16;
/// # let device = Device::open(DeviceSpec::Sim)?;
/// # let config = MoeConfig::builder().hidden_size(64).intermediate_size(64).experts(2).top_k(1).build()?;
/// # let ones = vec![E4m3::from_f32(1.0); 64 * 64];
/// # let expert = ExpertWeights::new().gate(&ones, &[1.0]).up(&ones, &[1.0]).down(&ones, &[1.0]);
/// # let weights = MoeWeights::new(vec![expert; 2]).router(vec![bf16::ONE; 2 * 64]);
/// # let layer = MoeLayer::new(&device, &config, &weights)?;
/// # let stream = device.default_stream();
/// # let hidden = device.upload(&[bf16::ONE; 3 * 64])?;
/// let (mut workspace, mut out) = (layer.workspace(3)?, device.zeros::<bf16>(3 * 64)?);
/// layer.forward(&stream, &hidden, &mut workspace, &mut out)?;
/// let (ids, weights) = workspace.routing(3)?; // what the router chose, [T, k] each
/// assert_eq!(ids.to_vec(&stream)?, [0, 0, 0], "of equal experts the first");
/// assert_eq!(weights.to_vec(&stream)?, [1.0; 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Workspace {
    config: MoeConfig,
    memory: Buffer<u8>,
    /// What launches whose blocks wait for each other find as the last one left it: zeros at first.
    control: ControlWords,
}

impl Workspace {
    /// Of forwards of up to `tokens` tokens.
    pub(crate) fn new(config: MoeConfig, memory: Buffer<u8>, tokens: usize) -> Result<Workspace> {
        let device = memory.device();
        let control = ControlWords::new(device, FewTokensPlan::most_set_words(device, &config, tokens))?;
        Ok(Workspace { config, memory, control })
    }

    /// Refuses a layer of another config than the workspace was made for. Layers of the same config, e.g.
    /// those of a model, may share one workspace.
    pub(crate) fn check(&self, config: &MoeConfig) -> Result<()> {
        require(self.config == *config, OP, "workspace", "one of a layer of another config", || {
            "must be of this layer, or of one with an equal config".into()
        })
    }

    /// All of the memory.
    pub fn memory(&mut self) -> SliceMut<'_, u8> {
        self.memory.as_mut_slice()
    }

    /// The memory, and the control words beside it.
    pub(crate) fn parts(&mut self) -> (SliceMut<'_, u8>, Control<'_>) {
        (self.memory.as_mut_slice(), self.control.lend())
    }

    /// The offsets of this rank's experts among the rows of the last forward, of `tokens` tokens: i64
    /// `[E_loc + s + 1]`.
    pub(crate) fn expert_offsets(&self, tokens: usize) -> Result<Slice<'_, i64>> {
        let layout = Plan::new(self.memory.device(), &self.config, tokens, WeightLayout::Checkpoint)?.layout;
        Ok(self.memory.slice(layout.expert_offsets).cast())
    }

    /// The routing that the last [`crate::MoeLayer::forward`] with `tokens` tokens chose: ids i32 and weights
    /// f32 `[T, k]`. With a shared expert that is computed as `s` experts they are `[T, k + s]`
    /// ([`MoeConfig::slots`]), of which the last s are `E .. E + s`.
    ///
    /// # Errors
    /// A workspace that is too small for so many tokens.
    pub fn routing(&self, tokens: usize) -> Result<(Slice<'_, i32>, Slice<'_, f32>)> {
        const OP: &str = "Workspace::routing";
        let layout = Plan::new(self.memory.device(), &self.config, tokens, WeightLayout::Checkpoint)?.layout;
        require(layout.topk_weights.end <= self.memory.len(), OP, "tokens", tokens, || {
            format!("must be fewer for a workspace of {} bytes", self.memory.len())
        })?;
        let part = |range| self.memory.slice(range);
        Ok((part(layout.topk_ids).cast(), part(layout.topk_weights).cast()))
    }
}
