//! The memory that a forward works in: what lies where, for a number of tokens.
//!
//! ```text
//! logits            f32   [T, E]
//! topk_ids          i32   [T, k]
//! topk_weights      f32   [T, k]
//! expert_offsets    i64   [E_loc + 1]
//! sorted_rows       i32   [P]                    P = R = T * k permuted rows
//! inverse           i32   [R]
//! schedule          u32x4 [tiles + 1]            row tiles of the grouped GEMM
//! sorting           u8    what `permute` needs
//! quantised         e4m3  [P, max(H, I')]        input of GEMM 1, then of GEMM 2
//! scales            f32   [P, groups of it]
//! products          u8    [P, max(4 * 2I', 2 * H)]  f32 output of GEMM 1, then 16-bit output of GEMM 2
//! ```
//!
//! Every part begins at a multiple of 256 bytes. A forward writes whatever it reads, so the contents do not matter.

use std::ops::Range;

use crate::buffer::{Buffer, Slice, SliceMut};
use crate::layer::config::{MoeConfig, Quantization};
use crate::ops::permute::{PermutePath, PermuteShape};
use crate::ops::problem_sizes::tile_schedule_entries;

/// Parts begin at multiples of this.
const ALIGNMENT: usize = 256;

/// The least rows of a GEMM tile: what the schedule must have room for.
pub(crate) const LEAST_TILE_ROWS: usize = 16;

/// Byte ranges of the parts, for one number of tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    pub logits: Range<usize>,
    pub topk_ids: Range<usize>,
    pub topk_weights: Range<usize>,
    pub expert_offsets: Range<usize>,
    pub sorted_rows: Range<usize>,
    pub inverse: Range<usize>,
    pub schedule: Range<usize>,
    pub sorting: Range<usize>,
    pub quantised: Range<usize>,
    pub scales: Range<usize>,
    pub products: Range<usize>,
    /// Bytes of all parts.
    pub bytes: usize,
}

impl Layout {
    pub fn new(config: &MoeConfig, tokens: usize) -> Layout {
        let shape = permute_shape(config, tokens);
        let (rows, capacity, local) = (shape.rows(), shape.capacity(), config.local_count());
        let (hidden, intermediate) = (config.hidden_size, config.padded_intermediate());
        let widest = hidden.max(intermediate);
        let scales = match config.quantization {
            Quantization::TensorStatic => 0,
            Quantization::ChannelToken => 1,
            Quantization::Block128 => widest.div_ceil(128),
        };
        let mut end = 0;
        let mut part = |elements: usize, size: usize| {
            let start = end;
            end += (elements * size).next_multiple_of(ALIGNMENT);
            start..start + elements * size
        };
        Layout {
            logits: part(tokens * config.experts, 4),
            topk_ids: part(rows, 4),
            topk_weights: part(rows, 4),
            expert_offsets: part(local + 1, 8),
            sorted_rows: part(capacity, 4),
            inverse: part(rows, 4),
            schedule: part(tile_schedule_entries(capacity, local, LEAST_TILE_ROWS), 16),
            sorting: part(shape.workspace_bytes(PermutePath::Auto), 1),
            quantised: part(capacity * widest, 1),
            scales: part(capacity * scales, 4),
            products: part(capacity * (2 * hidden).max(4 * 2 * intermediate), 1),
            bytes: end,
        }
    }
}

/// The permutation of a layer's rows.
pub(crate) fn permute_shape(config: &MoeConfig, tokens: usize) -> PermuteShape {
    PermuteShape {
        tokens,
        top_k: config.top_k,
        experts: config.experts,
        local_experts: config.local_count(),
        alignment: 1,
    }
}

/// Device memory for the forwards of a layer, one at a time. From [`crate::MoeLayer::workspace`].
#[derive(Debug)]
pub struct Workspace {
    config: MoeConfig,
    memory: Buffer<u8>,
}

impl Workspace {
    pub(crate) fn new(config: MoeConfig, memory: Buffer<u8>) -> Workspace {
        Workspace { config, memory }
    }

    /// All of the memory.
    pub fn memory(&mut self) -> SliceMut<'_, u8> {
        self.memory.as_mut_slice()
    }

    /// The routing that the last [`crate::MoeLayer::forward`] with `tokens` tokens chose: ids i32 `[T, k]` and weights
    /// f32 `[T, k]`. Panics when the workspace is too small for so many tokens.
    pub fn routing(&self, tokens: usize) -> (Slice<'_, i32>, Slice<'_, f32>) {
        let layout = Layout::new(&self.config, tokens);
        (self.memory.slice(layout.topk_ids).cast(), self.memory.slice(layout.topk_weights).cast())
    }
}
