//! Exact conversions between the floating-point formats of PTX (ISA chapter "cvt").
//!
//! ```text
//!  format   sign  exponent  mantissa  bias   largest finite   infinity   NaN written here
//!  e4m3       1       4         3        7   448              none       0x7f
//!  e5m2       1       5         2       15   57344            0x7c       0x7f
//!  f16        1       5        10       15   65504            0x7c00     0x7fff
//!  bf16       1       8         7      127   3.39e38          0x7f80     0x7fff
//!  tf32       1       8        10      127   3.40e38          yes        0x7fffffff   (upper 19 of 32 bits)
//!  f32        1       8        23      127   3.40e38          0x7f800000 0x7fffffff
//! ```
//!
//! Every narrowing conversion is one call of [`encode`]: the value is held as `significand * 2^exponent` with
//! an integer significand, shifted right until it has the precision of the target, and the bits shifted out
//! decide the rounding. Nothing is rounded twice. Widening conversions are exact by nature.
//!
//! The ISA leaves the payload of a NaN result open; the one that NVIDIA's hardware and CUDA's headers write,
//! all mantissa bits set and positive, is used. Subnormals are kept everywhere; `.ftz` is [`flush_f32`] on
//! the operand and on the result.

mod directed;
mod fp8;
mod half;
mod integer;
mod tf32;

pub(crate) use directed::add_to_odd;
pub use directed::{add_f32, add_f64, div_f64, fma_f32, fma_f64, mul_f32, mul_f64, sqrt_f32, sqrt_f64};
pub use fp8::{
    E4M3_TO_F32, E5M2_TO_F32, e4m3_to_f16, e4m3_to_f32, e4m3x2_to_f16x2, e5m2_to_f16, e5m2_to_f32,
    e5m2x2_to_f16x2, f16x2_to_e4m3x2, f16x2_to_e5m2x2, f32_to_e4m3_satfinite, f32_to_e5m2_satfinite,
    f32x2_to_e4m3x2, f32x2_to_e5m2x2,
};
pub(crate) use half::{add_half, widen};
pub use half::{
    bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_bf16_rn, f32_to_bf16x2, f32_to_f16, f32_to_f16_rn,
    f32_to_f16x2, f64_to_bf16, f64_to_f16,
};
pub use integer::{
    Integer, f32_to_integer, f64_to_integer, integer_to_f32, integer_to_f64, round_f32, round_f64,
};
pub use tf32::{f32_to_tf32, tf32_to_f32};

/// Direction in which a result that does not fit is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to the even mantissa.
    Rn,
    /// `.rna`: to nearest, ties away from zero (`tf32` only).
    Rna,
    /// `.rz`: towards zero.
    Rz,
    /// `.rm`: towards negative infinity.
    Rm,
    /// `.rp`: towards positive infinity.
    Rp,
}

/// What `.relu` and `.satfinite` ask of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Clamp {
    /// `.relu`: negative results (and -0) become +0; NaN becomes the format's canonical NaN.
    pub relu: bool,
    /// `.satfinite`: magnitudes over the largest finite value, infinity included, become that value.
    pub satfinite: bool,
}

/// Layout of a binary floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent field.
    pub exponent_bits: u32,
    /// Stored bits of the mantissa.
    pub mantissa_bits: u32,
    /// Encoding of the largest finite magnitude.
    pub max_finite: u64,
    /// Encoding of +infinity, where there is one.
    pub infinity: Option<u64>,
    /// Encoding of the NaN that conversions produce.
    pub nan: u64,
}

impl Format {
    /// FP8 with 4 exponent bits: no infinity, one NaN magnitude.
    pub const E4M3: Format =
        Format { exponent_bits: 4, mantissa_bits: 3, max_finite: 0x7e, infinity: None, nan: 0x7f };
    /// FP8 with 5 exponent bits, IEEE-like.
    pub const E5M2: Format =
        Format { exponent_bits: 5, mantissa_bits: 2, max_finite: 0x7b, infinity: Some(0x7c), nan: 0x7f };
    /// IEEE binary16.
    pub const F16: Format = Format {
        exponent_bits: 5,
        mantissa_bits: 10,
        max_finite: 0x7bff,
        infinity: Some(0x7c00),
        nan: 0x7fff,
    };
    /// The upper half of an IEEE binary32.
    pub const BF16: Format = Format {
        exponent_bits: 8,
        mantissa_bits: 7,
        max_finite: 0x7f7f,
        infinity: Some(0x7f80),
        nan: 0x7fff,
    };
    /// The upper 19 bits of an IEEE binary32, here as a 19-bit number.
    pub const TF32: Format = Format {
        exponent_bits: 8,
        mantissa_bits: 10,
        max_finite: 0x3fbff,
        infinity: Some(0x3fc00),
        nan: 0x3ffff,
    };
    /// IEEE binary32.
    pub const F32: Format = Format {
        exponent_bits: 8,
        mantissa_bits: 23,
        max_finite: 0x7f7f_ffff,
        infinity: Some(0x7f80_0000),
        nan: 0x7fff_ffff,
    };
    /// IEEE binary64.
    pub const F64: Format = Format {
        exponent_bits: 11,
        mantissa_bits: 52,
        max_finite: 0x7fef_ffff_ffff_ffff,
        infinity: Some(0x7ff0_0000_0000_0000),
        nan: 0x7fff_ffff_ffff_ffff,
    };

    /// Exponent of the smallest normal number, `1 - bias`.
    #[inline(always)]
    pub const fn min_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits - 1))
    }

    /// Position of the sign bit.
    #[inline(always)]
    pub const fn sign_bit(self) -> u32 {
        self.exponent_bits + self.mantissa_bits
    }

    #[inline(always)]
    const fn signed(self, negative: bool, magnitude: u64) -> u64 {
        magnitude | ((negative as u64) << self.sign_bit())
    }
}

/// Rounds `±significand * 2^exponent` into `format` and returns its encoding.
///
/// `significand` must be below 2^63 unless `exponent >= 0` (integers may use all 64 bits).
#[inline(always)]
pub const fn encode(
    format: Format,
    negative: bool,
    significand: u64,
    exponent: i32,
    rounding: Rounding,
    satfinite: bool,
) -> u64 {
    if significand == 0 {
        return format.signed(negative, 0);
    }
    // Exponent of the leading bit, and of the last bit that the target keeps.
    let leading = 63 - significand.leading_zeros() as i32 + exponent;
    let min_exponent = format.min_exponent();
    let scale = if leading > min_exponent { leading } else { min_exponent };
    let shift = scale - format.mantissa_bits as i32 - exponent;
    let kept = if shift <= 0 {
        significand << -shift
    } else {
        let (kept, lost, half) = if shift > 63 {
            (0, 1, 2) // everything is lost, and it is less than half of a last place
        } else {
            (significand >> shift, significand & ((1 << shift) - 1), 1u64 << (shift - 1))
        };
        let up = match rounding {
            Rounding::Rn => lost > half || (lost == half && kept & 1 == 1),
            Rounding::Rna => lost >= half,
            Rounding::Rz => false,
            Rounding::Rm => negative && lost != 0,
            Rounding::Rp => !negative && lost != 0,
        };
        kept + up as u64
    };
    // The hidden bit of `kept` counts one into the exponent field, and so does a carry out of the mantissa.
    let magnitude = (((scale - min_exponent) as u64) << format.mantissa_bits) + kept;
    if magnitude <= format.max_finite {
        return format.signed(negative, magnitude);
    }
    let to_infinity = match rounding {
        Rounding::Rn | Rounding::Rna => true,
        Rounding::Rz => false,
        Rounding::Rm => negative,
        Rounding::Rp => !negative,
    };
    if satfinite || !to_infinity {
        return format.signed(negative, format.max_finite);
    }
    match format.infinity {
        Some(infinity) => format.signed(negative, infinity),
        None => format.nan,
    }
}

/// Rounds an `f32`, given by its bits, into `format`.
#[inline(always)]
pub const fn encode_f32(format: Format, bits: u32, rounding: Rounding, clamp: Clamp) -> u64 {
    let negative = bits >> 31 == 1;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return format.nan;
    }
    if negative && clamp.relu {
        return 0;
    }
    if magnitude == 0x7f80_0000 {
        return encode_infinity(format, negative, clamp);
    }
    let field = (magnitude >> 23) as i32;
    let fraction = (magnitude & 0x7f_ffff) as u64;
    let (significand, exponent) =
        if field == 0 { (fraction, -149) } else { (fraction | 0x80_0000, field - 150) };
    encode(format, negative, significand, exponent, rounding, clamp.satfinite)
}

/// Rounds an `f64`, given by its bits, into `format`.
#[inline(always)]
pub const fn encode_f64(format: Format, bits: u64, rounding: Rounding, clamp: Clamp) -> u64 {
    let negative = bits >> 63 == 1;
    let magnitude = bits & 0x7fff_ffff_ffff_ffff;
    if magnitude > 0x7ff0_0000_0000_0000 {
        return format.nan;
    }
    if negative && clamp.relu {
        return 0;
    }
    if magnitude == 0x7ff0_0000_0000_0000 {
        return encode_infinity(format, negative, clamp);
    }
    let field = (magnitude >> 52) as i32;
    let fraction = magnitude & 0xf_ffff_ffff_ffff;
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    encode(format, negative, significand, exponent, rounding, clamp.satfinite)
}

#[inline(always)]
const fn encode_infinity(format: Format, negative: bool, clamp: Clamp) -> u64 {
    match format.infinity {
        Some(infinity) if !clamp.satfinite => format.signed(negative, infinity),
        _ if clamp.satfinite => format.signed(negative, format.max_finite),
        _ => format.nan,
    }
}

/// `cvt.{rn,rz,rm,rp}.f32.f64`: `f64` bits to `f32` bits.
#[inline]
pub fn f64_to_f32(bits: u64, rounding: Rounding) -> u32 {
    if rounding == Rounding::Rn {
        let x = f64::from_bits(bits);
        return if x.is_nan() { Format::F32.nan as u32 } else { (x as f32).to_bits() };
    }
    encode_f64(Format::F32, bits, rounding, Clamp::default()) as u32
}

/// `cvt.f64.f32`: `f32` bits to `f64` bits.
#[inline]
pub fn f32_to_f64(bits: u32) -> u64 {
    f64::from(f32::from_bits(bits)).to_bits()
}

/// `.ftz`: a subnormal `f32` becomes a zero of the same sign.
#[inline(always)]
pub const fn flush_f32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat` on an `f32` result: clamps to [0, 1]; NaN and -0 become +0.
#[inline(always)]
pub fn saturate_f32(bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
}

/// `.sat` on an `f64` result: clamps to [0, 1]; NaN and -0 become +0.
#[inline(always)]
pub fn saturate_f64(bits: u64) -> u64 {
    let x = f64::from_bits(bits);
    if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
}
