//! Copies activations and their scales into permuted order.
//!
//! ```text
//! destination p      0   1   2   3 ..                 p < expert_offsets[local_experts] (read on the device)
//! sorted_rows[p]     1   4   R   7 ..                 r, or R for padding
//! source row         0   2   -   3 ..                 token = r / top_k; padding rows become zeros, scale 0
//! ```
//!
//! A warp copies a row, 16 bytes to a lane where addresses and width allow, else a byte. Rows at or past the last
//! offset (invalid ids, and everything behind them) are neither read nor written.

use cuda_std::memory::Vector;
use cuda_std::{grid, kernel, memory, thread};

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

/// Copies rows of `row_bytes` bytes, and `scale_groups` scales of each, to where `sorted_rows` says.
///
/// Launch: a warp per destination, `ceil(capacity / 8)` blocks.
///
/// # Safety
/// `activations [tokens, row_bytes]`, `permuted [capacity, row_bytes]`; scales f32, scale `g` of row `i` at
/// `i * row_stride + g * group_stride` elements, both pointers null if there are none; `sorted_rows [capacity]` with
/// entries in `0..=rows`, `rows = tokens * top_k`; `expert_offsets [local_experts + 1]`, the last at most `capacity`.
#[kernel(threads = 256, min_blocks = 4)]
pub unsafe fn permute_rows(
    activations: *const u8,
    scales: *const f32,
    sorted_rows: *const i32,
    expert_offsets: *const i64,
    permuted: *mut u8,
    permuted_scales: *mut f32,
    row_bytes: u32,
    scale_groups: u32,
    scale_row_stride: u64,
    scale_group_stride: u64,
    permuted_scale_row_stride: u64,
    permuted_scale_group_stride: u64,
    rows: u32,
    top_k: u32,
    local_experts: u32,
) {
    grid::wait();
    grid::launch_dependents();
    let destination = u64::from(thread::block_idx_x()) * 8 + u64::from(thread::warp_id());
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
    // SAFETY: both rows exist (a padding row has no source), and every row starts at a multiple of 16 if the two
    // bases and the row's width are multiples of 16.
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
                *scales.add((token * scale_row_stride + g * scale_group_stride) as usize)
            };
            let index = destination * permuted_scale_row_stride + g * permuted_scale_group_stride;
            *permuted_scales.add(index as usize) = scale;
        }
        group += 32;
    }
}
