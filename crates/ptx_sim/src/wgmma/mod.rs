//! `wgmma.mma_async`: warpgroup-level matrix multiply-accumulate, 64 x N with N = 8, 16 .. 256 (ISA
//! "Asynchronous warpgroup level matrix instructions").
//!
//! ```text
//!                          N = 8 * panels
//!                 panel 0   panel 1   ...                 one step of K is 32 bytes of each row:
//!   warp 0  16 |  d[0..4] | d[4..8] | ...                 32 FP8, 16 half or 8 tf32 elements
//!   warp 1  16 |          |         |
//!   warp 2  16 |          |         |                     a cell is the 16x8 accumulator fragment of `mma`
//!   warp 3  16 |          |         |
//! ```
//!
//! Execution is in two parts, so that an emulator can choose when each happens: *fetch* copies the operands
//! out of shared memory, chunk by chunk through the descriptors (or takes A from registers), and *accumulate*
//! multiplies what was fetched. The arithmetic is that of [`mma`](crate::mma): exact products, one rounding,
//! or the sums of a model.

mod descriptor;
mod swizzle;

pub use descriptor::{Descriptor, Major};
pub use swizzle::Swizzle;

use crate::ldmatrix;
use crate::mma::{
    Accumulators, Core, HalfAccumulators, Lanes, Mode, Operand, Truncation, core_of, multiply_panels,
};

/// 64 rows of A for one step of K: core matrices of warp `w` are `4 * w..`, in the order of the registers of
/// an A fragment of `mma` (row block fastest, then k).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixA {
    cores: Vec<Core>,
}

/// N columns of B for one step of K: core matrices of panel `p` are `2 * p` (first half of k) and `2 * p +
/// 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixB {
    cores: Vec<Core>,
}

/// Core matrix of 8 rows from `row` and 16 bytes of k from chunk `chunk`, read 16 bytes at a time.
fn fetch_core<E>(
    descriptor: &Descriptor,
    major: Major,
    row: u32,
    chunk: u32,
    read: &mut impl FnMut(u32) -> Result<[u8; 16], E>,
) -> Result<Core, E> {
    let mut core = [0; 128];
    for (i, bytes) in (0..).zip(core.chunks_exact_mut(16)) {
        let address = match major {
            Major::K => descriptor.k_major_chunk(row + i, chunk),
            Major::Mn => descriptor.mn_major_chunk(row / 8, 8 * chunk + i),
        };
        bytes.copy_from_slice(&read(address)?);
    }
    Ok(if major == Major::Mn { transpose(&core) } else { core })
}

/// Exchanges rows and columns of a core matrix of 16-bit elements.
fn transpose(core: &Core) -> Core {
    let mut rows: ldmatrix::Rows = [[0; 4]; 8];
    for (word, bytes) in rows.as_flattened_mut().iter_mut().zip(core.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let mut out = [0; 128];
    let rows = ldmatrix::transpose(&rows);
    for (bytes, word) in out.chunks_exact_mut(4).zip(rows.as_flattened()) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    out
}

impl MatrixA {
    /// Reads A through its descriptor. `read` returns the 16 bytes at a shared-memory address.
    pub fn fetch<E>(
        descriptor: Descriptor,
        major: Major,
        mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<MatrixA, E> {
        let mut cores = Vec::with_capacity(16);
        for warp in 0..4 {
            for chunk in 0..2 {
                for half in 0..2 {
                    cores.push(fetch_core(&descriptor, major, 16 * warp + 8 * half, chunk, &mut read)?);
                }
            }
        }
        Ok(MatrixA { cores })
    }

    /// A from registers: the fragment of each of the four warps.
    pub fn from_registers(fragments: [&[Lanes; 4]; 4]) -> MatrixA {
        MatrixA { cores: fragments.iter().flat_map(|fragment| fragment.iter().map(core_of)).collect() }
    }
}

impl MatrixB {
    /// Reads `n` columns of B through its descriptor. `read` returns the 16 bytes at a shared-memory address.
    pub fn fetch<E>(
        descriptor: Descriptor,
        major: Major,
        n: u32,
        mut read: impl FnMut(u32) -> Result<[u8; 16], E>,
    ) -> Result<MatrixB, E> {
        let mut cores = Vec::with_capacity(n as usize / 4);
        for panel in 0..n / 8 {
            for chunk in 0..2 {
                cores.push(fetch_core(&descriptor, major, 8 * panel, chunk, &mut read)?);
            }
        }
        Ok(MatrixB { cores })
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.cores.len() * 4
    }
}

/// What one `wgmma.mma_async` multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Element type of A.
    pub a: Operand,
    /// Element type of B: that of A, or the other FP8 type.
    pub b: Operand,
    /// Whether `imm-scale-a * imm-scale-b` is -1.
    pub negate: bool,
    /// `scale-d`: whether D is added to; otherwise it is overwritten.
    pub accumulate: bool,
    /// How FP8 sums are truncated; exact sums without.
    pub model: Option<Truncation>,
}

impl Product {
    fn types(self) -> (Operand, Operand) {
        (self.a, self.b)
    }

    fn mode(self) -> Mode {
        Mode { negate: self.negate, accumulate: self.accumulate }
    }
}

/// `wgmma.mma_async.sync.aligned.m64nNk*.f32`: `d[warp * N / 8 + panel]` is the accumulator fragment of a
/// warp for columns `8 * panel..`, that is its registers `4 * panel..4 * panel + 4`.
///
/// # Panics
/// If `d` is not `N / 2` fragments long, or the types cannot be multiplied with each other.
pub fn accumulate_f32(product: Product, a: &MatrixA, b: &MatrixB, d: &mut [Accumulators]) {
    multiply_panels::<4, _>(product.types(), product.model, product.mode(), &a.cores, &b.cores, d);
}

/// `wgmma.mma_async.sync.aligned.m64nNk*.f16`: `d[warp * N / 8 + panel]` is registers
/// `2 * panel..2 * panel + 2` of a warp.
///
/// # Panics
/// If `d` is not `N / 2` fragments long, or the types cannot be multiplied with each other.
pub fn accumulate_f16(product: Product, a: &MatrixA, b: &MatrixB, d: &mut [HalfAccumulators]) {
    multiply_panels::<4, _>(product.types(), product.model, product.mode(), &a.cores, &b.cores, d);
}
