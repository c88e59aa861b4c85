//! Contexts: the primary one of the device, those made by `cuCtxCreate`, and each thread's stack of current
//! ones. All share the one device's memory; a context owns what was allocated or loaded while it was current.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::abi::*;
use super::device::profile;
use super::state::{Outcome, Registry, api, device, fail, give, lock};
use super::{allocation, capture, history, module};

/// One context.
pub(super) struct Context {
    flags: AtomicU32,
    /// The code of a kernel's fault, and its text: every call fails from then on.
    broken: Mutex<Option<(CUresult, String)>>,
}

impl Context {
    fn new(flags: c_uint) -> Arc<Context> {
        Arc::new(Context { flags: AtomicU32::new(flags), broken: Mutex::default() })
    }
}

static CONTEXTS: Registry<Context> = Registry::new("context");

/// The primary context: its handle while it is active, how often it is retained, the flags for the next time.
struct Primary {
    handle: usize,
    retained: usize,
    flags: u32,
}

static PRIMARY: Mutex<Primary> = Mutex::new(Primary { handle: 0, retained: 0, flags: 0 });

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Stack size limits and the like: stored and given back, without effect.
static LIMITS: [AtomicUsize; 7] = [
    AtomicUsize::new(1024),
    AtomicUsize::new(1 << 20),
    AtomicUsize::new(8 << 20),
    AtomicUsize::new(0),
    AtomicUsize::new(2048),
    AtomicUsize::new(128),
    AtomicUsize::new(0),
];

/// Works on the calling thread's stack of contexts. A thread that is ending has none any more, as a static
/// destructor may find out: NVIDIA's driver is gone by then too.
fn stack<T>(f: impl FnOnce(&mut Vec<usize>) -> T) -> Outcome<T> {
    match STACK.try_with(|stack| f(&mut stack.borrow_mut())) {
        Ok(result) => Ok(result),
        Err(_) => fail(CUDA_ERROR_DEINITIALIZED, "the thread is ending"),
    }
}

fn top() -> Outcome<usize> {
    stack(|stack| stack.last().copied().unwrap_or(0))
}

/// The handle of the calling thread's current context, broken or not.
fn chosen() -> Outcome<usize> {
    device()?;
    let handle = top()?;
    if handle == 0 {
        return fail(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
    }
    if CONTEXTS.get(handle as CUcontext).is_err() {
        return fail(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the current context was destroyed");
    }
    Ok(handle)
}

/// The handle of the calling thread's current context, in which no kernel has faulted.
pub(super) fn current() -> Outcome<usize> {
    let handle = chosen()?;
    match &*lock(&CONTEXTS.get(handle as CUcontext)?.broken) {
        None => Ok(handle),
        Some((code, text)) => fail(*code, format!("a kernel has faulted in this context before: {text}")),
    }
}

/// A kernel has faulted in a context.
pub(super) fn break_down(handle: usize, code: CUresult, text: &str) {
    if let Ok(context) = CONTEXTS.get(handle as CUcontext) {
        lock(&context.broken).get_or_insert_with(|| (code, text.to_string()));
    }
}

/// Destroys a context with all it owns.
fn destroy(handle: usize) -> Outcome {
    CONTEXTS.remove(handle as CUcontext)?;
    module::unload_all_of(handle);
    allocation::free_all_of(handle);
    Ok(())
}

/// Makes the primary context active, or retains it once more.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut CUcontext, dev: CUdevice) -> CUresult {
    api("cuDevicePrimaryCtxRetain", || {
        profile(dev)?;
        let mut primary = lock(&PRIMARY);
        if primary.retained == 0 {
            primary.handle = CONTEXTS.insert(Context::new(primary.flags)) as usize;
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pctx", primary.handle as CUcontext) }?;
        primary.retained += 1;
        Ok(())
    })
}

/// Gives one retention back; the last one destroys the context.
///
/// # Safety
/// Nobody uses page-locked host memory of the context any more if it is the last: that is freed.
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: CUdevice) -> CUresult {
    api("cuDevicePrimaryCtxRelease_v2", || {
        profile(dev)?;
        let mut primary = lock(&PRIMARY);
        if primary.retained == 0 {
            return fail(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
        }
        primary.retained -= 1;
        if primary.retained == 0 {
            destroy(std::mem::take(&mut primary.handle))?;
        }
        Ok(())
    })
}

/// Destroys what the primary context owns; it stays retained.
///
/// # Safety
/// Nobody uses page-locked host memory of the context any more, which is freed.
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(dev: CUdevice) -> CUresult {
    api("cuDevicePrimaryCtxReset_v2", || {
        profile(dev)?;
        let primary = lock(&PRIMARY);
        if primary.retained > 0 {
            module::unload_all_of(primary.handle);
            allocation::free_all_of(primary.handle);
            *lock(&CONTEXTS.get(primary.handle as CUcontext)?.broken) = None;
        }
        Ok(())
    })
}

/// Sets the primary context's flags.
pub extern "C" fn cuDevicePrimaryCtxSetFlags_v2(dev: CUdevice, flags: c_uint) -> CUresult {
    api("cuDevicePrimaryCtxSetFlags_v2", || {
        profile(dev)?;
        let mut primary = lock(&PRIMARY);
        primary.flags = flags;
        if primary.retained > 0 {
            CONTEXTS.get(primary.handle as CUcontext)?.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// The primary context's flags and whether it is active.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    dev: CUdevice,
    flags: *mut c_uint,
    active: *mut c_int,
) -> CUresult {
    api("cuDevicePrimaryCtxGetState", || {
        profile(dev)?;
        let primary = lock(&PRIMARY);
        // SAFETY: the caller's pointers are valid for writes.
        unsafe {
            give(flags, "flags", primary.flags)?;
            give(active, "active", c_int::from(primary.retained > 0))
        }
    })
}

/// Makes a context and makes it current.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxCreate_v2(out: *mut CUcontext, flags: c_uint, dev: CUdevice) -> CUresult {
    api("cuCtxCreate_v2", || {
        profile(dev)?;
        let handle = CONTEXTS.insert(Context::new(flags));
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pctx", handle) }?;
        stack(|stack| stack.push(handle as usize))
    })
}

/// Makes a context, with creation parameters that the emulated device ignores, and makes it current.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxCreate_v4(
    out: *mut CUcontext,
    _params: *mut c_void,
    flags: c_uint,
    dev: CUdevice,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuCtxCreate_v2(out, flags, dev) }
}

/// Destroys a context made by `cuCtxCreate`.
///
/// # Safety
/// Nobody uses page-locked host memory of the context any more, which is freed.
pub unsafe extern "C" fn cuCtxDestroy_v2(context: CUcontext) -> CUresult {
    api("cuCtxDestroy_v2", || {
        device()?;
        if lock(&PRIMARY).handle == context as usize && !context.is_null() {
            return fail(CUDA_ERROR_INVALID_CONTEXT, "the primary context is released, not destroyed");
        }
        destroy(context as usize)?;
        stack(|stack| {
            if stack.last() == Some(&(context as usize)) {
                stack.pop();
            }
        })
    })
}

/// Pushes a context onto the thread's stack.
pub extern "C" fn cuCtxPushCurrent_v2(context: CUcontext) -> CUresult {
    api("cuCtxPushCurrent_v2", || {
        device()?;
        live(context)?;
        stack(|stack| stack.push(context as usize))
    })
}

fn live(context: CUcontext) -> Outcome<Arc<Context>> {
    match CONTEXTS.get(context) {
        Ok(found) => Ok(found),
        Err(error) => fail(CUDA_ERROR_INVALID_CONTEXT, error.text),
    }
}

/// Pops the thread's current context.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`]; `out` may be null.
pub unsafe extern "C" fn cuCtxPopCurrent_v2(out: *mut CUcontext) -> CUresult {
    api("cuCtxPopCurrent_v2", || {
        device()?;
        let Some(handle) = stack(Vec::pop)? else {
            return fail(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
        };
        if out.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pctx", handle as CUcontext) }
    })
}

/// Replaces the thread's current context; null leaves none.
pub extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    api("cuCtxSetCurrent", || {
        device()?;
        if !context.is_null() {
            live(context)?;
        }
        stack(|stack| {
            stack.pop();
            if !context.is_null() {
                stack.push(context as usize);
            }
        })
    })
}

/// The thread's current context, or null.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetCurrent(out: *mut CUcontext) -> CUresult {
    api("cuCtxGetCurrent", || {
        device()?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pctx", top()? as CUcontext) }
    })
}

/// The device of the current context.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetDevice(out: *mut CUdevice) -> CUresult {
    api("cuCtxGetDevice", || {
        chosen()?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "device", 0) }
    })
}

/// The current context's flags.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetFlags(out: *mut c_uint) -> CUresult {
    api("cuCtxGetFlags", || {
        let flags = CONTEXTS.get(chosen()? as CUcontext)?.flags.load(Ordering::Relaxed);
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "flags", flags) }
    })
}

/// A number that no other context has had.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetId(context: CUcontext, out: *mut u64) -> CUresult {
    api("cuCtxGetId", || {
        let handle = if context.is_null() { chosen()? } else { context as usize };
        live(handle as CUcontext)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "ctxId", handle as u64) }
    })
}

/// The API version contexts are made for.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetApiVersion(context: CUcontext, out: *mut c_uint) -> CUresult {
    api("cuCtxGetApiVersion", || {
        if !context.is_null() {
            live(context)?;
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "version", 3020) }
    })
}

/// Waits for all work of the context: all has run when its call returned.
pub extern "C" fn cuCtxSynchronize() -> CUresult {
    api("cuCtxSynchronize", || {
        current()?;
        history::end_all();
        capture::forbid_synchronisation()
    })
}

/// Waits for all work of a context, null being the current one: all has run when its call returned.
pub extern "C" fn cuCtxSynchronize_v2(context: CUcontext) -> CUresult {
    api("cuCtxSynchronize_v2", || {
        current()?;
        if !context.is_null() {
            live(context)?;
        }
        history::end_all();
        capture::forbid_synchronisation()
    })
}

/// A limit of the context.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetLimit(out: *mut usize, limit: c_uint) -> CUresult {
    api("cuCtxGetLimit", || {
        current()?;
        match LIMITS.get(limit as usize) {
            // SAFETY: the caller's pointer is valid for a write.
            Some(value) => unsafe { give(out, "pvalue", value.load(Ordering::Relaxed)) },
            None => fail(CUDA_ERROR_UNSUPPORTED_LIMIT, format!("limit {limit} is not known")),
        }
    })
}

/// Sets a limit of the context, which the emulated device then ignores.
pub extern "C" fn cuCtxSetLimit(limit: c_uint, value: usize) -> CUresult {
    api("cuCtxSetLimit", || {
        current()?;
        match LIMITS.get(limit as usize) {
            Some(slot) => {
                slot.store(value, Ordering::Relaxed);
                Ok(())
            }
            None => fail(CUDA_ERROR_UNSUPPORTED_LIMIT, format!("limit {limit} is not known")),
        }
    })
}

/// The L1 preference: none.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetCacheConfig(out: *mut c_uint) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuCtxGetCacheConfig", || current().and_then(|_| unsafe { give(out, "pconfig", 0) }))
}

/// Accepts an L1 preference, a hint without meaning here.
pub extern "C" fn cuCtxSetCacheConfig(_config: c_uint) -> CUresult {
    api("cuCtxSetCacheConfig", || current().map(drop))
}

/// The width of shared-memory banks: four bytes.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`].
pub unsafe extern "C" fn cuCtxGetSharedMemConfig(out: *mut c_uint) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuCtxGetSharedMemConfig", || current().and_then(|_| unsafe { give(out, "pConfig", 1) }))
}

/// Accepts a bank width, a hint without meaning on these GPUs.
pub extern "C" fn cuCtxSetSharedMemConfig(_config: c_uint) -> CUresult {
    api("cuCtxSetSharedMemConfig", || current().map(drop))
}

/// The priorities streams may have.
///
/// # Safety
/// As [`cuDevicePrimaryCtxRetain`]; both may be null.
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CUresult {
    api("cuCtxGetStreamPriorityRange", || {
        current()?;
        // SAFETY: a pointer that is not null is valid for a write.
        unsafe {
            if !least.is_null() {
                give(least, "leastPriority", 0)?;
            }
            if !greatest.is_null() {
                give(greatest, "greatestPriority", -5)?;
            }
        }
        Ok(())
    })
}
