//! What registers a thread gets at launch, where that matters: kernels with `setmaxnreg`.

use crate::limits;
use crate::ptx::ast::Function;

/// Registers of a thread at launch, where the kernel has `setmaxnreg`; `largest` is the largest count of its
/// `setmaxnreg.inc`s. `None` if `setmaxnreg` has no effect.
///
/// ptxas decides it, and this is what version 13.0 reports. It needs `.maxntid` or `.reqntid` together with
/// `.minnctapersm`, or `.maxnreg`, and without them ignores every `setmaxnreg` (remark C7508). With them a
/// thread gets all that they allow, but no more than `largest`: 168 with 384 threads, 232 with 256 of which
/// some raise their count to 232. Threads count in whole warpgroups, and a warp is given registers by eights
/// for each thread (ptxas says 255 where that is 256).
pub(crate) fn at_launch(function: &Function<'_>, largest: Option<u32>) -> Option<u32> {
    let threads = function.required_threads.or(function.max_threads);
    let by_blocks = threads.zip(function.min_blocks).and_then(|(shape, blocks)| {
        let threads: u32 = shape.iter().product();
        let fits = threads > 0 && blocks > 0 && threads.saturating_mul(blocks) <= limits::THREADS_PER_SM;
        // ptxas ignores more blocks than an SM holds.
        fits.then(|| limits::REGISTERS_PER_SM / (threads.next_multiple_of(128) * blocks) / 8 * 8)
    });
    let most = match (by_blocks, function.max_registers) {
        (None, None) => return None,
        (by_blocks, given) => by_blocks.unwrap_or(MOST).min(given.unwrap_or(MOST)),
    };
    Some(most.min(largest.unwrap_or(MOST)).clamp(LEAST, MOST).next_multiple_of(8))
}

/// Registers that a thread can have.
const LEAST: u32 = 24;
const MOST: u32 = 256;
