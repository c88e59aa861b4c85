//! What an embedder writes: a layer of weights of its own, and a forward on the emulated device or a GPU.

use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights, Quantization, Result};
use half::bf16;

const EXPERTS: usize = 4;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 32;
const TOKENS: usize = 3;

fn main() -> Result<()> {
    let spec: DeviceSpec = std::env::args().nth(1).as_deref().unwrap_or("sim").parse()?;
    let device = Device::open(spec)?;
    println!("on {device:?}");

    // Every weight is 1, and so are gate and up.
    let one = E4m3::from_f32(1.0);
    let (wide, tall) = (vec![one; INTERMEDIATE * HIDDEN], vec![one; HIDDEN * INTERMEDIATE]);
    let expert = ExpertWeights::new().gate(&wide, &[1.0]).up(&wide, &[1.0]).down(&tall, &[1.0]);
    let config = MoeConfig::builder()
        .experts(EXPERTS)
        .top_k(2)
        .hidden_size(HIDDEN)
        .intermediate_size(INTERMEDIATE)
        .quantization(Quantization::Block128)
        .build()?;
    let weights = MoeWeights::new(vec![expert; EXPERTS]);
    let layer = MoeLayer::new(&device, &config, &weights)?;

    let hidden = device.upload(&[bf16::from_f32(1.0 / HIDDEN as f32); TOKENS * HIDDEN])?;
    let ids = device.upload(&[0, 3, 1, 2, 2, 0])?;
    let routing_weights = device.upload(&[0.5_f32; TOKENS * 2])?;
    let mut workspace = layer.workspace(TOKENS)?;
    let mut out = device.zeros::<f32>(TOKENS * HIDDEN)?;
    let stream = device.default_stream();
    layer.forward_routed(&stream, &hidden, &ids, &routing_weights, &mut workspace, &mut out)?;

    let out = out.to_vec(&stream)?;
    // silu(1) * 1, summed over the intermediate; the two experts of a token weigh 1 together.
    let expected = INTERMEDIATE as f32 / (1.0 + (-1.0_f32).exp());
    for value in &out {
        assert!((value - expected).abs() < 0.04 * expected, "{value} is not {expected} within the FP8 error");
    }
    println!("{} outputs are {expected:.2} within the FP8 error", out.len());
    Ok(())
}
