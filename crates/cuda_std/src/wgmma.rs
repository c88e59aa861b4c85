//! `wgmma`: the asynchronous tensor cores of a warpgroup, FP8 from shared memory (sm_90a).
//!
//! Four consecutive warps (the first a multiple of four) multiply together. For e4m3 both operands lie in
//! shared memory with K contiguous, as rows of 128 bytes in the 128-byte swizzle that TMA writes (B may lie
//! otherwise, as [`Cores`]):
//!
//! ```text
//!   A: 64 rows of 128 bytes = 64 x 128 of K      accumulators of N columns: N/2 registers a thread
//!   B:  N rows of 128 bytes =  N x 128 of K        warp w, lane l, register 4j + i:
//!   atoms of 8 rows, 1024 bytes apart                row = 16 w + l / 4 + 8 (i / 2),  column = 8 j + 2 (l % 4) + i % 2
//! ```
//!
//! ```text
//! fence(); wgmma_e4m3!(128, acc, a, b, keep); commit(); .. wait::<0>(); wgmma_tie!(64, acc);
//! ```
//!
//! `wgmma_tie!` emits nothing: it stops LLVM from moving uses of the accumulators above the wait. With a
//! group still in flight (`wait::<1>`) nothing may touch its accumulators, not even a tie or a branch that
//! merges two versions of them, or `ptxas` injects a wait (C7517). PTX ISA, "Asynchronous Warpgroup Level
//! Matrix Instructions".

pub use cuda_std_macros::{wgmma_e4m3, wgmma_tie};

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    fn wgmma_fence();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    fn wgmma_commit_group();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    fn wgmma_wait_group(pending: u64);
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn setmaxnreg_inc(registers: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn setmaxnreg_dec(registers: u32);
}

/// The lower half of the descriptor of an operand at shared-memory address `address`: rows of 128 bytes in
/// the 128-byte swizzle, K contiguous. The upper half is the same for all such operands; `wgmma_e4m3!` adds
/// it.
///
/// PTX ISA, "Matrix Descriptor Format": address / 16 in bits 0-13 (shared memory ends far below 2^18), a
/// leading offset that is not used in this layout in bits 16-29. Above: the stride between 8-row atoms (1024
/// bytes) / 16 in bits 32-45, swizzle 1 (128 bytes) in bits 62-63. Adding to the result moves the operand by
/// 16 bytes for each 1.
#[inline(always)]
pub fn descriptor(address: u32) -> u32 {
    (address >> 4) + (1 << 16)
}

/// An operand that is not swizzled: core matrices of 8 rows by 16 bytes of K, whose rows are neighbours.
///
/// ```text
///   row r, bytes 16 c .. 16 c + 16 of K     at address + r / 8 * along_rows + c * along_k + r % 8 * 16
/// ```
///
/// Core matrices may overlap, where rows of theirs are nobody's.
#[derive(Clone, Copy)]
pub struct Cores {
    /// The lower half of its descriptor. Adding to it moves the operand by 16 bytes for each 1.
    pub low: u32,
    /// The upper half.
    pub high: u32,
    /// What 32 bytes of K add to the lower half.
    pub step: u32,
}

impl Cores {
    /// That at `address`, whose core matrices are `along_k` bytes apart along K, and `along_rows` from eight
    /// rows to the next eight: all multiples of 16.
    ///
    /// PTX ISA, "Matrix Descriptor Format": the leading offset is that along K, in bits 16-29, the stride
    /// that along the rows, in bits 32-45, both / 16; bits 62-63 are 0.
    #[inline(always)]
    pub fn new(address: u32, along_k: u32, along_rows: u32) -> Self {
        Self { low: (address >> 4) + (along_k >> 4 << 16), high: along_rows >> 4, step: along_k >> 3 }
    }
}

/// Orders register accesses before the first `wgmma` and between dependent ones: `wgmma.fence`. Aligned.
#[inline(always)]
pub fn fence() {
    // SAFETY: orders accesses only; executed by converged warps as all collectives of this crate.
    unsafe { wgmma_fence() }
}

/// Ends a group of `wgmma`s: `wgmma.commit_group`. Aligned.
#[inline(always)]
pub fn commit() {
    // SAFETY: as `fence`.
    unsafe { wgmma_commit_group() }
}

/// Waits until at most `PENDING` groups are in flight: `wgmma.wait_group`. Aligned.
#[inline(always)]
pub fn wait<const PENDING: u64>() {
    // SAFETY: as `fence`.
    unsafe { wgmma_wait_group(PENDING) }
}

/// Raises the registers of each thread of this warpgroup to `REGISTERS` (24 to 256, a multiple of 8), waiting
/// until the block's pool has them: `setmaxnreg.inc`. Aligned; the kernel needs launch bounds.
#[inline(always)]
pub fn raise_registers<const REGISTERS: u32>() {
    // SAFETY: register numbers are checked by the assembler.
    unsafe { setmaxnreg_inc(REGISTERS) }
}

/// Gives registers of each thread of this warpgroup back, keeping `REGISTERS`: `setmaxnreg.dec`. Aligned.
#[inline(always)]
pub fn release_registers<const REGISTERS: u32>() {
    // SAFETY: as `raise_registers`.
    unsafe { setmaxnreg_dec(REGISTERS) }
}
