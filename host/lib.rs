//! FP8 Mixture-of-Experts layer for Rust.
//!
//! `route -> permute -> quantise -> grouped GEMM 1 -> activation + quantise -> grouped GEMM 2 ->
//! unpermute-reduce`, in GPU kernels written in Rust. They run on NVIDIA GPUs from Ada on, and where there is
//! none on the emulated device `sim`, which executes the same PTX.
//!
//! | level | what it is |
//! |---|---|
//! | [`checkpoint`], [`MoeLayer`] | a layer from a safetensors checkpoint, or from weights of one's own, and its forward |
//! | [`ops`] | the single operations on device buffers, in a stream, without allocation or synchronisation |
//! | [`plan`] | which kernels run, on what grids, in how much memory |
//! | [`Device`], [`Buffer`], [`Stream`], [`Event`], [`Graph`] | the CUDA driver API, through [`cust`] |
//!
//! # Safety
//! No sequence of safe calls reaches undefined behaviour, on the device either: no kernel leaves the memory
//! that it was given, and no two write one place at a time. The reasons:
//!
//! - *Memory.* A [`Slice`] lies inside an allocation of a device, since only unsafe code makes one from an
//!   address. Every operation compares the length, the device and, where kernels ask for it, the alignment of
//!   each of its slices with its sizes before it launches anything. What it writes it takes as a
//!   [`SliceMut`], which overlaps no other slice.
//! - *Lists of rows.* What says where a thread writes is made on the device, where the host does not see it.
//!   It travels as a [`Permutation`](ops::permutation::Permutation): made by the sort, which takes any ids
//!   and any map, or from lists that were scanned, or by an unsafe call; its memory is borrowed exclusively.
//!   All other values on the device (ids, weights, scales, hidden states, memory that nobody has written)
//!   change results at most, and never an address.
//! - *Sizes.* Grids, shared memory and partial sums come from a plan that was made for the sizes, the device
//!   and the tiles' height that the operation compares with those of the permutation.
//! - *Order.* Work on a stream runs in order; kernels that overlap wait for the one before by themselves.
//!   Whatever depends on the order of launches being known is unsafe (`*_with_settled_*`). Every slice that
//!   an operation touches, lists of a permutation included, is checked with the operation's stream, which
//!   then waits for conflicting work on other streams. Memory is freed when no stream uses it any more.
//!   `host/gpu/mod.rs` has the reasons.
//! - *Captured work* has not run: a permutation made in a capture is refused outside it. Replaying a graph is
//!   unsafe, since it writes memory that nobody lends it, and so may write the lists of a permutation.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![warn(missing_debug_implementations)]

pub mod checkpoint;
mod config;
mod error;
mod fp8;
mod gpu;
#[doc(hidden)]
pub mod internals;
mod kernels;
pub mod layer;
pub mod ops;
pub mod plan;

pub use checkpoint::Checkpoint;
pub use cust;
pub use error::{Error, Result};
pub use fp8::E4m3;
pub use gpu::buffer::{Buffer, Slice, SliceMut};
pub use gpu::device::Device;
pub use gpu::family::Family;
pub use gpu::graph::Graph;
pub use gpu::launch::DevicePtr;
pub use gpu::spec::DeviceSpec;
pub use gpu::stream::{Event, Stream};
pub use layer::{
    Accumulation, ActivationFunction, DeviceMemory, ExpertIds, ExpertWeights, Forward, Gather, Hidden,
    IntermediateScales, MoeConfig, MoeConfigBuilder, MoeDeviceWeights, MoeLayer, MoeWeights, Output,
    OutputElement, OutputType, Progress, Quantization, RawForward, RawHidden, RawOutput, RawRouting,
    Reduction, RouterWeights, Routing, Step, Workspace,
};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
