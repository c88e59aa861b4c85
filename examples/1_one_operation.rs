//! One operation by itself: hidden states to e4m3, one scale for each row and 128 columns.
//!
//! ```text
//! FP8_MOE_DEVICE=sim cargo run --example 1_one_operation       without a GPU: on the emulated device
//! cargo run --example 1_one_operation                          on a GPU
//! ```

use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::{Device, DeviceSpec, E4m3, Result};
use half::bf16;

const ROWS: usize = 3;
const COLUMNS: usize = 256;
const GROUPS: usize = COLUMNS / 128;

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    let stream = device.default_stream();
    let states: Vec<bf16> = (0..ROWS * COLUMNS).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();

    let x = device.upload(&states)?;
    let mut q = device.zeros::<E4m3>(states.len())?;
    let mut scales = device.zeros::<f32>(ROWS * GROUPS)?;
    let arguments = Quantize {
        x: (&x).into(),
        row_weight: None,
        destinations: Destinations::Identity,
        scheme: Scheme::Group {
            group_size: 128,
            scales: scales.as_mut_slice(),
            layout: ScaleLayout::row_major(GROUPS),
        },
        q: q.as_mut_slice(),
        cleared: None,
    };
    // Checks its arguments, enqueues one kernel, and returns.
    quantize(&stream, QuantizeShape { rows: ROWS, columns: COLUMNS }, arguments)?;

    // Copies to the host wait for the stream.
    let (q, scales) = (q.to_vec(&stream)?, scales.to_vec(&stream)?);
    for (i, (state, q)) in states.iter().zip(&q).enumerate() {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        let scale = scales[row * GROUPS + column / 128];
        let error = (q.to_f32() * scale - state.to_f32()).abs();
        // Three bits behind the leading one; below the smallest normal number, steps of 2^-9.
        let bound = (state.to_f32().abs() / 16.0).max(scale / 1024.0) * 1.001;
        assert!(error <= bound, "row {row}, column {column}: {error} > {bound}");
    }
    println!("{device:?}: {} values in e4m3, the first scales {:?}", q.len(), &scales[..GROUPS]);
    Ok(())
}
