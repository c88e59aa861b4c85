//! Initialisation, device queries, contexts.

use std::ffi::CStr;
use std::ptr::null_mut;

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
    ok(cuCtxDestroy_v2(context));
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
fn functions_are_found_by_name() {
    let (mut found, mut status) = (null_mut(), 9);
    // SAFETY: NUL-terminated names, pointers to live values.
    unsafe {
        ok(cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut found, 12080, 0, &mut status));
        assert_eq!(status, 0);
        assert_eq!(Some(found.cast_const()), ptx_sim::driver::function("cuMemAlloc_v2"));
        ok(cuGetProcAddress_v2(c"cuTexObjectCreate".as_ptr(), &mut found, 12080, 0, &mut status));
        assert_eq!((status, found), (1, null_mut()));
        ok(cuGetProcAddress_v2(c"cuGraphInstantiate".as_ptr(), &mut found, 12080, 0, &mut status));
        assert_eq!(Some(found.cast_const()), ptx_sim::driver::function("cuGraphInstantiateWithFlags"));
        assert_eq!(cuGetProcAddress(c"cuNoSuchThing".as_ptr(), &mut found, 12080, 0), CUDA_ERROR_NOT_FOUND);
    }
}
