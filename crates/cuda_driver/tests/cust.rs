//! `cust` from crates.io, unchanged, on the emulated device; with `FP8_MOE_DEVICE=cuda` on a GPU.

use cuda_driver::{Backend, sim, sys};
use cust::context::CurrentContext;
use cust::event::{Event, EventFlags};
use cust::function::{BlockSize, GridSize};
use cust::launch;
use cust::memory::{CopyDestination, DeviceBuffer, LockedBuffer};
use cust::module::{Module, ModuleJitOption};
use cust::stream::{Stream, StreamFlags};
use cust::util::SliceExt;

const PTX: &str = include_str!("../../ptx_sim/tests/driver/kernels.ptx");

fn start() -> cust::context::Context {
    let wanted = match cuda_driver::environment().expect("FP8_MOE_DEVICE is understood") {
        Some(request) => request.backend,
        None => Backend::Sim,
    };
    cuda_driver::choose(wanted).expect("nothing else was chosen in this process");
    cust::quick_init().expect("the driver has a device")
}

#[test]
fn runs_a_kernel() -> Result<(), cust::error::CudaError> {
    let _context = start();
    let module = Module::from_ptx(PTX, &[])?;
    let saxpy = module.get_function("saxpy")?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let x = [1.0_f32, 2.0, 3.0, 4.0].as_dbuf()?;
    let y = [10.0_f32; 4].as_dbuf()?;
    sim::set_seed(7);
    sim::take_counters();
    // SAFETY: the arguments are those of the kernel, with buffers of four elements.
    unsafe {
        launch!(saxpy<<<GridSize::x(1), BlockSize::x(32), 0, stream>>>(
            y.as_device_ptr(), x.as_device_ptr(), 0.5_f32, 4_u32
        ))?;
    }
    stream.synchronize()?;
    assert_eq!(y.as_host_vec()?, [10.5, 11.0, 11.5, 12.0]);
    assert_eq!(sim::take_counters().launches, u64::from(sim::is_active()));
    let (_, block) = saxpy.suggested_launch_configuration(0, 0.into())?;
    assert_eq!(block, 256);
    Ok(())
}

#[test]
fn moves_memory_and_times_it() -> Result<(), cust::error::CudaError> {
    let _context = start();
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let (before, after) = (Event::new(EventFlags::DEFAULT)?, Event::new(EventFlags::DEFAULT)?);
    before.record(&stream)?;
    let pinned = LockedBuffer::from_slice(&[5_u64; 100])?;
    let mut buffer = DeviceBuffer::<u64>::zeroed(100)?;
    buffer.copy_from(&pinned)?;
    buffer.index(1..3).set_8(0)?;
    after.record(&stream)?;
    after.synchronize()?;
    let mut host = [0; 100];
    buffer.copy_to(&mut host)?;
    assert_eq!(host[..4], [5, 0, 0, 5]);
    assert!(after.elapsed_time_f32(&before)? >= 0.0);
    Ok(())
}

/// PTX with a mistake in line 4.
const NONSENSE: &std::ffi::CStr = c".version 8.4\n.target sm_89\n.address_size 64\nnonsense\n";

#[test]
fn errors_have_texts() {
    let _context = start();
    let load =
        |ptx: &str| match Module::from_ptx(ptx, &[ModuleJitOption::OptLevel(cust::module::OptLevel::O4)]) {
            Ok(_) => panic!("loaded nonsense"),
            Err(error) => error,
        };
    assert_eq!(load("no PTX"), cust::error::CudaError::InvalidImage);
    let error = load(NONSENSE.to_str().unwrap());
    assert_eq!(error, cust::error::CudaError::InvalidPtx);
    assert_eq!(error.to_string(), "\"a PTX JIT compilation failed\"");
    if sim::is_active() {
        assert!(
            sim::take_last_error().is_some_and(|text| text.starts_with("cuModuleLoadDataEx: PTX line 4"))
        );
    }
    // SAFETY: allocates only.
    let error = unsafe { DeviceBuffer::<u8>::uninitialized(1 << 50) }.unwrap_err();
    assert_eq!(error, cust::error::CudaError::OutOfMemory);
}

#[test]
fn devices_and_versions() -> Result<(), cust::error::CudaError> {
    let _context = start();
    let name = CurrentContext::get_device()?.name()?;
    assert_eq!(name.starts_with("ptx_sim (emulated "), sim::is_active(), "{name}");
    assert!(cust::device::Device::num_devices()? >= 1);
    assert!(cust::CudaApiVersion::get()?.major() >= 12);
    Ok(())
}

#[test]
fn functions_that_cust_lacks() {
    let _context = start();
    assert_eq!(sys::error_name(sys::CUDA_ERROR_NOT_READY), "CUDA_ERROR_NOT_READY");
    assert_eq!(sys::error_text(sys::CUDA_ERROR_NOT_READY), "device not ready");
    assert_eq!(sys::error_name(sys::CUresult(4321)), "CUDA error 4321");
    let (result, text) = sys::load_module(NONSENSE).unwrap_err();
    assert_eq!(result, sys::CUDA_ERROR_INVALID_PTX);
    assert!(text.contains("line 4") && !text.contains('\0'), "{text}");
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    let mut status = 9;
    // SAFETY: a live stream, a pointer to a live integer.
    let result = unsafe { sys::cuStreamIsCapturing(stream.as_inner().cast(), &mut status) };
    assert_eq!((result, status), (sys::CUDA_SUCCESS, sys::CU_STREAM_CAPTURE_STATUS_NONE));
}

#[test]
fn the_program_does_not_depend_on_libcuda() {
    let program = std::env::current_exe().unwrap();
    let needed = std::process::Command::new("ldd").arg(program).output().expect("ldd is part of libc");
    let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
    assert!(needed.contains("libc.so") && !needed.contains("libcuda"), "{needed}");
}
