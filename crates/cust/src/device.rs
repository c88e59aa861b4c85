//! Devices, and what they say of themselves.

use std::ffi::c_uint;

use crate::driver::Driver;
use crate::error::{CudaResult, call};
use crate::sys::CUdevice;

/// One device of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    driver: Driver,
    raw: CUdevice,
}

/// What a device can be asked for; `cuda.h` has the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceAttribute {
    /// Streaming multiprocessors.
    MultiprocessorCount = 16,
    /// L2 cache, bytes.
    L2CacheSize = 38,
    /// The compute capability's first number.
    ComputeCapabilityMajor = 75,
    /// The compute capability's second number.
    ComputeCapabilityMinor = 76,
    /// Shared memory that a block may have if it asks for it, bytes.
    MaxSharedMemoryPerBlockOptin = 97,
}

impl Device {
    /// The device with this number, of those that [`Driver::device_count`] counts.
    pub fn get(driver: Driver, ordinal: u32) -> CudaResult<Device> {
        let mut raw = 0;
        // SAFETY: `raw` is a valid place for one device.
        unsafe { call!(driver, cuDeviceGet(&mut raw, ordinal.try_into().unwrap_or(-1))) }?;
        Ok(Device { driver, raw })
    }

    pub(crate) fn from_raw(driver: Driver, raw: CUdevice) -> Device {
        Device { driver, raw }
    }

    /// Its driver.
    pub fn driver(self) -> Driver {
        self.driver
    }

    /// The `CUdevice`. It is also the device's number.
    pub fn as_raw(self) -> CUdevice {
        self.raw
    }

    /// The driver's name for it.
    pub fn name(self) -> CudaResult<String> {
        let mut name = [0_u8; 256];
        // SAFETY: `name` has the length that is passed.
        unsafe {
            call!(self.driver, cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, self.raw))
        }?;
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..length]).into_owned())
    }

    /// Its memory, bytes.
    pub fn total_memory(self) -> CudaResult<usize> {
        let mut bytes = 0;
        // SAFETY: `bytes` is a valid place for one number.
        unsafe { call!(self.driver, cuDeviceTotalMem_v2(&mut bytes, self.raw)) }?;
        Ok(bytes)
    }

    /// One number about it.
    pub fn attribute(self, attribute: DeviceAttribute) -> CudaResult<u32> {
        let mut value = 0;
        // SAFETY: `value` is a valid place for one int.
        unsafe { call!(self.driver, cuDeviceGetAttribute(&mut value, attribute as c_uint, self.raw)) }?;
        Ok(value.max(0) as u32)
    }

    /// Compute capability, e.g. `(9, 0)`.
    pub fn capability(self) -> CudaResult<(u32, u32)> {
        let (major, minor) =
            (DeviceAttribute::ComputeCapabilityMajor, DeviceAttribute::ComputeCapabilityMinor);
        Ok((self.attribute(major)?, self.attribute(minor)?))
    }
}
