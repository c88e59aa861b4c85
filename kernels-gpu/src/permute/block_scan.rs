//! Exclusive prefix sum over the threads of a block.
//!
//! ```text
//! lane      warp 0: v v v v ..      warp 1: v v ..          shuffle-up scan inside each warp,
//!                        sum0              sum1             the warps' sums to shared memory,
//! warp 0:   scan of sum0 sum1 ..                            every thread adds the sum of the warps before its own
//! ```

use super::{THREADS, WARPS};
use cuda_std::{shared_array, sync, thread, warp};

/// Returns the sum of `value` over all threads before this one, and over all threads of the block.
///
/// # Safety
/// All [`THREADS`] threads of the block execute it together.
#[inline(always)]
pub unsafe fn exclusive_scan(value: u32) -> (u32, u32) {
    const { assert!(THREADS == WARPS * 32 && WARPS == 32) };
    let sums = shared_array!(block_scan.sums: [u32; 32]);
    let (lane, warp_id) = (thread::lane_id(), thread::warp_id());
    let inclusive = warp::inclusive_scan_add(value);
    if lane == 31 {
        // SAFETY: warp_id < 32, one writer to each element; the barrier below orders it before the reads.
        unsafe { sums.add(warp_id).write(inclusive) };
    }
    sync::block();
    // Every warp scans the 32 sums for itself: that saves the round trip of handing out one warp's result.
    // SAFETY: all elements were written before the barrier.
    let scanned = warp::inclusive_scan_add(unsafe { sums.add(lane).read() });
    let total = warp::shfl_idx(warp::FULL_MASK, scanned, 31);
    let before = warp::shfl_idx(warp::FULL_MASK, scanned, warp_id.wrapping_sub(1) & 31);
    let before = if warp_id == 0 { 0 } else { before };
    // The next call writes `sums` again.
    sync::block();
    (before + inclusive - value, total)
}
