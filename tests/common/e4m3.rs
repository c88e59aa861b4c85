//! FP8 quantisation from its definition, sharing no code with the library: e4m3 by search among its values, scales and
//! quotients in f32 with IEEE division, as the specification of the operations writes them.

/// The value of the e4m3 code `code`, from the definition: `(-1)^s * 2^(e - 7) * (1 + m / 8)`, subnormals `2^-6 * m / 8`.
pub fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The e4m3 code nearest to `x`, ties to the even code, saturating at 448; 0x7f for NaN.
pub fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(x.abs());
    // Codes 0 to 0x7e ascend in value.
    let above = (0..0x7e_u8).find(|&code| f64::from(decode(code)) >= magnitude).unwrap_or(0x7e);
    let mut nearest = above;
    if above > 0 {
        let (low, high) = (f64::from(decode(above - 1)), f64::from(decode(above)));
        let (down, up) = (magnitude - low, high - magnitude);
        if down < up || (down == up && above % 2 == 1) {
            nearest = above - 1;
        }
    }
    nearest | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The largest magnitude; NaN does not count.
pub fn absmax(values: &[f32]) -> f32 {
    values.iter().filter(|value| !value.is_nan()).fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The scale of a tensor or a row.
pub fn scale(absmax: f32) -> f32 {
    (absmax / 448.0).max(1.0 / (448.0 * 512.0))
}

/// The scale of a group.
pub fn group_scale(absmax: f32) -> f32 {
    absmax.max(1e-10) / 448.0
}
