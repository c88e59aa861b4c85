//! `cargo xtask candle`: candle beside the library, `tests/embed_candle`, a crate outside the workspace with
//! a Qwen3-MoE block's experts as a candle op.
//!
//! ```text
//!   candle on the CPU    built, and run on the emulated device
//!   candle on a GPU      checked against candle's own types; nothing is linked
//! ```
//!
//! candle's feature `cuda` compiles its kernels with `nvcc`, in the build script of `candle-kernels`. Types
//! do not depend on what that compiles: here the package is taken with its sources and with no PTX.
//!
//! From nothing both take five minutes of CPU, of which candle and what it depends on are four: this is no
//! part of `cargo xtask test`, and is run when `Device::cudarc_scope`, the layer's forward or candle changes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{output, root, step, stranger, target_dir};

/// The CUDA version that cudarc's bindings are for, as its build script takes it.
const CUDA_VERSION: &str = "12080";

/// Runs the one and checks the other. The library has been unpacked from its package.
pub fn run() -> Result<()> {
    let directory = root().join("tests/embed_candle");
    step("embed_candle: fetch", stranger(&directory, "fetch").arg("--quiet"))?;
    let checkpoint = root().join("tests/fixtures/qwen3_moe_block.safetensors");
    let mut run = stranger(&directory, "run");
    run.args(["--offline", "--quiet", "--"]).arg(checkpoint).env("FP8_MOE_DEVICE", "sim");
    step("embed_candle: run on sim", &mut run)?;

    let kernels = kernels_without_nvcc(&directory)?;
    let mut check = stranger(&directory, "check");
    check.args(["--offline", "--quiet", "--no-default-features", "--features", "cuda", "--config"]);
    check.arg(format!("patch.crates-io.candle-kernels.path={kernels:?}"));
    // The lock file names the registry's candle-kernels.
    let lock = directory.join("Cargo.lock");
    let locked = fs::read(&lock).with_context(|| format!("could not read {}", lock.display()))?;
    let checked = step("embed_candle: check for GPUs", check.env("CUDARC_CUDA_VERSION", CUDA_VERSION));
    fs::write(&lock, locked).with_context(|| format!("could not write {}", lock.display()))?;
    checked
}

/// A folder with the package `candle-kernels`, whose texts of PTX are empty.
fn kernels_without_nvcc(directory: &Path) -> Result<PathBuf> {
    let arguments = ["--offline", "--format-version=1", "--features=cuda"];
    let metadata: Value = serde_json::from_str(&output(stranger(directory, "metadata").args(arguments))?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let package = packages.iter().find(|package| package["name"] == "candle-kernels");
    let package = package.context("candle-core's feature `cuda` has no candle-kernels")?;
    let (manifest, version) = (package["manifest_path"].as_str(), package["version"].as_str());
    let (manifest, version) = manifest.zip(version).context("candle-kernels has no manifest")?;

    let source = Path::new(manifest).with_file_name("src");
    let folder = target_dir().join("candle-kernels");
    let to = folder.join("src");
    fs::create_dir_all(&to).with_context(|| format!("could not create {}", to.display()))?;
    let library = fs::read_to_string(source.join("lib.rs")).context("candle-kernels has no lib.rs")?;
    let names = library.lines().filter_map(|line| line.strip_prefix("mdl!(")?.split(',').next());
    let texts: String = names.map(|name| format!("pub const {name}: &str = \"\";\n")).collect();
    let compiled = "include!(concat!(env!(\"OUT_DIR\"), \"/ptx.rs\"));";
    anyhow::ensure!(library.contains(compiled), "candle-kernels does not include {compiled}");
    fs::write(to.join("lib.rs"), library.replace(compiled, &texts))?;
    fs::copy(source.join("ffi.rs"), to.join("ffi.rs")).context("candle-kernels has no ffi.rs")?;
    let manifest = format!(
        "[package]\nname = \"candle-kernels\"\nversion = {version:?}\nedition = \"2021\"\n[features]\ncutile = []\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    Ok(folder)
}
