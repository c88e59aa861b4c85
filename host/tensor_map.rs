//! Tensor maps: what a kernel's TMA copies need to know of a matrix.

use std::ffi::c_void;

use cuda_driver::sys::{CUtensorMap, cuTensorMapEncodeTiled};

use crate::buffer::Slice;
use crate::error::{Error, Result};
use crate::fp8::E4m3;
use crate::kernel::TensorMap;

/// Bytes of K in a box: a row of the 128-byte swizzle.
const BOX_BYTES: u32 = 128;

// cuda.h: CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill.
const DATA_TYPE_UINT8: u32 = 0;
const INTERLEAVE_NONE: u32 = 0;
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
    let mut map = CUtensorMap { opaque: [0; 16] };
    let (dimensions, strides) = ([columns as u64, rows as u64], [columns as u64]);
    let (box_dimensions, element_strides) = ([BOX_BYTES, box_rows], [1, 1]);
    // SAFETY: two dimensions, with as many sizes, box sizes and element strides, and one stride; the map is written.
    let result = unsafe {
        cuTensorMapEncodeTiled(
            &mut map,
            DATA_TYPE_UINT8,
            2,
            matrix.ptr().raw() as *mut c_void,
            dimensions.as_ptr(),
            strides.as_ptr(),
            box_dimensions.as_ptr(),
            element_strides.as_ptr(),
            INTERLEAVE_NONE,
            SWIZZLE_128B,
            L2_PROMOTION_256B,
            OUT_OF_BOUNDS_ZEROS,
        )
    };
    if !result.is_success() {
        return Err(Error::driver("cuTensorMapEncodeTiled", result.0, cuda_driver::sys::error_text(result)));
    }
    Ok(TensorMap(map.opaque))
}
