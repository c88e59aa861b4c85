//! FP8 from its definition, sharing no code with the library: e4m3 by search among its values, scales and
//! quotients in f32 with IEEE division, as the specification of the operations writes them.

use std::sync::LazyLock;

/// The value of the e4m3 code `code`, from the definition: `(-1)^s * 2^(e - 7) * (1 + m / 8)`, subnormals
/// `2^-6 * m / 8`.
pub fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Every e4m3 value is a whole number of these: the smallest subnormal, `2^-9`.
pub const UNIT: f64 = 1.0 / 512.0;

/// The value of `code` in units of [`UNIT`]. Panics for NaN.
pub fn units(code: u8) -> i32 {
    static TABLE: LazyLock<[i32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|code| {
            let units = f64::from(decode(code as u8)) / UNIT;
            if units.is_nan() { i32::MAX } else { units as i32 }
        })
    });
    let units = TABLE[usize::from(code)];
    assert!(units != i32::MAX, "a NaN has no value");
    units
}

/// The e4m3 code nearest to `x`, ties to the even code, saturating at 448; 0x7f for NaN.
pub fn encode(x: f32) -> u8 {
    encode_wide(f64::from(x))
}

/// As [`encode`], of a number that f32 need not hold.
pub fn encode_wide(x: f64) -> u8 {
    static MAGNITUDES: LazyLock<[f64; 0x7f]> =
        LazyLock::new(|| std::array::from_fn(|code| f64::from(decode(code as u8))));
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = x.abs();
    // Codes 0 to 0x7e ascend in value.
    let above = MAGNITUDES.partition_point(|&value| value < magnitude).min(0x7e);
    let mut nearest = above;
    if above > 0 {
        let (down, up) = (magnitude - MAGNITUDES[above - 1], MAGNITUDES[above] - magnitude);
        if down < up || (down == up && above % 2 == 1) {
            nearest = above - 1;
        }
    }
    nearest as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The largest magnitude; NaN does not count.
pub fn absmax(values: &[f32]) -> f32 {
    values.iter().filter(|value| !value.is_nan()).fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The least scale of a tensor or a row.
pub const LEAST_SCALE: f32 = 1.0 / (448.0 * 512.0);

/// The least absmax of a group.
pub const LEAST_GROUP: f32 = 1e-10;

/// The scale of a tensor or a row.
pub fn scale(absmax: f32) -> f32 {
    (absmax / 448.0).max(LEAST_SCALE)
}

/// The scale of a group.
pub fn group_scale(absmax: f32) -> f32 {
    absmax.max(LEAST_GROUP) / 448.0
}
