//! `cargo xtask bundle`: the program and its tests in one folder, for a GPU machine without Rust and without
//! network.
//!
//! ```text
//! bundle/
//!     run.sh             runs the tests and checks the fixtures, several at a time; prints a table last
//!     fp8-moe            the command, stripped
//!     fixtures/          the layers it checks
//!     tests/regressions/ the cases that properties try first, where there are any
//!     tests.tar.xz       tests/: the test executables of the crates that talk to the device, stripped
//!                        sanitizer/: NVIDIA's compute-sanitizer, with `--sanitizer`
//! ```
//!
//! All of it comes from one build, of the whole workspace as `cargo xtask test` builds it: with `--debug`
//! nothing is left to compile after that. The release build compiles the workspace anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::artifacts::{self, Artifact};
use crate::process::{cargo, heading, output, root, target_dir};
use crate::setup::{self, cuda_tools};

/// What the folder may hold, in bytes.
const LIMIT: u64 = 64 << 20;

/// The crates through which a package talks to a device.
const DRIVER_CRATES: [&str; 2] = ["fp8-moe-cust", "fp8-moe"];

/// The one test of the emulator that a GPU answers: what its tensor cores compute.
const EMULATOR_TEST: (&str, &str) = ("ptx_sim", "tensor_cores");

/// The command.
const PROGRAM: &str = "fp8-moe";

/// Every test holds the kernels and most of the library: `xz` is to see the ones before, 15 MB each. Higher
/// presets take seven times as long, for a tenth less.
const COMPRESSION: &str = "--lzma2=preset=1,dict=64MiB";

const RUN_SCRIPT: &str = include_str!("run.sh");

/// Builds, in release unless `debug`, and fills `bundle/`.
pub fn run(sanitizer: bool, debug: bool) -> Result<()> {
    setup::run()?;
    let built = build(debug)?;

    heading("bundle");
    let bundle = root().join("bundle");
    let packed = target_dir().join("bundle");
    for directory in [&bundle, &packed] {
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("could not empty {}", directory.display()))?;
        }
    }
    for directory in [bundle.join("fixtures/models"), packed.join("tests")] {
        create(&directory)?;
    }
    strip(&built.program, &bundle.join(PROGRAM))?;
    for folder in ["fixtures", "fixtures/models"] {
        copy_all(&root().join("tests").join(folder), &bundle.join(folder))?;
    }
    copy_tree(&root().join("tests/regressions"), &bundle.join("tests/regressions"))?;
    for (name, executable) in &built.tests {
        strip(executable, &packed.join("tests").join(name))?;
    }
    if sanitizer {
        cuda_tools::sanitizer(&packed.join("sanitizer"))?;
    }
    let mut tar = Command::new("tar");
    tar.env("XZ_OPT", COMPRESSION).args(["--sort=name", "-cJf"]);
    output(tar.arg(bundle.join("tests.tar.xz")).arg("-C").arg(&packed).arg("."))?;
    let script = bundle.join("run.sh");
    fs::write(&script, RUN_SCRIPT).context("could not write run.sh")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .context("could not make run.sh executable")?;

    let size = size(&bundle)?;
    println!(
        "{}: {} tests, {:.1} MiB; run it with ./run.sh",
        bundle.display(),
        built.tests.len(),
        size as f64 / (1 << 20) as f64
    );
    if size > LIMIT {
        bail!("the bundle holds {size} bytes; allowed are {LIMIT}");
    }
    Ok(())
}

/// What cargo has built of what the bundle holds.
struct Built {
    program: PathBuf,
    /// Executables of tests by the names that they get.
    tests: BTreeMap<String, PathBuf>,
}

/// Builds all tests of the workspace, and with them the command.
fn build(debug: bool) -> Result<Built> {
    heading("build the program and the tests");
    let packages = packages()?;
    let (mut program, mut tests) = (None, BTreeMap::new());
    for artifact in artifacts::build(!debug)? {
        if artifact.is_test && packages.take(&artifact) {
            let name = artifact.test_name();
            if let Some(other) = tests.insert(name, artifact.executable.clone()) {
                bail!("two tests of one name: {} and {}", other.display(), artifact.executable.display());
            }
        } else if !artifact.is_test && artifact.kind == "bin" && artifact.target == PROGRAM {
            program = Some(artifact.executable);
        }
    }
    let program = program.context("cargo has not built the command")?;
    Ok(Built { program, tests })
}

/// The packages whose tests are packed, by their manifests.
struct Packages {
    device: BTreeSet<String>,
    emulator: String,
}

/// The workspace's packages whose tests talk to a device, and the emulator.
fn packages() -> Result<Packages> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo's metadata is not JSON")?;
    let all = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let manifest = |package: &Value| package["manifest_path"].as_str().map(str::to_owned);
    let emulator = all.iter().find(|package| package["name"] == EMULATOR_TEST.0).and_then(manifest);
    Ok(Packages {
        device: all.iter().filter(|package| is_device_package(package)).filter_map(manifest).collect(),
        emulator: emulator.context("the workspace has no emulator")?,
    })
}

/// Whether a package in cargo's metadata is one of [`DRIVER_CRATES`] or depends on one, and not for its tests
/// alone.
fn is_device_package(package: &Value) -> bool {
    let Some(dependencies) = package["dependencies"].as_array() else { return false };
    let used = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
    let names = used.chain([package]).filter_map(|named| named["name"].as_str());
    names.into_iter().any(|name| DRIVER_CRATES.contains(&name))
}

impl Packages {
    /// Whether the test is to be packed.
    fn take(&self, test: &Artifact) -> bool {
        let of_emulator = test.manifest == self.emulator && test.target == EMULATOR_TEST.1;
        of_emulator || self.device.contains(&test.manifest)
    }
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("could not create {}", directory.display()))
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    output(Command::new("strip").arg("-o").arg(to).arg(from)).map(drop)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("could not list {}", from.display()))? {
        let path = entry.context("could not list a file")?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() {
            fs::copy(&path, to.join(name)).with_context(|| format!("could not copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// Copies a folder with all that is in it, if it is there.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    create(to)?;
    copy_all(from, to)?;
    for entry in fs::read_dir(from).with_context(|| format!("could not list {}", from.display()))? {
        let path = entry.context("could not list a file")?.path();
        if path.is_dir() {
            copy_tree(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn size(directory: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("could not list {}", directory.display()))? {
        let path = entry.context("could not list a file")?.path();
        total +=
            if path.is_dir() { size(&path)? } else { path.metadata().map_or(0, |metadata| metadata.len()) };
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_talks_to_a_device() {
        let package = |name: &str, dependency: &str| {
            is_device_package(&serde_json::json!({"name": name, "dependencies": [{"name": dependency}]}))
        };
        assert!(package("fp8-moe", "fp8-moe-cust"));
        assert!(package("fp8-moe-cli", "fp8-moe"));
        assert!(package("fp8-moe-cust", "ptx_sim"));
        assert!(!package("xtask", "clap"));
        let for_tests = serde_json::json!({"name": "libcuda_sim", "dependencies": [{"name": "fp8-moe-cust", "kind": "dev"}]});
        assert!(!is_device_package(&for_tests));
    }

    #[test]
    fn packs_the_tests_of_devices_and_one_of_the_emulator() {
        let packages = Packages { device: BTreeSet::from(["/cust".to_owned()]), emulator: "/sim".to_owned() };
        let takes = |manifest: &str, target: &str| {
            packages.take(&Artifact {
                manifest: manifest.into(),
                target: target.into(),
                kind: "test".into(),
                is_test: true,
                executable: PathBuf::new(),
            })
        };
        assert!(takes("/cust", "driver") && takes("/sim", "tensor_cores"));
        assert!(!takes("/sim", "driver") && !takes("/other", "tensor_cores"));
    }
}
