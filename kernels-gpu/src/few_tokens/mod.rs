//! A whole layer behind the router in one launch, for up to some tens of rows (sm_90a): `few_tokens`, of
//! weights as a checkpoint has them, `few_tokens_packed`, and two entries of that for the layers that most
//! models have, which leave less to compile.
//!
//! With few rows the layer is a stream of weights: those of the experts that have rows, once. So each block,
//! one on every SM, streams a share of w13 and then of w2 through one ring of stages, and everything
//! else happens beside the stream. A producer warp asks for the weights, sixteen consumer warps multiply
//! them, and three finish what these have summed, while they are at the next unit.
//!
//! ```text
//!   time ------------------------------------------------------------------------------------------------>
//!   producer     ids -> tiles | w13 w13 w13 w13 .. w13 | w2 w2 w2 w2 w2 .. w2      waits for stages alone
//!   consumers                 | quantise x | products .. | look .. quantise | products .. | look .. sum up |
//!   finishers             rows of tiles      | .. activate |                        | .. store |   ^
//!                                                 |          ^                         |         |
//!   memory                                        +----------+ activated               +---------+ products
//! ```
//!
//! # Rows, tiles, units
//! A *pair* is a token and one of its slots: pair `token * top_k + slot`. Its row of the intermediate and of
//! the products has that number: nothing is permuted. A *tile* is up to eight pairs of one expert. Ids that
//! are negative, past the last expert, or of another rank are in no tile. Every block builds the list of
//! tiles for itself ([`tiles`]).
//!
//! A *unit* is 16 to 128 rows of one expert's matrix by all of K, or in GEMM 2 by a part of K. It consists of
//! two halves of rows, gate and up of the same columns in GEMM 1, neighbours in GEMM 2:
//!
//! ```text
//!   units of GEMM 1    | tile 0: columns 0, 1, 2, .. | tile 1: columns 0, 1, .. | ..
//!   blocks             | block 0 | block 1 | block 2 | ..           where they are dealt in runs ([`queue`])
//! ```
//!
//! A stage has up to `stage_k` bytes of K of these rows, and beside it are their scales. How the rows lie
//! there, which is what the two kernels differ in, is drawn in [`layout`].
//!
//! # Handing over
//! Through memory that is empty when a launch begins, word by word: a value is its own flag ([`control`]).
//!
//! - *GEMM 1 to 2.* Activated values, f32. A block that begins a tile in GEMM 2 loads the tile's rows until
//!   all of them are there, and quantises them for itself. So a scale over a whole row costs no more than one
//!   over 128 columns, and no block waits for blocks of other experts.
//! - *GEMM 2 to the output.* Products, f32. Every block sums up a share of the output's columns, slot by
//!   slot: always in the same order.
//!
//! Blocks wait for each other, so all must be resident: the launch is cooperative. Nobody waits in GEMM 1,
//! and in GEMM 2 for GEMM 1 alone, so that all values that are waited for get there.
//!
//! # The control words
//! They are zero before the first launch, and each launch leaves them ready for the next ([`control`]). A
//! launch that has begun ends, or its context is lost and the words with it.
//!
//! # Products
//! Rows of weights are their M, input rows their N: in GEMM 1 one for each token, in GEMM 2 the tile's. Of
//! packed weights `wgmma` reads e4m3 from the stages; others are converted to f16 for `mma.sync`. Sums are
//! folded into f32 registers every 128 of K with the scales that change there ([`multiply`]).
//!
//! # Loops
//! `ptxas` leaves them rolled (`unroll = never`). Nearly all that it would unroll copy inputs, clear memory
//! or list tiles, which a block does once, and the driver would compile all of that before the first launch.
//!
//! # Contract (checked by the host before the launch)
//! Arguments are as [`FewTokens`] and [`Projection`] say. The grid is at most what the device holds at once,
//! launched cooperatively and without overlap. The control words are in use by this launch alone.

mod control;
mod inputs;
mod layout;
mod memory;
mod multiply;
mod produce;
mod queue;
mod store;
mod sum_up;
mod tiles;

use cuda_std::code::{Code, Flag};
use cuda_std::warp::{FULL_MASK, shfl_idx};
use cuda_std::{arguments, host, kernel, sync, thread};

use crate::abi::{AScaleKind, ActivationFunction, BScaleKind, OutType};
use crate::gemm::hopper::ring::Position;
use inputs::Inputs;
use layout::{Layout, Packed, Rows};
use memory::Memory;
use produce::Source;
use queue::{Unit, Units};
use tiles::NO_TILE;

/// Warps that multiply.
const CONSUMER_WARPS: u32 = 16;
/// Threads that multiply.
const CONSUMERS: u32 = 32 * CONSUMER_WARPS;
/// The first thread of those that finish units, behind the producer warp.
const FIRST_FINISHER: u32 = CONSUMERS + 32;
/// Threads that finish units.
const FINISHERS: u32 = 96;
/// Threads of a block.
const THREADS: u32 = FIRST_FINISHER + FINISHERS;
/// The named barrier of the consumers; [`multiply`] has the next four.
const CONSUMER_BARRIER: u32 = 1;
/// The named barrier at which the consumers wait for the producer's tables, and for the first unit in the
/// queue.
const UNIT_BARRIER: u32 = 6;
/// The named barrier at which those who finish units wait for the producer's tables.
const TILES_BARRIER: u32 = 7;
/// The named barrier at which the consumers wait for the rows of tiles, which those who finish units find.
const ROWS_BARRIER: u32 = 8;

/// Most pairs of a token and a slot.
#[host]
pub const FEW_MOST_PAIRS: u32 = 128;
/// Most rows of a tile.
#[host]
pub const FEW_TILE_ROWS: u32 = 8;
/// Bytes of weights in a stage, at most.
#[host]
pub const FEW_STAGE_BYTES: u32 = 32 * 1024;
/// Bytes of K in a stage, at most.
#[host]
pub const FEW_STAGE_K: u32 = 2048;

/// What the hidden states are.
#[host]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HiddenType {
    /// bf16.
    Bf16 = 0,
    /// f16.
    F16 = 1,
    /// e4m3 with scales.
    E4m3 = 2,
}

/// One of the two matrices of an expert, and what its units are.
#[arguments]
pub struct Projection {
    /// e4m3 `[local experts, rows, k]`, 16-byte aligned; packed, each of whose rows ends with zeros up to a
    /// multiple of 128.
    pub weights: *const u8,
    /// Their scales, as many as the kind says.
    pub weight_scales: *const f32,
    /// The scale of all inputs, where one is given.
    pub given_scale: *const f32,
    /// Which scales the weights have.
    pub weight_scale_kind: Code<crate::abi::BScaleKind>,
    /// Which scales the inputs get.
    pub input_scale_kind: Code<crate::abi::AScaleKind>,
    /// K, a multiple of 64; of packed weights of 16.
    pub k: u32,
    /// Rows of an expert's matrix.
    pub rows: u32,
    /// Rows of half a unit: 8, 16, 32 or 64.
    pub half_rows: u32,
    /// Bytes of K in a stage, a multiple of 128, at most `FEW_STAGE_K`: twice `half_rows` of them, or of K
    /// where that is less, fit into a stage. Of packed weights they fill it.
    pub stage_k: u32,
    /// Rows from the first half of a unit to its second.
    pub half_distance: u32,
    /// Rows from a unit to the next.
    pub stride: u32,
    /// Parts that K is cut into, each of which is a unit of its own.
    pub parts: u32,
    /// Units of a tile.
    pub units: u32,
    /// Bytes from an input row in shared memory to the next: at least K, a multiple of 16. For packed weights
    /// those from 16 columns of all rows to the next 16: 16 for each row, or for more.
    pub input_pitch: u32,
    /// Which blocks work on which.
    pub dealing: Code<crate::few_tokens::queue::Dealing>,
}

/// Arguments of `few_tokens` and of those for packed weights.
#[arguments]
pub struct FewTokens {
    /// `[tokens, H]`, of the type that `hidden_type` says; 16-byte aligned.
    pub hidden: *const u8,
    /// f32, the scales of hidden states in e4m3, where they have some.
    pub hidden_scales: *const f32,
    /// Where they are.
    pub hidden_scale_strides: crate::abi::Strides,
    /// i32 `[tokens, top_k]`.
    pub topk_ids: *const i32,
    /// f32 `[tokens, top_k]`.
    pub topk_weights: *const f32,
    /// i32 `[experts]`, -1 for experts of other ranks; null where all are here.
    pub expert_map: *const i32,
    /// w13: K is H, an expert has 2I rows.
    pub first: crate::few_tokens::Projection,
    /// w2: K is I, an expert has H rows.
    pub second: crate::few_tokens::Projection,
    /// i64 `[local experts + 1]`: pairs of the experts before each.
    pub expert_offsets: *mut i64,
    /// `FEW_CONTROL_WORDS` words and two sets: zeros, or as the last launch left them; of zeros the second
    /// set may be missing. 16-byte aligned.
    pub control: *mut u32,
    /// Words of a set: at least those of activated values and products, and a multiple of 4.
    pub set_words: u32,
    /// `[tokens, H]`, of the type that `out_type` says: bf16, f16 or f32; 16-byte aligned.
    pub out: *mut u8,
    /// T. With `top_k`, at most `FEW_MOST_PAIRS` pairs.
    pub tokens: u32,
    /// k.
    pub top_k: u32,
    /// E, of all ranks.
    pub experts: u32,
    /// E_loc.
    pub local_experts: u32,
    /// Rows of a tile, at most `FEW_TILE_ROWS`.
    pub tile_rows: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Bytes of shared memory for input rows, as many as those of GEMM 1 or of a tile take. GEMM 1 has one
    /// for each token, or pair where its weight multiplies its input: up to eight. A multiple of 16.
    pub input_bytes: u32,
    /// What the hidden states are.
    pub hidden_type: Code<crate::few_tokens::HiddenType>,
    /// What the output is.
    pub out_type: Code<crate::abi::OutType>,
    /// What gate is at most, and the magnitude of up; infinite for no limit.
    pub limit: f32,
    /// What joins gate and up.
    pub function: Code<crate::abi::ActivationFunction>,
    /// Whether a pair's weight multiplies its input, and not its output.
    pub weighs_input: Flag,
    /// Whether the result is added to the output.
    pub adds: Flag,
}

/// The layer behind the router, of weights as a checkpoint has them.
///
/// # Safety
/// The contract in the module documentation.
#[kernel(threads = THREADS, unroll = never)]
pub unsafe fn few_tokens(arguments: FewTokens) {
    // SAFETY: the kernel's contract.
    unsafe { run::<Rows>(&arguments) }
}

/// The layer behind the router, of packed weights.
///
/// # Safety
/// The contract in the module documentation.
#[kernel(threads = THREADS, wgmma_n = [8, 16, 32], unroll = never)]
pub unsafe fn few_tokens_packed(arguments: FewTokens) {
    // SAFETY: the kernel's contract.
    unsafe { run::<Packed>(&arguments) }
}

/// As [`few_tokens_packed`], of [usual](FewTokens::usual) layers with block scales.
///
/// # Safety
/// The contract in the module documentation; the arguments are such a layer's.
#[kernel(threads = THREADS, wgmma_n = [8, 16, 32], unroll = never)]
pub unsafe fn few_tokens_packed_block(arguments: FewTokens) {
    let scales = (BScaleKind::Block, AScaleKind::Group);
    // SAFETY: the kernel's contract.
    unsafe { run::<Packed>(&arguments.usual(scales, scales)) }
}

/// As [`few_tokens_packed`], of [usual](FewTokens::usual) layers with scales of tokens and channels.
///
/// # Safety
/// The contract in the module documentation; the arguments are such a layer's.
#[kernel(threads = THREADS, wgmma_n = [8, 16, 32], unroll = never)]
pub unsafe fn few_tokens_packed_token(arguments: FewTokens) {
    let [first, second] = [AScaleKind::Row, AScaleKind::Group].map(|inputs| (BScaleKind::Channel, inputs));
    // SAFETY: the kernel's contract.
    unsafe { run::<Packed>(&arguments.usual(first, second)) }
}

impl FewTokens {
    /// The arguments of a usual layer, of which these are known when the kernel is compiled: hidden states
    /// and output in bf16, silu without a limit, weights that multiply outputs, nothing to add to; and the
    /// scales of weights and inputs of either matrix. The driver has less to compile, and a block less to
    /// look up. The host has the same list (`entry` in `host/ops/few_tokens.rs`).
    #[inline(always)]
    fn usual(self, first: (BScaleKind, AScaleKind), second: (BScaleKind, AScaleKind)) -> Self {
        let of = #[inline(always)]
        |projection, (weights, inputs): (BScaleKind, AScaleKind)| Projection {
            weight_scale_kind: Code::from_raw(weights as u32),
            input_scale_kind: Code::from_raw(inputs as u32),
            ..projection
        };
        Self {
            first: of(self.first, first),
            second: of(self.second, second),
            hidden_type: Code::from_raw(HiddenType::Bf16 as u32),
            out_type: Code::from_raw(OutType::Bf16 as u32),
            limit: f32::INFINITY,
            function: Code::from_raw(ActivationFunction::Silu as u32),
            weighs_input: Flag::CLEAR,
            adds: Flag::CLEAR,
            ..self
        }
    }
}

/// The body of all: the roles of the warps.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn run<L: Layout>(arguments: &FewTokens) {
    let FewTokens { first, second, .. } = *arguments;
    let memory = Memory::new(arguments);
    // SAFETY: the kernel's contract. The three roles take different branches for good, and each executes its
    // collective operations with whole warps: branches depend on the tiles, the block and the numbers of
    // units, which a lane that draws them shows to the others.
    // Stages pass between the roles by the ring's barriers alone.
    unsafe {
        layout::begin::<L>(arguments, &memory);
        // The same in all lanes; the shuffle says so to ptxas, which else has code for lanes that come to
        // votes and shuffles one by one.
        let warp = shfl_idx(FULL_MASK, thread::warp_id(), 0);
        if warp == CONSUMER_WARPS {
            let tiles = tiles::build(arguments, &memory);
            // The producer needs nothing of the others, who may still wait for memory.
            sync::named_arrive(TILES_BARRIER, FINISHERS + 32);
            let (mut units, mut position, mut is_begun) = (Units::new(tiles), Position::START, false);
            let (mut source, mut is_first) = (Source::new::<L>(&first), true);
            loop {
                let unit = units.put(arguments, &memory);
                if !is_begun {
                    sync::named_arrive(UNIT_BARRIER, CONSUMERS + 32);
                }
                let Some(unit) = unit else { break };
                is_begun = true;
                let drawn = units.draw(arguments, &memory);
                if unit.is_first != is_first {
                    (source, is_first) = (Source::new::<L>(&second), false);
                }
                let expert = memory.tile_expert(unit.tile);
                position = produce::fill::<L>(&source, &unit, expert, &memory, position);
                units.go_on(drawn);
            }
            if is_begun {
                produce::fill_nothing(&memory, position);
            }
            control::end(arguments, &memory);
            tiles::store_offsets(arguments, &memory);
            return;
        }

        if warp > CONSUMER_WARPS {
            sync::named(TILES_BARRIER, FINISHERS + 32);
            tiles::place_pairs(arguments, &memory, warp);
            // They themselves see each other's with the first unit, or the end.
            sync::named_arrive(ROWS_BARRIER, CONSUMERS + FINISHERS);
            let (set, mut turn) = (control::of_launch(arguments, &memory), 0);
            loop {
                multiply::wait_done(turn);
                let Some(unit) = queue::unit(&memory, turn) else { return };
                let projection = &if unit.is_first { first } else { second };
                store::store::<L>(arguments, projection, unit.is_first, &set, &unit, &memory, turn % 2);
                multiply::finished(turn);
                turn += 1;
            }
        }

        inputs::begin::<L>(arguments, &memory);
        // Two, and not one of all threads: the producer may be gone before the others get there.
        sync::named(ROWS_BARRIER, CONSUMERS + FINISHERS);
        sync::named(UNIT_BARRIER, CONSUMERS + 32);
        let set = control::of_launch(arguments, &memory);
        let (mut position, mut turn) = (Position::START, 0);
        let (mut of, mut rows, mut quantised) = ((true, NO_TILE), 0, 0);
        loop {
            if turn > 0 {
                // Its entry in the queue comes with its first stage.
                memory.wait_full(position);
            }
            let Some(unit) = queue::unit(&memory, turn) else { break };
            let Unit { is_first, tile, .. } = unit;
            let projection = &if is_first { first } else { second };
            if of != (is_first, tile) {
                of = (is_first, tile);
                let inputs = Inputs::new(arguments, &memory, projection, &set, &unit, &mut quantised);
                if inputs.rows != 0 {
                    inputs.take::<L>();
                }
                rows = if is_first { inputs::first_rows(arguments) } else { inputs.rows };
            }
            position = multiply::unit::<L>(projection, &unit, rows, &memory, position, turn);
            turn += 1;
        }
        multiply::end(turn);

        sum_up::sum_up(arguments, &set, &memory);
    }
}
