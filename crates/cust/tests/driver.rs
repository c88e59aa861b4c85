//! The driver API on the emulated device; with `FP8_MOE_DEVICE=auto` or `cuda:N` on a GPU.
#![cfg(feature = "sim")]

use std::ffi::c_void;
use std::ptr;

use cust::launch::LaunchConfig;
use cust::tensor_map::{DataType, Matrix, Swizzle};
use cust::{Context, Device, DeviceMemory, Driver, Event, Module, Stream, sim, sys};

const PTX: &str = include_str!("../../ptx_sim/tests/driver/kernels.ptx");

fn driver() -> Driver {
    match std::env::var("FP8_MOE_DEVICE").as_deref() {
        Ok("sim") | Err(_) => Driver::sim().expect("the emulated device"),
        Ok(_) => Driver::cuda().expect("a GPU"),
    }
}

fn context() -> Context {
    let asked = std::env::var("FP8_MOE_DEVICE").unwrap_or_default();
    let ordinal = asked.strip_prefix("cuda:").map_or(0, |ordinal| ordinal.parse().expect("a number"));
    Context::primary(Device::get(driver(), ordinal).expect("a device")).expect("its context")
}

/// The module of the tests.
fn module(context: &Context) -> Module {
    // SAFETY: a file of `ptx_sim`'s tests, which both drivers are known to compile.
    unsafe { Module::from_ptx(context, PTX) }.expect("PTX that compiles")
}

/// Copies `values` to new memory.
fn upload(stream: &Stream, values: &[f32]) -> DeviceMemory {
    let bytes = size_of_val(values);
    let memory = DeviceMemory::uninitialized(stream.context(), bytes).expect("memory");
    // SAFETY: both ranges have that many bytes, and are there until the stream has been waited for.
    unsafe { stream.copy_from_host(memory.address(), values.as_ptr().cast(), bytes) }.expect("a copy");
    stream.synchronize().expect("the copy is done");
    memory
}

/// The first `count` floats of `memory`.
fn download(stream: &Stream, memory: &DeviceMemory, count: usize) -> Vec<f32> {
    let mut values = vec![0.0_f32; count];
    let bytes = size_of_val(&values[..]);
    assert!(bytes <= memory.bytes());
    // SAFETY: both ranges have that many bytes, and are there until the stream has been waited for.
    unsafe { stream.copy_to_host(values.as_mut_ptr().cast(), memory.address(), bytes) }.expect("a copy");
    stream.synchronize().expect("the copy is done");
    values
}

/// Enqueues `y = a * x + y` of four floats.
fn saxpy(module: &Module, stream: &Stream, y: &DeviceMemory, x: &DeviceMemory, a: f32) {
    let function = module.function("saxpy").expect("the module has it");
    let (y, x, n) = (y.address(), x.address(), 4_u32);
    let mut params: [*mut c_void; 4] = [
        ptr::from_ref(&y).cast_mut().cast(),
        ptr::from_ref(&x).cast_mut().cast(),
        ptr::from_ref(&a).cast_mut().cast(),
        ptr::from_ref(&n).cast_mut().cast(),
    ];
    let config = LaunchConfig {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        dynamic_shared: 0,
        overlap: false,
        cooperative: false,
    };
    // SAFETY: the arguments are those of the kernel, with buffers of four elements that the callers keep, as
    // they keep the module.
    unsafe { stream.launch(&function, config, &mut params) }.expect("a launch");
}

#[test]
fn runs_a_kernel() {
    let context = context();
    let (module, stream) = (module(&context), Stream::new(&context).unwrap());
    let (x, y) = (upload(&stream, &[1.0, 2.0, 3.0, 4.0]), upload(&stream, &[10.0; 4]));
    sim::set_seed(7);
    sim::take_counters();
    saxpy(&module, &stream, &y, &x, 0.5);
    assert_eq!(download(&stream, &y, 4), [10.5, 11.0, 11.5, 12.0]);
    assert_eq!(sim::take_counters().launches, u64::from(context.driver().is_emulated()));
    let function = module.function("saxpy").unwrap();
    assert_eq!(function.static_shared().unwrap(), 0);
    function.allow_dynamic_shared(1024).unwrap();
}

#[test]
fn a_graph_runs_what_was_captured() {
    let context = context();
    let (module, stream) = (module(&context), Stream::new(&context).unwrap());
    let (x, y) = (upload(&stream, &[1.0; 4]), upload(&stream, &[0.0; 4]));
    stream.begin_capture().unwrap();
    assert!(stream.is_capturing().unwrap());
    saxpy(&module, &stream, &y, &x, 2.0);
    // What a capture forbids is allowed in here.
    context.relaxed::<_, cust::CudaError>(|| DeviceMemory::uninitialized(&context, 8)).unwrap();
    let template = stream.end_capture().unwrap();
    assert_eq!((template.kernels().unwrap(), stream.is_capturing().unwrap()), (1, false));
    let graph = template.instantiate().unwrap();
    assert_eq!(download(&stream, &y, 4), [0.0; 4]);
    for times in 1..=2 {
        // SAFETY: the buffers are there, and nothing else uses them.
        unsafe { graph.launch(&stream) }.unwrap();
        assert_eq!(download(&stream, &y, 4), [2.0 * times as f32; 4]);
    }
}

#[test]
fn moves_memory_and_times_it() {
    let context = context();
    let (stream, other) = (Stream::new(&context).unwrap(), Stream::new(&context).unwrap());
    let (before, after) = (Event::new(&context, true).unwrap(), Event::new(&context, true).unwrap());
    let (a, b) = (upload(&stream, &[5.0; 100]), upload(&stream, &[1.0; 100]));
    before.record(&stream).unwrap();
    // SAFETY: the ranges lie in the buffers and do not overlap; `other` waits for `stream`.
    unsafe {
        stream.copy(b.address(), a.address(), 200).unwrap();
        stream.fill(b.address() + 4, 0, 8).unwrap();
    }
    after.record(&stream).unwrap();
    other.wait_event(&after).unwrap();
    let values = download(&other, &b, 100);
    assert_eq!((&values[..4], &values[49..51]), (&[5.0, 0.0, 0.0, 5.0][..], &[5.0, 1.0][..]));
    after.synchronize().unwrap();
    assert!(after.is_done().unwrap() && after.elapsed_ms(&before).unwrap() >= 0.0);
}

/// PTX with a mistake in line 4.
const NONSENSE: &str = ".version 8.4\n.target sm_89\n.address_size 64\nnonsense\n";

#[test]
fn errors_name_call_and_reason() {
    let (context, driver) = (context(), driver());
    // SAFETY: drivers answer these texts with an error.
    let refusal = |text: &str| unsafe { Module::from_ptx(&context, text) }.unwrap_err();
    let error = refusal("no PTX");
    assert_eq!((error.call, error.code), ("cuModuleLoadDataEx", sys::CUDA_ERROR_INVALID_IMAGE));
    let error = refusal(NONSENSE);
    assert_eq!(error.code, sys::CUDA_ERROR_INVALID_PTX);
    assert!(error.meaning.contains("line 4") && !error.meaning.contains('\0'), "{error}");
    assert!(
        error.to_string().starts_with("cuModuleLoadDataEx failed: a PTX JIT compilation failed"),
        "{error}"
    );
    let error = refusal("a\0b");
    assert_eq!(error.meaning, "the PTX has a NUL in it");
    let error = DeviceMemory::uninitialized(&context, 1 << 50).unwrap_err();
    assert_eq!(
        (error.call, error.code, error.is_fault()),
        ("cuMemAlloc", sys::CUDA_ERROR_OUT_OF_MEMORY, false)
    );
    let module = module(&context);
    for name in ["no_such_kernel", "a\0b"] {
        assert_eq!(module.function(name).unwrap_err().call, "cuModuleGetFunction");
    }
    assert_eq!(driver.error_name(sys::CUDA_ERROR_NOT_READY), "CUDA_ERROR_NOT_READY");
    assert_eq!(driver.error_text(sys::CUDA_ERROR_NOT_READY), "device not ready");
    assert_eq!(driver.error_name(sys::CUresult(4321)), "CUDA error 4321");
    let error = Device::get(driver, 1000).unwrap_err();
    assert_eq!((error.call, error.code), ("cuDeviceGet", sys::CUDA_ERROR_INVALID_DEVICE));
}

#[test]
fn devices_and_versions() {
    let driver = driver();
    let device = Device::get(driver, 0).unwrap();
    let name = device.name().unwrap();
    assert_eq!(name.starts_with("ptx_sim (emulated "), driver.is_emulated(), "{name}");
    assert!(driver.device_count().unwrap() >= 1 && driver.version().unwrap() >= (12, 0));
    assert!(device.capability().unwrap() >= (8, 0) && device.total_memory().unwrap() > 1 << 30);
}

/// The thread's current context, as the driver tells it.
fn current(driver: Driver) -> *mut c_void {
    let mut context = ptr::null_mut();
    // SAFETY: `context` is a valid place for one handle.
    let code = unsafe { (driver.table().cuCtxGetCurrent)(&mut context) };
    assert!(code.is_success());
    context
}

#[test]
fn the_callers_current_context_is_restored() {
    let (primary, driver) = (context(), driver());
    let own = Context::create(Device::get(driver, 0).unwrap()).unwrap();
    assert!(primary != own && current(driver).is_null(), "making a context leaves none current");
    // SAFETY: `own` lives longer.
    let borrowed = unsafe { Context::from_raw(driver, own.as_raw()) }.unwrap();
    assert!(borrowed == own && borrowed.device() == own.device());
    let entered = own.enter().unwrap();
    let stream = Stream::new(&primary).unwrap();
    drop(upload(&stream, &[1.0; 4]));
    module(&primary);
    drop(stream);
    assert_eq!(current(driver), own.as_raw());
    {
        let _again = own.enter().unwrap();
        let _other = primary.enter().unwrap();
        assert_eq!(current(driver), primary.as_raw());
    }
    assert_eq!(current(driver), own.as_raw());
    drop(entered);
    assert!(current(driver).is_null());
}

/// A context that is current by a guard is not destroyed, whoever drops the last handle.
#[test]
fn guards_keep_their_context() {
    let driver = driver();
    let own = || Context::create(Device::get(driver, 0).unwrap()).unwrap();
    let (first, second) = (own(), own());
    let (outer, inner) = (first.enter().unwrap(), second.enter().unwrap());
    let handles = [first.as_raw(), second.as_raw()];
    drop((first, second));
    assert_eq!(current(driver), handles[1]);
    drop(inner);
    assert_eq!(current(driver), handles[0]);
    drop(outer);
    assert!(current(driver).is_null());
}

/// Kernels and graphs of one context or driver on a stream of another.
#[test]
fn handles_of_others_are_refused() {
    let (here, there) = (context(), Context::create(Device::get(driver(), 0).unwrap()).unwrap());
    let (module, stream, other) = (module(&there), Stream::new(&here).unwrap(), Stream::new(&there).unwrap());
    let config = LaunchConfig {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        dynamic_shared: 0,
        overlap: false,
        cooperative: false,
    };
    let function = module.function("saxpy").unwrap();
    // SAFETY: it is refused before anything looks at the parameters.
    let error = unsafe { stream.launch(&function, config, &mut []) }.unwrap_err();
    assert_eq!((error.call, error.code), ("cuLaunchKernelEx", sys::CUDA_ERROR_INVALID_HANDLE));
    // SAFETY: no function is replaced.
    let twin = unsafe { driver().with(|_| ()) };
    let its_stream = Stream::new(&Context::primary(Device::get(twin, 0).unwrap()).unwrap()).unwrap();
    let x = upload(&other, &[1.0; 4]);
    other.begin_capture().unwrap();
    saxpy(&module, &other, &x, &x, 2.0);
    let graph = other.end_capture().unwrap().instantiate().unwrap();
    // SAFETY: it is refused.
    let error = unsafe { graph.launch(&its_stream) }.unwrap_err();
    assert_eq!((error.call, error.code), ("cuGraphLaunch", sys::CUDA_ERROR_INVALID_HANDLE));
}

#[test]
fn tensor_maps_are_encoded_or_refused() {
    let context = context();
    let matrix = Matrix {
        data_type: DataType::Uint8,
        address: 1 << 20,
        dimensions: [256, 8],
        stride: 256,
        box_dimensions: [128, 8],
        swizzle: Swizzle::Bytes128,
    };
    assert!(matrix.encode(&context).unwrap().opaque.iter().any(|&word| word != 0));
    let error = Matrix { address: 8, ..matrix }.encode(&context).unwrap_err();
    assert_eq!((error.call, error.code), ("cuTensorMapEncodeTiled", sys::CUDA_ERROR_INVALID_VALUE));
}

/// A table in which one function is another's.
#[test]
fn functions_can_be_replaced() {
    unsafe extern "system" fn fails(_: *mut u64, _: usize) -> sys::CUresult {
        sys::CUDA_ERROR_OUT_OF_MEMORY
    }
    let driver = driver();
    // SAFETY: an allocation may fail at any time.
    let changed = unsafe { driver.with(|table| table.cuMemAlloc_v2 = fails) };
    assert!(changed != driver && changed.is_emulated() == driver.is_emulated());
    let context = Context::primary(Device::get(changed, 0).unwrap()).unwrap();
    let error = DeviceMemory::uninitialized(&context, 8).unwrap_err();
    assert_eq!(error.code, sys::CUDA_ERROR_OUT_OF_MEMORY);
}

/// Both drivers in one process, where there is a GPU; else the reason why there is none.
#[test]
fn drivers_live_side_by_side() {
    let sim = Driver::sim().unwrap();
    assert_eq!(Driver::sim(), Ok(sim));
    match Driver::cuda() {
        Ok(cuda) => {
            assert!(cuda != sim && cuda.device_count().unwrap() > 0);
            assert_eq!(Driver::cuda(), Ok(cuda));
        }
        Err(reason) => {
            let reason = reason.to_string();
            let known = [
                "no NVIDIA driver: ",
                "the NVIDIA driver ",
                "libcuda.so.1 does not load: ",
                "no CUDA here: ",
            ];
            assert!(known.iter().any(|text| reason.starts_with(text)), "{reason}");
        }
    }
}
