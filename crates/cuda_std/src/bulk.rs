//! Bulk copies: one thread asks, the copy engine moves a line of bytes between global and shared memory
//! (sm_90a).
//!
//! ```text
//!   load    global ──▶ shared     completes its bytes on an mbarrier                    mbarrier::wait
//!   store   shared ──▶ global  \  belong to the open group of the thread that asks,
//!   reduce_add  shared ─(+)▶   /  which `commit` closes                               wait, wait_read
//!   prefetch_l2 global ──▶ L2     nobody can wait for it, and nothing depends on it
//! ```
//!
//! A line is a multiple of 16 bytes, at addresses that are multiples of 16. Boxes of tensors are in
//! [`tma`](crate::tma); their stores belong to the same groups. Shared addresses are 32-bit byte addresses in
//! the shared window (address space 3).
//!
//! # The two proxies
//! The engine does not see what threads have written to shared memory until a proxy fence has stood between:
//!
//! ```text
//!   all threads:  write to shared; bulk::fence_shared(); sync::block()
//!   one thread:   bulk::store(..); bulk::commit(); bulk::wait_read::<0>()      the engine has read its source
//!   all threads:  sync::block(); write to shared again
//! ```
//!
//! In the other direction none is needed: whoever has seen the mbarrier complete may read what a load
//! brought.
//!
//! PTX ISA, "cp.async.bulk", "cp.reduce.async.bulk", "cp.async.bulk.prefetch", "Async proxy".

use core::arch::asm;

use crate::bf16::{Bf16, F16};
use crate::l2::Policy;

/// Shows the copy engine and the tensor cores what this thread has written to the block's shared memory, and
/// what others had written before a barrier that it has passed: `fence.proxy.async.shared::cta`.
#[inline(always)]
pub fn fence_shared() {
    // SAFETY: only orders.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}

/// Copies `bytes` bytes to shared memory at `to`; they complete on `barrier`:
/// `cp.async.bulk.shared::cluster.global`.
///
/// # Safety
/// `from` is in global memory with `bytes` readable bytes, `to` in this block's shared memory with room for
/// them, all three are multiples of 16; `barrier` is an mbarrier that expects the bytes; no thread touches
/// the destination before it completes, and writes of it before the call are ordered by [`fence_shared`].
#[inline(always)]
pub unsafe fn load(to: u32, from: *const u8, bytes: u32, barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {from};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{address}], {bytes}, [{barrier}];",
            address = out(reg64) _,
            from = in(reg64) from,
            to = in(reg32) to,
            bytes = in(reg32) bytes,
            barrier = in(reg32) barrier,
            options(nostack)
        )
    }
}

/// As [`load`], with a hint to L2: `.L2::cache_hint`.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub unsafe fn load_hinted(to: u32, from: *const u8, bytes: u32, barrier: u32, policy: Policy) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {from};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{to}], [{address}], {bytes}, [{barrier}], {policy};",
            address = out(reg64) _,
            from = in(reg64) from,
            to = in(reg32) to,
            bytes = in(reg32) bytes,
            barrier = in(reg32) barrier,
            policy = in(reg64) policy.operand(),
            options(nostack)
        )
    }
}

/// Copies `bytes` bytes to shared memory at `to` of every block of the cluster in the mask `blocks`; they
/// complete on the barrier at the same place of that block:
/// `cp.async.bulk.shared::cluster.global..multicast::cluster`.
///
/// # Safety
/// As for [`load`], in each of the blocks, which have all begun and none of which exits before the bytes have
/// arrived.
#[inline(always)]
pub unsafe fn load_multicast(to: u32, from: *const u8, bytes: u32, barrier: u32, blocks: u16) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {from};",
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [{to}], [{address}], {bytes}, [{barrier}], {blocks};",
            address = out(reg64) _,
            from = in(reg64) from,
            to = in(reg32) to,
            bytes = in(reg32) bytes,
            barrier = in(reg32) barrier,
            blocks = in(reg16) blocks,
            options(nostack)
        )
    }
}

/// Asks L2 for `bytes` bytes, which a later access then need not wait for:
/// `cp.async.bulk.prefetch.L2.global`.
///
/// A hint: no thread sees that the bytes have come, and L2 may have dropped them by the time that they are
/// read. The thread goes on at once, and may exit. One line of L2 at a time, on older GPUs as well, is
/// [`memory::prefetch_l2`](crate::memory::prefetch_l2).
///
/// # Safety
/// `from` is in global memory with `bytes` bytes, written or not; both are multiples of 16.
#[inline(always)]
pub unsafe fn prefetch_l2(from: *const u8, bytes: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {from};",
            "cp.async.bulk.prefetch.L2.global [{address}], {bytes};",
            address = out(reg64) _,
            from = in(reg64) from,
            bytes = in(reg32) bytes,
            options(nostack, preserves_flags)
        )
    }
}

/// Copies `bytes` bytes from shared memory at `from`: `cp.async.bulk.global.shared::cta.bulk_group`.
///
/// # Safety
/// `from` is in this block's shared memory with `bytes` written bytes, `to` in global memory with room for
/// them, all three are multiples of 16. What threads wrote at `from` is ordered by [`fence_shared`]. Until
/// this thread has returned from [`wait_read`] no thread writes at `from`, until it has returned from
/// [`wait`] none touches `to`; other grids may after this one has ended.
#[inline(always)]
pub unsafe fn store(to: *mut u8, from: u32, bytes: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {to};",
            "cp.async.bulk.global.shared::cta.bulk_group [{address}], [{from}], {bytes};",
            address = out(reg64) _,
            to = in(reg64) to,
            from = in(reg32) from,
            bytes = in(reg32) bytes,
            options(nostack)
        )
    }
}

/// Adds the numbers in the `bytes` bytes of shared memory at `from` to those at `to`:
/// `cp.reduce.async.bulk..add`.
///
/// Each element is an atomic addition, relaxed, at the scope of the GPU: lines of many blocks may be added to
/// the same place, in an order that differs from run to run. Sums of floating-point numbers then differ in
/// their last bits. Those of 16 bits round after every addition.
///
/// # Safety
/// As for [`store`], but that others may add to `to` meanwhile; it holds numbers already.
#[inline(always)]
pub unsafe fn reduce_add<T: Addend>(to: *mut T, from: u32, bytes: u32) {
    // SAFETY: the caller's contract.
    unsafe { T::reduce_add(to, from, bytes) }
}

/// A number that the copy engine can add.
pub trait Addend: Copy {
    /// What [`reduce_add`] does.
    ///
    /// # Safety
    /// As for [`reduce_add`].
    unsafe fn reduce_add(to: *mut Self, from: u32, bytes: u32);
}

macro_rules! addends {
    ($($ty:ty, $suffix:literal;)+) => {$(
        impl Addend for $ty {
            #[inline(always)]
            unsafe fn reduce_add(to: *mut Self, from: u32, bytes: u32) {
                // SAFETY: the caller's contract.
                unsafe {
                    asm!(
                        "cvta.to.global.u64 {address}, {to};",
                        concat!("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.", $suffix, " [{address}], [{from}], {bytes};"),
                        address = out(reg64) _,
                        to = in(reg64) to,
                        from = in(reg32) from,
                        bytes = in(reg32) bytes,
                        options(nostack)
                    )
                }
            }
        }
    )+};
}

addends! {
    u32, "u32";
    i32, "s32";
    u64, "u64";
    f32, "f32";
    // Without `.noftz` there is no addition of 16-bit numbers.
    F16, "noftz.f16";
    Bf16, "noftz.bf16";
}

/// Closes the group of all bulk stores and reductions that this thread has asked for since the last commit:
/// `cp.async.bulk.commit_group`. The group may be empty.
#[inline(always)]
pub fn commit() {
    // SAFETY: counts; without `nomem` it stays in order with the stores around it.
    unsafe { asm!("cp.async.bulk.commit_group;", options(nostack)) }
}

/// Waits until at most the `PENDING` youngest groups of this thread have not ended; this thread then sees
/// what they have written: `cp.async.bulk.wait_group`.
#[inline(always)]
pub fn wait<const PENDING: u32>() {
    // SAFETY: waiting has no precondition. The asm counts as writing memory, so no access moves above it.
    unsafe { asm!("cp.async.bulk.wait_group {};", const PENDING, options(nostack)) }
}

/// Waits until at most the `PENDING` youngest groups of this thread have yet to read shared memory, which may
/// then be written again: `cp.async.bulk.wait_group.read`.
#[inline(always)]
pub fn wait_read<const PENDING: u32>() {
    // SAFETY: as in `wait`.
    unsafe { asm!("cp.async.bulk.wait_group.read {};", const PENDING, options(nostack)) }
}
