//! Devices: opening one, and what it says of itself.
//!
//! A device is a context of a CUDA driver, NVIDIA's or the emulated one's, and what the layer needs to know
//! of it. Everything behind [`Device::open`] is the same code for both.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cust::device::DeviceAttribute;
use cust::tensor_map::Matrix;
use cust::{Context, Driver, Function};

use crate::error::{Error, Result};
use crate::gpu::family::Family;
use crate::gpu::launch::{KernelText, TensorMap};
use crate::gpu::shared::Shared;
use crate::gpu::spec::DeviceSpec;

/// The oldest CUDA whose driver takes the kernels' PTX (8.4).
const OLDEST_CUDA: (u32, u32) = (12, 4);

/// A GPU, real or emulated, with its context and loaded kernels. Cheap to clone.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// use fp8_moe::{Device, DeviceSpec};
///
/// let device = Device::open(DeviceSpec::Sim)?; // on a GPU: DeviceSpec::Auto
/// assert_eq!((device.capability(), device.family().arch()), ((9, 0), "sm_90a"));
/// let squares = device.upload(&[1.0_f32, 4.0, 9.0])?;
/// assert_eq!(squares.to_vec(&device.default_stream())?, [1.0, 4.0, 9.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    ordinal: u32,
    reason: String,
    name: String,
    capability: (u32, u32),
    family: Family,
    multiprocessors: u32,
    shared_per_block: u32,
    l2_bytes: u32,
    memory_bytes: u64,
    /// What all devices of the context share.
    shared: Arc<Shared>,
}

impl Device {
    /// Opens a device, for its best kernel family. It uses the device's primary context, as the CUDA runtime
    /// and cudarc do.
    ///
    /// A process may open a GPU and the emulated device beside each other. Devices that are opened several
    /// times share their context and the kernels that have been loaded.
    ///
    /// # Errors
    /// If there is no such device, no driver, or none of the kernels runs there.
    pub fn open(spec: DeviceSpec) -> Result<Device> {
        Self::open_as(spec, None)
    }

    /// Opens a device for the kernels of `family`, which may be older than its best one.
    ///
    /// # Errors
    /// As [`Device::open`]; a family whose kernels the device cannot run.
    pub fn open_family(spec: DeviceSpec, family: Family) -> Result<Device> {
        Self::open_as(spec, Some(family))
    }

    fn open_as(spec: DeviceSpec, family: Option<Family>) -> Result<Device> {
        let refuse = |reason: String| spec.refuse(reason);
        let choice = spec.choose()?;
        let (driver, count) = (choice.driver, choice.driver.device_count()?);
        if let Some(ordinal) = choice.ordinal.filter(|&ordinal| ordinal >= count) {
            let devices = if count == 1 { "is 1 device" } else { &format!("are {count} devices") };
            return Err(refuse(format!("there {devices}, numbered from 0; not {ordinal}")));
        }
        // Without a number: the first that has FP8 tensor cores, or the first to complain about.
        let mut ordinals = choice.ordinal.map_or(0..count, |ordinal| ordinal..ordinal + 1);
        let usable = |&ordinal: &u32| {
            let capability = cust::Device::get(driver, ordinal).and_then(cust::Device::capability);
            capability.is_ok_and(|(major, minor)| Family::for_capability(major, minor).is_some())
        };
        let ordinal = ordinals.find(usable).or(choice.ordinal).unwrap_or(0);
        let context = Context::primary(cust::Device::get(driver, ordinal)?)?;
        Self::new(context, family, choice.reason, &refuse)
    }

    /// A device on a context that exists already, of NVIDIA's driver: cudarc's, the CUDA runtime's, one's
    /// own. Kernels that devices of the same context have loaded are shared.
    ///
    /// # Errors
    /// If there is no driver, or if the context's device cannot run the kernels.
    ///
    /// # Safety
    /// `context` must be a `CUcontext` of NVIDIA's driver, and must not be destroyed before the device
    /// and everything made with it are dropped.
    pub unsafe fn from_context(context: *mut c_void) -> Result<Device> {
        let refuse = |reason: String| Error::Device { spec: format!("of context {context:?}"), reason };
        let driver = Driver::cuda().map_err(|error| refuse(error.to_string()))?;
        // SAFETY: the caller's contract.
        Self::in_context(unsafe { Context::from_raw(driver, context) }?, None)
    }

    /// A device on a context of any driver, for the kernels of `family` or, without one, its best. Devices of
    /// one context share the kernels that have been loaded.
    ///
    /// # Errors
    /// If the context's device cannot run the kernels.
    pub fn in_context(context: Context, family: Option<Family>) -> Result<Device> {
        let refuse = |reason: String| Error::Device { spec: format!("of {context:?}"), reason };
        Self::new(context.clone(), family, "the program gave its context".into(), &refuse)
    }

    fn new(
        context: Context,
        family: Option<Family>,
        reason: String,
        refuse: &dyn Fn(String) -> Error,
    ) -> Result<Device> {
        use DeviceAttribute as A;
        let device = context.device();
        let capability = device.capability()?;
        let (major, minor) = capability;
        let name = device.name()?;
        let best = Family::for_capability(major, minor).ok_or_else(|| {
            refuse(format!(
                "{name} is too old: it has compute capability {major}.{minor} and no FP8 tensor cores; 8.9 \
                 or newer is needed (Ada, Hopper)"
            ))
        })?;
        let family = family.unwrap_or(best);
        if family > best {
            return Err(refuse(format!(
                "{name} has compute capability {major}.{minor}, and cannot run the kernels of {family}"
            )));
        }
        let version = device.driver().version()?;
        if version < OLDEST_CUDA {
            let ((has, minor), (needed, at_least)) = (version, OLDEST_CUDA);
            return Err(refuse(format!(
                "the NVIDIA driver is too old: it is for CUDA {has}.{minor}; the kernels need {needed}.{at_least} or \
                 newer"
            )));
        }
        let inner = Inner {
            ordinal: device.as_raw().max(0) as u32,
            reason,
            name,
            capability,
            family,
            multiprocessors: device.attribute(A::MultiprocessorCount)?,
            shared_per_block: device.attribute(A::MaxSharedMemoryPerBlockOptin)?,
            l2_bytes: device.attribute(A::L2CacheSize)?,
            memory_bytes: device.total_memory()? as u64,
            shared: Shared::of(context)?,
        };
        Ok(Device { inner: Arc::new(inner) })
    }

    /// The kernel family in use.
    pub fn family(&self) -> Family {
        self.inner.family
    }

    /// Whether it is the emulated device.
    pub fn is_emulated(&self) -> bool {
        self.context().driver().is_emulated()
    }

    /// Why it is this one, e.g. `no NVIDIA driver: libcuda.so.1 not found`.
    pub fn driver_reason(&self) -> &str {
        &self.inner.reason
    }

    /// The driver's name for it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The CUDA version of the driver, e.g. `(13, 0)`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn driver_version(&self) -> Result<(u32, u32)> {
        Ok(self.context().driver().version()?)
    }

    /// Compute capability, e.g. `(9, 0)`.
    pub fn capability(&self) -> (u32, u32) {
        self.inner.capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// Shared memory that one block may have, bytes.
    pub fn shared_per_block(&self) -> u32 {
        self.inner.shared_per_block
    }

    /// L2 cache, bytes.
    pub fn l2_bytes(&self) -> u32 {
        self.inner.l2_bytes
    }

    /// Device memory, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes
    }

    /// Device memory that is free now, bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_memory_bytes(&self) -> Result<u64> {
        Ok(self.context().free_memory()? as u64)
    }

    /// Whether two handles are of the same device and context.
    pub fn same_as(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner.shared, &other.inner.shared)
    }

    /// The kernels that have been loaded, by name: those of the layer's forwards when a forward first needs
    /// any of them, others at their first launch.
    pub fn loaded_kernels(&self) -> Vec<&'static str> {
        self.inner.shared.kernels.names(self.inner.family)
    }

    /// The kernel `text` with `dynamic_shared` bytes allowed, loaded if it was not.
    pub(crate) fn function(&self, text: KernelText, dynamic_shared: u32) -> Result<Function> {
        self.inner.shared.kernels.get(self.inner.family, text, dynamic_shared, self.inner.shared_per_block)
    }

    /// The tensor map of `matrix`, encoded if it was not.
    pub(crate) fn tensor_map(&self, matrix: Matrix) -> Result<TensorMap> {
        self.inner.shared.maps.get(matrix, self.context())
    }

    /// Loads those of `kernels` that are missing, side by side.
    pub(crate) fn load(&self, kernels: &[KernelText]) -> Result<()> {
        self.inner.shared.kernels.load(self.inner.family, kernels)
    }

    /// Its context.
    pub(crate) fn context(&self) -> &Context {
        &self.inner.shared.context
    }

    /// What all devices of its context share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_emulated(), self.inner.ordinal) {
            (true, 0) => write!(f, "sim"),
            (true, ordinal) => write!(f, "sim:{ordinal}"),
            (false, ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({}, kernels for {})", self.inner.name, self.inner.family)
    }
}

#[cfg(test)]
mod tests {
    use cust::Context;

    use super::Device;
    use crate::{DeviceSpec, Family};

    impl Device {
        /// The device of tests, `sim` unless `FP8_MOE_DEVICE` says otherwise, in a context of its own:
        /// nothing has been loaded.
        pub(crate) fn for_test(family: Option<Family>) -> Device {
            let spec = std::env::var("FP8_MOE_DEVICE").map_or(Ok(DeviceSpec::Sim), |text| text.parse());
            let device = Device::open(spec.expect("FP8_MOE_DEVICE")).expect("a device");
            let context = Context::create(device.context().device()).expect("a context");
            Device::in_context(context, family).expect("a device")
        }
    }

    #[test]
    fn memory_of_another_device_is_refused() {
        let (device, other) = (Device::for_test(None), Device::for_test(None));
        let stream = device.default_stream();
        let mut buffer = other.upload(&[1u8, 2, 3]).expect("an upload");
        let refusals = [
            buffer.as_slice().check("quantize", "x", 3, &stream),
            buffer.as_mut_slice().check("quantize", "x", 3, &stream),
        ];
        for refusal in refusals {
            let text = refusal.expect_err("another device").to_string();
            let expected =
                format!("quantize: x = memory of {other}: must be on the stream's device, {device}");
            assert_eq!(text, expected);
        }
        for refusal in [buffer.copy_from(&[0; 3], &stream), buffer.fill_bytes(0, &stream)] {
            assert!(refusal.expect_err("another device").to_string().contains(": destination = memory of "));
        }
        assert!(buffer.to_vec(&stream).is_err());
        assert_eq!(buffer.to_vec(&other.default_stream()).expect("its own device"), [1, 2, 3]);
        let event = crate::Event::new(&other).expect("an event");
        assert!(
            event.record(&stream).expect_err("another device").to_string().contains("must be a stream of")
        );
    }

    #[test]
    fn short_slices_are_refused() {
        let device = Device::for_test(None);
        let buffer = device.zeros::<f32>(4).expect("four zeros");
        let refusal = buffer.slice(1..).check("unpermute", "y", 4, &device.default_stream());
        let text = refusal.expect_err("three elements").to_string();
        assert_eq!(text, "unpermute: y = 3 elements: must have at least 4 elements");
    }
}
