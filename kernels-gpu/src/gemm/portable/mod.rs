//! The grouped GEMM of the portable family: `D[rows of e, n] = A[rows of e, k] * B[e][n, k]^T` for every
//! expert e, e4m3 in, f32 accumulation, bf16, f16 or f32 out (sm_89 and later: `cp.async`, `ldmatrix`,
//! `mma.sync`).
//!
//! # Work
//! The rows of A lie in permuted order, one expert after the other. A schedule built on the device cuts them
//! into tiles of at most BM rows of one expert; a tile of the schedule times 128 columns of N is a *work
//! item* ([`work`](crate::schedule::work)). The grid is persistent: block `b` of `G` takes items `b, b+G,
//! b+2G, ...`. Nothing but the schedule says where experts begin and end, so empty experts cost nothing and
//! the host never learns the counts.
//!
//! # Pipeline
//! K is cut into slabs of 128. A *stage* of shared memory holds one slab of one item:
//!
//! ```text
//!        128 bytes = 8 chunks of 16
//!      +--------------------------+
//!   BM |  A rows                  |    row r, chunk c lies at  r*128 + ((c ^ (r % 8)) * 16)
//!      +--------------------------+
//!  128 |  B rows (columns of D)   |    the same swizzle, so that the 8 rows of an ldmatrix matrix, and the
//!      +--------------------------+    8 chunks that 8 threads copy of a row, fall into different banks
//!      |  expert, row, rows, n0   |    the item the slab belongs to
//!      +--------------------------+
//!      |  BM scales of A, 1 of B  |    f32, promoted kernels only
//!      +--------------------------+
//! ```
//!
//! All threads copy (`cp.async`, 16 bytes each, zeros for rows and chunks that do not exist) STAGES-1 slabs
//! ahead of the slab being multiplied, and the sequence of slabs runs on across work items: while the last
//! slab of an item is multiplied and its results stored, the first slabs of the next items are in flight
//! ([`pipeline`]). One block barrier per slab does both jobs: it shows the next slab to everybody and says
//! that the stage of the previous slab may be overwritten.
//!
//! ```text
//!  slab s       k32=0          k32=1          k32=2          k32=3
//!  tensor core  mma 0          mma 1          mma 2          mma 3            fold
//!  ldmatrix     frag 1         frag 2         frag 3         frag 0 of s+1
//!  copies       issue slab s+STAGES-1                        wait, barrier
//! ```
//!
//! # Warps
//! WARPS_M x 4 warps share the BM x 128 tile; each owns MT*16 rows and 32 columns: MT x 4 `mma` tiles
//! ([`warp_tile`]). Fragments are double-buffered in registers.
//!
//! | BM | warps | MT | stages | shared memory | made for |
//! |---|---|---|---|---|---|
//! | 16 | 1 x 4 | 1 | 5 | 90 KiB + scales | few rows per expert: the weights' stream is the work |
//! | 64 | 2 x 4 | 2 | 4 | 96 KiB + scales | |
//! | 128 | 2 x 4 | 4 | 3 | 96 KiB + scales | many rows per expert |
//!
//! # Scales and accumulation
//! The *fast* kernels leave the running sum in the tensor core's accumulator for all of K and scale at the
//! end. The *promoted* kernels start every slab from zero and fold it into a second set of f32 registers,
//! `total += (sa * sb) * slab`, where sa and sb are the scales that change along K (1x128 groups of A,
//! 128x128 blocks of B) or 1. Scales that do not change along K are applied once at the end, by both
//! ([`scales`]). Block scales exist in the promoted kernels only.
//!
//! # Contract of the entry points (checked by the host before the launch)
//! - the arguments are as [`PortableGemm`] says, and `k` is at least 16;
//! - the schedule is built for the kernel's BM, as [`schedule::entry`](crate::schedule::entry) draws it;
//! - tiles times `ceil(n / 128)` is below 2^32;
//! - dynamic shared memory is at least STAGES times the stage size.

mod epilogue;
mod multiply;
mod pipeline;
mod scales;
mod warp_tile;

use cuda_std::code::Code;
use cuda_std::{arguments, host, kernel, sync, thread};

use crate::abi::{GemmTile, SLAB};
use crate::schedule::work::{Tile, WorkList};
use multiply::{Accumulator, Fragments};
use pipeline::Loader;
use scales::{EndScales, SlabScales};
use warp_tile::WarpTile;

/// Columns of D in a work item.
const BN: u32 = 128;
/// Warps side by side along N; each owns 32 columns.
const WARPS_N: u32 = 4;

/// Whether values may be fetched ahead of their use into registers. Not on sm_90a, which has no FP8
/// `mma.sync`: ptxas emulates it by unpacking to f16, and the unpacked copies take the registers.
const REGISTERS_TO_SPARE: bool = !cfg!(target_feature = "sm_90a");

/// Rows of a block's tile.
const fn tile_rows(mt: usize, warps_m: u32) -> u32 {
    warps_m * mt as u32 * 16
}

/// Bytes of A and B in a stage.
const fn operand_bytes(mt: usize, warps_m: u32) -> u32 {
    (tile_rows(mt, warps_m) + BN) * SLAB
}

/// Arguments of the portable grouped GEMMs.
#[arguments]
pub struct PortableGemm {
    /// e4m3 `[P, k]`, 16-byte aligned.
    pub a: *const u8,
    /// e4m3 `[experts, n, k]`, 16-byte aligned.
    pub b: *const u8,
    /// Columns of D, a multiple of 8.
    pub n: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both.
    pub scales: crate::abi::Scales,
    /// A tile schedule for the kernel's rows, 16-byte aligned.
    pub schedule: *const [u32; 4],
    /// D `[P, n]`, 16-byte aligned.
    pub out: *mut u8,
    /// Where A's scales per group are.
    pub a_scale_strides: crate::abi::Strides,
    /// bf16, f16 or f32.
    pub out_type: Code<crate::abi::OutType>,
}

/// The body of every entry point: a block of `WARPS_M * 4` warps with tiles of `WARPS_M * MT * 16` rows.
///
/// # Safety
/// The contract of the entry points (module documentation); all threads of the block call it together.
#[inline(always)]
unsafe fn grouped_gemm<const MT: usize, const WARPS_M: u32, const STAGES: u32, const PROMOTED: bool>(
    arguments: &PortableGemm,
) {
    // SAFETY: pointers and shapes are as the contract of the entry points says. All control flow here depends
    // on values that are the same in all threads of the block, so barriers, `ldmatrix`, `mma` and shuffles
    // are executed by whole warps. A stage is overwritten only by copies issued after the barrier that ends
    // the slab it held (all its fragments and scales are in registers by then), and read only after each
    // thread has waited for its own copies and passed the barrier that follows.
    unsafe {
        let work = WorkList::new(arguments.schedule, WARPS_M * MT as u32 * 16, arguments.n, BN);
        let mut item = thread::block_idx_x();
        if item >= work.len() {
            return;
        }
        let slabs = arguments.k.div_ceil(SLAB);
        let mut loader = Loader::<MT, WARPS_M, STAGES, PROMOTED>::new(arguments, &work, item);
        let mut stage = loader.fill(arguments, &work);
        loader.wait_for_next_stage();
        sync::block();

        let warp = WarpTile::<MT, WARPS_M>::new();
        let mut vacated = loader.before(stage);
        let mut step_0 = Fragments::<MT>::load(&warp, stage, 0);
        while item < work.len() {
            item += thread::grid_dim_x();
            let no_more_items = item >= work.len();

            let mut total = Accumulator::<MT>::ZERO;
            let mut tile = Tile::NONE;
            let mut end_scales = EndScales::<MT>::ONE;
            let mut slab = 0;
            loop {
                let last_slab = slab + 1 == slabs;
                let mut partial = Accumulator::<MT>::ZERO;
                let accumulator = if PROMOTED { &mut partial } else { &mut total };

                let step_1 = accumulator.add_product_and_load(&step_0, &warp, stage, 1);
                loader.issue(vacated, arguments, &work);

                let slab_scales = SlabScales::<MT>::load::<WARPS_M, PROMOTED>(&warp, stage);
                if last_slab {
                    tile = pipeline::tile_of_stage(MT, WARPS_M, stage);
                    if REGISTERS_TO_SPARE {
                        end_scales = EndScales::load(&arguments.scales, &tile, &warp, arguments.n);
                    }
                }
                let step_2 = accumulator.add_product_and_load(&step_1, &warp, stage, 2);
                let step_3 = accumulator.add_product_and_load(&step_2, &warp, stage, 3);

                loader.wait_for_next_stage();
                sync::block();
                vacated = stage;
                // After the very last slab nothing is in flight; its own stage is read once more, and
                // ignored.
                stage = if last_slab && no_more_items { stage } else { loader.after(stage) };
                step_0 = accumulator.add_product_and_load(&step_3, &warp, stage, 0);
                if PROMOTED {
                    total.fold(&partial, &slab_scales);
                }
                slab += 1;
                if last_slab {
                    break;
                }
            }
            if !REGISTERS_TO_SPARE {
                end_scales = EndScales::load(&arguments.scales, &tile, &warp, arguments.n);
            }
            epilogue::store(&total, &end_scales, &tile, &warp, arguments);
        }
    }
}

/// Defines the fast and the promoted entry point of a tile: their names, and the constants of
/// [`grouped_gemm`].
macro_rules! entries {
    ($fast:ident, $promoted:ident, $tile:ident, $mt:literal, $warps_m:literal) => {
        entries!(@ $fast, $tile, $mt, $warps_m, false, "fast");
        entries!(@ $promoted, $tile, $mt, $warps_m, true, "promoted");
    };
    (@ $name:ident, $tile:ident, $mt:literal, $warps_m:literal, $is_promoted:literal, $accumulation:literal) => {
        #[doc = concat!("Tiles of [`", stringify!($tile), "`], ", $accumulation, " accumulation.")]
        ///
        /// # Safety
        /// The contract in the module documentation.
        #[kernel(
            threads = $warps_m * WARPS_N * 32,
            shared = $tile.stages * pipeline::stage_bytes($mt, $warps_m, $is_promoted)
        )]
        pub unsafe fn $name(arguments: PortableGemm) {
            // SAFETY: the caller keeps the contract in the module documentation.
            unsafe { grouped_gemm::<$mt, $warps_m, { $tile.stages }, $is_promoted>(&arguments) }
        }
    };
}

/// 16 x 128: for a few rows per expert, where streaming the weights is the work.
#[host]
pub const PORTABLE_16: GemmTile = GemmTile {
    rows: tile_rows(1, 1),
    columns: BN,
    stages: 5,
    operand_bytes: operand_bytes(1, 1),
    a_box_rows: 0,
    partial_bytes: 0,
};
/// 64 x 128.
#[host]
pub const PORTABLE_64: GemmTile = GemmTile {
    rows: tile_rows(2, 2),
    columns: BN,
    stages: 4,
    operand_bytes: operand_bytes(2, 2),
    a_box_rows: 0,
    partial_bytes: 0,
};
/// 128 x 128: for many rows per expert.
#[host]
pub const PORTABLE_128: GemmTile = GemmTile {
    rows: tile_rows(4, 2),
    columns: BN,
    stages: 3,
    operand_bytes: operand_bytes(4, 2),
    a_box_rows: 0,
    partial_bytes: 0,
};

entries!(grouped_gemm_fast_16, grouped_gemm_promoted_16, PORTABLE_16, 1, 1);
entries!(grouped_gemm_fast_64, grouped_gemm_promoted_64, PORTABLE_64, 2, 2);
entries!(grouped_gemm_fast_128, grouped_gemm_promoted_128, PORTABLE_128, 4, 2);
