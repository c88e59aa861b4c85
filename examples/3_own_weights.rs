//! A layer of weights of one's own, and a routing that the program chooses: what an engine does that has a
//! loader and a router already.
//!
//! ```text
//! FP8_MOE_DEVICE=sim cargo run --example 3_own_weights
//! ```

use fp8_moe::{
    Device, DeviceSpec, E4m3, ExpertWeights, Forward, MoeConfig, MoeLayer, MoeWeights, Output, Quantization,
    Result,
};
use half::bf16;
use rand::{Rng, SeedableRng, rngs::StdRng};

const EXPERTS: usize = 4;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 128;
const TOKENS: usize = 3;

/// A matrix in e4m3 with one scale per row.
struct Channelwise {
    data: Vec<E4m3>,
    scale: Vec<f32>,
}

/// Quantises `rows` rows: the largest magnitude of a row becomes 448.
fn quantize(matrix: &[f32], rows: usize) -> Channelwise {
    let (mut data, mut scale) = (Vec::new(), Vec::new());
    for row in matrix.chunks(matrix.len() / rows) {
        let s = row.iter().fold(0.0f32, |max, x| max.max(x.abs())) / E4m3::MAX;
        data.extend(row.iter().map(|x| E4m3::from_f32(x / s)));
        scale.push(s);
    }
    Channelwise { data, scale }
}

fn main() -> Result<()> {
    let mut source = StdRng::seed_from_u64(1);
    let mut random = |n: usize| (0..n).map(|_| source.random_range(-0.1..0.1f32)).collect::<Vec<_>>();
    let (h, i) = (HIDDEN, INTERMEDIATE);
    let matrices: Vec<_> = (0..EXPERTS)
        .map(|_| [quantize(&random(i * h), i), quantize(&random(i * h), i), quantize(&random(h * i), h)])
        .collect();
    let experts = matrices.iter().map(|[gate, up, down]| {
        ExpertWeights::new()
            .gate(&gate.data, &gate.scale)
            .up(&up.data, &up.scale)
            .down(&down.data, &down.scale)
    });

    let device = Device::open(DeviceSpec::Auto)?;
    let config = MoeConfig::builder()
        .hidden_size(HIDDEN)
        .intermediate_size(INTERMEDIATE)
        .experts(EXPERTS)
        .top_k(2)
        .quantization(Quantization::ChannelToken)
        .build()?;
    let layer = MoeLayer::new(&device, &config, &MoeWeights::new(experts.collect()))?;

    let stream = device.default_stream();
    let hidden = device.upload(&random(TOKENS * h).into_iter().map(bf16::from_f32).collect::<Vec<_>>())?;
    let ids = device.upload(&[0, 1, 3, 2, 1, -1])?; // the last token goes to one expert only
    let weights = device.upload(&[0.7f32, 0.3, 0.5, 0.5, 1.0, 0.0])?;
    let mut workspace = layer.workspace(TOKENS)?;
    let mut out = device.zeros::<f32>(TOKENS * h)?;
    layer.forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut out)?;
    let alone = out.to_vec(&stream)?;

    // The same, added to a residual.
    let residual: Vec<f32> = random(TOKENS * h);
    out.copy_from(&residual, &stream)?;
    let forward = Forward::new(&hidden, &mut workspace, Output::add(&mut out)).routed(&ids, &weights);
    layer.forward_with(&stream, forward)?;
    let sum = out.to_vec(&stream)?;
    assert!(sum.iter().zip(&residual).zip(&alone).all(|((sum, residual), y)| *sum == residual + y));

    println!("on {device:?}");
    for (token, row) in alone.chunks(h).enumerate() {
        println!("token {token}: {:?} ...", &row[..4]);
    }
    Ok(())
}
