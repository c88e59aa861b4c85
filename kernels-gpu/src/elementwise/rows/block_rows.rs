//! Quantisation where a scale spans a whole row: a block takes a row at a time.
//!
//! ```text
//!              | span 0: 2048 columns   | span 1                 | span 2 ...
//!   thread t:    chunk t                  chunk t + 256            chunk t + 512
//!
//!   pass 1   values to shared memory; largest magnitude of the row: in the thread, in the warp, in the block
//!   pass 2   values from shared memory, q = x / scale, to every destination
//! ```
//!
//! A thread keeps its own values, so only the maximum needs a barrier. Spans that shared memory has no room
//! for are computed again. The two halves of a chunk lie in planes of their own, where the 16-byte accesses
//! of neighbours are neighbours:
//!
//! ```text
//!   span s:   [ thread 0, values 0..4 | thread 1, values 0..4 | ... ][ thread 0, values 4..8 | thread 1, values 4..8 | ... ]
//! ```
//!
//! Where the rows were complete before the preceding kernel began, a block does pass 1 of its first row
//! before it waits for that one, which tells where the row goes ([`FirstRow`]). It then reads the row whether
//! it goes anywhere or not.
//!
//! The warps' maxima alternate between two places, so that a warp that is one row ahead cannot overwrite what
//! a slower one still reads: it would have to be two rows ahead, and a barrier lies in between.

use super::chunk::{CHUNK, Chunk, PackedChunk, absmax, pack, store_packed, vectorised};
use super::cleared::Cleared;
use super::destinations::Destinations;
use super::scale::{self, Divisor};
use super::source::Rows;
use cuda_std::fp8::E4M3_MAX;
use cuda_std::shared::{self, Shared};
use cuda_std::{host, sync, thread, warp};

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Warps of a block.
pub const WARPS: u32 = THREADS / 32;

/// Static shared memory that the block needs, f32 elements.
pub const SHARED: usize = 2 * WARPS as usize;

/// Columns that a block covers with one chunk per thread.
#[host]
const SPAN_COLUMNS: u32 = THREADS * CHUNK;

/// Bytes of dynamic shared memory for the values of a span.
#[host]
const SPAN_BYTES: u32 = SPAN_COLUMNS * size_of::<f32>() as u32;

/// The largest of all threads' `value`, in all of them. The whole block calls it.
///
/// # Safety
/// `slots` is one f32 of shared memory per warp, which no thread accesses after its last barrier before the
/// call.
#[inline(always)]
pub unsafe fn block_max(value: f32, slots: Shared<f32>) -> f32 {
    let largest = warp::reduce_max_f32(value);
    if thread::lane_id() == 0 {
        // SAFETY: one thread writes the warp's place, by contract after everybody's last read of it.
        unsafe { slots.add(thread::warp_id()).write(largest) };
    }
    sync::block();
    let mut largest = 0.0;
    for i in 0..thread::block_dim_x() / 32 {
        // SAFETY: written before the barrier.
        largest = f32::max(largest, unsafe { slots.add(i).read() });
    }
    largest
}

/// This thread's place for its chunk of a span: the first half; the second is a plane further on.
#[inline(always)]
fn place(span: u32) -> Shared<[f32; 4]> {
    shared::dynamic().add(span * 2 * THREADS + thread::thread_idx_x())
}

/// Keeps this thread's chunk of a span.
///
/// # Safety
/// The dynamic shared memory has room for the span.
#[inline(always)]
unsafe fn keep(span: u32, v: &Chunk) {
    // SAFETY: the caller's contract; the place is this thread's own.
    unsafe {
        place(span).write([v[0], v[1], v[2], v[3]]);
        place(span).add(THREADS).write([v[4], v[5], v[6], v[7]]);
    }
}

/// What this thread kept for a span.
///
/// # Safety
/// It kept something.
#[inline(always)]
unsafe fn recall(span: u32) -> Chunk {
    // SAFETY: written by this thread, whose place it is.
    let [a, b] = unsafe { [place(span).read(), place(span).add(THREADS).read()] };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// This thread's column in a span.
#[inline(always)]
fn column_of(span: u32) -> u32 {
    span * SPAN_COLUMNS + thread::thread_idx_x() * CHUNK
}

/// Pass 1: keeps the values of `row`, as far as there is room, and returns its largest magnitude. The whole
/// block calls it.
///
/// # Safety
/// The dynamic shared memory has room for `kept_spans` spans; `slots` as [`block_max`] asks.
#[inline(always)]
unsafe fn first_pass(source: impl Rows, row: u32, columns: u32, kept_spans: u32, slots: Shared<f32>) -> f32 {
    let mut largest = 0.0;
    for span in 0..columns.div_ceil(SPAN_COLUMNS) {
        let values = source.chunk(row, column_of(span));
        largest = f32::max(largest, absmax(&values));
        if span < kept_spans {
            // SAFETY: there is room for `kept_spans` spans.
            unsafe { keep(span, &values) };
        }
    }
    // SAFETY: the caller's contract.
    unsafe { block_max(largest, slots) }
}

/// The largest magnitude of the row that the block begins with, if pass 1 of it is done: see
/// [`quantize_block_rows`].
#[derive(Clone, Copy)]
pub struct FirstRow(Option<f32>);

impl FirstRow {
    /// Not done yet.
    pub const NONE: Self = FirstRow(None);

    /// Does it for a matrix of `rows` rows. The whole block calls it.
    ///
    /// # Safety
    /// As [`quantize_block_rows`], whose `maxima` and `kept_spans` these are.
    #[inline(always)]
    pub unsafe fn pass(
        source: Option<impl Rows>,
        rows: u32,
        columns: u32,
        maxima: Shared<f32>,
        kept_spans: u32,
    ) -> Self {
        let row = thread::block_idx_x();
        match source {
            Some(source) if row < rows => {
                // SAFETY: the caller's contract; nobody has used the first slots yet.
                FirstRow(Some(unsafe { first_pass(source, row, columns, kept_spans, maxima) }))
            }
            _ => Self::NONE,
        }
    }
}

/// The values, those beyond `bound` brought back to it. NaN stays.
#[inline(always)]
fn saturate(values: &Chunk, bound: f32) -> Chunk {
    values.map(|value| if value.abs() > bound { bound.copysign(value) } else { value })
}

/// Quantises the rows of `source` to the rows of `q` that `destinations` names, with one scale per row, and a
/// row of zeros to each padding row, or leads their scales alone there. Magnitudes over `absmax_limit` count
/// as `absmax_limit` and saturate. `ahead`: what has been done of it, for the same source. The same rows of
/// `cleared` are cleared, whether they go anywhere or not.
///
/// # Safety
/// `q` has every row that is written, of `columns` writable bytes, `scales` an element for every destination,
/// and `cleared` every row; nobody else accesses them while the grid runs. `maxima` is [`SHARED`] elements of
/// shared memory that nothing else uses, and the dynamic shared memory has room for the values of
/// `kept_spans` spans.
#[allow(clippy::too_many_arguments, reason = "the arguments of a kernel")]
#[inline(always)]
pub unsafe fn quantize_block_rows(
    source: impl Rows,
    columns: u32,
    destinations: Destinations,
    sorted_rows: *const i32,
    capacity: u32,
    absmax_limit: f32,
    ahead: FirstRow,
    q: *mut u8,
    scales: *mut f32,
    maxima: Shared<f32>,
    kept_spans: u32,
    cleared: Cleared,
) {
    let thread = thread::thread_idx_x();
    let vector = vectorised(q, columns);
    let spans = columns.div_ceil(SPAN_COLUMNS);
    let store = |place: usize, column: u32, packed: PackedChunk| {
        // SAFETY: the row of q exists, by the caller's contract; this thread alone has its columns.
        unsafe { store_packed(q.add(place * columns as usize), column, columns, vector, packed) };
    };

    let mut ahead = ahead.0;
    // The first row, if it was begun, has used the first slots.
    let mut slots = if ahead.is_some() { maxima.add(WARPS) } else { maxima };
    let mut row = thread::block_idx_x();
    while row < destinations.rows() {
        for span in 0..spans {
            cleared.chunk(row, column_of(span));
        }
        if destinations.any(row) {
            let largest = match ahead {
                Some(largest) => largest,
                None => {
                    // SAFETY: the slots alternate, so that the last barrier lies between this use and the
                    // last but one.
                    let largest = unsafe { first_pass(source, row, columns, kept_spans, slots) };
                    slots = Shared::from_address(2 * maxima.address() + WARPS * 4 - slots.address());
                    largest
                }
            };
            let scale = scale::of_absmax(f32::min(largest, absmax_limit));
            let divisor = Divisor::new(scale);
            // What is over the limit saturates; bring it near, so that no quotient overflows.
            let bound = if largest > absmax_limit { E4M3_MAX * scale } else { f32::INFINITY };
            for span in 0..spans {
                let values = if span < kept_spans {
                    // SAFETY: what is below `kept_spans` was kept in the first pass.
                    unsafe { recall(span) }
                } else {
                    source.chunk(row, column_of(span))
                };
                let packed = pack(&divisor.divide(&saturate(&values, bound)));
                if destinations.rows_stay() {
                    store(row as usize, column_of(span), packed);
                    if span > 0 {
                        continue;
                    }
                }
                destinations.for_each(row, |destination| {
                    if !destinations.rows_stay() {
                        store(destination, column_of(span), packed);
                    }
                    if span == 0 && thread == 0 {
                        // SAFETY: the destination's scale exists, by the caller's contract; one thread
                        // writes.
                        unsafe { scales.add(destination).write(scale) };
                    }
                });
            }
        }
        ahead = None;
        row += thread::grid_dim_x();
    }

    let warp_index = thread::block_idx_x() * WARPS + thread::warp_id();
    let warps = thread::grid_dim_x() * WARPS;
    destinations.padding(sorted_rows, capacity).for_each(warp_index, warps, |row| {
        if thread::lane_id() == 0 {
            // SAFETY: a padding row is a destination row; one lane writes.
            unsafe { scales.add(row).write(scale::of_absmax(0.0)) };
        }
        if destinations.rows_stay() {
            return;
        }
        let mut column = thread::lane_id() * CHUNK;
        while column < columns {
            store(row, column, [0; 2]);
            column += 32 * CHUNK;
        }
    });
}
