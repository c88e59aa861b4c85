//! Failures of driver calls.

use std::fmt;

use crate::driver::Driver;
use crate::sys::{self, CUresult};

/// What any call here may fail with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaError {
    /// The driver function, e.g. `cuMemAlloc`.
    pub call: &'static str,
    /// Its result.
    pub code: CUresult,
    /// The driver's words for it. The emulated device adds which of its rules was broken.
    pub meaning: String,
    /// If a kernel faulted on the emulated device: kernel, thread, PTX line, Rust line, and what it did.
    pub fault: Option<String>,
}

/// `Result` with [`CudaError`].
pub type CudaResult<T> = Result<T, CudaError>;

/// The codes that a faulting kernel leaves behind.
const FAULTS: [CUresult; 9] = [
    sys::CUDA_ERROR_ILLEGAL_ADDRESS,
    sys::CUDA_ERROR_LAUNCH_FAILED,
    sys::CUDA_ERROR_LAUNCH_TIMEOUT,
    sys::CUDA_ERROR_MISALIGNED_ADDRESS,
    sys::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    sys::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    sys::CUDA_ERROR_INVALID_PC,
    sys::CUDA_ERROR_HARDWARE_STACK_ERROR,
    sys::CUDA_ERROR_ASSERT,
];

impl CudaError {
    /// The error that `call` of `driver` has just left.
    pub(crate) fn of(driver: Driver, call: &'static str, code: CUresult) -> CudaError {
        let mut error =
            CudaError { call: api_name(call), code, meaning: driver.error_text(code), fault: None };
        if error.is_fault() {
            error.fault = driver.last_fault();
        } else if let Some(detail) = driver.last_error() {
            // `cuMemAlloc_v2: bytesize is 0`: the function is named already.
            let rule = detail.split_once(": ").map_or(detail.as_str(), |(_, rule)| rule);
            error.meaning = format!("{}: {rule}", error.meaning);
        }
        error
    }

    /// Whether a kernel did something illegal, rather than the program. The context is lost then.
    pub fn is_fault(&self) -> bool {
        FAULTS.contains(&self.code)
    }
}

/// The name that `cuda.h` gives an exported function: without the suffix that tells versions of its binary
/// interface apart.
fn api_name(call: &'static str) -> &'static str {
    call.strip_suffix("_v2").unwrap_or(call)
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Some(fault) => f.write_str(fault),
            None => write!(f, "{} failed: {} (CUDA error {})", self.call, self.meaning, self.code.0),
        }
    }
}

impl std::error::Error for CudaError {}

/// Calls a function of the table by its name, with the error naming it. For use in `unsafe`.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {
        $driver.check(stringify!($name), ($driver.table().$name)($($argument),*))
    };
}
pub(crate) use call;
