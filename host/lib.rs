//! FP8 Mixture-of-Experts layer for Rust, with GPU kernels written in Rust.
//!
//! ```text
//!  hidden states [T, H] ──▶ router ──▶ top-k ──▶ permute                 which rows go to which expert
//!        │                                          │
//!        └─────────────▶ quantise to e4m3 ──────────┤                  rows sorted by expert
//!                                                   ▼
//!                                      grouped GEMM 1 [P, 2I]          gate and up, of every expert at once
//!                                                   │
//!                                      activation, quantise            silu(gate) * up, in e4m3
//!                                                   │
//!                                      grouped GEMM 2 [P, H]           down
//!                                                   │
//!  output [T, H] ◀── weigh, sum over the k experts ◀┘                  T tokens, P = T * k rows
//! ```
//!
//! The kernels run on NVIDIA GPUs from Ada on, those of Hopper by TMA and `wgmma`; and where there is none,
//! on the emulated device `sim`, which executes the same PTX. A layer is at most five launches from routed
//! ids on.
//!
//! ```
//! # fn main() -> fp8_moe::Result<()> {
//! # if cfg!(not(feature = "sim")) { return Ok(()); }
//! use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
//! use half::bf16;
//!
//! let device = Device::open(DeviceSpec::Sim)?; // on a GPU: DeviceSpec::Auto
//! let config = MoeConfig::builder().hidden_size(64).intermediate_size(64).experts(2).top_k(1).build()?;
//! let ones = vec![E4m3::from_f32(1.0); 64 * 64];
//! let expert = ExpertWeights::new().gate(&ones, &[1.0]).up(&ones, &[1.0]).down(&ones, &[1.0]);
//! let weights = MoeWeights::new(vec![expert; 2]).router(vec![bf16::ONE; 2 * 64]);
//! let layer = MoeLayer::new(&device, &config, &weights)?;
//!
//! let hidden = device.upload(&[bf16::from_f32(1.0 / 64.0); 3 * 64])?; // three tokens
//! let (mut workspace, mut out) = (layer.workspace(3)?, device.zeros::<f32>(hidden.len())?);
//! layer.forward(&device.default_stream(), &hidden, &mut workspace, &mut out)?;
//!
//! // gate = up = 1, so that each output is 64 * silu(1), within what e4m3 holds.
//! let out = out.to_vec(&device.default_stream())?;
//! assert!(out.iter().all(|y| (y / (64.0 * 0.7311) - 1.0).abs() < 0.07), "{out:?}");
//! # Ok(())
//! # }
//! ```
//!
//! The [`guide`] goes from here to memory and streams of one's own in ten minutes.
//!
//! | level | what it is |
//! |---|---|
//! | [`checkpoint`], [`MoeLayer`] | a layer from a safetensors checkpoint, or from weights of one's own, and its forward |
//! | [`ops`] | the single operations on device buffers, in a stream, without allocation or synchronisation |
//! | [`Device`], [`Buffer`], [`Stream`], [`Event`], [`Graph`] | the CUDA driver API, through [`cust`] |
//!
//! | feature | what it adds |
//! |---|---|
//! | `sim` | the emulated device, [`DeviceSpec::Sim`] |
//! | `cudarc` | devices, streams and memory of cudarc's: `Device::from_cudarc`, `Device::cudarc_scope` |
//! | `build-kernels` | compiles the kernels instead of taking the committed PTX: for a checkout |
//!
//! What configures the library, and what it gives out, is `#[non_exhaustive]` and may grow in a minor
//! version. Arguments of calls are structs with all fields named: a new one is a new major version.
//! `internals`, which the documentation does not show, may change in any release.
//!
//! Without a feature it needs no toolkit and no driver to build, on any system; where there is no driver,
//! opening a device is an error.
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
//! - *Captured work* has not run: a permutation made in a capture is refused outside it, and one made outside
//!   is refused in captures. A replay writes memory that nobody lends it, and so may write the lists of a
//!   permutation: operations refuse the permutation from then on.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
// What the library gives out, and what configures it, may grow.
#![warn(missing_debug_implementations, clippy::exhaustive_enums, clippy::exhaustive_structs)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

pub mod checkpoint;
mod config;
mod error;
mod fp8;
mod gpu;
#[doc(hidden)]
#[allow(clippy::exhaustive_enums, clippy::exhaustive_structs, reason = "no part of the public API")]
pub mod internals;
mod kernels;
pub mod layer;
#[allow(clippy::exhaustive_structs, reason = "arguments by name: one more is a new version")]
pub mod ops;
pub mod parallel;
#[allow(clippy::exhaustive_enums, clippy::exhaustive_structs, reason = "arguments by name, and `internals`")]
mod plan;
mod threads;

pub use checkpoint::Checkpoint;
pub use cust;
pub use error::{Error, Result};
pub use fp8::E4m3;
pub use gpu::buffer::{Buffer, Slice, SliceMut};
#[cfg(feature = "cudarc")]
pub use gpu::cudarc;
pub use gpu::device::Device;
pub use gpu::family::Family;
pub use gpu::graph::Graph;
pub use gpu::launch::DevicePtr;
pub use gpu::spec::DeviceSpec;
pub use gpu::stream::{Event, Stream};
pub use layer::{
    Accumulation, ActivationFunction, ActivationScales, DeviceMemory, ExpertIds, ExpertWeights, Forward,
    Gather, Gating, Hidden, IntermediateScales, MoeConfig, MoeConfigBuilder, MoeDeviceWeights, MoeLayer,
    MoeWeights, Output, OutputElement, OutputType, Progress, Quantization, RawForward, RawHidden, RawOutput,
    RawRouting, Reduction, RouterWeights, Routing, SharedDeviceWeights, SharedExpert, SharedKind,
    SharedMatrices, SharedWeights, Step, TokenIds, Tuning, WeightScales, Workspace,
};

#[doc = include_str!("../docs/EMBEDDING.md")]
pub mod guide {}

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
