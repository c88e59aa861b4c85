//! A layer of a published checkpoint: from a file to hidden states.
//!
//! ```text
//! FP8_MOE_DEVICE=sim cargo run --example 2_checkpoint                      a small layer of this repository
//! cargo run --example 2_checkpoint -- Qwen3-30B-A3B-FP8/ model.layers.7    on a GPU, of a folder of yours
//! ```

use fp8_moe::{Checkpoint, Device, DeviceSpec, Result};
use half::bf16;

const TOKENS: usize = 4;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or("tests/fixtures/qwen3_moe_block.safetensors".into());
    let device = Device::open(DeviceSpec::Auto)?;
    // The config lies beside the file, or in its metadata; a single layer need not be named.
    let layer = Checkpoint::open(path, None)?.load_layer(&device, arguments.next().as_deref())?;

    let hidden = device.upload(&vec![bf16::from_f32(0.5); TOKENS * layer.config().hidden_size])?; // [T, H]
    let mut workspace = layer.workspace(TOKENS)?;
    let mut out = device.zeros::<f32>(hidden.len())?;
    let stream = device.default_stream();
    layer.forward(&stream, &hidden, &mut workspace, &mut out)?; // no allocation, no synchronisation inside

    // The layer's own router has chosen the experts.
    let (ids, weights) = workspace.routing(TOKENS)?;
    println!("token 0: experts {:?}", &ids.to_vec(&stream)?[..layer.config().top_k]);
    println!("         weights {:?}", &weights.to_vec(&stream)?[..layer.config().top_k]);
    let out = out.to_vec(&stream)?;
    println!("{device:?}: {:?} ...", &out[..4]);
    // Equal tokens have equal results.
    let rows: Vec<_> = out.chunks(layer.config().hidden_size).collect();
    assert!(rows.iter().all(|row| row == &rows[0]) && out.iter().all(|x| x.is_finite()));
    Ok(())
}
