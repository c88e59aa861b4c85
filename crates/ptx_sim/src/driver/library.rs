//! Libraries and kernels: modules and functions by the names that CUDA 12 gives them. Here a library is its
//! module and a kernel its function, with the same handles; both need a current context.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::abi::*;
use super::context::current;
use super::module::{
    cuFuncGetAttribute, cuFuncSetAttribute, cuModuleGetFunction, cuModuleGetGlobal_v2, cuModuleLoadDataEx,
    cuModuleUnload, function_of, module_of,
};
use super::state::{api, fail, give};

/// Loads a library from PTX text. Of the options only the log buffers mean something here.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuLibraryLoadData(
    out: *mut CUlibrary,
    image: *const c_void,
    jit_options: *mut c_uint,
    jit_values: *mut *mut c_void,
    jit_count: c_uint,
    _options: *mut c_uint,
    _values: *mut *mut c_void,
    _count: c_uint,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuModuleLoadDataEx(out, image, jit_count, jit_options, jit_values) }
}

/// Unloads a library; its kernels end with it.
pub extern "C" fn cuLibraryUnload(library: CUlibrary) -> CUresult {
    cuModuleUnload(library)
}

/// The kernel of that name in a library.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuLibraryGetKernel(
    out: *mut CUkernel,
    library: CUlibrary,
    name: *const c_char,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuModuleGetFunction(out, library, name) }
}

/// The module of a library.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuLibraryGetModule(out: *mut CUmodule, library: CUlibrary) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuLibraryGetModule", || module_of(library).and_then(|_| unsafe { give(out, "pMod", library) }))
}

/// Address and size of a library's variable.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuLibraryGetGlobal(
    address: *mut CUdeviceptr,
    bytes: *mut usize,
    library: CUlibrary,
    name: *const c_char,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuModuleGetGlobal_v2(address, bytes, library, name) }
}

/// The function of a kernel in the current context.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuKernelGetFunction(out: *mut CUfunction, kernel: CUkernel) -> CUresult {
    api("cuKernelGetFunction", || {
        current()?;
        function_of(kernel)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pFunc", kernel) }
    })
}

/// One number about a kernel.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuKernelGetAttribute(
    out: *mut c_int,
    attribute: c_uint,
    kernel: CUkernel,
    _dev: CUdevice,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuFuncGetAttribute(out, attribute, kernel) }
}

/// Sets what a kernel may do.
pub extern "C" fn cuKernelSetAttribute(
    attribute: c_uint,
    value: c_int,
    kernel: CUkernel,
    _dev: CUdevice,
) -> CUresult {
    cuFuncSetAttribute(kernel, attribute, value)
}

/// The name of a kernel.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuKernelGetName(out: *mut *const c_char, kernel: CUkernel) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuFuncGetName(out, kernel) }
}

/// The name of a function; the text lives as long as the function.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuFuncGetName(out: *mut *const c_char, handle: CUfunction) -> CUresult {
    api("cuFuncGetName", || {
        let function = function_of(handle)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "name", function.name.as_ptr()) }
    })
}

/// The module of a function.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuFuncGetModule(out: *mut CUmodule, handle: CUfunction) -> CUresult {
    api("cuFuncGetModule", || {
        let function = function_of(handle)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "hmod", function.module_handle as CUmodule) }
    })
}

/// Offset and size of a function's parameter in the parameter block.
///
/// # Safety
/// As [`cuLibraryLoadData`]; `size` may be null.
pub unsafe extern "C" fn cuFuncGetParamInfo(
    handle: CUfunction,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> CUresult {
    api("cuFuncGetParamInfo", || {
        let function = function_of(handle)?;
        let Some(param) = function.entry.params.get(index) else {
            let (name, count) = (&function.entry.name, function.entry.params.len());
            let text = format!("kernel {name}: parameter {index}: it takes {count}");
            return fail(CUDA_ERROR_INVALID_VALUE, text);
        };
        // SAFETY: the caller's pointers are null, where that is allowed, or valid for writes.
        unsafe {
            if !size.is_null() {
                give(size, "paramSize", param.size as usize)?;
            }
            give(offset, "paramOffset", param.offset as usize)
        }
    })
}

/// When code is loaded: at once.
///
/// # Safety
/// As [`cuLibraryLoadData`].
pub unsafe extern "C" fn cuModuleGetLoadingMode(out: *mut c_uint) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuModuleGetLoadingMode", || unsafe { give(out, "mode", 1) })
}
