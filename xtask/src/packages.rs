//! `cargo xtask packages`: the packages as they would be published, and strangers' crates that depend on
//! them.
//!
//! ```text
//!   cargo publish --dry-run    each package builds from its own archive, in dependency order
//!   target/packages/NAME       the archives, unpacked
//!   tests/embed                a plain `cargo build` with an empty environment, offline after `cargo fetch`; runs a layer on sim
//!   tests/embed_cudarc         cudarc linked against libcuda beside the library: neither takes the other's calls
//! ```

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, heading, output, root, step, target_dir};

/// The packages, each after those that it depends on.
const PACKAGES: [&str; 5] = ["ptx_sim", "fp8-moe-cust", "fp8-moe-cuda-builder", "fp8-moe", "fp8-moe-cli"];

/// What an archive may weigh, in bytes.
const ARCHIVE_LIMIT: u64 = 2 << 20;

/// Crates that an embedder of the library builds, the emulated device included; it goes up only by a
/// decision.
const EMBEDDED_CRATES: usize = 40;

/// Packs, verifies, unpacks, and builds the strangers' crates.
pub fn run() -> Result<()> {
    let mut publish = cargo();
    publish.args(["publish", "--dry-run", "--allow-dirty", "--locked"]);
    for package in PACKAGES {
        publish.args(["--package", package]);
    }
    step("packages", &mut publish)?;
    let unpacked = unpack()?;
    embed(&unpacked)?;
    embed_beside_cudarc()
}

/// Unpacks every archive into a folder named after its package. Returns the folder of them all.
fn unpack() -> Result<PathBuf> {
    heading("unpack");
    let folder = root().join("target/packages");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("could not empty {}", folder.display()))?;
    }
    for package in PACKAGES {
        let version = env!("CARGO_PKG_VERSION");
        let archive = target_dir().join("package").join(format!("{package}-{version}.crate"));
        let size = fs::metadata(&archive).with_context(|| format!("no {}", archive.display()))?.len();
        println!("{package}: {:.2} MB", size as f64 / 1e6);
        if size > ARCHIVE_LIMIT {
            bail!("{} has {size} bytes; at most {ARCHIVE_LIMIT} are allowed", archive.display());
        }
        let to = folder.join(package);
        fs::create_dir_all(&to).with_context(|| format!("could not create {}", to.display()))?;
        output(Command::new("tar").arg("-xzf").arg(&archive).args(["--strip-components=1", "-C"]).arg(&to))?;
    }
    Ok(folder)
}

/// Cargo in one of the strangers' crates, with nothing in its environment but where programs, crates and
/// toolchains are.
fn stranger(directory: &Path) -> Command {
    let mut command = cargo();
    command.env_clear().current_dir(directory);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The crate that embeds the library builds, runs, and takes no more crates than it may.
fn embed(unpacked: &Path) -> Result<()> {
    let directory = root().join("tests/embed");
    step("embed: fetch", stranger(&directory).arg("fetch"))?;
    step("embed: build", stranger(&directory).args(["build", "--offline"]))?;
    step("embed: run on sim", stranger(&directory).args(["run", "--offline", "--quiet", "--", "sim"]))?;
    let arguments =
        ["tree", "--offline", "--prefix=none", "--edges=normal,build", "--format={p}", "--package=fp8-moe"];
    let tree = output(stranger(&directory).args(arguments))?;
    // A package of a path is shown with it, and a package that was shown before with a star.
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    println!("embed: {} crates", crates.len());
    if crates.len() > EMBEDDED_CRATES {
        bail!(
            "the library in {} takes {} crates; at most {EMBEDDED_CRATES} are allowed: {crates:?}",
            unpacked.display(),
            crates.len()
        );
    }
    Ok(())
}

/// The crate with cudarc in it runs over a libcuda that has no device.
fn embed_beside_cudarc() -> Result<()> {
    let directory = root().join("tests/embed_cudarc");
    let driver = driver_without_devices()?;
    let build = |command: &mut Command| {
        command.env("RUSTFLAGS", format!("-Lnative={}", driver.display()));
    };
    step("embed_cudarc: fetch", stranger(&directory).arg("fetch"))?;
    let mut command = stranger(&directory);
    build(&mut command);
    step("embed_cudarc: build", command.args(["build", "--offline"]))?;
    let mut command = stranger(&directory);
    build(&mut command);
    command.env("LD_LIBRARY_PATH", &driver).args(["run", "--offline", "--quiet"]);
    step("embed_cudarc: run beside a libcuda without devices", &mut command)
}

/// A folder with a libcuda.so.1 in which every function of the driver API answers `CUDA_ERROR_NO_DEVICE`.
fn driver_without_devices() -> Result<PathBuf> {
    const NO_DEVICE: u32 = 100;
    step("libcuda_sim", cargo().args(["build", "--package", "libcuda_sim"]))?;
    let library = target_dir().join("debug/liblibcuda_sim.so");
    let symbols =
        output(Command::new("nm").args(["--dynamic", "--defined-only", "--format=posix"]).arg(&library))?;
    let functions =
        symbols.lines().filter_map(|line| line.split(' ').next()).filter(|name| name.starts_with("cu"));
    let source: String =
        functions.map(|name| format!("int {name}(void) {{ return {NO_DEVICE}; }}\n")).collect();

    let folder = target_dir().join("no-device");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let file = folder.join("libcuda.c");
    fs::write(&file, source).with_context(|| format!("could not write {}", file.display()))?;
    let shared = folder.join("libcuda.so.1");
    output(
        Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
            .arg(&shared)
            .arg(&file),
    )?;
    let link = folder.join("libcuda.so");
    if !link.exists() {
        fs::copy(&shared, &link).with_context(|| format!("could not write {}", link.display()))?;
    }
    Ok(folder)
}
