//! The `.approx` functions against the error bounds and the tables of special values of the PTX ISA.

use proptest::prelude::*;
use ptx_sim::approx;

const INFINITY: f32 = f32::INFINITY;
/// A subnormal.
const TINY: f32 = 1e-40;

fn same(actual: f32, expected: f32) -> bool {
    if expected.is_nan() { actual.to_bits() == 0x7fff_ffff } else { actual.to_bits() == expected.to_bits() }
}

/// Columns of the ISA's tables: -inf, -subnormal, -0, +0, +subnormal, +inf, NaN.
const INPUTS: [f32; 7] = [-INFINITY, -TINY, -0.0, 0.0, TINY, INFINITY, f32::NAN];

fn check_table(name: &str, function: impl Fn(f32) -> f32, expected: [f32; 7]) {
    for (x, expected) in INPUTS.into_iter().zip(expected) {
        assert!(same(function(x), expected), "{name}({x:e}) is {:e}, not {expected:e}", function(x));
    }
}

#[test]
fn tables_with_ftz() {
    let nan = f32::NAN;
    check_table("ex2", |x| approx::ex2(x, true), [0.0, 1.0, 1.0, 1.0, 1.0, INFINITY, nan]);
    check_table(
        "lg2",
        |x| approx::lg2(x, true),
        [nan, -INFINITY, -INFINITY, -INFINITY, -INFINITY, INFINITY, nan],
    );
    check_table("rcp", |x| approx::rcp(x, true), [-0.0, -INFINITY, -INFINITY, INFINITY, INFINITY, 0.0, nan]);
    check_table("sqrt", |x| approx::sqrt(x, true), [nan, -0.0, -0.0, 0.0, 0.0, INFINITY, nan]);
    check_table(
        "rsqrt",
        |x| approx::rsqrt(x, true),
        [nan, -INFINITY, -INFINITY, INFINITY, INFINITY, 0.0, nan],
    );
    check_table("sin", |x| approx::sin(x, true), [nan, -0.0, -0.0, 0.0, 0.0, nan, nan]);
    check_table("cos", |x| approx::cos(x, true), [nan, 1.0, 1.0, 1.0, 1.0, nan, nan]);
}

#[test]
fn tables_with_subnormals() {
    let nan = f32::NAN;
    check_table("ex2", |x| approx::ex2(x, false), [0.0, 1.0, 1.0, 1.0, 1.0, INFINITY, nan]);
    let lg2_tiny = f64::from(TINY).log2() as f32;
    check_table("lg2", |x| approx::lg2(x, false), [nan, nan, -INFINITY, -INFINITY, lg2_tiny, INFINITY, nan]);
    check_table("rcp", |x| approx::rcp(x, false), [-0.0, -INFINITY, -INFINITY, INFINITY, INFINITY, 0.0, nan]);
    check_table("sqrt", |x| approx::sqrt(x, false), [nan, nan, -0.0, 0.0, TINY.sqrt(), INFINITY, nan]);
    let rsqrt_tiny = (1.0 / f64::from(TINY).sqrt()) as f32;
    check_table("rsqrt", |x| approx::rsqrt(x, false), [nan, nan, -INFINITY, INFINITY, rsqrt_tiny, 0.0, nan]);
    check_table("sin", |x| approx::sin(x, false), [nan, -TINY, -0.0, 0.0, TINY, nan, nan]);
    check_table("tanh", approx::tanh, [-1.0, -TINY, -0.0, 0.0, TINY, 1.0, nan]);
}

#[test]
fn results_are_flushed_too() {
    assert_eq!(approx::ex2(-127.5, true).to_bits(), 0);
    assert_eq!(approx::ex2(-127.0, false), 2f32.powi(-127));
    assert_eq!(approx::ex2(-149.0, false), f32::from_bits(1));
    assert_eq!(approx::ex2(-151.0, false), 0.0);
    assert_eq!(approx::ex2(128.0, false), INFINITY);
    assert_eq!(approx::rcp(f32::MAX, true).to_bits(), 0);
}

#[test]
fn powers_of_two_are_exact() {
    for e in -149..128 {
        let x = approx::ex2(e as f32, false);
        assert_eq!(x, 2f64.powi(e) as f32, "2^{e}");
        assert_eq!(approx::lg2(x, false), e as f32);
    }
}

#[test]
fn division_by_very_large_numbers() {
    assert_eq!(approx::div(1.0, 2f32.powi(127), false).to_bits(), 0);
    assert!(approx::div(INFINITY, 2f32.powi(127), false).is_nan());
    assert_eq!(approx::div(1.0, 2f32.powi(126), false), 2f32.powi(-126));
    assert_eq!(approx::div_full(1.0, 2f32.powi(127), false), 2f32.powi(-127));
    assert_eq!(approx::div_full(1.0, 0.0, true), INFINITY);
}

#[test]
fn f64_approximations_use_the_upper_word() {
    let third = approx::rcp_f64(3.0);
    assert_eq!(third.to_bits() & 0xffff_ffff, 0);
    assert!((third - 1.0 / 3.0).abs() < 1e-6);
    assert_eq!(approx::rcp_f64(-0.0), f64::NEG_INFINITY);
    assert!((approx::rsqrt_ftz_f64(2.0) - 0.5f64.sqrt()).abs() < 1e-6);
    assert_eq!(approx::rsqrt_ftz_f64(f64::from_bits(1 << 40)), f64::INFINITY);
    assert_eq!(approx::rsqrt_f64(2.0), 1.0 / 2f64.sqrt());
}

fn within(actual: f32, exact: f64, relative: f64, absolute: f64) -> bool {
    (f64::from(actual) - exact).abs() <= exact.abs() * relative + absolute
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn errors_stay_within_the_bounds_of_the_isa(bits in 0x0080_0000u32..0x7f80_0000, x in -126f32..127.9) {
        let half_ulp = 2f64.powi(-24) * 1.001;
        prop_assert!(within(approx::ex2(x, false), f64::from(x).exp2(), half_ulp, 0.0));
        let y = f32::from_bits(bits);
        let wide = f64::from(y);
        prop_assert!(within(approx::lg2(y, false), wide.log2(), half_ulp, 1e-14));
        prop_assert!(within(approx::rcp(y, false), 1.0 / wide, half_ulp, 1e-45));
        prop_assert!(within(approx::sqrt(y, false), wide.sqrt(), half_ulp, 0.0));
        prop_assert!(within(approx::rsqrt(y, false), 1.0 / wide.sqrt(), half_ulp, 0.0));
        prop_assert!(within(approx::sin(x, false), f64::from(x).sin(), half_ulp, 0.0));
        prop_assert!(within(approx::cos(x, false), f64::from(x).cos(), half_ulp, 0.0));
        prop_assert!(within(approx::tanh(x), f64::from(x).tanh(), half_ulp, 0.0));
        // Near 1, where the logarithm is small.
        let near = 1.0 + x / 1e5;
        prop_assert!(within(approx::lg2(near, false), f64::from(near).log2(), half_ulp, 0.0));
    }
}
