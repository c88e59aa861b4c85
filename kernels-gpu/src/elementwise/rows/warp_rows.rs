//! Quantisation where a scale spans at most a warp's columns: a warp takes 256 columns of a row,
//! independently of all others.
//!
//! ```text
//!              block_idx_y = 0          1            2
//!            |<- 256 columns ->|<- 256 ... ->|<- ... |
//!   row 0    [ warp 0 of block (0, 0)        |       |
//!   row 1    [ warp 1                        |       |
//!   row 2    [ warp 2                        |       |       lane l: the chunk at column 256 * block_idx_y + 8 * l
//!   row 3    [ warp 3                        |       |
//!   row 4    [ warp 0 of block (1, 0)        |       |       ... and on in strides of 4 * grid_dim_x rows
//! ```
//!
//! No barrier and no shared memory; the values stay in registers from load to store.
//!
//! Where the rows were complete before the preceding kernel began, a warp has its first row scaled before it
//! waits for that one, which tells where the row goes ([`FirstRow`]). It then reads the row whether it goes
//! anywhere or not.

use super::chunk::{CHUNK, Chunk, PackedChunk, WARP_COLUMNS, absmax, pack, store_packed, vectorised};
use super::cleared::Cleared;
use super::destinations::Destinations;
use super::scale::{self, Divisor};
use super::source::Rows;
use crate::abi::GroupScalesOut;
use cuda_std::{host, memory, thread, warp};

/// Rows of a block at a time, a warp each, of the kernels whose warps are independent.
#[host]
pub const WARP_ROWS_PER_BLOCK: u32 = 4;

/// Threads of such a block.
pub const THREADS: u32 = 32 * WARP_ROWS_PER_BLOCK;

/// Warps of such a block.
pub const WARPS: u32 = WARP_ROWS_PER_BLOCK;

/// How a warp scales its 256 columns.
pub trait Scheme {
    /// This lane's chunk, scaled, and the scale. The whole warp calls it.
    fn quantize(&self, values: &Chunk) -> (PackedChunk, f32);

    /// Keeps `scale` for the chunk at `column` of the row `row` of `q`.
    fn store_scale(&self, row: usize, column: u32, scale: f32);

    /// Keeps `scale` for the chunk at `column` of all destinations of `row`. The whole warp calls it.
    fn store_scales(&self, destinations: &Destinations, row: u32, column: u32, scale: f32);
}

/// One scale for everything: `q = x * (1 / scale)`.
pub struct TensorScale {
    inverse: f32,
}

impl TensorScale {
    /// For `scale`.
    #[inline(always)]
    pub fn new(scale: f32) -> Self {
        TensorScale { inverse: 1.0 / scale }
    }

    /// For the scale at `scale`; or, where that is null, for the one that belongs to the largest of
    /// `partial_count` partial maxima, which is also written to `scale_out`. The whole block calls it.
    ///
    /// # Safety
    /// `scale` is readable, or `partials` holds `partial_count` readable elements and `scale_out` is
    /// writable.
    #[inline(always)]
    pub unsafe fn given_or_from_partials(
        scale: *const f32,
        partials: *const f32,
        partial_count: u32,
        scale_out: *mut f32,
    ) -> Self {
        if !scale.is_null() {
            // Perhaps before the grid waits for its predecessor, so past L1.
            // SAFETY: the caller's contract.
            return TensorScale::new(unsafe { memory::load_strong(scale) });
        }
        let mut largest = 0.0;
        let mut i = thread::lane_id();
        while i < partial_count {
            // SAFETY: the caller's contract.
            largest = f32::max(largest, unsafe { memory::load_nc(partials.add(i as usize)) });
            i += 32;
        }
        let scale = scale::of_absmax(warp::reduce_max_f32(largest));
        if thread::index_1d() == 0 && thread::block_idx_y() == 0 {
            // SAFETY: the caller's contract; one thread of the grid writes.
            unsafe { scale_out.write(scale) };
        }
        TensorScale::new(scale)
    }
}

impl Scheme for TensorScale {
    #[inline(always)]
    fn quantize(&self, values: &Chunk) -> (PackedChunk, f32) {
        (pack(&values.map(|value| value * self.inverse)), 0.0)
    }

    #[inline(always)]
    fn store_scale(&self, _row: usize, _column: u32, _scale: f32) {}

    #[inline(always)]
    fn store_scales(&self, _destinations: &Destinations, _row: u32, _column: u32, _scale: f32) {}
}

/// A scale for every 128 or 64 columns of a row: `q = x / scale`.
pub struct GroupScales {
    out: GroupScalesOut,
    columns: u32,
}

impl GroupScales {
    /// The scales of rows of `columns` columns.
    ///
    /// # Safety
    /// Every destination row has its elements in `out`, and nobody else accesses them.
    #[inline(always)]
    pub unsafe fn new(out: GroupScalesOut, columns: u32) -> Self {
        GroupScales { out, columns }
    }
}

impl Scheme for GroupScales {
    #[inline(always)]
    fn quantize(&self, values: &Chunk) -> (PackedChunk, f32) {
        // A group of 64 is 8 lanes, one of 128 is 16.
        let mut largest = warp::reduce_groups::<f32, 8>(absmax(values), f32::max);
        if self.out.group_size == 128 {
            largest = f32::max(largest, warp::shfl_xor(warp::FULL_MASK, largest, 8));
        }
        let scale = scale::of_group_absmax(largest);
        (pack(&Divisor::new(scale).divide(values)), scale)
    }

    #[inline(always)]
    fn store_scale(&self, row: usize, column: u32, scale: f32) {
        if column.is_multiple_of(self.out.group_size) {
            self.store(row, column, scale);
        }
    }

    /// All lanes of a group have its scale, and each takes it to other destinations: a store is for all of
    /// them.
    #[inline(always)]
    fn store_scales(&self, destinations: &Destinations, row: u32, column: u32, scale: f32) {
        let lanes = self.out.group_size / CHUNK;
        destinations.share_out(row, lanes, |destination| self.store(destination, column, scale));
    }
}

impl GroupScales {
    /// Stores the scale of the group with the column, of the destination `row`, if the group has columns.
    #[inline(always)]
    fn store(&self, row: usize, column: u32, scale: f32) {
        let GroupScalesOut { scales, strides, group_size } = self.out;
        let shift = group_size.trailing_zeros();
        let group = column >> shift;
        if group << shift < self.columns {
            let at = row as u64 * strides.row + group as u64 * strides.group;
            // SAFETY: the destination's scales exist, by the constructor's contract; one lane for each group
            // and destination writes.
            unsafe { scales.add(at as usize).write(scale) };
        }
    }
}

/// This lane's column, the row that its warp begins with, and the rows from there to its next.
#[inline(always)]
fn place() -> (u32, u32, u32) {
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let first = thread::block_idx_x() * WARPS + thread::warp_id();
    (column, first, thread::grid_dim_x() * WARPS)
}

/// This lane's chunk of the row that its warp begins with, scaled, if that has been done: see
/// [`quantize_warp_rows`].
#[derive(Clone, Copy)]
pub struct FirstRow(Option<(PackedChunk, f32)>);

impl FirstRow {
    /// Not done yet.
    pub const NONE: Self = FirstRow(None);

    /// Does it for a matrix of `rows` rows. The whole warp calls it.
    #[inline(always)]
    pub fn quantize(source: Option<impl Rows>, rows: u32, scheme: &impl Scheme) -> Self {
        let (column, first, _) = place();
        match source {
            Some(source) if first < rows => FirstRow(Some(scheme.quantize(&source.chunk(first, column)))),
            _ => Self::NONE,
        }
    }
}

/// Quantises the rows of `source` to the rows of `q` that `destinations` names, and a row of zeros to each
/// padding row, or leads their scales alone there; clears the same rows of `cleared`, whether they go
/// anywhere or not. `ahead`: what has been done of it, for the same source and scheme.
///
/// # Safety
/// `q` has every row that is written, of `columns` writable bytes, and `cleared` every row; nobody else
/// accesses them while the grid runs.
#[allow(clippy::too_many_arguments, reason = "the arguments of a kernel")]
#[inline(always)]
pub unsafe fn quantize_warp_rows(
    source: impl Rows,
    columns: u32,
    destinations: Destinations,
    sorted_rows: *const i32,
    capacity: u32,
    scheme: impl Scheme,
    ahead: FirstRow,
    q: *mut u8,
    cleared: Cleared,
) {
    let (column, first, stride) = place();
    let vector = vectorised(q, columns);
    let store = |place: usize, packed: PackedChunk| {
        // SAFETY: the row of q exists, by the caller's contract; this lane alone has its columns.
        unsafe { store_packed(q.add(place * columns as usize), column, columns, vector, packed) };
    };

    let mut ahead = ahead.0;
    let mut row = first;
    while row < destinations.rows() {
        cleared.chunk(row, column);
        if destinations.any(row) {
            let (packed, scale) = match ahead {
                Some(done) => done,
                None => scheme.quantize(&source.chunk(row, column)),
            };
            if destinations.rows_stay() {
                store(row as usize, packed);
            }
            destinations.for_each(row, |destination| {
                if !destinations.rows_stay() {
                    store(destination, packed);
                }
            });
            scheme.store_scales(&destinations, row, column, scale);
        }
        ahead = None;
        row += stride;
    }

    let (_, scale_of_zeros) = scheme.quantize(&[0.0; CHUNK as usize]);
    destinations.padding(sorted_rows, capacity).for_each(first, stride, |row| {
        if !destinations.rows_stay() {
            store(row, [0; 2]);
        }
        scheme.store_scale(row, column, scale_of_zeros);
    });
}
