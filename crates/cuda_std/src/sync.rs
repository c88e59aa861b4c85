//! Barriers: of a block, of some of its warps, of a warp.
//!
//! All are LLVM intrinsics and not `asm!`, because LLVM knows that the intrinsics are *convergent*: it must
//! not make their execution depend on more conditions than the source does. Inline assembly from Rust is not
//! convergent, and a `bar.sync` written that way is duplicated into both arms of a branch.
//!
//! | function | PTX | who |
//! |---|---|---|
//! | [`block`] | `bar.sync 0` | all threads of the block |
//! | [`named`] | `bar.sync id, n` | `n` threads, whole warps |
//! | [`named_arrive`] | `bar.arrive id, n` | those who do not wait |
//! | [`block_count`], [`block_any`], [`block_all`] | `bar.red.{popc,or,and}` | all threads of the block |
//! | [`warp`] | `bar.warp.sync mask` | the lanes of `mask` |
//!
//! PTX ISA, "Parallel Synchronization and Communication Instructions".

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn barrier_sync_all(barrier: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_sync_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_arrive_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.popc.aligned.all"]
    fn barrier_red_popc(barrier: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn barrier_red_or(barrier: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.barrier.cta.red.and.aligned.all"]
    fn barrier_red_and(barrier: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: u32);
}

/// Waits for all threads of the block; their shared and global memory accesses before it are visible after
/// it.
///
/// `bar.sync 0`. Aligned: every thread of the block executes this same call, warps converged.
#[inline(always)]
pub fn block() {
    // SAFETY: the barrier touches no memory of its own, and a block barrier only orders accesses; that all
    // threads arrive converged is the contract of the crate for collective operations.
    unsafe { barrier_sync_all(0) }
}

/// Waits until `threads` threads have arrived at the named barrier `id`.
///
/// `bar.sync id, threads`. `id` is 1 to 15 (0 is [`block`]'s), `threads` a multiple of 32 that counts those
/// who wait and those who call [`named_arrive`]. Aligned: all lanes of a warp execute it together.
#[inline(always)]
pub fn named(id: u32, threads: u32) {
    // SAFETY: as `block`.
    unsafe { barrier_sync_count(id, threads) }
}

/// Arrives at the named barrier `id` without waiting.
///
/// `bar.arrive id, threads`. Same arguments as [`named`]; the producer's half of a producer and consumer
/// pair.
#[inline(always)]
pub fn named_arrive(id: u32, threads: u32) {
    // SAFETY: as `block`.
    unsafe { barrier_arrive_count(id, threads) }
}

/// A [`block`] barrier that returns in how many threads `predicate` holds: `bar.red.popc.u32`.
#[inline(always)]
pub fn block_count(predicate: bool) -> u32 {
    // SAFETY: as `block`.
    unsafe { barrier_red_popc(0, predicate) }
}

/// A [`block`] barrier that returns whether `predicate` holds in any thread: `bar.red.or.pred`.
#[inline(always)]
pub fn block_any(predicate: bool) -> bool {
    // SAFETY: as `block`.
    unsafe { barrier_red_or(0, predicate) }
}

/// A [`block`] barrier that returns whether `predicate` holds in all threads: `bar.red.and.pred`.
#[inline(always)]
pub fn block_all(predicate: bool) -> bool {
    // SAFETY: as `block`.
    unsafe { barrier_red_and(0, predicate) }
}

/// Waits for the lanes of `mask` and orders their memory accesses among each other: `bar.warp.sync`.
///
/// The calling lane is in `mask`, and every lane of `mask` executes a call with the same `mask`.
#[inline(always)]
pub fn warp(mask: u32) {
    // SAFETY: as `block`, for a warp.
    unsafe { bar_warp_sync(mask) }
}
