//! Scales: which there are, and where they lie.
//!
//! | scale | value for row r, column c, slab g of expert e | applied |
//! |---|---|---|
//! | A per call | `a[0]` | at the end |
//! | A per row | `a[r]` | at the end |
//! | A per row and group | `a[r * row_stride + g * group_stride]` | every slab |
//! | B per expert | `b[e]` | at the end |
//! | B per column | `b[e * n + c]` | at the end |
//! | B per block | `b[(e * ceil(n / 128) + c / 128) * ceil(k / 128) + g]` | every slab |

use crate::abi::{AScaleKind, BScaleKind, SCALE_BLOCK, SLAB, Scales, Strides};

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
    (expert * n.div_ceil(SCALE_BLOCK) + column / SCALE_BLOCK) * k.div_ceil(SLAB)
}
