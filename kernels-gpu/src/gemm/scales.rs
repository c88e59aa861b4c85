//! Scales: which there are, and where they lie.
//!
//! | scale | value for row r, column c, slab g of expert e | applied |
//! |---|---|---|
//! | A per call | `a[0]` | at the end |
//! | A per row | `a[r]` | at the end |
//! | A per row and group | `a[r * row_stride + g * group_stride]` | every slab |
//! | B per expert | `b[e]` | at the end |
//! | B per column | `b[e * n + c]` | at the end |
//! | bias | `bias[e * n + c]`, added to the scaled sum | at the end |
//! | B per block | `b[(e * ceil(n / 128) + c / 128) * ceil(k / 128) + g]` | every slab |

#[cfg(target_feature = "sm_90a")]
use cuda_std::memory;

use crate::abi::{AScaleKind, BScaleKind, SCALE_BLOCK, SLAB, Scales, Strides};
#[cfg(target_feature = "sm_90a")]
use crate::gemm::recomputed;

// The kinds as numbers: of a comparison of numbers, or a match on them, LLVM makes other code than of
// `Code::is`.
#[cfg(target_feature = "sm_90a")]
pub const A_PER_ROW: u32 = AScaleKind::Row as u32;
pub const A_PER_GROUP: u32 = AScaleKind::Group as u32;
#[cfg(target_feature = "sm_90a")]
pub const B_PER_CHANNEL: u32 = BScaleKind::Channel as u32;
pub const B_PER_BLOCK: u32 = BScaleKind::Block as u32;

impl Scales {
    /// Address of the scale of `row` and slab 0, for scales per group.
    #[inline(always)]
    pub fn a_group_row(&self, strides: Strides, row: u32) -> *const f32 {
        self.a.wrapping_add(row as usize * strides.row as usize)
    }

    /// Address of the scale of `row` of A, where they are per call or row.
    ///
    /// # Safety
    /// There is such a scale.
    #[inline(always)]
    pub unsafe fn of_row(&self, per_row: bool, row: u32) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.a.add(if per_row { row as usize } else { 0 }) }
    }

    /// Address of the scale of `column` of the `n` of `expert`, where they are per expert or column.
    ///
    /// # Safety
    /// There is such a scale.
    #[inline(always)]
    pub unsafe fn of_column(&self, per_column: bool, expert: u32, column: u32, n: u32) -> *const f32 {
        let number = expert as usize * n as usize + column as usize;
        // SAFETY: the caller's contract.
        unsafe { self.b.add(if per_column { number } else { expert as usize }) }
    }

    /// Address of the scale of the block of B that holds `column` of `expert`, and slab 0, for scales per
    /// block.
    #[inline(always)]
    pub fn b_block_row(&self, expert: u32, column: u32, n: u32, k: u32) -> *const f32 {
        let block = expert as usize * n.div_ceil(SCALE_BLOCK) as usize + (column / SCALE_BLOCK) as usize;
        self.b.wrapping_add(block * k.div_ceil(SLAB) as usize)
    }
}

/// The number of the scale of the block of B that holds `column` of `expert`, and slab 0, among fewer than
/// 2^31.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub fn b_block_number(expert: u32, column: u32, n: u32, k: u32) -> u32 {
    // Computed each time: else the quotient would be in a register.
    (expert * recomputed(n).div_ceil(SCALE_BLOCK) + column / SCALE_BLOCK) * k.div_ceil(SLAB)
}

/// The scale of a row that applies to the whole sum.
///
/// # Safety
/// The contract of the kernels; the row exists.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub unsafe fn row_scale(scales: &Scales, row: u32) -> f32 {
    match scales.a_kind.raw() {
        A_PER_GROUP => 1.0,
        // SAFETY: one scale for every row.
        A_PER_ROW => unsafe { memory::load_nc(scales.a.add(row as usize)) },
        // SAFETY: one scale.
        _ => unsafe { memory::load_nc(scales.a) },
    }
}

/// The scale of a column of `n` that applies to the whole sum; 1 past the end.
///
/// # Safety
/// The contract of the kernels.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub unsafe fn column_scale(scales: &Scales, expert: u32, column: u32, n: u32) -> f32 {
    match scales.b_kind.raw() {
        B_PER_BLOCK => 1.0,
        B_PER_CHANNEL if column >= n => 1.0,
        // SAFETY: one scale per column of every expert.
        B_PER_CHANNEL => unsafe { memory::load_nc(scales.of_column(true, expert, column, n)) },
        // SAFETY: one scale per expert.
        _ => unsafe { memory::load_nc(scales.of_column(false, expert, 0, n)) },
    }
}

/// What is added to the scaled sum of a column of `n`; 0 without a bias, and past the end.
///
/// # Safety
/// The contract of the kernels.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub unsafe fn column_bias(scales: &Scales, expert: u32, column: u32, n: u32) -> f32 {
    if scales.bias.is_null() || column >= n {
        return 0.0;
    }
    // SAFETY: one for every column of every expert.
    unsafe { memory::load_nc(scales.bias.add(expert as usize * n as usize + column as usize)) }
}
