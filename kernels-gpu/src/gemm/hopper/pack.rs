//! The kernel `pack_weights`: an expert matrix as a checkpoint has it into packed weights, and back.
//! [`weights`](super::weights) draws them.
//!
//! A block takes a slab of an item at a time, up to 256 lines. Eight lanes copy a line, 16 bytes each:
//!
//! ```text
//!   checkpoint   row r, K ..      | 0 1 2 3 4 5 6 7 |          128 bytes of a row, as far as K goes
//!   packed       line of row r    | r%8 ^ 0, r%8 ^ 1, .. |     128 bytes, contiguous with the next row's
//! ```

use cuda_std::code::Flag;
use cuda_std::{arguments, kernel, memory, thread};

use super::weights::{gated_lines, plain_lines};
use super::{B_BOX_ROWS, GATED_COLUMNS};
use crate::abi::SLAB;

const THREADS: u32 = 256;
/// Bytes of a chunk, and chunks of a line.
const CHUNK: u32 = 16;
const CHUNKS: u32 = SLAB / CHUNK;

/// Arguments of [`pack_weights`].
#[arguments]
pub struct PackWeights {
    /// e4m3 `[experts, rows, k]`, 16-byte aligned.
    pub matrix: *mut u8,
    /// The same packed, 16-byte aligned.
    pub packed: *mut u8,
    /// Experts.
    pub experts: u32,
    /// Rows of an expert: a multiple of 8, of gated weights of 16.
    pub rows: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// Whether the first half of an expert's rows is gate and the second up.
    pub is_gated: Flag,
    /// Whether `matrix` is written, else `packed`.
    pub unpacks: Flag,
}

/// Writes one of the two from the other.
///
/// # Safety
/// Both have their extent and do not overlap; nobody else accesses the one that is written. The matrix has
/// fewer than 2^32 lines, and so many items times slabs less than 2^31.
#[kernel(threads = THREADS)]
pub unsafe fn pack_weights(arguments: PackWeights) {
    let PackWeights { matrix, packed, experts, rows, k, is_gated, unpacks } = arguments;
    let gated = is_gated.is_set();
    let (columns, span) = if gated { (rows / 2, GATED_COLUMNS) } else { (rows, 2 * B_BOX_ROWS) };
    let (slabs, items) = (k.div_ceil(SLAB), columns.div_ceil(span));
    let (chunk, first_line) = (thread::thread_idx_x() % CHUNKS, thread::thread_idx_x() / CHUNKS);
    let mut run = thread::block_idx_x();
    while run < experts * items * slabs {
        let (item, slab) = (run / slabs, run % slabs);
        let (expert, column) = (item / items, item % items * span);
        let (starts, halves) = if gated {
            gated_lines(expert, column, columns, k)
        } else {
            plain_lines(expert, column, rows, k)
        };
        let lines = halves[0] + halves[1];
        // From the first row of the first half to that of the second.
        let distance = if gated { columns } else { halves[0] };
        let at = slab * SLAB + chunk * CHUNK;
        let mut line = first_line;
        while line < lines {
            let (row, above) = if line < halves[0] { (line, 0) } else { (line - halves[0], distance) };
            let row_of_matrix = (expert * rows + column + above + row) as usize;
            let place = (starts[0] + slab * lines + line) as usize * SLAB as usize;
            // SAFETY: the row and the line exist, each chunk of which one thread touches; of the matrix as far
            // as K goes.
            unsafe {
                let there = matrix.add(row_of_matrix * k as usize + at as usize).cast::<[u32; 4]>();
                let here = packed.add(place + ((chunk ^ (row % CHUNKS)) * CHUNK) as usize).cast::<[u32; 4]>();
                if unpacks.is_set() {
                    if at < k {
                        memory::store(there, memory::load_nc(here));
                    }
                } else {
                    memory::store(here, if at < k { memory::load_nc(there) } else { [0; 4] });
                }
            }
            line += THREADS / CHUNKS;
        }
        run += thread::grid_dim_x();
    }
}
