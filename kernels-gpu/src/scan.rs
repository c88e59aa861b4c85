//! Exclusive prefix sums over the threads of a block: of two values at once, with one barrier.
//!
//! ```text
//! lane      warp 0: v v v v ..      warp 1: v v ..          shuffle-up scan inside each warp,
//!                        sum0              sum1             the warps' sums to shared memory, barrier,
//! every warp:       lane i reads sum i; one `redux` adds those of the warps before, one adds all
//! ```
//!
//! The two scans run side by side: their shuffles do not wait for each other.

use cuda_std::{shared_array, sync, thread, warp};

/// Threads of every block that scans; a multiple of 32, and at most 1024 so that one warp can scan the warps.
pub(crate) const THREADS: u32 = 512;
/// Warps of such a block.
pub(crate) const WARPS: u32 = THREADS / 32;

/// Returns the sums of `values` over all threads before this one, and over all threads of the block.
///
/// A barrier of the block lies between this call and the next.
///
/// # Safety
/// All [`THREADS`] threads of the block execute it together.
#[inline(always)]
pub unsafe fn exclusive_scan(values: [u32; 2]) -> ([u32; 2], [u32; 2]) {
    const { assert!(THREADS == WARPS * 32 && WARPS <= 32) };
    let sums = shared_array!(scan.sums: [[u32; 2]; 32]);
    let (lane, warp_id) = (thread::lane_id(), thread::warp_id());
    let [mut first, mut second] = values;
    let mut step = 1;
    while step < 32 {
        let below =
            [warp::shfl_up(warp::FULL_MASK, first, step), warp::shfl_up(warp::FULL_MASK, second, step)];
        if lane >= step {
            first += below[0];
            second += below[1];
        }
        step *= 2;
    }
    if lane == 31 {
        // SAFETY: warp_id < 32, one writer to each element; the barrier below orders it before the reads.
        unsafe { sums.add(warp_id).write([first, second]) };
    }
    sync::block();
    // SAFETY: the elements of all WARPS warps were written before the barrier.
    let of_warps = if lane < WARPS { unsafe { sums.add(lane).read() } } else { [0; 2] };
    let of_earlier = if lane < warp_id { of_warps } else { [0; 2] };
    let sum = |value| warp::reduce_add_u32(warp::FULL_MASK, value);
    let before = [sum(of_earlier[0]) + first - values[0], sum(of_earlier[1]) + second - values[1]];
    (before, [sum(of_warps[0]), sum(of_warps[1])])
}
