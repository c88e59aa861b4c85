//! Programmatic dependent launch: a kernel may begin while its predecessor in the stream still runs.
//!
//! ```text
//! primary:    ...... launch_dependents() ...... last store, exit
//! secondary:            prologue ... wait() | reads what the primary wrote
//! ```
//!
//! PTX ISA, `griddepcontrol` (sm_90 and newer). On older targets, and in a launch without the attribute, both do nothing, and
//! the stream orders the kernels.

#[cfg(target_feature = "sm_90")]
#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.griddepcontrol.wait"]
    fn griddepcontrol_wait();
    #[link_name = "llvm.nvvm.griddepcontrol.launch.dependents"]
    fn griddepcontrol_launch_dependents();
}

/// Waits until the grids this one depends on have finished and their writes are visible: `griddepcontrol.wait`.
///
/// Every thread that reads a predecessor's output calls it first. Not collective.
#[inline(always)]
pub fn wait() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: only waits.
    unsafe {
        griddepcontrol_wait()
    }
}

/// Lets dependent grids be launched once every block has called it or exited: `griddepcontrol.launch_dependents`.
///
/// It promises nothing about memory: the dependent grid still calls [`wait`] before it reads.
#[inline(always)]
pub fn launch_dependents() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: only signals.
    unsafe {
        griddepcontrol_launch_dependents()
    }
}
