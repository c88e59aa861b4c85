//! The grouped GEMM: `D[rows of e, n] = A[rows of e, k] * B[e][n, k]^T` for every expert e, e4m3 in, f32
//! accumulation.
//!
//! | module | GPUs | operands reach the tensor cores by |
//! |---|---|---|
//! | [`portable`] | sm_89 and later | `cp.async`, `ldmatrix`, `mma.sync` |
//! | `hopper` | sm_90a | TMA, `wgmma` |
//!
//! Both walk the same tile schedule ([`schedule`](crate::schedule)) and take the same scales ([`scales`]).

#[cfg(target_feature = "sm_90a")]
pub(crate) mod hopper;
mod portable;
mod quad;
mod scales;

/// `value`, behind an optimisation barrier: it stops hoisting that would pin registers.
#[inline(always)]
pub(crate) fn recomputed(value: u32) -> u32 {
    let mut value = value;
    // SAFETY: no instruction at all. It is not `pure`, so that it stays where it is written.
    unsafe { core::arch::asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
    value
}
