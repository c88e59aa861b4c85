//! The one error type of the library.
//!
//! Every refusal says which argument it refuses, what the value was and what is allowed, in one line; every driver
//! failure says which driver call failed; a fault of a kernel is reported by the call that observed it.

use std::path::PathBuf;

use cust::sys::CUresult;

/// What any call of this library may fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument was refused before anything was launched.
    #[error("{op}: {name} = {value}: {rule}")]
    Argument {
        /// The operation that refused, e.g. `grouped_gemm`.
        op: &'static str,
        /// The argument, by its name in the call.
        name: String,
        /// The value it had.
        value: String,
        /// The rule it breaks, e.g. `must be a multiple of 16`.
        rule: String,
    },
    /// A call into the CUDA driver (or the emulated device behind it) failed.
    #[error("{call} failed: {meaning} (CUDA error {code})")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// Its `CUresult`.
        code: u32,
        /// The driver's words for the code.
        meaning: String,
    },
    /// A kernel did something illegal: out-of-bounds or misaligned access, a trap, a deadlock. On the emulated device
    /// the text names kernel, thread, PTX line and Rust line.
    #[error("{0}")]
    Fault(String),
    /// A checkpoint cannot be used.
    #[error("{}: {what}", file.display())]
    Checkpoint {
        /// The file at fault.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// There is no such device, or it cannot run the kernels.
    #[error("device {spec}: {reason}")]
    Device {
        /// What was asked for, e.g. `cuda:1`.
        spec: String,
        /// Why it cannot be had.
        reason: String,
    },
}

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(
        op: &'static str,
        name: impl Into<String>,
        value: impl ToString,
        rule: impl Into<String>,
    ) -> Error {
        Error::Argument { op, name: name.into(), value: value.to_string(), rule: rule.into() }
    }

    /// An [`Error::Checkpoint`].
    pub fn checkpoint(file: impl Into<PathBuf>, what: impl Into<String>) -> Error {
        Error::Checkpoint { file: file.into(), what: what.into() }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        Error::Io { path: path.into(), source }
    }

    /// The error that stands for the driver's answer `code` to `call`.
    ///
    /// The codes a faulting kernel leaves behind become [`Error::Fault`], with the emulated device's report when it is
    /// the one that faulted.
    pub(crate) fn from_driver(call: &'static str, code: u32) -> Error {
        use CUresult as C;
        let faults = [
            C::CUDA_ERROR_ILLEGAL_ADDRESS,
            C::CUDA_ERROR_LAUNCH_FAILED,
            C::CUDA_ERROR_LAUNCH_TIMEOUT,
            C::CUDA_ERROR_MISALIGNED_ADDRESS,
            C::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            C::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            C::CUDA_ERROR_INVALID_PC,
            C::CUDA_ERROR_HARDWARE_STACK_ERROR,
            C::CUDA_ERROR_ASSERT,
        ];
        let meaning = cuda_driver::sys::error_text(cuda_driver::sys::CUresult(code));
        if faults.into_iter().any(|fault| fault as u32 == code) {
            let report = cuda_driver::sim::last_fault();
            return Error::Fault(report.unwrap_or_else(|| {
                format!("a kernel faulted, seen by {call}: {meaning} (CUDA error {code})")
            }));
        }
        Error::driver(call, code, meaning)
    }

    /// An [`Error::Driver`]. The emulated device also says which of its rules was broken, after the function's name.
    pub(crate) fn driver(call: &'static str, code: u32, mut meaning: String) -> Error {
        if let Some(detail) = cuda_driver::sim::take_last_error() {
            meaning.push_str(": ");
            meaning.push_str(detail.split_once(": ").map_or(detail.as_str(), |(_, rule)| rule));
        }
        Error::Driver { call, code, meaning }
    }
}

/// `Ok` for `CUDA_SUCCESS`, else the error for `code`.
pub(crate) fn check(call: &'static str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Error::from_driver(call, code as u32)) }
}

/// Refuses an argument unless `holds`: the one-line form of [`Error::Argument`].
pub fn require(
    holds: bool,
    op: &'static str,
    name: &str,
    value: impl ToString,
    rule: impl FnOnce() -> String,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(op, name, value, rule())) }
}

/// As [`check`], for functions that `cust` lacks: their result code as a number.
pub(crate) fn check_number(call: &'static str, code: u32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::from_driver(call, code)) }
}
