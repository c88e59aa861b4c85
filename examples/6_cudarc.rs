//! A layer in a program whose memory and streams are cudarc's.
//!
//! ```text
//! cargo run --example 6_cudarc --features cudarc                       on a GPU
//! cargo build -p libcuda_sim && mkdir -p target/sim                    without one: an emulated driver
//! cp target/debug/liblibcuda_sim.so target/sim/libcuda.so.1
//! LD_LIBRARY_PATH=target/sim cargo run --example 6_cudarc --features cudarc
//! ```

use std::error::Error;

use cudarc::driver::CudaContext;
use fp8_moe::{Checkpoint, Device};
use half::bf16;

const TOKENS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;

    // cudarc's context as a device. The layer's weights are buffers of this library in it.
    let device = Device::from_cudarc(&context)?;
    let layer =
        Checkpoint::open("tests/fixtures/qwen3_moe_block.safetensors", None)?.load_layer(&device, None)?;
    let h = layer.config().hidden_size;
    let mut workspace = layer.workspace(TOKENS)?;

    // Memory of cudarc's. With its feature `f16` it would be slices of `bf16`; without, 16 bits are 16 bits.
    let states: Vec<u16> =
        (0..TOKENS * h).map(|i| bf16::from_f32((i as f32 * 0.1).cos()).to_bits()).collect();
    let hidden = stream.clone_htod(&states)?;
    let mut out = stream.alloc_zeros::<f32>(TOKENS * h)?;

    device.cudarc_scope(&stream, |scope| {
        // Borrowed until the scope ends; nothing is copied, and the host waits for nothing.
        let (hidden, out) = (scope.view(&hidden)?.cast::<bf16>(), scope.view_mut(&mut out)?);
        layer.forward(scope.stream(), hidden, &mut workspace, out)
    })?;

    // cudarc goes on in the same stream.
    let out = stream.clone_dtoh(&out)?;
    println!("{device:?}: {:?} ...", &out[..4]);

    // The same with memory of this library.
    let hidden = device.upload(&states.into_iter().map(bf16::from_bits).collect::<Vec<_>>())?;
    let mut own = device.zeros::<f32>(TOKENS * h)?;
    layer.forward(&device.default_stream(), &hidden, &mut workspace, &mut own)?;
    assert_eq!(out, own.to_vec(&device.default_stream())?);
    Ok(())
}
