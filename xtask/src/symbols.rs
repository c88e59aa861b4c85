//! No program of ours defines a function of the CUDA driver's names.
//!
//! A program that did would answer the CUDA calls of every library in it: cudarc would compute on the
//! emulated device, without a word. `libcuda_sim` defines them, as a shared library under the driver's name;
//! that is its purpose.

use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::artifacts::Artifact;
use crate::process::{heading, output};

/// The one package that defines them.
const EXEMPT: &str = "libcuda_sim";

/// Looks through the commands, tests and examples of the workspace.
pub fn check(artifacts: &[Artifact]) -> Result<()> {
    heading("symbols");
    let executables: Vec<_> =
        artifacts.iter().filter(|built| built.target != EXEMPT).map(|built| &built.executable).collect();
    ensure!(!executables.is_empty(), "cargo names no executables");
    for executable in &executables {
        let symbols = output(Command::new("nm").args(["--defined-only", "--format=posix"]).arg(executable))?;
        let names = symbols.lines().filter_map(|line| line.split(' ').next());
        let own: Vec<_> = names.filter(|name| is_driver_function(name)).collect();
        if !own.is_empty() {
            bail!("{} defines functions of the CUDA driver: {}", executable.display(), own.join(", "));
        }
    }
    println!("    none of {} executables defines a function of the CUDA driver", executables.len());
    Ok(())
}

/// `cu`, then a word: `cuInit`, `cuMemAlloc_v2`. Not Rust's own symbols, which are mangled.
fn is_driver_function(name: &str) -> bool {
    let mut letters = name.strip_prefix("cu").unwrap_or_default().chars();
    letters.next().is_some_and(|letter| letter.is_ascii_uppercase())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::is_driver_function;

    #[test]
    fn names_of_the_driver() {
        assert!(["cuInit", "cuMemAlloc_v2", "cuLaunchKernelEx"].iter().all(|name| is_driver_function(name)));
        let others =
            ["cu", "curl_easy_init", "_ZN7ptx_sim6driver6cuInit17h0123456789abcdefE", "cuda_std", "_Cu"];
        assert!(!others.iter().any(|name| is_driver_function(name)));
    }
}
