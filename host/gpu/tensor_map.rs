//! Tensor maps: what a kernel's TMA copies need to know of a matrix, or of its scales.

use cust::tensor_map::{DataType, Matrix, Swizzle};

use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::Slice;
use crate::gpu::launch::TensorMap;

/// The map of a matrix `[rows, columns]`, columns contiguous and a multiple of 16, in boxes of `[rows,
/// columns]`, at most 256 rows of 128 columns, with the 128-byte swizzle. What a box has outside the matrix
/// arrives as zeros.
pub(crate) fn of_matrix(
    matrix: &Slice<'_, E4m3>,
    (rows, columns): (usize, usize),
    [box_rows, box_columns]: [u32; 2],
) -> Result<TensorMap> {
    debug_assert!(matrix.len() >= rows * columns && columns.is_multiple_of(16) && box_rows <= 256);
    let map = Matrix {
        data_type: DataType::Uint8,
        address: matrix.ptr().raw(),
        dimensions: [columns as u64, rows as u64],
        stride: columns as u64,
        box_dimensions: [box_columns, box_rows],
        swizzle: Swizzle::Bytes128,
    };
    matrix.device().tensor_map(map)
}

/// The map of `[lines, length]` f32 at the start of `scales`, 16-byte aligned, a line `stride` elements
/// behind the one before, a multiple of 4, in boxes of `box_length` elements of a line, a multiple of 4
/// up to 256. What a box has behind the end of its line arrives as zeros.
pub(crate) fn of_lines(
    scales: &Slice<'_, f32>,
    (lines, length): (usize, usize),
    stride: usize,
    box_length: u32,
) -> Result<TensorMap> {
    debug_assert!(stride.is_multiple_of(4) && stride >= length && box_length.is_multiple_of(4));
    let map = Matrix {
        data_type: DataType::Float32,
        address: scales.ptr().raw(),
        dimensions: [length as u64, lines as u64],
        stride: (stride * size_of::<f32>()) as u64,
        box_dimensions: [box_length, 1],
        swizzle: Swizzle::None,
    };
    scales.device().tensor_map(map)
}
