//! Page-locked host memory on its way to a device.
//!
//! ```text
//!   host       fill A ──▶ fill B ──▶ wait for A's copy, fill A ──▶ ...
//!   copies          copy A ──▶ copy B ──▶ ...        in the order of one stream
//! ```
//!
//! An [`Uploads`] has the stream, and makes the buffers. A thread that has two of them fills one while the
//! other is copied.

use bytemuck::Pod;
use cust::HostMemory;

use crate::error::{Result, require};
use crate::gpu::buffer::SliceMut;
use crate::gpu::device::Device;
use crate::gpu::order::Access;
use crate::gpu::stream::Stream;

/// A stream for copies from staging buffers. Nothing else runs on it, and nothing captures it.
pub(crate) struct Uploads {
    stream: Stream,
}

/// A buffer of page-locked host memory, for copies to a device.
pub(crate) struct Staging<'a> {
    uploads: &'a Uploads,
    memory: HostMemory,
    /// Behind the last copy out of the memory.
    copied: cust::Event,
}

impl Uploads {
    /// A stream of its own on `device`.
    pub fn new(device: &Device) -> Result<Uploads> {
        Ok(Uploads { stream: Stream::new(device)? })
    }

    /// The stream, for fills beside the copies.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// A buffer of `bytes` bytes, at least one.
    pub fn staging(&self, bytes: usize) -> Result<Staging<'_>> {
        let context = self.stream.device().context();
        let (memory, copied) = (HostMemory::zeroed(context, bytes)?, cust::Event::new(context, false)?);
        Ok(Staging { uploads: self, memory, copied })
    }
}

impl Staging<'_> {
    /// The memory, once the last copy has read it.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        self.copied.synchronize()?;
        // SAFETY: devices use the memory in the copies of `copy_to` alone. The event is behind the last of
        // them, and has been waited for; the next needs this value, which stays borrowed.
        Ok(unsafe { self.memory.as_mut_slice() })
    }

    /// Copies the first bytes of the memory over all of `to`, in the order of the stream.
    ///
    /// # Errors
    /// If `to` is longer than the memory or on another device.
    pub fn copy_to<T: Pod>(&mut self, to: &mut SliceMut<'_, T>) -> Result<()> {
        const OP: &str = "Staging::copy_to";
        let stream = &self.uploads.stream;
        to.check_device(OP, "destination", stream)?;
        let bytes = to.len() * size_of::<T>();
        require(bytes <= self.memory.bytes(), OP, "destination", format!("{bytes} bytes"), || {
            format!("must be within the {} of the buffer", self.memory.bytes())
        })?;
        if bytes == 0 {
            return Ok(());
        }
        stream.uses(to.as_slice().memory(), Access::Write)?;
        let (address, from) = (to.ptr().raw(), self.memory.as_ptr());
        let enqueued = stream.enqueue(|stream| {
            // SAFETY: both ranges have `bytes` bytes: the device's by the slice's invariant, the host's by
            // the check above. The host's stays as it is until the event has been waited for, by `bytes` or
            // by the drop; the device's until the work that was announced is done.
            unsafe { stream.copy_from_host(address, from, bytes) }?;
            self.copied.record(stream)
        });
        // Without the event the copy itself is waited for.
        enqueued.or_else(|error| {
            stream.synchronize()?;
            Err(error.into())
        })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // If it fails, a fault has taken the context away, and the copies with it.
        let _ = self.copied.synchronize();
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::gpu::spec::DeviceSpec;

    #[test]
    fn bytes_arrive_in_order_and_errors_name_the_sizes() {
        let device = Device::open(DeviceSpec::Sim).expect("the emulated device");
        let uploads = Uploads::new(&device).expect("a stream");
        let mut staging = uploads.staging(8).expect("a buffer");
        let mut buffer = device.zeros::<u8>(20).expect("memory");
        for (start, value) in [(0, 1), (4, 2), (12, 3)] {
            staging.bytes().expect("copied").fill(value);
            staging.copy_to(&mut buffer.slice_mut(start..start + 8)).expect("a copy");
        }
        let on_device = buffer.to_vec(&device.default_stream()).expect("waits for the copies");
        assert_eq!(on_device, [[1; 4], [2; 4], [2; 4], [3; 4], [3; 4]].concat());
        let error = staging.copy_to(&mut buffer.slice_mut(..9)).expect_err("too long").to_string();
        assert_eq!(error, "Staging::copy_to: destination = 9 bytes: must be within the 8 of the buffer");
        staging.copy_to(&mut buffer.slice_mut(..0)).expect("nothing");
    }
}
