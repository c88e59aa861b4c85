//! The grouped GEMM: `D[rows of e, n] = A[rows of e, k] * B[e][n, k]^T` for every expert e, e4m3 in, f32 accumulation.
//!
//! | module | GPUs | operands reach the tensor cores by |
//! |---|---|---|
//! | [`portable`] | sm_89 and later | `cp.async`, `ldmatrix`, `mma.sync` |
//! | `hopper` | sm_90a | TMA, `wgmma` |
//!
//! Both walk the same device-built tile schedule ([`schedule`]) and take the same scales ([`scale_arguments`]).

#[cfg(target_feature = "sm_90a")]
mod hopper;
mod portable;
mod quad;
mod scale_arguments;
mod schedule;

/// Bytes of K that are in shared memory together: one 128-byte row of a stage, and the width of a scale group or block.
const SLAB: u32 = 128;

/// [`portable`]'s and `hopper`'s `out_type` for f16; 0 is bf16.
const F16: u32 = 1;
/// `out_type` for f32.
const F32: u32 = 2;
/// `hopper`'s `out_type` for sums by token, in f32.
#[cfg(target_feature = "sm_90a")]
const TOKEN_SUMS: u32 = 3;

/// `value`, about which the compiler knows nothing: what is computed from it is computed here and now, instead of once
/// before all loops, to be held in registers ever after.
#[inline(always)]
fn recomputed(value: u32) -> u32 {
    let mut value = value;
    // SAFETY: no instruction at all. It is not `pure`, so that it stays where it is written.
    unsafe { core::arch::asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
    value
}
