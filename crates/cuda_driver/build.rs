//! Puts an empty `libcuda.a` where the linker looks.
//!
//! `cust_raw` asks the linker for `-lcuda`. This crate defines the functions that `cust` wants from that
//! library, so an archive with nothing in it satisfies the request on a machine without CUDA. Where there
//! is a CUDA installation the linker may find its stub library first; nothing changes then but that the
//! stub is dropped as not needed, because the definitions in this crate come first.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let archive = out.join("libcuda.a");
    if let Err(error) = fs::write(&archive, b"!<arch>\n") {
        println!("cargo::error=cannot write {}: {error}", archive.display());
    }
    println!("cargo::rustc-link-search=native={}", out.display());
}
