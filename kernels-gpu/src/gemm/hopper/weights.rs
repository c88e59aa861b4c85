//! Where an item's 256 rows of B come from: boxes of the matrix as a checkpoint has it, or packed weights.
//!
//! # Packed weights, version 1
//! They lie in memory as the ring's stages hold them, slab behind slab, so that a stage is one linear copy:
//!
//! ```text
//!   an item: rows n0 .. n0 + 256 of an expert's B (plain), or gate and up of columns n0 .. n0 + 128 (gated)
//!
//!        slab 0                        slab 1
//!     | first half  | second half | first half  | second half | .. | the next item, or the next expert's first
//!       128 lines     128 lines
//!
//!   a half   plain: rows n0 .. n0 + 128 and n0 + 128 .. n0 + 256       gated: gate, up of the same columns
//!   a line   128 bytes of K of row r of the half, in chunks of 16: chunk c lies at c ^ (r % 8), as TMA's
//!            128-byte swizzle would put it
//! ```
//!
//! The last item of an expert has the rows that are left: its halves are as short as they are (of a plain one
//! the second first). What K lacks to a multiple of 128 is zeros. So with K a multiple of 128 packed weights
//! take as many bytes as others.

use cuda_std::bulk;
use cuda_std::l2::Policy;
use cuda_std::tma::{self, TensorMap};

use super::slab_scales::BlockScales;
use super::{GATED_COLUMNS, ROWS_128};
use crate::abi::SLAB;

/// Most lines of a half.
const HALF: u32 = ROWS_128 / SLAB;

/// B of a launch.
#[derive(Clone, Copy)]
pub struct Matrix {
    map: *const TensorMap,
    /// Null where B is as a checkpoint has it.
    packed: *const u8,
}

/// The weights of an item.
#[derive(Clone, Copy)]
pub struct Weights {
    /// Where its halves begin: rows of B, or lines of the packed weights.
    pub starts: [u32; 2],
    /// Rows of the halves, up to 128; meant for packed weights alone.
    pub halves: [u32; 2],
    /// Where their scales are.
    pub blocks: BlockScales,
}

/// Where the halves of a packed item begin, in lines, at slab 0, and how many lines each has.
pub type Lines = ([u32; 2], [u32; 2]);

/// Those of columns `column` to `column + 256` of `expert`, of `n` columns: of the last item where there are
/// none.
#[inline(always)]
pub fn plain_lines(expert: u32, column: u32, n: u32, k: u32) -> Lines {
    let column = column.min((n - 1) / (2 * HALF) * (2 * HALF));
    let rows = (n - column).min(2 * HALF);
    let half = rows.min(HALF);
    let line = (expert * n + column) * k.div_ceil(SLAB);
    ([line, line + half], [half, rows - half])
}

/// Those of gate and up of columns `column` to `column + 128` of `expert`, of `intermediate` columns: of the
/// last item where there are none.
#[inline(always)]
pub fn gated_lines(expert: u32, column: u32, intermediate: u32, k: u32) -> Lines {
    let column = column.min((intermediate - 1) / GATED_COLUMNS * GATED_COLUMNS);
    let half = (intermediate - column).min(GATED_COLUMNS);
    let line = 2 * (expert * intermediate + column) * k.div_ceil(SLAB);
    ([line, line + half], [half; 2])
}

impl Matrix {
    #[inline(always)]
    pub fn new(map: *const TensorMap, packed: *const u8) -> Self {
        Self { map, packed }
    }

    /// Fetches the map ahead of its first use, by the calling thread, if there is one.
    ///
    /// # Safety
    /// It is a tensor map, unless B is packed.
    #[inline(always)]
    pub unsafe fn prefetch_map(&self) {
        if self.packed.is_null() {
            // SAFETY: the caller's contract.
            unsafe { tma::prefetch_map(self.map) };
        }
    }

    /// Whether an item may have fewer than all of a stage's rows of B, where an expert has `columns` columns
    /// and an item `span`. Of a box, rows past the end arrive as zeros; of packed weights they do not arrive.
    #[inline(always)]
    pub fn may_be_short(&self, columns: u32, span: u32) -> bool {
        !self.packed.is_null() && !columns.is_multiple_of(span)
    }

    /// Bytes that arrive of a slab of both halves.
    #[inline(always)]
    pub fn bytes(&self, weights: &Weights) -> u32 {
        if self.packed.is_null() { 2 * ROWS_128 } else { (weights.halves[0] + weights.halves[1]) * SLAB }
    }

    /// Where the packed weights have a slab of half `half`.
    #[inline(always)]
    fn line(&self, weights: &Weights, slab: u32, half: usize) -> *const u8 {
        let line = weights.starts[half] + slab * (weights.halves[0] + weights.halves[1]);
        self.packed.wrapping_add(line as usize * SLAB as usize)
    }

    /// Asks for a slab of both halves, to `to` and 128 rows behind.
    ///
    /// # Safety
    /// The calling thread alone asks. The stage at `to` is free, and `full` expects the
    /// [`bytes`](Self::bytes); the weights are those of an item.
    #[inline(always)]
    pub unsafe fn load(&self, to: u32, full: u32, slab: u32, weights: &Weights, policy: Option<Policy>) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.packed.is_null() {
                let k0 = (slab * SLAB) as i32;
                let [first, second] = weights.starts.map(|row| [k0, row as i32]);
                match policy {
                    Some(policy) => {
                        tma::load_2d_hinted(to, self.map, full, first, policy);
                        tma::load_2d_hinted(to + ROWS_128, self.map, full, second, policy);
                    }
                    None => {
                        tma::load_2d(to, self.map, full, first);
                        tma::load_2d(to + ROWS_128, self.map, full, second);
                    }
                }
                return;
            }
            let copy = #[inline(always)]
            |to, from, lines: u32| match policy {
                Some(policy) => bulk::load_hinted(to, from, lines * SLAB, full, policy),
                None => bulk::load(to, from, lines * SLAB, full),
            };
            let [first, second] = weights.halves;
            if first == HALF {
                copy(to, self.line(weights, slab, 0), first + second);
            } else {
                copy(to, self.line(weights, slab, 0), first);
                if second > 0 {
                    copy(to + ROWS_128, self.line(weights, slab, 1), second);
                }
            }
        }
    }

    /// Asks for a slab of one half for both blocks of a cluster, to `to`.
    ///
    /// # Safety
    /// As for [`load`](Self::load), in both blocks.
    #[inline(always)]
    pub unsafe fn load_half(&self, to: u32, full: u32, slab: u32, weights: &Weights, half: u32, blocks: u16) {
        // SAFETY: the caller's contract.
        unsafe {
            let (start, lines) = if half == 0 {
                (weights.starts[0], weights.halves[0])
            } else {
                (weights.starts[1], weights.halves[1])
            };
            if self.packed.is_null() {
                tma::load_2d_multicast(to, self.map, full, [(slab * SLAB) as i32, start as i32], blocks);
            } else if lines > 0 {
                let line = start + slab * (weights.halves[0] + weights.halves[1]);
                let from = self.packed.wrapping_add(line as usize * SLAB as usize);
                bulk::load_multicast(to, from, lines * SLAB, full, blocks);
            }
        }
    }
}
