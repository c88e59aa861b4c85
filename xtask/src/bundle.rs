//! `cargo xtask bundle`: the program and its tests in one folder, for a GPU machine without Rust and without
//! network.
//!
//! ```text
//! bundle/
//!     run.sh          runs the tests and checks the fixtures, writes summary.json, prints a table last
//!     fp8-moe         the command, stripped
//!     fixtures/       the layers it checks
//!     tests.tar.xz    tests/: the test executables of the crates that talk to the device, stripped
//!                     sanitizer/: NVIDIA's compute-sanitizer, with `--sanitizer`
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{cargo, heading, output, root, step, target_dir};
use crate::setup::{self, cuda_tools};

/// What the folder may hold, in bytes.
const LIMIT: u64 = 64 << 20;

/// The crates through which a package talks to a device.
const DRIVER_CRATES: [&str; 2] = ["fp8-moe-cust", "fp8-moe"];

/// The one test of the emulator that a GPU answers: what its tensor cores compute.
const EMULATOR_TEST: [&str; 4] = ["--package", "ptx_sim", "--test", "tensor_cores"];

const RUN_SCRIPT: &str = include_str!("run.sh");

/// Builds in release and fills `bundle/`.
pub fn run(sanitizer: bool) -> Result<()> {
    setup::run()?;
    step("build the program", cargo().args(["build", "--release", "--bin", "fp8-moe"]))?;
    let executables = test_executables()?;

    heading("bundle");
    let bundle = root().join("bundle");
    // Every test holds the kernels and the emulator; together they compress to a quarter.
    let packed = target_dir().join("bundle");
    for directory in [&bundle, &packed] {
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("could not empty {}", directory.display()))?;
        }
    }
    for directory in [bundle.join("fixtures/models"), packed.join("tests")] {
        fs::create_dir_all(&directory)
            .with_context(|| format!("could not create {}", directory.display()))?;
    }
    strip(&target_dir().join("release/fp8-moe"), &bundle.join("fp8-moe"))?;
    for folder in ["fixtures", "fixtures/models"] {
        copy_all(&root().join("tests").join(folder), &bundle.join(folder))?;
    }
    for (name, executable) in &executables {
        strip(executable, &packed.join("tests").join(name))?;
    }
    if sanitizer {
        cuda_tools::sanitizer(&packed.join("sanitizer"))?;
    }
    output(Command::new("tar").arg("-cJf").arg(bundle.join("tests.tar.xz")).arg("-C").arg(&packed).arg("."))?;
    let script = bundle.join("run.sh");
    fs::write(&script, RUN_SCRIPT).context("could not write run.sh")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .context("could not make run.sh executable")?;

    let size = size(&bundle)?;
    println!(
        "{}: {} tests, {:.1} MiB; run it with ./run.sh",
        bundle.display(),
        executables.len(),
        size as f64 / (1 << 20) as f64
    );
    if size > LIMIT {
        bail!("the bundle holds {size} bytes; allowed are {LIMIT}");
    }
    Ok(())
}

/// Builds the tests in release; names and paths of their executables.
fn test_executables() -> Result<Vec<(String, PathBuf)>> {
    heading("build the tests");
    let packages = device_packages()?;
    let mut executables =
        build(&packages.iter().flat_map(|package| ["--package", package]).collect::<Vec<_>>())?;
    executables.extend(build(&EMULATOR_TEST)?);
    executables.sort();
    Ok(executables)
}

/// Builds the tests that cargo's `selection` names.
fn build(selection: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command
        .args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"])
        .args(selection);
    let built = command.stderr(Stdio::inherit()).output().context("could not run cargo")?;
    if !built.status.success() {
        bail!("the tests do not build");
    }
    let messages = String::from_utf8(built.stdout).context("cargo's messages are not UTF-8")?;
    Ok(messages.lines().filter_map(test_executable).collect())
}

/// The workspace's packages whose tests talk to a device.
fn device_packages() -> Result<Vec<String>> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo's metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    Ok(packages.iter().filter_map(device_package).collect())
}

/// The name of a package in cargo's metadata, if it is one of [`DRIVER_CRATES`] or depends on one, and not
/// for its tests alone.
fn device_package(package: &Value) -> Option<String> {
    let name = package["name"].as_str()?;
    let used = package["dependencies"].as_array()?.iter().filter(|dependency| dependency["kind"].is_null());
    let names = used.filter_map(|dependency| dependency["name"].as_str());
    names.chain([name]).any(|name| DRIVER_CRATES.contains(&name)).then(|| name.to_owned())
}

/// The test in one of cargo's messages:
/// `{"reason":"compiler-artifact","profile":{"test":true},"executable":".."}`.
fn test_executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = PathBuf::from(message["executable"].as_str()?);
    let (name, kind) = (message["target"]["name"].as_str()?, message["target"]["kind"][0].as_str()?);
    let suffix = if kind == "test" { "" } else { "_unit" };
    let suffix = if kind == "bin" { "_bin" } else { suffix };
    Some((format!("{}{suffix}", name.replace('-', "_")), executable))
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
            device_package(&serde_json::json!({"name": name, "dependencies": [{"name": dependency}]}))
        };
        assert_eq!(package("fp8-moe", "fp8-moe-cust"), Some("fp8-moe".to_owned()));
        assert_eq!(package("fp8-moe-cli", "fp8-moe"), Some("fp8-moe-cli".to_owned()));
        assert_eq!(package("fp8-moe-cust", "ptx_sim"), Some("fp8-moe-cust".to_owned()));
        assert_eq!(package("xtask", "clap"), None);
        let for_tests = serde_json::json!({"name": "libcuda_sim", "dependencies": [{"name": "fp8-moe-cust", "kind": "dev"}]});
        assert_eq!(device_package(&for_tests), None);
    }

    #[test]
    fn reads_cargos_messages() {
        let message = |test: bool, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"fp8-moe","kind":["{kind}"]}},"profile":{{"test":{test}}},"executable":"/t/x"}}"#
            )
        };
        let found = |name: &str| Some((name.to_owned(), PathBuf::from("/t/x")));
        assert_eq!(test_executable(&message(true, "test")), found("fp8_moe"));
        assert_eq!(test_executable(&message(true, "lib")), found("fp8_moe_unit"));
        assert_eq!(test_executable(&message(true, "bin")), found("fp8_moe_bin"));
        assert_eq!(test_executable(&message(false, "bin")), None);
        assert_eq!(test_executable("not json"), None);
    }
}
