//! FP8 Mixture-of-Experts layer for Rust.
//!
//! `route -> permute -> quantise -> grouped GEMM 1 -> activation + quantise -> grouped GEMM 2 -> unpermute-reduce`,
//! in GPU kernels written in Rust. They run on NVIDIA GPUs from Ada on, and where there is none on the emulated device
//! `sim`, which executes the same PTX.
//!
//! | level | what it is |
//! |---|---|
//! | [`checkpoint`], [`MoeLayer`] | a layer from a safetensors checkpoint, or from weights of one's own, and its forward |
//! | [`ops`] | the single operations on device buffers, in a stream, without allocation or synchronisation |
//! | [`Device`], [`Buffer`], [`Stream`], [`Event`], [`Graph`] | the CUDA driver API, through `cust` |
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod checkpoint;
mod error;
mod fp8;
mod gpu;
#[doc(hidden)]
pub mod internals;
pub mod kernels;
pub mod layer;
pub mod ops;

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use fp8::E4m3;
pub use gpu::buffer::{Buffer, Slice, SliceMut};
pub use gpu::device::{Device, DeviceSpec, Family};
pub use gpu::launch::{DevicePtr, Grid, Kernel, TensorMap};
pub use gpu::stream::{Event, Graph, Stream};
pub use layer::{
    Accumulation, ActivationFunction, ExpertWeights, Gather, IntermediateScales, MoeConfig, MoeDeviceWeights,
    MoeLayer, MoeWeights, OutputElement, Progress, Quantization, Reduction, RouterWeights, Routing, Step,
    Workspace,
};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
