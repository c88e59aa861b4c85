//! `cargo xtask test`: everything that CI checks, cheapest first, and tests when everything is built. What
//! concerns device crates and packages goes on beside the host's lints and builds, and is shown after them.
//!
//! The host's crates are a cargo workspace. The device crates are not part of it, since they compile for
//! another target with `core` from source; they get the same treatment one by one, for every GPU family where
//! code differs.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cuda_builder::Arch;

use crate::artifacts::{self, Artifact};
use crate::process::{Beside, cargo, heading, root, step, target_dir};
use crate::{examples, gate, kernels, packages, readme, rooms, semver, setup, symbols};

/// The crates that compile for the GPU.
const DEVICE_CRATES: [&str; 4] =
    ["crates/cuda_std", "crates/cuda_std/tests/emission", "crates/cuda_std/tests/hopper", "kernels-gpu"];

/// The tests that run once more on sums as tensor cores cut them, and which parts of each.
const ON_CUT_SUMS: [(&str, &[&str]); 3] = [
    ("grid", &["layer", "grouped_gemm"]),
    ("cases", &["all_models_match", "wrong_weights", "flipped_roundings"]),
    ("parallel", &["experts", "shares"]),
];

/// Sets up and runs all checks; stops at the first that fails.
pub fn run() -> Result<()> {
    setup::run()?;
    format()?;
    rooms::run()?;
    readme::run()?;
    semver::run()?;
    let this = env::current_exe().context("could not find this program")?;
    let beside = Beside::start("device code and packages", Command::new(this).arg("beside"))?;
    step("lints", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("tests: build", cargo().args(["test", "--workspace", "--no-run"]))?;
    // As docs.rs builds them: without network, with the features of `[package.metadata.docs.rs]`.
    let mut docs = cargo();
    docs.env("DOCS_RS", "1").env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]);
    step("docs", docs.args(["--offline", "--features", "sim,cudarc,cudarc/cuda-12080"]))?;
    // Tests have both cores to themselves: some of them wait for each other, and not for ever.
    beside.finish()?;
    step("tests", cargo().args(["test", "--workspace"]))?;
    let artifacts = artifacts::build(false)?;
    for (test, filters) in ON_CUT_SUMS {
        on_cut_sums(&artifacts, test, filters)?;
    }
    symbols::check(&artifacts)?;
    examples::run()
}

/// What [`run`] has run beside the host's lints and builds, much of it one program at a time: all of the device
/// crates, then the packages.
pub fn beside() -> Result<()> {
    kernels::run(true)?;
    for arch in Arch::ALL {
        for directory in DEVICE_CRATES {
            let mut command = device_cargo("clippy", directory, arch);
            step(&format!("lints: {directory} for {arch}"), command.args(["--", "-D", "warnings"]))?;
        }
    }
    for directory in DEVICE_CRATES {
        // Entry points are all that a device crate exports; its readers look for the rooms behind them.
        let mut command = device_cargo("doc", directory, Arch::Sm90a);
        command
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
            .args(["--no-deps", "--document-private-items"]);
        step(&format!("docs: {directory}"), &mut command)?;
    }
    heading("PTX gate");
    gate::run(false)?;
    packages::run()
}

/// Runs parts of a test that is built, over an emulated device that cuts sums.
fn on_cut_sums(artifacts: &[Artifact], test: &str, filters: &[&str]) -> Result<()> {
    let artifact = artifacts
        .iter()
        .find(|artifact| artifact.is_test && artifact.test_name() == test)
        .with_context(|| format!("there is no test {test}"))?;
    let package = Path::new(&artifact.manifest).parent().context("a manifest lies in a folder")?;
    // As cargo runs it.
    let mut command = Command::new(&artifact.executable);
    command
        .current_dir(package)
        .env("CARGO_MANIFEST_DIR", package)
        .env("FP8_MOE_SIM_SUMS", "hardware")
        .args(filters);
    step(&format!("{test}: sums as tensor cores cut them"), &mut command)
}

fn format() -> Result<()> {
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    for directory in DEVICE_CRATES {
        let manifest = root().join(directory).join("Cargo.toml");
        step(
            &format!("format: {directory}"),
            cargo().args(["fmt", "--check", "--manifest-path"]).arg(manifest),
        )?;
    }
    Ok(())
}

/// A cargo command on a device crate, with `core` built for the GPU as `cuda_builder` does.
fn device_cargo(task: &str, directory: &str, arch: Arch) -> Command {
    let mut command = cargo();
    command
        .current_dir(root().join(directory))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", format!("-Zunstable-options -Cpanic=immediate-abort -Ctarget-cpu={arch}"))
        .args([task, "--release", "-Zbuild-std=core", "--target", "nvptx64-nvidia-cuda", "--target-dir"])
        .arg(target_dir().join("device-checks").join(arch.name()));
    command
}
