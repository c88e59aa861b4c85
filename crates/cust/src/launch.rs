//! Launching kernels.

use std::ffi::{c_int, c_uint, c_void};

use crate::error::{CudaResult, call};
use crate::module::Function;
use crate::stream::Stream;
use crate::sys::{
    CU_LAUNCH_ATTRIBUTE_COOPERATIVE, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    CUlaunchAttribute, CUlaunchAttributeValue, CUlaunchConfig,
};

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub dynamic_shared: u32,
    /// Whether the kernel may begin before its predecessor in the stream has ended (programmatic stream
    /// serialization).
    pub overlap: bool,
    /// Whether all blocks must be resident at once, because they wait for each other. A grid that is too large
    /// for that is refused.
    pub cooperative: bool,
}

impl Stream {
    /// Enqueues a kernel; `params` has one pointer per parameter, each to a value of that parameter's size.
    ///
    /// # Safety
    /// `params` must be as said. The values must mean to the kernel what it expects: memory of this device
    /// that stays allocated, and is not used by others, until the stream has run the kernel.
    pub unsafe fn launch(
        &self,
        function: &Function,
        config: LaunchConfig,
        params: &mut [*mut c_void],
    ) -> CudaResult<()> {
        let attribute = |id, set: fn(&mut CUlaunchAttributeValue)| {
            let mut value = CUlaunchAttributeValue { pad: [0; 64] };
            set(&mut value);
            CUlaunchAttribute { id, pad: [0; 4], value }
        };
        let mut attributes = Vec::new();
        if config.overlap {
            attributes.push(attribute(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, |value| {
                value.programmatic_stream_serialization_allowed = c_int::from(true);
            }));
        }
        if config.cooperative {
            attributes.push(attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, |value| {
                value.cooperative = c_int::from(true);
            }));
        }
        let raw = CUlaunchConfig {
            grid_dim: config.grid,
            block_dim: config.block,
            shared_mem_bytes: config.dynamic_shared,
            stream: self.as_raw(),
            attrs: attributes.as_mut_ptr(),
            num_attrs: attributes.len() as c_uint,
        };
        let _current = self.context().enter()?;
        // SAFETY: as many attributes as the configuration says lie there; stream and function are alive; the
        // parameters are the caller's contract.
        unsafe {
            call!(
                self.driver(),
                cuLaunchKernelEx(&raw, function.as_raw(), params.as_mut_ptr(), std::ptr::null_mut())
            )
        }
    }
}
