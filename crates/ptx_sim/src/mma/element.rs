//! Elements of tensor-core operands, decoded from *core matrices*.
//!
//! A core matrix is 8 rows of 16 bytes: 8x16 bytes, 8x8 halves or 8x4 words. It is both what one 32-bit
//! register of a warp holds in an operand fragment (row `lane / 4`, bytes `4 * (lane % 4)..`) and the unit
//! in which `wgmma` descriptors address shared memory. K runs along a row, for A and for B.

/// One core matrix: row `r` is bytes `16 * r..16 * (r + 1)`.
pub type Core = [u8; 128];

/// Type of the elements of an A or B operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// `.e4m3`.
    E4m3,
    /// `.e5m2`.
    E5m2,
    /// `.f16`.
    F16,
    /// `.bf16`.
    Bf16,
    /// `.tf32`.
    Tf32,
}

impl Operand {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Operand::E4m3 | Operand::E5m2 => 1,
            Operand::F16 | Operand::Bf16 => 2,
            Operand::Tf32 => 4,
        }
    }

    /// Elements in one row (16 bytes) of a core matrix.
    pub const fn per_row(self) -> usize {
        16 / self.bytes()
    }
}

/// Decoding of one element type, without branches so that it vectorises.
pub(super) trait Element {
    /// Bytes of one element.
    const BYTES: usize;
    /// Value of an element whose bytes, zero-extended, are `bits`.
    fn value(bits: u32) -> f32;
}

pub(super) struct E4m3;
pub(super) struct E5m2;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Tf32;

/// Value of a finite, non-negative number with `M` mantissa bits and exponent bias `BIAS`.
#[inline(always)]
fn widen<const M: u32, const BIAS: u32>(magnitude: u32) -> f32 {
    let fraction = magnitude << (23 - M);
    let normal = f32::from_bits(fraction + ((127 - BIAS) << 23));
    // A subnormal is the fraction of a number with the smallest normal exponent, less its hidden bit.
    let one = (128 - BIAS) << 23;
    let subnormal = f32::from_bits(fraction + one) - f32::from_bits(one);
    if magnitude >> M == 0 { subnormal } else { normal }
}

#[inline(always)]
fn with_sign(magnitude: f32, sign: u32) -> f32 {
    f32::from_bits(magnitude.to_bits() | sign)
}

impl Element for E4m3 {
    const BYTES: usize = 1;
    #[inline(always)]
    fn value(bits: u32) -> f32 {
        let magnitude = bits & 0x7f;
        let x = if magnitude == 0x7f { f32::NAN } else { widen::<3, 7>(magnitude) };
        with_sign(x, (bits & 0x80) << 24)
    }
}

impl Element for E5m2 {
    const BYTES: usize = 1;
    #[inline(always)]
    fn value(bits: u32) -> f32 {
        let magnitude = bits & 0x7f;
        let not_finite = if magnitude == 0x7c { f32::INFINITY } else { f32::NAN };
        let x = if magnitude >= 0x7c { not_finite } else { widen::<2, 15>(magnitude) };
        with_sign(x, (bits & 0x80) << 24)
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn value(bits: u32) -> f32 {
        let magnitude = bits & 0x7fff;
        let not_finite = if magnitude == 0x7c00 { f32::INFINITY } else { f32::NAN };
        let x = if magnitude >= 0x7c00 { not_finite } else { widen::<10, 15>(magnitude) };
        with_sign(x, (bits & 0x8000) << 16)
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn value(bits: u32) -> f32 {
        f32::from_bits(bits << 16)
    }
}

impl Element for Tf32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn value(bits: u32) -> f32 {
        f32::from_bits(bits & !0x1fff)
    }
}

/// Elements of a core matrix in row-major order; the first `128 / BYTES` entries are written.
#[inline(always)]
pub(super) fn decode<E: Element>(core: &Core, out: &mut [f64; 128]) {
    match E::BYTES {
        1 => {
            for (value, byte) in out.iter_mut().zip(core) {
                *value = f64::from(E::value(u32::from(*byte)));
            }
        }
        2 => {
            for (value, bytes) in out.iter_mut().zip(core.as_chunks::<2>().0) {
                *value = f64::from(E::value(u32::from(u16::from_le_bytes(*bytes))));
            }
        }
        _ => {
            for (value, bytes) in out.iter_mut().zip(core.as_chunks::<4>().0) {
                *value = f64::from(E::value(u32::from_le_bytes(*bytes)));
            }
        }
    }
}

/// The core matrix that one register of a warp holds.
#[inline(always)]
pub(crate) fn core_of(register: &[u32; 32]) -> Core {
    let mut core = [0; 128];
    for (bytes, word) in core.as_chunks_mut::<4>().0.iter_mut().zip(register) {
        *bytes = word.to_le_bytes();
    }
    core
}
