//! Kernels on `cuda_std`'s asynchronous items for Hopper, for `cuda_builder`'s test `cuda_std_hopper`, which
//! runs them on the emulated device: the right way against an oracle, and in ways that are wrong on purpose.
//!
//! The way is an argument and the same for all threads, so that a mistake is made in the very code that is
//! right without it.

#![no_std]
#![cfg_attr(target_feature = "sm_90a", feature(abi_ptx, asm_experimental_arch))]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

#[cfg(target_feature = "sm_90a")]
mod loads;
#[cfg(target_feature = "sm_90a")]
mod stores;
#[cfg(target_feature = "sm_90a")]
mod ways;

// Of older families there is nothing to run; the crate still needs the panic handler.
use cuda_std as _;
