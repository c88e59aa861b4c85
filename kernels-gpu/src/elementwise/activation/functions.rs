//! The activation functions, in f32.
//!
//! | code | name | value |
//! |---|---|---|
//! | 0 | silu | `up * gate / (1 + e^-gate)` |
//! | 1 | gelu | `up * gate * Phi(gate)`, Phi the normal distribution: the exact gelu, by erf |
//! | 2 | gelu-tanh | `up * gate / (1 + e^-2u)`, `u = sqrt(2 / pi) * (gate + 0.044715 * gate^3)`: `0.5 * gate * (1 + tanh(u))` |
//! | 3 | swigluoai | `(up + 1) * gate / (1 + e^(-1.702 gate))` |
//! | 4 | relu2 | `up * max(gate, 0)` |
//!
//! Before that gate and up are brought within a limit: gate to `min(gate, limit)`, up to `-limit .. limit`.
//! An infinite one changes nothing.
//!
//! # Error
//! Relative, against the definition; the test of the operation holds the functions to it:
//!
//! | function | bound | where from |
//! |---|---|---|
//! | silu | `2^-20 + 2^-23 * |gate|` | `e^-y` is `2^t`, `t = RN(-y * log2(e))`: the error of t grows with y |
//! | gelu-tanh, swigluoai | `2^-20 + 2^-22 * |y|` | y is rounded itself: 2u, and 1.702 g |
//! | gelu | `2^-20` | the tail is computed as such, not as 1 - erf, and `e^x` as `2^t * (1 + d)`, d being what t lost |
//!
//! After rounding to e4m3, which keeps 4 bits, a value is off the exactly rounded one only if it lies within
//! these bounds of a midpoint. The logistic function is six instructions a value; they are what the end of a
//! gated GEMM's item consists of.
//!
//! Where the true value's magnitude is below `2^-120`, 0 may be returned.
//! NaN in gate or up gives NaN; so does minus infinity in gate, infinity times 0, as in the formulas.

use crate::abi::ActivationFunction;
use cuda_std::math::{ex2, fma, rcp};

/// `silu(gate) * up`.
pub const SILU: u32 = ActivationFunction::Silu as u32;
/// `gelu(gate) * up`.
pub const GELU: u32 = ActivationFunction::Gelu as u32;
/// `gelu_tanh(gate) * up`.
pub const GELU_TANH: u32 = ActivationFunction::GeluTanh as u32;
/// `relu(gate) * up`.
pub const RELU2: u32 = ActivationFunction::Relu2 as u32;
/// As gpt-oss has it; every other code is this too.
#[cfg(target_feature = "sm_90a")]
pub const SWIGLUOAI: u32 = ActivationFunction::SwigluOai as u32;

/// log2(e), rounded to f32, and the rest.
const LOG2_E: f32 = core::f32::consts::LOG2_E;
const LOG2_E_REST: f32 = 1.925_963_e-8;

/// sqrt(2 / pi), doubled.
const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;

/// gpt-oss: the slope of the sigmoid.
const SWIGLUOAI_ALPHA: f32 = 1.702;

/// The activation numbered `code` of one, four or eight pairs of gate and up, within `limit`.
#[inline(always)]
pub fn activate<V: Values>(code: u32, limit: f32, gate: &V, up: &V) -> V {
    let zip = #[inline(always)]
    |f: fn(f32, f32) -> f32| {
        gate.zip(
            up,
            #[inline(always)]
            |gate, up| {
                // Comparisons and not `min`, which would drop NaN.
                let gate = if gate > limit { limit } else { gate };
                let up = if up > limit { limit } else { up };
                f(gate, if up < -limit { -limit } else { up })
            },
        )
    };
    match code {
        SILU => zip(|gate, up| sigmoid_weighted(gate, gate) * up),
        GELU => zip(|gate, up| gelu(gate) * up),
        GELU_TANH => zip(|gate, up| {
            let cubic = fma(0.044715 * gate, gate * gate, gate);
            sigmoid_weighted(gate, TWO_SQRT_2_OVER_PI * cubic) * up
        }),
        RELU2 => zip(|gate, up| if gate < 0.0 { 0.0 } else { gate } * up),
        _ => zip(|gate, up| (up + 1.0) * sigmoid_weighted(gate, SWIGLUOAI_ALPHA * gate)),
    }
}

/// Values that are activated together.
pub trait Values {
    /// `f(gate, up)` of each pair.
    fn zip(&self, up: &Self, f: impl Fn(f32, f32) -> f32) -> Self;
}

impl Values for [f32; 1] {
    #[inline(always)]
    fn zip(&self, up: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        [f(self[0], up[0])]
    }
}

// Written out: LLVM leaves a loop over a body of this size rolled, and its arrays in local memory.
impl Values for [f32; 4] {
    #[inline(always)]
    fn zip(&self, up: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let at = |i: usize| f(self[i], up[i]);
        [at(0), at(1), at(2), at(3)]
    }
}

impl Values for [f32; 8] {
    #[inline(always)]
    fn zip(&self, up: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let at = |i: usize| f(self[i], up[i]);
        [at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)]
    }
}

/// `x / (1 + e^-y)`: x times the logistic function of y.
#[inline(always)]
pub fn sigmoid_weighted(x: f32, y: f32) -> f32 {
    // Infinite where e^-y is past all f32: the reciprocal is 0 then, as it is from 2^126 on.
    x * rcp(1.0 + ex2(y * -LOG2_E))
}

/// `e^x` to 4 units in the last place; 0 below -104, infinite above 89. NaN becomes finite: the caller
/// multiplies by something that is NaN as well.
#[inline(always)]
fn exp(x: f32) -> f32 {
    #[expect(clippy::manual_clamp, reason = "two instructions; `clamp` keeps NaN and takes four")]
    let x = x.max(-104.0).min(89.0);
    let t = x * LOG2_E;
    let lost = fma(x, LOG2_E_REST, fma(x, LOG2_E, -t));
    ex2(t) * fma(lost, core::f32::consts::LN_2, 1.0)
}

/// `x * Phi(x)`.
///
/// ```text
///   a = |x|     Phi(-a) = e^(-a^2 / 2) * M(a)        M: Mills' ratio over sqrt(2 pi), falling from 1/2 as 1/a
///   t = 1 / (1 + 0.35 a)     M(a) = t * P(t)         P: degree 8, fitted for least relative error, 3.2e-8 for a in 0..14
///   x < 0: x * Phi(-a)       x > 0: x * (1 - Phi(-a))
/// ```
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let a = x.abs();
    let t = rcp(fma(0.35, a, 1.0));
    let mut p = -2.914_607_3e-2;
    p = fma(p, t, 1.439_724e-1);
    p = fma(p, t, -2.557_156_7e-1);
    p = fma(p, t, 1.591_757_7e-1);
    p = fma(p, t, -2.311_092_2e-2);
    p = fma(p, t, 1.055_084_5e-1);
    p = fma(p, t, 1.198_327_5e-1);
    p = fma(p, t, 1.398_618_8e-1);
    p = fma(p, t, 1.396_214e-1);
    // a^2 / 2 and what it lost; beyond 14 the tail is 0 in f32.
    let bounded = a.min(14.0);
    let square = bounded * bounded;
    let lost = fma(bounded, bounded, -square);
    let tail = exp(-0.5 * square) * fma(-0.5, lost, 1.0) * (t * p);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}
