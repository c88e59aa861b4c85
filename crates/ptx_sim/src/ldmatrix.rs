//! `ldmatrix` and `stmatrix`: which lane names a row, and which lane holds an element (ISA "Warp-level matrix
//! load instruction: ldmatrix").
//!
//! ```text
//!  8 rows of 16 bytes, row r of matrix m at the address in lane 8m + r
//!
//!            bytes   0..4     4..8     8..12    12..16        register m of lane
//!   row 0          lane 0   lane 1   lane 2   lane 3
//!   row 1          lane 4   lane 5   lane 6   lane 7          lane = 4 * row + word
//!   ...
//!   row 7          lane 28  lane 29  lane 30  lane 31
//! ```
//!
//! With `.trans` the 8x8 matrix of 16-bit elements is transposed between memory and registers: lane
//! `4c + p` holds elements (2p, c) and (2p + 1, c) of it, the first in the lower half.

/// Lane whose address operand is the start of `row` (0..8) of matrix `matrix` (0..4).
#[inline(always)]
pub const fn address_lane(matrix: usize, row: usize) -> usize {
    8 * matrix + row
}

/// The 8 rows of one matrix, as four 32-bit words each, little endian.
pub type Rows = [[u32; 4]; 8];

/// Register of every lane after loading one matrix without `.trans`.
#[inline]
pub fn distribute(rows: &Rows) -> [u32; 32] {
    let mut lanes = [0; 32];
    for (row, words) in rows.iter().enumerate() {
        lanes[4 * row..4 * row + 4].copy_from_slice(words);
    }
    lanes
}

/// Register of every lane after loading one matrix with `.trans`.
#[inline]
pub fn distribute_transposed(rows: &Rows) -> [u32; 32] {
    distribute(&transpose(rows))
}

/// Rows in memory after storing one matrix without `.trans`.
#[inline]
pub fn collect(lanes: &[u32; 32]) -> Rows {
    let mut rows = [[0; 4]; 8];
    for (row, words) in rows.iter_mut().enumerate() {
        words.copy_from_slice(&lanes[4 * row..4 * row + 4]);
    }
    rows
}

/// Rows in memory after storing one matrix with `.trans`.
#[inline]
pub fn collect_transposed(lanes: &[u32; 32]) -> Rows {
    transpose(&collect(lanes))
}

/// Transposes an 8x8 matrix of 16-bit elements; `movmatrix.sync.aligned.m8n8.trans.b16` on rows.
#[inline]
pub fn transpose(rows: &Rows) -> Rows {
    let mut out = [[0; 4]; 8];
    for (row, words) in rows.iter().enumerate() {
        for column in 0..8 {
            let element = (words[column / 2] >> (16 * (column % 2))) & 0xffff;
            out[column][row / 2] |= element << (16 * (row % 2));
        }
    }
    out
}
