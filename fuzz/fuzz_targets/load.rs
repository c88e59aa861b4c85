//! What every target does with a checkpoint: writes it, opens it, describes it, loads its layers on the host.

#[path = "../../tests/common/largest_request.rs"]
mod largest_request;

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

/// The files of a checkpoint, by name, in a folder that all executions of this process share.
pub fn write(files: &[(&str, &[u8])]) -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder")).path();
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("a file");
    }
    folder
}

/// Whatever the bytes, this must return: without a panic, and without asking for more memory at once than
/// twice the size of the files, `bytes`.
pub fn load(path: &Path, bytes: usize) {
    let largest = largest_request::load(path);
    assert!(largest <= 2 * bytes + largest_request::SMALL, "{largest} bytes at once for files of {bytes}");
}
