//! Device memory that a layer reads its weights from: its own, shared with others, or of another program.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use crate::config::COPY_BYTES;
use crate::error::{Result, require};
use crate::gpu::buffer::{Buffer, Slice};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;

/// `len` elements of `T` on a device that a layer reads and nobody writes while it lives.
///
/// From a [`Buffer`] it is the layer's own; from an `Arc<Buffer>`, all or a [part](DeviceMemory::part) of it,
/// it is shared: nothing is copied, and safe code cannot write what is shared. [`DeviceMemory::from_raw`]
/// takes memory of another program.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec, E4m3, MoeConfig, MoeLayer};
/// # let device = Device::open(DeviceSpec::Sim)?;
/// # let config = MoeConfig::builder().hidden_size(64).intermediate_size(128).experts(2).top_k(1).build()?;
/// use fp8_moe::{DeviceMemory, MoeDeviceWeights};
/// use std::sync::Arc;
///
/// // Two experts of [2I, H] and [H, I], all e4m3 ones, in one allocation; and their scales.
/// let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&config);
/// let all = Arc::new(device.upload(&vec![E4m3::from_f32(1.0); w13 + w2])?);
/// let weights = MoeDeviceWeights::new(
///     DeviceMemory::part(all.clone(), 0..w13)?,
///     device.upload(&vec![1.0_f32; w13_scale])?,
///     DeviceMemory::part(all.clone(), w13..w13 + w2)?,
///     device.upload(&vec![1.0_f32; w2_scale])?,
/// );
/// let layer = MoeLayer::from_device(&device, &config, weights)?;
/// # Ok(())
/// # }
/// ```
pub struct DeviceMemory<T: Pod>(Owner<T>);

enum Owner<T: Pod> {
    Shared { buffer: Arc<Buffer<T>>, range: Range<usize> },
    Foreign { device: Device, address: DevicePtr<T>, len: usize },
}

impl<T: Pod> DeviceMemory<T> {
    /// The elements `range` of a shared buffer.
    ///
    /// # Errors
    /// A range that the buffer does not have.
    pub fn part(buffer: Arc<Buffer<T>>, range: Range<usize>) -> Result<DeviceMemory<T>> {
        let inside = range.start <= range.end && range.end <= buffer.len();
        require(inside, "DeviceMemory::part", "range", format!("{range:?}"), || {
            format!("must be inside the {} elements of the buffer", buffer.len())
        })?;
        Ok(DeviceMemory(Owner::Shared { buffer, range }))
    }

    /// Memory of another program, by its address.
    ///
    /// # Safety
    /// - `address` is that of `len` elements in `device`'s memory. They stay allocated until the layer is
    ///   dropped and every stream has run what was enqueued with it.
    /// - Until then nobody writes them, but before a forward, in an order that the caller makes.
    ///
    /// # Errors
    /// An address that is not a multiple of 16.
    pub unsafe fn from_raw(device: &Device, address: u64, len: usize) -> Result<DeviceMemory<T>> {
        require(
            address.is_multiple_of(COPY_BYTES as u64),
            "DeviceMemory::from_raw",
            "address",
            format!("{address:#x}"),
            || format!("must be a multiple of {COPY_BYTES}"),
        )?;
        let (device, address) = (device.clone(), DevicePtr::from_raw(address));
        Ok(DeviceMemory(Owner::Foreign { device, address, len }))
    }

    /// All of it, to read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        match &self.0 {
            Owner::Shared { buffer, range } => buffer.slice(range.clone()),
            // SAFETY: the contract of `DeviceMemory::from_raw` is that of the slice, for as long as the layer
            // lives.
            Owner::Foreign { device, address, len } => unsafe { Slice::from_raw(device, *address, *len) },
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Owner::Shared { buffer, .. } => buffer.device(),
            Owner::Foreign { device, .. } => device,
        }
    }
}

impl<T: Pod> From<Arc<Buffer<T>>> for DeviceMemory<T> {
    fn from(buffer: Arc<Buffer<T>>) -> Self {
        let range = 0..buffer.len();
        DeviceMemory(Owner::Shared { buffer, range })
    }
}

impl<T: Pod> From<Buffer<T>> for DeviceMemory<T> {
    fn from(buffer: Buffer<T>) -> Self {
        Arc::new(buffer).into()
    }
}

impl<T: Pod> fmt::Debug for DeviceMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Owner::Shared { .. } => "shared",
            Owner::Foreign { .. } => "foreign",
        };
        write!(f, "{kind} {:?}", self.as_slice())
    }
}
