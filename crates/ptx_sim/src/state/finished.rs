//! Memory of finished blocks, to be used again by blocks of this launch or another.
//!
//! The cells of shared memory have eight times its size, and blocks that wait for each other are all there at
//! once: to find and clear memory for each launch would take the system more time than many launches take.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::registers::RegisterFile;
use super::shared_memory::{FIRST, RESERVED_FOR_KERNELS, SharedMemory};

/// Memories of one size that are kept: as many as two launches have resident of blocks with much of it.
const BLOCKS: usize = 264;
/// Register files of one size that are kept: those of 16 warps of each.
const WARPS: usize = 16 * BLOCKS;

/// By size.
type Kept<T> = Mutex<BTreeMap<usize, Vec<T>>>;

/// Memory of finished blocks.
#[derive(Default)]
pub(crate) struct Finished {
    shared: Kept<SharedMemory>,
    registers: Kept<RegisterFile>,
}

fn lock<T>(kept: &Kept<T>) -> MutexGuard<'_, BTreeMap<usize, Vec<T>>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take<T>(kept: &Kept<T>, size: usize) -> Option<T> {
    lock(kept).get_mut(&size)?.pop()
}

fn keep<T>(kept: &Kept<T>, size: usize, most: usize, memory: T) {
    let mut kept = lock(kept);
    let kept = kept.entry(size).or_default();
    if kept.len() < most {
        kept.push(memory);
    }
}

impl Finished {
    /// Shared memory of `bytes` bytes after [`FIRST`], with `reserved` also of what is lent before it, filled
    /// with poison, which nobody may read.
    pub fn shared_memory(&self, bytes: u32, reserved: bool, poison: u8) -> SharedMemory {
        let first = if reserved { RESERVED_FOR_KERNELS } else { FIRST };
        let end = bytes.next_multiple_of(16) + FIRST;
        // Few sizes, so that there is one that fits.
        let room = (end as usize).next_power_of_two();
        let mut memory = take(&self.shared, room).unwrap_or_else(|| SharedMemory::new(room, poison));
        memory.renew(first, end, poison);
        memory
    }

    /// A register file with the constants of an entry.
    pub fn register_file(&self, template: &[u8]) -> RegisterFile {
        let room = RegisterFile::room_for(template);
        let mut registers = take(&self.registers, room).unwrap_or_else(|| RegisterFile::new(room));
        registers.fill(template);
        registers
    }

    /// A block has no more use for it.
    pub fn keep_shared_memory(&self, memory: SharedMemory) {
        keep(&self.shared, memory.room(), BLOCKS, memory);
    }

    /// A warp has no more use for it.
    pub fn keep_register_file(&self, registers: RegisterFile) {
        keep(&self.registers, registers.room(), WARPS, registers);
    }
}
