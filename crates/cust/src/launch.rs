//! Launching kernels.

use std::ffi::{c_int, c_uint, c_void};

use crate::error::{CudaResult, call};
use crate::module::Function;
use crate::stream::Stream;
use crate::sys::{
    CU_LAUNCH_ATTRIBUTE_COOPERATIVE, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    CUDA_ERROR_INVALID_HANDLE, CUlaunchAttribute, CUlaunchAttributeValue, CUlaunchConfig,
};

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "arguments by name: one more is a new version")]
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
    /// Whether all blocks must be resident at once, because they wait for each other. A grid that is too
    /// large for that is refused.
    pub cooperative: bool,
}

impl Stream {
    /// Enqueues a kernel, a function of the stream's context; others are refused. `params` has one pointer
    /// per parameter, each to a value of that parameter's size.
    ///
    /// # Safety
    /// - `params` must be as said. The values must mean to the kernel what it expects: memory of this device
    ///   that stays allocated, and is not used by others, until the stream has run the kernel. Grid, block
    ///   and shared memory must be such that the kernel keeps to that memory.
    /// - `function`, or a clone of it, must live until the stream has run the kernel. If the stream is being
    ///   captured, it must live as long as the [`Template`](crate::graph::Template) and the
    ///   [`GraphExec`](crate::GraphExec)s that are made of the capture.
    pub unsafe fn launch(
        &self,
        function: &Function,
        config: LaunchConfig,
        params: &mut [*mut c_void],
    ) -> CudaResult<()> {
        if function.context() != self.context() {
            // Of another driver its handle would be an address there.
            return self.driver().check("cuLaunchKernelEx", CUDA_ERROR_INVALID_HANDLE);
        }
        let value = CUlaunchAttributeValue { pad: [0; 64] };
        let mut attributes = [CUlaunchAttribute { id: 0, pad: [0; 4], value }; 2];
        let mut count = 0;
        if config.overlap {
            attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmatic_stream_serialization_allowed = c_int::from(true);
            count += 1;
        }
        if config.cooperative {
            attributes[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            attributes[count].value.cooperative = c_int::from(true);
            count += 1;
        }
        let raw = CUlaunchConfig {
            grid_dim: config.grid,
            block_dim: config.block,
            shared_mem_bytes: config.dynamic_shared,
            stream: self.as_raw(),
            attrs: attributes.as_mut_ptr(),
            num_attrs: count as c_uint,
        };
        let _current = self.context().enter()?;
        // SAFETY: as many attributes as the configuration says lie there; stream and function are alive, and
        // of one context; the parameters are the caller's contract.
        unsafe {
            call!(
                self.driver(),
                cuLaunchKernelEx(&raw, function.as_raw(), params.as_mut_ptr(), std::ptr::null_mut())
            )
        }
    }
}
