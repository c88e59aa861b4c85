//! The CUDA driver API of the emulated device, called as a C program would.

#![allow(clippy::type_complexity)]

mod capture;
mod context;
mod graph;
mod launch;
mod memory;
mod module;
mod tensor_map;

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

/// The kernels that the tests launch.
const PTX: &str = include_str!("kernels.ptx");

/// Fails the test with the driver's text unless the call succeeded.
#[track_caller]
fn ok(result: CUresult) {
    assert_eq!(result, CUDA_SUCCESS, "{:?}", last_error());
}

/// Initialises and makes the primary context current. Every test has its own thread, and retains for ever:
/// the tests of one process share the context.
fn start() {
    let mut context = null_mut();
    ok(cuInit(0));
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuDevicePrimaryCtxRetain(&mut context, 0) });
    ok(cuCtxSetCurrent(context));
}

/// Device memory with these values.
fn upload<T: Copy>(values: &[T]) -> CUdeviceptr {
    let bytes = size_of_val(values);
    let mut address = 0;
    // SAFETY: a pointer to a live address; then the values' own bytes.
    unsafe {
        ok(cuMemAlloc_v2(&mut address, bytes));
        ok(cuMemcpyHtoD_v2(address, values.as_ptr().cast(), bytes));
    }
    address
}

/// `n` values from device memory.
fn download<T: Copy + Default>(address: CUdeviceptr, n: usize) -> Vec<T> {
    let mut values = vec![T::default(); n];
    // SAFETY: the vector's own bytes; the types used here have no invalid values.
    ok(unsafe { cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, size_of_val(&values[..])) });
    values
}

/// The test kernels, loaded.
fn load() -> CUmodule {
    let text = CString::new(PTX).expect("no NUL in the PTX");
    let mut module = null_mut();
    // SAFETY: NUL-terminated text.
    ok(unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) });
    module
}

fn function(module: CUmodule, name: &str) -> CUfunction {
    let name = CString::new(name).expect("no NUL in the name");
    let mut function = null_mut();
    // SAFETY: NUL-terminated name.
    ok(unsafe { cuModuleGetFunction(&mut function, module, name.as_ptr()) });
    function
}

fn stream() -> CUstream {
    let mut stream = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuStreamCreate(&mut stream, CU_STREAM_NON_BLOCKING) });
    stream
}

/// Launches `saxpy` over `n` elements: `y += a * x`.
fn saxpy(
    function: CUfunction,
    stream: CUstream,
    mut y: CUdeviceptr,
    mut x: CUdeviceptr,
    mut a: f32,
    mut n: u32,
) -> CUresult {
    let mut params: [*mut c_void; 4] =
        [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut a).cast(), (&raw mut n).cast()];
    // SAFETY: four parameters, each pointing to a value of its type.
    unsafe {
        cuLaunchKernel(function, n.div_ceil(256), 1, 1, 256, 1, 1, 0, stream, params.as_mut_ptr(), null_mut())
    }
}

/// The text that the last failing call left.
fn error() -> String {
    take_last_error().unwrap_or_default()
}
