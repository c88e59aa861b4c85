//! Transposition among lanes, by shuffles.
//!
//! # Within groups of four
//! A lane of the tensor cores' result holds two adjacent columns of each tile of 8: 4 bytes of a row. Four
//! lanes together hold a row of 32 columns; a 4x4 transposition gives each of them one tile's 8 columns, 16
//! bytes:
//!
//! ```text
//!              tile 0  tile 1  tile 2  tile 3                      word 0  word 1  word 2  word 3
//!  lane q=0     a0      b0      c0      d0              lane q=0    a0      a1      a2      a3     columns  0- 7
//!  lane q=1     a1      b1      c1      d1     ---->    lane q=1    b0      b1      b2      b3     columns  8-15
//!  lane q=2     a2      b2      c2      d2              lane q=2    c0      c1      c2      c3     columns 16-23
//!  lane q=3     a3      b3      c3      d3              lane q=3    d0      d1      d2      d3     columns 24-31
//! ```
//!
//! One store instruction of a warp then writes 64 contiguous bytes of each of 8 rows: whole sectors, without
//! shared memory and without a barrier.
//!
//! # Operands swapped
//! Where the weights are on the M side, a lane has two rows of A, adjacent, of a column of D, and of another
//! 8 further. A store wants adjacent columns of one row. Seen by the bits of indices, lane and register
//! exchange two bits:
//!
//! ```text
//!            lane bits 4   3   2   1   0      register   half of it             a pair of 16 bits is    rows 2 q, 2 q + 1
//!   before            g2  g1  g0  q1  q0      h          c                      column 8 h + g          of row   2 q + c
//!   after             g2   h   c  q1  q0      g1         g0                     lane: row 2 q + c, columns 8 h + 4 g2 .. + 4
//! ```
//!
//! One store instruction writes 32 contiguous bytes of each of 8 rows.

use cuda_std::warp::{FULL_MASK, shfl_xor};

/// Transposes the 4x4 matrix whose row q is held by lane q of a group of four. All lanes of the warp call it
/// together.
#[inline(always)]
pub fn transpose_in_quad(words: [u32; 4], quad_lane: u32) -> [u32; 4] {
    let [w0, w1, w2, w3] = words;
    let (odd, upper) = (quad_lane & 1 != 0, quad_lane & 2 != 0);
    let (w0, w1) = exchange(w0, w1, odd, 1);
    let (w2, w3) = exchange(w2, w3, odd, 1);
    let (w0, w2) = exchange(w0, w2, upper, 2);
    let (w1, w3) = exchange(w1, w3, upper, 2);
    [w0, w1, w2, w3]
}

/// Swaps `high` of the lane whose `bit` is clear with `low` of the lane `distance` above, whose bit is set.
/// All lanes of the warp call it together.
#[inline(always)]
fn exchange(low: u32, high: u32, bit: bool, distance: u32) -> (u32, u32) {
    let sent = if bit { low } else { high };
    let received = shfl_xor(FULL_MASK, sent, distance);
    if bit { (received, high) } else { (low, received) }
}

/// The four columns that this lane has of one row, of `words[h]`: rows `2 q` and `2 q + 1` of column `8 h +
/// g`, 16 bits each, lane being `4 g + q`. Which row and columns: see above. All lanes of the warp call it
/// together.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub fn columns_of_a_row(words: [u32; 2], lane: u32) -> [u32; 2] {
    let (left, right) = exchange(words[0], words[1], lane & 8 != 0, 8);
    let (even, odd) = (left & 0xffff | right << 16, left >> 16 | right & 0xffff_0000);
    let (even, odd) = exchange(even, odd, lane & 4 != 0, 4);
    [even & 0xffff | odd << 16, even >> 16 | odd & 0xffff_0000]
}
