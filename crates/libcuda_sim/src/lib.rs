//! `ptx_sim` as a shared library with the ABI of NVIDIA's `libcuda.so.1`.
//!
//! Installed under that name in a folder that `LD_LIBRARY_PATH` lists, it gives programs that load the driver
//! themselves (cudarc, candle, cuda-python, anything over `ctypes`) an emulated device:
//!
//! ```text
//! cargo build -p libcuda_sim
//! mkdir -p /some/folder && cp target/debug/liblibcuda_sim.so /some/folder/libcuda.so.1
//! LD_LIBRARY_PATH=/some/folder program
//! ```
//!
//! The device runs PTX only, not machine code (cubin). `ptx_sim::driver` says which functions there are.
//! Beside them this library exports two of its own: [`ptx_sim_last_error`] and [`ptx_sim_last_fault`]. That
//! they are there tells a program that the driver is this one; so does the device's name, which begins with
//! `ptx_sim (emulated`.
//!
//! What a kernel did wrong is printed on standard error (kernel, thread, source line), since the program sees
//! only a number; `FP8_MOE_SIM_QUIET=1` keeps it quiet.

use std::arch::naked_asm;
use std::cell::RefCell;
use std::ffi::{CString, c_char};

macro_rules! exports {
    ($($name:ident)*) => {
        $(
            /// Jumps to the function of this name in `ptx_sim::driver`.
            ///
            /// # Safety
            /// To be called as what `cuda.h` declares under this name, by its contract: not as the function
            /// without arguments that this is to Rust.
            // SAFETY: the symbol is NVIDIA's name for a function of exactly this meaning, which this library
            // stands in for.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            #[allow(non_snake_case)]
            pub unsafe extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                naked_asm!("jmp {}", sym ptx_sim::driver::$name);
                #[cfg(target_arch = "aarch64")]
                naked_asm!("b {}", sym ptx_sim::driver::$name);
            }
        )*
    };
}

ptx_sim::for_each_driver_function!(exports);

/// The loader calls this before the program: faults are printed.
#[cfg(target_os = "linux")]
// SAFETY: the section holds pointers to functions that the loader calls once; this one only sets a flag.
#[unsafe(link_section = ".init_array")]
#[used]
static START: extern "C" fn() = {
    extern "C" fn start() {
        ptx_sim::driver::print_faults(true);
    }
    start
};

thread_local! {
    /// The text that was last given out, which lives until the next one of the same thread.
    static TEXT: RefCell<CString> = RefCell::default();
}

fn give(text: Option<String>) -> *const c_char {
    let Some(text) = text.and_then(|text| CString::new(text).ok()) else {
        return std::ptr::null();
    };
    // A thread that is ending has no place for it any more.
    let given = TEXT.try_with(|slot| {
        let mut slot = slot.borrow_mut();
        *slot = text;
        slot.as_ptr()
    });
    given.unwrap_or(std::ptr::null())
}

/// Why the calling thread's last failing driver call failed, or null. Valid until the thread's next call of
/// this or of [`ptx_sim_last_fault`].
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_sim_last_error() -> *const c_char {
    give(ptx_sim::driver::last_error())
}

/// What the calling thread's last kernel that stopped at a fault did wrong, or null. Valid until the thread's
/// next call of this or of [`ptx_sim_last_error`].
// SAFETY: no other library uses this prefix.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_sim_last_fault() -> *const c_char {
    give(ptx_sim::driver::last_fault())
}
