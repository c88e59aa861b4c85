//! Memory for a warp's registers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Register files have room in steps of so many bytes: few sizes, of which finished ones are kept.
const STEP: usize = 8 << 10;

/// A register file: bytes aligned to 64, at least as many as the entry's layout asks.
pub(crate) struct RegisterFile {
    start: NonNull<u8>,
    /// Bytes of the entry's layout.
    len: usize,
    room: usize,
}

// SAFETY: the bytes are owned, nothing else points to them.
unsafe impl Send for RegisterFile {}

impl RegisterFile {
    fn layout(room: usize) -> Layout {
        Layout::from_size_align(room, 64).expect("a register file is small")
    }

    /// The room that a copy of `template` takes.
    pub fn room_for(template: &[u8]) -> usize {
        template.len().max(1).next_multiple_of(STEP)
    }

    /// Room for an entry's registers.
    pub fn new(room: usize) -> RegisterFile {
        assert_ne!(room, 0);
        let layout = RegisterFile::layout(room);
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        RegisterFile { start, len: 0, room }
    }

    /// Makes it a copy of `template`, which holds the constants of an entry.
    pub fn fill(&mut self, template: &[u8]) {
        assert!(template.len() <= self.room);
        // SAFETY: there is room for the template's bytes, and they are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(template.as_ptr(), self.start.as_ptr(), template.len()) };
        self.len = template.len();
    }

    /// Bytes that it has room for.
    pub fn room(&self) -> usize {
        self.room
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
        unsafe { dealloc(self.start.as_ptr(), RegisterFile::layout(self.room)) }
    }
}
