//! Modules and functions: PTX text in, kernels out, with the driver's log buffers for what went wrong.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::abi::*;
use super::capture;
use super::context::current;
use super::control;
use super::profile::{Profile, REGISTERS, SHARED_DEFAULT, SHARED_RESERVED, THREADS_PER_BLOCK};
use super::state::{Failure, Outcome, Registry, api, device, fail, give, lock};
use crate::Entry;

/// A loaded module, with the handles given out for its functions.
pub(super) struct LoadedModule {
    pub module: Arc<crate::Module>,
    pub context: usize,
    functions: Mutex<HashMap<String, usize>>,
}

/// One kernel.
pub(super) struct Function {
    pub module: Arc<LoadedModule>,
    pub module_handle: usize,
    pub entry: Entry,
    /// The entry's name for C.
    pub name: CString,
    /// Most dynamic shared memory a launch may ask for.
    max_dynamic_shared: AtomicU32,
    carveout: AtomicU32,
    pub large_clusters: AtomicBool,
}

static MODULES: Registry<LoadedModule> = Registry::new("module");
static FUNCTIONS: Registry<Function> = Registry::new("function");

/// The function behind a handle.
pub(super) fn function_of(handle: CUfunction) -> Outcome<Arc<Function>> {
    FUNCTIONS.get(handle)
}

/// The module behind a handle.
pub(super) fn module_of(handle: CUmodule) -> Outcome<Arc<LoadedModule>> {
    MODULES.get(handle)
}

/// Unloads everything that was loaded in a context.
pub(super) fn unload_all_of(context: usize) {
    FUNCTIONS.remove_if(|function| function.module.context == context);
    MODULES.remove_if(|module| module.context == context);
}

impl Function {
    /// Most threads a block may have.
    pub fn max_threads(&self) -> u32 {
        self.entry.max_threads.unwrap_or(THREADS_PER_BLOCK).min(THREADS_PER_BLOCK)
    }

    /// Most dynamic shared memory a launch may ask for: what fits in the default limit beside the static
    /// memory, or what was opted in for.
    pub fn dynamic_shared_limit(&self) -> u32 {
        let default = SHARED_DEFAULT.saturating_sub(self.entry.static_shared);
        default.max(self.max_dynamic_shared.load(Ordering::Relaxed))
    }

    /// Registers per thread: no more than lets the promised blocks be resident, as the compiler would see to.
    fn registers(&self) -> u32 {
        let promised = self.max_threads() * self.entry.min_blocks.unwrap_or(1).max(1);
        self.entry.registers_estimate.clamp(16, 255).min((REGISTERS / promised.max(1) / 8 * 8).max(16))
    }

    /// Blocks of this kernel that one SM can hold.
    pub fn blocks_per_sm(&self, profile: &Profile, threads: u32, dynamic_shared: u64) -> u32 {
        if threads == 0 || threads > self.max_threads() {
            return 0;
        }
        let warps = threads.div_ceil(32);
        let shared = u64::from(self.entry.static_shared) + dynamic_shared;
        if shared > u64::from(profile.shared_per_block) {
            return 0;
        }
        let by_shared = u64::from(profile.shared_per_sm) / (shared + u64::from(SHARED_RESERVED));
        let by_registers = REGISTERS / (self.registers().next_multiple_of(8) * 32 * warps);
        (profile.threads_per_sm / (warps * 32))
            .min(profile.blocks_per_sm)
            .min(by_shared as u32)
            .min(by_registers)
    }
}

/// Whether a device of this capability runs code for `target`, such as `sm_89` or `sm_90a`.
fn target_runs_on(target: &str, (major, minor): (u32, u32)) -> bool {
    let Some(number) = target.strip_prefix("sm_") else { return false };
    let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(version) = digits.parse::<u32>() else { return false };
    let own = major * 10 + minor;
    match &number[digits.len()..] {
        "" => version <= own,
        // Architecture-specific: that one only. Family-specific: that one and later ones of its generation.
        "a" => version == own,
        "f" => version <= own && version / 10 == major,
        _ => false,
    }
}

fn load(text: &str) -> Outcome<CUmodule> {
    let context = current()?;
    capture::forbid_unsafe_call()?;
    let device = device()?;
    let module = device
        .machine
        .load(text)
        .map_err(|error| Failure { code: CUDA_ERROR_INVALID_PTX, text: error.to_string() })?;
    let capability = device.profile.capability;
    if !target_runs_on(module.target(), capability) {
        let (major, minor) = capability;
        return fail(
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            format!(
                "the module is for {}, this device has compute capability {major}.{minor}",
                module.target()
            ),
        );
    }
    Ok(MODULES.insert(Arc::new(LoadedModule { module, context, functions: Mutex::default() })))
}

/// The PTX text of a module image.
///
/// # Safety
/// `image` is null or an image as the CUDA API defines it; text ends in a NUL.
unsafe fn text_of(image: *const c_void) -> Outcome<String> {
    if image.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "image is null");
    }
    // SAFETY: an image is at least four bytes long: a NUL-terminated text of fewer is refused bytewise below,
    // before the next byte is looked at, and the binary formats have longer headers.
    let starts_with =
        |magic: &[u8]| magic.iter().enumerate().all(|(i, b)| unsafe { *image.cast::<u8>().add(i) == *b });
    if starts_with(b"\x7fELF") || starts_with(&0xba55_ed50_u32.to_le_bytes()) {
        return fail(
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            "the image is machine code (a cubin or fatbin): only PTX runs here",
        );
    }
    // SAFETY: not binary, so it is NUL-terminated text.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    match text.to_str() {
        Ok(text) if text.contains(".version") => Ok(text.to_owned()),
        // What NVIDIA's driver answers to text that is no PTX at all.
        Ok(_) => fail(
            CUDA_ERROR_INVALID_IMAGE,
            "the image is no PTX: line 1 and those after it have no `.version`",
        ),
        Err(_) => fail(CUDA_ERROR_INVALID_PTX, "the PTX is not UTF-8 text"),
    }
}

/// A log buffer that the caller of `cuModuleLoadDataEx` gave, and where its size is to be put.
#[derive(Default)]
struct Log {
    buffer: Option<*mut c_char>,
    bytes: usize,
    size_slot: Option<*mut *mut c_void>,
}

impl Log {
    /// # Safety
    /// The buffer is valid for its size and the slot for a write.
    unsafe fn write(&self, text: &str) {
        let mut written = 0;
        if let Some(buffer) = self.buffer
            && self.bytes > 0
            && !buffer.is_null()
        {
            let n = text.len().min(self.bytes - 1);
            // SAFETY: n + 1 <= bytes, which the caller has provided.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), n);
                buffer.add(n).write(0);
            }
            written = n + 1;
        }
        if let Some(slot) = self.size_slot {
            // SAFETY: the slot is an element of the caller's option values, which the API overwrites.
            unsafe { slot.write(written as *mut c_void) };
        }
    }
}

/// The error and the information log among JIT options.
///
/// # Safety
/// Both arrays have `count` elements.
unsafe fn logs(count: c_uint, options: *const c_uint, values: *mut *mut c_void) -> Outcome<(Log, Log)> {
    let (mut error, mut info) = (Log::default(), Log::default());
    if count > 0 && (options.is_null() || values.is_null()) {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!("{count} options, but options or optionValues is null"),
        );
    }
    for i in 0..count as usize {
        // SAFETY: i is below the count of elements that the caller promises.
        let (option, slot) = unsafe { (*options.add(i), values.add(i)) };
        // SAFETY: as above.
        let value = unsafe { *slot };
        match option {
            CU_JIT_ERROR_LOG_BUFFER => error.buffer = Some(value.cast()),
            CU_JIT_INFO_LOG_BUFFER => info.buffer = Some(value.cast()),
            CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES => {
                // The API passes an unsigned int in the pointer.
                error.bytes = value as usize & u32::MAX as usize;
                error.size_slot = Some(slot);
            }
            CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES => {
                info.bytes = value as usize & u32::MAX as usize;
                info.size_slot = Some(slot);
            }
            // How to compile: nothing is compiled.
            _ => {}
        }
    }
    Ok((error, info))
}

/// # Safety
/// The pointers are as the CUDA API asks.
unsafe fn load_with_options(
    out: *mut CUmodule,
    image: *const c_void,
    count: c_uint,
    options: *const c_uint,
    values: *mut *mut c_void,
) -> Outcome {
    current()?;
    // SAFETY: the caller's promise.
    let (error_log, info_log) = unsafe { logs(count, options, values)? };
    if out.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "module is null");
    }
    // SAFETY: the caller's promise.
    let loaded = unsafe { text_of(image) }.and_then(|text| load(&text));
    let message = loaded.as_ref().err().map_or("", |failure| failure.text.as_str());
    // SAFETY: the caller's promise about its log buffers.
    unsafe {
        error_log.write(message);
        info_log.write("");
    }
    if !message.is_empty() {
        control::set_last_fault(message.to_owned());
    }
    // SAFETY: the caller's pointer is valid for a write.
    unsafe { give(out, "module", loaded?) }
}

/// Loads a module from PTX text.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuModuleLoadData(out: *mut CUmodule, image: *const c_void) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuModuleLoadData", || unsafe {
        load_with_options(out, image, 0, std::ptr::null(), std::ptr::null_mut())
    })
}

/// Loads a module from PTX text. Of the options only the log buffers mean something here.
///
/// # Safety
/// As [`cuModuleLoadData`].
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut CUmodule,
    image: *const c_void,
    count: c_uint,
    options: *mut c_uint,
    values: *mut *mut c_void,
) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuModuleLoadDataEx", || unsafe { load_with_options(out, image, count, options, values) })
}

/// Loads a module from a file of PTX text.
///
/// # Safety
/// As [`cuModuleLoadData`].
pub unsafe extern "C" fn cuModuleLoad(out: *mut CUmodule, path: *const c_char) -> CUresult {
    api("cuModuleLoad", || {
        current()?;
        if path.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "fname is null");
        }
        // SAFETY: a path is NUL-terminated.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
        let mut image = match std::fs::read(&path) {
            Ok(image) => image,
            Err(error) => return fail(CUDA_ERROR_FILE_NOT_FOUND, format!("{path}: {error}")),
        };
        image.extend([0; 4]);
        // SAFETY: the image ends in a NUL and is at least four bytes long.
        unsafe { load_with_options(out, image.as_ptr().cast(), 0, std::ptr::null(), std::ptr::null_mut()) }
    })
}

/// Unloads a module; its functions end with it.
pub extern "C" fn cuModuleUnload(handle: CUmodule) -> CUresult {
    api("cuModuleUnload", || {
        current()?;
        let module = MODULES.remove(handle)?;
        FUNCTIONS.remove_if(|function| Arc::ptr_eq(&function.module, &module));
        Ok(())
    })
}

/// # Safety
/// `name` is null or NUL-terminated.
unsafe fn name_of(name: *const c_char) -> Outcome<String> {
    if name.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "name is null");
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The function of that name in a module.
///
/// # Safety
/// As [`cuModuleLoadData`].
pub unsafe extern "C" fn cuModuleGetFunction(
    out: *mut CUfunction,
    handle: CUmodule,
    name: *const c_char,
) -> CUresult {
    api("cuModuleGetFunction", || {
        current()?;
        let module = MODULES.get(handle)?;
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name)? };
        let Some(entry) = module.module.entry(&name) else {
            let all: Vec<_> = module.module.entries().map(|entry| entry.name.as_str()).collect();
            return fail(
                CUDA_ERROR_NOT_FOUND,
                format!("no kernel {name}; the module has {}", all.join(", ")),
            );
        };
        if let Some(refusal) = module.module.refusal(&name) {
            let text = format!("kernel {name} cannot run here: {refusal}");
            control::tell(&text);
            return fail(CUDA_ERROR_NOT_SUPPORTED, text);
        }
        let known = lock(&module.functions).get(&name).copied();
        let function = known.unwrap_or_else(|| {
            let function = FUNCTIONS.insert(Arc::new(Function {
                module: module.clone(),
                module_handle: handle as usize,
                name: CString::new(name.as_str()).unwrap_or_default(),
                entry: entry.clone(),
                max_dynamic_shared: AtomicU32::new(0),
                carveout: AtomicU32::new(u32::MAX),
                large_clusters: AtomicBool::new(false),
            })) as usize;
            // If two threads come here at once, the first entry stays and the other handle works as well.
            *lock(&module.functions).entry(name).or_insert(function)
        });
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "hfunc", function as CUfunction) }
    })
}

/// How many functions a module has.
///
/// # Safety
/// As [`cuModuleLoadData`].
pub unsafe extern "C" fn cuModuleGetFunctionCount(out: *mut c_uint, handle: CUmodule) -> CUresult {
    api("cuModuleGetFunctionCount", || {
        let count = MODULES.get(handle)?.module.entries().count();
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "count", count as c_uint) }
    })
}

/// Address and size of a module's variable.
///
/// # Safety
/// As [`cuModuleLoadData`]; either pointer may be null.
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address_out: *mut CUdeviceptr,
    bytes_out: *mut usize,
    handle: CUmodule,
    name: *const c_char,
) -> CUresult {
    api("cuModuleGetGlobal_v2", || {
        current()?;
        let module = MODULES.get(handle)?;
        // SAFETY: the caller's promise.
        let name = unsafe { name_of(name)? };
        let Some((address, bytes)) = module.module.global(&name) else {
            return fail(CUDA_ERROR_NOT_FOUND, format!("the module has no variable {name}"));
        };
        // SAFETY: a pointer that is not null is valid for a write.
        unsafe {
            if !address_out.is_null() {
                give(address_out, "dptr", address)?;
            }
            if !bytes_out.is_null() {
                give(bytes_out, "bytes", bytes as usize)?;
            }
        }
        Ok(())
    })
}

/// One number about a function.
///
/// # Safety
/// As [`cuModuleLoadData`].
pub unsafe extern "C" fn cuFuncGetAttribute(
    out: *mut c_int,
    attribute: c_uint,
    handle: CUfunction,
) -> CUresult {
    api("cuFuncGetAttribute", || {
        let function = function_of(handle)?;
        let (major, minor) = device()?.profile.capability;
        let value = match attribute {
            CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => function.max_threads(),
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES => function.entry.static_shared,
            CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES => function.entry.local_bytes,
            CU_FUNC_ATTRIBUTE_NUM_REGS => function.registers(),
            CU_FUNC_ATTRIBUTE_PTX_VERSION | CU_FUNC_ATTRIBUTE_BINARY_VERSION => major * 10 + minor,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => function.dynamic_shared_limit(),
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT => function.carveout.load(Ordering::Relaxed),
            CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED => {
                u32::from(function.large_clusters.load(Ordering::Relaxed))
            }
            CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES | CU_FUNC_ATTRIBUTE_CACHE_MODE_CA | 10..=13 | 15 => 0,
            _ => return fail(CUDA_ERROR_INVALID_VALUE, format!("{attribute} is not a function attribute")),
        };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pi", value as c_int) }
    })
}

/// Sets what a function may do: dynamic shared memory over 48 KiB, clusters of more than 8 blocks.
pub extern "C" fn cuFuncSetAttribute(handle: CUfunction, attribute: c_uint, value: c_int) -> CUresult {
    api("cuFuncSetAttribute", || {
        let function = function_of(handle)?;
        let name = &function.entry.name;
        match attribute {
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let most = device()?.profile.shared_per_block.saturating_sub(function.entry.static_shared);
                if value < 0 || value as u32 > most {
                    return fail(
                        CUDA_ERROR_INVALID_VALUE,
                        format!(
                            "kernel {name}: {value} bytes of dynamic shared memory, at most {most} are possible"
                        ),
                    );
                }
                function.max_dynamic_shared.store(value as u32, Ordering::Relaxed);
            }
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT => {
                if !(-1..=100).contains(&value) {
                    return fail(
                        CUDA_ERROR_INVALID_VALUE,
                        format!("kernel {name}: carveout {value}: must be -1 to 100"),
                    );
                }
                function.carveout.store(value as u32, Ordering::Relaxed);
            }
            CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED => {
                function.large_clusters.store(value != 0, Ordering::Relaxed);
            }
            _ => {
                return fail(
                    CUDA_ERROR_INVALID_VALUE,
                    format!("function attribute {attribute} cannot be set"),
                );
            }
        }
        Ok(())
    })
}

/// Accepts an L1 preference, a hint without meaning here.
pub extern "C" fn cuFuncSetCacheConfig(handle: CUfunction, _config: c_uint) -> CUresult {
    api("cuFuncSetCacheConfig", || function_of(handle).map(drop))
}

/// Accepts a bank width, a hint without meaning on these GPUs.
pub extern "C" fn cuFuncSetSharedMemConfig(handle: CUfunction, _config: c_uint) -> CUresult {
    api("cuFuncSetSharedMemConfig", || function_of(handle).map(drop))
}
