//! What the driver functions share: the one emulated device of the process, the tables of live handles, and
//! how a failure becomes a result code with a text behind it.
//!
//! Handles (contexts, streams, modules, ...) are numbers that look like pointers and point nowhere. Every use
//! looks the number up, so a stale or foreign handle is an error and never a crash.

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, RwLock};

use super::abi::*;
use super::control;
use super::profile::Profile;
use crate::mma::TensorCores;
use crate::{Machine, MachineConfig, MemoryError};

/// Why a driver function fails: the code for the caller, the text for [`control::last_error`].
#[derive(Debug)]
pub(super) struct Failure {
    pub code: CUresult,
    pub text: String,
}

pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// An `Err` with that code and text.
pub(super) fn fail<T>(code: CUresult, text: impl Into<String>) -> Outcome<T> {
    Err(Failure { code, text: text.into() })
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let code = match error {
            MemoryError::OutOfMemory { .. } => CUDA_ERROR_OUT_OF_MEMORY,
            _ => CUDA_ERROR_INVALID_VALUE,
        };
        Failure { code, text: error.to_string() }
    }
}

/// Runs the body of the driver function `name`: a failure, or a panic of the emulator itself, becomes a
/// result code, and its text is kept for the calling thread.
pub(super) fn api(name: &'static str, body: impl FnOnce() -> Outcome) -> CUresult {
    control::note_call(name);
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return CUDA_SUCCESS,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Failure { code: CUDA_ERROR_UNKNOWN, text: format!("the emulator failed: {text}") }
        }
    };
    control::set_last_error(format!("{name}: {}", failure.text));
    failure.code
}

/// The answer of every function that the emulated device does not implement.
pub(super) fn not_supported(name: &'static str) -> CUresult {
    api(name, || fail(CUDA_ERROR_NOT_SUPPORTED, "not implemented by the emulated device"))
}

/// Writes a result through a pointer that the caller of a driver function gave.
///
/// # Safety
/// `pointer` is null or valid for a write of `T`.
pub(super) unsafe fn give<T>(pointer: *mut T, argument: &str, value: T) -> Outcome {
    if pointer.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("{argument} is null"));
    }
    // SAFETY: not null, and then valid by the caller's promise. C callers may pass any alignment the type's
    // ABI allows, which is what Rust requires too.
    unsafe { pointer.write(value) };
    Ok(())
}

/// The emulated device of this process.
pub(super) struct Device {
    pub machine: Machine,
    pub profile: Profile,
}

static DEVICE: OnceLock<Device> = OnceLock::new();

/// Makes the device, once; `cuInit` does.
pub(super) fn initialize() -> Outcome {
    if DEVICE.get().is_some() {
        return Ok(());
    }
    let profile =
        Profile::from_environment().map_err(|text| Failure { code: CUDA_ERROR_INVALID_DEVICE, text })?;
    let sums = match std::env::var("FP8_MOE_SIM_SUMS") {
        Ok(name) => TensorCores::parse(&name).ok_or_else(|| Failure {
            code: CUDA_ERROR_INVALID_VALUE,
            text: format!("FP8_MOE_SIM_SUMS is `{name}`: must be `exact` or `hardware`"),
        })?,
        Err(_) => TensorCores::default(),
    };
    DEVICE.get_or_init(|| {
        let machine = Machine::new(MachineConfig {
            sm_count: profile.sm_count,
            capability: profile.capability,
            memory_bytes: profile.memory_bytes,
            tensor_cores: sums,
            ..MachineConfig::default()
        });
        Device { machine, profile }
    });
    Ok(())
}

/// The device, or `CUDA_ERROR_NOT_INITIALIZED` before `cuInit`.
pub(super) fn device() -> Outcome<&'static Device> {
    match DEVICE.get() {
        Some(device) => Ok(device),
        None => fail(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called"),
    }
}

static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(0x51_0000_0000);

/// A number that no other handle has had.
pub(super) fn new_handle() -> usize {
    NEXT_HANDLE.fetch_add(0x100, Ordering::Relaxed)
}

/// The live objects of one kind, by handle.
pub(super) struct Registry<T> {
    what: &'static str,
    objects: LazyLock<RwLock<HashMap<usize, Arc<T>>>>,
}

impl<T> Registry<T> {
    pub const fn new(what: &'static str) -> Self {
        Registry { what, objects: LazyLock::new(RwLock::default) }
    }

    pub fn insert(&self, object: Arc<T>) -> *mut c_void {
        let handle = new_handle();
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(handle, object);
        handle as *mut c_void
    }

    pub fn get(&self, handle: *mut c_void) -> Outcome<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&(handle as usize)).cloned().map_or_else(|| self.unknown(handle), Ok)
    }

    pub fn remove(&self, handle: *mut c_void) -> Outcome<Arc<T>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.remove(&(handle as usize)).map_or_else(|| self.unknown(handle), Ok)
    }

    /// Removes all objects for which `doomed` holds.
    pub fn remove_if(&self, doomed: impl Fn(&T) -> bool) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.retain(|_, object| !doomed(object));
    }

    fn unknown<U>(&self, handle: *mut c_void) -> Outcome<U> {
        fail(CUDA_ERROR_INVALID_HANDLE, format!("{handle:p} is not a live {}", self.what))
    }
}

/// A lock whose holders never leave broken data behind: a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
