//! The GPU kernels of `fp8-moe`.
//!
//! | room | what it holds |
//! |---|---|
//! | [`abi`] | what the host knows besides: numbers, kinds, groups of arguments |
//! | [`scan`] | prefix sums over a block |
//! | [`schedule`] | the tile list: its format, who writes it, how a GEMM walks it; problem sizes |
//! | [`permute`] | expanded rows into the order of experts |
//! | [`router`] | logits, and the experts of each token |
//! | [`elementwise`] | quantise, activation, unpermute, cast |
//! | [`ranks`] | routings that travel between ranks, and the sum of what comes back |
//! | [`gemm`] | the grouped GEMMs: `portable`, `hopper` |
//! | `few_tokens` | the layer behind the router in one launch (sm_90a) |
//! | `read_stream` | what benchmarks find the rate of memory with (Hopper) |
//!
//! Imports point upwards in this table; `xtask/src/rooms.rs` has the arrows, and checks them.
//!
//! Compiled to PTX by the root package's build script, once for each GPU family (`cfg(target_feature =
//! "sm_90a")` tells them apart). A kernel is a `#[kernel]` function; the build script generates a typed
//! launcher for each.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch, stmt_expr_attributes)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod abi;
mod elementwise;
#[cfg(target_feature = "sm_90a")]
mod few_tokens;
mod gemm;
mod permute;
mod ranks;
#[cfg(target_feature = "sm_90a")]
mod read_stream;
mod router;
mod scan;
mod schedule;
