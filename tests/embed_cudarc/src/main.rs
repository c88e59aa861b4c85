//! cudarc, linked with `dynamic-linking`, calls libcuda by its symbols. They must reach libcuda and not
//! fp8-moe's emulated device, which this program has as well.
//!
//! `cargo xtask packages` runs it over a libcuda.so.1 of its own, in which every function answers
//! `CUDA_ERROR_NO_DEVICE`. On a computer with a GPU, `embed_cudarc gpu` runs a layer in cudarc's context: by
//! the safe call, and by the raw one in a graph that cudarc captures; and prints the time that a forward
//! takes of the thread that enqueues it.

mod gpu;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("gpu") { gpu::run() } else { beside_libcuda() }
}

#[cfg(feature = "sim")]
fn beside_libcuda() -> Result<(), Box<dyn std::error::Error>> {
    use cudarc::driver::CudaContext;
    use cudarc::driver::sys::CUresult;
    use fp8_moe::{Device, DeviceSpec};

    // What libcuda answers to cudarc; none if it finds a device.
    let answer = || CudaContext::new(0).err().map(|error| error.0);
    let before = answer();
    assert_eq!(before, Some(CUresult::CUDA_ERROR_NO_DEVICE), "the libcuda of this test has no device");

    let device = Device::open(DeviceSpec::Sim)?;
    let stream = device.default_stream();
    assert_eq!(device.upload(&[1_i32, 2, 3])?.to_vec(&stream)?, [1, 2, 3]);

    assert_eq!(answer(), before, "an open emulated device changes nothing for cudarc");
    println!("cudarc: {before:?}; fp8-moe: {device:?}");
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn beside_libcuda() -> Result<(), Box<dyn std::error::Error>> {
    Err("this program was built without the emulated device: run `embed_cudarc gpu`".into())
}
