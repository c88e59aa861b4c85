//! Memory that is read and nothing more: what benchmarks find its rate with. Hopper alone.

use crate::config::COPY_BYTES;
use crate::error::{Error, Result, require};
use crate::gpu::buffer::Slice;
use crate::gpu::family::Family;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::checked_i32;

const OP: &str = "read_stream";

/// Reads `from`, as far as it is whole runs of 32 KiB, with as many blocks as there are SMs. One launch.
///
/// # Errors
/// A slice of another device, or not 16-byte aligned; kernels of another family than Hopper's.
pub fn read_stream(stream: &Stream, from: Slice<'_, u8>) -> Result<()> {
    from.check(OP, "from", from.len(), stream)?;
    let address = from.ptr().raw();
    require(address.is_multiple_of(COPY_BYTES as u64), OP, "from", format_args!("{address:#x}"), || {
        format!("must be {COPY_BYTES}-byte aligned")
    })?;
    let device = stream.device();
    if device.family() != Family::Sm90a {
        return Err(Error::argument(OP, "device", device, "must have the kernels of Hopper"));
    }
    let runs = checked_i32(OP, "from", from.len() / launchers::READ_STREAM_RUN as usize)?;
    if runs == 0 {
        return Ok(());
    }
    let arguments = launchers::ReadStream { from: from.ptr(), runs };
    let blocks = device.multiprocessors().min(runs);
    // SAFETY: the slice is on this device and has the runs; nothing is written.
    unsafe { device.launch(stream, &launchers::READ_STREAM, blocks, &arguments) }
}
