//! How many blocks an SM holds, from the limits of the profile and the resources of the kernel. Registers are
//! an estimate, as nothing is compiled.

use std::ffi::{c_int, c_uint};

use super::abi::*;
use super::module::{Function, function_of};
use super::profile::SHARED_RESERVED;
use super::state::{Outcome, api, device, fail, give};

fn blocks(handle: CUfunction, threads: c_int, dynamic_shared: usize) -> Outcome<u32> {
    let function = function_of(handle)?;
    let Ok(threads @ 1..) = u32::try_from(threads) else {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("blockSize is {threads}: must be positive"));
    };
    Ok(function.blocks_per_sm(&device()?.profile, threads, dynamic_shared as u64))
}

/// Blocks of a kernel that one SM can hold.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: *mut c_int,
    handle: CUfunction,
    threads: c_int,
    dynamic_shared: usize,
) -> CUresult {
    api("cuOccupancyMaxActiveBlocksPerMultiprocessor", || {
        let blocks = blocks(handle, threads, dynamic_shared)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "numBlocks", blocks as c_int) }
    })
}

/// Blocks of a kernel that one SM can hold.
///
/// # Safety
/// As [`cuOccupancyMaxActiveBlocksPerMultiprocessor`].
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: *mut c_int,
    handle: CUfunction,
    threads: c_int,
    dynamic_shared: usize,
    _flags: c_uint,
) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(out, handle, threads, dynamic_shared) }
}

/// The block size that fills an SM best, and the grid that fills the device with it.
///
/// # Safety
/// As [`cuOccupancyMaxActiveBlocksPerMultiprocessor`]; the function may be called with block sizes.
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid_out: *mut c_int,
    block_out: *mut c_int,
    handle: CUfunction,
    shared_of: CUoccupancyB2DSize,
    dynamic_shared: usize,
    limit: c_int,
) -> CUresult {
    api("cuOccupancyMaxPotentialBlockSize", || {
        let function = function_of(handle)?;
        let profile = &device()?.profile;
        let most =
            if limit > 0 { (limit as u32).min(function.max_threads()) } else { function.max_threads() };
        let mut best = (0, 0, 0);
        let mut threads = most;
        while threads > 0 {
            let shared = match shared_of {
                // SAFETY: the caller's promise.
                Some(of) => unsafe { of(threads as c_int) },
                None => dynamic_shared,
            };
            let blocks = function.blocks_per_sm(profile, threads, shared as u64);
            if blocks * threads > best.0 {
                best = (blocks * threads, blocks, threads);
            }
            threads = (threads - 1) / 32 * 32;
        }
        if best.0 == 0 {
            return fail(
                CUDA_ERROR_INVALID_VALUE,
                format!("kernel {}: no block size fits in an SM", function.entry.name),
            );
        }
        // SAFETY: the caller's pointers are valid for writes.
        unsafe {
            give(grid_out, "minGridSize", (best.1 * profile.sm_count) as c_int)?;
            give(block_out, "blockSize", best.2 as c_int)
        }
    })
}

/// Dynamic shared memory that each of so many blocks on one SM may use.
///
/// # Safety
/// As [`cuOccupancyMaxActiveBlocksPerMultiprocessor`].
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    out: *mut usize,
    handle: CUfunction,
    blocks_wanted: c_int,
    threads: c_int,
) -> CUresult {
    api("cuOccupancyAvailableDynamicSMemPerBlock", || {
        let function = function_of(handle)?;
        let possible = blocks(handle, threads, 0)?;
        if blocks_wanted < 1 || blocks_wanted as u32 > possible {
            return fail(
                CUDA_ERROR_INVALID_VALUE,
                format!("{blocks_wanted} blocks of {threads} threads: an SM holds {possible}"),
            );
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "dynamicSmemSize", available(&function, blocks_wanted as u32)? as usize) }
    })
}

fn available(function: &Function, blocks: u32) -> Outcome<u32> {
    let profile = &device()?.profile;
    let each = (profile.shared_per_sm / blocks).saturating_sub(SHARED_RESERVED).min(profile.shared_per_block);
    Ok(each.saturating_sub(function.entry.static_shared) / 128 * 128)
}
