//! Every operation on random shapes, skews, empties and invalid ids, against its definition; edge shapes;
//! refusals.
//!
//! Cases that failed are kept in `tests/regressions/` (proptest's own files, tried first) or as tests named
//! `regressions`. `FP8_MOE_CASES` says how many cases each property draws.

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod few_tokens;
mod forward;
mod gated_gemm;
mod grouped_gemm;
mod layer;
mod order_free;
mod pack_weights;
mod permute;
mod problem_sizes;
mod quantise;
mod router;
mod settled;
mod shared;
mod unpermute;
