//! The choice of a driver: NVIDIA's library, found at run time, or the emulated device.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::sync::OnceLock;

use crate::error::{CudaError, CudaResult};
use crate::sys::{self, CUresult, Table};

/// NVIDIA's library. `None`: NVIDIA makes none for this system.
const LIBRARY: Option<&str> = if cfg!(target_os = "windows") {
    Some("nvcuda.dll")
} else if cfg!(target_os = "linux") {
    Some("libcuda.so.1")
} else {
    None
};

/// The oldest driver API that has all functions of the [`Table`], as it counts versions: CUDA 12.0.
const OLDEST_VERSION: u32 = 12000;

/// Why there is no driver to use, in one line, such as `no NVIDIA driver: libcuda.so.1 not found`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A driver that has been started: NVIDIA's, or the emulated device's. Cheap to copy; equal to itself alone.
#[derive(Clone, Copy)]
pub struct Driver(&'static Inner);

struct Inner {
    table: Table,
    details: Option<Details>,
}

/// What the emulated device tells beside a result code: why a call failed, and what the last faulting kernel
/// did.
#[derive(Clone, Copy)]
enum Details {
    /// It is linked into this program.
    #[cfg(feature = "sim")]
    Linked,
    /// It is a library under the name of NVIDIA's (`libcuda_sim`), which exports these two functions.
    Exported {
        last_error: unsafe extern "C" fn() -> *const c_char,
        last_fault: unsafe extern "C" fn() -> *const c_char,
    },
}

impl Driver {
    /// NVIDIA's driver: `libcuda.so.1`, or `nvcuda.dll` on Windows. It is loaded and started by the first
    /// call.
    ///
    /// # Errors
    /// If there is none, if it does not start, or if it is older than CUDA 12.0. The error says which.
    pub fn cuda() -> Result<Driver, Unavailable> {
        static DRIVER: OnceLock<Result<Driver, Unavailable>> = OnceLock::new();
        DRIVER.get_or_init(|| load().map_err(Unavailable)).clone()
    }

    /// The emulated device `ptx_sim`, which is linked into this program. `ptx_sim`'s documentation lists the
    /// environment variables that it reads.
    ///
    /// # Errors
    /// If such a variable has a value that it does not understand.
    #[cfg(feature = "sim")]
    pub fn sim() -> Result<Driver, Unavailable> {
        static DRIVER: OnceLock<Result<Driver, Unavailable>> = OnceLock::new();
        let start = || {
            let lookup = |name: &CStr| {
                let function = name.to_str().ok().and_then(ptx_sim::driver::function);
                function.unwrap_or(std::ptr::null())
            };
            // They are defined as `extern "C"`, which is "system" where addresses have 64 bits.
            const { assert!(usize::BITS == 64) };
            // SAFETY: each of `ptx_sim`'s functions has the meaning and the signature of NVIDIA's of its
            // name, and is code of this program, of the table's convention as was just asserted.
            let table =
                unsafe { Table::fill(lookup) }.map_err(|name| format!("the emulated device lacks {name}"))?;
            Driver::start(Inner { table, details: Some(Details::Linked) })
        };
        DRIVER.get_or_init(|| start().map_err(Unavailable)).clone()
    }

    /// A driver of the same functions as `self`, but for those that `change` replaces: for tests that count
    /// or check what is called. It stays for as long as the process.
    ///
    /// # Safety
    /// What `change` puts into the table must do what the replaced function does.
    pub unsafe fn with(self, change: impl FnOnce(&mut Table)) -> Driver {
        let mut table = self.0.table;
        change(&mut table);
        Driver(Box::leak(Box::new(Inner { table, details: self.0.details })))
    }

    /// Calls `cuInit` and looks at the version.
    fn start(inner: Inner) -> Result<Driver, String> {
        let driver = Driver(Box::leak(Box::new(inner)));
        let starts = |error: CudaError| match error.code {
            sys::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no device".to_owned(),
            _ => format!("the driver does not start: {error}"),
        };
        // SAFETY: cuInit takes a flag word that must be 0.
        driver.check("cuInit", unsafe { (driver.table().cuInit)(0) }).map_err(starts)?;
        let (major, minor) = driver.version().map_err(starts)?;
        if major * 1000 + minor * 10 < OLDEST_VERSION {
            return Err(format!(
                "the NVIDIA driver is too old: it is for CUDA {major}.{minor}, and 12.0 or newer is needed"
            ));
        }
        Ok(driver)
    }

    /// The table of its functions. Their safe forms are this crate's other modules.
    pub fn table(self) -> &'static Table {
        &self.0.table
    }

    /// Whether it is the emulated device, linked into this program or loaded under the name of NVIDIA's
    /// library.
    pub fn is_emulated(self) -> bool {
        self.0.details.is_some()
    }

    /// The CUDA version of the driver, e.g. `(13, 0)`.
    pub fn version(self) -> CudaResult<(u32, u32)> {
        let mut version = 0;
        // SAFETY: `version` is a valid place for one int.
        self.check("cuDriverGetVersion", unsafe { (self.table().cuDriverGetVersion)(&mut version) })?;
        Ok((version as u32 / 1000, version as u32 % 1000 / 10))
    }

    /// How many devices there are.
    pub fn device_count(self) -> CudaResult<u32> {
        let mut count = 0;
        // SAFETY: `count` is a valid place for one int.
        self.check("cuDeviceGetCount", unsafe { (self.table().cuDeviceGetCount)(&mut count) })?;
        Ok(count.max(0) as u32)
    }

    /// The context that is current on this thread; null if none is.
    pub fn current_context(self) -> CudaResult<sys::CUcontext> {
        let mut current = std::ptr::null_mut();
        // SAFETY: `current` is a valid place for one handle.
        self.check("cuCtxGetCurrent", unsafe { (self.table().cuCtxGetCurrent)(&mut current) })?;
        Ok(current)
    }

    /// `Ok` for `CUDA_SUCCESS`, else the error that `call` left.
    pub fn check(self, call: &'static str, code: CUresult) -> CudaResult<()> {
        if code.is_success() { Ok(()) } else { Err(CudaError::of(self, call, code)) }
    }

    /// The driver's line on a result code.
    pub fn error_text(self, code: CUresult) -> String {
        describe(self.table().cuGetErrorString, code)
    }

    /// NVIDIA's name of a result code, such as `CUDA_ERROR_INVALID_VALUE`.
    pub fn error_name(self, code: CUresult) -> String {
        describe(self.table().cuGetErrorName, code)
    }

    /// Why this thread's last call failed: which rule of the emulated device was broken. `None` on a GPU.
    pub(crate) fn last_error(self) -> Option<String> {
        match self.0.details? {
            #[cfg(feature = "sim")]
            Details::Linked => ptx_sim::driver::last_error(),
            // SAFETY: `exported` has the address from the library that is the driver, which stays loaded. The
            // text lives until this thread's next call, and is copied before.
            Details::Exported { last_error, .. } => unsafe { text(last_error()) },
        }
    }

    /// What this thread's last faulting kernel did wrong, on the emulated device. `None` on a GPU.
    pub(crate) fn last_fault(self) -> Option<String> {
        match self.0.details? {
            #[cfg(feature = "sim")]
            Details::Linked => ptx_sim::driver::last_fault(),
            // SAFETY: as above.
            Details::Exported { last_fault, .. } => unsafe { text(last_fault()) },
        }
    }
}

impl PartialEq for Driver {
    fn eq(&self, other: &Driver) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Driver {}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_emulated() { "the emulated device's driver" } else { "NVIDIA's driver" })
    }
}

fn describe(
    ask: unsafe extern "system" fn(CUresult, *mut *const c_char) -> CUresult,
    code: CUresult,
) -> String {
    let mut name = std::ptr::null();
    // SAFETY: `name` is a valid place for one pointer.
    let result = unsafe { ask(code, &mut name) };
    // SAFETY: on success the driver gives a NUL-terminated text that lives as long as the process.
    let known = if result.is_success() { unsafe { text(name) } } else { None };
    known.unwrap_or_else(|| format!("CUDA error {}", code.0))
}

/// A copy of a C string.
///
/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's contract.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Loads NVIDIA's library and starts it.
fn load() -> Result<Driver, String> {
    let name = LIBRARY.ok_or("no CUDA here: NVIDIA has no driver for this system")?;
    // SAFETY: loading runs the library's initialisers, as for a program that is linked against it. The
    // system's loader decides which file has this name, and so which is NVIDIA's driver here.
    let library =
        unsafe { libloading::Library::new(name) }.map_err(|error| missing(name, &error.to_string()))?;
    // It stays loaded until the process ends, as threads of its own may be running.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let lookup = |name: &CStr| -> *const c_void {
        // SAFETY: the symbol is only turned into an address here.
        let symbol = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
        symbol.map_or(std::ptr::null(), |symbol| *symbol)
    };
    // SAFETY: the library is the system's driver: what it exports under the names of `cuda.h` is what that
    // declares. It stays loaded.
    let table = unsafe { Table::fill(lookup) }.map_err(|function| {
        format!("the NVIDIA driver is too old: it lacks {function}; CUDA 12.0 or newer is needed")
    })?;
    Driver::start(Inner { table, details: exported(lookup) })
}

/// The two functions that `libcuda_sim` exports beside the driver's.
fn exported(lookup: impl Fn(&CStr) -> *const c_void) -> Option<Details> {
    let (last_error, last_fault) = (lookup(c"ptx_sim_last_error"), lookup(c"ptx_sim_last_fault"));
    if last_error.is_null() || last_fault.is_null() {
        return None;
    }
    type Text = unsafe extern "C" fn() -> *const c_char;
    // SAFETY: a driver that exports these two names is `libcuda_sim`, which gives them this signature. It
    // stays loaded.
    unsafe {
        Some(Details::Exported {
            last_error: std::mem::transmute::<*const c_void, Text>(last_error),
            last_fault: std::mem::transmute::<*const c_void, Text>(last_fault),
        })
    }
}

/// What to say when `library` does not load, for the reason that the system gave.
fn missing(library: &str, reason: &str) -> String {
    let absent = ["No such file", "could not be found", "LoadLibraryExW failed"];
    if absent.iter().any(|text| reason.contains(text)) {
        format!("no NVIDIA driver: {library} not found")
    } else {
        format!("{library} does not load: {reason}")
    }
}
