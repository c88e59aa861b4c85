//! cudarc, linked with `dynamic-linking`, calls libcuda by its symbols. They must reach libcuda and not
//! fp8-moe's emulated device, which this program has as well.
//!
//! `cargo xtask packages` runs it over a libcuda.so.1 of its own, in which every function answers
//! `CUDA_ERROR_NO_DEVICE`.

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUresult;
use fp8_moe::{Device, DeviceSpec, Result};

fn main() -> Result<()> {
    let before = cudarc_answers();
    assert_eq!(before, Some(CUresult::CUDA_ERROR_NO_DEVICE), "the libcuda of this test has no device");

    let device = Device::open(DeviceSpec::Sim)?;
    let stream = device.default_stream();
    assert_eq!(device.upload(&[1_i32, 2, 3])?.to_vec(&stream)?, [1, 2, 3]);

    assert_eq!(cudarc_answers(), before, "an open emulated device changes nothing for cudarc");
    println!("cudarc: {before:?}; fp8-moe: {device:?}");
    Ok(())
}

/// What libcuda answers to cudarc; none if it finds a device.
fn cudarc_answers() -> Option<CUresult> {
    CudaContext::new(0).err().map(|error| error.0)
}
