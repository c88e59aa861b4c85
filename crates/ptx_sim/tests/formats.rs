//! Conversions against an oracle that knows only the definition of each format.
//!
//! The oracle lists the values of a format in ascending order (as `f64`, or as exact integers times a power
//! of two) and finds the neighbours of the number to convert by search; rounding is then a comparison of
//! distances. It shares no code and no algorithm with the conversions.

use proptest::prelude::*;
use ptx_sim::formats::*;

/// Non-negative finite values of a format with their encodings, ascending, computed from the definition.
struct Oracle {
    values: Vec<f64>,
    infinity: Option<u32>,
    nan: u32,
    sign: u32,
}

impl Oracle {
    fn new(
        exponent_bits: u32,
        mantissa_bits: u32,
        finite_codes: u32,
        infinity: Option<u32>,
        nan: u32,
    ) -> Oracle {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let values = (0..finite_codes)
            .map(|code| {
                let exponent = (code >> mantissa_bits) as i32;
                let fraction =
                    f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
                if exponent == 0 {
                    fraction * 2f64.powi(1 - bias)
                } else {
                    (1.0 + fraction) * 2f64.powi(exponent - bias)
                }
            })
            .collect();
        Oracle { values, infinity, nan, sign: 1 << (exponent_bits + mantissa_bits) }
    }

    fn e4m3() -> Oracle {
        Oracle::new(4, 3, 127, None, 0x7f)
    }

    fn e5m2() -> Oracle {
        Oracle::new(5, 2, 124, Some(0x7c), 0x7f)
    }

    fn f16() -> Oracle {
        Oracle::new(5, 10, 0x7c00, Some(0x7c00), 0x7fff)
    }

    fn bf16() -> Oracle {
        Oracle::new(8, 7, 0x7f80, Some(0x7f80), 0x7fff)
    }

    fn tf32() -> Oracle {
        Oracle::new(8, 10, 0xff << 10, Some(0xff << 10), 0x3ffff)
    }

    /// Code of `x` rounded as asked.
    fn convert(&self, x: f64, rounding: Rounding, clamp: Clamp) -> u32 {
        if x.is_nan() {
            return self.nan;
        }
        if clamp.relu && x.is_sign_negative() {
            return 0;
        }
        let sign = if x.is_sign_negative() { self.sign } else { 0 };
        let magnitude = x.abs();
        let last = self.values.len() - 1;
        let max = self.values[last];
        if magnitude.is_infinite() {
            return sign | if clamp.satfinite { last as u32 } else { self.infinity.unwrap() };
        }
        let below = self.values.partition_point(|v| *v <= magnitude) - 1;
        if self.values[below] == magnitude {
            return sign | below as u32;
        }
        // The number one step over the largest is where the next binade would start.
        let above = if below == last { 2.0 * max - self.values[last - 1] } else { self.values[below + 1] };
        let (down, up) = (magnitude - self.values[below], above - magnitude);
        let take_upper = match rounding {
            Rounding::Rz => false,
            Rounding::Rm => sign != 0,
            Rounding::Rp => sign == 0,
            Rounding::Rn => up < down || (up == down && below % 2 == 1),
            Rounding::Rna => up <= down,
        };
        if !take_upper {
            return sign | below as u32;
        }
        if below < last {
            return sign | (below + 1) as u32;
        }
        sign | if clamp.satfinite { last as u32 } else { self.infinity.unwrap() }
    }

    /// Every value, every midpoint, and their neighbours among the `f32`; both signs.
    fn probes(&self) -> Vec<u32> {
        let mut probes = vec![];
        let mut push = |x: f64| {
            let bits = (x as f32).to_bits();
            for bits in bits.saturating_sub(2)..=bits + 2 {
                if bits <= 0x7f80_0000 {
                    probes.extend([bits, bits | 1 << 31]);
                }
            }
        };
        for pair in self.values.windows(2) {
            push(pair[0]);
            push((pair[0] + pair[1]) / 2.0);
        }
        let last = self.values.len() - 1;
        push(self.values[last]);
        push(1.5 * self.values[last] - 0.5 * self.values[last - 1]);
        push(2.0 * self.values[last] - self.values[last - 1]);
        probes.extend([0, 1, 1 << 31, 0x7f7f_ffff, 0xff7f_ffff, 0x7f80_0000, 0xff80_0000]);
        probes.extend([0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 0xffc0_1234]);
        probes
    }
}

const ROUNDINGS: [Rounding; 4] = [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp];
const CLAMPS: [Clamp; 4] = [
    Clamp { relu: false, satfinite: false },
    Clamp { relu: true, satfinite: false },
    Clamp { relu: false, satfinite: true },
    Clamp { relu: true, satfinite: true },
];

fn f32_value(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

fn same_f32(actual: u32, expected: f64) -> bool {
    let actual = f32::from_bits(actual);
    if expected.is_nan() { actual.is_nan() } else { actual.to_bits() == (expected as f32).to_bits() }
}

fn check_fp8(bits: u32, e4m3: &Oracle, e5m2: &Oracle) {
    let x = f32_value(bits);
    for relu in [false, true] {
        let clamp = Clamp { relu, satfinite: true };
        let a = e4m3.convert(x, Rounding::Rn, clamp) as u16;
        let b = e5m2.convert(x, Rounding::Rn, clamp) as u16;
        assert_eq!(f32x2_to_e4m3x2(bits, 0x3f80_0000, relu), a << 8 | 0x38, "e4m3 of {bits:#x}");
        assert_eq!(f32x2_to_e5m2x2(0x3f80_0000, bits, relu), 0x3c00 | b, "e5m2 of {bits:#x}");
        if !relu {
            assert_eq!(u16::from(f32_to_e4m3_satfinite(bits)), a);
            assert_eq!(u16::from(f32_to_e5m2_satfinite(bits)), b);
        }
    }
}

fn check_16bit(bits: u32, f16: &Oracle, bf16: &Oracle) {
    let x = f32_value(bits);
    for rounding in ROUNDINGS {
        for clamp in CLAMPS {
            let a = f16.convert(x, rounding, clamp);
            let b = bf16.convert(x, rounding, clamp);
            assert_eq!(u32::from(f32_to_f16(bits, rounding, clamp)), a, "f16 {rounding:?} of {bits:#x}");
            assert_eq!(u32::from(f32_to_bf16(bits, rounding, clamp)), b, "bf16 {rounding:?} of {bits:#x}");
            assert_eq!(f32_to_f16x2(bits, 0x3f80_0000, rounding, clamp), a << 16 | 0x3c00);
            assert_eq!(f32_to_bf16x2(0x3f80_0000, bits, rounding, clamp), 0x3f80_0000 | b);
        }
    }
    assert_eq!(f32_to_f16_rn(bits), f32_to_f16(bits, Rounding::Rn, CLAMPS[0]));
    assert_eq!(f32_to_bf16_rn(bits), f32_to_bf16(bits, Rounding::Rn, CLAMPS[0]));
}

fn check_tf32(bits: u32, tf32: &Oracle) {
    let x = f32_value(bits);
    for rounding in [Rounding::Rn, Rounding::Rz, Rounding::Rna] {
        for clamp in CLAMPS {
            let code = tf32.convert(x, rounding, clamp);
            let expected = if code == tf32.nan { 0x7fff_ffff } else { code << 13 };
            assert_eq!(f32_to_tf32(bits, rounding, clamp), expected, "tf32 {rounding:?} of {bits:#x}");
        }
    }
}

#[test]
fn fp8_values_are_the_definition() {
    for (oracle, to_f32, to_f16) in [
        (Oracle::e4m3(), e4m3_to_f32 as fn(u8) -> u32, e4m3_to_f16 as fn(u8) -> u16),
        (Oracle::e5m2(), e5m2_to_f32, e5m2_to_f16),
    ] {
        for code in 0..=255u8 {
            let magnitude = u32::from(code & 0x7f);
            let sign = if code >= 0x80 { -1.0 } else { 1.0 };
            let expected = match oracle.values.get(magnitude as usize) {
                Some(value) => sign * value,
                None if Some(magnitude) == oracle.infinity => sign * f64::INFINITY,
                None => f64::NAN,
            };
            assert!(same_f32(to_f32(code), expected), "{code:#x}");
            let widened = f16_to_f32(to_f16(code));
            assert!(same_f32(widened, expected), "{code:#x} through f16");
            if expected.is_nan() {
                assert_eq!((to_f32(code), to_f16(code)), (0x7fff_ffff, 0x7fff));
            }
        }
    }
    assert_eq!(E4M3_TO_F32[0x7e], 448.0);
    assert_eq!(E5M2_TO_F32[0x01], 2f32.powi(-16));
}

#[test]
fn pairs_keep_their_order() {
    for code in 0..=255u8 {
        let pair = u16::from(code) << 8 | 0x38;
        assert_eq!(e4m3x2_to_f16x2(pair, false), u32::from(e4m3_to_f16(code)) << 16 | 0x3c00);
        let pair = 0x3c00 | u16::from(code);
        assert_eq!(e5m2x2_to_f16x2(pair, false), 0x3c00_0000 | u32::from(e5m2_to_f16(code)));
        let relu = e4m3x2_to_f16x2(u16::from(code), true);
        let expected = match code {
            0x7f | 0xff => 0x7fff,
            0x80.. => 0,
            _ => u32::from(e4m3_to_f16(code)),
        };
        assert_eq!(relu, expected, "{code:#x}");
    }
}

#[test]
fn f16_and_bf16_values_are_the_definition() {
    let (f16, bf16) = (Oracle::f16(), Oracle::bf16());
    for code in 0..=0xffffu16 {
        let magnitude = usize::from(code & 0x7fff);
        let sign = if code >> 15 == 1 { -1.0 } else { 1.0 };
        let value = |oracle: &Oracle| match oracle.values.get(magnitude) {
            Some(value) => sign * value,
            None if magnitude == oracle.values.len() => sign * f64::INFINITY,
            None => f64::NAN,
        };
        assert!(same_f32(f16_to_f32(code), value(&f16)), "{code:#x}");
        assert!(same_f32(bf16_to_f32(code), value(&bf16)), "{code:#x}");
    }
}

#[test]
fn f32_to_fp8_at_every_value_and_midpoint() {
    let (e4m3, e5m2) = (Oracle::e4m3(), Oracle::e5m2());
    for bits in e4m3.probes().into_iter().chain(e5m2.probes()) {
        check_fp8(bits, &e4m3, &e5m2);
    }
}

#[test]
fn f16_to_fp8_for_all_inputs() {
    let (e4m3, e5m2) = (Oracle::e4m3(), Oracle::e5m2());
    for half in 0..=0xffffu32 {
        let x = f32_value(f16_to_f32(half as u16));
        for relu in [false, true] {
            let clamp = Clamp { relu, satfinite: true };
            let a = e4m3.convert(x, Rounding::Rn, clamp) as u16;
            let b = e5m2.convert(x, Rounding::Rn, clamp) as u16;
            assert_eq!(f16x2_to_e4m3x2(half << 16 | 0x3c00, relu), a << 8 | 0x38, "{half:#x}");
            assert_eq!(f16x2_to_e5m2x2(0x3c00_0000 | half, relu), 0x3c00 | b, "{half:#x}");
        }
    }
}

#[test]
fn f32_to_16_bits_at_every_value_and_midpoint() {
    let (f16, bf16) = (Oracle::f16(), Oracle::bf16());
    for bits in f16.probes().into_iter().chain(bf16.probes()).step_by(3) {
        check_16bit(bits, &f16, &bf16);
    }
}

#[test]
fn f32_to_tf32_around_every_value() {
    let tf32 = Oracle::tf32();
    for bits in tf32.probes().into_iter().step_by(11) {
        check_tf32(bits, &tf32);
    }
    assert_eq!(tf32_to_f32(0x3f80_1fff), 0x3f80_0000);
}

#[test]
fn relu_and_satfinite_of_special_values() {
    let relu = Clamp { relu: true, satfinite: false };
    let satfinite = Clamp { relu: false, satfinite: true };
    let f16 = |x: f32, clamp| f32_to_f16(x.to_bits(), Rounding::Rn, clamp);
    assert_eq!(f16(-0.0, relu), 0);
    assert_eq!(f16(f32::NEG_INFINITY, relu), 0);
    assert_eq!(f16(f32::NAN, relu), 0x7fff);
    assert_eq!(f16(f32::INFINITY, relu), 0x7c00);
    assert_eq!(f16(f32::NEG_INFINITY, satfinite), 0xfbff);
    assert_eq!(f16(1e9, satfinite), 0x7bff);
    assert_eq!(f16(f32::NAN, satfinite), 0x7fff);
    assert_eq!(f32_to_e4m3_satfinite(f32::NEG_INFINITY.to_bits()), 0xfe);
    assert_eq!(f32_to_e4m3_satfinite(f32::NAN.to_bits()), 0x7f);
    assert_eq!(f32_to_e5m2_satfinite(f32::INFINITY.to_bits()), 0x7b);
}

proptest! {
    #[test]
    fn any_f32_to_fp8(bits: u32) {
        check_fp8(bits, &Oracle::e4m3(), &Oracle::e5m2());
    }

    #[test]
    fn any_f32_in_range_to_fp8(x in -600f32..600f32) {
        check_fp8(x.to_bits(), &Oracle::e4m3(), &Oracle::e5m2());
    }

    #[test]
    fn any_f64_to_16_bits_is_rounded_once(bits: u64, exponent in -30i32..18) {
        // A random mantissa at an exponent that f16 can hold, and one that sits next to a midpoint.
        let x = f64::from_bits(bits & 0xf_ffff_ffff_ffff | ((1023 + exponent) as u64) << 52);
        let near = f64::from_bits((x.to_bits() & !0x1ff_ffff_ffff) | (0x100_0000_0001 - (bits & 2)));
        let (f16, bf16) = (Oracle::f16(), Oracle::bf16());
        for x in [x, -x, near, -near] {
            for rounding in ROUNDINGS {
                let clamp = CLAMPS[0];
                prop_assert_eq!(u32::from(f64_to_f16(x.to_bits(), rounding)), f16.convert(x, rounding, clamp));
                prop_assert_eq!(u32::from(f64_to_bf16(x.to_bits(), rounding)), bf16.convert(x, rounding, clamp));
            }
        }
    }

    #[test]
    fn f64_to_f32_brackets_the_value(bits: u64) {
        let x = f64::from_bits(bits);
        prop_assume!(!x.is_nan());
        let value = |rounding| f64::from(f32::from_bits(f64_to_f32(bits, rounding)));
        let (down, up, zero, near) =
            (value(Rounding::Rm), value(Rounding::Rp), value(Rounding::Rz), value(Rounding::Rn));
        prop_assert!(down <= x && x <= up);
        prop_assert_eq!(zero, if x > 0.0 { down } else { up });
        prop_assert_eq!(near, f64::from(x as f32));
        if down != x {
            // Neighbours: nothing fits in between.
            prop_assert_eq!(f64::from((down as f32).next_up()), up);
        }
    }

    #[test]
    fn integers_to_floating_point(value: i64, unsigned: u64) {
        prop_assert_eq!(integer_to_f32(value.into(), Rounding::Rn), (value as f32).to_bits());
        prop_assert_eq!(integer_to_f64(value.into(), Rounding::Rn), (value as f64).to_bits());
        prop_assert_eq!(integer_to_f32(unsigned.into(), Rounding::Rn), (unsigned as f32).to_bits());
        prop_assert_eq!(integer_to_f64(unsigned.into(), Rounding::Rn), (unsigned as f64).to_bits());
        let down = f32::from_bits(integer_to_f32(value.into(), Rounding::Rm)) as i128;
        let up = f32::from_bits(integer_to_f32(value.into(), Rounding::Rp)) as i128;
        prop_assert!(down <= value.into() && i128::from(value) <= up);
        let zero = f32::from_bits(integer_to_f32(value.into(), Rounding::Rz)) as i128;
        prop_assert_eq!(zero, if value > 0 { down } else { up });
    }

    #[test]
    fn floating_point_to_integers(bits: u32, x in -300f32..300f32) {
        for x in [f32::from_bits(bits), x, x.round() + 0.5] {
            for (signed, width) in [(true, 8), (false, 8), (true, 16), (false, 16), (true, 32), (false, 32)] {
                let target = Integer { signed, bits: width };
                let rounded = |rounding| f32_to_integer(x, target, rounding) as i64 as i128;
                let clamp = |x: f32| (x as i128).clamp(target.min(), target.max());
                prop_assert_eq!(rounded(Rounding::Rz), clamp(x.trunc()));
                prop_assert_eq!(rounded(Rounding::Rm), clamp(x.floor()));
                prop_assert_eq!(rounded(Rounding::Rp), clamp(x.ceil()));
                prop_assert_eq!(rounded(Rounding::Rn), clamp(x.round_ties_even()));
            }
            let s64 = Integer { signed: true, bits: 64 };
            let u64 = Integer { signed: false, bits: 64 };
            if !x.is_nan() {
                prop_assert_eq!(f32_to_integer(x, s64, Rounding::Rz) as i64, x as i64);
                prop_assert_eq!(f32_to_integer(x, u64, Rounding::Rz), x as u64);
            }
        }
    }

    #[test]
    fn directed_arithmetic_brackets_the_exact_result(a: u32, b: u32, c: u32, near in 0u32..64) {
        // Exponents close to each other make the interesting cases; the raw bits make the extreme ones.
        let squeeze = |bits: u32| f32::from_bits(bits & 0x807f_ffff | (100 + (bits >> 24) % near.max(1)) << 23);
        for (a, b, c) in [
            (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)),
            (squeeze(a), squeeze(b), squeeze(c)),
        ] {
            if !(a.is_finite() && b.is_finite() && c.is_finite()) {
                continue;
            }
            let nearest = a.mul_add(b, c);
            let down = fma_f32(a, b, c, Rounding::Rm);
            let up = fma_f32(a, b, c, Rounding::Rp);
            let zero = fma_f32(a, b, c, Rounding::Rz);
            prop_assert!(down <= nearest && nearest <= up, "{a:e} {b:e} {c:e}: {down:e} {nearest:e} {up:e}");
            prop_assert!(down == up || down.next_up() == up);
            prop_assert_eq!(zero, if nearest >= 0.0 && down >= 0.0 { down } else { up });
            let product = mul_f32(a, b, Rounding::Rm);
            prop_assert!(f64::from(product) <= f64::from(a) * f64::from(b));
            prop_assert!(f64::from(product.next_up()) > f64::from(a) * f64::from(b));
            if a >= 0.0 {
                let (down, up) = (sqrt_f32(a, Rounding::Rm), sqrt_f32(a, Rounding::Rp));
                prop_assert!(f64::from(down) * f64::from(down) <= f64::from(a));
                prop_assert!(f64::from(up) * f64::from(up) >= f64::from(a));
                prop_assert!(down == up || down.next_up() == up);
            }
        }
    }
}

#[test]
fn directed_sums_near_a_tie() {
    // 1 + 2^-60 is not representable: up is the next number, down is 1.
    let tiny = 2f32.powi(-60);
    assert_eq!(add_f32(1.0, tiny, Rounding::Rp), 1f32.next_up());
    assert_eq!(add_f32(1.0, tiny, Rounding::Rm), 1.0);
    assert_eq!(add_f32(1.0, -tiny, Rounding::Rz), 1f32.next_down());
    assert_eq!(add_f32(1.0, -1.0, Rounding::Rm).to_bits(), (-0f32).to_bits());
    assert_eq!(add_f32(1.0, -1.0, Rounding::Rz).to_bits(), 0);
    assert_eq!(fma_f32(f32::MAX, 2.0, 0.0, Rounding::Rz), f32::MAX);
    assert_eq!(fma_f32(f32::MAX, 2.0, 0.0, Rounding::Rp), f32::INFINITY);
}

#[test]
fn nan_to_integer_depends_on_the_widths() {
    let integer = |signed, bits| Integer { signed, bits };
    assert_eq!(f32_to_integer(f32::NAN, integer(true, 32), Rounding::Rz), 0);
    assert_eq!(f32_to_integer(f32::NAN, integer(true, 64), Rounding::Rz), 1 << 63);
    assert_eq!(f64_to_integer(f64::NAN, integer(false, 32), Rounding::Rz), 1 << 31);
    assert_eq!(f64_to_integer(f64::NAN, integer(true, 32), Rounding::Rz) as i64, i64::from(i32::MIN));
    assert_eq!(f64_to_integer(1e300, integer(true, 8), Rounding::Rz), 127);
}

#[test]
fn flush_and_saturate() {
    assert_eq!(flush_f32(0x8000_0001), 0x8000_0000);
    assert_eq!(flush_f32(0x007f_ffff), 0);
    assert_eq!(flush_f32(0x0080_0000), 0x0080_0000);
    assert_eq!(saturate_f32(f32::NAN.to_bits()), 0);
    assert_eq!(saturate_f32((-0f32).to_bits()), 0);
    assert_eq!(saturate_f32(7f32.to_bits()), 1f32.to_bits());
    assert_eq!(saturate_f64(0.25f64.to_bits()), 0.25f64.to_bits());
}
