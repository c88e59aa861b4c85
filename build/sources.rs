//! What the kernels are made of: a digest of it says whether the committed PTX is that of the sources.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The crates whose sources the kernels depend on, from the repository's root: those that compile for the
/// GPU, and the one that compiles them.
pub const CRATES: [&str; 4] =
    ["kernels-gpu", "crates/cuda_std", "crates/cuda_std_macros", "crates/cuda_builder"];

/// A digest of all those sources: 16 hexadecimal digits. FNV-1a, which is enough to notice an edit; line ends
/// do not count.
pub fn digest(root: &Path) -> io::Result<String> {
    let mut files = vec![root.join("rust-toolchain.toml")];
    for name in CRATES {
        let folder = root.join(name);
        files.extend(
            ["Cargo.toml", "Cargo.lock"].map(|file| folder.join(file)).into_iter().filter(|f| f.is_file()),
        );
        collect(&folder.join("src"), &mut files)?;
    }
    let mut named = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        named.push((name, fs::read(&file)?));
    }
    named.sort();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (name, text) in &named {
        for byte in
            name.bytes().chain([0]).chain(text.iter().copied().filter(|byte| *byte != b'\r')).chain([0])
        {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
