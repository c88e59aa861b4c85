//! `cargo xtask kernels`: the compiled kernels in `host/kernels`, which the library embeds and its package
//! carries.
//!
//! They are committed, so that users need neither `rust-src` nor anything unstable. The same sources give the
//! same bytes in every checkout, which `--check` relies on.

#[path = "../../build/sources.rs"]
mod sources;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process::{heading, root, target_dir};

/// The file with the digest of the sources.
const SOURCES: &str = "SOURCES";

/// Compiles the kernels of all families and writes them, or, with `check`, compares them with the committed
/// ones.
pub fn run(check: bool) -> Result<()> {
    heading("kernels");
    let committed = root().join("host/kernels");
    let compiled = if check { target_dir().join("kernels") } else { committed.clone() };
    fs::create_dir_all(&compiled).with_context(|| format!("could not create {}", compiled.display()))?;
    // Before the compilation: what is edited meanwhile is noticed by the next build.
    let digest = sources::digest(root()).context("could not read the kernels' sources")?;
    cuda_builder::package(&root().join("kernels-gpu"), &compiled, &target_dir())?;
    write(&compiled.join(SOURCES), &format!("{digest}\n"))?;
    if !check {
        println!("wrote {}", committed.display());
        return Ok(());
    }
    let (old, new) = (files(&committed)?, files(&compiled)?);
    let differ = |name: &&String| !old.iter().any(|file| file.0 == **name && new.contains(file));
    let mut names = old.iter().chain(&new).map(|(name, _)| name).filter(differ).collect::<Vec<_>>();
    names.sort();
    names.dedup();
    if !names.is_empty() {
        bail!(
            "{names:?} in {} differ from what the sources compile to: type `cargo xtask kernels` and commit",
            committed.display()
        );
    }
    println!("{} files, as committed", new.len());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

/// Names and contents of the files in a folder.
fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))? {
        let path = entry.context("could not list a file")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        files.push((name, text));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_kernels_are_those_of_the_sources() {
        let committed =
            fs::read_to_string(root().join("host/kernels").join(SOURCES)).expect("it is committed");
        assert_eq!(committed.trim(), sources::digest(root()).expect("the sources are there"));
    }
}
