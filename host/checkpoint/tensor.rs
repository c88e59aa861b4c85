//! A tensor of a file: its elements as numbers, and what must hold for it.
//!
//! Its bytes are read where they are wanted, by positioned reads, so that several threads can read one file.

use std::fs::File;
use std::path::Path;

use super::header::Dtype;
use crate::error::{Error, Result};
use crate::fp8::E4m3;

/// A tensor of a file.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub file: &'a File,
    /// Where its bytes are in the file, and how many: as many as type and shape say.
    pub start: u64,
    pub len: usize,
}

/// Bytes that are read at a time where they become numbers of another type.
const CHUNK: usize = 1 << 16;

impl<'a> Tensor<'a> {
    /// An error about this tensor.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::checkpoint(self.path, format!("{}: {what}", self.name))
    }

    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads its bytes from byte `start` on, as many as `to` has.
    pub fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()> {
        read_exact_at(self.path, self.file, self.start + start as u64, to)
    }

    /// The elements as f32; refuses types that are not floating-point, and f64. E8M0 is a power of two.
    pub fn to_f32(self) -> Result<Vec<f32>> {
        match self.dtype {
            Dtype::F32 => self.read_as(f32::from_le_bytes),
            Dtype::BF16 => self.read_as(|bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => self.read_as(|bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::F8_E8M0 => self.exponents(),
            other => Err(self.error(format!("has type {other:?}; F32, BF16 or F16 is expected"))),
        }
    }

    /// The bytes b as powers of two, `2^(b - 127)`; 255 is NaN.
    pub fn exponents(self) -> Result<Vec<f32>> {
        self.read_as(|[byte]| power_of_two(byte))
    }

    /// The elements as i64; refuses types that are not integers of 32 or 64 bits.
    pub fn to_i64(self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => self.read_as(i64::from_le_bytes),
            Dtype::I32 => self.read_as(|bytes| i64::from(i32::from_le_bytes(bytes))),
            other => Err(self.error(format!("has type {other:?}; I64 or I32 is expected"))),
        }
    }

    /// The elements as bf16. For tensors of type BF16.
    pub fn to_bf16(self) -> Result<Vec<half::bf16>> {
        self.read_as(half::bf16::from_le_bytes)
    }

    /// What `convert` makes of each N bytes. For tensors whose elements have N bytes.
    fn read_as<const N: usize, T>(self, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let mut out = Vec::with_capacity(self.len / N);
        let mut chunk = vec![0; self.len.min(CHUNK)];
        for start in (0..self.len).step_by(CHUNK) {
            let bytes = &mut chunk[..CHUNK.min(self.len - start)];
            self.read_at(start, bytes)?;
            out.extend(bytes.as_chunks().0.iter().map(|bytes| convert(*bytes)));
        }
        Ok(out)
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

/// Fills `to` with the bytes of `file`, which is at `path`, from `start` on.
///
/// # Errors
/// If the system does not read them, or the file ends before.
pub(super) fn read_exact_at(path: &Path, file: &File, start: u64, to: &mut [u8]) -> Result<()> {
    let mut read = 0;
    while read < to.len() {
        match read_at(file, start + read as u64, &mut to[read..]) {
            Ok(0) => {
                let end = start + to.len() as u64;
                let what = format!("ends before byte {end}: it became shorter while it was read");
                return Err(Error::checkpoint(path, what));
            }
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, error)),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, start: u64, to: &mut [u8]) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, to, start)
}

#[cfg(windows)]
fn read_at(file: &File, start: u64, to: &mut [u8]) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, to, start)
}

/// `2^(byte - 127)`; 255 is NaN.
fn power_of_two(byte: u8) -> f32 {
    match byte {
        // 2^-127, below the normal numbers.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        byte => f32::from_bits(u32::from(byte) << 23),
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
        for byte in 0..255 {
            assert_eq!(f64::from(power_of_two(byte)), 2f64.powi(i32::from(byte) - 127));
        }
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn places_are_coordinates() {
        assert_eq!(place(&[2, 3, 4], 23), "[1, 2, 3]");
        assert_eq!(place(&[8], 5), "[5]");
    }
}
