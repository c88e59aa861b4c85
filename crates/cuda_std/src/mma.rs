//! Warp-level tensor-core multiply-accumulate on FP8, `mma.sync.m16n8k32` (native on sm_89 and sm_120,
//! emulated by the driver's compiler on sm_90).
//!
//! PTX ISA, "Matrix Fragments for mma.m16n8k32" (PTX 8.4 and later for e4m3).
//!
//! `D[16x8] = A[16x32] * B[32x8] + C[16x8]`, spread over the 32 lanes of a warp. With `g = lane / 4`, `q =
//! lane % 4`:
//!
//! ```text
//! A (16 rows x 32 k, 4 elements to a register)      B (32 k x 8 columns)        C, D (16 rows x 8 columns, f32)
//!            k 4q..4q+3   k 16+4q..16+4q+3          b[0]: column g, k 4q..4q+3   d[0] d[1]: row g,   columns 2q 2q+1
//! row g         a[0]          a[2]                  b[1]: column g, k 16+4q..    d[2] d[3]: row g+8, columns 2q 2q+1
//! row g+8       a[1]          a[3]
//! ```
//!
//! The lowest byte of a register is the lowest k. Both operands have k contiguous, so that with
//! [`ldmatrix`](crate::ldmatrix) A comes as the matrices (rows 0-7, k 0-15), (rows 8-15, k 0-15), (rows 0-7,
//! k 16-31), (rows 8-15, k 16-31), and B, stored as `[n][k]`, as (n 0-7, k 0-15), (n 0-7, k 16-31).

use core::arch::asm;

/// A multiply-accumulate of which `$instruction` is the shape, the layouts and the types.
macro_rules! mma {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All 32 lanes of the warp execute it together.
        #[inline(always)]
        pub unsafe fn $name(accumulator: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
            let [d0, d1, d2, d3] = accumulator;
            // SAFETY: the caller vouches for convergence; the instruction touches registers only. It is not
            // `pure`, so that the compiler cannot sink it into a divergent branch that alone uses the result.
            unsafe {
                asm!(
                    concat!(
                        "mma.sync.aligned.", $instruction, " {{{d0}, {d1}, {d2}, {d3}}}, ",
                        "{{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
                    ),
                    d0 = inout(reg32) *d0,
                    d1 = inout(reg32) *d1,
                    d2 = inout(reg32) *d2,
                    d3 = inout(reg32) *d3,
                    a0 = in(reg32) a[0],
                    a1 = in(reg32) a[1],
                    a2 = in(reg32) a[2],
                    a3 = in(reg32) a[3],
                    b0 = in(reg32) b[0],
                    b1 = in(reg32) b[1],
                    options(nomem, nostack, preserves_flags),
                );
            }
        }
    };
}

mma! {
    /// `accumulator += A * B` for e4m3 A and B, in place.
    m16n8k32_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32"
}

mma! {
    /// `accumulator += A * B` for bf16 A and B, `mma.sync.m16n8k16` (sm_80 and later), in place.
    ///
    /// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". As the picture above, with two
    /// elements to a register where that has four: `a[0]` is row g, k 2q and 2q+1; `a[1]` row g+8; `a[2]`,
    /// `a[3]` the same at k 8+2q; `b[0]` is column g, k 2q and 2q+1, `b[1]` the same at k 8+2q.
    m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32"
}

mma! {
    /// As [`m16n8k16_bf16`], for f16 A and B.
    m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32"
}
