//! A tensor of a mapped file: its elements as numbers, and what must hold for it.

use std::borrow::Cow;
use std::path::Path;

use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::fp8::E4m3;

/// A tensor of a mapped file.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub file: &'a Path,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// An error about this tensor.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::checkpoint(self.file, format!("{}: {what}", self.name))
    }

    /// The elements as f32; refuses types that are not floating-point, and f64. E8M0 is a power of two.
    pub fn to_f32(self) -> Result<Vec<f32>> {
        let words = |n: usize| self.bytes.chunks_exact(n);
        match self.dtype {
            Dtype::F32 => Ok(words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Dtype::BF16 => Ok(words(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            Dtype::F16 => Ok(words(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            Dtype::F8_E8M0 => Ok(self.exponents()),
            other => Err(self.error(format!("has type {other:?}; F32, BF16 or F16 is expected"))),
        }
    }

    /// The bytes b as powers of two, `2^(b - 127)`; 255 is NaN.
    pub fn exponents(self) -> Vec<f32> {
        let power = |&byte: &u8| match byte {
            // 2^-127, below the normal numbers.
            0 => f32::from_bits(1 << 22),
            255 => f32::NAN,
            byte => f32::from_bits(u32::from(byte) << 23),
        };
        self.bytes.iter().map(power).collect()
    }

    /// The elements as i64; refuses types that are not integers of 32 or 64 bits.
    pub fn to_i64(self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => {
                let word = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes"));
                Ok(self.bytes.chunks_exact(8).map(word).collect())
            }
            Dtype::I32 => {
                let word = |b: &[u8]| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Ok(self.bytes.chunks_exact(4).map(word).collect())
            }
            other => Err(self.error(format!("has type {other:?}; I64 or I32 is expected"))),
        }
    }

    /// The elements as bf16, without a copy where they are aligned. For tensors of type BF16.
    pub fn as_bf16(self) -> Cow<'a, [half::bf16]> {
        match bytemuck::try_cast_slice(self.bytes) {
            Ok(aligned) => Cow::Borrowed(aligned),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes)),
        }
    }

    /// Itself, if it has type `dtype` and shape `shape`.
    pub fn expect(self, dtype: Dtype, shape: &[usize]) -> Result<Self> {
        if self.dtype != dtype {
            return Err(self.error(format!("has type {:?}; {dtype:?} is expected", self.dtype)));
        }
        self.expect_shape(shape)
    }

    /// Itself, if it has shape `shape`.
    pub fn expect_shape(self, shape: &[usize]) -> Result<Self> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(self.error(format!("has shape {:?}; the config says {shape:?}", self.shape)))
    }

    /// Refuses numbers of this tensor that are infinite or NaN, with the place of the first.
    pub fn check_finite(&self, values: impl IntoIterator<Item = f32>) -> Result<()> {
        match values.into_iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((at, value)) => {
                Err(self.error(format!("element {} is {value}; it must be finite", place(self.shape, at))))
            }
            None => Ok(()),
        }
    }

    /// Refuses e4m3 bytes of this tensor that are NaN, with the place of the first. `start` is where `bytes`
    /// begins in it.
    pub fn check_e4m3(&self, bytes: &[u8], start: usize) -> Result<()> {
        match E4m3::first_nan(bytemuck::cast_slice(bytes)) {
            Some(at) => Err(self.error(format!(
                "element {} is NaN (byte {:#04x}); a weight must be a number",
                place(self.shape, start + at),
                bytes[at]
            ))),
            None => Ok(()),
        }
    }
}

/// Element `index` of a row-major tensor as its coordinates, e.g. `[3, 17]`.
fn place(shape: &[usize], index: usize) -> String {
    let mut rest = index;
    let mut coordinates: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let coordinate = rest % size.max(1);
            rest /= size.max(1);
            coordinate
        })
        .collect();
    coordinates.reverse();
    format!("{coordinates:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_powers_of_two() {
        let bytes: Vec<u8> = (0..=255).collect();
        let tensor =
            Tensor { file: Path::new("f"), name: "t", dtype: Dtype::F8_E8M0, shape: &[256], bytes: &bytes };
        let values = tensor.to_f32().expect("numbers");
        for (byte, value) in values.iter().enumerate().take(255) {
            assert_eq!(f64::from(*value), 2f64.powi(byte as i32 - 127));
        }
        assert!(values[255].is_nan());
    }

    #[test]
    fn places_are_coordinates() {
        assert_eq!(place(&[2, 3, 4], 23), "[1, 2, 3]");
        assert_eq!(place(&[8], 5), "[5]");
    }
}
