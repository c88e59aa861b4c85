//! From the first release on: what is public changes as semantic versions allow.
//!
//! A release is a tag `v<version>`. `cargo semver-checks` compares each published library with its source at
//! the last one. Before there is one, there is nothing to compare with.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, heading, output, root, step};

/// The libraries, not the command: nobody links that.
const LIBRARIES: [&str; 4] = ["ptx_sim", "fp8-moe-cust", "fp8-moe-cuda-builder", "fp8-moe"];

/// Compares with the last release, if there is one.
pub fn run() -> Result<()> {
    heading("semantic versions");
    let mut git = Command::new("git");
    git.current_dir(root()).args(["tag", "--list", "v*", "--sort=-v:refname"]);
    // Sources without git have no tags.
    let tags = output(&mut git).unwrap_or_default();
    let Some(last) = tags.lines().next() else {
        println!("    no release yet: there is no tag v*");
        return Ok(());
    };
    if output(cargo().args(["semver-checks", "--version"])).is_err() {
        bail!(
            "there is a release, {last}, to compare with: type `cargo install --locked cargo-semver-checks`"
        );
    }
    let packages = LIBRARIES.iter().flat_map(|library| ["--package", library]);
    step(&format!("since {last}"), cargo().args(["semver-checks", "--baseline-rev", last]).args(packages))
}
