//! The CUDA driver API for Rust, over a table of function pointers.
//!
//! The name and the shape (contexts, modules, streams, events, memory, graphs, launches) are those of
//! Rust-CUDA's `cust`. That one links against `libcuda`, and its build script wants a CUDA toolkit; this one
//! looks for the driver when it is asked for it, and links against nothing:
//!
//! ```text
//!   Driver::cuda() ──▶ libcuda.so.1, nvcuda.dll ──┐
//!                                                 ├──▶ Table: a pointer a function ──▶ Context ──▶ Stream
//!   Driver::sim()  ──▶ ptx_sim (feature `sim`) ───┘
//! ```
//!
//! No function of the driver's names is defined or imported here. A program that uses NVIDIA's driver by
//! other means keeps it, and one process may use a GPU and the emulated device side by side: a [`Context`]
//! knows its [`Driver`], and everything that lives in a context knows the context.
//!
//! | module | what it is |
//! |---|---|
//! | [`driver`] | [`Driver`]: the one place where a device's driver is chosen |
//! | [`sys`] | the driver's types, constants and the table of its functions |
//! | [`error`] | [`CudaError`]: which call failed, with which code, and why |
//! | [`device`] | devices and their attributes |
//! | [`context`] | contexts, and which one is a thread's current one |
//! | [`memory`] | device memory, page-locked host memory |
//! | [`module`] | PTX in, kernels out |
//! | [`stream`], [`event`] | queues of work, and points in them |
//! | [`graph`] | captured work |
//! | [`launch`] | launching a kernel |
//! | [`tensor_map`] | descriptors for Hopper's TMA |
//! | `sim` | for tests: seed, counters and faults of the emulated device (feature `sim`) |
//!
//! # The current context
//! The driver has a current context per thread. Functions here make theirs current where it is not, and
//! restore the caller's before they return, so that programs with contexts of their own are not disturbed.
//!
//! # Errors
//! Functions that return a [`CudaResult`] fail with what the driver has answered, and where it asks for it,
//! for handles that do not belong together; more is said where there is more.
//!
//! # What is safe
//! Handles are created, used and destroyed safely. A handle lives as long as what uses it: a function holds
//! its module, and everything holds its context, guards of [`Context::enter`] included. Handles of different
//! drivers, or of different contexts where the driver asks for one, are refused before the driver sees them.
//!
//! Unsafe is what cannot be checked here, each with its contract:
//!
//! - copies, fills, launches and graphs, which read and write memory after their call has returned;
//! - [`Module::from_ptx`], since the driver's compiler runs on the text in this process;
//! - handles of others: `from_raw` of contexts and streams, and tables of other functions ([`Driver::with`]).
#![warn(missing_debug_implementations, clippy::exhaustive_enums, clippy::exhaustive_structs)]

pub mod context;
pub mod device;
pub mod driver;
pub mod error;
pub mod event;
pub mod graph;
pub mod launch;
pub mod memory;
pub mod module;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stream;
#[allow(clippy::exhaustive_structs, reason = "laid out as `cuda.h` has them")]
pub mod sys;
pub mod tensor_map;

pub use context::Context;
pub use device::Device;
pub use driver::{Driver, Unavailable};
pub use error::{CudaError, CudaResult};
pub use event::Event;
pub use graph::GraphExec;
pub use memory::{DeviceMemory, HostMemory};
pub use module::{Function, Module};
pub use stream::Stream;
