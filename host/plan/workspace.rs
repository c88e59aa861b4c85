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
//! products          u8    [P, 2 * H], or [P, max(4 * 2I', 2 * H)] where GEMM 1 and the activation are two launches:
//!                         the f32 output of GEMM 1, then the 16-bit output of GEMM 2, if the reduction is not order-free
//! sums              f32   [T, H] where the reduction is order-free (an output in f32 leaves it unused)
//! shared            f32   [T, H] what a shared expert beside the grouped GEMMs gives, if the reduction is not order-free
//! shared_products   f32   [T, 2 Is] of such an expert in bf16: gate and up; Is columns of its intermediate
//! shared_middle     bf16  [T, Is]
//! shared_logits     f32   [T] of its weights
//! shared_layer      u8    the workspace of such an expert that is a layer of its own
//! control           u32                          where the layer is one launch: what its blocks hand each other, for
//!                                                workspaces that do not have that apart
//! ```
//!
//! A shared expert that is computed as `s` more experts makes k `k + s`, E `E + s`, E_loc `E_loc + s`, and a
//! row of logits one longer where it has a gate.
//!
//! Every part begins at a multiple of 256 bytes. A forward writes whatever it reads, so the contents do not
//! matter.

use std::ops::Range;

use super::permutation::tile_schedule_entries;
use super::{First, Plan, SharedPlan, elements, scale_rows};
use crate::config::{MoeConfig, Reduction};
use crate::error::{Result, require};
use crate::kernels::launchers;

const OP: &str = "MoeLayer::workspace";

/// Parts begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 256;

/// Byte ranges of the parts, for one number of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
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
    pub shared: Range<usize>,
    pub shared_products: Range<usize>,
    pub shared_middle: Range<usize>,
    pub shared_logits: Range<usize>,
    pub shared_layer: Range<usize>,
    pub control: Range<usize>,
    /// Bytes of all parts.
    pub bytes: usize,
}

impl Layout {
    /// The parts that `plan` asks for; its own layout is not read.
    pub fn new(plan: &Plan, config: &MoeConfig) -> Result<Layout> {
        let (tokens, rows, capacity) = (plan.tokens(), plan.permutation.rows(), plan.capacity());
        let local = plan.permutation.local_experts;
        let (hidden, intermediate) = (config.hidden_size, config.padded_intermediate());
        let (first_products, first_partials) = match &plan.first {
            First::Gated(first) => (0, first.workspace_bytes()),
            First::Apart(first) => (4 * config.halves() * intermediate, first.workspace_bytes()),
        };
        let (second_products, sums) = match config.reduction {
            Reduction::Deterministic => (2 * hidden, 0),
            Reduction::OrderFree => (0, hidden),
        };
        let is_beside = !matches!(plan.shared, SharedPlan::None);
        let shared_size = match plan.shared {
            SharedPlan::Bf16 => config.shared.map_or(0, |shared| shared.intermediate_size),
            SharedPlan::None | SharedPlan::Layer(_) => 0,
        };
        let shared_layer = match &plan.shared {
            SharedPlan::Layer(plan) => plan.layout.bytes,
            SharedPlan::None | SharedPlan::Bf16 => 0,
        };
        let columns = config.logits();
        let control =
            plan.few_tokens.as_ref().map_or(0, |few| launchers::FEW_CONTROL_WORDS as usize + few.set_words());
        let mut end = 0usize;
        let mut part = |rows: usize, columns: usize, size: usize| -> Result<Range<usize>> {
            let start = end;
            let bytes = elements(OP, "tokens", &[rows, columns, size])?;
            let next = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| start.checked_add(bytes));
            require(next.is_some(), OP, "tokens", tokens, || "must need below 2^63 bytes".into())?;
            end = next.unwrap_or(start);
            Ok(start..start + bytes)
        };
        Ok(Layout {
            logits: part(tokens, columns, 4)?,
            topk_ids: part(rows, 1, 4)?,
            topk_weights: part(rows, 1, 4)?,
            expert_offsets: part(local + 1, 1, 8)?,
            sorted_rows: part(capacity, 1, 4)?,
            inverse: part(rows, 1, 4)?,
            schedule: part(tile_schedule_entries(capacity, local, plan.block_m), 1, 16)?,
            quantised: part(plan.quantised_rows, hidden, 1)?,
            scales: part(scale_rows(plan.scaled_rows), config.first_scales().of_row(hidden), 4)?,
            intermediate: part(capacity, intermediate, 1)?,
            intermediate_scales: part(scale_rows(capacity), config.second_scales().of_row(intermediate), 4)?,
            partials: part(first_partials.max(plan.second.workspace_bytes()), 1, 1)?,
            products: part(capacity, first_products.max(second_products), 1)?,
            sums: part(tokens, sums, 4)?,
            shared: part(tokens, if is_beside && sums == 0 { hidden } else { 0 }, 4)?,
            shared_products: part(tokens, config.halves() * shared_size, 4)?,
            shared_middle: part(tokens, shared_size, 2)?,
            shared_logits: part(if shared_size > 0 { tokens } else { 0 }, 1, 4)?,
            shared_layer: part(shared_layer, 1, 1)?,
            control: part(control, 1, 4)?,
            bytes: end,
        })
    }
}
