//! The tensor memory accelerator: one thread asks, the copy engine moves a box of a tensor (sm_90a).
//!
//! ```text
//!   tensor map (128 bytes, encoded by the host: base, dims, strides, box, swizzle)
//!   global [.., rows, bytes] ──box at (column, row, ..)──▶ shared, 128-byte rows, 16-byte chunk c of row r at c ^ (r % 8)
//! ```
//!
//! Coordinates are in elements, innermost first. Elements of the box outside the tensor arrive as zeros and
//! count as bytes like the others; stores leave them out. Loads complete on an mbarrier, stores and
//! reductions belong to the groups of [`bulk`](crate::bulk), where the fence is that they need. PTX ISA,
//! "cp.async.bulk.tensor"; swizzle modes in "Tensor", "Swizzling Modes".

use core::arch::asm;

use crate::l2::Policy;

/// A tensor map, aligned to 64 bytes. As an argument of a [`kernel`](crate::kernel) it lies in the kernel's
/// parameters, which the copy engine reads without a fence.
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

/// A [`TensorMap`] as rustc can pass it by value. `#[kernel]` uses it; kernels do not.
#[repr(C)]
pub struct TensorMapBytes([u64; 16]);

/// Fetches a tensor map ahead of its first use: `prefetch.tensormap`.
///
/// # Safety
/// `map` is a tensor map.
#[inline(always)]
pub unsafe fn prefetch_map(map: *const TensorMap) {
    // SAFETY: the caller's contract; a hint, which writes nothing.
    unsafe { asm!("prefetch.tensormap [{}];", in(reg64) map, options(nostack, preserves_flags)) }
}

/// Copies the box at `(c0, c1)` of a matrix to shared memory at `to`; its bytes complete on `barrier`:
/// `cp.async.bulk.tensor.2d`.
///
/// # Safety
/// `map` is a tensor map of rank 2 that outlives the copy; `to` has room for its box and the alignment its
/// swizzle wants (128 bytes; 1024 for whole atoms of the 128-byte swizzle); `barrier` is an mbarrier that
/// expects the bytes; no thread touches the destination before the barrier completes.
#[inline(always)]
pub unsafe fn load_2d(to: u32, map: *const TensorMap, barrier: u32, [c0, c1]: [i32; 2]) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{}], [{}, {{{}, {}}}], [{}];",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) barrier, options(nostack)
        )
    }
}

/// As [`load_2d`], into the shared memory of every block of the cluster whose bit is set in `blocks`: to the
/// same address in each, completing on the barrier at the same address in each. `.multicast::cluster`.
///
/// # Safety
/// As for [`load_2d`], in every block that is named.
#[inline(always)]
pub unsafe fn load_2d_multicast(
    to: u32,
    map: *const TensorMap,
    barrier: u32,
    [c0, c1]: [i32; 2],
    blocks: u16,
) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [{}], [{}, {{{}, {}}}], [{}], {};",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) barrier, in(reg16) blocks, options(nostack)
        )
    }
}

/// As [`load_2d`], of a tensor of rank 3: `cp.async.bulk.tensor.3d`.
///
/// # Safety
/// As for [`load_2d`], with a map of rank 3.
#[inline(always)]
pub unsafe fn load_3d(to: u32, map: *const TensorMap, barrier: u32, [c0, c1, c2]: [i32; 3]) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{}], [{}, {{{}, {}, {}}}], [{}];",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) barrier, options(nostack)
        )
    }
}

/// As [`load_2d`], with a hint to L2: `.L2::cache_hint`.
///
/// # Safety
/// As for [`load_2d`].
#[inline(always)]
pub unsafe fn load_2d_hinted(
    to: u32,
    map: *const TensorMap,
    barrier: u32,
    [c0, c1]: [i32; 2],
    policy: Policy,
) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [{}], [{}, {{{}, {}}}], [{}], {};",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) barrier, in(reg64) policy.operand(), options(nostack)
        )
    }
}

/// As [`load_2d_multicast`], with a hint to L2: `.L2::cache_hint`.
///
/// # Safety
/// As for [`load_2d_multicast`].
#[inline(always)]
pub unsafe fn load_2d_multicast_hinted(
    to: u32,
    map: *const TensorMap,
    barrier: u32,
    [c0, c1]: [i32; 2],
    blocks: u16,
    policy: Policy,
) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [{}], [{}, {{{}, {}}}], [{}], {}, {};",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) barrier, in(reg16) blocks,
            in(reg64) policy.operand(), options(nostack)
        )
    }
}

/// As [`load_3d`], with a hint to L2: `.L2::cache_hint`.
///
/// # Safety
/// As for [`load_3d`].
#[inline(always)]
pub unsafe fn load_3d_hinted(
    to: u32,
    map: *const TensorMap,
    barrier: u32,
    [c0, c1, c2]: [i32; 3],
    policy: Policy,
) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [{}], [{}, {{{}, {}, {}}}], [{}], {};",
            in(reg32) to, in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) barrier,
            in(reg64) policy.operand(), options(nostack)
        )
    }
}

/// Copies the box in shared memory at `from`, laid out as a load would leave it, to `(c0, c1)` of a matrix:
/// `cp.async.bulk.tensor.2d.global.shared::cta`.
///
/// # Safety
/// `map` is a tensor map of rank 2 that outlives the copy; `from` holds its box, with the alignment that its
/// swizzle wants (128 bytes; 1024 for whole atoms of the 128-byte swizzle). What threads wrote at `from` is
/// ordered by [`bulk::fence_shared`](crate::bulk::fence_shared). Until this thread has returned from
/// [`bulk::wait_read`](crate::bulk::wait_read) no thread writes at `from`, until it has returned from
/// [`bulk::wait`](crate::bulk::wait) none touches the box in global memory; other grids may after this one
/// has ended.
#[inline(always)]
pub unsafe fn store_2d(map: *const TensorMap, [c0, c1]: [i32; 2], from: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [{}, {{{}, {}}}], [{}];",
            in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) from, options(nostack)
        )
    }
}

/// As [`store_2d`], to a tensor of rank 3: `cp.async.bulk.tensor.3d.global.shared::cta`.
///
/// # Safety
/// As for [`store_2d`], with a map of rank 3.
#[inline(always)]
pub unsafe fn store_3d(map: *const TensorMap, [c0, c1, c2]: [i32; 3], from: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [{}, {{{}, {}, {}}}], [{}];",
            in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) from, options(nostack)
        )
    }
}

/// As [`store_2d`], adding the box to what is there: `cp.reduce.async.bulk.tensor.2d..add`. The element type
/// is the map's; the order of additions is as for [`bulk::reduce_add`](crate::bulk::reduce_add).
///
/// # Safety
/// As for [`store_2d`], but that others may add to the box in global memory meanwhile; it holds numbers
/// already.
#[inline(always)]
pub unsafe fn reduce_add_2d(map: *const TensorMap, [c0, c1]: [i32; 2], from: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        asm!(
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [{}, {{{}, {}}}], [{}];",
            in(reg64) map, in(reg32) c0, in(reg32) c1, in(reg32) from, options(nostack)
        )
    }
}
