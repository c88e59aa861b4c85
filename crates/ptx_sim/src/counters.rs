//! What a launch did, in numbers that do not depend on the host machine.

use std::ops::{AddAssign, Range};

/// Classes of warp instructions, as counted in [`Counters::instructions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Integer, logic, compare, select and move instructions.
    Integer,
    /// Floating-point arithmetic on f16, bf16, f32 and f64.
    Float,
    /// Reciprocals, roots, exponentials, logarithms, sines.
    Special,
    /// Conversions between types.
    Convert,
    /// Branches, calls, returns and exits.
    Control,
    /// Loads from global, constant and generic memory.
    LoadGlobal,
    /// Stores to global and generic memory.
    StoreGlobal,
    /// Loads from shared memory (`ldmatrix` included).
    LoadShared,
    /// Stores to shared memory (`stmatrix` included).
    StoreShared,
    /// Loads and stores of local memory and parameters.
    Local,
    /// Atomic operations and reductions, on any memory.
    Atomic,
    /// Asynchronous copies and their commits and waits.
    AsyncCopy,
    /// Barriers, fences, mbarrier operations.
    Sync,
    /// Shuffles, votes, matches and warp reductions.
    Warp,
    /// Tensor-core operations.
    Tensor,
    /// Everything else: special registers, hints, dependent-launch hooks.
    Other,
}

impl Class {
    /// How many classes there are.
    pub const COUNT: usize = 16;

    /// Every class, in the order of the counter array.
    pub const ALL: [Class; Class::COUNT] = [
        Class::Integer,
        Class::Float,
        Class::Special,
        Class::Convert,
        Class::Control,
        Class::LoadGlobal,
        Class::StoreGlobal,
        Class::LoadShared,
        Class::StoreShared,
        Class::Local,
        Class::Atomic,
        Class::AsyncCopy,
        Class::Sync,
        Class::Warp,
        Class::Tensor,
        Class::Other,
    ];
}

/// Counts gathered over one or more launches; add them up with `+=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernel launches.
    pub launches: u64,
    /// Thread blocks run.
    pub blocks: u64,
    /// Warp instructions executed, by [`Class`] (index with [`Counters::of`]).
    pub instructions: [u64; Class::COUNT],
    /// Bytes that lanes asked of global memory.
    pub global_load_bytes: u64,
    /// Distinct 32-byte sectors those loads touched, counted per warp instruction.
    pub global_load_sectors: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_store_bytes: u64,
    /// Distinct 32-byte sectors those stores touched, counted per warp instruction.
    pub global_store_sectors: u64,
    /// Bytes that `cp.async.bulk.prefetch.L2` asked for, boxes of tensors not counted. They move nothing that
    /// a thread sees, and are in no other count of bytes.
    pub l2_prefetch_bytes: u64,
    /// Which bytes those were: the sum of [`prefetch_digest`] over the requests.
    pub l2_prefetch_digest: u64,
    /// Passes over shared memory beyond the least possible for the access width.
    pub shared_bank_conflicts: u64,
    /// Tensor-core floating-point operations (two per multiply-add).
    pub tensor_flops: u64,
    /// Barrier instructions executed by warps.
    pub barriers: u64,
    /// `griddepcontrol` instructions executed by warps.
    pub grid_dependency_controls: u64,
}

impl Counters {
    /// Warp instructions of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// Warp instructions of all classes.
    pub fn warp_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

/// A number for a set of 16-byte units of global memory, given as a range of addresses: the wrapping sum of a
/// hash of each unit. So the digests of disjoint ranges add up to that of their union, however it is cut and
/// in whatever order, and other units give another.
pub fn prefetch_digest(addresses: Range<u64>) -> u64 {
    let hash = |unit: u64| crate::random::Random::new(unit).next();
    (addresses.start / 16..addresses.end / 16).fold(0, |sum, unit| sum.wrapping_add(hash(unit)))
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        for (sum, n) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += n;
        }
        self.global_load_bytes += other.global_load_bytes;
        self.global_load_sectors += other.global_load_sectors;
        self.global_store_bytes += other.global_store_bytes;
        self.global_store_sectors += other.global_store_sectors;
        self.l2_prefetch_bytes += other.l2_prefetch_bytes;
        self.l2_prefetch_digest = self.l2_prefetch_digest.wrapping_add(other.l2_prefetch_digest);
        self.shared_bank_conflicts += other.shared_bank_conflicts;
        self.tensor_flops += other.tensor_flops;
        self.barriers += other.barriers;
        self.grid_dependency_controls += other.grid_dependency_controls;
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        *self += &other;
    }
}
