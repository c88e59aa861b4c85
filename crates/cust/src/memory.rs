//! Device memory, and host memory that devices copy from.

use std::fmt;
use std::ptr::NonNull;

use crate::context::Context;
use crate::error::{CudaError, CudaResult, call};
use crate::stream::Stream;
use crate::sys::{self, CUdeviceptr};

/// Bytes in the memory of a device, freed on drop.
///
/// It is a range of addresses, no more: what reads and writes it, and when, is the business of who enqueues
/// that. It must not be dropped before: that is the contract of the copies, fills and launches.
pub struct DeviceMemory {
    context: Context,
    address: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// `bytes` bytes with undefined contents, at least one.
    pub fn uninitialized(context: &Context, bytes: usize) -> CudaResult<DeviceMemory> {
        let _current = context.enter()?;
        let mut address = 0;
        // SAFETY: `address` is a valid place for the result, and the context is current.
        unsafe { call!(context.driver(), cuMemAlloc_v2(&mut address, bytes)) }?;
        Ok(DeviceMemory { context: context.clone(), address, bytes })
    }

    /// The address of its first byte.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The context that it is in.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // Freeing is nothing that a graph records, even if this thread is capturing one.
        let _ = self.context.relaxed(|| {
            // SAFETY: the address came from cuMemAlloc and is freed once. A failure (a context lost to a
            // fault) leaves nothing to be done.
            unsafe { call!(self.context.driver(), cuMemFree_v2(self.address)) }
        });
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} of {:?}", self.bytes, self.address, self.context)
    }
}

/// Bytes in page-locked memory of the host, freed on drop. A device copies them without the driver's copying
/// them first, and while the host goes on.
///
/// It takes memory from the whole system, so that programs have little of it.
pub struct HostMemory {
    context: Context,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the driver is thread-safe, and the memory is the process's: no thread owns either.
unsafe impl Send for HostMemory {}
// SAFETY: as above; a shared reference reaches no byte of it.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `bytes` zeros, at least one.
    pub fn zeroed(context: &Context, bytes: usize) -> CudaResult<HostMemory> {
        let _current = context.enter()?;
        let driver = context.driver();
        let mut start = std::ptr::null_mut();
        // Nothing that a graph records, even if this thread is capturing one.
        context.relaxed(|| {
            // SAFETY: `start` is a valid place for the result, and the context is current.
            unsafe { call!(driver, cuMemHostAlloc(&mut start, bytes, 0)) }
        })?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| CudaError::of(driver, "cuMemHostAlloc", sys::CUDA_ERROR_OUT_OF_MEMORY))?;
        // SAFETY: the driver has just given these bytes to this process, and nobody else knows of them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(HostMemory { context: context.clone(), start, bytes })
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The bytes, to read and write.
    ///
    /// # Safety
    /// No work on a device may use them as long as the result is there.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range is this value's allocation, every byte of it has been written, and `self` is
        // borrowed exclusively; devices are the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // Freeing is nothing that a graph records, even if this thread is capturing one.
        let _ = self.context.relaxed(|| {
            // SAFETY: the address came from cuMemHostAlloc and is freed once. A failure (a context lost to a
            // fault) leaves nothing to be done.
            unsafe { call!(self.context.driver(), cuMemFreeHost(self.start.as_ptr().cast())) }
        });
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} page-locked bytes at {:p} for {:?}", self.bytes, self.start, self.context)
    }
}

/// Copies and fills, in the stream's order.
impl Stream {
    /// Copies `bytes` bytes from host memory to device memory.
    ///
    /// # Safety
    /// Both ranges must be valid, and stay so until the stream has copied; nothing else may use the device's
    /// meanwhile, and nothing may write the host's.
    pub unsafe fn copy_from_host(&self, to: CUdeviceptr, from: *const u8, bytes: usize) -> CudaResult<()> {
        let _current = self.context().enter()?;
        // SAFETY: the caller's contract; the stream is alive.
        unsafe { call!(self.driver(), cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.as_raw())) }
    }

    /// Copies `bytes` bytes from device memory to host memory.
    ///
    /// # Safety
    /// Both ranges must be valid, and stay so until the stream has copied; nothing else may use the host's
    /// meanwhile, and nothing may write the device's.
    pub unsafe fn copy_to_host(&self, to: *mut u8, from: CUdeviceptr, bytes: usize) -> CudaResult<()> {
        let _current = self.context().enter()?;
        // SAFETY: the caller's contract; the stream is alive.
        unsafe { call!(self.driver(), cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.as_raw())) }
    }

    /// Copies `bytes` bytes in device memory.
    ///
    /// # Safety
    /// The ranges must be valid, not overlap, and stay valid until the stream has copied; nothing else may
    /// use `to` meanwhile, and nothing may write `from`.
    pub unsafe fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> CudaResult<()> {
        let _current = self.context().enter()?;
        // SAFETY: the caller's contract; the stream is alive.
        unsafe { call!(self.driver(), cuMemcpyDtoDAsync_v2(to, from, bytes, self.as_raw())) }
    }

    /// Sets `bytes` bytes of device memory to `byte`.
    ///
    /// # Safety
    /// The range must be valid, and stay so until the stream has set it; nothing else may use it meanwhile.
    pub unsafe fn fill(&self, address: CUdeviceptr, byte: u8, bytes: usize) -> CudaResult<()> {
        let _current = self.context().enter()?;
        // SAFETY: the caller's contract; the stream is alive.
        unsafe { call!(self.driver(), cuMemsetD8Async(address, byte, bytes, self.as_raw())) }
    }
}
