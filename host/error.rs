//! The one error type of the library.
//!
//! Every refusal says which argument it refuses, what the value was and what is allowed, in one line; every
//! driver failure says which driver call failed; a fault of a kernel is reported by the call that observed
//! it.

use std::fmt::{self, Display};
use std::path::PathBuf;

use cust::CudaError;

/// What any call of this library may fail with.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument was refused before anything was launched.
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
    Driver {
        /// The driver function.
        call: &'static str,
        /// Its `CUresult`.
        code: u32,
        /// The driver's words for the code.
        meaning: String,
    },
    /// A kernel did something illegal: out-of-bounds or misaligned access, a trap, a deadlock. On the
    /// emulated device the text names kernel, thread, PTX line and Rust line.
    Fault(String),
    /// A checkpoint cannot be used.
    Checkpoint {
        /// The file at fault.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The operating system refused to read or write a file.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A rank of a group has failed: this one or another.
    Rank {
        /// The rank at fault.
        rank: usize,
        /// What it did, or did not do, e.g. `has not called all_gather within 30 s`.
        what: String,
    },
    /// NCCL cannot be had, or a call of it failed.
    Nccl {
        /// NCCL's function.
        call: &'static str,
        /// What is wrong.
        meaning: String,
    },
    /// There is no such device, or it cannot run the kernels.
    Device {
        /// What was asked for, e.g. `cuda:1`.
        spec: String,
        /// Why it cannot be had.
        reason: String,
    },
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Argument { op, name, value, rule } => write!(f, "{op}: {name} = {value}: {rule}"),
            Error::Driver { call, code, meaning } => {
                write!(f, "{call} failed: {meaning} (CUDA error {code})")
            }
            Error::Fault(what) => f.write_str(what),
            Error::Checkpoint { file, what } => write!(f, "{}: {what}", file.display()),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Rank { rank, what } => write!(f, "rank {rank} {what}"),
            Error::Nccl { call, meaning } => write!(f, "NCCL: {call}: {meaning}"),
            Error::Device { spec, reason } => write!(f, "device {spec}: {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
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

    /// An [`Error::Checkpoint`]. Line ends and the like, which names in files may have, are escaped in
    /// `what`.
    pub fn checkpoint(file: impl Into<PathBuf>, what: impl Into<String>) -> Error {
        let mut what = what.into();
        if what.contains(char::is_control) {
            let escaped = |c: char| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            };
            what = what.chars().map(escaped).collect();
        }
        Error::Checkpoint { file: file.into(), what }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        Error::Io { path: path.into(), source }
    }
}

/// A fault of a kernel is an [`Error::Fault`], with the emulated device's report when it is the one that
/// faulted.
impl From<CudaError> for Error {
    fn from(error: CudaError) -> Error {
        let CudaError { call, code, meaning, fault, .. } = &error;
        match fault {
            Some(report) => Error::Fault(report.clone()),
            None if error.is_fault() => {
                Error::Fault(format!("a kernel faulted, seen by {call}: {meaning} (CUDA error {})", code.0))
            }
            None => Error::Driver { call, code: code.0, meaning: meaning.clone() },
        }
    }
}

/// Refuses an argument unless `holds`: the one-line form of [`Error::Argument`].
///
/// A forward asks this a hundred times: `value` is something that can be written (`format_args!`), and is
/// written only for a refusal.
///
/// # Errors
/// [`Error::Argument`], unless `holds`.
pub fn require(
    holds: bool,
    op: &'static str,
    name: &str,
    value: impl Display,
    rule: impl FnOnce() -> String,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(op, name, value, rule())) }
}
