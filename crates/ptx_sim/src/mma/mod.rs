//! `mma.sync.aligned`: warp-level matrix multiply-accumulate on register fragments (ISA "Warp-level matrix
//! instructions: mma").
//!
//! All shapes are `m16n8k*` with A row-major and B column-major. A register of an operand holds one core
//! matrix (8 rows of 16 bytes, see [`Core`]), and the fragments are these blocks:
//!
//! ```text
//!   A: 16 x K                     B: K x 8 (rows below are columns n)     C, D: 16 x 8, f32
//!        k block 0   k block 1        k block 0   k block 1
//!   rows 0..8   a[0]       a[2]        n 0..8  b[0]       b[1]            rows 0..8   c[0] c[1]
//!   rows 8..16  a[1]       a[3]                                           rows 8..16  c[2] c[3]
//!
//!   k block = 16 (8-bit), 8 (16-bit) or 4 (tf32) columns
//!   lane 4g + t holds row g, bytes 4t..4t+4 of an operand block, and columns 2t, 2t+1 of row g of C
//! ```
//!
//! **Definition.** Products are exact. They are summed over k in `f64`, which is exact for `e4m3` (every
//! partial sum is a multiple of 2^-18 below 2^35) and otherwise rounds each partial sum to 53 bits. The sum
//! plus `c` is rounded once, to nearest even, to the accumulator type. NaN results are canonical.
//!
//! Tensor cores do less than that on FP8: they align the products of a step and the accumulator to the
//! largest exponent, cut off what lies below a fixed number of fraction bits, and truncate the result.
//! [`Truncation`] models it, with the parameters that others measured, where [`TensorCores::Hardware`] asks
//! for it; the default is the definition.

mod element;
mod tile;
mod truncated;
mod truncation;

pub use element::{Core, Operand};
pub use truncation::{TensorCores, Truncation};

use element::{Bf16, E4m3, E5m2, F16, Tf32};
use tile::panels;
use truncated::Rule;

pub(crate) use element::core_of;
pub(crate) use tile::Fragment;

/// How a product enters the accumulators.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    /// Subtract the product.
    pub negate: bool,
    /// Add to the accumulators, rather than overwrite them.
    pub accumulate: bool,
}

/// One register of a warp: a value per lane.
pub type Lanes = [u32; 32];

/// Fragment of 16x8 `f32` accumulators.
pub type Accumulators = [Lanes; 4];

/// Fragment of 16x8 packed `f16` accumulators: rows 0..8, rows 8..16; columns 2t and 2t + 1 in one lane.
pub type HalfAccumulators = [Lanes; 2];

/// Sums of [`multiply_panels`] as a GPU truncates them.
///
/// # Panics
/// As [`multiply_panels`], and if a type is not an 8-bit type.
fn multiply_truncated<const W: usize, F: Fragment>(
    rule: Rule,
    mode: Mode,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    match rule.types {
        (Operand::E4m3, Operand::E4m3) => truncated::panels::<E4m3, E4m3, F, W, 32>(mode, rule, a, b, d),
        (Operand::E4m3, Operand::E5m2) => truncated::panels::<E4m3, E5m2, F, W, 32>(mode, rule, a, b, d),
        (Operand::E5m2, Operand::E4m3) => truncated::panels::<E5m2, E4m3, F, W, 32>(mode, rule, a, b, d),
        (Operand::E5m2, Operand::E5m2) => truncated::panels::<E5m2, E5m2, F, W, 32>(mode, rule, a, b, d),
        (a, b) => panic!("no truncating sums of {a:?} and {b:?}"),
    }
}

/// Multiplies the 16-row fragments of A of `W` warps with 8-column panels of B, both as core matrices in
/// fragment order, for one step of 32 bytes of K; see [`tile`]. Sums are exact without a `model`.
///
/// # Panics
/// If the types cannot be multiplied with each other, or not with a model, or `d` has another length than
/// warps times panels.
pub(crate) fn multiply_panels<const W: usize, F: Fragment>(
    types: (Operand, Operand),
    model: Option<Truncation>,
    mode: Mode,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    if let Some(model) = model {
        return multiply_truncated::<W, F>(Rule { types, model }, mode, a, b, d);
    }
    match types {
        (Operand::E4m3, Operand::E4m3) => panels::<E4m3, E4m3, F, W, 32>(mode, a, b, d),
        (Operand::E4m3, Operand::E5m2) => panels::<E4m3, E5m2, F, W, 32>(mode, a, b, d),
        (Operand::E5m2, Operand::E4m3) => panels::<E5m2, E4m3, F, W, 32>(mode, a, b, d),
        (Operand::E5m2, Operand::E5m2) => panels::<E5m2, E5m2, F, W, 32>(mode, a, b, d),
        (Operand::F16, Operand::F16) => panels::<F16, F16, F, W, 16>(mode, a, b, d),
        (Operand::Bf16, Operand::Bf16) => panels::<Bf16, Bf16, F, W, 16>(mode, a, b, d),
        (Operand::Tf32, Operand::Tf32) => panels::<Tf32, Tf32, F, W, 8>(mode, a, b, d),
        (a, b) => panic!("tensor cores do not multiply {a:?} and {b:?}"),
    }
}

/// The core matrices that registers hold.
#[inline(always)]
fn cores<const R: usize>(registers: &[Lanes; R]) -> [Core; R] {
    let mut cores = [[0; 128]; R];
    for (core, register) in cores.iter_mut().zip(registers) {
        *core = core_of(register);
    }
    cores
}

/// The mode of `mma.sync`.
const ADD: Mode = Mode { negate: false, accumulate: true };

/// One warp's `mma` with 32 bytes of K.
#[inline]
fn full<F: Fragment + Copy>(
    types: (Operand, Operand),
    model: Option<Truncation>,
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &F,
) -> F {
    let mut d = [*c];
    multiply_panels::<1, F>(types, model, ADD, &cores(a), &cores(b), &mut d);
    d[0]
}

/// One warp's `mma` with 16 bytes of K.
#[inline]
fn half<F: Fragment + Copy>(types: (Operand, Operand), a: &[Lanes; 2], b: &[Lanes; 1], c: &F) -> F {
    let (a, b) = (&cores(a), &cores(b));
    let mut d = [*c];
    match types {
        (Operand::E4m3, Operand::E4m3) => panels::<E4m3, E4m3, F, 1, 16>(ADD, a, b, &mut d),
        (Operand::E4m3, Operand::E5m2) => panels::<E4m3, E5m2, F, 1, 16>(ADD, a, b, &mut d),
        (Operand::E5m2, Operand::E4m3) => panels::<E5m2, E4m3, F, 1, 16>(ADD, a, b, &mut d),
        (Operand::E5m2, Operand::E5m2) => panels::<E5m2, E5m2, F, 1, 16>(ADD, a, b, &mut d),
        (Operand::F16, Operand::F16) => panels::<F16, F16, F, 1, 8>(ADD, a, b, &mut d),
        (Operand::Bf16, Operand::Bf16) => panels::<Bf16, Bf16, F, 1, 8>(ADD, a, b, &mut d),
        (Operand::Tf32, Operand::Tf32) => panels::<Tf32, Tf32, F, 1, 4>(ADD, a, b, &mut d),
        (a, b) => panic!("tensor cores do not multiply {a:?} and {b:?}"),
    }
    d[0]
}

/// `mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32`.
pub fn m16n8k32_e4m3(a: &[Lanes; 4], b: &[Lanes; 2], c: &Accumulators) -> Accumulators {
    full((Operand::E4m3, Operand::E4m3), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k32.row.col.f32.{e4m3,e5m2}.{e4m3,e5m2}.f32`.
///
/// # Panics
/// If a type is not an 8-bit type.
pub fn m16n8k32(
    a_type: Operand,
    b_type: Operand,
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &Accumulators,
) -> Accumulators {
    full((a_type, b_type), None, a, b, c)
}

/// [`m16n8k32`] with the sums of a model.
///
/// # Panics
/// If a type is not an 8-bit type.
pub fn m16n8k32_truncated(
    model: Truncation,
    types: (Operand, Operand),
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &Accumulators,
) -> Accumulators {
    full(types, Some(model), a, b, c)
}

/// `mma.sync.aligned.m16n8k32.row.col.f16.{e4m3,e5m2}.{e4m3,e5m2}.f16`.
///
/// # Panics
/// If a type is not an 8-bit type.
pub fn m16n8k32_f16(
    a_type: Operand,
    b_type: Operand,
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &HalfAccumulators,
) -> HalfAccumulators {
    full((a_type, b_type), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.{e4m3,e5m2}.{e4m3,e5m2}.f32`.
///
/// # Panics
/// If a type is not an 8-bit type.
pub fn m16n8k16_fp8(
    a_type: Operand,
    b_type: Operand,
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &Accumulators,
) -> Accumulators {
    half((a_type, b_type), a, b, c)
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`.
pub fn m16n8k16_f16(a: &[Lanes; 4], b: &[Lanes; 2], c: &Accumulators) -> Accumulators {
    full((Operand::F16, Operand::F16), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`.
pub fn m16n8k16_bf16(a: &[Lanes; 4], b: &[Lanes; 2], c: &Accumulators) -> Accumulators {
    full((Operand::Bf16, Operand::Bf16), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16`.
pub fn m16n8k16_f16_f16(a: &[Lanes; 4], b: &[Lanes; 2], c: &HalfAccumulators) -> HalfAccumulators {
    full((Operand::F16, Operand::F16), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32`.
pub fn m16n8k8_f16(a: &[Lanes; 2], b: &[Lanes; 1], c: &Accumulators) -> Accumulators {
    half((Operand::F16, Operand::F16), a, b, c)
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32`.
pub fn m16n8k8_bf16(a: &[Lanes; 2], b: &[Lanes; 1], c: &Accumulators) -> Accumulators {
    half((Operand::Bf16, Operand::Bf16), a, b, c)
}

/// `mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16`.
pub fn m16n8k8_f16_f16(a: &[Lanes; 2], b: &[Lanes; 1], c: &HalfAccumulators) -> HalfAccumulators {
    half((Operand::F16, Operand::F16), a, b, c)
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32`.
pub fn m16n8k8_tf32(a: &[Lanes; 4], b: &[Lanes; 2], c: &Accumulators) -> Accumulators {
    full((Operand::Tf32, Operand::Tf32), None, a, b, c)
}

/// `mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32`.
pub fn m16n8k4_tf32(a: &[Lanes; 2], b: &[Lanes; 1], c: &Accumulators) -> Accumulators {
    half((Operand::Tf32, Operand::Tf32), a, b, c)
}
