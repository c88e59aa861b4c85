//! Loads into shared memory: lines and boxes with hints to L2, a box for both blocks of a cluster, copies of
//! 16 bytes that arrive at an mbarrier.

use cuda_std::l2::Policy;
use cuda_std::shared::Shared;
use cuda_std::{bulk, cluster, cp_async, kernel, mbarrier, memory, shared_array, sync, thread, tma, wgmma};

use crate::ways::*;

/// Threads of a block.
const THREADS: u32 = 64;
/// Words of a box, and bytes.
const WORDS: u32 = 512;
const BYTES: u32 = 4 * WORDS;
/// Bytes of a line.
const LINE: u32 = 256;

/// Initialises a barrier for the block.
///
/// # Safety
/// All threads of the block call this, and nobody uses the barrier yet.
#[inline(always)]
unsafe fn init(barrier: Shared<u64>, arrivals: u32) {
    if thread::thread_idx_x() == 0 {
        // SAFETY: the caller's contract.
        unsafe { mbarrier::init(barrier.address(), arrivals) };
        mbarrier::fence_init();
    }
    sync::block();
}

/// Waits for the barrier's first phase, and copies `words` words to `out`.
///
/// # Safety
/// There are as many words in shared memory, and `out` has room for them; all threads of the cluster call
/// this.
#[inline(always)]
unsafe fn take(tile: Shared<u32>, barrier: Shared<u64>, out: *mut u32, words: u32, way: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        if way == NO_LANDING {
            cluster::sync();
        } else {
            mbarrier::wait(barrier.address(), 0);
        }
        let mut at = thread::thread_idx_x();
        while at < words {
            *out.add(at as usize) = tile.add(at).read();
            at += THREADS;
        }
    }
}

/// Loads a line twice, without and with a hint.
///
/// # Safety
/// `from` has 64 words, `out` room for 128.
#[kernel(threads = THREADS)]
pub unsafe fn load_lines(from: *const u32, out: *mut u32, way: u32) {
    let barrier = shared_array!(load_lines.barrier: [u64; 1]);
    let tile = shared_array!(load_lines.tile: [u32; (2 * LINE / 4) as usize], align = 128);
    // SAFETY: the kernel's contract; the ways that are wrong end with a fault of the emulated device.
    unsafe {
        init(barrier, 1);
        if thread::thread_idx_x() == 0 {
            let (to, full) = (tile.address(), barrier.address());
            mbarrier::arrive_expect_tx(full, 2 * LINE);
            bulk::load(to, from.cast(), LINE, full);
            bulk::load_hinted(to + LINE, from.cast(), LINE, full, Policy::evict_last_of(0.5));
        }
        take(tile, barrier, out, 2 * LINE / 4, way);
    }
}

/// Every thread asks L2 for a line of `from`, each behind the other, and writes its number to `out`; the way
/// [`PAST_THE_END`] is one line too far on.
///
/// # Safety
/// `from` has 64 lines of 256 bytes, `out` room for 64 words.
#[kernel(threads = THREADS)]
pub unsafe fn prefetch_lines(from: *const u32, out: *mut u32, way: u32) {
    let thread = thread::thread_idx_x();
    let line = if way == PAST_THE_END { thread + 1 } else { thread };
    // SAFETY: as in `load_lines`.
    unsafe {
        bulk::prefetch_l2(from.cast::<u8>().wrapping_add((line * LINE) as usize), LINE);
        *out.add(thread as usize) = thread;
    }
}

/// Loads a box of rank 2 and one of rank 3, with hints.
///
/// # Safety
/// The maps have the ranks and boxes of 2048 bytes; `out` has room for 1024 words.
#[kernel(threads = THREADS)]
pub unsafe fn load_boxes_hinted(map_2d: TensorMap, map_3d: TensorMap, out: *mut u32, way: u32) {
    let barrier = shared_array!(load_boxes_hinted.barrier: [u64; 1]);
    let tile = shared_array!(load_boxes_hinted.tile: [u32; 2 * WORDS as usize], align = 1024);
    // SAFETY: as in `load_lines`.
    unsafe {
        init(barrier, 1);
        if thread::thread_idx_x() == 0 {
            let (to, full) = (tile.address(), barrier.address());
            mbarrier::arrive_expect_tx(full, 2 * BYTES);
            tma::load_2d_hinted(to, map_2d, full, [-4, 2], Policy::evict_first());
            tma::load_3d_hinted(to + BYTES, map_3d, full, [4, 1, 1], Policy::evict_last());
        }
        take(tile, barrier, out, 2 * WORDS, way);
    }
}

/// The first block of a cluster loads a box for both, which store it one behind the other.
///
/// # Safety
/// The map has rank 2 and boxes of 2048 bytes; `out` has room for 1024 words.
#[kernel(threads = THREADS, cluster = 2)]
pub unsafe fn load_2d_multicast_hinted(map: TensorMap, out: *mut u32, way: u32) {
    let barrier = shared_array!(load_2d_multicast_hinted.barrier: [u64; 1]);
    let tile = shared_array!(load_2d_multicast_hinted.tile: [u32; WORDS as usize], align = 1024);
    // SAFETY: as in `load_lines`. Both barriers expect the bytes before the copy begins.
    unsafe {
        init(barrier, 1);
        if thread::thread_idx_x() == 0 {
            mbarrier::arrive_expect_tx(barrier.address(), BYTES);
        }
        cluster::sync();
        let rank = cluster::rank();
        if rank == 0 && thread::thread_idx_x() == 0 {
            let policy = Policy::evict_first();
            tma::load_2d_multicast_hinted(tile.address(), map, barrier.address(), [4, 2], 0b11, policy);
        }
        take(tile, barrier, out.add((rank * WORDS) as usize), WORDS, way);
    }
}

/// Every thread copies 16 bytes; once all have landed, it reads what its neighbour copied.
///
/// # Safety
/// `from` has 16 bytes for each of 64 threads, `out` room for as many.
#[kernel(threads = THREADS)]
pub unsafe fn arrive_after_copies(from: *const u8, out: *mut [u32; 4], way: u32) {
    let barrier = shared_array!(arrive_after_copies.barrier: [u64; 1]);
    let tile = shared_array!(arrive_after_copies.tile: [[u32; 4]; THREADS as usize]);
    // SAFETY: as in `load_lines`.
    unsafe {
        init(barrier, THREADS);
        let own = thread::thread_idx_x();
        cp_async::copy16(tile.add(own).address(), from.add(16 * own as usize));
        if way == HOLD_FOR_COPIES {
            mbarrier::hold_for_copies(barrier.address());
        }
        if way == HOLD_FOR_COPIES || way == ARRIVE_AT_ONCE {
            mbarrier::arrive(barrier.address());
        } else {
            mbarrier::arrive_after_copies(barrier.address());
        }
        mbarrier::wait(barrier.address(), 0);
        memory::store(out.add(own as usize), tile.add((own + 33) % THREADS).read());
    }
}

/// Loads through the read-only path with a hint, by warpgroups that hand registers to each other.
///
/// # Safety
/// `from` has 256 words, `out` room for as many.
#[kernel(threads = 256)]
pub unsafe fn load_nc_hinted(from: *const u32, out: *mut u32) {
    if thread::warp_id() < 4 {
        wgmma::release_registers::<40>();
    } else {
        wgmma::raise_registers::<232>();
    }
    let at = thread::thread_idx_x() as usize;
    // SAFETY: the kernel's contract.
    unsafe { *out.add(at) = memory::load_nc_hinted(from.add(at), Policy::evict_first()) };
}
