//! The choice between NVIDIA's driver and the emulated device, made once per process.
//!
//! ```text
//!   choose(Cuda) / choose(Sim)        the program says
//!   choose(Auto), or no choose at all FP8_MOE_DEVICE says: cuda, cuda:N, sim, auto
//!   auto                              libcuda.so.1 loads, cuInit succeeds, a device has FP8 tensor cores
//!                                     (capability >= 8.9)?  yes: Cuda   no: Sim, and the reason is kept
//! ```

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ptx_sim::driver::abi::{CUDA_ERROR_NO_DEVICE, CUDA_ERROR_NOT_SUPPORTED, CUresult};

use crate::{libcuda, trampolines};

/// The environment variable that chooses where the program did not.
pub const ENVIRONMENT_VARIABLE: &str = "FP8_MOE_DEVICE";

/// Who answers the driver API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// As a request: a GPU if a usable one is there, else the emulated device. Never an answer.
    Auto,
    /// NVIDIA's `libcuda.so.1`.
    Cuda,
    /// `ptx_sim`, an emulated device on the CPU.
    Sim,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Cuda => "cuda",
            Backend::Sim => "sim",
        })
    }
}

/// Why the door cannot be what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoorError {
    /// The process already uses the other backend.
    AlreadyChosen {
        /// What it uses.
        active: Backend,
        /// What was asked for.
        requested: Backend,
    },
    /// CUDA was asked for and is not there.
    Unavailable {
        /// Who asked: the program or the environment variable.
        asked_by: &'static str,
        /// Why it is not there.
        reason: String,
    },
    /// `FP8_MOE_DEVICE` has a value that means nothing.
    Environment(String),
}

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DoorError::AlreadyChosen { active, requested } => {
                write!(
                    f,
                    "device {requested} requested, but this process already uses {active}: one per process"
                )
            }
            DoorError::Unavailable { asked_by, reason } => {
                write!(f, "{asked_by} asked for cuda, but {reason}")
            }
            DoorError::Environment(value) => {
                write!(f, "{ENVIRONMENT_VARIABLE}={value}: must be auto, cuda, cuda:N or sim")
            }
        }
    }
}

impl std::error::Error for DoorError {}

/// What was chosen, and why.
struct Choice {
    backend: Backend,
    reason: String,
}

static CHOICE: OnceLock<Choice> = OnceLock::new();
static CHOOSING: Mutex<()> = Mutex::new(());

/// Chooses the backend of this process. Call it before the first driver function (through `cust` or
/// otherwise); the first call of one chooses `Auto`. Returns what is in force: `Cuda` or `Sim`.
///
/// # Errors
/// If the process already uses the other backend, if `Cuda` is asked for and no usable GPU is there, or if
/// the choice falls to `FP8_MOE_DEVICE` and its value is not understood.
pub fn choose(requested: Backend) -> Result<Backend, DoorError> {
    let _guard: MutexGuard<'_, ()> = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(choice) = CHOICE.get() {
        return if requested == Backend::Auto || requested == choice.backend {
            Ok(choice.backend)
        } else {
            Err(DoorError::AlreadyChosen { active: choice.backend, requested })
        };
    }
    let (wanted, asked_by) = match requested {
        Backend::Auto => match environment()? {
            Some(request) => (request.backend, ENVIRONMENT_VARIABLE),
            None => (Backend::Auto, "nobody"),
        },
        explicit => (explicit, "the program"),
    };
    let choice = decide(wanted, asked_by)?;
    let backend = choice.backend;
    // The lock is held, so the cell is empty and stays so until here.
    let _ = CHOICE.set(choice);
    Ok(backend)
}

fn decide(wanted: Backend, asked_by: &'static str) -> Result<Choice, DoorError> {
    if wanted == Backend::Sim {
        return Ok(Choice { backend: Backend::Sim, reason: format!("{asked_by} asked for sim") });
    }
    let unusable = match libcuda::survey() {
        Ok(survey) if survey.usable > 0 => {
            return Ok(Choice { backend: Backend::Cuda, reason: survey.finding });
        }
        Ok(survey) => format!("{}, and FP8 needs 8.9 or higher", survey.finding),
        Err(reason) => reason,
    };
    match wanted {
        Backend::Cuda => Err(DoorError::Unavailable { asked_by, reason: unusable }),
        _ => Ok(Choice { backend: Backend::Sim, reason: unusable }),
    }
}

/// The backend of this process, `Cuda` or `Sim`; chooses it now if that has not happened.
///
/// # Errors
/// As [`choose`] with [`Backend::Auto`].
pub fn backend() -> Result<Backend, DoorError> {
    choose(Backend::Auto)
}

/// The backend if it has been chosen already.
pub fn chosen() -> Option<Backend> {
    CHOICE.get().map(|choice| choice.backend)
}

/// Why the backend is what it is, in a few words, such as `no NVIDIA driver: libcuda.so.1 not found`.
/// `None` before the choice.
pub fn reason() -> Option<&'static str> {
    CHOICE.get().map(|choice| choice.reason.as_str())
}

/// What a device name such as `cuda:1` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceRequest {
    /// The backend.
    pub backend: Backend,
    /// Which of its devices, where the name says so.
    pub ordinal: Option<u32>,
}

impl std::str::FromStr for DeviceRequest {
    type Err = DoorError;

    fn from_str(name: &str) -> Result<Self, DoorError> {
        let request = |backend, ordinal| Ok(DeviceRequest { backend, ordinal });
        match name {
            "auto" => request(Backend::Auto, None),
            "cuda" => request(Backend::Cuda, None),
            "sim" => request(Backend::Sim, None),
            other => match other.strip_prefix("cuda:").map(str::parse::<u32>) {
                Some(Ok(ordinal)) => request(Backend::Cuda, Some(ordinal)),
                _ => Err(DoorError::Environment(other.to_owned())),
            },
        }
    }
}

/// What `FP8_MOE_DEVICE` asks for; `None` where it is not set or empty.
///
/// # Errors
/// If its value is none of `auto`, `cuda`, `cuda:N`, `sim`.
pub fn environment() -> Result<Option<DeviceRequest>, DoorError> {
    match std::env::var(ENVIRONMENT_VARIABLE) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => value.parse().map(Some),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(value)) => {
            Err(DoorError::Environment(value.to_string_lossy().into_owned()))
        }
    }
}

extern "C" fn no_device() -> CUresult {
    CUDA_ERROR_NO_DEVICE
}

extern "C" fn not_supported() -> CUresult {
    CUDA_ERROR_NOT_SUPPORTED
}

/// Where a trampoline is to jump: the chosen backend's function, remembered for the next call; a function
/// that returns an error if the backend lacks it or if no backend can be had.
pub(crate) fn target(slot: usize) -> *const () {
    let name = trampolines::name(slot);
    let found: Option<*const c_void> = match backend() {
        Ok(Backend::Cuda) => libcuda::function(name),
        Ok(_) => ptx_sim::driver::function(name),
        // A later choose() may still succeed: nothing is remembered.
        Err(_) => return no_device as *const (),
    };
    let address = found.map_or(not_supported as *const (), <*const c_void>::cast);
    trampolines::TARGETS[slot].store(address.cast_mut(), Ordering::Release);
    address
}
