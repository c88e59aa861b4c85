//! The GPU kernels of `fp8-moe`.
//!
//! Compiled to PTX by the root package's build script, once for each GPU family (`cfg(target_feature =
//! "sm_90a")` tells them apart). A kernel is a `#[kernel]` function; the build script generates a typed
//! launcher for each.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch, stmt_expr_attributes)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod abi;
mod activation;
mod cast;
mod grouped_gemm;
mod permute;
mod problem_sizes;
mod quantize;
mod ranks;
mod router;
mod unpermute;
