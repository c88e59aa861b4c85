//! Where the Rust toolchain keeps what a device build needs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The cargo that runs us, else the one in `PATH`.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The sysroot of the rustc that a cargo in `dir` would use, with the source of `core` in it.
pub fn sysroot_with_source(dir: &Path) -> Result<PathBuf, Error> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .current_dir(dir)
        .output()
        .map_err(|source| Error::io("run", Path::new(&rustc), source))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").is_file() {
        Ok(sysroot)
    } else {
        Err(Error::MissingRustSrc { path: library })
    }
}
