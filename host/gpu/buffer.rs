//! Device memory that this library owns: [`Buffer`]. [`Slice`] and [`SliceMut`] borrow a part of it.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::Allocation;
pub use crate::gpu::slice::{Slice, SliceMut};
use crate::gpu::slice::{accessors, describe};
use crate::gpu::stream::Stream;

/// `len` elements of `T` in the memory of a device.
///
/// It may be used on several streams: an operation waits for those on other streams that write what it uses,
/// or use what it writes. The memory is freed when the buffer and all graphs that use it are dropped; the
/// drop waits until no stream uses it.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec};
/// # let device = Device::open(DeviceSpec::Sim)?;
/// let stream = device.default_stream();
/// let mut buffer = device.zeros::<i32>(6)?;
/// buffer.slice_mut(2..4).copy_from(&[7, 8], &stream)?; // complete on return
/// let copy = device.upload(&[1, 2])?;
/// buffer.slice_mut(4..).copy_from_device(copy.as_slice(), &stream)?; // in the stream's order
/// assert_eq!(buffer.to_vec(&stream)?, [0, 0, 7, 8, 1, 2]);
/// # Ok(())
/// # }
/// ```
pub struct Buffer<T: Pod> {
    ptr: DevicePtr<T>,
    len: usize,
    /// None where there are no elements. Dropped before the device, which keeps the context.
    memory: Option<Arc<Allocation>>,
    device: Device,
}

impl Device {
    /// A buffer with a copy of `data`, complete on return.
    ///
    /// # Errors
    /// If the device has not so much memory, or a kernel before has faulted.
    pub fn upload<T: Pod>(&self, data: &[T]) -> Result<Buffer<T>> {
        Buffer::upload(self, data)
    }

    /// A buffer of `len` zeros, complete on return.
    ///
    /// # Errors
    /// As [`Device::upload`].
    pub fn zeros<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let stream = self.default_stream();
        let mut buffer = Buffer::uninit(self, len)?;
        buffer.fill_bytes(0, &stream)?;
        stream.synchronize()?;
        Ok(buffer)
    }

    /// A buffer of `len` elements with undefined contents.
    ///
    /// # Errors
    /// If the device has not so much memory.
    pub fn uninit<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::uninit(self, len)
    }
}

impl<T: Pod> Buffer<T> {
    /// Memory with undefined contents. An empty buffer has the null pointer.
    pub(crate) fn uninit(device: &Device, len: usize) -> Result<Buffer<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::argument("alloc", "len", len, "bytes must fit in 64 bits"))?;
        let memory = (bytes > 0).then(|| Allocation::new(device.context(), bytes)).transpose()?.map(Arc::new);
        let ptr = DevicePtr::from_raw(memory.as_ref().map_or(0, |memory| memory.address()));
        Ok(Buffer { device: device.clone(), ptr, len, memory })
    }

    /// A copy of `data`, complete on return.
    pub(crate) fn upload(device: &Device, data: &[T]) -> Result<Buffer<T>> {
        let mut buffer = Self::uninit(device, data.len())?;
        buffer.copy_from(data, &device.default_stream())?;
        Ok(buffer)
    }

    accessors!(of: of);

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All of it, to read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        // SAFETY: the allocation has the elements, and is ordered.
        unsafe { Slice::of(&self.device, self.memory.as_ref(), self.ptr, self.len) }
    }

    /// All of it, to write.
    pub fn as_mut_slice(&mut self) -> SliceMut<'_, T> {
        // SAFETY: as above; the buffer is borrowed exclusively.
        unsafe { SliceMut::of(&self.device, self.memory.as_ref(), self.ptr, self.len) }
    }

    /// The elements of `range`, to read.
    ///
    /// # Panics
    /// When the range is out of bounds, as slicing does.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
        self.as_slice().slice(range)
    }

    /// The elements of `range`, to write.
    ///
    /// # Panics
    /// When the range is out of bounds, as slicing does.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        self.as_mut_slice().into_slice_mut(range)
    }

    /// Copies everything to the host after the work already in `stream`, and waits for it.
    ///
    /// # Errors
    /// If a kernel before has faulted; a stream of another device, or one that is being captured.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.as_slice().to_vec(stream)
    }

    /// Overwrites everything with `data`, of the same length, after the work already in `stream`, and waits
    /// for it.
    ///
    /// # Errors
    /// Another length; a stream of another device, or one that is being captured; if a kernel before has
    /// faulted.
    pub fn copy_from(&mut self, data: &[T], stream: &Stream) -> Result<()> {
        self.as_mut_slice().copy_from(data, stream)
    }

    /// Sets every byte to `byte`, in `stream`'s order.
    ///
    /// # Errors
    /// A stream of another device.
    pub fn fill_bytes(&mut self, byte: u8, stream: &Stream) -> Result<()> {
        self.as_mut_slice().fill_bytes(byte, stream)
    }
}

impl<T: Pod> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "Buffer", (self.ptr, self.len), &self.device)
    }
}

impl<'a, T: Pod> From<&'a Buffer<T>> for Slice<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Slice<'a, T> {
        buffer.as_slice()
    }
}

impl<'a, T: Pod> From<&'a mut Buffer<T>> for SliceMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> SliceMut<'a, T> {
        buffer.as_mut_slice()
    }
}
