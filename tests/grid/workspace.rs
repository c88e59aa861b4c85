//! ```text
//! workspace: poisoned with NaN and with random bytes before the call; must hold: identical output
//! ```
//!
//! The workspace is that of the layer, in every scheme and on the kernels of every family that the device
//! runs.

use fp8_moe::{IntermediateScales, MoeLayer, Quantization, Routing};

use crate::common::layers::{Poison, Skew, config, random_routing, run_routed};
use crate::common::oracle::{self, Layer};
use crate::common::{Size, families, size, timing};

/// Runs T tokens of a layer [E, k, H, I] on clean and on poisoned memory.
fn check(quantization: Quantization, intermediate_scales: IntermediateScales) {
    let (tokens, sizes): (&[usize], _) = match size() {
        Size::Small => (&[1, 21, 90], [8, 3, 144, 80]),
        Size::Full => (&[1, 21, 224, 4096], [16, 6, 1040, 720]),
    };
    let layer = config(quantization, Routing::Softmax { renormalize: true }, sizes);
    let layer = layer.to_builder().intermediate_scales(intermediate_scales).build().unwrap();
    let layer = Layer::random(layer, 3);
    for device in families() {
        let stream = device.default_stream();
        let on_device = MoeLayer::new(&device, &layer.config, &layer.weights(&layer.config)).unwrap();
        for &tokens in tokens {
            let hidden = oracle::hidden_states(tokens * sizes[2], 4);
            let (ids, weights) = random_routing(&layer.config, tokens, Skew::Invalid, 5);
            let run = |poison| -> Vec<f32> {
                run_routed(&stream, &on_device, &hidden, &ids, &weights, poison).unwrap()
            };
            timing(1);
            let clean: Vec<u32> = run(Poison::Fresh).into_iter().map(f32::to_bits).collect();
            for (seed, poison) in
                (2..).zip([Poison::Byte(0xff), Poison::Random(6), Poison::Random(7), Poison::Byte(0x7f)])
            {
                timing(seed);
                let poisoned = run(poison);
                let same = poisoned.iter().zip(&clean).all(|(a, b)| a.to_bits() == *b);
                assert!(same, "{device}, {quantization}, {tokens} tokens, {poison:?}");
            }
        }
    }
}

#[test]
fn per_tensor() {
    check(Quantization::TensorStatic, IntermediateScales::default());
}

#[test]
fn per_token_in_groups() {
    check(Quantization::ChannelToken, IntermediateScales::Group128);
}

#[test]
fn per_token() {
    check(Quantization::ChannelToken, IntermediateScales::Token);
}

#[test]
fn blocks() {
    check(Quantization::Block128, IntermediateScales::default());
}
