//! Random layers with random routings, and how they run.

use fp8_moe::ops::grouped_gemm::Accumulation;
use fp8_moe::{
    ActivationFunction, Device, IntermediateScales, MoeConfig, MoeLayer, OutputElement, Quantization, Result,
    Routing, SliceMut, Stream,
};
use half::bf16;
use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::activation::FUNCTIONS;
use super::families;
use super::oracle::Layer;

pub fn config(quantization: Quantization, routing: Routing, sizes: [usize; 4]) -> MoeConfig {
    let [experts, top_k, hidden_size, intermediate_size] = sizes;
    let sizes = MoeConfig::builder().hidden_size(hidden_size).intermediate_size(intermediate_size);
    let sizes = sizes.experts(experts).top_k(top_k);
    sizes.routing(routing).quantization(quantization).build().expect("a valid config")
}

/// A layer on the device with all experts of `layer`.
pub fn on_device(device: &Device, layer: &Layer) -> MoeLayer {
    MoeLayer::new(device, &layer.config, &layer.weights(&layer.config)).expect("a layer")
}

/// What a workspace holds before a forward.
#[derive(Clone, Copy, Debug)]
pub enum Poison {
    /// Whatever fresh memory holds; on the emulated device, reading it is a fault.
    Fresh,
    /// One byte all over; 0xff makes every float a NaN.
    Byte(u8),
    /// Random bytes.
    Random(u64),
}

impl Poison {
    /// Fills `memory`.
    pub fn fill(self, mut memory: SliceMut<'_, u8>, stream: &Stream) -> Result<()> {
        match self {
            Poison::Fresh => Ok(()),
            Poison::Byte(byte) => memory.fill_bytes(byte, stream),
            Poison::Random(seed) => {
                let mut bytes = vec![0; memory.len()];
                StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
                memory.copy_from(&bytes, stream)
            }
        }
    }
}

/// Runs a layer with its own routing: the output, ids and weights.
pub fn run_own(stream: &Stream, layer: &MoeLayer, hidden: &[bf16]) -> Result<(Vec<f32>, Vec<i32>, Vec<f32>)> {
    let device = stream.device();
    let tokens = hidden.len() / layer.config().hidden_size;
    let mut workspace = layer.workspace(tokens)?;
    let hidden = device.upload(hidden)?;
    let mut out = device.uninit::<f32>(hidden.len())?;
    layer.forward(stream, &hidden, &mut workspace, &mut out)?;
    let (ids, weights) = workspace.routing(tokens)?;
    Ok((out.to_vec(stream)?, ids.to_vec(stream)?, weights.to_vec(stream)?))
}

/// Runs a layer with a given routing, on a workspace filled with `poison`.
pub fn run_routed<O: OutputElement>(
    stream: &Stream,
    layer: &MoeLayer,
    hidden: &[bf16],
    ids: &[i32],
    weights: &[f32],
    poison: Poison,
) -> Result<Vec<O>> {
    let device = stream.device();
    let mut workspace = layer.workspace(hidden.len() / layer.config().hidden_size)?;
    poison.fill(workspace.memory(), stream)?;
    let (hidden, ids, weights) = (device.upload(hidden)?, device.upload(ids)?, device.upload(weights)?);
    let mut out = device.uninit::<O>(hidden.len())?;
    layer.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out)?;
    out.to_vec(stream)
}

/// How a random routing distributes tokens.
#[derive(Clone, Copy, Debug)]
pub enum Skew {
    Uniform,
    /// Low ids far more often than high ones.
    Steep,
    /// Every slot of every token on one expert.
    One,
    /// A third of the ids are negative or past the last expert.
    Invalid,
}

/// Random ids and weights `[T, k]`.
pub fn random_routing(config: &MoeConfig, tokens: usize, skew: Skew, seed: u64) -> (Vec<i32>, Vec<f32>) {
    let mut source = StdRng::seed_from_u64(seed);
    let experts = config.experts as i32;
    let mut all: Vec<i32> = (0..experts).collect();
    let mut ids = Vec::new();
    for _ in 0..tokens {
        all.shuffle(&mut source);
        if matches!(skew, Skew::Steep) {
            all.sort_by_cached_key(|&id| {
                (f64::from(id + 1) * source.random_range(0.0f64..1.0) * 1000.0) as i64
            });
        }
        for &drawn in &all[..config.top_k] {
            ids.push(match skew {
                Skew::One => experts / 2,
                Skew::Invalid if source.random_bool(0.33) => *[-1, experts, i32::MAX, i32::MIN]
                    .get(source.random_range(0..4usize))
                    .expect("one of four"),
                _ => drawn,
            });
        }
    }
    let weights = ids.iter().map(|_| source.random_range(0.05..1.0)).collect();
    (ids, weights)
}

pub fn any_quantization() -> impl Strategy<Value = Quantization> {
    prop::sample::select(&Quantization::ALL)
}

pub fn any_skew() -> impl Strategy<Value = Skew> {
    prop_oneof![Just(Skew::Uniform), Just(Skew::Steep), Just(Skew::One), Just(Skew::Invalid)]
}

prop_compose! {
    /// Any layer: sizes with tails of every kind, up to k = E, every activation.
    pub fn any_config()(
        quantization in any_quantization(),
        experts in 1usize..=12,
        k in 1usize..=12,
        hidden in 1usize..=20,
        intermediate in 1usize..=20,
        activation in prop::sample::select(&FUNCTIONS),
        promoted in prop::bool::weighted(0.7),
        token_scales in prop::bool::weighted(0.3),
        limit in prop::option::weighted(0.3, 0.5f32..3.0),
        gated in prop::bool::weighted(0.8),
    ) -> MoeConfig {
        let sizes = [experts, k.min(experts), hidden * 16, intermediate * 16];
        config(quantization, Routing::Softmax { renormalize: true }, sizes)
            .to_builder()
            .activation(activation)
            .activation_limit(limit)
            .gated(gated || activation != ActivationFunction::Relu2)
            .accumulation(if promoted { Accumulation::Promoted } else { Accumulation::Fast })
            .intermediate_scales(match token_scales {
                true => IntermediateScales::Token,
                false => IntermediateScales::Group128,
            })
            .build()
            .expect("a valid config")
    }
}

/// The tests' device with the kernels of one of its families.
pub fn drawn_device(seed: u64) -> Device {
    let families = families();
    families[seed as usize % families.len()].clone()
}
