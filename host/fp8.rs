//! The host's e4m3fn number: one byte, `s eeee mmm`, bias 7, largest finite value 448, no infinities.
//!
//! ```text
//!   0x7e = 448        0x08 = 2^-6 (smallest normal)        0x7f, 0xff = NaN
//!   0x00 = 0          0x01 = 2^-9 (smallest subnormal)     0x80 = -0
//! ```

use bytemuck::{Pod, Zeroable};

/// An e4m3fn value, as stored in checkpoints and device buffers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
#[allow(clippy::exhaustive_structs, reason = "a byte is all that it ever is")]
pub struct E4m3(pub u8);

impl E4m3 {
    /// The largest finite value, 448.
    pub const MAX: f32 = 448.0;

    /// Rounds to the nearest e4m3 value, ties to even; beyond the range saturates to +-448; a NaN becomes
    /// 0x7f.
    pub fn from_f32(x: f32) -> E4m3 {
        if x.is_nan() {
            return E4m3(0x7f);
        }
        let sign = ((x.to_bits() >> 24) & 0x80) as u8;
        let magnitude = x.abs();
        if magnitude >= Self::MAX {
            return E4m3(sign | 0x7e);
        }
        // The distance between neighbours is 2^(exponent - 3), and 2^-9 below the normals.
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
        let steps = (magnitude * exp2i(3 - exponent)).round_ties_even() as u32;
        // `steps` counts 8..=16 eighths of 2^exponent (or 0..=8 among the subnormals); adding, not or-ing,
        // carries a mantissa that rounded up to 16 into the exponent.
        E4m3(sign | (((exponent + 6) as u32 * 8) + steps) as u8)
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        let sign = if self.0 & 0x80 != 0 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(self.0 >> 3 & 0xf), f32::from(self.0 & 7));
        match (exponent, self.0 & 7) {
            (15, 7) => f32::NAN,
            (0, _) => sign * mantissa * exp2i(-9),
            _ => sign * (8.0 + mantissa) * exp2i(exponent - 10),
        }
    }
}

impl E4m3 {
    /// Whether it is 0x7f or 0xff.
    pub fn is_nan(self) -> bool {
        self.0 & 0x7f == 0x7f
    }

    /// The place of the first NaN.
    pub(crate) fn first_nan(values: &[E4m3]) -> Option<usize> {
        // Without an exit in the inner loop it is compiled to vector instructions.
        let chunk =
            values.chunks(4096).position(|chunk| chunk.iter().fold(false, |any, e| any | e.is_nan()))?;
        let start = chunk * 4096;
        values[start..].iter().position(|e| e.is_nan()).map(|at| start + at)
    }
}

/// `2^n` for `-126 <= n <= 127`.
fn exp2i(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

impl std::fmt::Debug for E4m3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}e4m3", self.to_f32())
    }
}

impl From<E4m3> for f32 {
    fn from(x: E4m3) -> f32 {
        x.to_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::E4m3;

    #[test]
    fn every_byte_survives_a_round_trip() {
        for byte in 0..=255u8 {
            let value = E4m3(byte).to_f32();
            if value.is_nan() {
                assert_eq!(byte & 0x7f, 0x7f);
            } else {
                assert_eq!(E4m3::from_f32(value).0, byte);
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for byte in 0..0x7eu8 {
            let (low, high) = (E4m3(byte).to_f32(), E4m3(byte + 1).to_f32());
            let middle = (low + high) / 2.0;
            assert_eq!(E4m3::from_f32(middle).0, byte + (byte & 1), "between {low} and {high}");
            assert_eq!(E4m3::from_f32(f32::from_bits(middle.to_bits() - 1)).0, byte);
            assert_eq!(E4m3::from_f32(f32::from_bits(middle.to_bits() + 1)).0, byte + 1);
            assert_eq!(E4m3::from_f32(-f32::from_bits(middle.to_bits() + 1)).0, (byte + 1) | 0x80);
        }
    }

    #[test]
    fn saturates_and_keeps_nan() {
        for (x, byte) in
            [(449.0, 0x7e), (1e30, 0x7e), (f32::INFINITY, 0x7e), (f32::NEG_INFINITY, 0xfe), (-0.0, 0x80)]
        {
            assert_eq!(E4m3::from_f32(x).0, byte, "{x}");
        }
        assert_eq!(E4m3::from_f32(f32::NAN).0, 0x7f);
        assert_eq!(E4m3::from_f32(f32::from_bits(1)).0, 0);
    }
}
