//! Says which kernels the library embeds.
//!
//! ```text
//! host/kernels/       PTX of every GPU family, what is generated of its records: committed, in every package
//!     SOURCES         digest of the sources that they were compiled from
//! kernels-gpu/ ..     those sources: in a checkout alone
//! ```
//!
//! By default the committed ones, which take no tools and no time. In a checkout this script refuses them
//! where the sources have changed since. With the feature `build-kernels` it compiles the sources instead.

#[path = "build/sources.rs"]
mod sources;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let is_checkout = root.join("kernels-gpu").is_dir();
    if is_checkout {
        for name in sources::CRATES {
            println!("cargo::rerun-if-changed={name}/Cargo.toml");
            println!("cargo::rerun-if-changed={name}/src");
        }
    }
    match kernels(&root, is_checkout) {
        Ok(folder) => {
            println!("cargo::rustc-env=FP8_MOE_KERNELS={}", folder.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The folder with the committed kernels.
#[cfg(not(feature = "build-kernels"))]
fn kernels(root: &Path, is_checkout: bool) -> Result<PathBuf, String> {
    let folder = root.join("host/kernels");
    println!("cargo::rerun-if-changed=host/kernels");
    if is_checkout {
        let now =
            sources::digest(root).map_err(|error| format!("could not read the kernels' sources: {error}"))?;
        let then = std::fs::read_to_string(folder.join("SOURCES")).unwrap_or_default();
        if then.trim() != now {
            return Err(
                "the PTX in host/kernels is not that of the sources any more: type `cargo xtask kernels` to \
                        compile them and commit the result, or build with `--features build-kernels`"
                    .to_owned(),
            );
        }
    }
    Ok(folder)
}

/// The folder with kernels that were compiled now.
#[cfg(feature = "build-kernels")]
fn kernels(root: &Path, is_checkout: bool) -> Result<PathBuf, String> {
    if !is_checkout {
        return Err(
            "the feature `build-kernels` is for a checkout: packages carry the compiled kernels alone"
                .to_owned(),
        );
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let target = cuda_builder::enclosing_target_dir(&folder);
    cuda_builder::package(&root.join("kernels-gpu"), &folder, &target).map_err(|error| error.to_string())?;
    Ok(folder)
}
