//! Copies activations and their scales into permuted order.
//!
//! ```text
//! destination p      0   1   2   3 ..                 p < expert_offsets[local_experts] (read on the device)
//! sorted_rows[p]     1   4   R   7 ..                 r, or R for padding
//! source row         0   2   -   3 ..                 token = r / top_k; padding rows become zeros, scale 0
//! ```
//!
//! A warp copies a row, 16 bytes to a lane where addresses and width allow, else a byte. Rows at or past the
//! last offset (invalid ids, and everything behind them) are neither read nor written.

use cuda_std::memory::Vector;
use cuda_std::{arguments, grid, host, kernel, memory, thread};

/// Source and destination of one row, as bytes.
#[derive(Clone, Copy)]
struct RowCopy {
    /// Null for a row of zeros.
    source: *const u8,
    destination: *mut u8,
    bytes: u32,
}

impl RowCopy {
    /// Copies with loads and stores of `T`, `zero` where there is no source.
    ///
    /// # Safety
    /// All addresses and `bytes` are multiples of the size of `T`; the rows have `bytes` bytes.
    #[inline(always)]
    unsafe fn run<T: Vector>(self, zero: T) {
        let elements = self.bytes / size_of::<T>() as u32;
        let mut element = thread::lane_id();
        while element < elements {
            let offset = element as usize;
            // SAFETY: element * size_of::<T>() < bytes, and the alignment is the caller's contract.
            unsafe {
                let value = if self.source.is_null() {
                    zero
                } else {
                    memory::load_nc(self.source.cast::<T>().add(offset))
                };
                memory::store(self.destination.cast::<T>().add(offset), value);
            }
            element += 32;
        }
    }
}

/// Destinations of a block, a warp each.
#[host]
pub(crate) const PERMUTE_ROWS_PER_BLOCK: u32 = 8;

/// Arguments of the kernel `permute_rows`.
#[arguments]
pub(crate) struct PermuteRows {
    /// `[tokens, row_bytes]`.
    pub activations: *const u8,
    /// f32, of the tokens; null if there are none.
    pub scales: *const f32,
    /// i32 `[capacity]`, entries in `0..=rows`.
    pub sorted_rows: *const i32,
    /// i64 `[local_experts + 1]`, the last at most `capacity`.
    pub expert_offsets: *const i64,
    /// `[capacity, row_bytes]`.
    pub permuted: *mut u8,
    /// f32, of the permuted rows; null if there are none.
    pub permuted_scales: *mut f32,
    /// Bytes of a row.
    pub row_bytes: u32,
    /// Scales of a row.
    pub scale_groups: u32,
    /// Where the tokens' scales are.
    pub scale_strides: crate::abi::Strides,
    /// Where those of the permuted rows go.
    pub permuted_scale_strides: crate::abi::Strides,
    /// tokens * top_k.
    pub rows: u32,
    /// Rows of a token.
    pub top_k: u32,
    /// Experts of this rank.
    pub local_experts: u32,
}

/// Copies rows of `row_bytes` bytes, and `scale_groups` scales of each, to where `sorted_rows` says.
///
/// Launch: a warp per destination, a block for every [`PERMUTE_ROWS_PER_BLOCK`].
///
/// # Safety
/// The arrays have their stated sizes.
#[kernel(threads = 32 * PERMUTE_ROWS_PER_BLOCK, min_blocks = 4)]
pub unsafe fn permute_rows(arguments: PermuteRows) {
    let PermuteRows { activations, scales, sorted_rows, expert_offsets, permuted, permuted_scales, .. } =
        arguments;
    let PermuteRows { row_bytes, scale_groups, scale_strides, permuted_scale_strides, .. } = arguments;
    let PermuteRows { rows, top_k, local_experts, .. } = arguments;
    grid::wait();
    grid::launch_dependents();
    let destination =
        u64::from(thread::block_idx_x()) * u64::from(PERMUTE_ROWS_PER_BLOCK) + u64::from(thread::warp_id());
    // SAFETY: the offsets have local_experts + 1 entries.
    let valid = unsafe { *expert_offsets.add(local_experts as usize) } as u64;
    if destination >= valid {
        return;
    }
    // SAFETY: destination < valid <= capacity.
    let row = unsafe { *sorted_rows.add(destination as usize) } as u32;
    let token = u64::from(row / top_k);
    let padding = row >= rows;
    let source = activations.wrapping_add((token * u64::from(row_bytes)) as usize);
    let copy = RowCopy {
        source: if padding { core::ptr::null() } else { source },
        // SAFETY: destination < capacity.
        destination: unsafe { permuted.add((destination * u64::from(row_bytes)) as usize) },
        bytes: row_bytes,
    };
    let alignment = activations.addr() | permuted.addr() | row_bytes as usize;
    // SAFETY: both rows exist (a padding row has no source), and every row starts at a multiple of 16 if the
    // two bases and the row's width are multiples of 16.
    unsafe {
        if alignment.is_multiple_of(16) {
            copy.run([0u32; 4]);
        } else {
            copy.run(0u8);
        }
    }
    let mut group = thread::lane_id();
    while group < scale_groups {
        // SAFETY: row and group are inside the scales; token < tokens where there is no padding.
        unsafe {
            let g = u64::from(group);
            let scale = if padding {
                0.0
            } else {
                *scales.add((token * scale_strides.row + g * scale_strides.group) as usize)
            };
            let index = destination * permuted_scale_strides.row + g * permuted_scale_strides.group;
            *permuted_scales.add(index as usize) = scale;
        }
        group += 32;
    }
}
