//! What the gated ends share: the activation of gate and up, and quantisation to e4m3 for the second projection.

use super::super::scale_arguments::ScaleArguments;

/// Where activated and quantised values go.
#[derive(Clone, Copy)]
pub struct Requantization {
    /// `q [P, intermediate]`, e4m3.
    pub q: *mut u8,
    /// Columns of `q`: a multiple of 16.
    pub intermediate: u32,
    /// Code of an [activation](crate::activation::functions).
    pub activation: u32,
    /// The given scale of all values; null where each row has a scale per 128 columns.
    pub given_scale: *const f32,
    /// Where the scale of (row, group) goes: `scales[row * row_stride + group * group_stride]`.
    pub scales: *mut f32,
    pub row_stride: u64,
    pub group_stride: u64,
}

/// What the ends of a gated kernel need to know of a launch.
pub struct GatedArguments {
    pub scales: ScaleArguments,
    pub out: Requantization,
    pub k: u32,
}
