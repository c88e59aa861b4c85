//! `f64` arithmetic in the directed rounding modes, against the errors that fused multiply-adds give exactly.

use proptest::prelude::*;
use ptx_sim::formats::{Rounding, add_f64, div_f64, fma_f64, mul_f64, sqrt_f64};

/// The neighbours of the nearest result, by the sign of what is missing from it.
fn bracket(nearest: f64, missing: f64) -> [f64; 3] {
    let (down, up) = match missing {
        m if m > 0.0 => (nearest, nearest.next_up()),
        m if m < 0.0 => (nearest.next_down(), nearest),
        _ => (nearest, nearest),
    };
    [if nearest > 0.0 || missing > 0.0 && nearest == 0.0 { down } else { up }, down, up]
}

const MODES: [Rounding; 3] = [Rounding::Rz, Rounding::Rm, Rounding::Rp];

/// Numbers far from overflow and underflow, so that errors are exact.
fn number() -> impl Strategy<Value = f64> {
    (any::<u64>(), -200i32..200).prop_map(|(bits, exponent)| {
        f64::from_bits(bits & 0x800f_ffff_ffff_ffff | ((exponent + 1023) as u64) << 52)
    })
}

proptest! {
    #[test]
    fn sums(a in number(), b in number(), near in any::<bool>(), scale in -60i32..60) {
        let b = if near { -a * (1.0 + f64::from(scale) * f64::EPSILON) } else { b * 2f64.powi(scale) };
        let sum = a + b;
        let back = sum - a;
        let missing = (a - (sum - back)) + (b - back);
        let got = MODES.map(|mode| add_f64(a, b, mode));
        prop_assert_eq!(got, if sum == 0.0 { [0.0; 3] } else { bracket(sum, missing) });
    }

    #[test]
    fn products(a in number(), b in number()) {
        let got = MODES.map(|mode| mul_f64(a, b, mode));
        prop_assert_eq!(got, bracket(a * b, a.mul_add(b, -(a * b))));
    }

    #[test]
    fn quotients(a in number(), b in number()) {
        let quotient = a / b;
        // What is missing has the sign of the remainder over the divisor.
        let missing = (-quotient).mul_add(b, a) * b.signum();
        prop_assert_eq!(MODES.map(|mode| div_f64(a, b, mode)), bracket(quotient, missing));
    }

    #[test]
    fn roots(a in number()) {
        let root = a.abs().sqrt();
        let got = MODES.map(|mode| sqrt_f64(a.abs(), mode));
        prop_assert_eq!(got, bracket(root, (-root).mul_add(root, a.abs())));
    }

    /// A fused multiply-add is between its neighbours, and they are apart only if it is inexact.
    #[test]
    fn fused(a in number(), b in number(), c in number(), scale in -120i32..120) {
        let c = c * 2f64.powi(scale);
        let [zero, down, up] = MODES.map(|mode| fma_f64(a, b, c, mode));
        let nearest = fma_f64(a, b, c, Rounding::Rn);
        prop_assert!(down <= nearest && nearest <= up);
        prop_assert!(down == up || down.next_up() == up);
        prop_assert_eq!(zero, if nearest > 0.0 { down } else { up });
        // Of the product alone, and of the addend beside a product of 1.
        prop_assert_eq!(MODES.map(|mode| fma_f64(a, b, 0.0, mode)), MODES.map(|mode| mul_f64(a, b, mode)));
        prop_assert_eq!(MODES.map(|mode| fma_f64(a, 1.0, c, mode)), MODES.map(|mode| add_f64(a, c, mode)));
    }
}

#[test]
fn edges() {
    let tiny = f64::from_bits(1);
    assert_eq!(add_f64(1.0, tiny, Rounding::Rp), 1.0f64.next_up());
    assert_eq!(add_f64(1.0, -tiny, Rounding::Rz), 1.0f64.next_down());
    assert_eq!(add_f64(1.0, -tiny, Rounding::Rp), 1.0);
    assert_eq!(add_f64(f64::MAX, f64::MAX, Rounding::Rz), f64::MAX);
    assert_eq!(add_f64(f64::MAX, f64::MAX, Rounding::Rp), f64::INFINITY);
    assert_eq!(add_f64(-f64::MAX, -f64::MAX, Rounding::Rp), -f64::MAX);
    assert_eq!(mul_f64(tiny, 0.5, Rounding::Rz), 0.0);
    assert_eq!(mul_f64(tiny, 0.5, Rounding::Rp), tiny);
    assert_eq!(mul_f64(-tiny, 0.5, Rounding::Rm), -tiny);
    assert!(mul_f64(-tiny, 0.5, Rounding::Rz).is_sign_negative());
    assert_eq!(div_f64(tiny, 2.0, Rounding::Rp), tiny);
    assert_eq!(div_f64(1.0, 0.0, Rounding::Rz), f64::INFINITY);
    assert!(add_f64(1.0, -1.0, Rounding::Rm).is_sign_negative());
    assert!(add_f64(1.0, -1.0, Rounding::Rz).is_sign_positive());
    assert!(add_f64(-0.0, -0.0, Rounding::Rp).is_sign_negative());
    assert!(add_f64(f64::INFINITY, f64::NEG_INFINITY, Rounding::Rz).is_nan());
    assert!(sqrt_f64(-1.0, Rounding::Rz).is_nan());
    assert_eq!(sqrt_f64(tiny, Rounding::Rz), 2f64.powi(-537));
    assert_eq!(sqrt_f64(0.0, Rounding::Rp), 0.0);
}
