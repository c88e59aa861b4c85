//! The CUDA driver API over one emulated device.
//!
//! Each function here has the name, the arguments and the meaning of NVIDIA's; `cust` finds them by
//! [`function`], and `libcuda_sim` exports them as a `libcuda.so.1`.
//!
//! ```text
//!   device, context      what the device says about itself; who owns what   state: device, handles, failures
//!   allocation           device memory, page-locked memory                  profile: the GPU's numbers
//!   module, occupancy    PTX in, kernels out                                control: seed, counters, log
//!   launch, transfer ──▶ Work ──▶ stream ──▶ runs now, on the Machine
//!                                    └─ capture ──▶ graph ──▶ runs when launched
//! ```
//!
//! * Work runs inside the call that submits it. Synchronising therefore never waits, and a kernel's fault is
//!   the result of its own launch.
//! * As on a GPU a fault breaks its context: every later call in it returns the fault's code, until it is
//!   destroyed or reset (`cuCtxDestroy`, `cuDevicePrimaryCtxReset`); [`forgive_faults`] is for tests.
//! * A failing call leaves a text with the thread: [`last_error`] has the function and the rule that was
//!   broken, and [`last_fault`] what a kernel did wrong, in one line: kernel, block, thread, PTX line, source
//!   line, and the mistake.
//! * A program above the C API finds out that the device is emulated by its name, which begins with
//!   [`EMULATED`], or by the symbol `ptx_sim_last_fault` that `libcuda_sim` exports beside NVIDIA's, to be
//!   found by `dlsym`. It and `ptx_sim_last_error` give such a program the texts.
//! * Limits are checked as the driver checks them: block and grid sizes, shared memory, `.maxntid`.
//! * Not there: textures, arrays, managed memory, peers, linking, interoperation with graphics. Those
//!   functions exist and return `CUDA_ERROR_NOT_SUPPORTED`.
// Names are NVIDIA's.
#![allow(non_snake_case)]

/// What the name of every emulated device begins with.
pub const EMULATED: &str = "ptx_sim (emulated";

pub mod abi;
mod allocation;
mod capture;
mod context;
mod control;
mod device;
mod functions;
mod graph;
mod history;
mod launch;
mod library;
mod module;
mod occupancy;
mod proc_address;
mod profile;
mod state;
mod stream;
mod tensor_map;
mod transfer;
mod unsupported;
mod work;

pub use allocation::*;
pub use capture::*;
pub use context::*;
pub use control::{
    LaunchRecord, forgive_faults, last_error, last_fault, print_faults, record_calls, set_seed, set_workers,
    take_counters, take_last_error, take_last_fault, take_launch_log,
};
pub use device::*;
pub use functions::{NAMES, function};
pub use graph::*;
pub use launch::*;
pub use library::*;
pub use module::*;
pub use occupancy::*;
pub use proc_address::*;
pub use stream::*;
pub use tensor_map::*;
pub use transfer::*;
pub use unsupported::*;
