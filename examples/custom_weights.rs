//! A layer from weights of one's own: quantises random f32 matrices per output channel, runs the layer with a
//! routing that the program chooses, captures it in a graph and replays it. `cargo run --example
//! custom_weights`.

use fp8_moe::{
    Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights, Quantization, Result, Stream,
};
use half::bf16;
use rand::{Rng, SeedableRng, rngs::StdRng};

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
    let config = MoeConfig::builder()
        .hidden_size(256)
        .intermediate_size(128)
        .experts(4)
        .top_k(2)
        .quantization(Quantization::ChannelToken)
        .build()?;
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let mut source = StdRng::seed_from_u64(1);
    let mut random = |n: usize| (0..n).map(|_| source.random_range(-0.1..0.1f32)).collect::<Vec<_>>();
    let matrices: Vec<_> = (0..config.experts)
        .map(|_| [quantize(&random(i * h), i), quantize(&random(i * h), i), quantize(&random(h * i), h)])
        .collect();
    let experts = matrices.iter().map(|[gate, up, down]| {
        ExpertWeights::new()
            .gate(&gate.data, &gate.scale)
            .up(&up.data, &up.scale)
            .down(&down.data, &down.scale)
    });
    let weights = MoeWeights::new(experts.collect());

    let device = Device::open(DeviceSpec::Auto)?;
    let stream = Stream::new(&device)?;
    let layer = MoeLayer::new(&device, &config, &weights)?;

    let hidden = device.upload(&random(3 * h).into_iter().map(bf16::from_f32).collect::<Vec<_>>())?;
    let topk_ids = device.upload(&[0, 1, 3, 2, 1, -1])?; // the last token goes to one expert only
    let topk_weights = device.upload(&[0.7f32, 0.3, 0.5, 0.5, 1.0, 0.0])?;
    let mut workspace = layer.workspace(3)?;
    let mut out = device.uninit::<bf16>(3 * h)?;
    let graph = stream.capture(|stream| {
        layer.forward_routed(stream, &hidden, &topk_ids, &topk_weights, &mut workspace, &mut out)
    })?;
    // SAFETY: no permutation uses the memory that the graph writes.
    unsafe { graph.launch(&stream) }?;
    for (token, row) in out.to_vec(&stream)?.chunks(h).enumerate() {
        println!("token {token}: {:?} ...", &row[..4]);
    }
    Ok(())
}
