//! The acceptance grids of the specification: a module for each operation, a test for each row.
//!
//! | row of the specification | tests |
//! |---|---|
//! | permute | `permute::t1` .. `t5000`; copies of rows: `permute::rows_t1` .. `rows_t5000` |
//! | unpermute | `unpermute::t1` .. `t5000` |
//! | grouped GEMM | `grouped_gemm::e8_..`, `e64_..`, by the scales of A and B |
//! | layer, per-tensor and per-token | `layer::per_tensor_..`, `per_token_..`, `t7_..`, `t32768_..` |
//! | layer, large | `layer::large_t7232_..`, `large_t40000_..` |
//! | layer, EP | `layer_ep::..` |
//! | layer, 128-blocks | `layer_blocks::i128` .. `i4608` |
//! | routing | `routing::softmax`, `grouped_e16_k2` .. `grouped_e512_k22` |
//! | quantisation | `quantisation::hidden_17` .. `hidden_8193` |
//! | workspace | `workspace::..`, by scheme |
//! | (what decides) | `bounds::..`: bounds hold for tensor cores that cut sums; a zeroed element fails |
//!
//! Every row has a small size, which the emulated device can run, beside the full one, which is the
//! specification's. A GPU runs the full size; `FP8_MOE_GRID=full` and `FP8_MOE_GRID=small` choose:
//!
//! ```text
//!     cargo test --test grid                                           small, on the emulated device
//!     FP8_MOE_DEVICE=auto cargo test --release --test grid             full, on a GPU
//! ```

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod grouped_gemm;
mod layer;
mod layer_blocks;
mod layer_ep;
mod permute;
mod points;
mod quantisation;
mod routing;
mod unpermute;
mod workspace;
