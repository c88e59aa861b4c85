//! What the host knows of the kernels besides their arguments: numbers and kinds, and the groups of arguments
//! that recur.
//!
//! Everything marked `#[host]` or `#[arguments]`, here or beside a kernel, reaches the host through a record
//! in the PTX. The host writes none of it again.

use cuda_std::code::Code;
use cuda_std::{arguments, host};

/// Bytes of K that a GEMM has in shared memory together: a row of a stage, and the width of a scale group or
/// block.
#[host]
pub const SLAB: u32 = 128;

/// Columns of D, rows of B, that share a block scale.
#[host]
pub const SCALE_BLOCK: u32 = 128;

/// Columns that share a scale of activations where it is not [`SLAB`], for other programs.
#[host]
pub const SMALL_GROUP: u32 = 64;

/// Bytes that operands are copied by, at least. Matrices begin at multiples of it, and so does every row: K is
/// a multiple.
#[host]
pub const COPY_BYTES: u32 = 16;

/// What N is a multiple of: 16 bytes of D in 16 bits.
#[host]
pub const COLUMNS_MULTIPLE: u32 = 8;

/// Threads of a warp.
#[host]
pub const WARP_THREADS: u32 = 32;

/// A GEMM's tile and the ring of stages that brings its operands.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmTile {
    /// Most rows of A.
    pub rows: u32,
    /// Columns of D.
    pub columns: u32,
    /// Stages of the ring, one slab of K each.
    pub stages: u32,
    /// Bytes of A and B in a stage.
    pub operand_bytes: u32,
    /// Rows of A in a TMA box; 0 in kernels that have none.
    pub a_box_rows: u32,
    /// Bytes of global memory that a block needs for sums of items that were cut; 0 where none are.
    pub partial_bytes: u32,
}

/// Which scales A has.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AScaleKind {
    /// One for the call.
    Call = 0,
    /// One for each row.
    Row = 1,
    /// One for each row and 128 of K.
    Group = 2,
}

/// Which scales B has.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BScaleKind {
    /// One for each expert.
    Expert = 0,
    /// One for each column of D (row of B).
    Channel = 1,
    /// One for each block of 128 x 128.
    Block = 2,
}

/// What becomes of D.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OutType {
    /// Stored as bf16.
    Bf16 = 0,
    /// Stored as f16.
    F16 = 1,
    /// Stored as f32.
    F32 = 2,
    /// Added to the sums of its tokens, f32. On Hopper alone.
    TokenSums = 3,
}

/// What joins gate and up.
#[host]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum ActivationFunction {
    /// `up * gate / (1 + e^-gate)`.
    #[default]
    Silu = 0,
    /// `up * gate * Phi(gate)`, Phi the normal distribution: the gelu defined by erf.
    Gelu = 1,
    /// `up * 0.5 * gate * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3)))`.
    GeluTanh = 2,
    /// gpt-oss: `(up + 1) * gate / (1 + e^(-1.702 gate))`, within a limit of 7.
    SwigluOai = 3,
    /// `up * max(gate, 0)`: where up is gate, relu squared.
    Relu2 = 4,
}

/// How gate and up become one value.
#[arguments]
pub struct Gating {
    /// Columns from a gate to its up: I; 0 where experts have no gate, and up takes its place.
    pub up: u32,
    /// What gate is at most, and the magnitude of up; infinite for no limit.
    pub limit: f32,
    /// What joins them.
    pub function: Code<crate::abi::ActivationFunction>,
}

/// Where a scale is: that of row r and group g is element `r * row + g * group`.
#[arguments]
pub struct Strides {
    /// Elements from a row to the next.
    pub row: u64,
    /// Elements from a group to the next.
    pub group: u64,
}

/// The scales of a GEMM's operands, and what is added to scaled sums.
#[arguments]
pub struct Scales {
    /// Those of A, as many as `a_kind` says.
    pub a: *const f32,
    /// Those of B, as many as `b_kind` says.
    pub b: *const f32,
    /// f32 `[experts, n]`, n being the rows of B of an expert; null for none.
    pub bias: *const f32,
    /// Which scales A has.
    pub a_kind: Code<crate::abi::AScaleKind>,
    /// Which scales B has.
    pub b_kind: Code<crate::abi::BScaleKind>,
}

/// Where scales per row and group of columns go.
#[arguments]
pub struct GroupScalesOut {
    /// f32, of every destination row.
    pub scales: *mut f32,
    /// Where in it.
    pub strides: crate::abi::Strides,
    /// Columns that share a scale: 64 or 128.
    pub group_size: u32,
}
