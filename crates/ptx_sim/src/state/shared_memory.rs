//! Shared memory of a block: bytes, and a cell of bookkeeping for every four (see [`super::race`]).
//!
//! ```text
//!   0          FIRST = 1024                static variables        dynamic
//!   │ reserved │ ........................ │ .................... │ end
//! ```
//!
//! As on the real thing, the first kilobyte is the system's: address zero is not a variable's. Its second
//! half is lent to kernels that ask where it is (`%reserved_smem_offset_1`, cooperative groups), and to no
//! others.

use super::race::{Access, Cell, Clock, Hazard};

/// First address of a block's variables in its shared window.
pub(crate) const FIRST: u32 = 1024;

/// First address of the reserved memory that kernels may use if they ask for it.
pub(crate) const RESERVED_FOR_KERNELS: u32 = 512;

/// Shared memory of one block.
pub(crate) struct SharedMemory {
    /// First address.
    first: u32,
    data: Vec<u8>,
    cells: Vec<Cell>,
    /// Some word has held a copy of unwritten global memory.
    has_hollow: bool,
}

impl SharedMemory {
    /// Memory of `bytes` bytes after [`FIRST`], with `reserved` also of what is lent before it, filled with
    /// `poison`, which nobody may read.
    pub fn new(bytes: u32, reserved: bool, poison: u8) -> SharedMemory {
        let first = if reserved { RESERVED_FOR_KERNELS } else { FIRST };
        let bytes = (bytes.next_multiple_of(16) + FIRST - first) as usize;
        SharedMemory {
            first,
            data: vec![poison; bytes],
            cells: vec![Cell::FRESH; bytes / 4],
            has_hollow: false,
        }
    }

    /// First address past the memory.
    pub fn end(&self) -> u32 {
        self.first + self.data.len() as u32
    }

    /// Whether `bytes` bytes at `address` are inside.
    #[inline(always)]
    pub fn contains(&self, address: u64, bytes: u32) -> bool {
        address >= u64::from(self.first) && address + u64::from(bytes) <= u64::from(self.end())
    }

    /// `len` bytes at `address`, which the memory [`SharedMemory::contains`].
    #[inline(always)]
    pub fn slice(&self, address: u64, len: u32) -> &[u8] {
        let at = (address - u64::from(self.first)) as usize;
        &self.data[at..at + len as usize]
    }

    /// Replaces the bytes at `address`.
    #[inline(always)]
    pub fn set(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - u64::from(self.first)) as usize;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Applies `f` to every cell of `bytes` bytes at `address`, with the bytes of the cell that are meant.
    #[inline(always)]
    pub fn for_cells(
        &mut self,
        address: u64,
        bytes: u32,
        mut f: impl FnMut(&mut Cell, u8) -> Result<(), Hazard>,
    ) -> Result<(), Hazard> {
        let at = (address - u64::from(self.first)) as usize;
        if bytes < 4 {
            let mask = ((1u8 << bytes) - 1) << (at & 3);
            return f(&mut self.cells[at / 4], mask);
        }
        for cell in &mut self.cells[at / 4..(at + bytes as usize) / 4] {
            f(cell, 15)?;
        }
        Ok(())
    }

    /// Notes a read of naturally aligned bytes.
    #[inline(always)]
    pub fn note_read(&mut self, address: u64, bytes: u32, now: Access, clock: &Clock) -> Result<(), Hazard> {
        self.for_cells(address, bytes, |cell, mask| cell.read(now, mask, clock))
    }

    /// Notes a write of naturally aligned bytes.
    #[inline(always)]
    pub fn note_write(&mut self, address: u64, bytes: u32, now: Access, clock: &Clock) -> Result<(), Hazard> {
        self.for_cells(address, bytes, |cell, mask| cell.write(now, mask, clock))
    }
    /// The words at these places hold copies of bytes that nobody had written.
    pub fn empty(&mut self, words: &[(u64, u8)]) {
        self.has_hollow |= !words.is_empty();
        for &(address, bytes) in words {
            self.cells[(address - u64::from(self.first)) as usize / 4].empty(bytes);
        }
    }

    /// The bytes at a 16-byte aligned address that hold such copies, one bit each.
    #[inline(always)]
    pub fn hollow(&self, address: u64) -> u16 {
        if !self.has_hollow {
            return 0;
        }
        let at = (address - u64::from(self.first)) as usize / 4;
        (0..4).fold(0, |bits, i| bits | u16::from(self.cells[at + i].hollow) << (4 * i))
    }
}
