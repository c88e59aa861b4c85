//! Hopper's asynchronous instructions, one by one against the ISA, and kernels that use them wrongly.
//!
//! Every kernel runs under several seeds: right ones give the same result, wrong ones are caught.

#![allow(clippy::result_large_err)]

mod bulk;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod mbarrier;
mod reduction;
mod setmaxnreg;
mod tile;
mod wgmma;
mod wrong;

use common::Kernel;
use ptx_sim::Counters;
use ptx_sim::tensor_map::{TensorMap, TiledArguments};

/// Seeds for kernels whose timing matters.
const SEEDS: std::ops::Range<u64> = 0..12;

/// Runs a kernel that must end well.
#[track_caller]
fn run(kernel: &Kernel, blocks: u32, threads: u32) -> Counters {
    kernel.run(blocks, threads).unwrap_or_else(|fault| panic!("seed {}: {fault}", kernel.seed))
}

/// Puts bytes into device memory.
fn upload(kernel: &mut Kernel, bytes: &[u8]) -> u64 {
    let at = kernel.alloc(bytes.len() as u64);
    kernel.machine.write(at, bytes).expect("fits");
    at
}

/// Puts a map of a tensor of bytes or other elements into device memory; `swizzle` as `CUtensorMapSwizzle`.
fn map(
    kernel: &mut Kernel,
    (data_type, bytes): (u32, u64),
    address: u64,
    dims: &[u64],
    box_dims: &[u32],
    swizzle: u32,
) -> u64 {
    let mut strides = vec![];
    let mut stride = bytes;
    for dim in &dims[..dims.len() - 1] {
        stride *= dim;
        strides.push(stride);
    }
    let map = TensorMap::tiled(&TiledArguments {
        data_type,
        address,
        dims,
        strides: &strides,
        box_dims,
        element_strides: &[1; 5][..dims.len()],
        interleave: 0,
        swizzle,
        l2_promotion: 0,
        oob_fill: 0,
    });
    upload(kernel, &map.expect("a valid map").encode())
}

/// `CUtensorMapDataType` and size of bytes.
const U8: (u32, u64) = (0, 1);
/// `CUtensorMapDataType` and size of words.
const U32: (u32, u64) = (2, 4);
/// `CUtensorMapDataType` and size of `f32`.
const F32: (u32, u64) = (7, 4);

/// Bytes that run through many values.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
