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
//! quantised         e4m3  [P, H]                 input of GEMM 1; [T, H] where it gathers its rows
//! scales            f32   [groups of it, P']     P' = P rounded up to a multiple of 4; or one for each of P rows, or none
//! intermediate      e4m3  [P, I']                input of GEMM 2
//! intermediate_scales f32 [groups of it, P']     likewise
//! partials          u8    what the GEMMs need for sums that are cut
//! products          u8    [P, 2 * H], or [P, max(4 * 2I', 2 * H)] where GEMM 1 and the activation are two launches: the f32
//!                         output of GEMM 1, then the 16-bit output of GEMM 2, which an order-free reduction has not
//! sums              f32   [T, H] where the reduction is order-free (an output in f32 leaves it unused)
//! ```
//!
//! Every part begins at a multiple of 256 bytes. A forward writes whatever it reads, so the contents do not matter.

use std::ops::Range;

use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::layer::config::{MoeConfig, Quantization, Reduction, SecondScales};
use crate::ops::gated_gemm;
use crate::ops::grouped_gemm::{GemmShape, heuristics, workspace_bytes};
use crate::ops::permute::PermuteShape;
use crate::ops::problem_sizes::tile_schedule_entries;

/// Parts begin at multiples of this.
const ALIGNMENT: usize = 256;

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
    pub quantised: Range<usize>,
    pub scales: Range<usize>,
    pub intermediate: Range<usize>,
    pub intermediate_scales: Range<usize>,
    pub partials: Range<usize>,
    pub products: Range<usize>,
    pub sums: Range<usize>,
    /// Rows of the tiles that both GEMMs walk.
    pub block_m: usize,
    /// Whether GEMM 1 gathers its rows by token.
    pub gathers: bool,
    /// Bytes of all parts.
    pub bytes: usize,
}

impl Layout {
    pub fn new(device: &Device, config: &MoeConfig, tokens: usize) -> Layout {
        let shape = permute_shape(config, tokens);
        let (rows, capacity, local) = (shape.rows(), shape.capacity(), config.local_count());
        let (hidden, intermediate) = (config.hidden_size, config.padded_intermediate());
        let scales = match config.quantization {
            Quantization::TensorStatic => 0,
            Quantization::ChannelToken => 1,
            Quantization::Block128 => hidden.div_ceil(128),
        };
        let intermediate_scales = match config.second_scales() {
            SecondScales::Tensor => 0,
            SecondScales::Token => 1,
            SecondScales::Group128 => intermediate.div_ceil(128),
        };
        let gemm = GemmShape { rows: capacity, n: 2 * intermediate, k: hidden, experts: local };
        let block_m = heuristics::block_m(device, &gemm, config.path);
        let is_gated = is_gated(device, config);
        let first_products = if is_gated { 0 } else { 4 * 2 * intermediate };
        let experts = (local, config.experts);
        let gathers = is_gated && heuristics::gathers(config.gather, block_m, config.top_k, experts);
        let quantised = if gathers { tokens } else { capacity };
        // Scales per group come along with the rows, one per row does not.
        let scaled = if config.quantization == Quantization::Block128 { quantised } else { capacity };
        let (second_products, sums) = match config.reduction {
            Reduction::Deterministic => (2 * hidden, 0),
            Reduction::OrderFree => (0, tokens * hidden),
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
            schedule: part(tile_schedule_entries(capacity, local, block_m), 16),
            quantised: part(quantised * hidden, 1),
            scales: part(scale_rows(scaled) * scales, 4),
            intermediate: part(capacity * intermediate, 1),
            intermediate_scales: part(scale_rows(capacity) * intermediate_scales, 4),
            partials: part(workspace_bytes(device, block_m), 1),
            products: part(capacity * first_products.max(second_products), 1),
            sums: part(sums, 4),
            block_m,
            gathers,
            bytes: end,
        }
    }

    /// Bytes that suffice for any number of tokens up to `tokens`.
    ///
    /// They grow with the tokens as long as the tiles' height stays the same. Taller tiles may need less: fewer partial sums, and
    /// gathered rows are not scattered. So the last number of tokens before each change of height counts as well.
    pub fn bytes_up_to(device: &Device, config: &MoeConfig, tokens: usize) -> usize {
        let (mut most, mut last) = (0, tokens);
        loop {
            let layout = Layout::new(device, config, last);
            most = most.max(layout.bytes);
            // The first number of tokens with tiles of this height, which grow with the tokens.
            let (mut low, mut high) = (0, last);
            while low < high {
                let middle = low + (high - low) / 2;
                if Layout::new(device, config, middle).block_m < layout.block_m {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            match low {
                0 => return most,
                first => last = first - 1,
            }
        }
    }
}

/// Whether GEMM 1, activation and quantisation are one launch.
pub(crate) fn is_gated(device: &Device, config: &MoeConfig) -> bool {
    config.second_scales() != SecondScales::Token && gated_gemm::is_supported(device, config.path)
}

/// Rows that there is room for in a group of scales of `rows` rows: a multiple of 4, as the Hopper GEMMs ask for.
pub(crate) fn scale_rows(rows: usize) -> usize {
    rows.next_multiple_of(4)
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
        let layout = Layout::new(self.memory.device(), &self.config, tokens);
        (self.memory.slice(layout.topk_ids).cast(), self.memory.slice(layout.topk_weights).cast())
    }
}
