//! Copies and fills. The synchronous forms act on the legacy stream, as the API says.

use std::ffi::c_void;
use std::ptr;

use super::abi::*;
use super::allocation::is_device_address;
use super::context::current;
use super::state::{Outcome, api, fail};
use super::stream::submit;
use super::work::{HostAddress, Work};

const LEGACY: CUstream = ptr::null_mut();

fn host(address: *const c_void, argument: &str, bytes: usize) -> Outcome<HostAddress> {
    if address.is_null() && bytes > 0 {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("{argument} is null"));
    }
    Ok(HostAddress(address as usize))
}

/// # Safety
/// The host range can be read until the work is done.
unsafe fn host_to_device(dst: u64, src: *const c_void, bytes: usize, stream: CUstream) -> Outcome {
    current()?;
    if bytes == 0 {
        return Ok(());
    }
    let src = host(src, "srcHost", bytes)?;
    // SAFETY: handed on.
    unsafe { submit(stream, Work::HostToDevice { dst, src, bytes }) }
}

/// # Safety
/// The host range can be written until the work is done.
unsafe fn device_to_host(dst: *mut c_void, src: u64, bytes: usize, stream: CUstream) -> Outcome {
    current()?;
    if bytes == 0 {
        return Ok(());
    }
    let dst = host(dst, "dstHost", bytes)?;
    // SAFETY: handed on.
    unsafe { submit(stream, Work::DeviceToHost { dst, src, bytes }) }
}

fn device_to_device(dst: u64, src: u64, bytes: usize, stream: CUstream) -> Outcome {
    current()?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: no host memory is involved.
    unsafe { submit(stream, Work::DeviceToDevice { dst, src, bytes }) }
}

/// # Safety
/// Addresses that are not of device memory can be read or written until the work is done.
unsafe fn unified(dst: u64, src: u64, bytes: usize, stream: CUstream) -> Outcome {
    current()?;
    // SAFETY: handed on.
    unsafe {
        match (is_device_address(dst)?, is_device_address(src)?) {
            (true, true) => device_to_device(dst, src, bytes, stream),
            (true, false) => host_to_device(dst, src as *const c_void, bytes, stream),
            (false, true) => device_to_host(dst as *mut c_void, src, bytes, stream),
            (false, false) => {
                let dst = host(dst as *const c_void, "dst", bytes)?;
                let src = host(src as *const c_void, "src", bytes)?;
                submit(stream, Work::HostToHost { dst, src, bytes })
            }
        }
    }
}

fn fill(dst: u64, pattern: &[u8], count: usize, stream: CUstream) -> Outcome {
    current()?;
    let width = pattern.len();
    if !dst.is_multiple_of(width as u64) {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!("dstDevice is {dst:#x}: must be a multiple of {width}"),
        );
    }
    if count == 0 {
        return Ok(());
    }
    let mut bytes = [0; 4];
    bytes[..width].copy_from_slice(pattern);
    // SAFETY: no host memory is involved.
    unsafe { submit(stream, Work::Fill { dst, pattern: bytes, width, count }) }
}

/// Copies from the host to the device.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuMemcpyHtoD_v2(dst: CUdeviceptr, src: *const c_void, bytes: usize) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpyHtoD_v2", || unsafe { host_to_device(dst, src, bytes, LEGACY) })
}

/// Copies from the host to the device, in the order of a stream.
///
/// # Safety
/// As [`cuMemcpyHtoD_v2`].
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    dst: CUdeviceptr,
    src: *const c_void,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpyHtoDAsync_v2", || unsafe { host_to_device(dst, src, bytes, stream) })
}

/// Copies from the device to the host.
///
/// # Safety
/// As [`cuMemcpyHtoD_v2`].
pub unsafe extern "C" fn cuMemcpyDtoH_v2(dst: *mut c_void, src: CUdeviceptr, bytes: usize) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpyDtoH_v2", || unsafe { device_to_host(dst, src, bytes, LEGACY) })
}

/// Copies from the device to the host, in the order of a stream.
///
/// # Safety
/// As [`cuMemcpyHtoD_v2`].
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    dst: *mut c_void,
    src: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpyDtoHAsync_v2", || unsafe { device_to_host(dst, src, bytes, stream) })
}

/// Copies on the device.
pub extern "C" fn cuMemcpyDtoD_v2(dst: CUdeviceptr, src: CUdeviceptr, bytes: usize) -> CUresult {
    api("cuMemcpyDtoD_v2", || device_to_device(dst, src, bytes, LEGACY))
}

/// Copies on the device, in the order of a stream.
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    dst: CUdeviceptr,
    src: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    api("cuMemcpyDtoDAsync_v2", || device_to_device(dst, src, bytes, stream))
}

/// Copies between any two addresses of the unified address space.
///
/// # Safety
/// As [`cuMemcpyHtoD_v2`].
pub unsafe extern "C" fn cuMemcpy(dst: CUdeviceptr, src: CUdeviceptr, bytes: usize) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpy", || unsafe { unified(dst, src, bytes, LEGACY) })
}

/// Copies between any two addresses of the unified address space, in the order of a stream.
///
/// # Safety
/// As [`cuMemcpyHtoD_v2`].
pub unsafe extern "C" fn cuMemcpyAsync(
    dst: CUdeviceptr,
    src: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuMemcpyAsync", || unsafe { unified(dst, src, bytes, stream) })
}

/// Sets bytes.
pub extern "C" fn cuMemsetD8_v2(dst: CUdeviceptr, value: u8, count: usize) -> CUresult {
    api("cuMemsetD8_v2", || fill(dst, &[value], count, LEGACY))
}

/// Sets bytes, in the order of a stream.
pub extern "C" fn cuMemsetD8Async(dst: CUdeviceptr, value: u8, count: usize, stream: CUstream) -> CUresult {
    api("cuMemsetD8Async", || fill(dst, &[value], count, stream))
}

/// Sets 16-bit words.
pub extern "C" fn cuMemsetD16_v2(dst: CUdeviceptr, value: u16, count: usize) -> CUresult {
    api("cuMemsetD16_v2", || fill(dst, &value.to_le_bytes(), count, LEGACY))
}

/// Sets 16-bit words, in the order of a stream.
pub extern "C" fn cuMemsetD16Async(dst: CUdeviceptr, value: u16, count: usize, stream: CUstream) -> CUresult {
    api("cuMemsetD16Async", || fill(dst, &value.to_le_bytes(), count, stream))
}

/// Sets 32-bit words.
pub extern "C" fn cuMemsetD32_v2(dst: CUdeviceptr, value: u32, count: usize) -> CUresult {
    api("cuMemsetD32_v2", || fill(dst, &value.to_le_bytes(), count, LEGACY))
}

/// Sets 32-bit words, in the order of a stream.
pub extern "C" fn cuMemsetD32Async(dst: CUdeviceptr, value: u32, count: usize, stream: CUstream) -> CUresult {
    api("cuMemsetD32Async", || fill(dst, &value.to_le_bytes(), count, stream))
}
