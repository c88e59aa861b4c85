//! Allocation, copies, fills, pointer queries.

use std::ffi::c_void;
use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{download, error, ok, start, stream, upload};

#[test]
fn copies_there_and_back() {
    start();
    let values: Vec<u32> = (0..1000).collect();
    let a = upload(&values);
    let b = upload(&[0_u32; 1000]);
    ok(cuMemcpyDtoD_v2(b + 400, a, 400));
    let back = download::<u32>(b, 1000);
    assert_eq!(back[..100], [0; 100]);
    assert_eq!(back[100..200], values[..100]);
    let s = stream();
    let mut host = [0_u32; 4];
    // SAFETY: the array's own bytes.
    unsafe {
        ok(cuMemcpyHtoDAsync_v2(b, [7_u32, 8, 9, 10].as_ptr().cast(), 16, s));
        ok(cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), b, 16, s));
    }
    ok(cuStreamSynchronize(s));
    assert_eq!(host, [7, 8, 9, 10]);
    // SAFETY: unified addresses of live memory.
    ok(unsafe { cuMemcpy(host.as_mut_ptr() as u64, a + 4, 16) });
    assert_eq!(host, [1, 2, 3, 4]);
    ok(cuMemFree_v2(a));
    ok(cuMemFree_v2(b));
}

#[test]
fn fills_with_bytes_and_words() {
    start();
    let a = upload(&[0_u8; 16]);
    ok(cuMemsetD8_v2(a, 0xab, 16));
    ok(cuMemsetD16_v2(a + 2, 0x1234, 1));
    ok(cuMemsetD32Async(a + 8, 0xdead_beef, 1, stream()));
    let expected = [0xab, 0xab, 0x34, 0x12, 0xab, 0xab, 0xab, 0xab, 0xef, 0xbe, 0xad, 0xde];
    assert_eq!(download::<u8>(a, 12), expected);
    assert_eq!(cuMemsetD32_v2(a + 2, 0, 1), CUDA_ERROR_INVALID_VALUE);
    assert!(error().ends_with("must be a multiple of 4"));
    ok(cuMemFree_v2(a));
}

#[test]
fn refuses_what_is_not_device_memory() {
    start();
    let a = upload(&[0_u8; 64]);
    let mut host = [0_u8; 65];
    // SAFETY: the array's own bytes.
    let past = unsafe { cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), a, 65) };
    assert_eq!(past, CUDA_ERROR_INVALID_VALUE);
    assert!(error().contains("outside the allocation of 64 bytes"), "{}", error());
    assert_eq!(cuMemFree_v2(a + 1), CUDA_ERROR_INVALID_VALUE);
    ok(cuMemFree_v2(a));
    assert_eq!(cuMemFree_v2(a), CUDA_ERROR_INVALID_VALUE);
    let mut address = 0;
    // SAFETY: a pointer to a live address.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut address, 0), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(cuMemAlloc_v2(&mut address, 1 << 50), CUDA_ERROR_OUT_OF_MEMORY);
    }
    assert!(error().contains("out of device memory"));
}

#[test]
fn pointers_tell_what_they_are() {
    start();
    let a = upload(&[0_u8; 100]);
    let (mut base, mut bytes, mut kind, mut host) = (0, 0, 0_i32, null_mut::<c_void>());
    // SAFETY: pointers to live values of the attributes' types.
    unsafe {
        ok(cuMemGetAddressRange_v2(&mut base, &mut bytes, a + 50));
        assert_eq!((base, bytes), (a, 100));
        ok(cuPointerGetAttribute((&raw mut kind).cast(), 2, a + 99));
        assert_eq!(kind, 2);
        ok(cuMemAllocHost_v2(&mut host, 100));
        ok(cuPointerGetAttribute((&raw mut kind).cast(), 2, host as u64 + 10));
        assert_eq!(kind, 1);
        assert_eq!(cuPointerGetAttribute((&raw mut kind).cast(), 2, 4096), CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: nobody has used it.
    unsafe {
        ok(cuMemFreeHost(host));
        assert_eq!(cuMemFreeHost(host), CUDA_ERROR_INVALID_VALUE);
    }
    ok(cuMemFree_v2(a));
}
