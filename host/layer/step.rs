//! One forward's operations by name, and what all of them read: the config, the weights on the device, the
//! plan.

use super::weights::DeviceWeights;
use crate::config::{MoeConfig, WeightScales};
use crate::ops::grouped_gemm::BScale;
use crate::plan::Plan;

/// What is told every operation of a forward.
pub(crate) type Observer<'a> = &'a dyn Fn(Step);

/// One forward.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub config: &'a MoeConfig,
    pub weights: &'a DeviceWeights,
    /// Of at least one token.
    pub plan: &'a Plan,
    /// Told each operation before it is enqueued.
    pub observe: Option<Observer<'a>>,
}

/// An operation of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// What it is, e.g. `grouped GEMM 1`.
    pub name: &'static str,
    /// Its number, from 0.
    pub index: usize,
}

impl Step {
    /// The operations of forwards, in order. Which of them a forward has depends on the layer and the batch:
    /// it never runs both `unpermute` and `cast`, and the last stands for all behind the router.
    pub const NAMES: [&'static str; 10] = [
        "shared expert",
        "router",
        "permute",
        "quantise",
        "grouped GEMM 1",
        "activation",
        "grouped GEMM 2",
        "unpermute",
        "cast",
        "one launch",
    ];
}

impl Call<'_> {
    /// Tells which operation comes.
    pub(super) fn step(&self, index: usize) {
        if let Some(observe) = self.observe {
            observe(Step { name: Step::NAMES[index], index });
        }
    }

    /// Scales of w13. Gate and up have scales of their own, so that per-tensor scales are scales per channel
    /// here.
    pub(super) fn w13_scale(&self) -> BScale<'_> {
        let scale = self.weights.w13_scale.as_slice();
        match self.config.quantization.weights() {
            WeightScales::Tensor | WeightScales::Channel => BScale::Channel(scale),
            WeightScales::Block128 => BScale::Block(scale),
        }
    }

    /// Scales of w2.
    pub(super) fn w2_scale(&self) -> BScale<'_> {
        let scale = self.weights.w2_scale.as_slice();
        match self.config.quantization.weights() {
            WeightScales::Tensor => BScale::Expert(scale),
            WeightScales::Channel => BScale::Channel(scale),
            WeightScales::Block128 => BScale::Block(scale),
        }
    }
}
