//! `cargo xtask targets`: what users depend on compiles for Windows and macOS too, where it finds
//! `nvcuda.dll`, or says that there is no CUDA.
//!
//! Nothing is linked, so that neither Microsoft's linker nor Apple's SDK is needed. Where the toolchain has
//! no standard library for a target, that is checked from source (`rust-src`, and the crates that it depends
//! on), so that each takes some minutes of CPU: this is no part of `cargo xtask test`. Windows is taken with
//! MSVC's ABI, for which rustc writes import libraries itself; for the GNU one it asks for MinGW's `dlltool`.

use anyhow::Result;

use crate::process::{cargo, output, step, target_dir};
use crate::setup;

const TARGETS: [&str; 3] = ["x86_64-pc-windows-msvc", "x86_64-apple-darwin", "aarch64-apple-darwin"];

/// Checks the library, the emulated device and the driver's table for each target.
pub fn run() -> Result<()> {
    setup::run()?;
    let sysroot = output(std::process::Command::new("rustc").args(["--print", "sysroot"]))?;
    for target in TARGETS {
        let mut command = cargo();
        command.args(["check", "--package", "fp8-moe", "--features", "sim,cudarc,cudarc/cuda-12080"]);
        command.args(["--target", target, "--target-dir"]).arg(target_dir().join("targets"));
        let library = std::path::Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
        if !library.is_dir() {
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        }
        step(target, &mut command)?;
    }
    Ok(())
}
