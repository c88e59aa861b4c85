//! Runs the nested cargo that turns a device crate into whole-program PTX assembly.
//!
//! `cargo rustc --release -Zbuild-std=core --target nvptx64-nvidia-cuda -- --emit=asm`: with `lto = "fat"`
//! and one codegen unit in the device crate's release profile, the assembly of the final crate is the whole
//! program, and no linker for the target is needed (`true` stands in for it).

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Arch, Error, toolchain};

const TARGET: &str = "nvptx64-nvidia-cuda";

/// Whole-program assembly, as rustc wrote it.
pub struct Assembly {
    pub crate_name: String,
    pub text: String,
    /// Machine paths and what stands for them in `.file` lines.
    pub prefixes: Vec<(String, String)>,
}

/// Compiles the crate in `crate_dir`, in the nested target folder of `target_dir`.
pub fn compile(crate_dir: &Path, arch: Arch, target_dir: &Path) -> Result<Assembly, Error> {
    let sysroot = toolchain::sysroot_with_source(crate_dir)?;
    let crate_name = crate_name(crate_dir)?;
    let nested = target_dir.join("cuda_builder").join(arch.name());
    fs::create_dir_all(&nested).map_err(|source| Error::io("create", &nested, source))?;

    // Cargo locks the folder while it compiles; this lock also covers reading the result.
    let lock_path = nested.join("assembly.lock");
    let lock = File::create(&lock_path).map_err(|source| Error::io("create", &lock_path, source))?;
    lock.lock().map_err(|source| Error::io("lock", &lock_path, source))?;

    let status = cargo_rustc(crate_dir, arch, &nested)
        .status()
        .map_err(|source| Error::io("run", Path::new(&toolchain::cargo()), source))?;
    if !status.success() {
        return Err(Error::Compile { path: crate_dir.to_path_buf(), arch: arch.name() });
    }
    let assembly =
        nested.join(TARGET).join("release/deps").join(format!("{}.s", crate_name.replace('-', "_")));
    let text = fs::read_to_string(&assembly).map_err(|source| Error::io("read", &assembly, source))?;
    Ok(Assembly { crate_name, text, prefixes: prefixes(crate_dir, &sysroot) })
}

fn cargo_rustc(crate_dir: &Path, arch: Arch, nested: &Path) -> Command {
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(crate_dir);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_inherited_setting) {
            command.env_remove(name);
        }
    }
    let flags = [
        "-Zunstable-options".to_owned(),
        "-Cpanic=immediate-abort".to_owned(),
        // rustc's own jump threading knows nothing of convergence: it copies a shuffle into both arms of a
        // branch.
        "-Zmir-enable-passes=-JumpThreading".to_owned(),
        format!("-Ctarget-cpu={}", arch.name()),
    ];
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // A user's configuration may put intermediate files, which the assembly is one of, elsewhere.
        .env("CARGO_BUILD_BUILD_DIR", nested)
        .args(["rustc", "--release", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(nested)
        .args(["--", "--emit=asm", "-Clinker=true"]);
    command
}

/// Whether an environment variable configures the outer build, and would reconfigure the nested one.
fn is_inherited_setting(name: &str) -> bool {
    const OURS: [&str; 11] = [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "CLIPPY_ARGS",
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
    ];
    // Where the registry is and how to reach it stays.
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_"];
    let keeps = KEPT.iter().any(|prefix| name.starts_with(prefix));
    OURS.contains(&name) || (name.starts_with("CARGO") && name != "CARGO" && !keeps)
}

/// The package's name, from its manifest.
fn crate_name(crate_dir: &Path) -> Result<String, Error> {
    let manifest = crate_dir.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|source| Error::io("read", &manifest, source))?;
    package_name(&text)
        .map(str::to_owned)
        .ok_or_else(|| Error::Format(format!("{} has no `name` in `[package]`", manifest.display())))
}

fn package_name(manifest: &str) -> Option<&str> {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[package]").skip(1);
    let line =
        lines.by_ref().take_while(|line| !line.starts_with('[')).find(|line| line.starts_with("name"))?;
    line.split_once('=')?.1.trim().strip_prefix('"')?.strip_suffix('"')
}

/// What to cut from the paths in the PTX: the repository's root, the toolchain's, cargo's.
fn prefixes(crate_dir: &Path, sysroot: &Path) -> Vec<(String, String)> {
    let root = crate_dir.ancestors().find(|dir| dir.join(".git").exists()).unwrap_or(crate_dir);
    let source = sysroot.join("lib/rustlib/src/rust");
    let mut prefixes = vec![(root.to_path_buf(), ""), (source.clone(), "rust/")];
    if let Ok(real) = fs::canonicalize(&source) {
        prefixes.push((real, "rust/"));
    }
    let home = env::var_os("HOME").map(PathBuf::from);
    if let Some(home) = env::var_os("CARGO_HOME").map(PathBuf::from).or(home.map(|home| home.join(".cargo")))
    {
        prefixes.push((home, "cargo/"));
    }
    prefixes
        .into_iter()
        .map(|(path, replacement)| (format!("{}/", path.display()), replacement.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_settings_do_not_reach_the_device_build() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_PKG_NAME",
            "RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            assert!(is_inherited_setting(name), "{name}");
        }
        for name in
            ["CARGO", "CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE", "PATH", "RUSTUP_TOOLCHAIN"]
        {
            assert!(!is_inherited_setting(name), "{name}");
        }
    }

    #[test]
    fn reads_the_package_name_and_not_another_table() {
        assert_eq!(
            package_name("[package]\nedition = \"2024\"\nname = \"kernels-gpu\"\n[lib]\nname = \"x\""),
            Some("kernels-gpu")
        );
        assert_eq!(package_name("[lib]\nname = \"x\""), None);
    }
}
