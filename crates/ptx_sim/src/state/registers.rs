//! Memory for a warp's registers.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// A register file: bytes aligned to 64, as large as the entry's layout asks.
pub(crate) struct RegisterFile {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are owned, nothing else points to them.
unsafe impl Send for RegisterFile {}

impl RegisterFile {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(64), 64).expect("a register file is small")
    }

    /// A copy of `template`, which holds the constants of an entry.
    pub fn from_template(template: &[u8]) -> RegisterFile {
        let layout = RegisterFile::layout(template.len());
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: the new bytes are as many as the template's, and nobody else knows them.
        unsafe { std::ptr::copy_nonoverlapping(template.as_ptr(), start.as_ptr(), template.len()) };
        RegisterFile { start, len: template.len() }
    }

    /// First byte. Handlers access slots through it.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Sets a slot of 32-bit lanes.
    pub fn set(&mut self, slot: u32, lanes: &[u32; 32]) {
        assert!(slot as usize + 128 <= self.len);
        // SAFETY: in bounds and aligned, as slots are.
        unsafe { *self.start.as_ptr().add(slot as usize).cast::<[u32; 32]>() = *lanes };
    }

    /// Sets a slot of 64-bit lanes.
    pub fn set_wide(&mut self, slot: u32, lanes: &[u64; 32]) {
        assert!(slot as usize + 256 <= self.len);
        // SAFETY: in bounds and aligned, as slots are.
        unsafe { *self.start.as_ptr().add(slot as usize).cast::<[u64; 32]>() = *lanes };
    }
}

impl Drop for RegisterFile {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.start.as_ptr(), RegisterFile::layout(self.len)) }
    }
}
