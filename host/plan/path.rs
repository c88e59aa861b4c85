//! Which family's kernels a device and a [`Path`] lead to.

use crate::config::Path;
use crate::error::{Result, require};
use crate::gpu::device::Device;
use crate::gpu::family::Family;

/// Whether `path` leads to the Hopper kernels on this device; an error if it asks for them in vain.
pub(crate) fn takes_hopper(op: &'static str, device: &Device, path: Path) -> Result<bool> {
    let is_hopper = device.family() == Family::Sm90a;
    match path {
        Path::Auto | Path::OneLaunch => Ok(is_hopper),
        Path::Portable { .. } => Ok(false),
        Path::Hopper { .. } => {
            require(is_hopper, op, "path", "Hopper", || {
                format!("must not be Hopper for the kernels of {}", device.family())
            })?;
            Ok(true)
        }
    }
}
