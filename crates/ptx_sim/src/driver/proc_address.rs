//! `cuGetProcAddress`: a function by its name without version suffix, for programs that link nothing.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use super::abi::*;
use super::functions::function;
use super::state::{Outcome, api, fail, give};
use super::unsupported::UNSUPPORTED;

/// `CUdriverProcAddressQueryResult`.
const FOUND: c_uint = 0;
const NOT_FOUND: c_uint = 1;

/// The variant of `name` that a program made for CUDA `version` expects; functions that the emulated device
/// does not implement count as missing, so that the program can take another way.
fn lookup(name: &str, version: c_int) -> Option<*const c_void> {
    let names: &[&str] = match name {
        // What took other arguments from a certain version on, in other ways than the suffix says.
        "cuGetProcAddress" if version < 12000 => &["cuGetProcAddress"],
        "cuGraphInstantiate" if version < 12000 => &["cuGraphInstantiate_v2"],
        "cuGraphInstantiate" => &["cuGraphInstantiateWithFlags"],
        "cuGraphAddKernelNode" | "cuGraphKernelNodeGetParams" if version < 12000 => &[name],
        "cuCtxCreate" if version >= 13000 => &["cuCtxCreate_v4"],
        "cuStreamGetCaptureInfo" if version >= 13000 => &[],
        _ => &[&format!("{name}_v2"), name],
    };
    names.iter().filter(|full| !UNSUPPORTED.contains(full)).find_map(|full| function(full))
}

/// # Safety
/// `symbol` is null or NUL-terminated; `out` is null or valid for a write.
unsafe fn get(symbol: *const c_char, out: *mut *mut c_void, version: c_int) -> Outcome<bool> {
    if symbol.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "symbol is null");
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(symbol) }.to_string_lossy();
    let found = lookup(&name, version);
    // SAFETY: the caller's promise.
    unsafe { give(out, "pfn", found.unwrap_or(std::ptr::null()).cast_mut())? };
    Ok(found.is_some())
}

/// The address of a driver function.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    out: *mut *mut c_void,
    version: c_int,
    _flags: c_ulonglong,
) -> CUresult {
    api("cuGetProcAddress", || {
        // SAFETY: the caller's promise.
        if unsafe { get(symbol, out, version)? } {
            Ok(())
        } else {
            fail(CUDA_ERROR_NOT_FOUND, "the emulated device does not implement that function")
        }
    })
}

/// The address of a driver function, or in `status` that there is none.
///
/// # Safety
/// As [`cuGetProcAddress`]; `status` may be null.
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    out: *mut *mut c_void,
    version: c_int,
    _flags: c_ulonglong,
    status: *mut c_uint,
) -> CUresult {
    api("cuGetProcAddress_v2", || {
        // SAFETY: the caller's promise.
        let found = unsafe { get(symbol, out, version)? };
        if status.is_null() {
            return if found { Ok(()) } else { fail(CUDA_ERROR_NOT_FOUND, "no such function") };
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(status, "symbolStatus", if found { FOUND } else { NOT_FOUND }) }
    })
}
