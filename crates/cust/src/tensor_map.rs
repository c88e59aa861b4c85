//! Tensor maps: what Hopper's TMA unit needs to know of a matrix.

use std::ffi::c_void;

use crate::context::Context;
use crate::error::{CudaResult, call};
use crate::sys::{CUdeviceptr, CUtensorMap};

/// The type of a matrix's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataType {
    /// Bytes, and so FP8.
    Uint8 = 0,
    /// 32-bit floats.
    Float32 = 7,
}

/// How a box lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Swizzle {
    /// Row behind row.
    None = 0,
    /// Rows of 128 bytes, the 16-byte chunks of each permuted by its number.
    Bytes128 = 3,
}

/// A matrix in device memory, and the boxes that are copied of it. Elements outside it arrive as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "arguments by name: one more is a new version")]
pub struct Matrix {
    /// The type of its elements.
    pub data_type: DataType,
    /// The address of its first element, a multiple of 16.
    pub address: CUdeviceptr,
    /// Columns, which are contiguous, and rows.
    pub dimensions: [u64; 2],
    /// Bytes from a row to the next, a multiple of 16.
    pub stride: u64,
    /// Columns and rows of a box, at most 256 each.
    pub box_dimensions: [u32; 2],
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

// cuda.h: CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapFloatOOBfill.
const INTERLEAVE_NONE: u32 = 0;
const L2_PROMOTION_256B: u32 = 3;
const OUT_OF_BOUNDS_ZEROS: u32 = 0;

impl Matrix {
    /// Its tensor map. Nothing is read or written at the address.
    pub fn encode(&self, context: &Context) -> CudaResult<CUtensorMap> {
        let _current = context.enter()?;
        let mut map = CUtensorMap { opaque: [0; 16] };
        let element_strides = [1, 1];
        // SAFETY: two dimensions, with as many sizes, box sizes and element strides, and one stride; the map
        // is written.
        unsafe {
            call!(
                context.driver(),
                cuTensorMapEncodeTiled(
                    &mut map,
                    self.data_type as u32,
                    2,
                    self.address as *mut c_void,
                    self.dimensions.as_ptr(),
                    &self.stride,
                    self.box_dimensions.as_ptr(),
                    element_strides.as_ptr(),
                    INTERLEAVE_NONE,
                    self.swizzle as u32,
                    L2_PROMOTION_256B,
                    OUT_OF_BOUNDS_ZEROS,
                )
            )
        }?;
        Ok(map)
    }
}
