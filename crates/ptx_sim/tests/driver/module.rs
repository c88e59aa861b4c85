//! Loading modules, finding functions and variables, function attributes, occupancy.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{error, function, load, ok, start};

#[test]
fn finds_functions_and_variables() {
    start();
    let module = load();
    let saxpy = function(module, "saxpy");
    assert_eq!(saxpy, function(module, "saxpy"), "one handle per function");
    let (mut missing, mut address, mut bytes, mut count) = (null_mut(), 0, 0, 0);
    // SAFETY: NUL-terminated names, pointers to live values.
    unsafe {
        assert_eq!(cuModuleGetFunction(&mut missing, module, c"saxpi".as_ptr()), CUDA_ERROR_NOT_FOUND);
        assert_eq!(
            error(),
            "cuModuleGetFunction: no kernel saxpi; the module has saxpy, through_shared, null_read"
        );
        ok(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"table".as_ptr()));
        ok(cuModuleGetFunctionCount(&mut count, module));
    }
    assert_eq!((bytes, count), (64, 3));
    assert_ne!(address, 0);
    ok(cuModuleUnload(module));
    let mut value = 0;
    // SAFETY: a pointer to a live integer.
    assert_eq!(unsafe { cuFuncGetAttribute(&mut value, 0, saxpy) }, CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn functions_have_attributes_and_occupancy() {
    start();
    let module = load();
    let (saxpy, shared) = (function(module, "saxpy"), function(module, "through_shared"));
    let attribute = |function, which| {
        let mut value = -1;
        // SAFETY: a pointer to a live integer.
        ok(unsafe { cuFuncGetAttribute(&mut value, which, function) });
        value
    };
    assert_eq!(attribute(saxpy, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 256);
    assert_eq!(attribute(shared, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 1024);
    assert_eq!(attribute(saxpy, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), 48 << 10);
    ok(cuFuncSetAttribute(shared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 90 << 10));
    assert_eq!(attribute(shared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), 90 << 10);
    let too_much = cuFuncSetAttribute(shared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 228 << 10);
    assert_eq!(too_much, CUDA_ERROR_INVALID_VALUE);
    let (mut blocks, mut grid, mut block) = (0, 0, 0);
    // SAFETY: pointers to live integers.
    unsafe {
        ok(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, saxpy, 256, 0));
        assert!((6..=8).contains(&blocks), "{blocks}");
        ok(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, shared, 256, 90 << 10));
        assert!((1..=2).contains(&blocks), "{blocks}");
        ok(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, saxpy, 512, 0));
        assert_eq!(blocks, 0, "more threads than .maxntid");
        ok(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, saxpy, None, 0, 0));
    }
    assert_eq!(block, 256);
    assert!(grid > 0);
    ok(cuModuleUnload(module));
}

fn load_with_log(image: &CStr) -> (CUresult, String, usize) {
    let mut log = [1_u8; 512];
    let mut options = [CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER];
    let mut values = [512 as *mut c_void, log.as_mut_ptr().cast()];
    let mut module = null_mut();
    // SAFETY: NUL-terminated text; two options with two values; the log has its size.
    let result = unsafe {
        cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    let text = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap().to_owned();
    (result, text, values[0] as usize)
}

#[test]
fn load_errors_reach_the_log() {
    start();
    let broken = c".version 8.0\n.target sm_89\n.address_size 64\n.visible .entry k()\n{\n\tfrobnicate.u32 %r1, 2;\n\tret;\n}\n";
    let (result, text, written) = load_with_log(broken);
    assert_eq!(result, CUDA_ERROR_INVALID_PTX);
    assert!(text.contains("line 6") && text.contains("frobnicate"), "{text}");
    assert_eq!(written, text.len() + 1);
    assert!(last_fault().is_some_and(|fault| fault == text));
}

#[test]
fn refuses_other_targets_and_machine_code() {
    start();
    let (result, text, _) = load_with_log(
        c".version 8.7\n.target sm_100a\n.address_size 64\n.visible .entry k()\n{\n\tret;\n}\n",
    );
    assert!([CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_INVALID_PTX].contains(&result), "{result:?}");
    assert!(text.contains("sm_100a"), "{text}");
    let (result, text, _) = load_with_log(c"\x7fELF\x02\x01");
    assert_eq!(result, CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert!(text.contains("only PTX runs here"), "{text}");
}

#[test]
fn loads_a_file() {
    start();
    let mut module = null_mut();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver/kernels.ptx\0");
    // SAFETY: NUL-terminated paths.
    unsafe {
        ok(cuModuleLoad(&mut module, path.as_ptr().cast::<c_char>()));
        ok(cuModuleUnload(module));
        assert_eq!(cuModuleLoad(&mut module, c"/no/such/file".as_ptr()), CUDA_ERROR_FILE_NOT_FOUND);
    }
}
