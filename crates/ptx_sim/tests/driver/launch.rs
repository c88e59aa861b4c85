//! Launches: arguments, limits, faults, counters.

use std::ffi::c_void;
use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{download, error, function, load, ok, saxpy, start, stream, upload};

#[test]
fn computes() {
    start();
    let module = load();
    let n = 1000;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (dx, dy) = (upload(&x), upload(&vec![1.0_f32; n]));
    take_counters();
    take_launch_log();
    ok(saxpy(function(module, "saxpy"), stream(), dy, dx, 2.0, n as u32));
    let y = download::<f32>(dy, n);
    assert!(y.iter().zip(&x).all(|(y, x)| *y == 1.0 + 2.0 * x));
    let counters = take_counters();
    assert_eq!((counters.launches, counters.blocks), (1, 4));
    assert_eq!(counters.global_store_bytes, 4 * n as u64);
    let log = take_launch_log();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].kernel.as_str(), log[0].grid, log[0].block), ("saxpy", [4, 1, 1], [256, 1, 1]));
    assert!(take_launch_log().is_empty() && take_counters() == Default::default());
}

#[test]
fn takes_packed_arguments() {
    start();
    let module = load();
    let (x, y) = (upload(&[1.0_f32; 10]), upload(&[3.0_f32; 10]));
    let mut packed = Vec::new();
    packed.extend(y.to_le_bytes());
    packed.extend(x.to_le_bytes());
    packed.extend(4.0_f32.to_le_bytes());
    packed.extend(10_u32.to_le_bytes());
    let mut bytes = packed.len();
    let f = function(module, "saxpy");
    let mut launch = |bytes: *mut usize| {
        let mut extra: [*mut c_void; 5] = [
            CU_LAUNCH_PARAM_BUFFER_POINTER as *mut c_void,
            packed.as_mut_ptr().cast(),
            CU_LAUNCH_PARAM_BUFFER_SIZE as *mut c_void,
            bytes.cast(),
            null_mut(),
        ];
        // SAFETY: an array of pairs with its end, a buffer of the size that is given.
        unsafe { cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()) }
    };
    ok(launch(&mut bytes));
    assert_eq!(download::<f32>(y, 10), [7.0; 10]);
    bytes -= 4;
    assert_eq!(launch(&mut bytes), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(error(), "cuLaunchKernel: kernel saxpy: a parameter buffer of 20 bytes, the kernel takes 24");
}

/// Launches `name` without looking at the arguments, which a launch that is refused never reaches.
fn shaped(name: &str, grid: [u32; 3], block: [u32; 3], shared: u32) -> (CUresult, String) {
    let module = load();
    let mut out = upload(&[0_u32; 1024]);
    let (mut value, mut unused) = (5_u32, 0_u64);
    let mut params: [*mut c_void; 4] =
        [(&raw mut out).cast(), (&raw mut value).cast(), (&raw mut unused).cast(), (&raw mut unused).cast()];
    let f = function(module, name);
    let [gx, gy, gz] = grid;
    let [bx, by, bz] = block;
    // SAFETY: at least as many parameters as the kernel has, each of at least its size.
    let result = unsafe {
        cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, null_mut(), params.as_mut_ptr(), null_mut())
    };
    (result, take_last_error().unwrap_or_default())
}

#[test]
fn checks_the_limits_of_a_launch() {
    start();
    let refused = |name, grid, block, shared, text: &str| {
        let (result, error) = shaped(name, grid, block, shared);
        assert_eq!(result, CUDA_ERROR_INVALID_VALUE, "{error}");
        assert!(error.contains(text), "{error}");
    };
    refused("saxpy", [0, 1, 1], [32, 1, 1], 0, "0 blocks in x: must be 1 to 2147483647");
    refused("saxpy", [1, 70000, 1], [32, 1, 1], 0, "70000 blocks in y");
    refused("saxpy", [1, 1, 1], [32, 0, 1], 0, "0 threads in y");
    refused("saxpy", [1, 1, 1], [32, 1, 65], 0, "65 threads in z: must be 1 to 64");
    refused("through_shared", [1, 1, 1], [1024, 2, 1], 0, "2048 threads in a block: at most 1024");
    refused("saxpy", [1, 1, 1], [257, 1, 1], 0, "its .maxntid allows 256");
    refused("through_shared", [1, 1, 1], [32, 1, 1], 49_153, "49152 are allowed until cuFuncSetAttribute");
    refused(
        "through_shared",
        [1, 1, 1],
        [32, 1, 1],
        240_000,
        "bytes of static and dynamic shared memory: at most",
    );
    ok(shaped("through_shared", [1, 1, 1], [1024, 1, 1], 4096).0);
}

#[test]
fn more_shared_memory_after_opting_in() {
    start();
    let module = load();
    let f = function(module, "through_shared");
    ok(cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 64 << 10));
    let mut out = upload(&[0_u32; 128]);
    let mut value = 77_u32;
    let mut params: [*mut c_void; 2] = [(&raw mut out).cast(), (&raw mut value).cast()];
    // SAFETY: two parameters, each pointing to a value of its type.
    ok(unsafe {
        cuLaunchKernel(f, 1, 1, 1, 128, 1, 1, 64 << 10, null_mut(), params.as_mut_ptr(), null_mut())
    });
    assert_eq!(download::<u32>(out, 128), [77; 128]);
}

#[test]
fn extended_launches() {
    start();
    let module = load();
    let f = function(module, "through_shared");
    let mut out = upload(&[0_u32; 32]);
    let mut value = 3_u32;
    let mut params: [*mut c_void; 2] = [(&raw mut out).cast(), (&raw mut value).cast()];
    let mut launch = |grid: u32, attributes: &mut [CUlaunchAttribute]| {
        let config = CUlaunchConfig {
            grid_dim: [grid, 1, 1],
            block_dim: [32, 1, 1],
            shared_mem_bytes: 128,
            stream: null_mut(),
            attrs: attributes.as_mut_ptr(),
            num_attrs: attributes.len() as u32,
        };
        // SAFETY: two parameters, each pointing to a value of its type.
        unsafe { cuLaunchKernelEx(&config, f, params.as_mut_ptr(), null_mut()) }
    };
    take_launch_log();
    ok(launch(1, &mut [CUlaunchAttribute::programmatic_stream_serialization(true)]));
    assert!(take_launch_log()[0].programmatic);
    assert_eq!(download::<u32>(out, 32), [3; 32]);
    assert_eq!(
        launch(100_000, &mut [CUlaunchAttribute::cooperative(true)]),
        CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    );
    assert_eq!(launch(16, &mut [CUlaunchAttribute::cluster([16, 1, 1])]), CUDA_ERROR_INVALID_CLUSTER_SIZE);
    let (mut major, mut minor) = (0, 0);
    // SAFETY: pointers to live integers.
    ok(unsafe { cuDeviceComputeCapability(&mut major, &mut minor, 0) });
    if major >= 9 {
        assert_eq!(launch(3, &mut [CUlaunchAttribute::cluster([2, 1, 1])]), CUDA_ERROR_INVALID_VALUE);
        assert!(error().contains("not whole clusters"));
    }
}
