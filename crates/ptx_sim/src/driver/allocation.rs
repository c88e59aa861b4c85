//! Device memory and page-locked host memory: who owns what, and what a pointer points to.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{LazyLock, Mutex};

use super::abi::*;
use super::capture;
use super::context::current;
use super::state::api;
use super::state::{Outcome, device, fail, give, lock};

/// Owning context of each device allocation, by base address.
static DEVICE_BLOCKS: LazyLock<Mutex<HashMap<u64, usize>>> = LazyLock::new(Mutex::default);

/// Page-locked host memory, by address.
static HOST_BLOCKS: LazyLock<Mutex<BTreeMap<usize, HostBlock>>> = LazyLock::new(Mutex::default);

/// Host memory is handed out in whole pages.
const PAGE: usize = 4096;

struct HostBlock {
    bytes: usize,
    flags: c_uint,
    context: usize,
    /// Allocated here, rather than by the caller and then registered.
    owned: bool,
}

fn allocate(bytes: usize) -> Outcome<u64> {
    let context = current()?;
    if bytes == 0 {
        return fail(CUDA_ERROR_INVALID_VALUE, "bytesize is 0");
    }
    let address = device()?.machine.alloc(bytes as u64)?;
    lock(&DEVICE_BLOCKS).insert(address, context);
    Ok(address)
}

fn release(address: u64) -> Outcome {
    current()?;
    if address == 0 {
        return Ok(());
    }
    device()?.machine.free(address)?;
    lock(&DEVICE_BLOCKS).remove(&address);
    Ok(())
}

/// Frees everything a context owns.
pub(super) fn free_all_of(context: usize) {
    let Ok(device) = device() else { return };
    lock(&DEVICE_BLOCKS).retain(|address, owner| {
        if *owner == context {
            // The table holds live allocations only, so this cannot fail.
            let _ = device.machine.free(*address);
        }
        *owner != context
    });
    lock(&HOST_BLOCKS).retain(|address, block| {
        if block.context == context && block.owned {
            free_host(*address, block.bytes);
        }
        block.context != context
    });
}

fn free_host(address: usize, bytes: usize) {
    let layout = host_layout(bytes).expect("the layout was valid when the memory was allocated");
    // SAFETY: `HOST_BLOCKS` held this block as owned: it came from `alloc_zeroed` with this layout, and it
    // has been taken out of the table, so nobody frees it again.
    unsafe { dealloc(address as *mut u8, layout) };
}

fn host_layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1).checked_next_multiple_of(PAGE)?, PAGE).ok()
}

fn allocate_host(bytes: usize, flags: c_uint) -> Outcome<*mut c_void> {
    let context = current()?;
    capture::forbid_unsafe_call()?;
    let Some(layout) = host_layout(bytes) else {
        return fail(CUDA_ERROR_OUT_OF_MEMORY, format!("{bytes} bytes of host memory"));
    };
    // SAFETY: the layout's size is at least a page.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return fail(CUDA_ERROR_OUT_OF_MEMORY, format!("{bytes} bytes of host memory"));
    }
    lock(&HOST_BLOCKS).insert(start as usize, HostBlock { bytes, flags, context, owned: true });
    Ok(start.cast())
}

/// Allocates device memory, whose contents are not initialised.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut CUdeviceptr, bytes: usize) -> CUresult {
    api("cuMemAlloc_v2", || {
        current()?;
        capture::forbid_unsafe_call()?;
        let address = allocate(bytes)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "dptr", address) }
    })
}

/// Frees device memory by its first address.
pub extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    api("cuMemFree_v2", || {
        current()?;
        capture::forbid_unsafe_call()?;
        release(address)
    })
}

/// Allocates device memory in the order of a stream.
///
/// # Safety
/// As [`cuMemAlloc_v2`].
pub unsafe extern "C" fn cuMemAllocAsync(out: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    api("cuMemAllocAsync", || {
        current()?;
        capture::forbid_in(stream)?;
        let address = allocate(bytes)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "dptr", address) }
    })
}

/// Frees device memory in the order of a stream.
pub extern "C" fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) -> CUresult {
    api("cuMemFreeAsync", || {
        current()?;
        capture::forbid_in(stream)?;
        release(address)
    })
}

/// Free and total bytes of device memory.
///
/// # Safety
/// As [`cuMemAlloc_v2`].
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    api("cuMemGetInfo_v2", || {
        current()?;
        let (free_bytes, total_bytes) = device()?.machine.memory_info();
        // SAFETY: the caller's pointers are valid for writes.
        unsafe {
            give(free, "free", free_bytes as usize)?;
            give(total, "total", total_bytes as usize)
        }
    })
}

/// The allocation that holds an address.
///
/// # Safety
/// As [`cuMemAlloc_v2`]; either pointer may be null.
pub unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: *mut CUdeviceptr,
    size: *mut usize,
    address: CUdeviceptr,
) -> CUresult {
    api("cuMemGetAddressRange_v2", || {
        current()?;
        let Some((start, bytes)) = device()?.machine.allocation(address) else {
            return fail(CUDA_ERROR_NOT_FOUND, format!("{address:#x} is not an address of device memory"));
        };
        // SAFETY: a pointer that is not null is valid for a write.
        unsafe {
            if !base.is_null() {
                give(base, "pbase", start)?;
            }
            if !size.is_null() {
                give(size, "psize", bytes as usize)?;
            }
        }
        Ok(())
    })
}

/// Allocates page-locked host memory.
///
/// # Safety
/// As [`cuMemAlloc_v2`].
pub unsafe extern "C" fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuMemAllocHost_v2", || unsafe { give(out, "pp", allocate_host(bytes, 0)?) })
}

/// Allocates page-locked host memory, with flags that the emulated device only remembers.
///
/// # Safety
/// As [`cuMemAlloc_v2`].
pub unsafe extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuMemHostAlloc", || unsafe { give(out, "pp", allocate_host(bytes, flags)?) })
}

/// Frees page-locked host memory by its first address.
///
/// # Safety
/// Nobody uses the memory any more.
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> CUresult {
    api("cuMemFreeHost", || {
        current()?;
        capture::forbid_unsafe_call()?;
        let mut blocks = lock(&HOST_BLOCKS);
        match blocks.get(&(address as usize)) {
            Some(block) if block.owned => {
                let bytes = block.bytes;
                blocks.remove(&(address as usize));
                free_host(address as usize, bytes);
                Ok(())
            }
            _ => {
                fail(CUDA_ERROR_INVALID_VALUE, format!("{address:p} was not allocated as page-locked memory"))
            }
        }
    })
}

/// Declares host memory page-locked.
pub extern "C" fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) -> CUresult {
    api("cuMemHostRegister_v2", || {
        let context = current()?;
        if address.is_null() || bytes == 0 {
            return fail(CUDA_ERROR_INVALID_VALUE, "the range is null or empty");
        }
        let start = address as usize;
        let mut blocks = lock(&HOST_BLOCKS);
        let before = blocks.range(..start.saturating_add(bytes)).next_back();
        if before.is_some_and(|(other, block)| other + block.bytes > start) {
            return fail(
                CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
                format!("{address:p} is page-locked already"),
            );
        }
        blocks.insert(start, HostBlock { bytes, flags, context, owned: false });
        Ok(())
    })
}

/// Undoes [`cuMemHostRegister_v2`].
pub extern "C" fn cuMemHostUnregister(address: *mut c_void) -> CUresult {
    api("cuMemHostUnregister", || {
        current()?;
        let mut blocks = lock(&HOST_BLOCKS);
        match blocks.get(&(address as usize)) {
            Some(block) if !block.owned => {
                blocks.remove(&(address as usize));
                Ok(())
            }
            _ => fail(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, format!("{address:p} was not registered")),
        }
    })
}

/// The flags that page-locked memory was allocated with.
///
/// # Safety
/// As [`cuMemAlloc_v2`].
pub unsafe extern "C" fn cuMemHostGetFlags(out: *mut c_uint, address: *mut c_void) -> CUresult {
    api("cuMemHostGetFlags", || {
        current()?;
        match host_block(address as usize, |_, block| block.flags) {
            // SAFETY: the caller's pointer is valid for a write.
            Some(flags) => unsafe { give(out, "pFlags", flags) },
            None => fail(CUDA_ERROR_INVALID_VALUE, format!("{address:p} is not page-locked memory")),
        }
    })
}

fn host_block<T>(address: usize, f: impl FnOnce(usize, &HostBlock) -> T) -> Option<T> {
    let blocks = lock(&HOST_BLOCKS);
    let (start, block) = blocks.range(..=address).next_back()?;
    (address - start < block.bytes.max(1)).then(|| f(*start, block))
}

/// Whether an address of the unified address space is one of device memory.
pub(super) fn is_device_address(address: u64) -> Outcome<bool> {
    Ok(device()?.machine.allocation(address).is_some())
}

/// What a pointer attribute's value is, with the type that the API gives it.
enum Answer {
    Pointer(usize),
    Word(u64),
    Int(c_int),
}

fn pointer_attribute(attribute: c_uint, address: u64) -> Outcome<Answer> {
    current()?;
    let invalid = || fail(CUDA_ERROR_INVALID_VALUE, format!("pointer attribute {attribute} of {address:#x}"));
    if let Some((base, bytes)) = device()?.machine.allocation(address) {
        let owner = lock(&DEVICE_BLOCKS).get(&base).copied().unwrap_or(0);
        return Ok(match attribute {
            1 => Answer::Pointer(owner), // CONTEXT
            2 => Answer::Int(2),         // MEMORY_TYPE: device
            3 => Answer::Word(address),  // DEVICE_POINTER
            7 => Answer::Word(base),     // BUFFER_ID
            6 | 8 | 9 => Answer::Int(0), // SYNC_MEMOPS, IS_MANAGED, DEVICE_ORDINAL
            11 => Answer::Word(base),    // RANGE_START_ADDR
            12 => Answer::Word(bytes),   // RANGE_SIZE
            13 => Answer::Int(1),        // MAPPED
            _ => return invalid(),
        });
    }
    let host = host_block(address as usize, |start, block| (start, block.bytes, block.context));
    let Some((start, bytes, owner)) = host else { return invalid() };
    Ok(match attribute {
        1 => Answer::Pointer(owner),
        2 => Answer::Int(1),                    // MEMORY_TYPE: host
        4 => Answer::Pointer(address as usize), // HOST_POINTER
        7 => Answer::Word(start as u64),
        6 | 8 | 9 | 13 => Answer::Int(0),
        11 => Answer::Word(start as u64),
        12 => Answer::Word(bytes as u64),
        _ => return invalid(),
    })
}

/// What a pointer points to.
///
/// # Safety
/// As [`cuMemAlloc_v2`]: `out` is valid for the attribute's type.
pub unsafe extern "C" fn cuPointerGetAttribute(
    out: *mut c_void,
    attribute: c_uint,
    address: CUdeviceptr,
) -> CUresult {
    api("cuPointerGetAttribute", || {
        let answer = pointer_attribute(attribute, address)?;
        // SAFETY: the caller's pointer is valid for the attribute's type, which is what is written.
        unsafe {
            match answer {
                Answer::Pointer(value) => give(out.cast::<usize>(), "data", value),
                Answer::Word(value) => give(out.cast::<u64>(), "data", value),
                Answer::Int(value) => give(out.cast::<c_int>(), "data", value),
            }
        }
    })
}
