//! The door to the CUDA driver API: the functions that [`cust`](https://docs.rs/cust) links against, answered by
//! NVIDIA's driver where there is one and by an emulated device where there is none.
//!
//! ```text
//!   cust, cuda_driver::sys ──▶ cuMemAlloc_v2, cuLaunchKernel, ...   defined here, one trampoline each
//!                                        │ first call: the door chooses, once per process
//!                          ┌─────────────┴─────────────┐
//!                 libcuda.so.1 (dlopen)             ptx_sim
//!                 a GPU of capability >= 8.9        the same PTX, on the CPU
//! ```
//!
//! | module or item | what it is |
//! |---|---|
//! | [`choose`], [`backend`], [`reason`] | the choice: `FP8_MOE_DEVICE`, or the program, or what is there |
//! | [`sys`] | functions newer than `cust` 0.3.2: extended launches, capture, graphs, tensor maps |
//! | [`sim`] | for tests: seed, counters and faults of the emulated device |
//!
//! # Building without CUDA
//! `cust`'s build script insists on a CUDA folder, even though nothing of it is needed here. Any folder with a
//! `lib64` inside will do, and the variable `CUDA_LIBRARY_PATH` names it. This repository points it at
//! `crates/cuda_driver/cuda` in `.cargo/config.toml`. A program that depends on this crate from elsewhere, and
//! is built on a machine without CUDA, does the same in its own `.cargo/config.toml`; on most 64-bit Linux
//! systems `/usr` is such a folder:
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = "/usr"
//! ```
//!
//! With a CUDA toolkit in `/usr/local/cuda` or `/opt/cuda` nothing need be set. Either way the program does not
//! depend on `libcuda.so.1`: it starts on any machine and looks for the driver when it first calls it.
//!
//! # Supported platforms
//! Linux on x86-64 and AArch64, as the trampolines are machine code.

mod door;
mod libcuda;
pub mod sim;
pub mod sys;
mod trampolines;

pub use door::{
    Backend, DeviceRequest, DoorError, ENVIRONMENT_VARIABLE, backend, choose, chosen, environment, reason,
};
