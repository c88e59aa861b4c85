//! `mbarrier`: a barrier in shared memory that counts arrivals and the bytes of asynchronous copies (sm_90a).
//!
//! ```text
//!   8 bytes of shared memory, a phase at a time:
//!     pending arrivals ──▶ 0 ┐
//!                            ├─ both: the phase completes, the parity flips, the counts start again
//!     pending bytes    ──▶ 0 ┘
//!
//!   producer: expect_tx(full, bytes); tma copies ...        consumer: wait(full, parity); read; arrive(empty)
//! ```
//!
//! Waiting takes the *parity* of the phase to wait for: 0 for the first, then alternating. A fresh barrier
//! counts as having completed a phase of parity 1, so that `wait(empty, 1)` passes at once on the first lap
//! of a ring.
//!
//! All addresses are shared-memory addresses (`u32`) aligned to 8 bytes. PTX ISA, "mbarrier".

use core::arch::asm;

/// Bytes of a barrier.
pub const BYTES: u32 = 8;

/// Makes the barrier at `barrier` expect `arrivals` arrivals a phase: `mbarrier.init`.
///
/// # Safety
/// `barrier` is 8 bytes of shared memory that no thread uses as a barrier yet. Others may use it after
/// [`fence_init`] and a block barrier.
#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack))
    }
}

/// Makes initialised barriers visible to the block, the cluster and the copy engine: `fence.mbarrier_init`
/// and the proxy fence. The initialising thread calls it before the block barrier.
#[inline(always)]
pub fn fence_init() {
    // SAFETY: fences touch no memory.
    unsafe {
        asm!("fence.mbarrier_init.release.cluster;", "fence.proxy.async.shared::cta;", options(nostack));
    }
}

/// Arrives once, and makes the current phase wait for `bytes` more bytes of copies:
/// `mbarrier.arrive.expect_tx`.
///
/// # Safety
/// `barrier` is an initialised barrier with an arrival pending.
#[inline(always)]
pub unsafe fn arrive_expect_tx(barrier: u32, bytes: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) barrier, in(reg32) bytes, options(nostack))
    }
}

/// Arrives once: `mbarrier.arrive`, with release semantics at block scope.
///
/// # Safety
/// `barrier` is an initialised barrier with an arrival pending.
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe { asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) barrier, options(nostack)) }
}

/// Arrives once at the barrier that lies at `barrier` in the shared memory of block `rank` of the cluster:
/// `mapa` and `mbarrier.arrive.shared::cluster`.
///
/// It releases at the scope of the block, which is enough to hand shared memory back after reads.
/// `.release.cluster` would become a `MEMBAR.ALL.GPU` before every arrival: it halved the rate of a GEMM that
/// arrives once a stage.
///
/// # Safety
/// `barrier` is an initialised barrier there with an arrival pending, and that block has not exited.
#[inline(always)]
pub unsafe fn arrive_at(barrier: u32, rank: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "mapa.shared::cluster.u32 {remote}, {barrier}, {rank};",
            "mbarrier.arrive.shared::cluster.b64 _, [{remote}];",
            remote = out(reg32) _,
            barrier = in(reg32) barrier,
            rank = in(reg32) rank,
            options(nostack)
        )
    }
}

/// As [`arrive_at`], at a barrier whose address in the cluster's window is known:
/// [`cluster::map`](crate::cluster::map).
///
/// # Safety
/// As [`arrive_at`]; `barrier` is its address in the window.
#[inline(always)]
pub unsafe fn arrive_mapped(barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe { asm!("mbarrier.arrive.shared::cluster.b64 _, [{}];", in(reg32) barrier, options(nostack)) }
}

/// Arrives once when all `cp.async` copies that this thread has issued so far have landed:
/// `cp.async.mbarrier.arrive.noinc`. The arrival is one of those that [`init`] was told of.
///
/// # Safety
/// `barrier` is an initialised barrier with an arrival pending for this thread.
#[inline(always)]
pub unsafe fn arrive_after_copies(barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{}];", in(reg32) barrier, options(nostack))
    }
}

/// Keeps the current phase from completing until all `cp.async` copies that this thread has issued so far
/// have landed: `cp.async.mbarrier.arrive`, which adds the arrival that it makes. [`init`] is told of others;
/// the thread [`arrive`]s itself.
///
/// # Safety
/// `barrier` is an initialised barrier with an arrival pending, of this thread or one that waits for it.
#[inline(always)]
pub unsafe fn hold_for_copies(barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe { asm!("cp.async.mbarrier.arrive.shared::cta.b64 [{}];", in(reg32) barrier, options(nostack)) }
}

/// Whether the phase of `parity` has completed; may sleep for a while first: `mbarrier.try_wait.parity`,
/// acquire.
///
/// # Safety
/// `barrier` is an initialised barrier, at most one phase ahead of `parity`.
#[inline(always)]
pub unsafe fn try_wait(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "{{",
            ".reg .pred done;",
            "mbarrier.try_wait.parity.shared::cta.b64 done, [{1}], {2};",
            "selp.u32 {0}, 1, 0, done;",
            "}}",
            out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack)
        )
    }
    done != 0
}

/// Waits until the phase of `parity` has completed.
///
/// # Safety
/// As for [`try_wait`].
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    // The loop is Rust's, not asm's: a label in asm! could be emitted twice.
    // SAFETY: the caller's contract.
    while !unsafe { try_wait(barrier, parity) } {}
}
