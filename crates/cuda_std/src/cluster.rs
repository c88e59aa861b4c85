//! Clusters: blocks that run at the same time on neighbouring SMs and reach each other's shared memory
//! (sm_90a).
//!
//! The launch says how many blocks make a cluster. A shared-memory address of a block, with the number of a
//! block of the cluster, becomes an address of the cluster's window by `mapa`;
//! [`mbarrier::arrive_at`](crate::mbarrier::arrive_at) does that.
//!
//! PTX ISA, "Cluster of Cooperative Thread Arrays", "barrier.cluster", "mapa", "st.async".

use core::arch::asm;

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.aligned"]
    fn barrier_cluster_arrive_aligned();
    #[link_name = "llvm.nvvm.barrier.cluster.wait.aligned"]
    fn barrier_cluster_wait_aligned();
}

/// The number of this block within its cluster: `%cluster_ctarank`.
#[inline(always)]
pub fn rank() -> u32 {
    let rank: u32;
    // SAFETY: reads a special register.
    unsafe {
        asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank, options(pure, nomem, nostack, preserves_flags))
    }
    rank
}

/// Waits for all threads of the cluster that have not exited; their memory accesses before it are visible
/// after it: `barrier.cluster.arrive` and `.wait`. Aligned: all lanes of a warp execute it together.
#[inline(always)]
pub fn sync() {
    // SAFETY: as the barriers of `crate::sync`.
    unsafe {
        barrier_cluster_arrive_aligned();
        barrier_cluster_wait_aligned();
    }
}

/// The address in the cluster's window of what lies at `address` in the shared memory of block `rank` of the
/// cluster: `mapa.shared::cluster`. A block's shared memory lies there in one piece, so that differences of
/// addresses stay.
#[inline(always)]
pub fn map(address: u32, rank: u32) -> u32 {
    let mapped: u32;
    // SAFETY: computes an address from an address, touches no memory.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) mapped, in(reg32) address, in(reg32) rank,
            options(pure, nomem, nostack, preserves_flags))
    };
    mapped
}

/// Writes `value` at `to`, and then completes its 4 bytes on the barrier at `barrier`, as a copy would:
/// `st.async..mbarrier::complete_tx::bytes`. Whoever has seen the barrier complete may read the value.
///
/// # Safety
/// Both are addresses in the cluster's window ([`map`]), multiples of 4 and 8, in the shared memory of one
/// block, which has begun and does not exit before the barrier has completed. The barrier is initialised, and
/// its phase expects the bytes or will; no thread touches the 4 bytes before it completes.
#[inline(always)]
pub unsafe fn store_async(to: u32, value: u32, barrier: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [{to}], {value}, [{barrier}];",
            to = in(reg32) to,
            value = in(reg32) value,
            barrier = in(reg32) barrier,
            options(nostack)
        )
    }
}
