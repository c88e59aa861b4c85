//! A forward captured in a CUDA graph, and replayed while the routing changes: counts per expert are read on
//! the device, so that one graph serves every routing of so many tokens.
//!
//! ```text
//! FP8_MOE_DEVICE=sim cargo run --example 4_graph
//! ```

use fp8_moe::{Checkpoint, Device, DeviceSpec, Result};
use half::bf16;

const TOKENS: usize = 4;

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    let layer =
        Checkpoint::open("tests/fixtures/qwen3_moe_block.safetensors", None)?.load_layer(&device, None)?;
    let (h, k, experts) = (layer.config().hidden_size, layer.config().top_k, layer.config().experts);
    let stream = device.default_stream();

    let hidden: Vec<bf16> = (0..TOKENS * h).map(|i| bf16::from_f32((i as f32 * 0.1).cos())).collect();
    let hidden = device.upload(&hidden)?;
    let mut ids = device.zeros::<i32>(TOKENS * k)?;
    let weights = device.upload(&vec![1.0 / k as f32; TOKENS * k])?;
    let mut workspace = layer.workspace(TOKENS)?;
    let mut out = device.zeros::<bf16>(TOKENS * h)?;

    // Records the launches on a stream of its own; nothing runs. The graph keeps the memory that it uses.
    let graph = stream
        .capture(|stream| layer.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out))?;
    println!("{device:?}: {} kernels", graph.kernels());

    let mut other_workspace = layer.workspace(TOKENS)?;
    let mut expected = device.zeros::<bf16>(TOKENS * h)?;
    for step in 0..3 {
        // Where a model's router would run, in the same graph or before it.
        let chosen: Vec<i32> = (0..TOKENS * k).map(|i| ((i * 3 + step) % experts) as i32).collect();
        ids.copy_from(&chosen, &stream)?;
        graph.launch(&stream)?;

        layer.forward_routed(&stream, &hidden, &ids, &weights, &mut other_workspace, &mut expected)?;
        let (replayed, expected) = (out.to_vec(&stream)?, expected.to_vec(&stream)?);
        assert_eq!(replayed, expected, "the bits of a plain forward");
        println!("step {step}: {:?} ...", &replayed[..3]);
    }
    Ok(())
}
