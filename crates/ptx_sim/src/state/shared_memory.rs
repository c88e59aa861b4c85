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
use crate::limits;

/// First address of a block's variables in its shared window.
pub(crate) const FIRST: u32 = 1024;

/// First address of the reserved memory that kernels may use if they ask for it.
pub(crate) const RESERVED_FOR_KERNELS: u32 = 512;

/// Logarithm of the bytes that are renewed together: a block has fewer than 63 such pieces.
const PIECE: u32 = 12;
const _: () = assert!(limits::SHARED_PER_SM < 63 << PIECE);

/// Shared memory of one block.
pub(crate) struct SharedMemory {
    /// First address.
    first: u32,
    /// First address past the memory.
    end: u32,
    /// At least as much as lies between the two.
    data: Vec<u8>,
    /// One for every four of these bytes.
    cells: Box<[Cell]>,
    /// The pieces that are not as a block finds them, one bit each.
    touched: u64,
    /// Some word has held a copy of unwritten global memory.
    has_hollow: bool,
}

impl SharedMemory {
    /// Room for `bytes` bytes with addresses, filled with `poison`, which nobody may read.
    pub fn new(bytes: usize, poison: u8) -> SharedMemory {
        // As zeros the system finds the cells only when they are touched.
        let cells = Box::new_zeroed_slice(bytes / 4);
        // SAFETY: a cell is numbers, for which zeros are valid; they are those of `Cell::FRESH`.
        let cells = unsafe { cells.assume_init() };
        SharedMemory { first: 0, end: 0, data: vec![poison; bytes], cells, touched: 0, has_hollow: false }
    }

    /// Bytes that it has room for.
    pub fn room(&self) -> usize {
        self.data.len()
    }

    /// Makes it the memory of a block, from `first` up to `end`. Where the last block has left it alone, it
    /// keeps its poison.
    pub fn renew(&mut self, first: u32, end: u32, poison: u8) {
        assert!((end - first) as usize <= self.room());
        (self.first, self.end) = (first, end);
        let bytes = 1 << PIECE;
        for piece in (0..64).filter(|piece| self.touched >> piece & 1 != 0) {
            let (start, end) = (piece * bytes, self.data.len().min((piece + 1) * bytes));
            self.data[start..end].fill(poison);
            self.cells[start / 4..end / 4].fill(Cell::FRESH);
        }
        self.touched = 0;
        self.has_hollow = false;
    }

    /// `bytes` bytes at an offset, or their cells, are about to change.
    #[inline(always)]
    fn touch(&mut self, at: usize, bytes: usize) {
        let (first, last) = (at >> PIECE, (at + bytes).saturating_sub(1) >> PIECE);
        self.touched |= (2 << last) - (1 << first);
    }

    /// First address past the memory.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Whether `bytes` bytes at `address` are inside.
    #[inline(always)]
    pub fn contains(&self, address: u64, bytes: u32) -> bool {
        address >= u64::from(self.first) && address + u64::from(bytes) <= u64::from(self.end)
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
        self.touch(at, bytes.len());
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
        self.touch(at, bytes as usize);
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
