//! One forward's operations by name, and what all of them read: the config, the weights on the device, the
//! plan.

use super::weights::DeviceWeights;
use crate::config::{MoeConfig, WeightScales};
use crate::ops::grouped_gemm::BScale;
use crate::plan::Plan;

/// What is told every operation of a forward. It may capture each by itself and replay it: operations that
/// are observed leave what they read as it is.
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::config::{MoeConfig, Quantization};
    use crate::gpu::device::Device;
    use crate::layer::{Forward, MoeDeviceWeights, MoeLayer};

    /// What GEMM 2 wrote is discarded in a forward that nobody observes, row by whole lines; in others it is
    /// still there.
    #[test]
    fn observed_operations_keep_what_they_read() {
        let device = Device::for_test(None);
        if !device.is_emulated() {
            return;
        }
        for (hidden_size, observes, expected) in [(192, false, 0xdd), (192, true, 0), (96, false, 0)] {
            let quantization = Quantization::ChannelToken;
            let sizes =
                MoeConfig { hidden_size, intermediate_size: 128, experts: 2, top_k: 2, ..Default::default() };
            let config = MoeConfig { quantization, ..sizes };
            let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&config);
            let [w13_scale, w2_scale] = [w13_scale, w2_scale].map(|len| device.zeros(len).expect("memory"));
            let [w13, w2] = [w13, w2].map(|len| device.zeros(len).expect("memory"));
            let weights = MoeDeviceWeights::new(w13, w13_scale, w2, w2_scale);
            let weights = weights.router(device.zeros(2 * hidden_size).expect("memory"));
            let layer = MoeLayer::from_device(&device, &config, weights).expect("a layer");
            let tokens = 150;
            let hidden = device.zeros::<bf16>(tokens * hidden_size).expect("memory");
            let mut out = device.zeros::<bf16>(tokens * hidden_size).expect("memory");
            let mut workspace = layer.workspace(tokens).expect("memory");
            let stream = device.default_stream();
            // Twice: nothing is read that the first has discarded.
            for _ in 0..2 {
                let mut forward = Forward::new(&hidden, &mut workspace, &mut out);
                if observes {
                    forward = forward.observed(&|_| ());
                }
                layer.forward_with(&stream, forward).expect("a forward");
            }
            let products = layer.plan(tokens).expect("a plan").layout.products.start;
            let bytes = tokens * 2 * hidden_size * 2;
            let rows =
                workspace.memory().slice_mut(products..products + bytes).to_vec(&stream).expect("a copy");
            assert!(rows.iter().all(|&byte| byte == expected), "{hidden_size} columns, observed: {observes}");
        }
    }
}
