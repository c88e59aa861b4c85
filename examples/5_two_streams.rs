//! Two batches on two streams, with one layer's weights: each stream has a workspace of its own. The library
//! orders what they share; nobody records an event.
//!
//! ```text
//! FP8_MOE_DEVICE=sim cargo run --example 5_two_streams
//! ```

use fp8_moe::{Checkpoint, Device, DeviceSpec, Result, Stream};
use half::bf16;

const TOKENS: usize = 4;

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    let layer =
        Checkpoint::open("tests/fixtures/qwen3_moe_block.safetensors", None)?.load_layer(&device, None)?;
    let h = layer.config().hidden_size;
    let batch = |start: usize| -> Vec<bf16> {
        (start..start + TOKENS * h).map(|i| bf16::from_f32((i as f32 * 0.01).sin())).collect()
    };
    let (first, second) = (device.upload(&batch(0))?, device.upload(&batch(1000))?);
    let (one, two) = (Stream::new(&device)?, Stream::new(&device)?);
    let (mut of_one, mut of_two) = (layer.workspace(TOKENS)?, layer.workspace(TOKENS)?);
    let (mut out_one, mut out_two) = (device.zeros::<bf16>(TOKENS * h)?, device.zeros::<bf16>(TOKENS * h)?);

    // Side by side: both read the weights, and write memory of their own.
    layer.forward(&one, &first, &mut of_one, &mut out_one)?;
    layer.forward(&two, &second, &mut of_two, &mut out_two)?;

    // Stream `two` reads what `one` writes: it waits, on the device, since the memory says so.
    let mut chained = device.zeros::<bf16>(TOKENS * h)?;
    layer.forward(&two, &out_one, &mut of_two, &mut chained)?;

    let chained = chained.to_vec(&two)?;
    let stream = device.default_stream();
    let mut again = device.zeros::<bf16>(TOKENS * h)?;
    layer.forward(&stream, &first, &mut of_one, &mut out_one)?;
    layer.forward(&stream, &out_one, &mut of_one, &mut again)?;
    assert_eq!(chained, again.to_vec(&stream)?, "the bits of one stream");
    println!("{device:?}: {:?} ... and {:?} ...", &out_two.to_vec(&two)?[..3], &chained[..3]);
    Ok(())
}
