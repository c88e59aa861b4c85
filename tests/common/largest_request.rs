//! Everything that can be done with a checkpoint on the host, and the largest single request of memory in it:
//! for tests with random damage, here and in `fuzz/`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use fp8_moe::Checkpoint;

/// The system's allocator, which notes the largest request: of any thread, since experts are read by several.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
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
pub const SMALL: usize = 1 << 20;

/// Opens, describes and loads on the host; returns the largest single request of memory meanwhile, by this or
/// another test.
pub fn load(path: &Path) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    if let Ok(checkpoint) = Checkpoint::open(path, None) {
        let inspection = checkpoint.inspect();
        assert_eq!(inspection.layers.len(), checkpoint.layers().len());
        for prefix in checkpoint.layers() {
            if let Ok(config) = checkpoint.layer_config(&prefix) {
                let _ = checkpoint.weights(&prefix, &config);
            }
        }
    }
    LARGEST.load(Ordering::Relaxed)
}
