//! `cuGetProcAddress`: a function by its name without version suffix, for programs that link nothing.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use super::abi::*;
use super::functions::function;
use super::state::{Outcome, api, fail, give};
use super::unsupported::UNSUPPORTED;

/// `CUdriverProcAddressQueryResult`.
const FOUND: c_uint = 0;
const NOT_FOUND: c_uint = 1;
const VERSION_NOT_SUFFICIENT: c_uint = 2;

/// What stands for a name from which CUDA version on, where that has changed: the functions' types in
/// `cudaTypedefs.h` (`PFN_cuCtxCreate_v11040` and so on). Other names stand for one function, or have had
/// their `_v2` since CUDA 3.2 or 4.0.
const VERSIONS: &[(&str, &[(c_int, &str)])] = &[
    ("cuCtxCreate", &[(3020, "cuCtxCreate_v2"), (11040, "cuCtxCreate_v3"), (12050, "cuCtxCreate_v4")]),
    ("cuCtxDestroy", &[(4000, "cuCtxDestroy_v2")]),
    ("cuCtxPopCurrent", &[(4000, "cuCtxPopCurrent_v2")]),
    ("cuCtxPushCurrent", &[(4000, "cuCtxPushCurrent_v2")]),
    // Their `_v2` takes a context, and has a name of its own.
    ("cuCtxGetDevice", &[(2000, "cuCtxGetDevice")]),
    ("cuCtxSynchronize", &[(2000, "cuCtxSynchronize")]),
    ("cuDevicePrimaryCtxRelease", &[(11000, "cuDevicePrimaryCtxRelease_v2")]),
    ("cuDevicePrimaryCtxReset", &[(11000, "cuDevicePrimaryCtxReset_v2")]),
    ("cuDevicePrimaryCtxSetFlags", &[(11000, "cuDevicePrimaryCtxSetFlags_v2")]),
    ("cuDeviceGetUuid", &[(9020, "cuDeviceGetUuid"), (11040, "cuDeviceGetUuid_v2")]),
    ("cuEventDestroy", &[(4000, "cuEventDestroy_v2")]),
    ("cuEventElapsedTime", &[(2000, "cuEventElapsedTime"), (12080, "cuEventElapsedTime_v2")]),
    ("cuGetProcAddress", &[(11030, "cuGetProcAddress"), (12000, "cuGetProcAddress_v2")]),
    ("cuGraphAddDependencies", &[(10000, "cuGraphAddDependencies"), (12030, "cuGraphAddDependencies_v2")]),
    ("cuGraphAddKernelNode", &[(10000, "cuGraphAddKernelNode"), (12000, "cuGraphAddKernelNode_v2")]),
    ("cuGraphAddNode", &[(12020, "cuGraphAddNode"), (12030, "cuGraphAddNode_v2")]),
    (
        "cuGraphExecKernelNodeSetParams",
        &[(10000, "cuGraphExecKernelNodeSetParams"), (12000, "cuGraphExecKernelNodeSetParams_v2")],
    ),
    ("cuGraphExecUpdate", &[(10020, "cuGraphExecUpdate"), (12000, "cuGraphExecUpdate_v2")]),
    ("cuGraphGetEdges", &[(10000, "cuGraphGetEdges"), (12030, "cuGraphGetEdges_v2")]),
    (
        "cuGraphInstantiate",
        &[
            (10000, "cuGraphInstantiate"),
            (11000, "cuGraphInstantiate_v2"),
            (12000, "cuGraphInstantiateWithFlags"),
        ],
    ),
    (
        "cuGraphKernelNodeGetParams",
        &[(10000, "cuGraphKernelNodeGetParams"), (12000, "cuGraphKernelNodeGetParams_v2")],
    ),
    (
        "cuGraphKernelNodeSetParams",
        &[(10000, "cuGraphKernelNodeSetParams"), (12000, "cuGraphKernelNodeSetParams_v2")],
    ),
    (
        "cuGraphNodeGetDependencies",
        &[(10000, "cuGraphNodeGetDependencies"), (12030, "cuGraphNodeGetDependencies_v2")],
    ),
    (
        "cuGraphNodeGetDependentNodes",
        &[(10000, "cuGraphNodeGetDependentNodes"), (12030, "cuGraphNodeGetDependentNodes_v2")],
    ),
    (
        "cuGraphRemoveDependencies",
        &[(10000, "cuGraphRemoveDependencies"), (12030, "cuGraphRemoveDependencies_v2")],
    ),
    ("cuMemAdvise", &[(8000, "cuMemAdvise"), (12020, "cuMemAdvise_v2")]),
    ("cuMemPrefetchAsync", &[(8000, "cuMemPrefetchAsync"), (12020, "cuMemPrefetchAsync_v2")]),
    ("cuMemcpy3DBatchAsync", &[(12080, "cuMemcpy3DBatchAsync"), (13000, "cuMemcpy3DBatchAsync_v2")]),
    ("cuMemcpyBatchAsync", &[(12080, "cuMemcpyBatchAsync"), (13000, "cuMemcpyBatchAsync_v2")]),
    ("cuStreamBatchMemOp", &[(8000, "cuStreamBatchMemOp"), (11070, "cuStreamBatchMemOp_v2")]),
    ("cuStreamBeginCapture", &[(10000, "cuStreamBeginCapture"), (10010, "cuStreamBeginCapture_v2")]),
    ("cuStreamDestroy", &[(4000, "cuStreamDestroy_v2")]),
    (
        "cuStreamGetCaptureInfo",
        &[
            (10010, "cuStreamGetCaptureInfo"),
            (11030, "cuStreamGetCaptureInfo_v2"),
            (12030, "cuStreamGetCaptureInfo_v3"),
        ],
    ),
    ("cuStreamGetCtx", &[(9020, "cuStreamGetCtx"), (12050, "cuStreamGetCtx_v2")]),
    (
        "cuStreamUpdateCaptureDependencies",
        &[(11030, "cuStreamUpdateCaptureDependencies"), (12030, "cuStreamUpdateCaptureDependencies_v2")],
    ),
    ("cuStreamWaitValue32", &[(8000, "cuStreamWaitValue32"), (11070, "cuStreamWaitValue32_v2")]),
    ("cuStreamWaitValue64", &[(9000, "cuStreamWaitValue64"), (11070, "cuStreamWaitValue64_v2")]),
    ("cuStreamWriteValue32", &[(8000, "cuStreamWriteValue32"), (11070, "cuStreamWriteValue32_v2")]),
    ("cuStreamWriteValue64", &[(9000, "cuStreamWriteValue64"), (11070, "cuStreamWriteValue64_v2")]),
];

/// The function that `name` stands for in a program made for CUDA `version`, or why there is none; functions
/// that the emulated device does not implement count as missing, so that the program can take another way.
fn lookup(name: &str, version: c_int) -> Result<*const c_void, c_uint> {
    let implemented = |full: &str| function(full).filter(|_| !UNSUPPORTED.contains(&full));
    if let Some((_, versions)) = VERSIONS.iter().find(|(known, _)| *known == name) {
        let asked = versions.iter().rev().find(|(since, _)| *since <= version);
        let (_, full) = asked.ok_or(VERSION_NOT_SUFFICIENT)?;
        return implemented(full).ok_or(NOT_FOUND);
    }
    let with_suffix = format!("{name}_v2");
    if function(&with_suffix).is_some() && version < 3020 {
        return Err(VERSION_NOT_SUFFICIENT);
    }
    implemented(&with_suffix).or_else(|| implemented(name)).ok_or(NOT_FOUND)
}

/// # Safety
/// `symbol` is null or NUL-terminated; `out` is null or valid for a write.
unsafe fn get(symbol: *const c_char, out: *mut *mut c_void, version: c_int) -> Outcome<c_uint> {
    if symbol.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "symbol is null");
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(symbol) }.to_string_lossy();
    let found = lookup(&name, version);
    // SAFETY: the caller's promise.
    unsafe { give(out, "pfn", found.unwrap_or(std::ptr::null()).cast_mut())? };
    Ok(found.err().unwrap_or(FOUND))
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
        if unsafe { get(symbol, out, version)? } == FOUND {
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
            return if found == FOUND { Ok(()) } else { fail(CUDA_ERROR_NOT_FOUND, "no such function") };
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(status, "symbolStatus", found) }
    })
}
