//! What the blocks of a launch take in turn: units of one item each, most of them all of its slabs, the last
//! ones a few.
//!
//! Blocks that have as many bytes to stream do not end together: SMs are not served equally, and tiles with
//! more rows take longer. So a block takes the next unit that nobody has, as soon as it has asked for all of
//! the one before; and so that nobody is left alone with a long one, the last items are cut:
//!
//! ```text
//!   items     | 0       | 1       | 2       | ..      | w       | w + 1   | ..      |
//!   units     | 0       | 1       | 2       | ..      | w  |    |    |    |    |    |
//!             | whole, all slabs                      | parts, as many of each item |
//! ```
//!
//! The first units are those of the block's number, so that it may ask for their weights before it waits for
//! its predecessor. The others are drawn from a counter in the schedule, in order: whoever draws last of all
//! leaves it at 0. Blocks that run at the same time have neighbouring items, so that the tiles of an expert
//! ask for the same weights at about the same time, and get them from L2.
//!
//! Sums of items that are cut go through memory ([`parts`](super::parts)), which costs more the more parts
//! there are: see [`Division`].

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::{memory, thread, warp};

use super::STAGES;
use crate::gemm::hopper::notes::{Note, same};
use crate::schedule::entry::{self, Entry, Header};

/// Parts that are added up through memory, for every block of the grid: so many slots for sums there are.
pub const SLOTS: u32 = 2;

/// A unit: some consecutive slabs of an item.
#[derive(Clone, Copy)]
pub struct Part {
    pub expert: u32,
    pub first_row: u32,
    pub rows: u32,
    /// The item's number among those of its rows: its columns.
    pub column: u32,
    pub first_slab: u32,
    /// How many slabs.
    pub slabs: u32,
    /// The item's number among those that are cut.
    pub cut: u32,
    /// The part's number in its item, and of how many; below 2^16.
    pub number: u32,
    pub parts: u32,
}

impl Note for Part {
    const VECTORS: u32 = 2;

    #[inline(always)]
    fn words(&self) -> [[u32; 4]; 2] {
        [
            [self.expert, self.first_row, self.rows, self.column],
            [self.first_slab, self.slabs, self.cut, self.number << 16 | self.parts],
        ]
    }

    #[inline(always)]
    fn of([tile, slabs]: [[u32; 4]; 2]) -> Self {
        let [expert, first_row, rows, column] = tile;
        let [first_slab, slabs, cut, number_and_parts] = slabs;
        let (rows, slabs) = (same(rows), same(slabs));
        let (number, parts) = (number_and_parts >> 16, same(number_and_parts & 0xffff));
        Part { expert, first_row, rows, column, first_slab, slabs, cut, number, parts }
    }

    #[inline(always)]
    fn is_work(&self) -> bool {
        self.slabs > 0
    }
}

impl Part {
    /// Whether it is all of its item.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.parts == 1
    }
}

/// Which items are cut, the last `items`, and into how many parts each.
///
/// | items of a launch of `G` blocks, and their slabs | are cut |
/// |---|---|
/// | up to `G` | all, into `G / items` parts, or `2 G / items` where a third of the blocks had none |
/// | up to `4 G`, over [`LONG`](Self::LONG) | as many of the last as have [`SLOTS`], into parts of so many |
/// | any other number, `LONG / 2` to `LONG` | the last `items % G`, if less than two thirds of `G`, into two |
/// | others | none |
///
/// Blocks without work, all the time or towards the end, do little harm as long as the others take in what
/// memory delivers. Short parts do more: each takes its trips to memory, and its sums', as long as a whole
/// item.
struct Division {
    items: u32,
    parts: u32,
}

impl Division {
    /// 1 MiB of weights. When nothing more is to be drawn a block has half of its unit before it, on average.
    const LONG: u32 = 32;

    /// Of `items` items of `slabs` slabs, among `grid` blocks.
    #[inline(always)]
    fn new(items: u32, slabs: u32, grid: u32) -> Self {
        let rest = items % grid;
        if items <= grid {
            let parts = (grid / items.max(1)).min(slabs);
            let enough = 3 * items * parts >= 2 * grid;
            return Self { items, parts: if enough { parts } else { (2 * grid / items.max(1)).min(slabs) } };
        }
        if slabs > Self::LONG && items <= 4 * grid {
            let parts = slabs.div_ceil(Self::LONG);
            return Self { items: (SLOTS * grid / parts).min(items), parts };
        }
        if (Self::LONG / 2..=Self::LONG).contains(&slabs) && 3 * rest < 2 * grid {
            return Self { items: rest, parts: 2 };
        }
        Self { items: 0, parts: 1 }
    }
}

/// The units of a launch that a block has not yet taken.
#[derive(Clone, Copy)]
pub struct Units {
    schedule: *mut [u32; 4],
    columns: u32,
    /// Slabs of an item.
    slabs: u32,
    /// Items that are not cut.
    whole: u32,
    /// Parts of the others.
    parts: u32,
    /// Units in all.
    units: u32,
    /// How many units a block takes by its number.
    fixed: u32,
    /// How many of them it has taken.
    taken: u32,
}

/// A unit's number, on its way: the first lane's.
pub struct Drawn(u32);

/// A unit's number, and the entry of its tile, on its way; none past the last unit.
pub struct LookedUp(u32, Option<[u32; 4]>);

impl Units {
    /// The units of a launch. All lanes of the warp call it together.
    ///
    /// # Safety
    /// `schedule` is a schedule, complete and performed, whether or not this kernel has waited for its
    /// predecessor; its tiles times `columns` times `slabs` are below 2^31.
    #[inline(always)]
    pub unsafe fn new(schedule: *mut [u32; 4], columns: u32, slabs: u32) -> Self {
        // SAFETY: a schedule begins with its header, whose first element is the number of tiles.
        let Header { tiles, .. } = Header::unpack(unsafe { memory::load_strong(schedule) });
        // The same in all lanes; the shuffle says so to ptxas, which then knows that loops over units do not
        // diverge.
        let items = warp::shfl_idx(warp::FULL_MASK, tiles * columns, 0);
        let Division { items: cut, parts } = Division::new(items, slabs, thread::grid_dim_x());
        let whole = if parts == 1 { items } else { items - cut };
        let units = whole + (items - whole) * parts;
        let least_slabs = if whole > 0 { slabs } else { slabs / parts };
        Self { schedule, columns, slabs, whole, parts, units, fixed: STAGES.div_ceil(least_slabs), taken: 0 }
    }

    /// The next of the units that the block takes by its number, if it is one of them.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub unsafe fn next_fixed(&mut self) -> Option<Part> {
        if self.taken == self.fixed {
            return None;
        }
        let number = self.taken * thread::grid_dim_x() + thread::block_idx_x();
        self.taken += 1;
        // SAFETY: the caller's contract.
        unsafe { self.part(self.entry(number)) }
    }

    /// Draws the next unit. All lanes of the warp call it together; after a unit past the last never again.
    ///
    /// # Safety
    /// As [`new`](Self::new); the kernel has waited for its predecessor, and nobody else counts in the
    /// schedule now. One warp of every block calls it, until there are no more.
    #[inline(always)]
    pub unsafe fn draw(&mut self) -> Drawn {
        let grid = thread::grid_dim_x();
        if self.taken < self.fixed {
            self.taken += 1;
            return Drawn((self.taken - 1) * grid + thread::block_idx_x());
        }
        let fixed = self.fixed * grid;
        let mut number = self.units.max(fixed);
        if self.units > fixed && thread::lane_id() == 0 {
            // SAFETY: the caller's contract. Every unit behind the fixed ones is drawn once, and every block
            // draws once past the last, so that the number of draws is known.
            unsafe {
                let counter = entry::counters(self.schedule);
                let drawn = atomic::add(counter, 1, Order::Relaxed, Scope::Gpu);
                if drawn + 1 == self.units - fixed + grid {
                    atomic::store(counter, 0, Order::Relaxed, Scope::Gpu);
                }
                number = fixed + drawn;
            }
        }
        Drawn(number)
    }

    /// Looks up the tile of a unit that was drawn. All lanes of the warp call it together.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub unsafe fn look_up(&self, drawn: Drawn) -> LookedUp {
        // SAFETY: the caller's contract.
        unsafe { self.entry(warp::shfl_idx(warp::FULL_MASK, drawn.0, 0)) }
    }

    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    unsafe fn entry(&self, unit: u32) -> LookedUp {
        if unit >= self.units {
            return LookedUp(unit, None);
        }
        let tile = self.item(unit) / self.columns;
        // SAFETY: an item's tile is one of the schedule, whose entries are 16-byte aligned and not written
        // now.
        LookedUp(unit, Some(unsafe { memory::load_strong(Entry::address(self.schedule, tile)) }))
    }

    /// The item of a unit.
    #[inline(always)]
    fn item(&self, unit: u32) -> u32 {
        if unit < self.whole { unit } else { self.whole + (unit - self.whole) / self.parts }
    }

    /// The unit that was looked up.
    #[inline(always)]
    pub fn part(&self, LookedUp(unit, entry): LookedUp) -> Option<Part> {
        let Entry { expert, first_row, rows, .. } = Entry::unpack(entry?);
        let (item, slabs) = (self.item(unit), self.slabs);
        let column = item % self.columns;
        let (mut cut, mut number, mut parts, mut first_slab, mut end) = (0, 0, 1, 0, slabs);
        if unit >= self.whole {
            (cut, parts) = (item - self.whole, self.parts);
            number = unit - self.whole - cut * parts;
            (first_slab, end) = (slabs * number / parts, slabs * (number + 1) / parts);
        }
        let slabs = end - first_slab;
        Some(Part { expert, first_row, rows, column, first_slab, slabs, cut, number, parts })
    }
}
