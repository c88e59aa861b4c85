//! Sizes of a permutation, of its tile schedule, and how the sort is cut into blocks.

use super::checked_i32;
use crate::error::{Error, Result, require};
use crate::gpu::device::Device;
use crate::kernels::launchers;

const OP: &str = "permute";

/// Sizes of a permutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermuteShape {
    /// T.
    pub tokens: usize,
    /// k.
    pub top_k: usize,
    /// E, experts of the model: what the ids count.
    pub experts: usize,
    /// E_loc, experts of this rank; equal to `experts` without an expert map.
    pub local_experts: usize,
    /// Every expert's region is padded to a multiple of this; 1 for no padding.
    pub alignment: usize,
}

impl PermuteShape {
    /// R = T * k.
    pub fn rows(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// P, rows of the permuted arrays that suffice whatever the routing: R, or with padding
    /// `R + min(E_loc, R) * (alignment - 1)` rounded up to a multiple of the alignment.
    ///
    /// Sizes that [`permute`](crate::ops::permute::permute) refuses give some number.
    pub fn capacity(&self) -> usize {
        let rows = self.rows();
        let padding = self.local_experts.min(rows).saturating_mul(self.alignment.saturating_sub(1));
        let capacity = rows.saturating_add(padding);
        capacity.checked_next_multiple_of(self.alignment.max(1)).unwrap_or(usize::MAX)
    }

    /// Refuses sizes that the sort cannot have. Behind it, all counts of rows are below 2^31.
    pub(crate) fn check(&self, has_map: bool) -> Result<()> {
        let positive =
            |name, value: usize| require(value > 0, OP, name, value, || "must be at least 1".into());
        positive("experts", self.experts)?;
        positive("alignment", self.alignment)?;
        require((1..=self.experts).contains(&self.top_k), OP, "top_k", self.top_k, || {
            format!("must be in 1..={}, the number of experts", self.experts)
        })?;
        require(
            has_map || self.local_experts == self.experts,
            OP,
            "local_experts",
            self.local_experts,
            || format!("must be {}, the number of experts, without an expert_map", self.experts),
        )?;
        let limit = i32::MAX as usize;
        require(self.tokens <= limit / self.top_k, OP, "tokens", self.tokens, || {
            format!(
                "must be at most {} with top_k {}: rows are counted in i32",
                limit / self.top_k,
                self.top_k
            )
        })?;
        checked_i32(OP, "experts", self.experts)?;
        checked_i32(OP, "local_experts", self.local_experts)?;
        let padding = self.local_experts.min(self.rows()).checked_mul(self.alignment);
        let fits = padding.is_some_and(|padding| {
            // Rounding up may pass the limit by itself.
            let fits = padding <= limit - self.rows() && self.alignment <= limit / 2;
            fits && self.capacity() <= limit
        });
        require(fits, OP, "alignment", self.alignment, || {
            format!("must keep the {} rows of {} experts below 2^31", self.rows(), self.local_experts)
        })
    }

    /// How `path` cuts the rows on `device`.
    pub(crate) fn cut(&self, path: PermutePath, device: &Device) -> Result<Cut> {
        let rows = self.rows();
        let (warps, steps) = match path {
            PermutePath::Auto => {
                let warps = rows.div_ceil(LANES).clamp(1, WARPS);
                let steps = rows.div_ceil(LANES * warps * device.multiprocessors().max(1) as usize);
                (warps, steps.clamp(1, MAX_STEPS))
            }
            PermutePath::Blocks { warps, steps } => {
                let limit = |name, value: usize, most: usize| {
                    require((1..=most).contains(&value), OP, name, value, || format!("must be in 1..={most}"))
                };
                limit("warps", warps, WARPS)?;
                limit("steps", steps, MAX_STEPS)?;
                (warps, steps)
            }
        };
        // As many warps as shared memory holds the counters of.
        let room = device.shared_per_block().saturating_sub(RESERVED_SHARED) as usize;
        let fits = |warps: usize, experts: usize| launchers::permute_table_bytes(warps, experts) <= room;
        let Some(warps) = (1..=warps).rev().find(|&warps| fits(warps, self.local_experts)) else {
            let most = (0..room).rev().find(|&experts| fits(1, experts)).unwrap_or(0);
            let rule = format!("must be at most {most} on this device");
            return Err(Error::argument(OP, "local_experts", self.local_experts, rule));
        };
        let shared_bytes = launchers::permute_table_bytes(warps, self.local_experts);
        Ok(Cut { warps, steps, blocks: rows.div_ceil(LANES * warps * steps), shared_bytes })
    }
}

/// How the sort is cut into blocks. The result is the same, bit for bit.
///
/// Blocks do not wait for each other: each counts all ids, and places its own rows. So the time of a block
/// grows with all rows, and small blocks cost nothing as long as all of them run at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PermutePath {
    /// Blocks of 512 rows, or of up to 2048 where there would be more blocks than multiprocessors.
    #[default]
    Auto,
    /// Blocks of `warps * steps * 32` rows.
    Blocks {
        /// Warps of a block that have rows, 1 to 16. Fewer are taken where shared memory does not hold the
        /// counters of so many: that is with some thousand experts.
        warps: usize,
        /// Rows of each thread, 1 to 4.
        steps: usize,
    },
}

/// Most warps of a block that have rows.
const WARPS: usize = launchers::PERMUTE_MOST_WARPS as usize;
/// Threads of a warp.
const LANES: usize = launchers::WARP_THREADS as usize;
/// Most rows of a thread.
const MAX_STEPS: usize = launchers::PERMUTE_MOST_STEPS as usize;
/// Shared memory of the sort besides its tables: static arrays, and what the driver keeps.
const RESERVED_SHARED: u32 = 8 * 1024;

/// How the sort is launched.
pub(crate) struct Cut {
    /// Warps of a block that have rows.
    pub warps: usize,
    /// Rows of a thread.
    pub steps: usize,
    pub blocks: usize,
    pub shared_bytes: usize,
}

/// Entries of a tile schedule before its first tile: its sizes, and 256 counters of 4 bytes that kernels
/// which cut a tile's sum into parts use, and leave at 0.
pub const TILE_SCHEDULE_HEADER: usize = launchers::FIRST_TILE as usize;

/// Row tiles that there may be, whatever the routing: each expert that has rows has one that is not full.
pub(super) fn tile_rows(rows: usize, experts: usize, block_m: usize) -> usize {
    (rows / block_m.max(1)).saturating_add(experts.min(rows))
}

/// Entries that a tile schedule may need, whatever the routing: `rows` is P, the rows of the permuted arrays.
pub fn tile_schedule_entries(rows: usize, local_experts: usize, block_m: usize) -> usize {
    tile_rows(rows, local_experts, block_m).saturating_add(TILE_SCHEDULE_HEADER)
}
