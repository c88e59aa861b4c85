//! The same share of work for every block, however many items there are, and the sums of items that were cut.
//!
//! All slabs of all items stand in a row, and each of `G` blocks takes as much of it. An item that falls into
//! the shares of several blocks is summed up in parts:
//!
//! ```text
//!   slabs    | item 0       | item 1       | item 2       | item 3       |
//!   blocks   | block 0            | block 1            | block 2         |
//!            | whole        | head | tail  | head | ..
//! ```
//!
//! Cutting has a price: sums go through memory, at the end of the kernel with nothing left to hide it. Where
//! it buys little, shares end with items: see [`Division`].
//!
//! A block writes a part's sums to memory, in a slot of its own: one for the tail of an item that an earlier
//! block began, one for the head of an item that a later block ends. The block that is last to do so, as a
//! counter tells, adds the parts up in the order of the blocks, so that the result is the same whoever is
//! last; nobody waits. The counter is the one of the block with the item's head, of which a block has at most
//! one.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::shared::Shared;
use cuda_std::{memory, sync, thread, warp};

use super::accumulator::Accumulator;
use crate::gemm::hopper::{CONSUMER_BARRIER, CONSUMERS};
use crate::schedule::entry::{self, Entry, Header};

/// Some consecutive slabs of an item.
pub struct Part {
    pub expert: u32,
    pub first_row: u32,
    pub rows: u32,
    /// The item's number among those of its rows: its columns.
    pub column: u32,
    pub first_slab: u32,
    /// How many slabs.
    pub slabs: u32,
    /// The slab that the item begins with, among all slabs of all items.
    item_start: u32,
}

/// Among how many blocks all slabs are divided, and in which units.
///
/// | items | blocks with a share | cut |
/// |---|---|---|
/// | up to `G` | `G / items` for every item, rounded down | every item into as many parts, of one slab more or less; with 1, none |
/// | up to `2 G` | all | no: every block takes one or two whole items |
/// | more | all | wherever a share ends |
///
/// The first two leave blocks without work, all the time or towards the end. The stream of weights does not
/// suffer as long as the others take in what memory delivers; where fewer than two thirds of the blocks would
/// be left, the last applies.
#[derive(Clone, Copy)]
struct Division {
    /// Blocks that have a share.
    blocks: u32,
    /// Whether a unit is an item, else a slab.
    whole: bool,
}

impl Division {
    /// Of `items` items of `slabs` slabs among `grid` blocks.
    #[inline(always)]
    fn new(items: u32, slabs: u32, grid: u32) -> Self {
        let enough = |blocks: u32| 3 * blocks >= 2 * grid;
        if items == 0 {
            return Self { blocks: 0, whole: false };
        }
        if items <= grid {
            let blocks = items * (grid / items).min(slabs);
            if enough(blocks) {
                return Self { blocks, whole: false };
            }
        } else if items <= 2 * grid && enough(items - grid) {
            return Self { blocks: grid, whole: true };
        }
        Self { blocks: grid.min(items * slabs), whole: false }
    }

    /// The unit that the share of `block` starts with, of `units`.
    #[inline(always)]
    fn start(&self, units: u32, block: u32) -> u32 {
        if block >= self.blocks {
            return units;
        }
        // floor(units * block / blocks), without the product that would take 64 bits.
        units / self.blocks * block + units % self.blocks * block / self.blocks
    }
}

/// What is left of a block's share.
#[derive(Clone, Copy)]
pub struct Share {
    schedule: *const [u32; 4],
    columns: u32,
    /// Slabs of an item.
    slabs: u32,
    /// Slabs of all items.
    total: u32,
    /// Blocks that have a share.
    blocks: u32,
    next: u32,
    end: u32,
}

impl Share {
    /// The share of this block. All lanes of the warp call it together.
    ///
    /// # Safety
    /// `schedule` is a schedule, complete and performed, whether or not this kernel has waited for its
    /// predecessor; its tiles times `columns` times `slabs` are below 2^31.
    #[inline(always)]
    pub unsafe fn new(schedule: *const [u32; 4], columns: u32, slabs: u32) -> Self {
        // SAFETY: a schedule begins with its header, whose first element is the number of tiles.
        let Header { tiles, .. } = Header::unpack(unsafe { memory::load_strong(schedule) });
        // The same in all lanes; the shuffle says so to ptxas, which then knows that loops over parts do not
        // diverge.
        let items = warp::shfl_idx(warp::FULL_MASK, tiles * columns, 0);
        let division = Division::new(items, slabs, thread::grid_dim_x());
        let (units, unit) = if division.whole { (items, slabs) } else { (items * slabs, 1) };
        let start = |block: u32| division.start(units, block) * unit;
        let block = thread::block_idx_x();
        let (next, end) = (start(block), start(block + 1));
        Self { schedule, columns, slabs, total: items * slabs, blocks: division.blocks, next, end }
    }

    /// The next part.
    #[inline(always)]
    pub fn next(&mut self) -> Option<Part> {
        if self.next >= self.end {
            return None;
        }
        let (item, first_slab) = (self.next / self.slabs, self.next % self.slabs);
        let slabs = (self.slabs - first_slab).min(self.end - self.next);
        let item_start = self.next - first_slab;
        self.next += slabs;
        let tile = item / self.columns;
        // SAFETY: an item's tile is one of the schedule, whose entries are 16-byte aligned and not written
        // now.
        let entry = unsafe { memory::load_strong(Entry::address(self.schedule, tile)) };
        let Entry { expert, first_row, rows, .. } = Entry::unpack(entry);
        Some(Part { expert, first_row, rows, column: item % self.columns, first_slab, slabs, item_start })
    }

    /// Whether a part is all of its item.
    #[inline(always)]
    pub fn is_whole(&self, part: &Part) -> bool {
        part.slabs == self.slabs
    }

    /// The block whose share holds `slab`, where a unit is a slab.
    #[inline(always)]
    fn block_of(&self, slab: u32) -> u32 {
        // The last block whose share starts at or before the slab: floor(total * b / blocks) <= slab.
        (((slab as u64 + 1) * self.blocks as u64 - 1) / self.total as u64) as u32
    }
}

/// Bytes of shared memory that [`Parts`] take.
pub const SHARED_BYTES: u32 = 16;

/// Where parts are added up.
pub struct Parts {
    counters: *mut u32,
    partials: *mut [f32; 4],
    /// Whether this block is the last with a part of an item: for all its consumers to read.
    is_last: Shared<u32>,
    /// Vectors of four sums in half a slot: as many as tiles of the kernel's most rows take. Lower ones leave
    /// the end of theirs alone.
    vectors: usize,
}

impl Parts {
    /// Of tiles of up to `rows` rows; `shared` is the address of [`SHARED_BYTES`] of shared memory that
    /// nothing else uses.
    ///
    /// # Safety
    /// `schedule` is a schedule; `partials` has two slots for every block of the grid.
    #[inline(always)]
    pub unsafe fn new(schedule: *mut [u32; 4], partials: *mut [f32; 4], shared: u32, rows: u32) -> Self {
        // SAFETY: a schedule, by the caller's contract.
        let counters = unsafe { entry::counters(schedule) };
        let vectors = (rows / 8 * CONSUMERS) as usize;
        Self { counters, partials, is_last: Shared::from_address(shared), vectors }
    }

    /// Address of the shared memory behind what [`new`](Self::new) takes.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.is_last.address() + SHARED_BYTES
    }

    /// Adds a part to those that are there. If it is the last of its item, `sums` become those of the item.
    ///
    /// # Safety
    /// As [`new`](Self::new); all consumer threads call it together.
    #[inline(always)]
    pub unsafe fn complete<A: Accumulator>(&self, share: &Share, part: &Part, sums: &mut [A; 2]) -> bool {
        let (vectors, thread) = (self.vectors, thread::thread_idx_x());
        let head = share.block_of(part.item_start);
        let count = share.block_of(part.item_start + share.slabs - 1) - head + 1;
        let slot = |block: u32, is_head: bool| {
            let number = 2 * block as usize + is_head as usize;
            self.partials.wrapping_add(number * 2 * vectors + thread as usize)
        };
        // SAFETY: each block writes its own slots, once a launch each, and each thread its own vectors of it.
        // Who counts the last part sees all of them: in every block the barrier orders the writes of all
        // threads before thread 0's arrival at the counter, which releases at the scope of the GPU what it
        // has seen; the last arrival acquires, and the next barrier hands that on to the reading threads.
        unsafe {
            let own = slot(thread::block_idx_x(), part.first_slab == 0);
            sums[0].save(own, CONSUMERS as usize);
            sums[1].save(own.add(vectors), CONSUMERS as usize);
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            if thread == 0 {
                let counter = self.counters.add(head as usize);
                let is_last = atomic::add(counter, 1, Order::AcqRel, Scope::Gpu) + 1 == count;
                if is_last {
                    atomic::store(counter, 0, Order::Relaxed, Scope::Gpu);
                }
                self.is_last.write(is_last as u32);
            }
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            if warp::shfl_idx(warp::FULL_MASK, self.is_last.read(), 0) == 0 {
                return false;
            }
            *sums = [A::ZERO; 2];
            let mut index = 0;
            while index < count {
                let from = slot(head + index, index == 0);
                sums[0].add_saved(from, CONSUMERS as usize);
                sums[1].add_saved(from.add(vectors), CONSUMERS as usize);
                index += 1;
            }
        }
        true
    }
}
