//! The shared memory of one block of the sort, and what fills it: counting, ranking, and turning counts into
//! destinations.
//!
//! In u32 words (`keys = local_experts + 1`, `pairs = ceil(ranking_warps / 2)`):
//!
//! ```text
//!            while counting                              after the scan over keys
//! cursors    rows of each key in each warp               the same in the warps before: first rank of each warp
//!            [pairs][keys], two u16 to a word: warp 2p in the low half, 2p + 1 in the high one
//! bases      [keys]  rows of other blocks before         destination of the block's first row of that key
//! ends       [keys]  all rows that are not before        one past the last row of that key, padding not counted
//! ```
//!
//! A block has at most 2048 rows, so a u16 holds any count of its own. Keys are adjacent: where a thread has
//! a key, the threads of a warp hit 32 banks. With one block, `bases` and `ends` are not used while counting.

use super::Routing;
use crate::scan::THREADS;
use cuda_std::atomic::{self, Order, Scope};
use cuda_std::shared::Shared;
use cuda_std::{host, memory, sync, thread, warp};

/// Most rows that a lane ranks.
pub(super) const MAX_STEPS: usize = 4;
/// Bytes of shared memory for the tables of a sort whose blocks have `ranking_warps` warps with rows.
#[host]
pub(super) const fn permute_table_bytes(ranking_warps: usize, local_experts: usize) -> usize {
    ((ranking_warps.div_ceil(2) + 2) * (local_experts + 1) * 4).next_multiple_of(16)
}

/// The key of a lane without a row.
const NO_ROW: u32 = u32::MAX;

/// How the dynamic shared memory is cut.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub base: Shared<u32>,
    pub keys: u32,
    pub pairs: u32,
}

/// The rows of this thread, 32 apart, and where each stands among the rows of its key in its warp.
#[derive(Clone, Copy)]
pub(super) struct Ranked {
    pub keys: [u32; MAX_STEPS],
    pub ranks: [u32; MAX_STEPS],
}

impl Tables {
    /// The counters of warps `2 * pair` and `2 * pair + 1`.
    #[inline(always)]
    fn cursor_pair(self, pair: u32, key: u32) -> Shared<u32> {
        self.base.add(pair * self.keys + key)
    }

    /// The counter of this thread's warp.
    #[inline(always)]
    pub fn cursor(self, key: u32) -> Shared<u16> {
        let warp_id = thread::warp_id();
        self.cursor_pair(warp_id / 2, key).cast::<u16>().add(warp_id % 2)
    }

    #[inline(always)]
    pub fn base(self, key: u32) -> Shared<u32> {
        self.cursor_pair(self.pairs, key)
    }

    #[inline(always)]
    pub fn end(self, key: u32) -> Shared<u32> {
        self.cursor_pair(self.pairs + 1, key)
    }

    /// Zeroes all counters; a barrier must follow.
    ///
    /// # Safety
    /// All threads of the block execute it; the shared memory is a multiple of 16 bytes.
    #[inline(always)]
    pub unsafe fn zero(self) {
        let vectors = ((self.pairs + 2) * self.keys).div_ceil(4);
        let base = self.base.cast::<[u32; 4]>();
        let mut vector = thread::thread_idx_x();
        while vector < vectors {
            // SAFETY: inside the tables rounded up to 16 bytes, one writer to each vector.
            unsafe { base.add(vector).write([0; 4]) };
            vector += THREADS;
        }
    }

    /// Counts all rows: those before row `first` in `bases`, the others in `ends`.
    ///
    /// The counters are shared by all warps. Lanes that hit the same counter are merged by the hardware
    /// (`ATOMS.POPC.INC`), so that skewed ids cost no more than even ones, and the sums do not depend on the
    /// order.
    ///
    /// # Safety
    /// All threads of the block execute it, behind a barrier after [`zero`](Self::zero); a barrier must
    /// follow.
    #[inline(always)]
    pub unsafe fn count_all(self, routing: Routing, first: u32) {
        // Two loops, so that the common one without a map has no branch for each id.
        // SAFETY: the caller's contract.
        unsafe {
            if routing.expert_map.is_null() {
                self.count_by(routing, first, |id| (id as u32).min(routing.local_experts));
            } else {
                self.count_by(routing, first, |id| routing.key(id));
            }
        }
    }

    /// # Safety
    /// As [`count_all`](Self::count_all); `key` is [`Routing::key`].
    #[inline(always)]
    unsafe fn count_by(self, routing: Routing, first: u32, key: impl Fn(i32) -> u32) {
        let (before, others) = (self.base(0), self.end(0));
        let add = |row: u32, key: u32| {
            let counts = if row < first { before } else { others };
            // SAFETY: the key indexes both tables, which nothing but atomics touches between the barriers.
            unsafe { atomic::add(counts.add(key), 1, Order::Relaxed, Scope::Block) };
        };
        // 16 bytes to a load, after as many single ids as it takes to be aligned: at most 3, as at the end.
        let thread_id = thread::thread_idx_x();
        let head = ((routing.topk_ids.addr() as u32 / 4).wrapping_neg() % 4).min(routing.rows);
        let vectors = (routing.rows - head) / 4;
        let tail = head + vectors * 4;
        let single = |row: u32| {
            // SAFETY: row < rows where it is called.
            unsafe { add(row, key(memory::load(routing.topk_ids.add(row as usize)))) }
        };
        if thread_id < head {
            single(thread_id);
        }
        if thread_id < routing.rows - tail {
            single(tail + thread_id);
        }
        // SAFETY: head <= rows; a vector below `vectors` is aligned to 16 bytes and ends at or before `rows`.
        let load = |vector: u32| unsafe {
            let aligned = routing.topk_ids.add(head as usize).cast::<[i32; 4]>();
            if vector < vectors { memory::load(aligned.add(vector as usize)) } else { [0; 4] }
        };
        let add_vector = |vector: u32, [a, b, c, d]: [i32; 4]| {
            if vector < vectors {
                let row = head + vector * 4;
                let keys = [key(a), key(b), key(c), key(d)];
                add(row, keys[0]);
                add(row + 1, keys[1]);
                add(row + 2, keys[2]);
                add(row + 3, keys[3]);
            }
        };
        let mut vector = thread_id;
        while vector < vectors {
            let at = [vector, vector + THREADS, vector + 2 * THREADS, vector + 3 * THREADS];
            // Four loads in flight together.
            let ids = [load(at[0]), load(at[1]), load(at[2]), load(at[3])];
            add_vector(at[0], ids[0]);
            add_vector(at[1], ids[1]);
            add_vector(at[2], ids[2]);
            add_vector(at[3], ids[3]);
            vector += 4 * THREADS;
        }
    }

    /// Counts the rows of this warp in its cursors, and ranks them. `id(step)` is the id of the lane's row,
    /// if it has one.
    ///
    /// Lanes with equal keys find each other with `match.any`; the lowest of them writes the new count for
    /// all. So there is no atomic, and rows are ranked in ascending order.
    ///
    /// # Safety
    /// All lanes of the warp execute it together, behind a barrier after [`zero`](Self::zero); the warp has
    /// cursors, and `1 <= steps <= MAX_STEPS`.
    #[inline(always)]
    pub unsafe fn rank(self, routing: Routing, steps: u32, ids: [Option<i32>; MAX_STEPS]) -> Ranked {
        // SAFETY: the map is as the routing says.
        let key = |id: Option<i32>| id.map_or(NO_ROW, |id| unsafe { routing.key(id) });
        let keys = [key(ids[0]), key(ids[1]), key(ids[2]), key(ids[3])];
        let mut ranks = [0; MAX_STEPS];
        // SAFETY: the conditions are the same for all lanes; the first step finds the cursors as `zero` left
        // them.
        unsafe {
            ranks[0] = self.rank_step(keys[0], true);
            if steps > 1 {
                ranks[1] = self.rank_step(keys[1], false);
            }
            if steps > 2 {
                ranks[2] = self.rank_step(keys[2], false);
            }
            if steps > 3 {
                ranks[3] = self.rank_step(keys[3], false);
            }
        }
        Ranked { keys, ranks }
    }

    /// # Safety
    /// As [`rank`](Self::rank); `first` if the warp's cursors are all zero.
    #[inline(always)]
    unsafe fn rank_step(self, key: u32, first: bool) -> u32 {
        let inside = key != NO_ROW;
        let equals = warp::match_any(warp::FULL_MASK, key);
        let lower = (equals & ((1u32 << thread::lane_id()) - 1)).count_ones();
        // SAFETY: the key of a lane inside has a cursor, which only this warp touches. The warp barriers keep
        // the write of the step before ahead of the reads, and the reads ahead of the write.
        unsafe {
            let mut count = 0;
            if !first {
                sync::warp(warp::FULL_MASK);
                if inside {
                    count = u32::from(self.cursor(key).read());
                }
                sync::warp(warp::FULL_MASK);
            }
            if inside && lower == 0 {
                self.cursor(key).write((count + equals.count_ones()) as u16);
            }
            count + lower
        }
    }

    /// Turns the counts of `key` in each warp into the counts of the warps before; returns the rows of the
    /// block.
    ///
    /// # Safety
    /// One thread to a key, behind a barrier after [`rank`](Self::rank); a barrier must follow. At most 8
    /// pairs.
    #[inline(always)]
    pub unsafe fn sum_warps(self, key: u32) -> u32 {
        // All reads first: they are in flight together.
        let read = |pair: u32| {
            // SAFETY: the pair exists where it is touched, and no other thread touches the words of this key.
            if pair < self.pairs { unsafe { self.cursor_pair(pair, key).read() } } else { 0 }
        };
        let counts = [read(0), read(1), read(2), read(3), read(4), read(5), read(6), read(7)];
        let mut sum = 0;
        let mut write = |pair: u32, count: u32| {
            if pair < self.pairs {
                let middle = sum + (count & 0xffff);
                // SAFETY: as above.
                unsafe { self.cursor_pair(pair, key).write(sum | middle << 16) };
                sum = middle + (count >> 16);
            }
        };
        write(0, counts[0]);
        write(1, counts[1]);
        write(2, counts[2]);
        write(3, counts[3]);
        write(4, counts[4]);
        write(5, counts[5]);
        write(6, counts[6]);
        write(7, counts[7]);
        sum
    }
}
