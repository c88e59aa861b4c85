//! Which files a device build depends on, for `cargo::rerun-if-changed`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// Manifest, lock file and source folder of the crate in `crate_dir` and of every crate it names by `path`.
///
/// Path dependencies are found by their `path = ".."` entries in the manifests, transitively; crates from a
/// registry are pinned by the lock file. A build script prints one `cargo::rerun-if-changed` line for each.
pub fn source_paths(crate_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    let mut pending = vec![canonical(crate_dir)?];
    let mut seen = Vec::new();
    while let Some(dir) = pending.pop() {
        if seen.contains(&dir) {
            continue;
        }
        let manifest = dir.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).map_err(|source| Error::io("read", &manifest, source))?;
        for dependency in path_dependencies(&text) {
            pending.push(canonical(&dir.join(dependency))?);
        }
        paths.push(manifest);
        paths.extend([dir.join("Cargo.lock"), dir.join("src")].into_iter().filter(|path| path.exists()));
        seen.push(dir);
    }
    Ok(paths)
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|source| Error::io("find the crate", path, source))
}

/// The values of `path = ".."` in the dependency tables of a manifest.
fn path_dependencies(manifest: &str) -> Vec<&str> {
    let mut in_dependencies = false;
    let mut paths = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies
            && let Some((_, rest)) = line.split_once("path")
            && let Some(value) = rest.trim_start().strip_prefix('=')
            && let Some(quoted) = value.trim_start().strip_prefix('"')
            && let Some((path, _)) = quoted.split_once('"')
        {
            paths.push(path);
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_path_dependencies_and_nothing_else() {
        let manifest = r#"
            [lib]
            path = "host/lib.rs"
            [dependencies]
            half = "2"
            cuda_std = { path = "../crates/cuda_std", features = [] }
            [dependencies.other]
            path = "../other"
        "#;
        assert_eq!(path_dependencies(manifest), ["../crates/cuda_std", "../other"]);
    }

    #[test]
    fn follows_path_dependencies_transitively() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda_std/tests/emission");
        let paths = source_paths(&root).expect("the emission crate");
        for wanted in ["emission/src", "cuda_std/src", "cuda_std_macros/src", "cuda_std_macros/Cargo.toml"] {
            assert!(paths.iter().any(|path| path.ends_with(wanted)), "{wanted} is missing in {paths:?}");
        }
    }
}
