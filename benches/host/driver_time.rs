//! What a forward asks of the driver: how often it calls each function, and how long that takes.
//!
//! A driver of the same functions, but for those that a forward may call: these note how often and how long,
//! and then do what they did. So what remains of a forward's time on the host is the library's own.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cust::launch::LaunchConfig;
use cust::sys::{
    CUcontext, CUdeviceptr, CUevent, CUfunction, CUlaunchConfig, CUresult, CUstream, CUtensorMap, Table,
};
use cust::{Context, CudaResult, Driver, Module, Stream};

/// By the function's name: calls, and time in them.
pub type Calls = BTreeMap<&'static str, (u32, Duration)>;

static ORIGINAL: OnceLock<Table> = OnceLock::new();
static CALLS: Mutex<Calls> = Mutex::new(BTreeMap::new());

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calls since the last time, of all threads.
pub fn take() -> Calls {
    std::mem::take(&mut calls())
}

/// Defines a function that does what the driver's of the same name does, and notes it.
macro_rules! timed {
    (fn $name:ident($($argument:ident: $type:ty),*)) => {
        #[allow(non_snake_case)]
        unsafe extern "system" fn $name($($argument: $type),*) -> CUresult {
            let original = ORIGINAL.get().expect("`driver` has been called").$name;
            let began = Instant::now();
            // SAFETY: the caller's contract is that of the driver's function.
            let result = unsafe { original($($argument),*) };
            let time = began.elapsed();
            let mut calls = calls();
            let (count, sum) = calls.entry(stringify!($name)).or_default();
            (*count, *sum) = (*count + 1, *sum + time);
            result
        }
    };
}

/// Defines those functions, and the driver that has them.
macro_rules! all_timed {
    ($($name:ident)*) => {
        $(cust::driver_function!($name, timed);)*

        /// `driver` with functions that are noted. It stays for as long as the process, and is made once.
        pub fn driver(driver: Driver) -> Driver {
            ORIGINAL.set(*driver.table()).unwrap_or_else(|_| panic!("one driver is watched"));
            // SAFETY: each function does what the one that it replaces does.
            unsafe { driver.with(|table| { $(table.$name = $name;)* }) }
        }
    };
}

all_timed! {
    cuCtxGetCurrent
    cuCtxPushCurrent_v2
    cuCtxPopCurrent_v2
    cuThreadExchangeStreamCaptureMode
    cuMemAlloc_v2
    cuMemFree_v2
    cuMemsetD8Async
    cuFuncSetAttribute
    cuLaunchKernelEx
    cuStreamWaitEvent
    cuStreamIsCapturing
    cuEventRecord
    cuEventQuery
    cuTensorMapEncodeTiled
}

/// A kernel that does nothing, with as many bytes of arguments as a GEMM here has.
const NOTHING: &str = "
.version 8.0
.target sm_89
.address_size 64
.visible .entry nothing(.param .align 64 .b8 arguments[640]) { ret; }
";

/// Time of `launches` bare launches of a kernel that does nothing, the first as it is, the others allowed to
/// overlap, as in a forward: what the driver takes for any program. The median of a thousand times.
pub fn bare_launches(context: &Context, launches: u32) -> CudaResult<Duration> {
    // SAFETY: an empty kernel, which drivers compile.
    let (stream, module) = (Stream::new(context)?, unsafe { Module::from_ptx(context, NOTHING) }?);
    let function = module.function("nothing")?;
    let arguments = [0_u8; 640];
    let mut times = Vec::new();
    for round in 1..=1000 {
        let began = Instant::now();
        for launch in 0..launches {
            let config = LaunchConfig {
                grid: [8, 1, 1],
                block: [128, 1, 1],
                dynamic_shared: 0,
                overlap: launch > 0,
                cooperative: false,
            };
            let mut params = [std::ptr::from_ref(&arguments).cast_mut().cast::<c_void>()];
            // SAFETY: one parameter, of the size that the kernel has; it accesses no memory.
            unsafe { stream.launch(&function, config, &mut params) }?;
        }
        times.push(began.elapsed());
        // Before the driver's queue is full, where a launch would wait for room.
        if round % 32 == 0 {
            stream.synchronize()?;
        }
    }
    stream.synchronize()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
