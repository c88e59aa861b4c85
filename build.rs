//! Compiles `kernels-gpu` to PTX for every GPU family, and generates the typed launchers that `host/kernels.rs` includes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use cuda_builder::{Arch, Built, CudaBuilder, Error, launchers, source_paths};

const DEVICE_CRATE: &str = "kernels-gpu";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=build.rs");
    for path in source_paths(Path::new(DEVICE_CRATE))? {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let built = thread::scope(|scope| {
        let builds =
            Arch::ALL.map(|arch| scope.spawn(move || CudaBuilder::new(DEVICE_CRATE).arch(arch).build()));
        builds.map(|build| build.join().expect("the builder does not panic"))
    });
    let built = built.into_iter().collect::<Result<Vec<_>, _>>()?;
    for line in built.iter().flat_map(Built::violations) {
        println!("cargo::warning={line}");
    }

    for (name, source) in
        [("launchers.rs", launchers::generate(&built)?), ("summaries.rs", launchers::table(&built)?)]
    {
        let path = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
        fs::write(&path, source).map_err(|source| Error::Io { what: "write", path, source })?;
    }
    Ok(())
}
