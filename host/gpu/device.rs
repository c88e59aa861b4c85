//! Devices: opening one, launching kernels on it.
//!
//! [`Device::open`] goes through the CUDA driver API, behind which the door (`cuda_driver`) puts NVIDIA's driver where
//! there is one and the emulated device `sim` where there is none. Everything after that is the same code for both.

use std::ffi::c_void;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytemuck::Pod;
use cuda_driver::sys::{CUlaunchAttribute, CUlaunchConfig};
use cust::context::{Context, CurrentContext};
use cust::device::DeviceAttribute;
use cust::error::CudaError;
use cust::sys::{self, CUdevice_attribute, CUstream};

use crate::error::{Error, Result, check, check_number};
use crate::gpu::buffer::Buffer;
use crate::gpu::kernel_cache::Functions;
use crate::gpu::launch::{Arguments, Grid, Kernel};
use crate::gpu::stream::Stream;

/// Which device to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first usable GPU, else the emulated device.
    #[default]
    Auto,
    /// The GPU with this ordinal; an error when there is no driver or no such GPU.
    Cuda(u32),
    /// The emulated device.
    Sim,
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceSpec> {
        let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (text, ordinal) {
            ("auto", _) => Ok(DeviceSpec::Auto),
            ("sim", _) => Ok(DeviceSpec::Sim),
            ("cuda", _) => Ok(DeviceSpec::Cuda(0)),
            (_, Some(ordinal)) => Ok(DeviceSpec::Cuda(ordinal)),
            _ => Err(Error::Device { spec: text.into(), reason: "must be auto, sim or cuda:N".into() }),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => write!(f, "auto"),
            DeviceSpec::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceSpec::Sim => write!(f, "sim"),
        }
    }
}

/// The GPU families that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `cp.async` + `ldmatrix` + `mma.sync` e4m3: Ada, and through the driver's compiler everything newer.
    Sm89,
    /// Hopper: the same, and what only compute capability 9.0 has.
    Sm90a,
}

impl Family {
    /// The families, in ascending order.
    pub const ALL: [Family; 2] = [Family::Sm89, Family::Sm90a];

    /// The `-arch` name, e.g. `sm_90a`.
    pub const fn arch(self) -> &'static str {
        match self {
            Family::Sm89 => "sm_89",
            Family::Sm90a => "sm_90a",
        }
    }

    /// The best family for a compute capability; none below 8.9, where the tensor cores have no FP8.
    pub fn for_capability(major: u32, minor: u32) -> Option<Family> {
        match (major, minor) {
            (9, 0) => Some(Family::Sm90a),
            (8, 9) => Some(Family::Sm89),
            (major, _) if major >= 9 => Some(Family::Sm89),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.arch())
    }
}

/// A GPU, real or emulated, with its context and loaded kernels. Cheap to clone.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    ordinal: u32,
    emulated: bool,
    name: String,
    capability: (u32, u32),
    family: Family,
    multiprocessors: u32,
    shared_per_block: u32,
    l2_bytes: u32,
    memory_bytes: u64,
    default_stream: CUstream,
    functions: Functions,
    // Declared last: released after the modules that live in it.
    context: Context,
}

// SAFETY: the raw handles (a stream and functions) may be used from any thread while the context lives, which the
// struct keeps alive; the driver API is thread-safe.
unsafe impl Send for Inner {}
// SAFETY: as above; everything mutable is behind a lock.
unsafe impl Sync for Inner {}

impl Device {
    /// Opens a device, for its best kernel family.
    ///
    /// The process uses one driver, NVIDIA's or the emulated one, chosen by the first call (or by the environment
    /// variable `FP8_MOE_DEVICE` when the first call says [`DeviceSpec::Auto`]).
    pub fn open(spec: DeviceSpec) -> Result<Device> {
        Self::open_as(spec, None)
    }

    /// Opens a device for the kernels of `family`, which may be older than its best one.
    pub fn open_family(spec: DeviceSpec, family: Family) -> Result<Device> {
        Self::open_as(spec, Some(family))
    }

    fn open_as(spec: DeviceSpec, family: Option<Family>) -> Result<Device> {
        let refuse = |reason: String| Error::Device { spec: spec.to_string(), reason };
        let wanted = select_driver(spec)?;
        cust::init(cust::CudaFlags::empty())
            .map_err(|e| refuse(format!("the driver does not start: {e}")))?;
        let count = cust::device::Device::num_devices().map_err(driver("cuDeviceGetCount"))?;
        if let Some(ordinal) = wanted.filter(|&ordinal| ordinal >= count) {
            let devices = if count == 1 { "is 1 device" } else { &format!("are {count} devices") };
            return Err(refuse(format!("there {devices}, numbered from 0; not {ordinal}")));
        }
        // Without a number: the first that has FP8 tensor cores, or the first to complain about.
        let mut ordinals = wanted.map_or(0..count, |ordinal| ordinal..ordinal + 1);
        let usable = |&ordinal: &u32| {
            let capability = cust::device::Device::get_device(ordinal).and_then(capability_of);
            capability.is_ok_and(|(major, minor)| Family::for_capability(major, minor).is_some())
        };
        let ordinal = ordinals.find(usable).or(wanted).unwrap_or(0);
        let device = cust::device::Device::get_device(ordinal).map_err(driver("cuDeviceGet"))?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: `value` is a valid place for one int, and the device handle is the driver's own.
            let code = unsafe { sys::cuDeviceGetAttribute(&mut value, which, device.as_raw()) };
            check("cuDeviceGetAttribute", code)?;
            Ok(value as u32)
        };
        use CUdevice_attribute as A;
        let capability = capability_of(device).map_err(driver("cuDeviceGetAttribute"))?;
        let (major, minor) = capability;
        let best = Family::for_capability(major, minor).ok_or_else(|| {
            refuse(format!(
                "compute capability {major}.{minor} has no FP8 tensor cores; 8.9 or newer is needed"
            ))
        })?;
        let family = family.unwrap_or(best);
        if family > best {
            return Err(refuse(format!(
                "compute capability {major}.{minor} cannot run the kernels of {family}"
            )));
        }
        let context = Context::new(device).map_err(driver("cuDevicePrimaryCtxRetain"))?;
        CurrentContext::set_current(&context).map_err(driver("cuCtxSetCurrent"))?;
        let mut default_stream = std::ptr::null_mut();
        // SAFETY: `default_stream` is a valid place for one handle, and the context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut default_stream, 0) })?;
        let inner = Inner {
            ordinal,
            emulated: cuda_driver::chosen() == Some(cuda_driver::Backend::Sim),
            name: device.name().map_err(driver("cuDeviceGetName"))?,
            capability,
            family,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            memory_bytes: device.total_memory().map_err(driver("cuDeviceTotalMem"))? as u64,
            default_stream,
            functions: Functions::new(family),
            context,
        };
        Ok(Device { inner: Arc::new(inner) })
    }

    /// The kernel family in use.
    pub fn family(&self) -> Family {
        self.inner.family
    }

    /// Whether it is the emulated device.
    pub fn is_emulated(&self) -> bool {
        self.inner.emulated
    }

    /// Why this process uses the driver it uses, e.g. `no NVIDIA driver: libcuda.so.1 not found`.
    pub fn driver_reason(&self) -> &'static str {
        cuda_driver::reason().unwrap_or("not chosen yet")
    }

    /// The driver's name for it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The CUDA version of the driver, e.g. `(13, 0)`.
    pub fn driver_version(&self) -> Result<(i32, i32)> {
        let version = cust::CudaApiVersion::get().map_err(driver("cuDriverGetVersion"))?;
        Ok((version.major(), version.minor()))
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
    pub fn free_memory_bytes(&self) -> Result<u64> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid places for one number, and the context is current.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    /// Whether two handles are the same device.
    pub fn same_as(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
            || (self.inner.ordinal, self.inner.emulated) == (other.inner.ordinal, other.inner.emulated)
    }

    /// The stream that is there from the start. An ordinary stream (not CUDA's legacy null stream), so it can be
    /// captured.
    pub fn default_stream(&self) -> Stream {
        Stream::borrowed(self.clone(), self.inner.default_stream)
    }

    /// A buffer with a copy of `data`.
    pub fn upload<T: Pod>(&self, data: &[T]) -> Result<Buffer<T>> {
        Buffer::upload(self, data)
    }

    /// A buffer of `len` zeros.
    pub fn zeros<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let stream = self.default_stream();
        let mut buffer = Buffer::uninit(self, len)?;
        buffer.fill_bytes(0, &stream)?;
        stream.synchronize()?;
        Ok(buffer)
    }

    /// A buffer of `len` elements with undefined contents.
    pub fn uninit<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::uninit(self, len)
    }

    /// Enqueues a kernel. The block size is the kernel's own; a grid with no blocks enqueues nothing.
    ///
    /// # Safety
    /// The kernel's arguments must satisfy what its documentation asks of them: device addresses of enough memory, of
    /// this device, that stay valid until the stream has run the kernel.
    pub(crate) unsafe fn launch<A: Arguments>(
        &self,
        stream: &Stream,
        kernel: &Kernel<A>,
        grid: impl Into<Grid>,
        arguments: &A,
    ) -> Result<()> {
        let grid = grid.into();
        if grid.x == 0 || grid.y == 0 || grid.z == 0 {
            return Ok(());
        }
        if !self.same_as(stream.device()) {
            let rule = format!("must be a stream of {self}");
            let value = format!("a stream of {}", stream.device());
            return Err(Error::argument(kernel.name, "stream", value, rule));
        }
        if stream.rehearses(kernel.name) {
            return Ok(());
        }
        self.make_current()?;
        let function =
            self.inner.functions.get(kernel.name, kernel.shared_bytes, self.inner.shared_per_block)?;
        let code = arguments.with_params(|params: &mut [*mut c_void]| {
            // In the PTX of older families the kernel's wait is no instruction: there nothing may overlap, whatever the GPU can do.
            let overlap = kernel.overlap && self.inner.family == Family::Sm90a;
            let mut attributes = [CUlaunchAttribute::programmatic_stream_serialization(true)];
            let config = CUlaunchConfig {
                grid_dim: [grid.x, grid.y, grid.z],
                block_dim: [kernel.threads, 1, 1],
                shared_mem_bytes: kernel.shared_bytes,
                stream: stream.raw().cast(),
                attrs: attributes.as_mut_ptr(),
                num_attrs: overlap.into(),
            };
            // SAFETY: `params` holds one pointer per parameter to a value of its size (the trait's contract, kept by
            // the generated structs); what the values mean to the kernel is the caller's contract. As many attributes as
            // `config` says lie there.
            unsafe {
                cuda_driver::sys::cuLaunchKernelEx(
                    &config,
                    function.cast(),
                    params.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        });
        check_number("cuLaunchKernelEx", code.0).map_err(|e| match e {
            Error::Driver { call, code, meaning } => {
                Error::Driver { call, code, meaning: format!("{}: {meaning}", kernel.name) }
            }
            other => other,
        })
    }

    /// The kernels that have been loaded, by name: those of the layer's forwards when a forward first needs any of them, others at
    /// their first launch.
    pub fn loaded_kernels(&self) -> Vec<&'static str> {
        self.inner.functions.names()
    }

    /// Loads all kernels now, on as many threads as there are cores, so that no batch size has to wait for its own later.
    pub fn load_kernels(&self) -> Result<()> {
        let all: Vec<_> =
            crate::kernels::summaries(self.inner.family).iter().map(|kernel| kernel.name).collect();
        self.load(&all)
    }

    /// Loads those of `kernels` that are missing, side by side.
    pub(crate) fn load(&self, kernels: &[&'static str]) -> Result<()> {
        self.make_current()?;
        self.inner.functions.load(&self.inner.context, kernels)
    }

    /// Makes the device's context current on this thread, as every driver call needs it.
    pub(crate) fn make_current(&self) -> Result<()> {
        CurrentContext::set_current(&self.inner.context).map_err(driver("cuCtxSetCurrent"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if CurrentContext::set_current(&self.context).is_ok() {
            // SAFETY: the stream was created by `open` and is destroyed once; borrowed `Stream`s hold the device.
            unsafe { sys::cuStreamDestroy_v2(self.default_stream) };
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.inner.emulated, self.inner.ordinal) {
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

/// Compute capability, e.g. `(9, 0)`.
fn capability_of(device: cust::device::Device) -> Result<(u32, u32), CudaError> {
    let attribute = |which| device.get_attribute(which).map(|value| value as u32);
    Ok((
        attribute(DeviceAttribute::ComputeCapabilityMajor)?,
        attribute(DeviceAttribute::ComputeCapabilityMinor)?,
    ))
}

/// Chooses the process's driver for `spec`, and says which of its devices is meant, if `spec` says so.
fn select_driver(spec: DeviceSpec) -> Result<Option<u32>> {
    let refuse =
        |error: cuda_driver::DoorError| Error::Device { spec: spec.to_string(), reason: error.to_string() };
    let (backend, ordinal) = match spec {
        DeviceSpec::Auto => {
            let request = cuda_driver::environment().map_err(refuse)?;
            (cuda_driver::Backend::Auto, request.and_then(|r| r.ordinal))
        }
        DeviceSpec::Cuda(ordinal) => (cuda_driver::Backend::Cuda, Some(ordinal)),
        DeviceSpec::Sim => (cuda_driver::Backend::Sim, Some(0)),
    };
    cuda_driver::choose(backend).map_err(refuse)?;
    Ok(ordinal)
}

/// Turns `cust`'s error for the driver function `call` into ours.
pub(crate) fn driver(call: &'static str) -> impl Fn(CudaError) -> Error {
    // `cust` prints the driver's words in quotation marks.
    move |error| Error::driver(call, error as u32, error.to_string().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Device, DeviceSpec};
    use std::sync::Arc;

    /// Another handle of the device, which says that it is device number 1.
    fn another_device() -> Device {
        let mut device = Device::open(DeviceSpec::Auto).expect("a device");
        Arc::get_mut(&mut device.inner).expect("the only handle").ordinal = 1;
        device
    }

    #[test]
    fn memory_of_another_device_is_refused() {
        let (device, other) = (Device::open(DeviceSpec::Auto).expect("a device"), another_device());
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
        let device = Device::open(DeviceSpec::Auto).expect("a device");
        let buffer = device.zeros::<f32>(4).expect("four zeros");
        let refusal = buffer.slice(1..).check("unpermute", "y", 4, &device.default_stream());
        let text = refusal.expect_err("three elements").to_string();
        assert_eq!(text, "unpermute: y = 3 elements: must have at least 4 elements");
    }
}
