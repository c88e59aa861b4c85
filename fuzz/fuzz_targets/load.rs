//! What every target does with a checkpoint: writes it, opens it, describes it, loads its layers on the host.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::OnceLock;

use fp8_moe::Checkpoint;
use tempfile::TempDir;

/// The system's allocator, which notes the largest request of each thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// What a regular expression, a hash table or an error may take whatever the size of the file.
const SMALL: usize = 1 << 20;

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
    LARGEST.set(0);
    if let Ok(checkpoint) = Checkpoint::open(path, None) {
        checkpoint.inspect();
        for prefix in checkpoint.layers() {
            if let Ok(config) = checkpoint.layer_config(&prefix) {
                let _ = checkpoint.weights(&prefix, &config);
            }
        }
    }
    let largest = LARGEST.get();
    assert!(largest <= 2 * bytes + SMALL, "{largest} bytes at once for files of {bytes}");
}
