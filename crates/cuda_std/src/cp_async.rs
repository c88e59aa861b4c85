//! Asynchronous copies from global to shared memory, `cp.async` (sm_80 and later).
//!
//! PTX ISA, "Data Movement and Conversion Instructions: Non-bulk copy".
//!
//! A copy is *issued* by [`copy16`], [`copy16_zfill`] or [`copy4_zfill`], *committed* together with all
//! earlier uncommitted copies of the same thread into one group by [`commit`], and *landed* once [`wait`]
//! leaves at most a given number of that thread's youngest groups pending. Landing is seen by the issuing
//! thread alone: a block barrier after [`wait`] is what shows it to the other threads.
//!
//! ```text
//! thread:  copy16 copy16 commit | copy16 copy16 commit | wait::<1>()      -> first group landed
//!          `---- group 0 -----'   `---- group 1 -----'   sync::block()    -> ... for the whole block
//! ```
//!
//! Shared addresses are 32-bit byte addresses in the shared window (address space 3).

use core::arch::asm;

/// Copies 16 bytes, bypassing L1 (`.cg`), with the hint to fetch the surrounding 128 bytes into L2.
///
/// # Safety
/// `dst` is a 16-byte-aligned shared address with 16 writable bytes that nobody reads or writes until the
/// copy has landed; `src` is a 16-byte-aligned global address with 16 readable bytes.
#[inline(always)]
pub unsafe fn copy16(dst: u32, src: *const u8) {
    // SAFETY: the caller vouches for both addresses; the instruction touches nothing else.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {src};",
            "cp.async.cg.shared.global.L2::128B [{dst}], [{address}], 16;",
            address = out(reg64) _,
            dst = in(reg32) dst,
            src = in(reg64) src,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies 16 bytes if `keep`, else writes 16 zero bytes to `dst` and does not read `src`.
///
/// # Safety
/// As [`copy16`]; `src` needs to be aligned, but readable only if `keep`.
#[inline(always)]
pub unsafe fn copy16_zfill(dst: u32, src: *const u8, keep: bool) {
    let bytes = if keep { 16u32 } else { 0 };
    // SAFETY: the caller vouches for both addresses; with a source size of 0 the source is not read.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {src};",
            "cp.async.cg.shared.global.L2::128B [{dst}], [{address}], 16, {bytes};",
            address = out(reg64) _,
            dst = in(reg32) dst,
            src = in(reg64) src,
            bytes = in(reg32) bytes,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies 4 bytes through L1 (`.ca`) if `keep`, else writes 4 zero bytes to `dst` and does not read `src`.
///
/// # Safety
/// As [`copy16_zfill`], with a size and an alignment of 4.
#[inline(always)]
pub unsafe fn copy4_zfill(dst: u32, src: *const u8, keep: bool) {
    let bytes = if keep { 4u32 } else { 0 };
    // SAFETY: the caller vouches for both addresses; with a source size of 0 the source is not read.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {src};",
            "cp.async.ca.shared.global [{dst}], [{address}], 4, {bytes};",
            address = out(reg64) _,
            dst = in(reg32) dst,
            src = in(reg64) src,
            bytes = in(reg32) bytes,
            options(nostack, preserves_flags),
        );
    }
}

/// Closes the group of all copies that this thread has issued since the last commit. The group may be empty.
#[inline(always)]
pub fn commit() {
    // SAFETY: `cp.async.commit_group` only counts; it reads and writes no memory by itself. Without `nomem`
    // the compiler keeps it in order with the copies around it.
    unsafe { asm!("cp.async.commit_group;", options(nostack, preserves_flags)) }
}

/// Waits until at most the `PENDING` youngest groups of this thread have not landed.
#[inline(always)]
pub fn wait<const PENDING: u32>() {
    // SAFETY: waiting has no precondition. The asm counts as writing memory, so no read of the destination
    // moves above it.
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}

/// Waits until all copies of this thread have landed, committed or not.
#[inline(always)]
pub fn wait_all() {
    // SAFETY: as in `wait`.
    unsafe { asm!("cp.async.wait_all;", options(nostack, preserves_flags)) }
}
