//! What a GPU kernel written in Rust may use.
//!
//! A `no_std` crate for the device alone: it compiles for `nvptx64-nvidia-cuda` and for nothing else.
//!
//! | module | what | PTX |
//! |---|---|---|
//! | [`code`] | kinds as numbers that the host knows too | |
//! | [`thread`] | indices of thread, warp, block | special registers |
//! | [`sync`] | barriers of block, warps, warp | `bar.sync`, `bar.warp.sync` |
//! | [`warp`] | shuffles, votes, match, reductions | `shfl.sync`, `vote.sync`, `redux.sync` |
//! | [`shared`] | static and dynamic shared memory | `ld.shared`, `st.shared` |
//! | [`memory`] | vector loads and stores, cache hints, fences | `ld.global.v4`, `ld.global.nc`, `fence` |
//! | [`atomic`] | atomics with order and scope | `atom` |
//! | [`cp_async`] | asynchronous copies into shared memory | `cp.async` |
//! | [`ldmatrix`] | matrix fragments out of shared memory | `ldmatrix` |
//! | [`mma`] | the tensor cores | `mma.sync` |
//! | [`fp8`], [`bf16`] | conversions | `cvt` |
//! | [`math`] | fused multiply-add, approximations | `fma`, `ex2`, `rcp` |
//! | [`grid`] | programmatic dependent launch | `griddepcontrol` |
//! | [`l2`] | how long the L2 cache keeps data | `createpolicy`, `.L2::cache_hint` |
//! | `bulk` | copies and sums of lines, groups of stores, prefetches (sm_90a) | `cp.async.bulk`, `cp.reduce.async.bulk` |
//! | `cluster` | blocks that share shared memory (sm_90a) | `barrier.cluster`, `mapa` |
//! | `mbarrier` | barriers that count arrivals and bytes (sm_90a) | `mbarrier` |
//! | `tma` | tensor copies between global and shared memory (sm_90a) | `cp.async.bulk.tensor`, `cp.reduce.async.bulk.tensor` |
//! | `wgmma` | the asynchronous tensor cores of a warpgroup (sm_90a) | `wgmma`, `setmaxnreg` |
//!
//! # Two rules
//! **Convergence.** What synchronises or talks across threads is an LLVM intrinsic, which LLVM knows to be
//! convergent, and never `asm!`, which from Rust is not. Collective functions (barriers, shuffles, votes) are
//! safe to call as far as Rust's memory is concerned, and each says which threads must execute it together; a
//! call that breaks that hangs or yields garbage values.
//!
//! **No local memory.** An array in registers is indexed by constants only: a run-time index moves it to
//! local memory, which is DRAM. The build fails on any stack frame.
//!
//! Pointers that a kernel takes are generic to rustc; LLVM infers global memory for kernel arguments and
//! emits `ld.global`/`st.global` for plain Rust accesses through them.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch, link_llvm_intrinsics)]
#![allow(internal_features)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

#[doc(hidden)]
pub use cuda_std_macros::resolve_arguments;
pub use cuda_std_macros::{arguments, host, kernel, unroll};

pub mod atomic;
pub mod bf16;
#[cfg(target_feature = "sm_90a")]
pub mod bulk;
#[cfg(target_feature = "sm_90a")]
pub mod cluster;
pub mod code;
pub mod cp_async;
pub mod fp8;
pub mod grid;
pub mod l2;
pub mod ldmatrix;
pub mod math;
#[cfg(target_feature = "sm_90a")]
pub mod mbarrier;
pub mod memory;
pub mod mma;
pub mod shared;
pub mod sync;
pub mod thread;
#[cfg(target_feature = "sm_90a")]
pub mod tma;
pub mod warp;
#[cfg(target_feature = "sm_90a")]
pub mod wgmma;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    trap()
}

/// Ends the grid with an error that the host sees at its next synchronisation: `trap`.
#[inline(always)]
pub fn trap() -> ! {
    // SAFETY: `trap` does not return.
    unsafe { core::arch::asm!("trap;", options(noreturn, nostack)) }
}
