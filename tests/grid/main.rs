//! The acceptance grids of the specification: a module for each operation, a test for each row.
//!
//! | row of the specification | test |
//! |---|---|
//! | layer, per-tensor/per-token | `layer::per_tensor_..`, `layer::per_token_..`: a test for each I and H; `layer::t7_..`, `layer::t32768_..` |
//! | layer, large | `layer::large_t7232_..`, `layer::large_t40000_..` |
//! | layer, EP | `layer_ep::..` |
//! | layer, 128-blocks | `layer_blocks::i128` to `i4608` |
//! | routing | `routing::softmax`, `routing::grouped` |
//! | workspace | `workspace::..` |
//! | (what decides) | `bounds::..`: the bounds hold for tensor cores that cut sums; a zeroed element fails |
//!
//! Every row has a small size, which the emulated device can run, beside the full one, which is the specification's. A GPU runs the
//! full size; `FP8_MOE_GRID=full` and `FP8_MOE_GRID=small` choose:
//!
//! ```text
//!     cargo test --test grid                                           small, on the emulated device
//!     FP8_MOE_DEVICE=auto cargo test --release --test grid             full, on a GPU
//! ```

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod layer;
mod layer_blocks;
mod layer_ep;
mod points;
mod routing;
mod workspace;
