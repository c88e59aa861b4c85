//! Stores and sums from shared memory: lines and boxes.

use cuda_std::bf16::{Bf16, F16};
use cuda_std::shared::Shared;
use cuda_std::{bulk, kernel, shared_array, sync, thread, tma};

use crate::ways::*;

/// Threads of a block.
const THREADS: u32 = 64;
/// Words of a box.
const WORDS: u32 = 512;
/// Bytes of a line.
const LINE: u32 = 256;

/// Fills `words` words of shared memory from `values`, and shows them to the copy engine and to the block.
///
/// # Safety
/// There is room for the words, and `values` has as many; all threads of the block call this with the same
/// `way`.
#[inline(always)]
unsafe fn fill(tile: Shared<u32>, values: *const u32, words: u32, way: u32) {
    if way == FENCE_TOO_EARLY {
        bulk::fence_shared();
    }
    let mut at = thread::thread_idx_x();
    while at < words {
        // SAFETY: the caller's contract.
        unsafe { tile.add(at).write(*values.add(at as usize)) };
        at += THREADS;
    }
    if way != NO_FENCE && way != FENCE_TOO_EARLY && way != FENCE_BY_ASKER {
        bulk::fence_shared();
    }
    sync::block();
    if way == FENCE_BY_ASKER {
        bulk::fence_shared();
    }
}

/// Ends the group of what this thread has asked for, and waits until its source has been read.
#[inline(always)]
fn close(way: u32) {
    if way != NO_COMMIT {
        bulk::commit();
    }
    if way == WAIT_LEAVES_ONE {
        bulk::wait_read::<1>();
    } else if way != NO_WAIT {
        bulk::wait_read::<0>();
    }
}

/// Writes shared memory again.
///
/// # Safety
/// There is room for `words` words.
#[inline(always)]
unsafe fn reuse(tile: Shared<u32>, words: u32) {
    sync::block();
    let mut at = thread::thread_idx_x();
    while at < words {
        // SAFETY: the caller's contract.
        unsafe { tile.add(at).write(0xdead_beef) };
        at += THREADS;
    }
}

/// Stores a box of 512 words at `(c0, c1)`.
///
/// # Safety
/// `map` has rank 2 and boxes of 2048 bytes; `values` has 512 words.
#[kernel(threads = THREADS)]
pub unsafe fn store_2d(map: TensorMap, values: *const u32, c0: i32, c1: i32, way: u32) {
    let tile = shared_array!(store_2d.tile: [u32; WORDS as usize], align = 1024);
    // SAFETY: the kernel's contract; the ways that are wrong end with a fault of the emulated device.
    unsafe {
        fill(tile, values, WORDS, way);
        if thread::thread_idx_x() == 0 {
            tma::store_2d(map, [c0, c1], tile.address());
            close(way);
        }
        reuse(tile, WORDS);
    }
}

/// Stores a box of 512 words at `(c0, c1, c2)`.
///
/// # Safety
/// `map` has rank 3 and boxes of 2048 bytes; `values` has 512 words.
#[kernel(threads = THREADS)]
pub unsafe fn store_3d(map: TensorMap, values: *const u32, c0: i32, c1: i32, c2: i32, way: u32) {
    let tile = shared_array!(store_3d.tile: [u32; WORDS as usize], align = 1024);
    // SAFETY: as in `store_2d`.
    unsafe {
        fill(tile, values, WORDS, way);
        if thread::thread_idx_x() == 0 {
            tma::store_3d(map, [c0, c1, c2], tile.address());
            close(way);
        }
        reuse(tile, WORDS);
    }
}

/// Every block adds the same box of 512 numbers at `(c0, c1)`.
///
/// # Safety
/// `map` has rank 2 and boxes of 2048 bytes; `values` has 512 words.
#[kernel(threads = THREADS)]
pub unsafe fn reduce_add_2d(map: TensorMap, values: *const u32, c0: i32, c1: i32, way: u32) {
    let tile = shared_array!(reduce_add_2d.tile: [u32; WORDS as usize], align = 1024);
    // SAFETY: as in `store_2d`.
    unsafe {
        fill(tile, values, WORDS, way);
        if thread::thread_idx_x() == 0 {
            tma::reduce_add_2d(map, [c0, c1], tile.address());
            close(way);
        }
        reuse(tile, WORDS);
    }
}

/// Stores a line of 256 bytes.
///
/// # Safety
/// `values` has 64 words, `to` room for as many.
#[kernel(threads = THREADS)]
pub unsafe fn store_line(values: *const u32, to: *mut u8, way: u32) {
    let tile = shared_array!(store_line.tile: [u32; (LINE / 4) as usize], align = 128);
    // SAFETY: as in `store_2d`.
    unsafe {
        fill(tile, values, LINE / 4, way);
        if thread::thread_idx_x() == 0 {
            bulk::store(to, tile.address(), LINE);
            close(way);
        }
        reuse(tile, LINE / 4);
    }
}

/// Stores a line and, in a group of its own, another; reads a word of the first back when at most one group
/// is left, a word of the second when none is.
///
/// # Safety
/// `values` has 128 words, `to` room for as many and holds something, `seen` has room for two.
#[kernel(threads = THREADS)]
pub unsafe fn store_and_read_back(values: *const u32, to: *mut u32, seen: *mut u32, way: u32) {
    let tile = shared_array!(store_and_read_back.tile: [u32; (2 * LINE / 4) as usize], align = 128);
    // SAFETY: as in `store_2d`. Volatile: what the engine writes is unknown to the compiler.
    unsafe {
        fill(tile, values, 2 * LINE / 4, RIGHT);
        if thread::thread_idx_x() != 0 {
            return;
        }
        let second = to.add(LINE as usize / 4);
        bulk::store(to.cast(), tile.address(), LINE);
        bulk::commit();
        bulk::store(second.cast(), tile.address() + LINE, LINE);
        bulk::commit();
        if way == WAIT_FOR_READS {
            bulk::wait_read::<0>();
        } else {
            bulk::wait::<1>();
        }
        *seen = to.read_volatile();
        if way != WAIT_FOR_READS {
            bulk::wait::<0>();
        }
        *seen.add(1) = second.read_volatile();
    }
}

/// A kernel `$name` in which every block adds its own line of 256 bytes to the same place.
macro_rules! reduce_add {
    ($($name:ident, $ty:ty;)+) => {$(
        /// Block `b` adds the numbers of line `b` of `values`.
        ///
        /// # Safety
        /// `values` has a line of 256 bytes for every block, `to` holds numbers in one.
        #[kernel(threads = THREADS)]
        pub unsafe fn $name(values: *const u32, to: *mut $ty, way: u32) {
            let tile = shared_array!($name.tile: [u32; (LINE / 4) as usize], align = 128);
            // SAFETY: as in `store_2d`.
            unsafe {
                fill(tile, values.add((thread::block_idx_x() * LINE / 4) as usize), LINE / 4, way);
                if thread::thread_idx_x() == 0 {
                    bulk::reduce_add(to, tile.address(), LINE);
                    close(way);
                }
                reuse(tile, LINE / 4);
            }
        }
    )+};
}

reduce_add! {
    reduce_add_u32, u32;
    reduce_add_i32, i32;
    reduce_add_u64, u64;
    reduce_add_f32, f32;
    reduce_add_f16, F16;
    reduce_add_bf16, Bf16;
}
