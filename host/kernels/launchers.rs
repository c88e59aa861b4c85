/// Rows of a block at a time, a warp each, 256 columns at a time.
pub const ABSMAX_ROWS_PER_BLOCK: u32 = 16;
/// Threads of a block, a token each at a time.
pub const APPEND_SHARED_THREADS: u32 = 256;
/// Which scales A has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AScaleKind {
    /// One for the call.
    Call = 0,
    /// One for each row.
    Row = 1,
    /// One for each row and 128 of K.
    Group = 2,
}
/// What joins gate and up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum ActivationFunction {
    /// `up * gate / (1 + e^-gate)`.
    #[default]
    Silu = 0,
    /// `up * gate * Phi(gate)`, Phi the normal distribution: the gelu defined by erf.
    Gelu = 1,
    /// `up * 0.5 * gate * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3)))`.
    GeluTanh = 2,
    /// gpt-oss: `(up + 1) * gate / (1 + e^(-1.702 gate))`, within a limit of 7.
    SwigluOai = 3,
    /// `up * max(gate, 0)`: where up is gate, relu squared.
    Relu2 = 4,
}
/// Which scales B has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BScaleKind {
    /// One for each expert.
    Expert = 0,
    /// One for each column of D (row of B).
    Channel = 1,
    /// One for each block of 128 x 128.
    Block = 2,
}
/// Rows of B in a TMA box.
pub const B_BOX_ROWS: u32 = 128;
/// What N is a multiple of: 16 bytes of D in 16 bits.
pub const COLUMNS_MULTIPLE: u32 = 8;
/// Bytes that operands are copied by, at least. Matrices begin at multiples of it, and so does every row: K is
/// a multiple.
pub const COPY_BYTES: u32 = 16;
/// Who works on which units of a GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Dealing {
    /// Equal runs of neighbours, one for each block.
    Runs = 0,
    /// As blocks ask for them, from a counter, but for the first of each.
    Drawn = 1,
    /// Three quarters in runs, the last quarter drawn; all in runs where blocks have fewer than two each.
    RunsThenDrawn = 2,
}
/// Words before the sets.
pub const FEW_CONTROL_WORDS: u32 = 32;
/// Most pairs of a token and a slot.
pub const FEW_MOST_PAIRS: u32 = 128;
/// Most stages of the ring.
pub const FEW_MOST_STAGES: u32 = 6;
/// Bytes of weights in a stage, at most.
pub const FEW_STAGE_BYTES: u32 = 32768;
/// Bytes of K in a stage, at most.
pub const FEW_STAGE_K: u32 = 2048;
/// Bytes of shared memory besides stages and inputs.
pub const FEW_TABLE_BYTES: u32 = 26624;
/// Most rows of a tile.
pub const FEW_TILE_ROWS: u32 = 8;
/// The entry of a schedule's first tile: behind the header and four counters to an entry.
pub const FIRST_TILE: u32 = 65;
/// Columns of the intermediate in an item of a gated kernel: half of the tile's are gate, half are up.
pub const GATED_COLUMNS: u32 = 128;
/// A GEMM's tile and the ring of stages that brings its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmTile {
    /// Most rows of A.
    pub rows: u32,
    /// Columns of D.
    pub columns: u32,
    /// Stages of the ring, one slab of K each.
    pub stages: u32,
    /// Bytes of A and B in a stage.
    pub operand_bytes: u32,
    /// Rows of A in a TMA box; 0 in kernels that have none.
    pub a_box_rows: u32,
    /// Bytes of global memory that a block needs for sums of items that were cut; 0 where none are.
    pub partial_bytes: u32,
}
/// What the hidden states are.
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
/// Of `router_logits_16x8`.
pub const LOGITS_16X8: LogitsTile = LogitsTile {
    tokens: 16,
    experts: 8,
};
/// Of `router_logits_64x64`.
pub const LOGITS_64X64: LogitsTile = LogitsTile {
    tokens: 64,
    experts: 64,
};
/// Of `router_logits_few`.
pub const LOGITS_FEW: LogitsTile = LogitsTile {
    tokens: 8,
    experts: 1,
};
/// What a block of a kernel here computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsTile {
    /// Tokens.
    pub tokens: u32,
    /// Experts.
    pub experts: u32,
}
/// Up to 16 rows.
pub const NARROW_16: GemmTile = GemmTile {
    rows: 16,
    columns: 256,
    stages: 4,
    operand_bytes: 34816,
    a_box_rows: 8,
    partial_bytes: 32768,
};
/// Up to 32 rows: products of 8, 16 or 32, by the rows that a tile has.
pub const NARROW_32: GemmTile = GemmTile {
    rows: 32,
    columns: 256,
    stages: 4,
    operand_bytes: 36864,
    a_box_rows: 8,
    partial_bytes: 65536,
};
/// Up to 8 rows.
pub const NARROW_8: GemmTile = GemmTile {
    rows: 8,
    columns: 256,
    stages: 4,
    operand_bytes: 33792,
    a_box_rows: 8,
    partial_bytes: 16384,
};
/// What becomes of D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OutType {
    /// Stored as bf16.
    Bf16 = 0,
    /// Stored as f16.
    F16 = 1,
    /// Stored as f32.
    F32 = 2,
    /// Added to the sums of its tokens, f32. On Hopper alone.
    TokenSums = 3,
}
/// Most rows of a thread of the sort.
pub const PERMUTE_MOST_STEPS: u32 = 4;
/// Most warps of a block of the sort that have rows.
pub const PERMUTE_MOST_WARPS: u32 = 16;
/// Destinations of a block, a warp each.
pub const PERMUTE_ROWS_PER_BLOCK: u32 = 8;
/// 128 x 128: for many rows per expert.
pub const PORTABLE_128: GemmTile = GemmTile {
    rows: 128,
    columns: 128,
    stages: 3,
    operand_bytes: 32768,
    a_box_rows: 0,
    partial_bytes: 0,
};
/// 16 x 128: for a few rows per expert, where streaming the weights is the work.
pub const PORTABLE_16: GemmTile = GemmTile {
    rows: 16,
    columns: 128,
    stages: 5,
    operand_bytes: 18432,
    a_box_rows: 0,
    partial_bytes: 0,
};
/// 64 x 128.
pub const PORTABLE_64: GemmTile = GemmTile {
    rows: 64,
    columns: 128,
    stages: 4,
    operand_bytes: 24576,
    a_box_rows: 0,
    partial_bytes: 0,
};
/// Experts of a block of the kernel `problem_sizes`, a thread each.
pub const PROBLEM_SIZES_EXPERTS: u32 = 128;
/// Bytes of a copy.
pub const READ_STREAM_RUN: u32 = 32768;
/// Threads per block.
pub const ROUTING_THREADS: u32 = 256;
/// Columns of D, rows of B, that share a block scale.
pub const SCALE_BLOCK: u32 = 128;
/// Counters in a schedule: u32, one for each block of a GEMM's grid.
pub const SCHEDULE_COUNTERS: u32 = 256;
/// Bytes of K that a GEMM has in shared memory together: a row of a stage, and the width of a scale group or
/// block.
pub const SLAB: u32 = 128;
/// Rows that a box has besides a tile's: up to three before it, and as many behind it that the size is one.
pub const SLAB_SCALES_EXTRA_ROWS: u32 = 4;
/// Columns that share a scale of activations where it is not [`SLAB`], for other programs.
pub const SMALL_GROUP: u32 = 64;
/// Bytes of dynamic shared memory for the values of a span.
pub const SPAN_BYTES: u32 = 8192;
/// Columns that a block covers with one chunk per thread.
pub const SPAN_COLUMNS: u32 = 2048;
/// Tokens that a block of the top-k kernels handles, a warp each.
pub const TOP_K_TOKENS_PER_BLOCK: u32 = 4;
/// Columns that a warp covers at a time: 32 chunks.
pub const WARP_COLUMNS: u32 = 256;
/// Rows of a block at a time, a warp each, of the kernels whose warps are independent.
pub const WARP_ROWS_PER_BLOCK: u32 = 4;
/// Threads of a warp.
pub const WARP_THREADS: u32 = 32;
/// Up to 128 rows. Of A a block asks for half of them, on behalf of both blocks of a cluster where they share
/// it.
pub const WIDE: GemmTile = GemmTile {
    rows: 128,
    columns: 256,
    stages: 4,
    operand_bytes: 49152,
    a_box_rows: 64,
    partial_bytes: 0,
};
/// Bytes of shared memory behind the inputs: for scales of `k` columns, the larger K, and for what products
/// of packed weights read past the end of inputs of up to `pitch` bytes for 16 columns; 0 for others.
pub const fn few_input_end_bytes(k: usize, pitch: usize) -> usize {
    let strided = 3 * 8 * pitch + 128;
    let past_end = match pitch {
        0 => 0,
        _ if strided > 1024 => strided,
        _ => 1024,
    };
    let scales = k.div_ceil(128) * 32;
    if scales > past_end { scales } else { past_end }
}
/// Bytes of shared memory for the tables of a sort whose blocks have `ranking_warps` warps with rows.
pub const fn permute_table_bytes(ranking_warps: usize, local_experts: usize) -> usize {
    ((ranking_warps.div_ceil(2) + 2) * (local_experts + 1) * 4).next_multiple_of(16)
}
/// Bytes of dynamic shared memory of a top-k kernel that keeps `words` numbers of a token.
pub const fn top_k_shared_bytes(words: usize) -> usize {
    words * 4 * TOP_K_TOKENS_PER_BLOCK as usize
}
/// What all of these kernels read and write.
#[derive(Clone, Copy, Debug)]
pub struct Activate {
    /// `[rows, intermediate + gating.up]`, of the type that the kernel's name says.
    pub x: DevicePtr<u8>,
    /// i64: rows from it on are neither read nor written; null for no limit.
    pub valid_rows: DevicePtr<i64>,
    /// e4m3 `[rows, intermediate]`.
    pub q: DevicePtr<u8>,
    /// Rows of `x` and `q`.
    pub rows: u32,
    /// I.
    pub intermediate: u32,
    /// What joins gate and up.
    pub gating: Gating,
}
/// How gate and up become one value.
#[derive(Clone, Copy, Debug)]
pub struct Gating {
    /// Columns from a gate to its up: I; 0 where experts have no gate, and up takes its place.
    pub up: u32,
    /// What gate is at most, and the magnitude of up; infinite for no limit.
    pub limit: f32,
    /// What joins them.
    pub function: ActivationFunction,
}
/// Where scales per row and group of columns go.
#[derive(Clone, Copy, Debug)]
pub struct GroupScalesOut {
    /// f32, of every destination row.
    pub scales: DevicePtr<f32>,
    /// Where in it.
    pub strides: Strides,
    /// Columns that share a scale: 64 or 128.
    pub group_size: u32,
}
/// Output lists of the sort.
#[derive(Clone, Copy, Debug)]
pub struct PermutedRows {
    /// i32 `[capacity]`, destination to expanded row.
    pub sorted_rows: DevicePtr<i32>,
    /// i32 `[rows]`, expanded row to destination.
    pub inverse: DevicePtr<i32>,
    /// i32 `[capacity]`, destination to local expert; null unless wanted.
    pub row_experts: DevicePtr<i32>,
    /// P, the length of `sorted_rows` and `row_experts`: at least the padded number of rows.
    pub capacity: u32,
}
/// Where the problem sizes go.
#[derive(Clone, Copy, Debug)]
pub struct ProblemSizes {
    /// i32 `[local_experts, 3]`: `(m, 2I, H)`; null if not wanted.
    pub sizes1: DevicePtr<i32>,
    /// i32 `[local_experts, 3]`: `(m, H, I)`; null if not wanted.
    pub sizes2: DevicePtr<i32>,
    /// H.
    pub hidden: u32,
    /// I.
    pub intermediate: u32,
    /// The weights take the place of the rows: `(n, m, k)`.
    pub swap_operands: bool,
}
/// One of the two matrices of an expert, and what its units are.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// e4m3 `[local experts, rows, k]`, 16-byte aligned; packed, each of whose rows ends with zeros up to a
    /// multiple of 128.
    pub weights: DevicePtr<u8>,
    /// Their scales, as many as the kind says.
    pub weight_scales: DevicePtr<f32>,
    /// The scale of all inputs, where one is given.
    pub given_scale: DevicePtr<f32>,
    /// Which scales the weights have.
    pub weight_scale_kind: BScaleKind,
    /// Which scales the inputs get.
    pub input_scale_kind: AScaleKind,
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
    pub dealing: Dealing,
}
/// What all of these kernels read, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    /// `[rows / slots, columns]`, of the type that the kernel's name says.
    pub x: DevicePtr<u8>,
    /// f32 `[rows]`, multiplies each row before anything else; null for none.
    pub row_weight: DevicePtr<f32>,
    /// Rows to quantise.
    pub rows: u32,
    /// How many of them a row of `x` makes, one after the other; more than 1 where they have weights of their
    /// own.
    pub slots: u32,
    /// Columns of `x`.
    pub columns: u32,
    /// Where the rows go.
    pub targets: RowTargets,
}
/// What all of these kernels write besides scales.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows {
    /// e4m3: `columns` bytes for every destination, or, where rows stay, for every row.
    pub q: DevicePtr<u8>,
    /// f32 `[rows, columns]`, becomes 0; null for none.
    pub cleared: DevicePtr<f32>,
}
/// Where activated and quantised values go.
#[derive(Clone, Copy, Debug)]
pub struct Requantization {
    /// e4m3 `[P, intermediate]`, 16-byte aligned.
    pub q: DevicePtr<u8>,
    /// f32, the given scale of all values; null where each row has a scale per 128 columns.
    pub given_scale: DevicePtr<f32>,
    /// f32, the scales per row and 128 columns; null where one is given.
    pub scales: DevicePtr<f32>,
    /// Where in `scales`.
    pub strides: Strides,
    /// What joins gate and up; rows of B for its columns.
    pub gating: Gating,
}
/// What decides the key of every expanded row.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// `[rows]`, global expert ids; any value is legal.
    pub topk_ids: DevicePtr<i32>,
    /// `[experts]`, global to local expert, -1 = not on this rank; null if ids are local already.
    pub expert_map: DevicePtr<i32>,
    /// R = tokens * top_k.
    pub rows: u32,
    /// Global experts, at least 1; equal to `local_experts` without a map.
    pub experts: u32,
    /// Experts of this rank.
    pub local_experts: u32,
}
/// Where rows go, as the permutation says. All null where each goes to its own place.
#[derive(Clone, Copy, Debug)]
pub struct RowTargets {
    /// i32 `[rows, top_k]`; null where each row goes to its own place.
    pub inverse: DevicePtr<i32>,
    /// i64: destinations from it on are skipped; null for no limit.
    pub valid_rows: DevicePtr<i64>,
    /// i32 `[capacity]`, which marks padding rows; null where there is nothing to write to them.
    pub sorted_rows: DevicePtr<i32>,
    /// Destinations of a row.
    pub top_k: u32,
    /// Destinations that there are.
    pub capacity: u32,
    /// Whether row i of `q` is that of row i, and only its scales go to the destinations and to padding rows.
    pub rows_stay: bool,
}
/// The scales of a GEMM's operands, and what is added to scaled sums.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Those of A, as many as `a_kind` says.
    pub a: DevicePtr<f32>,
    /// Those of B, as many as `b_kind` says.
    pub b: DevicePtr<f32>,
    /// f32 `[experts, n]`, n being the rows of B of an expert; null for none.
    pub bias: DevicePtr<f32>,
    /// Which scales A has.
    pub a_kind: AScaleKind,
    /// Which scales B has.
    pub b_kind: BScaleKind,
}
/// Where a scale is: that of row r and group g is element `r * row + g * group`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    /// Elements from a row to the next.
    pub row: u64,
    /// Elements from a group to the next.
    pub group: u64,
}
/// Where the tile schedule goes, and what tiles it has. A thread to an expert writes it, once a scan over the
/// experts' tiles says where each begins.
#[derive(Clone, Copy, Debug)]
pub struct TileSchedule {
    /// `[FIRST_TILE + tiles]`, 16-byte aligned; null if not wanted.
    pub entries: DevicePtr<[u32; 4]>,
    /// Most rows of a tile, at least 1.
    pub block_m: u32,
}
/// A in the order of the tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenRows {
    /// e4m3 `[tokens, k]`, 16-byte aligned, of fewer than 2^32 chunks of 16 bytes.
    pub a: DevicePtr<u8>,
    /// i32 `[P]`, permuted row to expanded row.
    pub sorted_rows: DevicePtr<i32>,
    /// T.
    pub tokens: u32,
    /// Slots of a token, at least 1.
    pub top_k: u32,
    /// Where the scale of (token, slab) is, if A's scales change along K.
    pub scale_strides: Strides,
}
/// Which token's sum a row of D belongs to. Unused where D is written.
#[derive(Clone, Copy, Debug)]
pub struct TokenSums {
    /// i32 `[P]`, row of D to slot; `slots` or more where the row belongs to no token.
    pub sorted_rows: DevicePtr<i32>,
    /// f32 `[slots]`; null where all weights are 1.
    pub topk_weights: DevicePtr<f32>,
    /// Tokens times `top_k`, at least 1.
    pub slots: u32,
    /// Slots of a token, at least 1.
    pub top_k: u32,
}
/// Arguments of the kernels `absmax_*`.
#[derive(Clone, Copy, Debug)]
pub struct Absmax {
    /// `[rows, columns]`, of the type that the kernel's name says.
    pub x: DevicePtr<u8>,
    /// f32 `[rows]`, multiplies each row; null for none.
    pub row_weight: DevicePtr<f32>,
    /// Rows of `x`.
    pub rows: u32,
    /// Columns of `x`.
    pub columns: u32,
    /// Where the rows go: those that go nowhere do not count.
    pub targets: RowTargets,
    /// f32, one per block of the grid.
    pub partials: DevicePtr<f32>,
}
unsafe impl Arguments for Absmax {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.row_weight).cast_mut().cast(),
                ::core::ptr::from_ref(&self.targets.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.targets.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.targets.sorted_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.partials).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&self.targets.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.targets.capacity).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.targets.rows_stay))
                    .cast_mut()
                    .cast(),
            ],
        )
    }
}
/// Arguments of the kernels `activation_group_*`.
#[derive(Clone, Copy, Debug)]
pub struct ActivateGroup {
    /// What is read and written.
    pub common: Activate,
    /// Where the scales go: the groups of every row.
    pub scales: GroupScalesOut,
}
unsafe impl Arguments for ActivateGroup {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.function).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.group_size).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `activation_plain`.
#[derive(Clone, Copy, Debug)]
pub struct ActivatePlain {
    /// f32 `[rows, intermediate + gating.up]`.
    pub x: DevicePtr<f32>,
    /// f32 `[rows]`: each row is multiplied by the sigmoid of its own; null for none.
    pub row_logits: DevicePtr<f32>,
    /// bf16 `[rows, intermediate]`.
    pub out: DevicePtr<half::bf16>,
    /// Rows of `x` and `out`.
    pub rows: u32,
    /// I.
    pub intermediate: u32,
    /// What joins gate and up.
    pub gating: Gating,
}
unsafe impl Arguments for ActivatePlain {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.row_logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.gating.function).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `activation_tensor_*`.
#[derive(Clone, Copy, Debug)]
pub struct ActivateTensor {
    /// What is read and written.
    pub common: Activate,
    /// f32, the scale.
    pub scale: DevicePtr<f32>,
}
unsafe impl Arguments for ActivateTensor {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.function).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `activation_token_*`.
#[derive(Clone, Copy, Debug)]
pub struct ActivateToken {
    /// What is read and written.
    pub common: Activate,
    /// f32 `[rows]`.
    pub scales: DevicePtr<f32>,
    /// Spans of a row that dynamic shared memory holds.
    pub kept_spans: u32,
}
unsafe impl Arguments for ActivateToken {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.gating.function).cast_mut().cast(),
                ::core::ptr::from_ref(&self.kept_spans).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `append_shared`.
#[derive(Clone, Copy, Debug)]
pub struct AppendShared {
    /// i32 `[tokens, top_k]`.
    pub given_ids: DevicePtr<i32>,
    /// f32 `[tokens, top_k]`.
    pub given_weights: DevicePtr<f32>,
    /// f32 `[tokens]`; null where the weight of shared experts is 1.
    pub gate_logits: DevicePtr<f32>,
    /// i32 `[tokens, top_k + shared]`.
    pub topk_ids: DevicePtr<i32>,
    /// f32 `[tokens, top_k + shared]`.
    pub topk_weights: DevicePtr<f32>,
    /// T.
    pub tokens: u32,
    /// E.
    pub experts: u32,
    /// k.
    pub top_k: u32,
    /// Shared experts, at least 1.
    pub shared: u32,
}
unsafe impl Arguments for AppendShared {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.given_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.given_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.gate_logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.shared).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `cast_*`.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// f32 `[rows, columns]`.
    pub x: DevicePtr<f32>,
    /// `[rows, columns]`, of the type that the kernel's name says.
    pub out: DevicePtr<u8>,
    /// Rows of both.
    pub rows: u32,
    /// Columns of both.
    pub columns: u32,
    /// Whether `x` is added to `out`, which is read then.
    pub adds: bool,
}
unsafe impl Arguments for Cast {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.adds)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of `choose_replicas`.
#[derive(Clone, Copy, Debug)]
pub struct ChooseReplicas {
    /// i32 `[slots]`: slot s is of token `s / top_k`, counted over all ranks.
    pub ids: DevicePtr<i32>,
    /// i32 `[slots]`.
    pub out: DevicePtr<i32>,
    /// u32 `[experts + 1]`: the holders of expert e are elements `first[e] .. first[e + 1]` of `holders`.
    pub first: DevicePtr<u32>,
    /// u32: ranks.
    pub holders: DevicePtr<u32>,
    /// R * c * k.
    pub slots: u32,
    /// k, at least 1.
    pub top_k: u32,
    /// c, tokens of a rank, at least 1.
    pub rank_tokens: u32,
    /// E.
    pub experts: u32,
    /// This rank.
    pub rank: u32,
}
unsafe impl Arguments for ChooseReplicas {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first).cast_mut().cast(),
                ::core::ptr::from_ref(&self.holders).cast_mut().cast(),
                ::core::ptr::from_ref(&self.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rank_tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rank).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of `count_rows`.
#[derive(Clone, Copy, Debug)]
pub struct CountRows {
    /// i64 `[experts + 1]`.
    pub offsets: DevicePtr<i64>,
    /// u64 `[experts]`.
    pub counts: DevicePtr<u64>,
    /// E_loc.
    pub experts: u32,
}
unsafe impl Arguments for CountRows {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.counts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of `few_tokens` and of those for packed weights.
#[derive(Clone, Copy, Debug)]
pub struct FewTokens {
    /// `[tokens, H]`, of the type that `hidden_type` says; 16-byte aligned.
    pub hidden: DevicePtr<u8>,
    /// f32, the scales of hidden states in e4m3, where they have some.
    pub hidden_scales: DevicePtr<f32>,
    /// Where they are.
    pub hidden_scale_strides: Strides,
    /// i32 `[tokens, top_k]`.
    pub topk_ids: DevicePtr<i32>,
    /// f32 `[tokens, top_k]`.
    pub topk_weights: DevicePtr<f32>,
    /// i32 `[experts]`, -1 for experts of other ranks; null where all are here.
    pub expert_map: DevicePtr<i32>,
    /// w13: K is H, an expert has 2I rows.
    pub first: Projection,
    /// w2: K is I, an expert has H rows.
    pub second: Projection,
    /// i64 `[local experts + 1]`: pairs of the experts before each.
    pub expert_offsets: DevicePtr<i64>,
    /// `FEW_CONTROL_WORDS` words and two sets: zeros, or as the last launch left them; of zeros the second
    /// set may be missing. 16-byte aligned.
    pub control: DevicePtr<u32>,
    /// Words of a set: at least those of activated values and products, and a multiple of 4.
    pub set_words: u32,
    /// `[tokens, H]`, of the type that `out_type` says: bf16, f16 or f32; 16-byte aligned.
    pub out: DevicePtr<u8>,
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
    pub hidden_type: HiddenType,
    /// What the output is.
    pub out_type: OutType,
    /// What gate is at most, and the magnitude of up; infinite for no limit.
    pub limit: f32,
    /// What joins gate and up.
    pub function: ActivationFunction,
    /// Whether a pair's weight multiplies its input, and not its output.
    pub weighs_input: bool,
    /// Whether the result is added to the output.
    pub adds: bool,
}
unsafe impl Arguments for FewTokens {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.hidden).cast_mut().cast(),
                ::core::ptr::from_ref(&self.hidden_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.hidden_scale_strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.hidden_scale_strides.group)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.expert_map).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.weight_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.given_scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.weight_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.given_scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.expert_offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.control).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.weight_scale_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.input_scale_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.half_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.stage_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.half_distance).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.stride).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.parts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.units).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.input_pitch).cast_mut().cast(),
                ::core::ptr::from_ref(&self.first.dealing).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.weight_scale_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.input_scale_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.half_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.stage_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.half_distance).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.stride).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.parts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.units).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.input_pitch).cast_mut().cast(),
                ::core::ptr::from_ref(&self.second.dealing).cast_mut().cast(),
                ::core::ptr::from_ref(&self.set_words).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.local_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tile_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.stages).cast_mut().cast(),
                ::core::ptr::from_ref(&self.input_bytes).cast_mut().cast(),
                ::core::ptr::from_ref(&self.hidden_type).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out_type).cast_mut().cast(),
                ::core::ptr::from_ref(&self.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.function).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.weighs_input)).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.adds)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `grouped_top_k`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedTopK {
    /// What is read and written; `top_k` is at most the number of experts in `topk_group` groups.
    pub of: TopK,
    /// f32 `[experts]`, added to the scores in selection; null for none.
    pub correction_bias: DevicePtr<f32>,
    /// Groups, which divide the experts.
    pub groups: u32,
    /// Groups that experts are picked from, from 1 to all.
    pub topk_group: u32,
    /// Scores are the softmax of the logits, else their sigmoids.
    pub softmax_scores: bool,
    /// Divide the weights by their sum.
    pub renormalize: bool,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}
unsafe impl Arguments for GroupedTopK {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.of.logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.correction_bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.shared).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.of.shared_gate)).cast_mut().cast(),
                ::core::ptr::from_ref(&self.groups).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_group).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.softmax_scores)).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.renormalize)).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routed_scaling_factor).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the Hopper kernels that activate and quantise.
#[derive(Clone, Copy, Debug)]
pub struct HopperGated {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// w13 e4m3 `[experts * (intermediate + up), k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle;
    /// `up` as the gating has it.
    pub b: TensorMap,
    /// As `HopperGemm` has it.
    pub b_packed: DevicePtr<u8>,
    /// As `HopperGemm` has them.
    pub a_slab_scales: TensorMap,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both, and the bias; N is I + up.
    pub scales: Scales,
    /// As `HopperGemm` has it.
    pub schedule: DevicePtr<[u32; 4]>,
    /// As `HopperGemm` has them.
    pub partials: DevicePtr<[f32; 4]>,
    /// Where the results go.
    pub out: Requantization,
    /// As `HopperGemm` has it.
    pub schedule_is_settled: bool,
}
unsafe impl Arguments for HopperGated {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a_slab_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b_packed).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule).cast_mut().cast(),
                ::core::ptr::from_ref(&self.partials).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.given_scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.function).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.schedule_is_settled))
                    .cast_mut()
                    .cast(),
            ],
        )
    }
}
/// Arguments of the kernels that activate and quantise, and gather their rows of A by token.
#[derive(Clone, Copy, Debug)]
pub struct HopperGathered {
    /// Where A is.
    pub a: TokenRows,
    /// As `HopperGated` has it.
    pub b: TensorMap,
    /// As `HopperGated` has it.
    pub b_packed: DevicePtr<u8>,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// As `HopperGated` has them; A's per group are those of the tokens.
    pub scales: Scales,
    /// As `HopperGated` has it.
    pub schedule: DevicePtr<[u32; 4]>,
    /// Where the results go.
    pub out: Requantization,
    /// As `HopperGated` has it.
    pub schedule_is_settled: bool,
}
unsafe impl Arguments for HopperGathered {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.sorted_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.scale_strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.scale_strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b_packed).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.given_scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.up).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.gating.function).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.schedule_is_settled))
                    .cast_mut()
                    .cast(),
            ],
        )
    }
}
/// Arguments of the Hopper kernels that store D, or add it up by token.
#[derive(Clone, Copy, Debug)]
pub struct HopperGemm {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// B e4m3 `[experts * n, k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle.
    pub b: TensorMap,
    /// B packed, as `weights.rs` draws it, 128-byte aligned; null where it is read by the map.
    pub b_packed: DevicePtr<u8>,
    /// The scales of A per group, group-major, in boxes of a tile's rows and some more; not read where there
    /// are none.
    pub a_slab_scales: TensorMap,
    /// Columns of D, a multiple of 8.
    pub n: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both. Those of A per group are not read from here.
    pub scales: Scales,
    /// A tile schedule for the kernel's rows, 16-byte aligned. Its counters are at 0, and are left so.
    pub schedule: DevicePtr<[u32; 4]>,
    /// As many bytes as the tile says, for every block of the grid, 16-byte aligned.
    pub partials: DevicePtr<[f32; 4]>,
    /// D `[P, n]`, or the sums f32 `[tokens, n]`; 16-byte aligned.
    pub out: DevicePtr<u8>,
    /// Whose sums rows are added to; not read where D is stored.
    pub tokens: TokenSums,
    /// What becomes of D.
    pub out_type: OutType,
    /// Whether the schedule's tiles were complete before the kernel's predecessor began.
    pub schedule_is_settled: bool,
    /// Whether D may stay in L2: weights that the wide kernels read once leave it first then.
    pub out_stays: bool,
}
unsafe impl Arguments for HopperGemm {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a_slab_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b_packed).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule).cast_mut().cast(),
                ::core::ptr::from_ref(&self.partials).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens.sorted_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.n).cast_mut().cast(),
                ::core::ptr::from_ref(&self.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out_type).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.schedule_is_settled))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&u32::from(self.out_stays)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of [`pack_weights`].
#[derive(Clone, Copy, Debug)]
pub struct PackWeights {
    /// e4m3 `[experts, rows, k]`, 16-byte aligned.
    pub matrix: DevicePtr<u8>,
    /// The same packed, 16-byte aligned.
    pub packed: DevicePtr<u8>,
    /// Experts.
    pub experts: u32,
    /// Rows of an expert: a multiple of 8, of gated weights of 16.
    pub rows: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// Whether the first half of an expert's rows is gate and the second up.
    pub is_gated: bool,
    /// Whether `matrix` is written, else `packed`.
    pub unpacks: bool,
}
unsafe impl Arguments for PackWeights {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.matrix).cast_mut().cast(),
                ::core::ptr::from_ref(&self.packed).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.k).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.is_gated)).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.unpacks)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `permute`.
#[derive(Clone, Copy, Debug)]
pub struct Permute {
    /// Which rows there are, and where each belongs.
    pub routing: Routing,
    /// i64 `[local_experts + 1]`.
    pub expert_offsets: DevicePtr<i64>,
    /// The lists of rows.
    pub outputs: PermutedRows,
    /// What every expert's region is padded to a multiple of, at least 1.
    pub alignment: u32,
    /// Warps of a block that have rows, 1 to 16.
    pub ranking_warps: u32,
    /// Rows of a thread, 1 to 4.
    pub steps: u32,
    /// Where the problem sizes go.
    pub sizes: ProblemSizes,
    /// Where the tile schedule goes.
    pub schedule: TileSchedule,
}
unsafe impl Arguments for Permute {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.routing.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routing.expert_map).cast_mut().cast(),
                ::core::ptr::from_ref(&self.expert_offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.outputs.sorted_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.outputs.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.outputs.row_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.sizes1).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.sizes2).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule.entries).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routing.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routing.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routing.local_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.outputs.capacity).cast_mut().cast(),
                ::core::ptr::from_ref(&self.alignment).cast_mut().cast(),
                ::core::ptr::from_ref(&self.ranking_warps).cast_mut().cast(),
                ::core::ptr::from_ref(&self.steps).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.hidden).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.sizes.swap_operands))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.schedule.block_m).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `permute_rows`.
#[derive(Clone, Copy, Debug)]
pub struct PermuteRows {
    /// `[tokens, row_bytes]`.
    pub activations: DevicePtr<u8>,
    /// f32, of the tokens; null if there are none.
    pub scales: DevicePtr<f32>,
    /// i32 `[capacity]`, entries in `0..=rows`.
    pub sorted_rows: DevicePtr<i32>,
    /// i64 `[local_experts + 1]`, the last at most `capacity`.
    pub expert_offsets: DevicePtr<i64>,
    /// `[capacity, row_bytes]`.
    pub permuted: DevicePtr<u8>,
    /// f32, of the permuted rows; null if there are none.
    pub permuted_scales: DevicePtr<f32>,
    /// Bytes of a row.
    pub row_bytes: u32,
    /// Scales of a row.
    pub scale_groups: u32,
    /// Where the tokens' scales are.
    pub scale_strides: Strides,
    /// Where those of the permuted rows go.
    pub permuted_scale_strides: Strides,
    /// tokens * top_k.
    pub rows: u32,
    /// Rows of a token.
    pub top_k: u32,
    /// Experts of this rank.
    pub local_experts: u32,
}
unsafe impl Arguments for PermuteRows {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.activations).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sorted_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.expert_offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.permuted).cast_mut().cast(),
                ::core::ptr::from_ref(&self.permuted_scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scale_strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scale_strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.permuted_scale_strides.row)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.permuted_scale_strides.group)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.row_bytes).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scale_groups).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.local_experts).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the portable grouped GEMMs.
#[derive(Clone, Copy, Debug)]
pub struct PortableGemm {
    /// e4m3 `[P, k]`, 16-byte aligned.
    pub a: DevicePtr<u8>,
    /// e4m3 `[experts, n, k]`, 16-byte aligned.
    pub b: DevicePtr<u8>,
    /// Columns of D, a multiple of 8.
    pub n: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both.
    pub scales: Scales,
    /// A tile schedule for the kernel's rows, 16-byte aligned.
    pub schedule: DevicePtr<[u32; 4]>,
    /// D `[P, n]`, 16-byte aligned.
    pub out: DevicePtr<u8>,
    /// Where A's scales per group are.
    pub a_scale_strides: Strides,
    /// bf16, f16 or f32.
    pub out_type: OutType,
}
unsafe impl Arguments for PortableGemm {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a_scale_strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.a_scale_strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.n).cast_mut().cast(),
                ::core::ptr::from_ref(&self.k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.a_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.b_kind).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out_type).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `quantize_group_*`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeGroup {
    /// What is read, and where it goes.
    pub common: Quantize,
    /// What becomes of the rows.
    pub out: QuantizedRows,
    /// Where the scales go: the groups of every destination.
    pub scales: GroupScalesOut,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: bool,
}
unsafe impl Arguments for QuantizeGroup {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.row_weight).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.sorted_rows)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.out.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.cleared).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.strides.row).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales.strides.group).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.capacity).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.common.targets.rows_stay))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.scales.group_size).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.x_is_settled)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `quantize_tensor_*`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeTensor {
    /// What is read, and where it goes.
    pub common: Quantize,
    /// f32, the scale; null where it is that of the largest of `partials`.
    pub scale: DevicePtr<f32>,
    /// f32 `[partial_count]`.
    pub partials: DevicePtr<f32>,
    /// f32, to which the scale goes where it is computed.
    pub scale_out: DevicePtr<f32>,
    /// What becomes of the rows.
    pub out: QuantizedRows,
    /// Partial maxima.
    pub partial_count: u32,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: bool,
}
unsafe impl Arguments for QuantizeTensor {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.row_weight).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.sorted_rows)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.scale).cast_mut().cast(),
                ::core::ptr::from_ref(&self.partials).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scale_out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.cleared).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.capacity).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.common.targets.rows_stay))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.partial_count).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.x_is_settled)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `quantize_token_*`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeToken {
    /// Magnitudes over it count as this, and saturate.
    pub absmax_limit: f32,
    /// What is read, and where it goes.
    pub common: Quantize,
    /// What becomes of the rows.
    pub out: QuantizedRows,
    /// f32, one for every destination.
    pub scales: DevicePtr<f32>,
    /// Spans of a row that dynamic shared memory holds.
    pub kept_spans: u32,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: bool,
}
unsafe impl Arguments for QuantizeToken {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.common.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.row_weight).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.sorted_rows)
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.out.q).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out.cleared).cast_mut().cast(),
                ::core::ptr::from_ref(&self.scales).cast_mut().cast(),
                ::core::ptr::from_ref(&self.absmax_limit).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.common.targets.capacity).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.common.targets.rows_stay))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&self.kept_spans).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.x_is_settled)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of [`read_stream`].
#[derive(Clone, Copy, Debug)]
pub struct ReadStream {
    /// What is read, 16-byte aligned.
    pub from: DevicePtr<u8>,
    /// Runs of [`READ_STREAM_RUN`] bytes.
    pub runs: u32,
}
unsafe impl Arguments for ReadStream {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.from).cast_mut().cast(),
                ::core::ptr::from_ref(&self.runs).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `router_logits_*`.
#[derive(Clone, Copy, Debug)]
pub struct RouterLogits {
    /// `[tokens, hidden]`, f16 where the kernel's name says so, else bf16.
    pub hidden_states: DevicePtr<u8>,
    /// `[planes, experts, hidden]`.
    pub gate: DevicePtr<half::bf16>,
    /// f32 `[experts]`, added to each token's logits; null for none.
    pub bias: DevicePtr<f32>,
    /// `[tokens, experts]`.
    pub logits: DevicePtr<f32>,
    /// T, at least 1.
    pub tokens: u32,
    /// E, at least 1.
    pub experts: u32,
    /// H.
    pub hidden: u32,
    /// Planes of the gate, at least 1.
    pub planes: u32,
}
unsafe impl Arguments for RouterLogits {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.hidden_states).cast_mut().cast(),
                ::core::ptr::from_ref(&self.gate).cast_mut().cast(),
                ::core::ptr::from_ref(&self.bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.hidden).cast_mut().cast(),
                ::core::ptr::from_ref(&self.planes).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `softmax_top_k`.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxTopK {
    /// What is read and written.
    pub of: TopK,
    /// Divide the weights by their sum.
    pub renormalize: bool,
}
unsafe impl Arguments for SoftmaxTopK {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.of.logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.shared).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.of.shared_gate)).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.renormalize)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `sqrt_softplus_top_k`.
#[derive(Clone, Copy, Debug)]
pub struct SqrtSoftplusTopK {
    /// What is read and written.
    pub of: TopK,
    /// f32 `[experts]`, added to the scores in selection; null for none, and where tokens choose by id.
    pub correction_bias: DevicePtr<f32>,
    /// i32 `[vocabulary, top_k]`: the experts of every token id; null where tokens choose by score.
    pub token_experts: DevicePtr<i32>,
    /// i32 `[tokens]`; null where `token_experts` is.
    pub token_ids: DevicePtr<i32>,
    /// V.
    pub vocabulary: u32,
    /// Divide the weights by their sum.
    pub renormalize: bool,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}
unsafe impl Arguments for SqrtSoftplusTopK {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.of.logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.correction_bias).cast_mut().cast(),
                ::core::ptr::from_ref(&self.token_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.token_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.of.shared).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.of.shared_gate)).cast_mut().cast(),
                ::core::ptr::from_ref(&self.vocabulary).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.renormalize)).cast_mut().cast(),
                ::core::ptr::from_ref(&self.routed_scaling_factor).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of `stage_routing`.
#[derive(Clone, Copy, Debug)]
pub struct StageRouting {
    /// i32 `[slots]`; null where ids and weights are in place already.
    pub ids: DevicePtr<i32>,
    /// f32 `[slots]`, likewise.
    pub weights: DevicePtr<f32>,
    /// i32 `[capacity]`.
    pub ids_out: DevicePtr<i32>,
    /// f32 `[capacity]`.
    pub weights_out: DevicePtr<f32>,
    /// T * k.
    pub slots: u32,
    /// c * k, at least `slots`.
    pub capacity: u32,
}
unsafe impl Arguments for StageRouting {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.ids_out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.weights_out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.slots).cast_mut().cast(),
                ::core::ptr::from_ref(&self.capacity).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `sum_ranks_*`.
#[derive(Clone, Copy, Debug)]
pub struct SumRanks {
    /// `[ranks, .., columns]`, of the first type in the kernel's name.
    pub x: DevicePtr<u8>,
    /// `[rows, columns]`, of the last type in the kernel's name.
    pub out: DevicePtr<u8>,
    /// Elements from a rank's rows to the next rank's: a multiple of `columns`.
    pub rank_stride: u64,
    /// Ranks, at least 1.
    pub ranks: u32,
    /// Rows of each rank, and of the output.
    pub rows: u32,
    /// Columns of both.
    pub columns: u32,
}
unsafe impl Arguments for SumRanks {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.x).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rank_stride).cast_mut().cast(),
                ::core::ptr::from_ref(&self.ranks).cast_mut().cast(),
                ::core::ptr::from_ref(&self.rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.columns).cast_mut().cast(),
            ],
        )
    }
}
/// What all top-k kernels read and write.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    /// f32 `[tokens, experts]`; with `shared_gate` `[tokens, experts + 1]`.
    pub logits: DevicePtr<f32>,
    /// i32 `[tokens, top_k + shared]`.
    pub topk_ids: DevicePtr<i32>,
    /// f32 `[tokens, top_k + shared]`.
    pub topk_weights: DevicePtr<f32>,
    /// T.
    pub tokens: u32,
    /// E.
    pub experts: u32,
    /// k, from 1 to E.
    pub top_k: u32,
    /// Slots behind the picked ones, for experts that every token has: `E`, `E + 1`, ..
    pub shared: u32,
    /// Whether their weight is the sigmoid of the logit behind those of the experts; else it is 1.
    pub shared_gate: bool,
}
unsafe impl Arguments for TopK {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.logits).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_ids).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&self.shared).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.shared_gate)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernels `unpermute_*`.
#[derive(Clone, Copy, Debug)]
pub struct Unpermute {
    /// `[.., columns]`, `*valid_rows` rows or more, of the first type in the kernel's name; read, and
    /// discarded with `discards`.
    pub y: DevicePtr<u8>,
    /// i32 `[tokens, top_k]`.
    pub inverse: DevicePtr<i32>,
    /// f32 `[tokens, top_k]`; null where all weights are 1.
    pub topk_weights: DevicePtr<f32>,
    /// i64: rows from it on are skipped.
    pub valid_rows: DevicePtr<i64>,
    /// f32 `[tokens, columns]`, added behind the last slot; null for none.
    pub addend: DevicePtr<f32>,
    /// `[tokens, columns]`, of the last type in the kernel's name.
    pub out: DevicePtr<u8>,
    /// T.
    pub tokens: u32,
    /// H.
    pub columns: u32,
    /// k, at least 1.
    pub top_k: u32,
    /// Whether lists and weights were complete before the kernel's predecessor began.
    pub routing_is_settled: bool,
    /// Whether the sums are added to `out`, which is read then.
    pub adds: bool,
    /// Whether rows of `y` are indeterminate once they have been read. Address and bytes of a row are
    /// multiples of 128 then, and no two slots have one row.
    pub discards: bool,
}
unsafe impl Arguments for Unpermute {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.y).cast_mut().cast(),
                ::core::ptr::from_ref(&self.inverse).cast_mut().cast(),
                ::core::ptr::from_ref(&self.topk_weights).cast_mut().cast(),
                ::core::ptr::from_ref(&self.valid_rows).cast_mut().cast(),
                ::core::ptr::from_ref(&self.addend).cast_mut().cast(),
                ::core::ptr::from_ref(&self.out).cast_mut().cast(),
                ::core::ptr::from_ref(&self.tokens).cast_mut().cast(),
                ::core::ptr::from_ref(&self.columns).cast_mut().cast(),
                ::core::ptr::from_ref(&self.top_k).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.routing_is_settled))
                    .cast_mut()
                    .cast(),
                ::core::ptr::from_ref(&u32::from(self.adds)).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.discards)).cast_mut().cast(),
            ],
        )
    }
}
/// Arguments of the kernel `problem_sizes`.
#[derive(Clone, Copy, Debug)]
pub struct WriteProblemSizes {
    /// i64 `[local_experts + 1]`.
    pub expert_offsets: DevicePtr<i64>,
    /// Experts of this rank.
    pub local_experts: u32,
    /// Where the problem sizes go.
    pub sizes: ProblemSizes,
}
unsafe impl Arguments for WriteProblemSizes {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.expert_offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.sizes1).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.sizes2).cast_mut().cast(),
                ::core::ptr::from_ref(&self.local_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.hidden).cast_mut().cast(),
                ::core::ptr::from_ref(&self.sizes.intermediate).cast_mut().cast(),
                ::core::ptr::from_ref(&u32::from(self.sizes.swap_operands))
                    .cast_mut()
                    .cast(),
            ],
        )
    }
}
/// Arguments of the kernel `tile_schedule`.
#[derive(Clone, Copy, Debug)]
pub struct WriteTileSchedule {
    /// i64 `[local_experts + 1]`, ascending from 0 to less than 2^31.
    pub expert_offsets: DevicePtr<i64>,
    /// Experts of this rank.
    pub local_experts: u32,
    /// Where the schedule goes.
    pub schedule: TileSchedule,
}
unsafe impl Arguments for WriteTileSchedule {
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {
        f(
            &mut [
                ::core::ptr::from_ref(&self.expert_offsets).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule.entries).cast_mut().cast(),
                ::core::ptr::from_ref(&self.local_experts).cast_mut().cast(),
                ::core::ptr::from_ref(&self.schedule.block_m).cast_mut().cast(),
            ],
        )
    }
}
/// Kernel `absmax_bf16`: 512 threads per block, at least 2 blocks per SM.
pub const ABSMAX_BF16: Kernel<Absmax> = unsafe {
    Kernel::new("absmax_bf16", 512, 1, false, 0, module)
};
/// Kernel `absmax_f16`: 512 threads per block, at least 2 blocks per SM.
pub const ABSMAX_F16: Kernel<Absmax> = unsafe {
    Kernel::new("absmax_f16", 512, 1, false, 0, module)
};
/// Kernel `absmax_f32`: 512 threads per block, at least 2 blocks per SM.
pub const ABSMAX_F32: Kernel<Absmax> = unsafe {
    Kernel::new("absmax_f32", 512, 1, false, 0, module)
};
/// Kernel `activation_group_bf16`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_GROUP_BF16: Kernel<ActivateGroup> = unsafe {
    Kernel::new("activation_group_bf16", 128, 1, true, 0, module)
};
/// Kernel `activation_group_f16`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_GROUP_F16: Kernel<ActivateGroup> = unsafe {
    Kernel::new("activation_group_f16", 128, 1, true, 0, module)
};
/// Kernel `activation_group_f32`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_GROUP_F32: Kernel<ActivateGroup> = unsafe {
    Kernel::new("activation_group_f32", 128, 1, true, 0, module)
};
/// Kernel `activation_plain`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_PLAIN: Kernel<ActivatePlain> = unsafe {
    Kernel::new("activation_plain", 128, 1, false, 0, module)
};
/// Kernel `activation_tensor_bf16`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_TENSOR_BF16: Kernel<ActivateTensor> = unsafe {
    Kernel::new("activation_tensor_bf16", 128, 1, true, 0, module)
};
/// Kernel `activation_tensor_f16`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_TENSOR_F16: Kernel<ActivateTensor> = unsafe {
    Kernel::new("activation_tensor_f16", 128, 1, true, 0, module)
};
/// Kernel `activation_tensor_f32`: 128 threads per block, at least 6 blocks per SM.
pub const ACTIVATION_TENSOR_F32: Kernel<ActivateTensor> = unsafe {
    Kernel::new("activation_tensor_f32", 128, 1, true, 0, module)
};
/// Kernel `activation_token_bf16`: 256 threads per block, at least 4 blocks per SM.
pub const ACTIVATION_TOKEN_BF16: Kernel<ActivateToken> = unsafe {
    Kernel::new("activation_token_bf16", 256, 1, true, 0, module)
};
/// Kernel `activation_token_f16`: 256 threads per block, at least 4 blocks per SM.
pub const ACTIVATION_TOKEN_F16: Kernel<ActivateToken> = unsafe {
    Kernel::new("activation_token_f16", 256, 1, true, 0, module)
};
/// Kernel `activation_token_f32`: 256 threads per block, at least 4 blocks per SM.
pub const ACTIVATION_TOKEN_F32: Kernel<ActivateToken> = unsafe {
    Kernel::new("activation_token_f32", 256, 1, true, 0, module)
};
/// Kernel `append_shared`: 256 threads per block, at least 1 blocks per SM.
pub const APPEND_SHARED: Kernel<AppendShared> = unsafe {
    Kernel::new("append_shared", 256, 1, false, 0, module)
};
/// Kernel `cast_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const CAST_BF16: Kernel<Cast> = unsafe {
    Kernel::new("cast_bf16", 128, 1, true, 0, module)
};
/// Kernel `cast_f16`: 128 threads per block, at least 8 blocks per SM.
pub const CAST_F16: Kernel<Cast> = unsafe {
    Kernel::new("cast_f16", 128, 1, true, 0, module)
};
/// Kernel `choose_replicas`: 256 threads per block, at least 8 blocks per SM.
pub const CHOOSE_REPLICAS: Kernel<ChooseReplicas> = unsafe {
    Kernel::new("choose_replicas", 256, 1, true, 0, module)
};
/// Kernel `count_rows`: 256 threads per block, at least 8 blocks per SM.
pub const COUNT_ROWS: Kernel<CountRows> = unsafe {
    Kernel::new("count_rows", 256, 1, true, 0, module)
};
/// Kernel `few_tokens`: 640 threads per block, at least 1 blocks per SM.
pub const FEW_TOKENS: Kernel<FewTokens> = unsafe {
    Kernel::new("few_tokens", 640, 1, false, 0, module)
};
/// Kernel `few_tokens_packed`: 640 threads per block, at least 1 blocks per SM.
pub const FEW_TOKENS_PACKED: Kernel<FewTokens> = unsafe {
    Kernel::new("few_tokens_packed", 640, 1, false, 0, module)
};
/// Kernel `few_tokens_packed_block`: 640 threads per block, at least 1 blocks per SM.
pub const FEW_TOKENS_PACKED_BLOCK: Kernel<FewTokens> = unsafe {
    Kernel::new("few_tokens_packed_block", 640, 1, false, 0, module)
};
/// Kernel `few_tokens_packed_token`: 640 threads per block, at least 1 blocks per SM.
pub const FEW_TOKENS_PACKED_TOKEN: Kernel<FewTokens> = unsafe {
    Kernel::new("few_tokens_packed_token", 640, 1, false, 0, module)
};
/// Kernel `grouped_gemm_fast_128`: 256 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_FAST_128: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_fast_128", 256, 1, false, 98352, module)
};
/// Kernel `grouped_gemm_fast_16`: 128 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_FAST_16: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_fast_16", 128, 1, false, 92240, module)
};
/// Kernel `grouped_gemm_fast_64`: 256 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_FAST_64: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_fast_64", 256, 1, false, 98368, module)
};
/// Kernel `grouped_gemm_promoted_128`: 256 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_PROMOTED_128: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_promoted_128", 256, 1, false, 99936, module)
};
/// Kernel `grouped_gemm_promoted_16`: 128 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_PROMOTED_16: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_promoted_16", 128, 1, false, 92640, module)
};
/// Kernel `grouped_gemm_promoted_64`: 256 threads per block, at least 1 blocks per SM.
pub const GROUPED_GEMM_PROMOTED_64: Kernel<PortableGemm> = unsafe {
    Kernel::new("grouped_gemm_promoted_64", 256, 1, false, 99456, module)
};
/// Kernel `grouped_top_k`: 128 threads per block, at least 4 blocks per SM.
pub const GROUPED_TOP_K: Kernel<GroupedTopK> = unsafe {
    Kernel::new("grouped_top_k", 128, 1, false, 0, module)
};
/// Kernel `hopper_narrow_16`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_16: Kernel<HopperGemm> = unsafe {
    Kernel::new("hopper_narrow_16", 288, 1, true, 140816, module)
};
/// Kernel `hopper_narrow_32`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_32: Kernel<HopperGemm> = unsafe {
    Kernel::new("hopper_narrow_32", 288, 1, true, 150096, module)
};
/// Kernel `hopper_narrow_8`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_8: Kernel<HopperGemm> = unsafe {
    Kernel::new("hopper_narrow_8", 288, 1, true, 136432, module)
};
/// Kernel `hopper_narrow_gated_16`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_GATED_16: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_narrow_gated_16", 288, 1, true, 140816, module)
};
/// Kernel `hopper_narrow_gated_32`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_GATED_32: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_narrow_gated_32", 288, 1, true, 150096, module)
};
/// Kernel `hopper_narrow_gated_8`: 288 threads per block, at least 1 blocks per SM.
pub const HOPPER_NARROW_GATED_8: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_narrow_gated_8", 288, 1, true, 136432, module)
};
/// Kernel `hopper_wide_fast`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_FAST: Kernel<HopperGemm> = unsafe {
    Kernel::new("hopper_wide_fast", 384, 2, true, 217600, module)
};
/// Kernel `hopper_wide_gated_fast`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_FAST: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_wide_gated_fast", 384, 2, true, 217600, module)
};
/// Kernel `hopper_wide_gated_fast_gathered`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_FAST_GATHERED: Kernel<HopperGathered> = unsafe {
    Kernel::new("hopper_wide_gated_fast_gathered", 384, 2, true, 217600, module)
};
/// Kernel `hopper_wide_gated_fast_gathered_silu`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_FAST_GATHERED_SILU: Kernel<HopperGathered> = unsafe {
    Kernel::new("hopper_wide_gated_fast_gathered_silu", 384, 2, true, 217600, module)
};
/// Kernel `hopper_wide_gated_fast_silu`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_FAST_SILU: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_wide_gated_fast_silu", 384, 2, true, 217600, module)
};
/// Kernel `hopper_wide_gated_promoted`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_PROMOTED: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_wide_gated_promoted", 384, 2, true, 220160, module)
};
/// Kernel `hopper_wide_gated_promoted_gathered`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_PROMOTED_GATHERED: Kernel<HopperGathered> = unsafe {
    Kernel::new("hopper_wide_gated_promoted_gathered", 384, 2, true, 220160, module)
};
/// Kernel `hopper_wide_gated_promoted_gathered_silu`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_PROMOTED_GATHERED_SILU: Kernel<HopperGathered> = unsafe {
    Kernel::new("hopper_wide_gated_promoted_gathered_silu", 384, 2, true, 220160, module)
};
/// Kernel `hopper_wide_gated_promoted_silu`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_GATED_PROMOTED_SILU: Kernel<HopperGated> = unsafe {
    Kernel::new("hopper_wide_gated_promoted_silu", 384, 2, true, 220160, module)
};
/// Kernel `hopper_wide_promoted`: 384 threads per block, at least 1 blocks per SM.
pub const HOPPER_WIDE_PROMOTED: Kernel<HopperGemm> = unsafe {
    Kernel::new("hopper_wide_promoted", 384, 2, true, 220160, module)
};
/// Kernel `pack_weights`: 256 threads per block, at least 1 blocks per SM.
pub const PACK_WEIGHTS: Kernel<PackWeights> = unsafe {
    Kernel::new("pack_weights", 256, 1, false, 0, module)
};
/// Kernel `permute`: 512 threads per block, at least 2 blocks per SM.
pub const PERMUTE: Kernel<Permute> = unsafe {
    Kernel::new("permute", 512, 1, false, 0, module)
};
/// Kernel `permute_rows`: 256 threads per block, at least 4 blocks per SM.
pub const PERMUTE_ROWS: Kernel<PermuteRows> = unsafe {
    Kernel::new("permute_rows", 256, 1, false, 0, module)
};
/// Kernel `problem_sizes`: 128 threads per block, at least 1 blocks per SM.
pub const PROBLEM_SIZES: Kernel<WriteProblemSizes> = unsafe {
    Kernel::new("problem_sizes", 128, 1, false, 0, module)
};
/// Kernel `quantize_group_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_GROUP_BF16: Kernel<QuantizeGroup> = unsafe {
    Kernel::new("quantize_group_bf16", 128, 1, true, 0, module)
};
/// Kernel `quantize_group_f16`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_GROUP_F16: Kernel<QuantizeGroup> = unsafe {
    Kernel::new("quantize_group_f16", 128, 1, true, 0, module)
};
/// Kernel `quantize_group_f32`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_GROUP_F32: Kernel<QuantizeGroup> = unsafe {
    Kernel::new("quantize_group_f32", 128, 1, true, 0, module)
};
/// Kernel `quantize_tensor_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_TENSOR_BF16: Kernel<QuantizeTensor> = unsafe {
    Kernel::new("quantize_tensor_bf16", 128, 1, true, 0, module)
};
/// Kernel `quantize_tensor_f16`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_TENSOR_F16: Kernel<QuantizeTensor> = unsafe {
    Kernel::new("quantize_tensor_f16", 128, 1, true, 0, module)
};
/// Kernel `quantize_tensor_f32`: 128 threads per block, at least 8 blocks per SM.
pub const QUANTIZE_TENSOR_F32: Kernel<QuantizeTensor> = unsafe {
    Kernel::new("quantize_tensor_f32", 128, 1, true, 0, module)
};
/// Kernel `quantize_token_bf16`: 256 threads per block, at least 4 blocks per SM.
pub const QUANTIZE_TOKEN_BF16: Kernel<QuantizeToken> = unsafe {
    Kernel::new("quantize_token_bf16", 256, 1, true, 0, module)
};
/// Kernel `quantize_token_f16`: 256 threads per block, at least 4 blocks per SM.
pub const QUANTIZE_TOKEN_F16: Kernel<QuantizeToken> = unsafe {
    Kernel::new("quantize_token_f16", 256, 1, true, 0, module)
};
/// Kernel `quantize_token_f32`: 256 threads per block, at least 4 blocks per SM.
pub const QUANTIZE_TOKEN_F32: Kernel<QuantizeToken> = unsafe {
    Kernel::new("quantize_token_f32", 256, 1, true, 0, module)
};
/// Kernel `read_stream`: 32 threads per block, at least 1 blocks per SM.
pub const READ_STREAM: Kernel<ReadStream> = unsafe {
    Kernel::new("read_stream", 32, 1, false, 196656, module)
};
/// Kernel `router_logits_16x8`: 256 threads per block, at least 2 blocks per SM.
pub const ROUTER_LOGITS_16X8: Kernel<RouterLogits> = unsafe {
    Kernel::new("router_logits_16x8", 256, 1, false, 3584, module)
};
/// Kernel `router_logits_64x64`: 256 threads per block, at least 2 blocks per SM.
pub const ROUTER_LOGITS_64X64: Kernel<RouterLogits> = unsafe {
    Kernel::new("router_logits_64x64", 256, 1, false, 16384, module)
};
/// Kernel `router_logits_few`: 256 threads per block, at least 2 blocks per SM.
pub const ROUTER_LOGITS_FEW: Kernel<RouterLogits> = unsafe {
    Kernel::new("router_logits_few", 256, 1, false, 256, module)
};
/// Kernel `router_logits_few_f16`: 256 threads per block, at least 2 blocks per SM.
pub const ROUTER_LOGITS_FEW_F16: Kernel<RouterLogits> = unsafe {
    Kernel::new("router_logits_few_f16", 256, 1, false, 256, module)
};
/// Kernel `sigmoid_top_k`: 128 threads per block, at least 4 blocks per SM.
pub const SIGMOID_TOP_K: Kernel<TopK> = unsafe {
    Kernel::new("sigmoid_top_k", 128, 1, false, 0, module)
};
/// Kernel `softmax_top_k`: 128 threads per block, at least 4 blocks per SM.
pub const SOFTMAX_TOP_K: Kernel<SoftmaxTopK> = unsafe {
    Kernel::new("softmax_top_k", 128, 1, false, 0, module)
};
/// Kernel `sqrt_softplus_top_k`: 128 threads per block, at least 4 blocks per SM.
pub const SQRT_SOFTPLUS_TOP_K: Kernel<SqrtSoftplusTopK> = unsafe {
    Kernel::new("sqrt_softplus_top_k", 128, 1, false, 0, module)
};
/// Kernel `stage_routing`: 256 threads per block, at least 8 blocks per SM.
pub const STAGE_ROUTING: Kernel<StageRouting> = unsafe {
    Kernel::new("stage_routing", 256, 1, true, 0, module)
};
/// Kernel `sum_ranks_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_BF16: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_bf16", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_bf16_f16`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_BF16_F16: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_bf16_f16", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_bf16_f32`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_BF16_F32: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_bf16_f32", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_f16`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_F16: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_f16", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_f32`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_F32: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_f32", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_f32_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_F32_BF16: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_f32_bf16", 128, 1, true, 0, module)
};
/// Kernel `sum_ranks_f32_f16`: 128 threads per block, at least 8 blocks per SM.
pub const SUM_RANKS_F32_F16: Kernel<SumRanks> = unsafe {
    Kernel::new("sum_ranks_f32_f16", 128, 1, true, 0, module)
};
/// Kernel `tile_schedule`: 512 threads per block, at least 2 blocks per SM.
pub const TILE_SCHEDULE: Kernel<WriteTileSchedule> = unsafe {
    Kernel::new("tile_schedule", 512, 1, false, 0, module)
};
/// Kernel `unpermute_bf16`: 128 threads per block, at least 8 blocks per SM.
pub const UNPERMUTE_BF16: Kernel<Unpermute> = unsafe {
    Kernel::new("unpermute_bf16", 128, 1, true, 0, module)
};
/// Kernel `unpermute_bf16_f16`: 128 threads per block, at least 8 blocks per SM.
pub const UNPERMUTE_BF16_F16: Kernel<Unpermute> = unsafe {
    Kernel::new("unpermute_bf16_f16", 128, 1, true, 0, module)
};
/// Kernel `unpermute_bf16_f32`: 128 threads per block, at least 8 blocks per SM.
pub const UNPERMUTE_BF16_F32: Kernel<Unpermute> = unsafe {
    Kernel::new("unpermute_bf16_f32", 128, 1, true, 0, module)
};
/// Kernel `unpermute_f16`: 128 threads per block, at least 8 blocks per SM.
pub const UNPERMUTE_F16: Kernel<Unpermute> = unsafe {
    Kernel::new("unpermute_f16", 128, 1, true, 0, module)
};
/// Kernel `unpermute_f16_f32`: 128 threads per block, at least 8 blocks per SM.
pub const UNPERMUTE_F16_F32: Kernel<Unpermute> = unsafe {
    Kernel::new("unpermute_f16_f32", 128, 1, true, 0, module)
};
