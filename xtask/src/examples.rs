//! Runs the numbered examples on the emulated device, as `cargo test` has built them. Others need more than
//! one device.
//!
//! Those of other programs' drivers (`6_cudarc`) find `libcuda_sim` in the place of NVIDIA's library.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{root, step, target_dir};

/// Runs those of `examples/`, in the order of their numbers.
pub fn run() -> Result<()> {
    let folder = root().join("examples");
    let files = fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file.with_context(|| format!("could not read {}", folder.display()))?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            names.push(name.to_owned());
        }
    }
    ensure!(!names.is_empty(), "there are no numbered examples in {}", folder.display());
    names.sort();
    let driver = emulated_driver()?;
    for name in names {
        let mut program = Command::new(target_dir().join("debug/examples").join(&name));
        program.current_dir(root()).env("FP8_MOE_DEVICE", "sim").env("LD_LIBRARY_PATH", &driver);
        step(&format!("example {name}"), &mut program)?;
    }
    Ok(())
}

/// A folder with `libcuda_sim` under the names of NVIDIA's driver.
fn emulated_driver() -> Result<PathBuf> {
    let library = target_dir().join("debug/deps/liblibcuda_sim.so");
    let folder = target_dir().join("emulated-driver");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    for name in ["libcuda.so", "libcuda.so.1"] {
        let copy = folder.join(name);
        fs::copy(&library, &copy).with_context(|| format!("could not copy {}", library.display()))?;
    }
    Ok(folder)
}
