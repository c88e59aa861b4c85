//! What can go wrong between Rust and PTX.

use std::io;
use std::path::{Path, PathBuf};

/// Why a device crate did not become PTX.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The toolchain lacks the source of `core`.
    #[error(
        "compiling GPU kernels needs the source of Rust's `core`, and {path} is not there: \
         type `cargo xtask setup` (or `rustup component add rust-src`)"
    )]
    MissingRustSrc {
        /// Where the source was looked for.
        path: PathBuf,
    },
    /// A file could not be read, written, found.
    #[error("could not {what} {path}: {source}")]
    Io {
        /// The attempt, as a verb.
        what: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// rustc refused the device crate; its messages went to standard error.
    #[error("the device crate {path} does not compile for {arch}; the compiler's messages are above")]
    Compile {
        /// The device crate.
        path: PathBuf,
        /// The family's name.
        arch: &'static str,
    },
    /// The manifest or the assembly is not what was expected.
    #[error("{0}")]
    Format(String),
    /// `ptxas` refused the PTX.
    #[error("ptxas does not accept {path} for {arch}:\n{messages}")]
    Ptxas {
        /// The PTX file.
        path: PathBuf,
        /// The family's name.
        arch: &'static str,
        /// What `ptxas` printed.
        messages: String,
    },
    /// Another tool failed.
    #[error("{program} failed:\n{messages}")]
    Tool {
        /// The program.
        program: PathBuf,
        /// What it printed.
        messages: String,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { what, path: path.to_path_buf(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_toolchain_names_the_command_to_type() {
        let message = Error::MissingRustSrc { path: "/sysroot/library".into() }.to_string();
        assert!(message.contains("`cargo xtask setup`") && message.lines().count() == 1, "{message}");
    }
}
