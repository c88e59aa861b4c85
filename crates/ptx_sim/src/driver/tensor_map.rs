//! Tensor maps: the driver's side, over [`crate::tensor_map`], which knows the rules and the encoding.

use std::ffi::{c_uint, c_void};

use super::abi::*;
use super::device::profile;
use super::state::{Failure, Outcome, api, fail, give};
use crate::tensor_map::{TensorMap, TensorMapError, TiledArguments};

impl From<TensorMapError> for Failure {
    fn from(error: TensorMapError) -> Self {
        Failure { code: CUDA_ERROR_INVALID_VALUE, text: error.to_string() }
    }
}

/// The largest rank of a tensor.
const MAX_RANK: c_uint = 5;

fn require_tma() -> Outcome {
    let (major, minor) = profile(0)?.capability;
    if major < 9 {
        return fail(
            CUDA_ERROR_NOT_SUPPORTED,
            format!("tensor maps need compute capability 9.0, this device has {major}.{minor}"),
        );
    }
    Ok(())
}

/// # Safety
/// `start` is null or has `count` elements.
unsafe fn list<'a, T>(start: *const T, count: c_uint, argument: &str) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if start.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("{argument} is null"));
    }
    // SAFETY: not null, and then of that many elements by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(start, count as usize) })
}

fn words(bytes: &[u8; TensorMap::BYTES]) -> CUtensorMap {
    let (chunks, _) = bytes.as_chunks::<8>();
    CUtensorMap { opaque: std::array::from_fn(|i| u64::from_le_bytes(chunks[i])) }
}

/// Describes a tiled tensor, and the box of it that one instruction copies, to the TMA unit.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    out: *mut CUtensorMap,
    data_type: c_uint,
    rank: c_uint,
    address: *mut c_void,
    global_dim: *const u64,
    global_strides: *const u64,
    box_dim: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    l2_promotion: c_uint,
    oob_fill: c_uint,
) -> CUresult {
    api("cuTensorMapEncodeTiled", || {
        require_tma()?;
        if !(1..=MAX_RANK).contains(&rank) {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("tensorRank is {rank}: must be 1 to {MAX_RANK}"));
        }
        // SAFETY: the arrays have as many elements as the rank, the strides one less.
        let arguments = unsafe {
            TiledArguments {
                data_type,
                address: address as u64,
                dims: list(global_dim, rank, "globalDim")?,
                strides: list(global_strides, rank - 1, "globalStrides")?,
                box_dims: list(box_dim, rank, "boxDim")?,
                element_strides: list(element_strides, rank, "elementStrides")?,
                interleave,
                swizzle,
                l2_promotion,
                oob_fill,
            }
        };
        let map = TensorMap::tiled(&arguments)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "tensorMap", words(&map.encode())) }
    })
}

/// Moves a tensor map to another address.
///
/// # Safety
/// As [`cuTensorMapEncodeTiled`]; the map is also read.
pub unsafe extern "C" fn cuTensorMapReplaceAddress(map: *mut CUtensorMap, address: *mut c_void) -> CUresult {
    api("cuTensorMapReplaceAddress", || {
        require_tma()?;
        if map.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "tensorMap is null");
        }
        if !(address as usize).is_multiple_of(16) {
            return fail(
                CUDA_ERROR_INVALID_VALUE,
                format!("globalAddress is {address:p}: must be a multiple of 16"),
            );
        }
        let mut bytes = [0; TensorMap::BYTES];
        // SAFETY: not null, and then valid for a read by the caller's promise.
        let old = unsafe { map.read() };
        for (word, eight) in old.opaque.iter().zip(bytes.chunks_exact_mut(8)) {
            eight.copy_from_slice(&word.to_le_bytes());
        }
        let mut decoded = TensorMap::decode(&bytes)?;
        decoded.address = address as u64;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(map, "tensorMap", words(&decoded.encode())) }
    })
}
