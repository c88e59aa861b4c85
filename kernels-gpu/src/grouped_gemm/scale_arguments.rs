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

use super::SLAB;

/// Columns of D that share a block scale.
const BLOCK: u32 = 128;

/// `a_kind`: one scale for each row of A.
pub const A_PER_ROW: u32 = 1;
/// `a_kind`: one scale for each row of A and 128 of K.
pub const A_PER_GROUP: u32 = 2;
/// `b_kind`: one scale for each column of D (row of B).
pub const B_PER_COLUMN: u32 = 1;
/// `b_kind`: one scale for each 128 x 128 block of B.
pub const B_PER_BLOCK: u32 = 2;

/// The scales of a launch, as the entry point gets them.
pub struct ScaleArguments {
    pub a: *const f32,
    pub a_row_stride: u64,
    pub a_group_stride: u64,
    pub a_kind: u32,
    pub b: *const f32,
    pub b_kind: u32,
}

impl ScaleArguments {
    /// Scales of which those that change along K are found by other means.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub fn of_whole_sums(a: *const f32, a_kind: u32, b: *const f32, b_kind: u32) -> Self {
        Self { a, a_row_stride: 0, a_group_stride: 0, a_kind, b, b_kind }
    }

    /// Address of the scale of `row` and slab 0, for scales per group.
    #[inline(always)]
    pub fn a_group_row(&self, row: u32) -> *const f32 {
        self.a.wrapping_add(row as usize * self.a_row_stride as usize)
    }

    /// Address of the scale of the block of B that holds `column` of `expert`, and slab 0, for scales per block.
    #[inline(always)]
    pub fn b_block_row(&self, expert: u32, column: u32, n: u32, k: u32) -> *const f32 {
        let block = expert as usize * n.div_ceil(BLOCK) as usize + (column / BLOCK) as usize;
        self.b.wrapping_add(block * k.div_ceil(SLAB) as usize)
    }
}

/// The number of the scale of the block of B that holds `column` of `expert`, and slab 0, among fewer than 2^31.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub fn b_block_number(expert: u32, column: u32, n: u32, k: u32) -> u32 {
    (expert * n.div_ceil(BLOCK) + column / BLOCK) * k.div_ceil(SLAB)
}
