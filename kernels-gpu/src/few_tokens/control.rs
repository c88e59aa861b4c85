//! How blocks wait for each other, and how a launch finds counters at zero.
//!
//! ```text
//!   word 0      parity p
//!   word 1      stripes summed up
//!   32 ..       [256]       units of every stripe that are done      back at 0 by whoever finds all done
//!   288 ..      [2, 128]    units of every tile that are done        set p counts, set 1 - p is cleared meanwhile
//! ```
//!
//! The last block, which has the last unit, clears the other set, and the one that sums up the last stripe
//! changes p: by then every block that has units has read p and waited for its tiles. A launch without tiles
//! changes nothing. So each launch finds zeros where it counts, and nothing is cleared on the way to a
//! result.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::{host, memory, sync, thread};

use super::tiles::NO_TILE;
use super::{CONSUMER_BARRIER, CONSUMERS, FEW_MOST_PAIRS, FEW_MOST_STRIPES};

const STRIPES: u32 = 32;
const TILES: u32 = STRIPES + FEW_MOST_STRIPES;

/// Words of the control memory.
#[host]
pub const FEW_CONTROL_WORDS: u32 = TILES + 2 * FEW_MOST_PAIRS;

/// The control words as this launch uses them.
#[derive(Clone, Copy)]
pub struct Control {
    words: *mut u32,
    /// Which set of the tiles' counters counts.
    parity: u32,
}

/// Set `parity` of the tiles' counters.
#[inline(always)]
fn tiles(words: *mut u32, parity: u32) -> *mut u32 {
    words.wrapping_add((TILES + parity * FEW_MOST_PAIRS) as usize)
}

impl Control {
    /// Finds out which set counts; clears the other. All consumers call it together.
    ///
    /// # Safety
    /// The contract of the kernel, which has `of_launch` tiles in this launch.
    #[inline(always)]
    pub unsafe fn begin(words: *mut u32, of_launch: u32) -> Self {
        // SAFETY: the words exist. Nobody but the last block, which has units if any has, touches the other
        // set, and nobody changes the parity before all blocks with units have counted.
        unsafe {
            let is_last = thread::block_idx_x() + 1 == thread::grid_dim_x();
            let parity = memory::load_strong(words) & 1;
            if of_launch > 0 && is_last && thread::thread_idx_x() < FEW_MOST_PAIRS {
                tiles(words, parity ^ 1).add(thread::thread_idx_x() as usize).write(0);
            }
            Self { words, parity }
        }
    }

    /// Says that `units` units of a tile are done, with everything that the consumers have stored; nothing
    /// where there is no tile. All consumers call it together.
    ///
    /// # Safety
    /// The contract of the kernel, for a tile that exists.
    #[inline(always)]
    pub unsafe fn publish(&self, tile: u32, units: u32) {
        if tile == NO_TILE {
            return;
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
        if thread::thread_idx_x() == 0 {
            // SAFETY: the tile's counter, which is touched by atomics alone. The barrier has brought the
            // other threads' stores before it.
            unsafe {
                atomic::add(
                    tiles(self.words, self.parity).add(tile as usize),
                    units,
                    Order::Release,
                    Scope::Gpu,
                )
            };
        }
    }

    /// Waits until all `units` units of a tile are done. All consumers call it together, and see then what
    /// was stored for them.
    ///
    /// # Safety
    /// As [`publish`](Self::publish).
    #[inline(always)]
    pub unsafe fn wait(&self, tile: u32, units: u32) {
        if thread::thread_idx_x() == 0 {
            // SAFETY: as above.
            while unsafe {
                atomic::load(tiles(self.words, self.parity).add(tile as usize), Order::Acquire, Scope::Gpu)
            } != units
            {}
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
    }

    /// Says that `units` units of a stripe are done; whether that makes `all`. Then everything that was
    /// stored for the stripe is visible to this thread. `stripes` is how many there are.
    ///
    /// # Safety
    /// The contract of the kernel, for a stripe that exists; a barrier has brought the other threads' stores
    /// before it.
    #[inline(always)]
    pub unsafe fn count_stripe(&self, stripe: u32, units: u32, all: u32, stripes: u32) -> bool {
        // SAFETY: the counters are touched by atomics alone, until the last of the launch has counted, which
        // sets them back.
        unsafe {
            let counter = self.words.add((STRIPES + stripe) as usize);
            if atomic::add(counter, units, Order::AcqRel, Scope::Gpu) + units != all {
                return false;
            }
            counter.write(0);
            let ended = self.words.add(1);
            if atomic::add(ended, 1, Order::AcqRel, Scope::Gpu) + 1 == stripes {
                ended.write(0);
                // Blocks without units may only begin now, and read it in vain.
                let parity = atomic::load(self.words, Order::Relaxed, Scope::Gpu);
                atomic::store(self.words, parity ^ 1, Order::Relaxed, Scope::Gpu);
            }
            true
        }
    }
}
