//! Which GPU the emulated device says it is, and the numbers that follow from that.
//!
//! | environment | meaning | default |
//! |---|---|---|
//! | `FP8_MOE_SIM_ARCH` | compute capability: `90` (H200) or `89` (L40S) | `90` |
//! | `FP8_MOE_SIM_SMS` | number of SMs | that of the GPU |
//! | `FP8_MOE_SIM_MEMORY` | bytes of device memory | the GPU's, at most 2/5 of this computer's |

use std::env;
use std::ffi::CStr;
use std::fs;

/// The numbers of one GPU. Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute
/// Capability", and the data sheets of the two cards.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub name: &'static CStr,
    pub capability: (u32, u32),
    pub sm_count: u32,
    pub memory_bytes: u64,
    pub l2_bytes: u32,
    /// Shared memory of an SM.
    pub shared_per_sm: u32,
    /// Most shared memory of one block, after opting in.
    pub shared_per_block: u32,
    pub threads_per_sm: u32,
    pub blocks_per_sm: u32,
    pub clock_khz: u32,
    pub memory_clock_khz: u32,
    pub bus_bits: u32,
    pub bus_id: &'static CStr,
}

/// Shared memory of a block that needs no opting in.
pub(super) const SHARED_DEFAULT: u32 = 48 << 10;
/// Shared memory that the system keeps for itself in each block.
pub(super) const SHARED_RESERVED: u32 = 1 << 10;
/// 32-bit registers of an SM, and of a block.
pub(super) const REGISTERS: u32 = 64 << 10;
/// Threads of a block, in all and by dimension.
pub(super) const THREADS_PER_BLOCK: u32 = 1024;
pub(super) const BLOCK_LIMIT: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid, by dimension.
pub(super) const GRID_LIMIT: [u32; 3] = [(1 << 31) - 1, 65535, 65535];

impl Profile {
    fn h200() -> Self {
        Profile {
            name: c"ptx_sim (emulated H200)",
            capability: (9, 0),
            sm_count: 132,
            memory_bytes: 141_000_000_000,
            l2_bytes: 50 << 20,
            shared_per_sm: 228 << 10,
            shared_per_block: 227 << 10,
            threads_per_sm: 2048,
            blocks_per_sm: 32,
            clock_khz: 1_980_000,
            memory_clock_khz: 3_201_000,
            bus_bits: 6144,
            bus_id: c"0000:00:00.0",
        }
    }

    fn l40s() -> Self {
        Profile {
            name: c"ptx_sim (emulated L40S)",
            capability: (8, 9),
            sm_count: 142,
            memory_bytes: 48_000_000_000,
            l2_bytes: 96 << 20,
            shared_per_sm: 100 << 10,
            shared_per_block: 99 << 10,
            threads_per_sm: 1536,
            blocks_per_sm: 24,
            clock_khz: 2_520_000,
            memory_clock_khz: 9_001_000,
            bus_bits: 384,
            bus_id: c"0000:00:00.0",
        }
    }

    /// The GPU that the environment asks for.
    pub fn from_environment() -> Result<Self, String> {
        let mut profile = match env::var("FP8_MOE_SIM_ARCH").as_deref() {
            Err(_) | Ok("" | "90") => Profile::h200(),
            Ok("89") => Profile::l40s(),
            Ok(other) => return Err(format!("FP8_MOE_SIM_ARCH={other}: must be 89 or 90")),
        };
        if let Some(sms) = number("FP8_MOE_SIM_SMS", 1, 1024)? {
            profile.sm_count = sms as u32;
        }
        match number("FP8_MOE_SIM_MEMORY", 1 << 20, 1 << 46)? {
            Some(bytes) => profile.memory_bytes = bytes,
            None => {
                if let Some(host) = host_memory() {
                    profile.memory_bytes = profile.memory_bytes.min(host / 5 * 2);
                }
            }
        }
        Ok(profile)
    }
}

fn number(variable: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
    let Ok(text) = env::var(variable) else { return Ok(None) };
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
        _ => Err(format!("{variable}={text}: must be a whole number from {least} to {most}")),
    }
}

/// Bytes of memory of this computer.
fn host_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
