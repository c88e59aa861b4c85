//! `cargo xtask setup`: what the build needs beyond stable Rust, found or installed.
//!
//! | what | for | where it goes |
//! |---|---|---|
//! | source of Rust's `core` | compiling kernels (`-Zbuild-std=core`) | the toolchain's sysroot |
//! | `ptxas`, `nvdisasm` | checking PTX, the resource table | `.toolchain/cuda/bin` |
//!
//! Each step looks first and says what it found or did; a second run does nothing.

pub mod cuda_tools;
mod rust_src;

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{heading, root};

/// Finds or installs everything.
pub fn run() -> Result<()> {
    heading("set-up");
    rust_src::ensure()?;
    if let Err(error) = cuda_tools::ensure() {
        // The build does without: the driver, or the emulator, reads PTX itself.
        println!("ptxas: not installed, so kernels are not checked at build time: {error:#}");
    }
    Ok(())
}

/// The folder for what set-up downloads; git ignores it.
fn toolchain_dir() -> PathBuf {
    root().join(".toolchain")
}
