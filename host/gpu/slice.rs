//! Slices: borrowed device memory, as operations take it. [`Slice`] is for what they read, [`SliceMut`] for
//! what they write, so that a call says which of its arguments change. Memory that another program owns
//! becomes a slice through the unsafe `from_raw`.
//!
//! A slice's invariant: its elements lie inside an allocation of its device, aligned, or nowhere, at null.
//! The checks, which every operation makes before it launches, refuse those at null.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::{Access, Allocation};
use crate::gpu::stream::Stream;

/// Borrowed device memory that an operation reads.
pub struct Slice<'a, T> {
    device: &'a Device,
    /// None of memory of another program.
    memory: Option<&'a Arc<Allocation>>,
    ptr: DevicePtr<T>,
    len: usize,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Slice<'_, T> {}

/// Borrowed device memory that an operation writes.
pub struct SliceMut<'a, T> {
    /// Lent for as long as this is borrowed, and no longer.
    slice: Slice<'a, T>,
    exclusive: PhantomData<&'a mut [T]>,
}

/// What buffers and slices say of their elements.
macro_rules! accessors {
    ($of:ident: $slice:expr) => {
        /// The address of element 0.
        pub fn ptr(&self) -> DevicePtr<T> {
            let $of = self;
            $slice.ptr
        }

        /// Elements.
        pub fn len(&self) -> usize {
            let $of = self;
            $slice.len
        }

        /// Whether it has no elements.
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    };
}
pub(super) use accessors;

/// `start..end` of a range over `len` elements; panics when it does not fit.
fn bounds(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&n) => n,
        Bound::Excluded(&n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&n) => n.saturating_add(1),
        Bound::Excluded(&n) => n,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "range {start}..{end} of a device slice of {len} elements");
    (start, end)
}

impl<'a, T: Pod> Slice<'a, T> {
    /// A slice of memory that this library did not allocate.
    ///
    /// # Safety
    /// - `ptr` must be the address of `len` elements in `device`'s memory, aligned for `T`, and stay valid
    ///   until every operation that was given the slice has completed on its stream; if one was captured,
    ///   until the graph is dropped. A launch of that graph writes what its operations wrote: the memory must
    ///   not hold the lists of a `Permutation` then that is used later.
    /// - Until then nothing may write the memory, but for operations on the same stream, or ordered with it
    ///   by the caller: the library does not know whose memory it is.
    pub unsafe fn from_raw(device: &'a Device, ptr: DevicePtr<T>, len: usize) -> Slice<'a, T> {
        Slice { device, memory: None, ptr, len }
    }

    /// A slice of memory that is ordered as `memory`, if it is any: of a buffer, or lent by another program.
    ///
    /// # Safety
    /// As [`Slice::from_raw`], but that operations on other streams are ordered too.
    pub(super) unsafe fn of(
        device: &'a Device,
        memory: Option<&'a Arc<Allocation>>,
        ptr: DevicePtr<T>,
        len: usize,
    ) -> Slice<'a, T> {
        Slice { device, memory, ptr, len }
    }

    /// An empty slice with the null pointer.
    pub fn empty(device: &'a Device) -> Slice<'a, T> {
        Self::imagined(device, 0)
    }

    /// Elements that are nowhere, for rehearsals: every check on a stream that runs refuses them.
    pub(crate) fn imagined(device: &'a Device, len: usize) -> Slice<'a, T> {
        Slice { device, memory: None, ptr: DevicePtr::null(), len }
    }

    accessors!(of: of);

    /// The device whose memory it is.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// When the range is out of bounds, as slicing does.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice<'a, T> {
        let (start, end) = bounds(range, self.len);
        Slice { device: self.device, memory: self.memory, ptr: self.ptr.offset(start), len: end - start }
    }

    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// Unless alignment and length fit.
    pub fn cast<U: Pod>(self) -> Slice<'a, U> {
        let len = cast_len::<T, U>(self.ptr, self.len);
        Slice { device: self.device, memory: self.memory, ptr: self.ptr.cast(), len }
    }

    /// Copies everything to the host after the work already in `stream`, and waits for it.
    ///
    /// # Errors
    /// If a kernel before has faulted; a stream of another device, or one that is being captured.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.check_device("to_vec", "source", stream)?;
        stream.refuse_capture("to_vec")?;
        let mut host = vec![T::zeroed(); self.len];
        if self.len > 0 {
            let (to, bytes) = (host.as_mut_ptr().cast(), self.len * size_of::<T>());
            stream.uses(self.memory, Access::Read)?;
            // SAFETY: `host` has room for `bytes` bytes, the device range lies inside an allocation by the
            // slice's invariant, and `host` goes below when the stream has been waited for, or never.
            stream.enqueue(|stream| unsafe { stream.copy_to_host(to, self.ptr.raw(), bytes) })?;
        }
        if let Err(error) = stream.synchronize() {
            // Nobody knows whether the copy is still to come.
            std::mem::forget(host);
            return Err(error);
        }
        Ok(host)
    }

    /// What it is a part of; none of memory of another program, or of no elements.
    pub(crate) fn memory(&self) -> Option<&'a Arc<Allocation>> {
        self.memory
    }

    /// Refuses the argument `name` of `op` when it lies on another device than `stream`, or nowhere.
    pub(crate) fn check_device(&self, op: &'static str, name: &str, stream: &Stream) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        if self.ptr.is_null() && size_of::<T>() > 0 && !stream.is_rehearsal() {
            let rule = "must be the address of memory";
            return Err(Error::argument(op, name, format!("{} elements at null", self.len), rule));
        }
        if self.device.same_as(stream.device()) {
            return Ok(());
        }
        let rule = format!("must be on the stream's device, {}", stream.device());
        Err(Error::argument(op, name, format!("memory of {}", self.device), rule))
    }

    /// Refuses the argument `name` of `op` when it is on another device than `stream`, or shorter than `len`
    /// elements. Else the stream waits for whoever writes it on another.
    ///
    /// An operation calls it for all that it reads before it launches anything, and keeps the slice until it
    /// has launched all.
    pub(crate) fn check(&self, op: &'static str, name: &str, len: usize, stream: &Stream) -> Result<()> {
        self.check_device(op, name, stream)?;
        check_len(op, name, self.len, len)?;
        stream.uses(self.memory, Access::Read)
    }
}

/// A slice for another thread, without its lifetime.
pub(crate) struct Lent<T> {
    device: Device,
    /// Keeps memory of this library allocated.
    memory: Option<Arc<Allocation>>,
    ptr: DevicePtr<T>,
    len: usize,
}

impl<'a, T: Pod> Slice<'a, T> {
    /// The slice, to be read by another thread.
    pub(crate) fn lend(&self) -> Lent<T> {
        Lent { device: self.device.clone(), memory: self.memory.cloned(), ptr: self.ptr, len: self.len }
    }
}

impl<T: Pod> Lent<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The slice again.
    ///
    /// # Safety
    /// The borrow that the slice came from has not ended, and does not end before the result is used for the
    /// last time.
    pub unsafe fn as_slice(&self) -> Slice<'_, T> {
        Slice { device: &self.device, memory: self.memory.as_ref(), ptr: self.ptr, len: self.len }
    }
}

/// Refuses a slice of `len` elements where `needed` are needed.
fn check_len(op: &'static str, name: &str, len: usize, needed: usize) -> Result<()> {
    if len >= needed {
        return Ok(());
    }
    Err(Error::argument(op, name, format!("{len} elements"), format!("must have at least {needed} elements")))
}

fn cast_len<T, U>(ptr: DevicePtr<T>, len: usize) -> usize {
    let bytes = len * size_of::<T>();
    assert!(
        ptr.raw().is_multiple_of(align_of::<U>() as u64) && bytes.is_multiple_of(size_of::<U>()),
        "{bytes} bytes at {ptr:?} are not a slice of {}",
        std::any::type_name::<U>()
    );
    bytes / size_of::<U>()
}

impl<'a, T: Pod> SliceMut<'a, T> {
    /// A slice of memory that this library did not allocate.
    ///
    /// # Safety
    /// As [`Slice::from_raw`], and nothing else may read the memory either.
    pub unsafe fn from_raw(device: &'a Device, ptr: DevicePtr<T>, len: usize) -> SliceMut<'a, T> {
        // SAFETY: the caller's contract.
        SliceMut::exclusive(unsafe { Slice::from_raw(device, ptr, len) })
    }

    /// The memory of `slice`, which is lent to nobody else.
    fn exclusive(slice: Slice<'a, T>) -> SliceMut<'a, T> {
        SliceMut { slice, exclusive: PhantomData }
    }

    /// As [`Slice::of`], to be written.
    ///
    /// # Safety
    /// As [`SliceMut::from_raw`], but that operations on other streams are ordered too.
    pub(super) unsafe fn of(
        device: &'a Device,
        memory: Option<&'a Arc<Allocation>>,
        ptr: DevicePtr<T>,
        len: usize,
    ) -> SliceMut<'a, T> {
        // SAFETY: the caller's contract.
        SliceMut::exclusive(unsafe { Slice::of(device, memory, ptr, len) })
    }

    /// An empty slice with the null pointer.
    pub fn empty(device: &'a Device) -> SliceMut<'a, T> {
        Self::imagined(device, 0)
    }

    /// As [`Slice::imagined`], to be written.
    pub(crate) fn imagined(device: &'a Device, len: usize) -> SliceMut<'a, T> {
        SliceMut::exclusive(Slice::imagined(device, len))
    }

    accessors!(of: of.slice);

    /// The device whose memory it is.
    pub fn device(&self) -> &'a Device {
        self.slice.device
    }

    /// The same memory, to read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        self.slice
    }

    /// The same memory, for a call that takes a `SliceMut` by value.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut::exclusive(self.slice)
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// When the range is out of bounds, as slicing does.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        self.reborrow().into_slice_mut(range)
    }

    /// As `slice_mut`, for the whole lifetime.
    ///
    /// # Panics
    /// When the range is out of bounds, as slicing does.
    pub fn into_slice_mut(self, range: impl RangeBounds<usize>) -> SliceMut<'a, T> {
        SliceMut::exclusive(self.slice.slice(range))
    }

    /// The first `mid` elements and the rest.
    ///
    /// # Panics
    /// When there are fewer, as slicing does.
    pub fn split_at(self, mid: usize) -> (SliceMut<'a, T>, SliceMut<'a, T>) {
        (SliceMut::exclusive(self.slice.slice(..mid)), SliceMut::exclusive(self.slice.slice(mid..)))
    }

    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// Unless alignment and length fit.
    pub fn cast<U: Pod>(self) -> SliceMut<'a, U> {
        SliceMut::exclusive(self.slice.cast())
    }

    /// Copies everything to the host after the work already in `stream`, and waits for it.
    ///
    /// # Errors
    /// If a kernel before has faulted; a stream of another device, or one that is being captured.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.slice.to_vec(stream)
    }

    /// Overwrites everything with `data`, of the same length, after the work already in `stream`, and waits
    /// for it.
    ///
    /// # Errors
    /// Another length; a stream of another device, or one that is being captured; if a kernel before has
    /// faulted.
    pub fn copy_from(&mut self, data: &[T], stream: &Stream) -> Result<()> {
        self.check_device("copy_from", "destination", stream)?;
        stream.refuse_capture("copy_from")?;
        if data.len() != self.slice.len {
            let rule = format!("must have the {} elements of the destination", self.slice.len);
            return Err(Error::argument("copy_from", "data", format!("{} elements", data.len()), rule));
        }
        if self.slice.len > 0 {
            let (from, bytes) = (data.as_ptr().cast(), size_of_val(data));
            stream.uses(self.slice.memory, Access::Write)?;
            // SAFETY: `data` is `bytes` bytes long, the device range lies inside an allocation by the slice's
            // invariant, and the stream is waited for below, while `data` is still borrowed. That fails when
            // a fault has taken the context away, and nothing of it runs any more.
            stream.enqueue(|stream| unsafe { stream.copy_from_host(self.slice.ptr.raw(), from, bytes) })?;
        }
        stream.synchronize()
    }

    /// Overwrites everything with `source`, other memory of the same device and length, in `stream`'s order.
    /// Can be captured.
    ///
    /// # Errors
    /// Another length; memory or a stream of another device.
    pub fn copy_from_device(&mut self, source: Slice<'_, T>, stream: &Stream) -> Result<()> {
        self.check_device("copy_from_device", "destination", stream)?;
        source.check_device("copy_from_device", "source", stream)?;
        if source.len != self.slice.len {
            let rule = format!("must have the {} elements of the destination", self.slice.len);
            return Err(Error::argument(
                "copy_from_device",
                "source",
                format!("{} elements", source.len),
                rule,
            ));
        }
        if self.slice.len == 0 {
            return Ok(());
        }
        let bytes = self.slice.len * size_of::<T>();
        stream.uses(source.memory, Access::Read)?;
        stream.uses(self.slice.memory, Access::Write)?;
        // SAFETY: both ranges lie inside allocations by the slices' invariants, and a `SliceMut` overlaps no
        // other slice.
        Ok(stream.enqueue(|stream| unsafe { stream.copy(self.slice.ptr.raw(), source.ptr.raw(), bytes) })?)
    }

    /// Sets every byte to `byte`, in `stream`'s order. Can be captured.
    ///
    /// # Errors
    /// A stream of another device.
    pub fn fill_bytes(&mut self, byte: u8, stream: &Stream) -> Result<()> {
        self.check_device("fill_bytes", "destination", stream)?;
        if self.slice.len == 0 {
            return Ok(());
        }
        stream.uses(self.slice.memory, Access::Write)?;
        let bytes = self.slice.len * size_of::<T>();
        // SAFETY: the range lies inside an allocation by the slice's invariant.
        Ok(stream.enqueue(|stream| unsafe { stream.fill(self.slice.ptr.raw(), byte, bytes) })?)
    }

    /// Refuses the argument `name` of `op` when it lies on another device than `stream`.
    pub(crate) fn check_device(&self, op: &'static str, name: &str, stream: &Stream) -> Result<()> {
        self.slice.check_device(op, name, stream)
    }

    /// As [`Slice::check`], for what an operation writes: the stream waits for whoever uses it on another.
    pub(crate) fn check(&self, op: &'static str, name: &str, len: usize, stream: &Stream) -> Result<()> {
        self.check_device(op, name, stream)?;
        check_len(op, name, self.slice.len, len)?;
        stream.uses(self.slice.memory, Access::Write)
    }
}

impl<'a, T: Pod> From<SliceMut<'a, T>> for Slice<'a, T> {
    fn from(slice: SliceMut<'a, T>) -> Slice<'a, T> {
        slice.slice
    }
}

/// As slices and buffers are written for people.
pub(super) fn describe<T>(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    (ptr, len): (DevicePtr<T>, usize),
    device: &Device,
) -> fmt::Result {
    write!(f, "{kind}<{}>[{len}] at {ptr:?} on {device}", std::any::type_name::<T>())
}

impl<T> fmt::Debug for Slice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "Slice", (self.ptr, self.len), self.device)
    }
}

impl<T> fmt::Debug for SliceMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "SliceMut", (self.slice.ptr, self.slice.len), self.slice.device)
    }
}
