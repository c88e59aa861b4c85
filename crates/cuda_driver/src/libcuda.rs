//! NVIDIA's driver library: found at run time or not at all.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, Symbol};

/// The library's name on Linux.
const SONAME: &str = "libcuda.so.1";

/// Device attributes `cuDeviceGetAttribute` is asked for here.
const COMPUTE_CAPABILITY_MAJOR: c_uint = 75;
const COMPUTE_CAPABILITY_MINOR: c_uint = 76;

/// The loaded library; it stays loaded until the process ends, as threads of its own may be running.
fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            // SAFETY: loading runs the library's initialisers; a library of this name is NVIDIA's driver,
            // or stands for it, and is made to be loaded like this.
            unsafe { Library::new(SONAME) }.map_err(|error| {
                let text = error.to_string();
                if text.contains("No such file") {
                    format!("no NVIDIA driver: {SONAME} not found")
                } else {
                    format!("{SONAME} does not load: {text}")
                }
            })
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// The address of the driver's function `name`, if it has one.
pub(crate) fn function(name: &str) -> Option<*const c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: the symbol is only turned into an address here; who calls it must know its signature.
    let symbol: Symbol<*const c_void> = unsafe { library().ok()?.get(name.as_bytes_with_nul()) }.ok()?;
    Some(symbol.into_raw().cast_const())
}

/// What the driver on this machine offers.
pub(crate) struct Survey {
    /// Devices of compute capability 8.9 or higher, which have FP8 tensor cores.
    pub usable: u32,
    /// One line on what was found, for messages.
    pub finding: String,
}

/// Loads and starts the driver and looks at its devices. The error says why there is none to use.
pub(crate) fn survey() -> Result<Survey, String> {
    library()?;
    let missing = |name: &str| format!("{SONAME} lacks {name}");
    let init = function("cuInit").ok_or_else(|| missing("cuInit"))?;
    let count = function("cuDeviceGetCount").ok_or_else(|| missing("cuDeviceGetCount"))?;
    let get = function("cuDeviceGet").ok_or_else(|| missing("cuDeviceGet"))?;
    let attribute = function("cuDeviceGetAttribute").ok_or_else(|| missing("cuDeviceGetAttribute"))?;
    // SAFETY: these are the signatures of the four functions in cuda.h.
    let (init, count, get, attribute) = unsafe {
        (
            std::mem::transmute::<*const c_void, unsafe extern "C" fn(c_uint) -> c_uint>(init),
            std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_int) -> c_uint>(count),
            std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_int, c_int) -> c_uint>(get),
            std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_int, c_uint, c_int) -> c_uint>(
                attribute,
            ),
        )
    };
    let check = |what: &str, result: c_uint| match result {
        0 => Ok(()),
        100 => Err("the NVIDIA driver finds no device".to_owned()),
        code => Err(format!("the NVIDIA driver fails: {what} returned {code}")),
    };
    // SAFETY: cuInit takes a flag word that must be 0.
    check("cuInit", unsafe { init(0) })?;
    let mut devices = 0;
    // SAFETY: the pointer is to a live c_int.
    check("cuDeviceGetCount", unsafe { count(&mut devices) })?;
    if devices <= 0 {
        return Err("the NVIDIA driver finds no device".to_owned());
    }
    let mut usable = 0;
    let mut capabilities = Vec::new();
    for ordinal in 0..devices {
        let (mut device, mut major, mut minor) = (0, 0, 0);
        // SAFETY: the pointers are to live integers and the ordinal is below the count.
        unsafe {
            check("cuDeviceGet", get(&mut device, ordinal))?;
            check("cuDeviceGetAttribute", attribute(&mut major, COMPUTE_CAPABILITY_MAJOR, device))?;
            check("cuDeviceGetAttribute", attribute(&mut minor, COMPUTE_CAPABILITY_MINOR, device))?;
        }
        if (major, minor) >= (8, 9) {
            usable += 1;
        }
        capabilities.push(format!("{major}.{minor}"));
    }
    let finding = format!(
        "the NVIDIA driver has {devices} device{} of compute capability {}",
        if devices == 1 { "" } else { "s" },
        capabilities.join(", ")
    );
    Ok(Survey { usable, finding })
}
