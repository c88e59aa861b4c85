//! `ldmatrix` and `stmatrix`: 8x8 matrices of 16-bit elements between shared memory and the fragments of the
//! tensor cores.
//!
//! PTX ISA, "Warp Level Matrix Load Instruction: ldmatrix" (sm_75 and later), "Warp Level Matrix Store
//! Instruction: stmatrix" (sm_90 and later).
//!
//! A matrix is 8 rows of 16 bytes. The address of row `i` of matrix `j` comes from lane `8*j + i`, and
//! register `j` of lane `l` receives bytes `4*(l%4) .. 4*(l%4)+4` of row `l/4`:
//!
//! ```text
//!               bytes 0..4  4..8  8..12 12..16         address given by lane
//! matrix j  row 0   lane 0  lane 1  lane 2  lane 3         8j + 0
//!           row 1   lane 4  lane 5  lane 6  lane 7         8j + 1
//!            ...
//!           row 7   lane 28 lane 29 lane 30 lane 31        8j + 7
//! ```
//!
//! For 8-bit elements that is four elements of one row in each register: what `mma.m16n8k32` wants (see
//! [`mma`](crate::mma)). The 8 rows of a matrix are read in one pass if they lie in 8 different 16-byte
//! columns of the 128-byte-wide shared memory, whatever the rows' distance; a swizzle sees to that.

use core::arch::asm;

/// Loads two matrices; the addresses come from lanes 0 to 15.
///
/// # Safety
/// All 32 lanes of the warp execute it together. Each address is that of 16 readable shared bytes, 16-byte
/// aligned, with every write to them ordered before by a barrier.
#[inline(always)]
pub unsafe fn x2(address: u32) -> [u32; 2] {
    let (r0, r1): (u32, u32);
    // SAFETY: the caller vouches for convergence and for the address.
    unsafe {
        asm!(
            "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{{r0}, {r1}}}, [{address}];",
            r0 = out(reg32) r0,
            r1 = out(reg32) r1,
            address = in(reg32) address,
            options(readonly, nostack, preserves_flags),
        );
    }
    [r0, r1]
}

/// Loads four matrices; the addresses come from all lanes.
///
/// # Safety
/// As [`x2`].
#[inline(always)]
pub unsafe fn x4(address: u32) -> [u32; 4] {
    let (r0, r1, r2, r3): (u32, u32, u32, u32);
    // SAFETY: the caller vouches for convergence and for the address.
    unsafe {
        asm!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{r0}, {r1}, {r2}, {r3}}}, [{address}];",
            r0 = out(reg32) r0,
            r1 = out(reg32) r1,
            r2 = out(reg32) r2,
            r3 = out(reg32) r3,
            address = in(reg32) address,
            options(readonly, nostack, preserves_flags),
        );
    }
    [r0, r1, r2, r3]
}

/// Stores four matrices, laid out as those of [`x4`]; the addresses come from all lanes.
///
/// # Safety
/// All 32 lanes of the warp execute it together. Each address is that of 16 shared bytes, 16-byte aligned,
/// which no other thread touches until a barrier.
#[inline(always)]
pub unsafe fn store_x4(address: u32, registers: [u32; 4]) {
    let [r0, r1, r2, r3] = registers;
    // SAFETY: the caller vouches for convergence and for the address.
    unsafe {
        asm!(
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [{address}], {{{r0}, {r1}, {r2}, {r3}}};",
            address = in(reg32) address,
            r0 = in(reg32) r0,
            r1 = in(reg32) r1,
            r2 = in(reg32) r2,
            r3 = in(reg32) r3,
            options(nostack, preserves_flags),
        );
    }
}
