//! What a test may set and ask of the emulated device that is linked into the program. All of it belongs to
//! the calling thread; on a GPU it has no effect, and there is nothing to tell.
//!
//! Environment variables set the device up, for the whole process:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FP8_MOE_SIM_ARCH` | compute capability: `90` (H200) or `89` (L40S) | `90` |
//! | `FP8_MOE_SIM_SMS` | number of SMs | that of the GPU |
//! | `FP8_MOE_SIM_MEMORY` | bytes of device memory | the GPU's, at most 2/5 of this computer's |
//! | `FP8_MOE_SIM_SEED` | the seed that a thread starts with | `0` |
//! | `FP8_MOE_SIM_WORKERS` | host threads that one launch uses | all cores |
//! | `FP8_MOE_SIM_SUMS` | FP8 sums of the tensor cores: `exact`, or truncated as the GPU's are, `hardware` | `exact` |
//!
//! A kernel that makes a mistake fails at its own launch, and [`last_fault`] has the report, in one line:
//! `out-of-bounds access in kernel permute, block (3,0,0), thread (17,0,0) (warp 0, lanes 0x00020000), at PTX
//! line 214 `ld.global.u32 %r7, [%rd4];` (permute.rs:88): 4-byte load at 0x100000200400, ...`

pub use ptx_sim::Counters;
pub use ptx_sim::counters::prefetch_digest;
pub use ptx_sim::driver::{
    LaunchRecord, forgive_faults, last_error, last_fault, record_calls, set_seed, set_workers, take_counters,
    take_last_error, take_last_fault, take_launch_log,
};
