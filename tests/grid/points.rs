//! Runs points of the layer's grids and holds them to what the specification and the arithmetic say.

use fp8_moe::{MoeLayer, Quantization, Routing, Stream};
use half::bf16;

use crate::common::checks::{Tolerance, out_of_bounds, relative_l2, values};
use crate::common::layers::{config, on_device, run_own};
use crate::common::oracle::{self, Layer};
use crate::common::{Size, device, size};

/// vLLM's tolerance of the per-tensor and per-token grids, against dequantised maths.
const DEQUANTISED: Tolerance = Tolerance { atol: 5.5e-2, rtol: 1e-2 };

/// vLLM's tolerance of the grid of blocks, against maths with quantised activations.
const BLOCKS: Tolerance = Tolerance { atol: 3.5e-2, rtol: 3.5e-2 };

/// The relative L2 distance that the specification names for blocks; the other schemes are held to it too.
const DISTANCE: f64 = 3.5e-2;

/// What outputs are multiplied by. vLLM draws hidden states and weights a tenth as large as standard normal
/// numbers; its outputs are about 0.1 then, which its tolerances are meant for.
pub const FACTOR: f32 = 0.25;

/// Products that the oracle sums for a point, in order of magnitude: as many tokens are compared as that
/// allows, at least one, at most eight.
fn products() -> usize {
    match size() {
        Size::Small => 20_000_000,
        Size::Full => 100_000_000,
    }
}

/// Layers of one size: intermediate and hidden size, experts.
pub struct Points {
    pub quantization: Quantization,
    pub i: usize,
    pub h: usize,
    pub experts: usize,
}

impl Points {
    /// Runs every k with every T on one layer.
    #[track_caller]
    pub fn check(&self, ks: &[usize], ts: &[usize]) {
        let Points { quantization, i, h, experts } = *self;
        let sizes = [experts, ks[0], h, i];
        let mut layer = Layer::random(config(quantization, Routing::Softmax { renormalize: true }, sizes), 8);
        layer.scale_outputs(FACTOR);
        let hidden = oracle::hidden_states(ts.iter().max().map_or(0, |t| t * h), 8);
        for &k in ks {
            layer.config.top_k = k;
            let on_device = on_device(&device(), &layer);
            for &t in ts {
                check_point(&layer, &on_device, &hidden[..t * h]);
            }
        }
    }
}

/// Compares the outputs of some tokens with the oracle, and a replay with the eager run, bit for bit.
#[track_caller]
fn check_point(layer: &Layer, on_device: &MoeLayer, hidden: &[bf16]) {
    let fp8_moe::MoeConfig { hidden_size: h, intermediate_size: i, experts, top_k: k, quantization, .. } =
        layer.config;
    let tokens = hidden.len() / h;
    let what = format!("{quantization}, T {tokens} I {i} H {h} E {experts} k {k}");
    let stream = Stream::new(&device()).unwrap();
    let (out, ids, weights) = run_own(&stream, on_device, hidden).unwrap_or_else(|e| panic!("{what}: {e}"));

    let sample = (products() / (3 * k * h * i)).clamp(1, 8);
    let (mut some, mut ours, mut some_ids, mut some_weights) = (vec![], vec![], vec![], vec![]);
    for token in (0..tokens).step_by(tokens.div_ceil(sample).max(1)) {
        let (row, slots) = (token * h..(token + 1) * h, token * k..(token + 1) * k);
        some.extend_from_slice(&hidden[row.clone()]);
        ours.extend_from_slice(&out[row]);
        some_ids.extend_from_slice(&ids[slots.clone()]);
        some_weights.extend_from_slice(&weights[slots]);
    }
    let expected = layer.forward(&some, &some_ids, &some_weights);
    assert_eq!(out_of_bounds(&ours, &expected), None, "{what}");
    let values = values(&expected);
    let broken = match quantization {
        Quantization::Block128 => BLOCKS.broken(&ours, values.iter().map(|&x| f64::from(x))),
        _ => DEQUANTISED.broken(&ours, layer.dequantised(&some, &some_ids, &some_weights)),
    };
    assert_eq!(broken, None, "{what}");
    let distance = relative_l2(&ours, &values);
    assert!(distance < DISTANCE, "{what}: distance {distance}");
    check_replay(&stream, on_device, hidden, &out, &what);
}

#[track_caller]
fn check_replay(stream: &Stream, layer: &MoeLayer, hidden: &[bf16], eager: &[f32], what: &str) {
    let device = device();
    let mut workspace = layer.workspace(hidden.len() / layer.config().hidden_size).unwrap();
    let hidden = device.upload(hidden).unwrap();
    let mut out = device.uninit::<f32>(eager.len()).unwrap();
    let graph = stream.capture(|stream| layer.forward(stream, &hidden, &mut workspace, &mut out)).unwrap();
    graph.launch(stream).unwrap();
    let replayed = out.to_vec(stream).unwrap();
    let same = eager.iter().zip(&replayed).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same, "{what}: the replay differs from the eager run");
}
