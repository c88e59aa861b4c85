//! `cudarc`, which loads the driver itself, runs on this library.

use std::process::Command;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const PTX: &str = include_str!("../../ptx_sim/tests/driver/kernels.ptx");

/// What the child does: `y = 2 x`, in floats, and a launch that the driver refuses.
fn saxpy() -> Result<(String, Vec<f32>, DriverError), DriverError> {
    let context: Arc<CudaContext> = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let x = stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0])?;
    let mut y = stream.alloc_zeros::<f32>(4)?;
    let module = context.load_module(Ptx::from_src(PTX))?;
    let function = module.load_function("saxpy")?;
    let (a, n) = (2.0_f32, 4_u32);
    let mut launch = |threads| {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let mut builder = stream.launch_builder(&function);
        builder.arg(&mut y).arg(&x).arg(&a).arg(&n);
        // SAFETY: the arguments are those of the kernel, with buffers of four elements.
        unsafe { builder.launch(config) }
    };
    launch(32)?;
    let refused = launch(512).expect_err("more threads than .maxntid");
    Ok((context.name()?, stream.clone_dtoh(&y)?, refused))
}

#[test]
fn child() {
    if std::env::var_os("CUDARC_CHILD").is_some() {
        let (name, y, refused) = saxpy().unwrap();
        println!("> {name} {y:?} {refused:?}");
    }
}

#[test]
fn cudarc_runs_a_kernel() {
    let program = std::env::current_exe().unwrap();
    let library = program.with_file_name("liblibcuda_sim.so");
    if !library.exists() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_none(), "{library:?} is not where cargo builds it");
        eprintln!("skipped: liblibcuda_sim.so is not beside this program");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(library, folder.path().join("libcuda.so")).unwrap();
    let output = Command::new(program)
        .args(["--exact", "child", "--nocapture"])
        .env("CUDARC_CHILD", "1")
        .env("FP8_MOE_SIM_ARCH", "90")
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split_once("> ")).map(|(_, line)| line);
    let expected = "ptx_sim (emulated H200) [2.0, 4.0, 6.0, 8.0] DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")";
    assert_eq!(line, Some(expected), "{}", String::from_utf8_lossy(&output.stderr));
}
