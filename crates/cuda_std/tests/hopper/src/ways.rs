//! Ways in which a kernel of this crate is run: its last argument. The test that launches the kernels reads
//! this file too.

/// The right way.
pub const RIGHT: u32 = 0;
/// The proxy fence stands behind the barrier, in the thread that asks for the copy: right as well.
pub const FENCE_BY_ASKER: u32 = 1;
/// No proxy fence between the writes to shared memory and the copy that reads them.
pub const NO_FENCE: u32 = 2;
/// The proxy fence stands before the writes.
pub const FENCE_TOO_EARLY: u32 = 3;
/// Shared memory is written again without a wait for the copy that reads it.
pub const NO_WAIT: u32 = 4;
/// The wait leaves one group pending, the only one.
pub const WAIT_LEAVES_ONE: u32 = 5;
/// The copy is never committed, so that the wait does not cover it.
pub const NO_COMMIT: u32 = 6;
/// Shared memory is read behind a barrier of all threads, when the load that fills it has been asked for but
/// not waited for.
pub const NO_LANDING: u32 = 7;
/// A wait for reads of shared memory stands where the writes of global memory must be waited for.
pub const WAIT_FOR_READS: u32 = 8;
/// Threads arrive by `cp.async.mbarrier.arrive` and an arrival of their own: right as well.
pub const HOLD_FOR_COPIES: u32 = 9;
/// Threads arrive at once, whether their copies have landed or not.
pub const ARRIVE_AT_ONCE: u32 = 10;
/// What is asked for ends behind the last byte that there is.
pub const PAST_THE_END: u32 = 11;
