//! Router logits: `logits[t][e] = sum over h of hidden[t][h] * gate[e][h]`, hidden states in bf16 or f16, the
//! gate in bf16, f32 accumulation and output.
//!
//! A gate in f32 is given as planes of bf16 whose sum it is: `gate[e][h] = sum over p of plane[p][e][h]`.
//! Three bf16 hold the 24 bits of an f32, and a product of two bf16 is exact in f32, so that nothing of the
//! weight is lost. The sum over h goes through the planes one after the other.
//!
//! Three kernels by the number of tokens; all split the sum in a fixed way, so that each is deterministic. The
//! two for tens of tokens and more are here, [`few`] has the third, which takes hidden states in f16 too.
//!
//! | kernel | block | what it is made for |
//! |---|---|---|
//! | `router_logits_few` | 1 expert x 8 tokens, 8 warps split H | a few tokens: a block per expert, so that the gate streams through many SMs |
//! | `router_logits_16x8` | 16 tokens x 8 experts, 8 warps split H | tens to hundreds of tokens |
//! | `router_logits_64x64` | 64 tokens x 64 experts, 4 tiles of 32x32, 2 warps each split H | many tokens |
//!
//! The two tensor-core kernels use no shared memory on the way in. A sum does not mind in which order its
//! terms come, so the k index of `mma.m16n8k16` may be any permutation of 32 columns, as long as both
//! operands use the same. This one lets every lane load 16 contiguous bytes, which are its registers for two
//! instructions:
//!
//! ```text
//! columns of a row       0 ..  7   8 .. 15  16 .. 23  24 .. 31         lane = 4g + q holds row g
//! lane 4g + q            q = 0     q = 1     q = 2     q = 3
//! its 4 registers        r0 r1 | r2 r3                                 r0 r1: first mma, r2 r3: second
//! ```
//!
//! Rows past the last token or expert repeat the last one and are not stored; columns past H are zero in both
//! operands.

mod few;

use cuda_std::bf16::Bf16;
use cuda_std::{arguments, host, kernel, memory, mma, shared, sync, thread};

/// Columns that the four lanes of a row load together.
const STEP: u32 = 32;
/// Warps of every block here.
const WARPS: u32 = 8;

/// Arguments of the kernels `router_logits_*`.
#[arguments]
pub struct RouterLogits {
    /// `[tokens, hidden]`, f16 where the kernel's name says so, else bf16.
    pub hidden_states: *const u8,
    /// `[planes, experts, hidden]`.
    pub gate: *const Bf16,
    /// f32 `[experts]`, added to each token's logits; null for none.
    pub bias: *const f32,
    /// `[tokens, experts]`.
    pub logits: *mut f32,
    /// T, at least 1.
    pub tokens: u32,
    /// E, at least 1.
    pub experts: u32,
    /// H.
    pub hidden: u32,
    /// Planes of the gate, at least 1.
    pub planes: u32,
}

/// What a block of a kernel here computes.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsTile {
    /// Tokens.
    pub tokens: u32,
    /// Experts.
    pub experts: u32,
}

/// A `[rows, columns]` matrix of 16-bit elements in global memory, and whether its rows start at multiples of
/// 16 bytes. Of a matrix in planes, one behind the other, the first.
#[derive(Clone, Copy)]
struct Matrix {
    base: *const Bf16,
    rows: u32,
    columns: u32,
    aligned: bool,
}

impl Matrix {
    #[inline(always)]
    fn new(base: *const Bf16, rows: u32, columns: u32) -> Self {
        let aligned = columns.is_multiple_of(8) && base.addr().is_multiple_of(16);
        Self { base, rows, columns, aligned }
    }

    /// The start of row `row`, or of the last row if there are fewer.
    #[inline(always)]
    fn row(self, row: u32) -> *const Bf16 {
        self.base.wrapping_add(row.min(self.rows - 1) as usize * self.columns as usize)
    }

    /// The same rows of plane `plane`.
    #[inline(always)]
    fn plane(self, plane: u32) -> Self {
        let elements = self.rows as usize * self.columns as usize;
        Self { base: self.base.wrapping_add(plane as usize * elements), ..self }
    }

    /// Columns `column .. column + 8` of the row at `row`, as four pairs; zeros past the last column.
    ///
    /// # Safety
    /// `row` is the start of one of the rows.
    #[inline(always)]
    unsafe fn load(self, row: *const Bf16, column: u32) -> [u32; 4] {
        if self.aligned && column + 8 <= self.columns {
            // SAFETY: inside the row, at a multiple of 16 bytes.
            return unsafe { memory::load_nc(row.add(column as usize).cast()) };
        }
        let element = |index: u32| {
            // SAFETY: inside the row.
            if index < self.columns { u32::from(unsafe { *row.add(index as usize) }.0) } else { 0 }
        };
        let pair = |index: u32| element(index) | element(index + 1) << 16;
        [pair(column), pair(column + 2), pair(column + 4), pair(column + 6)]
    }

    /// As [`load`](Self::load) where that is known to take its first way.
    ///
    /// # Safety
    /// As `load`; `aligned`, and `column + 8 <= columns`.
    #[inline(always)]
    unsafe fn load_vector(self, row: *const Bf16, column: u32) -> [u32; 4] {
        // SAFETY: inside the row, at a multiple of 16 bytes.
        unsafe { memory::load_nc(row.add(column as usize).cast()) }
    }
}

/// Where the sums go, and what is added to them.
#[derive(Clone, Copy)]
struct Out {
    logits: *mut f32,
    bias: *const f32,
}

impl Out {
    /// Stores the sum of a token and an expert.
    ///
    /// # Safety
    /// `logits [.., experts]` has the token's row, `bias` is null or `[experts]`, and the expert exists.
    #[inline(always)]
    unsafe fn put(self, token: u32, expert: u32, experts: u32, sum: f32) {
        // SAFETY: the caller's contract.
        unsafe {
            let bias =
                if self.bias.is_null() { 0.0 } else { memory::load_nc(self.bias.add(expert as usize)) };
            *self.logits.add(token as usize * experts as usize + expert as usize) = sum + bias;
        }
    }
}

/// A block's tile: `WM x WN` warps side by side, each with `16 FM x 8 FN` outputs, and `WK` such sets that
/// take turns at the columns; `STEPS` times 32 columns are loaded before they are multiplied.
struct Tile<const WM: u32, const WN: u32, const WK: u32, const FM: usize, const FN: usize, const STEPS: usize>;

impl<const WM: u32, const WN: u32, const WK: u32, const FM: usize, const FN: usize, const STEPS: usize>
    Tile<WM, WN, WK, FM, FN, STEPS>
{
    /// Tokens and experts of the block.
    const TOKENS: u32 = WM * 16 * FM as u32;
    const EXPERTS: u32 = WN * 8 * FN as u32;
    /// Bytes of dynamic shared memory: see [`add_sets`](Self::add_sets).
    const SHARED_BYTES: u32 = (WK - 1) * WM * WN * (FM * FN) as u32 * 32 * 16;

    /// Computes the tile of this block. Dynamic shared memory: a set's outputs as f32 for every set but the
    /// first.
    ///
    /// # Safety
    /// All 256 threads execute it together; `gate` has `planes` planes; `logits [hidden.rows, gate.rows]`.
    #[inline(always)]
    unsafe fn run(hidden: Matrix, gate: Matrix, planes: u32, out: Out) {
        const { assert!(WM * WN * WK == WARPS) };
        let (lane, warp_id) = (thread::lane_id(), thread::warp_id());
        let (g, q) = (lane / 4, lane % 4);
        let (wm, wn, wk) = (warp_id % WM, warp_id / WM % WN, warp_id / (WM * WN));
        let first_token = (thread::block_idx_x() * WM + wm) * (16 * FM as u32);
        let first_expert = (thread::block_idx_y() * WN + wn) * (8 * FN as u32);

        let mut tokens = [[core::ptr::null::<Bf16>(); 2]; FM];
        let mut m = 0;
        while m < FM {
            let row = first_token + 16 * m as u32 + g;
            tokens[m] = [hidden.row(row), hidden.row(row + 8)];
            m += 1;
        }
        let mut sums = [[[0.0f32; 4]; FN]; FM];
        let mut plane = 0;
        while plane < planes {
            // SAFETY: the planes are there by the caller's contract.
            unsafe {
                let gate = gate.plane(plane);
                Self::add_plane(&mut sums, hidden, &tokens, gate, first_expert + g, wk, q);
            };
            plane += 1;
        }
        // SAFETY: all threads are together, and the matrix is as the caller says.
        unsafe {
            Self::add_sets(&mut sums, wk, warp_id % (WM * WN), lane);
            if wk == 0 {
                let Out { logits, bias } = out;
                if !bias.is_null() {
                    Self::add_bias(&mut sums, bias, gate.rows, first_expert + 2 * q);
                }
                Self::store(&sums, hidden.rows, gate.rows, first_token + g, first_expert + 2 * q, logits);
            }
        }
    }

    /// Adds the products with one plane of the gate, of the columns that set `wk` takes.
    ///
    /// `tokens` are the lane's rows of `hidden`, `first_expert` its first row of `gate`, `q` its place among
    /// four.
    ///
    /// # Safety
    /// All lanes of the warp execute it together; `tokens` are rows of `hidden`.
    #[inline(always)]
    unsafe fn add_plane(
        sums: &mut [[[f32; 4]; FN]; FM],
        hidden: Matrix,
        tokens: &[[*const Bf16; 2]; FM],
        gate: Matrix,
        first_expert: u32,
        wk: u32,
        q: u32,
    ) {
        let columns = hidden.columns;
        let mut experts = [core::ptr::null::<Bf16>(); FN];
        let mut n = 0;
        while n < FN {
            experts[n] = gate.row(first_expert + 8 * n as u32);
            n += 1;
        }

        let mut column = wk * STEP + q * 8;
        // The last column of the last lane of a step decides for the warp, which stays together.
        let mut step_end = wk * STEP + STEP;
        // SAFETY: all pointers are rows; the first loop's columns are all inside, and the alignment is known
        // there.
        unsafe {
            if hidden.aligned && gate.aligned {
                let ahead = (STEPS as u32 - 1) * WK * STEP;
                while step_end + ahead <= columns {
                    let mut a = [[[[0u32; 4]; 2]; FM]; STEPS];
                    let mut b = [[[0u32; 4]; FN]; STEPS];
                    let mut s = 0;
                    while s < STEPS {
                        let column = column + s as u32 * WK * STEP;
                        let mut m = 0;
                        while m < FM {
                            a[s][m][0] = hidden.load_vector(tokens[m][0], column);
                            a[s][m][1] = hidden.load_vector(tokens[m][1], column);
                            m += 1;
                        }
                        let mut n = 0;
                        while n < FN {
                            b[s][n] = gate.load_vector(experts[n], column);
                            n += 1;
                        }
                        s += 1;
                    }
                    let mut s = 0;
                    while s < STEPS {
                        Self::multiply(sums, &a[s], &b[s]);
                        s += 1;
                    }
                    column += STEPS as u32 * WK * STEP;
                    step_end += STEPS as u32 * WK * STEP;
                }
            }
            while step_end - STEP < columns {
                let mut a = [[[0u32; 4]; 2]; FM];
                let mut b = [[0u32; 4]; FN];
                let mut m = 0;
                while m < FM {
                    a[m] = [hidden.load(tokens[m][0], column), hidden.load(tokens[m][1], column)];
                    m += 1;
                }
                let mut n = 0;
                while n < FN {
                    b[n] = gate.load(experts[n], column);
                    n += 1;
                }
                Self::multiply(sums, &a, &b);
                column += WK * STEP;
                step_end += WK * STEP;
            }
        }
    }

    /// Adds the products of 32 columns.
    ///
    /// # Safety
    /// All lanes of the warp execute it together.
    #[inline(always)]
    unsafe fn multiply(sums: &mut [[[f32; 4]; FN]; FM], a: &[[[u32; 4]; 2]; FM], b: &[[u32; 4]; FN]) {
        let mut m = 0;
        while m < FM {
            let [low, high] = a[m];
            let mut n = 0;
            while n < FN {
                // SAFETY: the warp is together by the caller's contract.
                unsafe {
                    mma::m16n8k16_bf16(
                        &mut sums[m][n],
                        [low[0], high[0], low[1], high[1]],
                        [b[n][0], b[n][1]],
                    );
                    mma::m16n8k16_bf16(
                        &mut sums[m][n],
                        [low[2], high[2], low[3], high[3]],
                        [b[n][2], b[n][3]],
                    );
                }
                n += 1;
            }
            m += 1;
        }
    }

    /// Adds the sums of sets 1, 2, .. to those of set 0, in that order, through shared memory.
    ///
    /// # Safety
    /// All threads of the block execute it together.
    #[inline(always)]
    unsafe fn add_sets(sums: &mut [[[f32; 4]; FN]; FM], wk: u32, warp_in_set: u32, lane: u32) {
        // [WK - 1][WM * WN][FM * FN][lane], 16 bytes each: lanes side by side, no bank conflict.
        let exchange = shared::dynamic::<[f32; 4]>();
        let slot = |set: u32, fragment: usize| {
            exchange.add(((set * WM * WN + warp_in_set) * (FM * FN) as u32 + fragment as u32) * 32 + lane)
        };
        if wk > 0 {
            let mut fragment = 0;
            while fragment < FM * FN {
                // SAFETY: one writer to each slot, ordered before the reads by the barrier.
                unsafe { slot(wk - 1, fragment).write(sums[fragment / FN][fragment % FN]) };
                fragment += 1;
            }
        }
        sync::block();
        if wk == 0 {
            let mut set = 0;
            while set < WK - 1 {
                let mut fragment = 0;
                while fragment < FM * FN {
                    // SAFETY: written before the barrier.
                    let other = unsafe { slot(set, fragment).read() };
                    let sum = &mut sums[fragment / FN][fragment % FN];
                    *sum = [sum[0] + other[0], sum[1] + other[1], sum[2] + other[2], sum[3] + other[3]];
                    fragment += 1;
                }
                set += 1;
            }
        }
    }

    /// Adds the bias of every column to the sums; `expert` is that of the lane's first output. A pass of its
    /// own, so that the stores need no register for it.
    ///
    /// # Safety
    /// `bias [experts]`.
    #[inline(always)]
    unsafe fn add_bias(sums: &mut [[[f32; 4]; FN]; FM], bias: *const f32, experts: u32, expert: u32) {
        let mut n = 0;
        while n < FN {
            let expert = expert + 8 * n as u32;
            // Columns past the last get its bias, and are not stored.
            let of = #[inline(always)]
            |expert: u32| {
                // SAFETY: the expert exists.
                unsafe { memory::load_nc(bias.add(expert.min(experts - 1) as usize)) }
            };
            let (left, right) = (of(expert), of(expert + 1));
            let mut m = 0;
            while m < FM {
                let [a, b, c, d] = sums[m][n];
                sums[m][n] = [a + left, b + right, c + left, d + right];
                m += 1;
            }
            n += 1;
        }
    }

    /// Stores what lies inside `[tokens, experts]`. `token` and `expert` are those of the lane's first
    /// output.
    ///
    /// # Safety
    /// `logits [tokens, experts]`.
    #[inline(always)]
    unsafe fn store(
        sums: &[[[f32; 4]; FN]; FM],
        tokens: u32,
        experts: u32,
        token: u32,
        expert: u32,
        logits: *mut f32,
    ) {
        let mut m = 0;
        while m < FM {
            let token = token + 16 * m as u32;
            // SAFETY: the matrix is as the caller says.
            unsafe {
                Self::store_row(&sums[m], 0, tokens, experts, token, expert, logits);
                Self::store_row(&sums[m], 2, tokens, experts, token + 8, expert, logits);
            }
            m += 1;
        }
    }

    /// Stores the two adjacent outputs `at`, `at + 1` of every fragment of a row.
    ///
    /// # Safety
    /// As [`store`](Self::store).
    #[inline(always)]
    unsafe fn store_row(
        sums: &[[f32; 4]; FN],
        at: usize,
        tokens: u32,
        experts: u32,
        token: u32,
        expert: u32,
        logits: *mut f32,
    ) {
        if token >= tokens {
            return;
        }
        let row = logits.wrapping_add(token as usize * experts as usize);
        let mut n = 0;
        while n < FN {
            let expert = expert + 8 * n as u32;
            // SAFETY: token < tokens, and each expert is below `experts` where it is stored.
            unsafe {
                if expert < experts {
                    *row.add(expert as usize) = sums[n][at];
                }
                if expert + 1 < experts {
                    *row.add(expert as usize + 1) = sums[n][at + 1];
                }
            }
            n += 1;
        }
    }
}

/// The block of `router_logits_16x8`.
type Tile16x8 = Tile<1, 1, 8, 1, 1, 4>;
/// Of `router_logits_16x8`.
#[host]
pub const LOGITS_16X8: LogitsTile = LogitsTile { tokens: Tile16x8::TOKENS, experts: Tile16x8::EXPERTS };

/// The block of `router_logits_64x64`.
type Tile64x64 = Tile<2, 2, 2, 2, 4, 2>;
/// Of `router_logits_64x64`.
#[host]
pub const LOGITS_64X64: LogitsTile = LogitsTile { tokens: Tile64x64::TOKENS, experts: Tile64x64::EXPERTS };

macro_rules! tiled {
    ($($name:ident: $tile:ident),+) => {$(
        /// Logits of tens to hundreds of tokens, or of many.
        ///
        /// Launch: blocks along x for the tokens, along y for the experts, of a tile each: [`LOGITS_16X8`] or
        /// [`LOGITS_64X64`].
        ///
        /// # Safety
        /// The arrays have their stated sizes.
        #[kernel(threads = 32 * WARPS, min_blocks = 2, shared = $tile::SHARED_BYTES)]
        pub unsafe fn $name(arguments: RouterLogits) {
            let RouterLogits { hidden_states, gate, bias, logits, tokens, experts, hidden, planes } = arguments;
            let states = Matrix::new(hidden_states.cast(), tokens, hidden);
            let gate = Matrix::new(gate, experts, hidden);
            // SAFETY: the arguments are as the contract says.
            unsafe { $tile::run(states, gate, planes, Out { logits, bias }) }
        }
    )+};
}

tiled!(router_logits_16x8: Tile16x8, router_logits_64x64: Tile64x64);
