//! One MoE layer of a checkpoint, in ten lines: `cargo run --example embed -- CHECKPOINT`.

use fp8_moe::{Checkpoint, Device, DeviceSpec, Result};
use half::bf16;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or("tests/fixtures/qwen3_moe_block.safetensors".into());
    let device = Device::open(DeviceSpec::Auto)?;
    let layer = Checkpoint::open(path, None)?.load_layer(&device, None)?;
    let (stream, tokens) = (device.default_stream(), 4);

    let hidden = device.upload(&vec![bf16::from_f32(0.5); tokens * layer.config().hidden_size])?;
    let mut workspace = layer.workspace(tokens)?;
    let mut out = device.zeros::<f32>(hidden.len())?;
    layer.forward(&stream, &hidden, &mut workspace, &mut out)?;

    println!("{device:?}: {:?} ...", &out.to_vec(&stream)?[..4]);
    Ok(())
}
