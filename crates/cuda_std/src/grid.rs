//! Programmatic dependent launch: a kernel may begin while its predecessor in the stream still runs.
//!
//! ```text
//! primary:    ...... launch_dependents() ...... last store, exit
//! secondary:            prologue ... wait() | reads what the primary wrote
//! ```
//!
//! # What is visible before the wait
//! The predecessor's writes are not. Those of the predecessor's own predecessors are, if every thread of the
//! predecessor waits before it lets its dependents go, and before it exits, as every kernel of this project
//! that overlaps does:
//!
//! ```text
//!   N - 1   ... last store, exit |
//!   N                            wait() returns in some thread of every block | launch_dependents()
//!   N + 1                                                                                          | begins
//! ```
//!
//! N + 1 begins when every block of N has signalled or exited, so that N's wait has returned in each, so that
//! N - 1 has ended and its writes are performed. By the same argument for N, so were those of all kernels
//! before. Where a kernel was launched without the attribute, it begins after all earlier ones have ended,
//! which is more. L1 is not part of the argument: what is read before the wait is read with
//! [`memory::load_strong`](crate::memory::load_strong), past it.
//!
//! PTX ISA, `griddepcontrol` (sm_90 and newer). Compiled for an older target both do nothing: such a
//! kernel must be launched without the attribute, on newer GPUs too, so that the stream orders the kernels.

#[cfg(target_feature = "sm_90")]
use core::arch::asm;

/// Waits until the grids this one depends on have finished and their writes are visible:
/// `griddepcontrol.wait`.
///
/// Every thread that reads a predecessor's output calls it first. Not collective.
#[inline(always)]
pub fn wait() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: only waits. It counts as writing memory, so that no load moves above it, which LLVM's intrinsic
    // does not promise.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack, preserves_flags))
    }
}

/// Lets dependent grids be launched once every block has called it or exited:
/// `griddepcontrol.launch_dependents`.
///
/// It promises nothing about memory: the dependent grid still calls [`wait`] before it reads.
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: only signals.
    unsafe {
        asm!("griddepcontrol.launch_dependents;", options(nostack, preserves_flags))
    }
}
