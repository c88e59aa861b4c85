//! Chunks: eight consecutive values of a row, in the registers of one thread. The unit of work of every
//! elementwise kernel.
//!
//! ```text
//!   bf16, f16   16 bytes   one 128-bit access          f32   32 bytes   two
//!   e4m3         8 bytes   one 64-bit access
//!
//!   row of 20 columns:   [ chunk 0: 0..8 ][ chunk 1: 8..16 ][ chunk 2: 16..20, four values missing ]
//! ```
//!
//! An access is one vector instruction where pointer and row length allow it for every row (`vector`), else
//! one instruction per value that exists. A missing value reads as 0 and is never stored, so any row length
//! works, at any alignment.

use cuda_std::bf16::{Bf16, F16, bf16x2_from_f32, f16x2_from_f32, f32x2_from_bf16x2, f32x2_from_f16x2};
use cuda_std::fp8::e4m3x4_from_f32;
use cuda_std::{host, memory};

/// Values in a chunk.
pub const CHUNK: u32 = 8;

/// Columns that a warp covers at a time: 32 chunks.
#[host]
pub const WARP_COLUMNS: u32 = 32 * CHUNK;

/// Eight values of a row.
pub type Chunk = [f32; CHUNK as usize];

/// Eight e4m3 values of a row, four to a register, in memory order.
pub type PackedChunk = [u32; 2];

/// An element type of activations.
pub trait Element: Copy {
    /// Eight elements as they lie in memory, in as few registers.
    type Packed: Copy;

    /// Their values: exact.
    fn widen(packed: Self::Packed) -> Chunk;

    /// The nearest of eight values.
    fn narrow(values: &Chunk) -> Self::Packed;

    /// As [`load`](Self::load), not widened, by coherent loads: they come before what this thread does to the
    /// memory afterwards.
    ///
    /// # Safety
    /// The elements are readable global memory, 16-byte aligned, and nobody's write to them is unordered with
    /// this.
    unsafe fn load_packed(source: *const Self) -> Self::Packed;

    /// Eight elements from a 16-byte aligned address.
    ///
    /// # Safety
    /// The elements are readable global memory that nobody writes while the grid runs, 16-byte aligned.
    unsafe fn load(source: *const Self) -> Chunk;

    /// As [`load`](Self::load), from L2, whatever an earlier kernel has left in L1: for what is read before
    /// the grid waits.
    ///
    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn load_strong(source: *const Self) -> Chunk;

    /// Eight elements to a 16-byte aligned address.
    ///
    /// # Safety
    /// The elements are writable global memory that nobody else accesses, 16-byte aligned.
    unsafe fn store(target: *mut Self, values: &Chunk);

    /// The value as f32: exact.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;
}

/// The values of four pairs.
#[inline(always)]
fn of_pairs(pairs: [u32; 4], widen: impl Fn(u32) -> [f32; 2]) -> Chunk {
    let [a, b, c, d] = pairs.map(widen);
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
}

macro_rules! half_element {
    ($ty:ident, $widen:ident, $narrow:ident) => {
        impl Element for $ty {
            type Packed = [u32; 4];

            #[inline(always)]
            fn widen(packed: [u32; 4]) -> Chunk {
                of_pairs(packed, $widen)
            }

            #[inline(always)]
            fn narrow(v: &Chunk) -> [u32; 4] {
                [$narrow(v[0], v[1]), $narrow(v[2], v[3]), $narrow(v[4], v[5]), $narrow(v[6], v[7])]
            }

            #[inline(always)]
            unsafe fn load_packed(source: *const Self) -> [u32; 4] {
                // SAFETY: the caller's contract.
                unsafe { memory::load(source.cast()) }
            }

            #[inline(always)]
            unsafe fn load(source: *const Self) -> Chunk {
                // SAFETY: the caller's contract.
                Self::widen(unsafe { memory::load_nc(source.cast()) })
            }

            #[inline(always)]
            unsafe fn load_strong(source: *const Self) -> Chunk {
                // SAFETY: the caller's contract.
                of_pairs(unsafe { memory::load_strong(source.cast()) }, $widen)
            }

            #[inline(always)]
            unsafe fn store(target: *mut Self, v: &Chunk) {
                // SAFETY: the caller's contract.
                unsafe { memory::store(target.cast::<[u32; 4]>(), Self::narrow(v)) }
            }

            #[inline(always)]
            fn to_f32(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                $ty::from_f32(value)
            }
        }
    };
}

half_element!(Bf16, f32x2_from_bf16x2, bf16x2_from_f32);
half_element!(F16, f32x2_from_f16x2, f16x2_from_f32);

impl Element for f32 {
    type Packed = Chunk;

    #[inline(always)]
    fn widen(packed: Chunk) -> Chunk {
        packed
    }

    #[inline(always)]
    fn narrow(values: &Chunk) -> Chunk {
        *values
    }

    #[inline(always)]
    unsafe fn load_packed(source: *const Self) -> Chunk {
        let source = source.cast::<[f32; 4]>();
        // SAFETY: the caller's contract, for both halves.
        let [low, high] = unsafe { [memory::load(source), memory::load(source.add(1))] };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    #[inline(always)]
    unsafe fn load(source: *const Self) -> Chunk {
        let source = source.cast::<[f32; 4]>();
        // SAFETY: the caller's contract, for both halves.
        let [low, high] = unsafe { [memory::load_nc(source), memory::load_nc(source.add(1))] };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    #[inline(always)]
    unsafe fn load_strong(source: *const Self) -> Chunk {
        let source = source.cast::<[f32; 4]>();
        // SAFETY: the caller's contract, for both halves.
        let [low, high] = unsafe { [memory::load_strong(source), memory::load_strong(source.add(1))] };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    #[inline(always)]
    unsafe fn store(target: *mut Self, v: &Chunk) {
        let target = target.cast::<[f32; 4]>();
        // SAFETY: the caller's contract, for both halves.
        unsafe {
            memory::store(target, [v[0], v[1], v[2], v[3]]);
            memory::store(target.add(1), [v[4], v[5], v[6], v[7]]);
        }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

/// Whether every chunk of every row can be accessed by vector instructions: rows of whole chunks, from an
/// aligned address.
#[inline(always)]
pub fn vectorised<T>(rows: *const T, columns: u32) -> bool {
    columns.is_multiple_of(CHUNK) && (rows as usize).is_multiple_of(16)
}

/// Loads what exists of the chunk at `column`, element by element.
///
/// # Safety
/// The row is readable global memory that no other thread writes.
#[inline(always)]
unsafe fn load_singly<T: Element>(values: &mut Chunk, row: *const T, column: u32, columns: u32) {
    for i in 0..CHUNK {
        if column + i < columns {
            // SAFETY: the column exists.
            values[i as usize] = unsafe { row.add((column + i) as usize).read() }.to_f32();
        }
    }
}

/// The chunk at `column` of the row at `row`, which has `columns` columns; zeros past its end.
///
/// # Safety
/// The row is readable global memory that nobody writes while the grid runs; `vector` only where
/// [`vectorised`] says so.
#[inline(always)]
pub unsafe fn load_chunk<T: Element>(row: *const T, column: u32, columns: u32, vector: bool) -> Chunk {
    let mut values = [0.0; CHUNK as usize];
    if vector {
        if column < columns {
            // SAFETY: the rows are whole chunks, so that eight columns from `column` exist; alignment by
            // contract.
            values = unsafe { T::load(row.add(column as usize)) };
        }
    } else {
        // SAFETY: the caller's contract.
        unsafe { load_singly(&mut values, row, column, columns) };
    }
    values
}

/// As [`load_chunk`], not widened: for chunks of which a thread has several on their way. The loads are
/// coherent, so that what has been read may be discarded.
///
/// # Safety
/// The row is readable global memory, and nobody's write to it is unordered with this; `vector` only where
/// [`vectorised`] says so.
#[inline(always)]
pub unsafe fn load_packed_chunk<T: Element>(
    row: *const T,
    column: u32,
    columns: u32,
    vector: bool,
) -> T::Packed {
    let mut packed = T::narrow(&[0.0; CHUNK as usize]);
    if vector {
        if column < columns {
            // SAFETY: as in `load_chunk`.
            packed = unsafe { T::load_packed(row.add(column as usize)) };
        }
    } else {
        let mut values = [0.0; CHUNK as usize];
        // SAFETY: the caller's contract.
        unsafe { load_singly(&mut values, row, column, columns) };
        packed = T::narrow(&values);
    }
    packed
}

/// As [`load_chunk`], of a chunk that this thread writes afterwards: by coherent loads.
///
/// # Safety
/// The row is readable global memory, and no other thread writes these columns; `vector` only where
/// [`vectorised`] says so.
#[inline(always)]
pub unsafe fn load_own_chunk<T: Element>(row: *const T, column: u32, columns: u32, vector: bool) -> Chunk {
    let mut values = [0.0; CHUNK as usize];
    if vector {
        if column < columns {
            // SAFETY: as in `load_chunk`.
            values = unsafe { T::load_strong(row.add(column as usize)) };
        }
    } else {
        // SAFETY: the caller's contract.
        unsafe { load_singly(&mut values, row, column, columns) };
    }
    values
}

/// Stores the chunk at `column` of the row at `row`, as far as the row's `columns` reach.
///
/// # Safety
/// The row is writable global memory, and no other thread accesses these columns; `vector` only where
/// [`vectorised`] says so.
#[inline(always)]
pub unsafe fn store_chunk<T: Element>(row: *mut T, column: u32, columns: u32, vector: bool, values: &Chunk) {
    if vector {
        if column < columns {
            // SAFETY: the rows are whole chunks, so that eight columns from `column` exist; alignment by
            // contract.
            unsafe { T::store(row.add(column as usize), values) };
        }
    } else {
        for i in 0..CHUNK {
            if column + i < columns {
                // SAFETY: the column exists.
                unsafe { row.add((column + i) as usize).write(T::from_f32(values[i as usize])) };
            }
        }
    }
}

/// The largest magnitude in a chunk. NaN does not count.
#[inline(always)]
pub fn absmax(values: &Chunk) -> f32 {
    values.iter().fold(0.0, |largest, value| f32::max(largest, value.abs()))
}

/// Eight values to e4m3: to nearest even, saturating at +-448, NaN to 0x7f.
#[inline(always)]
pub fn pack(v: &Chunk) -> PackedChunk {
    [e4m3x4_from_f32([v[0], v[1], v[2], v[3]]), e4m3x4_from_f32([v[4], v[5], v[6], v[7]])]
}

/// Stores the e4m3 chunk at `column` of the row at `row`, as far as the row's `columns` reach.
///
/// # Safety
/// As [`store_chunk`]; the rows need only be 8-byte aligned, as those of [`vectorised`] are.
#[inline(always)]
pub unsafe fn store_packed(row: *mut u8, column: u32, columns: u32, vector: bool, packed: PackedChunk) {
    if vector {
        if column < columns {
            // SAFETY: the rows are whole chunks, so that eight columns from `column` exist; alignment by
            // contract.
            unsafe { memory::store(row.add(column as usize).cast::<[u32; 2]>(), packed) };
        }
    } else {
        for i in 0..CHUNK {
            if column + i < columns {
                let byte = (packed[i as usize / 4] >> (i % 4 * 8)) as u8;
                // SAFETY: the column exists.
                unsafe { row.add((column + i) as usize).write(byte) };
            }
        }
    }
}
