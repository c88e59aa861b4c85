//! How many blocks of a kernel a multiprocessor holds at a time.
//!
//! The numbers are those of "Technical Specifications per Compute Capability" in the CUDA C++ Programming
//! Guide. Dynamic shared memory is asked for at the launch, so the count is an upper bound for kernels that
//! have any.

use cuda_builder::Arch;

/// 32-bit registers of each of the four parts of a multiprocessor; a warp lies in one of them.
const REGISTERS_PER_PART: u32 = 16 << 10;
const PARTS: u32 = 4;
/// Registers are given to a warp in multiples of this.
const REGISTER_UNIT: u32 = 256;
/// Shared memory that the system keeps for itself in each block.
const SHARED_RESERVED: u32 = 1 << 10;

/// What a multiprocessor of a family has.
struct Limits {
    threads: u32,
    blocks: u32,
    shared: u32,
}

fn limits(arch: Arch) -> Limits {
    match arch {
        Arch::Sm89 => Limits { threads: 1536, blocks: 24, shared: 100 << 10 },
        Arch::Sm90a => Limits { threads: 2048, blocks: 32, shared: 228 << 10 },
    }
}

/// Blocks of `threads` threads with so many registers each and so much static shared memory.
pub fn blocks(arch: Arch, threads: u32, registers: u32, static_shared: u32) -> u32 {
    let limits = limits(arch);
    let warps = threads.div_ceil(32).max(1);
    let warp_registers = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
    let by_registers = PARTS * (REGISTERS_PER_PART / warp_registers) / warps;
    let by_shared = limits.shared / (static_shared + SHARED_RESERVED);
    (limits.threads / (warps * 32)).min(limits.blocks).min(by_registers).min(by_shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides() {
        assert_eq!(blocks(Arch::Sm90a, 128, 32, 0), 16, "threads");
        assert_eq!(blocks(Arch::Sm89, 128, 32, 0), 12, "threads");
        assert_eq!(blocks(Arch::Sm90a, 32, 16, 0), 32, "blocks");
        assert_eq!(blocks(Arch::Sm90a, 256, 236, 0), 1, "registers: two warps fit into each part");
        assert_eq!(blocks(Arch::Sm90a, 384, 168, 0), 1, "registers: three warps fit into each part");
        assert_eq!(blocks(Arch::Sm90a, 64, 32, 47 << 10), 4, "shared memory");
    }
}
