//! Launching kernels, in a stream's order.

use cust::launch::LaunchConfig;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::family::Family;
use crate::gpu::launch::{Arguments, Grid, Kernel};
use crate::gpu::order::Unchanged;
use crate::gpu::stream::Stream;

impl Device {
    /// Enqueues a kernel. The block size is the kernel's own; a grid with no blocks enqueues nothing.
    ///
    /// # Safety
    /// The kernel's arguments must satisfy what its documentation asks of them: device addresses of enough
    /// memory, of this device, that stay valid until the stream has run the kernel. Uses of the memory on
    /// other streams are ordered if the caller has checked slices of it for this stream, as the operations
    /// do; else that is the caller's to do.
    pub(crate) unsafe fn launch<A: Arguments>(
        &self,
        stream: &Stream,
        kernel: &Kernel<A>,
        grid: impl Into<Grid>,
        arguments: &A,
    ) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.launch_over(stream, kernel, grid, arguments, &Unchanged::NOTHING) }
    }

    /// As [`launch`](Self::launch), for a kernel that relies on what `lists` held: refused if a graph may
    /// have overwritten them.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch), if the lists hold what they held.
    pub(crate) unsafe fn launch_over<A: Arguments>(
        &self,
        stream: &Stream,
        kernel: &Kernel<A>,
        grid: impl Into<Grid>,
        arguments: &A,
        lists: &Unchanged<'_>,
    ) -> Result<()> {
        let grid = grid.into();
        let name = kernel.text.name;
        if grid.x == 0 || grid.y == 0 || grid.z == 0 {
            return Ok(());
        }
        if !self.same_as(stream.device()) {
            let rule = format!("must be a stream of {self}");
            return Err(Error::argument(name, "stream", format!("a stream of {}", stream.device()), rule));
        }
        if stream.rehearses(kernel.text) {
            return Ok(());
        }
        let function = self.function(kernel.text, kernel.shared_bytes)?;
        let config = LaunchConfig {
            grid: [grid.x, grid.y, grid.z],
            block: [kernel.threads, 1, 1],
            dynamic_shared: kernel.shared_bytes,
            // In the PTX of older families the kernel's wait is no instruction: there nothing may overlap,
            // whatever the GPU can do.
            overlap: kernel.overlap && self.family() == Family::Sm90a,
            cooperative: kernel.cooperative,
        };
        let launched = arguments.with_params(|params| {
            stream.enqueue_over(lists, |stream| {
                // SAFETY: `params` holds one pointer per parameter to a value of its size, by the contracts
                // of the trait and of `Kernel::new`; what the values mean to the kernel is the caller's
                // contract. The context's cache keeps the function, until the context's work is done.
                unsafe { stream.launch(&function, config, params) }
            })
        });
        match launched {
            Ok(true) => Ok(()),
            Ok(false) => Err(overwritten(name)),
            Err(error) => Err(match error.into() {
                Error::Driver { call, code, meaning } => {
                    Error::Driver { call, code, meaning: format!("{name}: {meaning}") }
                }
                other => other,
            }),
        }
    }
}

/// The refusal of lists that a graph may have overwritten.
pub(crate) fn overwritten(op: &'static str) -> Error {
    let rule = "must be made again: a graph that writes its memory has been launched since";
    Error::argument(op, "permutation", "one that may have been overwritten", rule)
}
