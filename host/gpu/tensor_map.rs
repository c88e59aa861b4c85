//! Tensor maps: what a kernel's TMA copies need to know of a matrix, or of its scales.

use std::ffi::c_void;

use cuda_driver::sys::{CUtensorMap, cuTensorMapEncodeTiled};

use crate::error::{Error, Result};
use crate::fp8::E4m3;
use crate::gpu::buffer::Slice;
use crate::gpu::launch::{DevicePtr, TensorMap};
use crate::kernels::launchers;

/// Bytes of K in a box: a row of the 128-byte swizzle.
const BOX_BYTES: u32 = launchers::SLAB;

// cuda.h: CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill.
const DATA_TYPE_UINT8: u32 = 0;
const DATA_TYPE_FLOAT32: u32 = 7;
const INTERLEAVE_NONE: u32 = 0;
const SWIZZLE_NONE: u32 = 0;
const SWIZZLE_128B: u32 = 3;
const L2_PROMOTION_256B: u32 = 3;
const OUT_OF_BOUNDS_ZEROS: u32 = 0;

/// The map of a matrix `[rows, columns]`, columns contiguous and a multiple of 16, in boxes of `box_rows` (at most 256) by 128
/// columns with the 128-byte swizzle. What a box has outside the matrix arrives as zeros.
pub(crate) fn of_matrix(
    matrix: &Slice<'_, E4m3>,
    rows: usize,
    columns: usize,
    box_rows: u32,
) -> Result<TensorMap> {
    debug_assert!(matrix.len() >= rows * columns && columns.is_multiple_of(16) && box_rows <= 256);
    encode(Tensor {
        data_type: DATA_TYPE_UINT8,
        address: matrix.ptr().raw(),
        dimensions: [columns as u64, rows as u64],
        stride: columns as u64,
        box_dimensions: [BOX_BYTES, box_rows],
        swizzle: SWIZZLE_128B,
    })
}

/// The map of `[lines, length]` f32 from `start` on, 16-byte aligned, a line `stride` elements behind the one before, a multiple of 4, in
/// boxes of `box_length` elements of a line, a multiple of 4 up to 256. What a box has behind the end of its line arrives as zeros.
pub(crate) fn of_lines(
    start: DevicePtr<f32>,
    (lines, length): (usize, usize),
    stride: usize,
    box_length: u32,
) -> Result<TensorMap> {
    debug_assert!(stride.is_multiple_of(4) && stride >= length && box_length.is_multiple_of(4));
    encode(Tensor {
        data_type: DATA_TYPE_FLOAT32,
        address: start.raw(),
        dimensions: [length as u64, lines as u64],
        stride: (stride * size_of::<f32>()) as u64,
        box_dimensions: [box_length, 1],
        swizzle: SWIZZLE_NONE,
    })
}

/// A tensor of two dimensions, the inner one first, in boxes.
struct Tensor {
    data_type: u32,
    address: u64,
    dimensions: [u64; 2],
    /// Bytes from a row to the next.
    stride: u64,
    box_dimensions: [u32; 2],
    swizzle: u32,
}

fn encode(tensor: Tensor) -> Result<TensorMap> {
    let mut map = CUtensorMap { opaque: [0; 16] };
    let element_strides = [1, 1];
    // SAFETY: two dimensions, with as many sizes, box sizes and element strides, and one stride; the map is written.
    let result = unsafe {
        cuTensorMapEncodeTiled(
            &mut map,
            tensor.data_type,
            2,
            tensor.address as *mut c_void,
            tensor.dimensions.as_ptr(),
            &tensor.stride,
            tensor.box_dimensions.as_ptr(),
            element_strides.as_ptr(),
            INTERLEAVE_NONE,
            tensor.swizzle,
            L2_PROMOTION_256B,
            OUT_OF_BOUNDS_ZEROS,
        )
    };
    if !result.is_success() {
        return Err(Error::driver("cuTensorMapEncodeTiled", result.0, cuda_driver::sys::error_text(result)));
    }
    Ok(TensorMap(map.opaque))
}
