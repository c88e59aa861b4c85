//! Initialisation, versions, error texts, and what the one emulated device says about itself.

use std::ffi::{CStr, c_char, c_int, c_uint};

use super::abi::*;
use super::profile::{
    BLOCK_LIMIT, GRID_LIMIT, Profile, REGISTERS, SHARED_DEFAULT, SHARED_RESERVED, THREADS_PER_BLOCK,
};
use super::state::{Outcome, api, device, fail, give, initialize};

/// The CUDA version whose driver API this is: 12.8.
const DRIVER_VERSION: c_int = 12080;

/// Makes the emulated device.
pub extern "C" fn cuInit(flags: c_uint) -> CUresult {
    api("cuInit", || {
        if flags != 0 {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("flags is {flags}: must be 0"));
        }
        initialize()
    })
}

/// The version of the API, as 1000 * major + 10 * minor.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuDriverGetVersion", || unsafe { give(version, "driverVersion", DRIVER_VERSION) })
}

/// One line on a result code.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    api("cuGetErrorString", || {
        let found = describe(error).map_or(std::ptr::null(), |(_, line)| line.as_ptr().cast());
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(text, "pStr", found) }?;
        known(error)
    })
}

/// The name of a result code.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuGetErrorName(error: CUresult, text: *mut *const c_char) -> CUresult {
    api("cuGetErrorName", || {
        let found = describe(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr().cast());
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(text, "pStr", found) }?;
        known(error)
    })
}

fn known(error: CUresult) -> Outcome {
    match describe(error) {
        Some(_) => Ok(()),
        None => fail(CUDA_ERROR_INVALID_VALUE, format!("{} is not an error code", error.0)),
    }
}

/// The device number behind `ordinal`, of which there is one: 0.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGet(out: *mut CUdevice, ordinal: c_int) -> CUresult {
    api("cuDeviceGet", || {
        profile(ordinal)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "device", ordinal) }
    })
}

/// How many devices there are.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    api("cuDeviceGetCount", || {
        device()?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(count, "count", 1) }
    })
}

/// The device's numbers, if `ordinal` is the one there is.
pub(super) fn profile(ordinal: CUdevice) -> Outcome<&'static Profile> {
    let device = device()?;
    if ordinal != 0 {
        return fail(CUDA_ERROR_INVALID_DEVICE, format!("device {ordinal}: there is one emulated device, 0"));
    }
    Ok(&device.profile)
}

/// Copies a name, cut to the caller's buffer, with its NUL.
///
/// # Safety
/// `out` is valid for `len` bytes.
unsafe fn give_text(out: *mut c_char, len: c_int, text: &CStr) -> Outcome {
    if out.is_null() || len <= 0 {
        return fail(CUDA_ERROR_INVALID_VALUE, "the name's buffer is null or empty");
    }
    let text = text.to_bytes();
    let n = text.len().min(len as usize - 1);
    // SAFETY: n + 1 <= len bytes are writable by the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast::<u8>(), n);
        out.add(n).write(0);
    }
    Ok(())
}

/// The device's name.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, dev: CUdevice) -> CUresult {
    // SAFETY: `name` is valid for `len` bytes by the API's contract.
    api("cuDeviceGetName", || unsafe { give_text(name, len, profile(dev)?.name) })
}

/// The device's PCI address, all zeros.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, dev: CUdevice) -> CUresult {
    // SAFETY: `id` is valid for `len` bytes by the API's contract.
    api("cuDeviceGetPCIBusId", || unsafe { give_text(id, len, profile(dev)?.bus_id) })
}

/// The device's UUID.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut CUuuid, dev: CUdevice) -> CUresult {
    api("cuDeviceGetUuid", || {
        profile(dev)?;
        let bytes = b"ptx_sim\0device 0".map(|b| b as c_char);
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(uuid, "uuid", CUuuid { bytes }) }
    })
}

/// The device's UUID.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, dev: CUdevice) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid(uuid, dev) }
}

/// Bytes of device memory.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: CUdevice) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuDeviceTotalMem_v2", || unsafe { give(bytes, "bytes", profile(dev)?.memory_bytes as usize) })
}

/// Compute capability.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceComputeCapability(
    major: *mut c_int,
    minor: *mut c_int,
    dev: CUdevice,
) -> CUresult {
    api("cuDeviceComputeCapability", || {
        let (x, y) = profile(dev)?.capability;
        // SAFETY: the caller's pointers are valid for writes.
        unsafe {
            give(major, "major", x as c_int)?;
            give(minor, "minor", y as c_int)
        }
    })
}

/// Whether one device can reach another's memory; there is no other.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, dev: CUdevice, peer: CUdevice) -> CUresult {
    api("cuDeviceCanAccessPeer", || {
        profile(dev)?;
        profile(peer)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(can, "canAccessPeer", 0) }
    })
}

/// One number about the device.
///
/// # Safety
/// As [`cuDriverGetVersion`].
pub unsafe extern "C" fn cuDeviceGetAttribute(out: *mut c_int, attribute: c_uint, dev: CUdevice) -> CUresult {
    api("cuDeviceGetAttribute", || {
        let p = profile(dev)?;
        let Some(value) = device_attribute(p, attribute) else {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("{attribute} is not a device attribute"));
        };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pi", value as c_int) }
    })
}

/// `CUdevice_attribute` by number. What a GPU without textures, graphics and peers would say is 0.
fn device_attribute(p: &Profile, attribute: c_uint) -> Option<u32> {
    let hopper = u32::from(p.capability.0 >= 9);
    Some(match attribute {
        1 => THREADS_PER_BLOCK,   // MAX_THREADS_PER_BLOCK
        2 => BLOCK_LIMIT[0],      // MAX_BLOCK_DIM_X
        3 => BLOCK_LIMIT[1],      // MAX_BLOCK_DIM_Y
        4 => BLOCK_LIMIT[2],      // MAX_BLOCK_DIM_Z
        5 => GRID_LIMIT[0],       // MAX_GRID_DIM_X
        6 => GRID_LIMIT[1],       // MAX_GRID_DIM_Y
        7 => GRID_LIMIT[2],       // MAX_GRID_DIM_Z
        8 => SHARED_DEFAULT,      // MAX_SHARED_MEMORY_PER_BLOCK
        9 => 64 << 10,            // TOTAL_CONSTANT_MEMORY
        10 => 32,                 // WARP_SIZE
        11 => (1 << 31) - 1,      // MAX_PITCH
        12 => REGISTERS,          // MAX_REGISTERS_PER_BLOCK
        13 => p.clock_khz,        // CLOCK_RATE
        14 => 512,                // TEXTURE_ALIGNMENT
        16 => p.sm_count,         // MULTIPROCESSOR_COUNT
        31 => 1,                  // CONCURRENT_KERNELS
        36 => p.memory_clock_khz, // MEMORY_CLOCK_RATE
        37 => p.bus_bits,         // GLOBAL_MEMORY_BUS_WIDTH
        38 => p.l2_bytes,         // L2_CACHE_SIZE
        39 => p.threads_per_sm,   // MAX_THREADS_PER_MULTIPROCESSOR
        40 => 1,                  // ASYNC_ENGINE_COUNT
        41 => 1,                  // UNIFIED_ADDRESSING
        75 => p.capability.0,     // COMPUTE_CAPABILITY_MAJOR
        76 => p.capability.1,     // COMPUTE_CAPABILITY_MINOR
        78 => 1,                  // STREAM_PRIORITIES_SUPPORTED
        79 | 80 => 1,             // GLOBAL_, LOCAL_L1_CACHE_SUPPORTED
        81 => p.shared_per_sm,    // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        82 => REGISTERS,          // MAX_REGISTERS_PER_MULTIPROCESSOR
        87 => 64,                 // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        95 => 1,                  // COOPERATIVE_LAUNCH
        97 => p.shared_per_block, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        106 => p.blocks_per_sm,   // MAX_BLOCKS_PER_MULTIPROCESSOR
        108 => p.l2_bytes / 2,    // MAX_PERSISTING_L2_CACHE_SIZE
        109 => 128 << 20,         // MAX_ACCESS_POLICY_WINDOW_SIZE
        111 => SHARED_RESERVED,   // RESERVED_SHARED_MEMORY_PER_BLOCK
        120 => hopper,            // CLUSTER_LAUNCH
        127 => hopper,            // TENSOR_MAP_ACCESS_SUPPORTED
        other if (1..=150).contains(&other) => 0,
        _ => return None,
    })
}
