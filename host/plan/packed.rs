//! Packed weights: the matrices of a GEMM's experts as the Hopper kernels read them fastest.
//!
//! A stage of their ring is one contiguous run of memory then, already swizzled, and one linear copy. On an
//! H200 a stream of such copies runs 3 to 5 % faster than boxes of the matrix as a checkpoint has it.
//! `kernels-gpu/src/gemm/hopper/weights.rs` draws the format; [`PackedShape::VERSION`] is its version.

use crate::config::{COPY_BYTES, MoeConfig};
use crate::error::{Result, require};
use crate::gpu::device::Device;
use crate::kernels::launchers;

use super::path::takes_hopper;
use super::{elements, first_is_gated};

/// How the weights of a GEMM lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightLayout {
    /// As a checkpoint has them: `[experts, rows, K]`. Any kernel reads them.
    #[default]
    Checkpoint,
    /// Packed, for the Hopper kernels: [`PackedShape`].
    Packed,
}

/// The matrices of a GEMM's experts, to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedShape {
    experts: usize,
    rows: usize,
    k: usize,
    is_gated: bool,
}

impl PackedShape {
    /// The version of the format: it changes with every change of where a byte lies.
    pub const VERSION: u32 = 1;

    /// The most that K of a layer's weights is padded by: one part in so many. On an H200 a layer with K =
    /// 2880, 2.2 % more when padded, is 6 to 12 % faster so; of others packed weights are read 3 to 5 %
    /// faster, which more padding would use up.
    pub const MOST_PADDING: usize = 32;

    /// B `[experts, n, k]` of a [grouped GEMM](crate::ops::grouped_gemm::grouped_gemm).
    ///
    /// # Errors
    /// An n that is no positive multiple of 8, a k that is none of 16; matrices of 2^32 lines of 128 bytes.
    pub fn plain(experts: usize, n: usize, k: usize) -> Result<PackedShape> {
        Self::new(experts, ("n", n, launchers::COLUMNS_MULTIPLE as usize), k, false)
    }

    /// B `[experts, 2 * intermediate, k]`, gate before up, of a [gated
    /// GEMM](crate::ops::gated_gemm::gated_gemm).
    ///
    /// # Errors
    /// An intermediate size or a k that is no positive multiple of 16; matrices of 2^32 lines of 128 bytes.
    pub fn gated(experts: usize, intermediate: usize, k: usize) -> Result<PackedShape> {
        Self::new(experts, ("intermediate", intermediate, COPY_BYTES), k, true)
    }

    fn new(
        experts: usize,
        (name, columns, multiple): (&str, usize, usize),
        k: usize,
        is_gated: bool,
    ) -> Result<PackedShape> {
        const OP: &str = "PackedShape";
        for (name, value, multiple) in [(name, columns, multiple), ("k", k, COPY_BYTES)] {
            require(value > 0 && value.is_multiple_of(multiple), OP, name, value, || {
                format!("must be a positive multiple of {multiple}")
            })?;
        }
        let rows = if is_gated { columns.saturating_mul(2) } else { columns };
        // Of one expert at least, so that lengths can be computed where there is none.
        let all_rows = experts.max(1).saturating_mul(rows);
        let lines = all_rows.saturating_mul(k.div_ceil(launchers::SLAB as usize));
        require(lines <= u32::MAX as usize, OP, "experts", experts, || {
            format!("must keep {rows} rows of {k} columns below 2^32 lines of {} bytes", launchers::SLAB)
        })?;
        Ok(PackedShape { experts, rows, k, is_gated })
    }

    /// Those of w13 and w2 of a layer on `device`, if its weights are packed: its kernels read them, it has a
    /// gate, and what either K lacks to a multiple of 128 is at most [`MOST_PADDING`](Self::MOST_PADDING).
    pub fn of_layer(device: &Device, config: &MoeConfig) -> Option<[PackedShape; 2]> {
        let hopper = takes_hopper("PackedShape", device, config.path).unwrap_or(false);
        let (experts, hidden, intermediate) =
            (config.slot_local_experts(), config.hidden_size, config.padded_intermediate());
        // Without a gate both halves of an item are the same rows.
        if !hopper || ![hidden, intermediate].into_iter().all(is_padded_little) || config.halves() != 2 {
            return None;
        }
        let first = if first_is_gated(device, config) {
            PackedShape::gated(experts, intermediate, hidden)
        } else {
            PackedShape::plain(experts, 2 * intermediate, hidden)
        };
        Some([first.ok()?, PackedShape::plain(experts, hidden, intermediate).ok()?])
    }

    /// Bytes of the matrices as a checkpoint has them.
    pub fn checkpoint_len(&self) -> usize {
        self.experts * self.rows * self.k
    }

    /// Bytes of the packed matrices: as many, but for what K lacks to a multiple of 128.
    pub fn len(&self) -> usize {
        self.experts * self.rows * padded(self.k)
    }

    /// Whether there are no experts.
    pub fn is_empty(&self) -> bool {
        self.experts == 0
    }

    /// The same of one expert.
    pub fn of_one(self) -> PackedShape {
        PackedShape { experts: 1, ..self }
    }

    /// Experts, rows of each, K, and whether the first half of the rows is gate and the second up.
    pub(crate) fn raw(&self) -> (usize, usize, usize, bool) {
        (self.experts, self.rows, self.k, self.is_gated)
    }
}

/// K of packed weights: what `k` lacks to a multiple of 128 is zeros.
pub(crate) fn padded(k: usize) -> usize {
    k.next_multiple_of(launchers::SLAB as usize)
}

/// Whether weights of `k` columns are packed: what these lack to a multiple of 128 is at most
/// [`MOST_PADDING`](PackedShape::MOST_PADDING).
pub(crate) fn is_padded_little(k: usize) -> bool {
    padded(k) - k <= k / PackedShape::MOST_PADDING
}

/// Elements that B of a GEMM has.
pub(crate) fn weight_len(
    op: &'static str,
    layout: WeightLayout,
    [experts, rows, k]: [usize; 3],
) -> Result<usize> {
    match layout {
        WeightLayout::Checkpoint => elements(op, "b", &[experts, rows, k]),
        WeightLayout::Packed => elements(op, "b", &[experts, rows, padded(k)]),
    }
}
