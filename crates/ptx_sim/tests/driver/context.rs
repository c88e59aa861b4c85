//! Initialisation, device queries, contexts.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{error, ok, start};

fn attribute(which: u32) -> i32 {
    let mut value = -1;
    // SAFETY: a pointer to a live integer.
    ok(unsafe { cuDeviceGetAttribute(&mut value, which, 0) });
    value
}

#[test]
fn the_device_says_what_it_is() {
    start();
    let (mut count, mut name) = (0, [0; 64]);
    // SAFETY: pointers to live values, the buffer with its length.
    unsafe {
        ok(cuDeviceGetCount(&mut count));
        ok(cuDeviceGetName(name.as_mut_ptr(), 64, 0));
    }
    assert_eq!(count, 1);
    // SAFETY: the driver has written a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap();
    assert!(name.starts_with("ptx_sim (emulated "), "{name}");
    assert_eq!(attribute(10), 32, "warp size");
    assert!(attribute(16) > 0, "SMs");
    match (attribute(75), attribute(76)) {
        (9, 0) => assert_eq!((attribute(97), attribute(120)), (227 << 10, 1)),
        (8, 9) => assert_eq!((attribute(97), attribute(120)), (99 << 10, 0)),
        other => panic!("capability {other:?}"),
    }
    // SAFETY: a null pointer is refused, not written.
    assert_eq!(unsafe { cuDeviceGetAttribute(null_mut(), 1, 0) }, CUDA_ERROR_INVALID_VALUE);
    let mut value = 0;
    // SAFETY: a pointer to a live integer.
    assert_eq!(unsafe { cuDeviceGetAttribute(&mut value, 1, 7) }, CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(error(), "cuDeviceGetAttribute: device 7: there is one emulated device, 0");
}

#[test]
fn a_thread_needs_a_current_context() {
    ok(cuInit(0));
    let mut address = 0;
    // SAFETY: a pointer to a live address.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 16) }, CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(error(), "cuMemAlloc_v2: no context is current in this thread");
    assert_eq!(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn contexts_stack_and_own_their_memory() {
    start();
    let (mut context, mut current, mut address) = (null_mut(), null_mut(), 0);
    // SAFETY: pointers to live values.
    unsafe {
        ok(cuCtxCreate_v2(&mut context, 0, 0));
        ok(cuCtxGetCurrent(&mut current));
        assert_eq!(context, current);
        ok(cuMemAlloc_v2(&mut address, 1 << 20));
    }
    // SAFETY: it has no page-locked memory.
    ok(unsafe { cuCtxDestroy_v2(context) });
    // SAFETY: as above.
    ok(unsafe { cuCtxGetCurrent(&mut current) });
    assert_ne!(context, current, "the primary context is below");
    assert!(!current.is_null());
    assert_eq!(cuMemFree_v2(address), CUDA_ERROR_INVALID_VALUE, "freed with its context");
    assert_eq!(cuCtxSetCurrent(context), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn error_codes_have_names_and_texts() {
    let mut text = std::ptr::null();
    // SAFETY: a pointer to a live pointer; the texts are NUL-terminated.
    unsafe {
        ok(cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"CUDA_ERROR_ILLEGAL_ADDRESS");
        ok(cuGetErrorString(CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
        assert_eq!(CStr::from_ptr(text), c"an illegal memory access was encountered");
        assert_eq!(cuGetErrorName(CUresult(12345), &mut text), CUDA_ERROR_INVALID_VALUE);
        assert!(text.is_null());
    }
}

#[test]
fn what_is_not_there_says_so() {
    assert_eq!(cuTexObjectCreate(), CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(error(), "cuTexObjectCreate: not implemented by the emulated device");
    assert!(NAMES.is_sorted_by(|a, b| a < b), "each name once, in order");
    for name in NAMES {
        assert!(ptx_sim::driver::function(name).is_some(), "{name} has no address");
    }
    assert!(ptx_sim::driver::function("cuNoSuchThing").is_none());
}

#[test]
fn functions_are_found_by_name_and_version() {
    let asked = |name: &std::ffi::CStr, version: i32| {
        let (mut found, mut status) = (null_mut(), 9);
        // SAFETY: a NUL-terminated name, pointers to live values.
        ok(unsafe { cuGetProcAddress_v2(name.as_ptr(), &mut found, version, 0, &mut status) });
        (found.cast_const(), status)
    };
    let function = |name: &str| (ptx_sim::driver::function(name).expect("it is there"), 0);
    assert_eq!(asked(c"cuMemAlloc", 12080), function("cuMemAlloc_v2"));
    assert_eq!(asked(c"cuMemAlloc", 3020), function("cuMemAlloc_v2"));
    assert_eq!(asked(c"cuMemAlloc", 3010), (null(), 2), "its 32-bit form is gone");
    assert_eq!(asked(c"cuMemcpy", 4000), function("cuMemcpy"));
    assert_eq!(asked(c"cuTexObjectCreate", 12080), (null(), 1));
    // What other arguments have: from which version on.
    assert_eq!(asked(c"cuCtxCreate", 11000), function("cuCtxCreate_v2"));
    assert_eq!(asked(c"cuCtxCreate", 12040), (null(), 1), "cuCtxCreate_v3 is not implemented");
    assert_eq!(asked(c"cuCtxCreate", 12050), function("cuCtxCreate_v4"));
    assert_eq!(asked(c"cuCtxCreate", 13000), function("cuCtxCreate_v4"));
    assert_eq!(asked(c"cuGraphInstantiate", 11040), function("cuGraphInstantiate_v2"));
    assert_eq!(asked(c"cuGraphInstantiate", 12080), function("cuGraphInstantiateWithFlags"));
    assert_eq!(asked(c"cuStreamGetCaptureInfo", 12000), function("cuStreamGetCaptureInfo_v2"));
    assert_eq!(asked(c"cuStreamGetCaptureInfo", 13000), (null(), 1));
    assert_eq!(asked(c"cuGetProcAddress", 11030), function("cuGetProcAddress"));
    assert_eq!(asked(c"cuGetProcAddress", 11020), (null(), 2));
    assert_eq!(asked(c"cuGetProcAddress", 13000), function("cuGetProcAddress_v2"));
    // With CUDA 13 came a second function that takes a context; the first one is what it was. cuda-python 13
    // asks for it by the version that it is made for.
    for version in [2000, 12080, 13000, 13010] {
        assert_eq!(asked(c"cuCtxSynchronize", version), function("cuCtxSynchronize"));
    }
    assert_eq!(asked(c"cuCtxSynchronize_v2", 13000), function("cuCtxSynchronize_v2"));
    let mut found = null_mut();
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuGetProcAddress(c"cuNoSuchThing".as_ptr(), &mut found, 12080, 0), CUDA_ERROR_NOT_FOUND);
    }
}

#[test]
fn the_device_is_known_as_an_emulated_one() {
    start();
    let mut name = [0; 64];
    // SAFETY: as many bytes as are said.
    ok(unsafe { cuDeviceGetName(name.as_mut_ptr(), 64, 0) });
    // SAFETY: the driver ends it with a NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().expect("ASCII");
    assert!(name.starts_with(EMULATED), "{name}");
}

/// A context of its own, current.
fn own() -> CUcontext {
    let mut context = null_mut();
    ok(cuInit(0));
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuCtxCreate_v2(&mut context, 0, 0) });
    context
}

#[test]
fn a_fault_breaks_its_context_until_that_is_destroyed() {
    let context = own();
    let null_read = crate::function(crate::load(), "null_read");
    let run = |kernel| {
        // SAFETY: the kernel has no parameters.
        unsafe { cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut()) }
    };
    assert_eq!(run(null_read), CUDA_ERROR_ILLEGAL_ADDRESS);
    let fault = take_last_fault().expect("the fault is remembered");
    assert!(fault.contains("in kernel null_read, block (0,0,0), thread (0,0,0)"), "{fault}");
    assert!(fault.contains("`ld.global.u32 %r1, [%rd1];`") && !fault.contains('\n'), "{fault}");
    // Every later call has the same code.
    let mut address = 0;
    // SAFETY: a pointer to a live address.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 16) }, CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(error().contains("a kernel has faulted in this context before: out-of-bounds"));
    assert_eq!(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(run(null_read), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(last_fault().is_none(), "nothing has run");
    // What says nothing of its work still answers.
    let mut device = 7;
    // SAFETY: a pointer to a live value.
    ok(unsafe { cuCtxGetDevice(&mut device) });
    assert_eq!(device, 0);
    // SAFETY: it has no page-locked memory.
    ok(unsafe { cuCtxDestroy_v2(context) });
    // Other contexts are not concerned.
    let other = own();
    ok(cuCtxSynchronize());
    // SAFETY: as above.
    ok(unsafe { cuCtxDestroy_v2(other) });
}
