//! Launching kernels, in a stream's order.

use cust::launch::LaunchConfig;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::family::Family;
use crate::gpu::launch::{Grid, Kernel, KernelSource, KernelText};
use crate::gpu::stream::Stream;

impl Device {
    /// Enqueues a kernel. The block size is the kernel's own; a grid with no blocks enqueues nothing.
    ///
    /// # Safety
    /// The kernel's arguments must satisfy what its documentation asks of them: device addresses of enough memory, of
    /// this device, that stay valid until the stream has run the kernel. Uses of the memory on other streams are ordered if the
    /// caller has checked slices of it for this stream, as the operations do; else that is the caller's to do.
    pub unsafe fn launch<K: Kernel + KernelSource>(
        &self,
        stream: &Stream,
        grid: impl Into<Grid>,
        dynamic_shared_bytes: u32,
        kernel: &K,
    ) -> Result<()> {
        let grid = grid.into();
        if grid.x == 0 || grid.y == 0 || grid.z == 0 {
            return Ok(());
        }
        if !self.same_as(stream.device()) {
            let rule = format!("must be a stream of {self}");
            return Err(Error::argument(K::NAME, "stream", format!("a stream of {}", stream.device()), rule));
        }
        let text = KernelText::of::<K>();
        if stream.rehearses(text) {
            return Ok(());
        }
        let function = self.function(text, dynamic_shared_bytes)?;
        let config = LaunchConfig {
            grid: [grid.x, grid.y, grid.z],
            block: [K::THREADS, 1, 1],
            dynamic_shared: dynamic_shared_bytes,
            // In the PTX of older families the kernel's wait is no instruction: there nothing may overlap, whatever the GPU can do.
            overlap: K::OVERLAP && self.family() == Family::Sm90a,
        };
        let launched = kernel.with_params(|params| {
            stream.enqueue(|stream| {
                // SAFETY: `params` holds one pointer per parameter to a value of its size (the trait's contract, kept by the generated
                // launchers); what the values mean to the kernel is the caller's contract.
                unsafe { stream.launch(&function, config, params) }
            })
        });
        launched.map_err(|error| match error.into() {
            Error::Driver { call, code, meaning } => {
                Error::Driver { call, code, meaning: format!("{}: {meaning}", K::NAME) }
            }
            other => other,
        })
    }
}
