//! `cargo xtask packages`: the packages as they would be published, and strangers' crates that depend on
//! them.
//!
//! ```text
//!   cargo publish --dry-run    what is published: the archives, in order, and what they ask of the registry
//!   target/packages/NAME       the archives, unpacked, in a workspace of their own: each builds from its own
//!   tests/embed                a plain `cargo build`, in an empty environment, offline; runs a layer on sim
//!   fp8-moe                    the command without the emulated device says what is missing
//!   tests/embed_cudarc         cudarc linked against libcuda beside it: neither takes the other's calls
//! ```
//!
//! (`cargo xtask candle` has a stranger more.)
//!
//! `cargo publish` could build each archive too, but from nothing for each: 8 minutes on two cores. Here all
//! share a target directory, without debug information, and the versions of the workspace's `Cargo.lock`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cargo, heading, output, root, step, stranger, target_dir};

/// The packages, each after those that it depends on.
const PACKAGES: [&str; 5] = ["ptx_sim", "fp8-moe-cust", "fp8-moe-cuda-builder", "fp8-moe", "fp8-moe-cli"];

/// What an archive may weigh, in bytes.
const ARCHIVE_LIMIT: u64 = 2 << 20;

/// Crates that an embedder of the library builds, the library included: without a feature, and with the
/// emulated device; 40 at most. It goes up only by a decision.
const EMBEDDED_CRATES: [(&str, usize); 2] = [("", 20), ("sim", 27)];

/// Packs, unpacks, builds, and builds and runs the strangers' crates.
pub fn run() -> Result<()> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    let flags = ["--no-verify", "--allow-dirty", "--locked", "--quiet"];
    let mut publish = cargo();
    step(
        "packages: cargo publish --dry-run",
        publish.args(["publish", "--dry-run"]).args(flags).args(packages.clone()),
    )?;
    // The dry run throws its archives away.
    step("packages: cargo package", cargo().args(["package", "--offline"]).args(flags).args(packages))?;
    let unpacked = unpack()?;
    build(&unpacked)?;
    embed()?;
    let no_device = driver_without_devices()?;
    embed_beside_cudarc(&no_device)?;
    command_without_sim(&unpacked, &no_device)
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
        // With new times: those in an archive are always the same, and cargo would not see a change.
        output(Command::new("tar").arg("-xmzf").arg(&archive).args(["--strip-components=1", "-C"]).arg(&to))?;
    }
    Ok(folder)
}

/// The archives as a workspace of their own builds: what one needs is in it, or in one that it depends on.
fn build(unpacked: &Path) -> Result<()> {
    let members = PACKAGES.map(|package| format!("{package:?}")).join(", ");
    let libraries = PACKAGES.iter().filter(|package| **package != "fp8-moe-cli");
    let patches: String = libraries.map(|name| format!("{name} = {{ path = {name:?} }}\n")).collect();
    let manifest =
        format!("[workspace]\nmembers = [{members}]\nresolver = \"3\"\n\n[patch.crates-io]\n{patches}");
    let file = unpacked.join("Cargo.toml");
    fs::write(&file, manifest).with_context(|| format!("could not write {}", file.display()))?;
    lock(unpacked)?;
    step("packages: build", stranger(unpacked, "build").args(["--offline", "--quiet"]))
}

/// The versions of the workspace, for a crate outside of it.
fn lock(directory: &Path) -> Result<()> {
    let (from, to) = (root().join("Cargo.lock"), directory.join("Cargo.lock"));
    fs::copy(from, &to).with_context(|| format!("could not write {}", to.display()))?;
    Ok(())
}

/// The crate that embeds the library builds, runs, and takes no more crates than it may.
fn embed() -> Result<()> {
    let directory = root().join("tests/embed");
    lock(&directory)?;
    step("embed: fetch", stranger(&directory, "fetch").arg("--quiet"))?;
    step("embed: build", stranger(&directory, "build").args(["--offline", "--quiet"]))?;
    step("embed: run on sim", stranger(&directory, "run").args(["--offline", "--quiet", "--", "sim"]))?;
    for (features, expected) in EMBEDDED_CRATES {
        let arguments = ["--offline", "--prefix=none", "--edges=normal,build", "--format={p}"];
        let mut tree = stranger(&directory, "tree");
        tree.args(arguments).args(["--no-default-features", "--features", features]);
        let tree = output(&mut tree)?;
        // Name and version. Behind them is a path, and a star if the package was shown before.
        let package = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let crates: BTreeSet<_> = tree.lines().skip(1).map(package).collect();
        println!("embed: {} crates with features [{features}]", crates.len());
        ensure!(
            crates.len() == expected,
            "the library takes {} crates, not the {expected} of this file: {crates:?}",
            crates.len()
        );
    }
    Ok(())
}

/// The crate with cudarc in it runs over a libcuda that has no device.
fn embed_beside_cudarc(driver: &Path) -> Result<()> {
    let directory = root().join("tests/embed_cudarc");
    lock(&directory)?;
    step("embed_cudarc: fetch", stranger(&directory, "fetch").arg("--quiet"))?;
    let mut command = stranger(&directory, "rustc");
    command.args(["--offline", "--quiet", "--"]).arg(format!("-Lnative={}", driver.display()));
    step("embed_cudarc: build", &mut command)?;
    let mut program = Command::new(target_dir().join("strangers/debug/embed_cudarc"));
    program.env_clear().env("LD_LIBRARY_PATH", driver);
    step("embed_cudarc: run beside a libcuda without devices", &mut program)
}

/// The command without the feature `sim`, over a libcuda that has no device: no device stands in, and what is
/// missing is said. What needs no device works.
fn command_without_sim(unpacked: &Path, driver: &Path) -> Result<()> {
    let mut build = stranger(unpacked, "build");
    build.args(["--offline", "--quiet", "--package", "fp8-moe-cli", "--no-default-features"]);
    step("fp8-moe without sim: build", &mut build)?;
    heading("fp8-moe without sim: answers");
    let checkpoint = root().join("tests/fixtures/qwen3_moe_block.safetensors");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(target_dir().join("strangers/debug/fp8-moe"));
        command.env_clear().env("LD_LIBRARY_PATH", driver).args(arguments).arg(&checkpoint);
        command
    };
    for (device, rule) in [
        ("auto", "the NVIDIA driver finds no device; the feature `sim` of fp8-moe has an emulated device"),
        ("cuda:0", "device cuda:0: the NVIDIA driver finds no device"),
        ("sim", "this program was built without the feature `sim` of fp8-moe"),
    ] {
        let answer = command(&["check", "--device", device]).output().context("could not run fp8-moe")?;
        let said = String::from_utf8_lossy(&answer.stderr);
        print!("{said}");
        ensure!(!answer.status.success() && said.contains(rule), "{device}: it does not say `{rule}`");
    }
    let described = output(&mut command(&["info"]))?;
    ensure!(described.contains("qwen3_moe"), "info: {described}");
    Ok(())
}

/// A folder with a libcuda.so.1 in which every function of the driver API answers `CUDA_ERROR_NO_DEVICE`.
fn driver_without_devices() -> Result<PathBuf> {
    const NO_DEVICE: u32 = 100;
    // Where the tests have it, of whatever state: its names alone matter.
    let mut library = target_dir().join("debug/deps/liblibcuda_sim.so");
    if !library.exists() {
        step("libcuda_sim", cargo().args(["build", "--package", "libcuda_sim"]))?;
        library = target_dir().join("debug/liblibcuda_sim.so");
    }
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
