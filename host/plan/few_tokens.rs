//! The plan of the layer in one launch, for few tokens: whether there is one, and how it cuts its matrices.
//!
//! ```text
//!   a unit      2 * half_rows rows of an expert's matrix by K, or a part of K        units of a tile = rows / unit * parts
//!   a block     an equal run of the units of all tiles, in their order, or what it draws
//! ```
//!
//! The kernel's documentation (`kernels-gpu/src/few_tokens`) has the rest.

use crate::config::{COPY_BYTES, MoeConfig, Path, Routing, SharedRun, Tuning};
use crate::gpu::device::Device;
use crate::gpu::family::Family;
use crate::kernels::launchers::{self, Dealing};

use super::first_is_gated;
use super::packed::{is_padded_little, padded};

/// Columns of K that the kernel's stages are made of.
const SLAB: usize = launchers::SLAB as usize;
/// Fewest stages that keep memory busy.
const FEWEST_STAGES: usize = 3;

/// How the units of one matrix are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// K, of packed weights without what pads it.
    pub k: usize,
    /// Rows of half a unit.
    pub half_rows: usize,
    /// Bytes of K in a stage.
    pub stage_k: usize,
    /// Parts of K.
    pub parts: usize,
    /// Units of a tile.
    pub units: usize,
    /// Bytes from an input row in shared memory to the next; for packed weights those of 16 columns.
    pub input_pitch: usize,
    /// Which blocks work on which.
    pub dealing: Dealing,
}

/// A planned layer in one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FewTokensPlan {
    /// Pairs of a token and a slot.
    pub pairs: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// Bytes of shared memory for input rows.
    pub input_bytes: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
    /// Whether the weights are packed.
    pub packed: bool,
    /// Blocks of the grid, all resident at once.
    pub blocks: usize,
    /// w13.
    pub first: Cut,
    /// w2.
    pub second: Cut,
}

impl FewTokensPlan {
    /// Most tokens.
    pub const MOST_TOKENS: usize = 8;

    /// The plan for `tokens` tokens; none where the kernel does not fit the layer, the batch, the device or
    /// the path that was asked for. `packed`: so are the weights.
    pub fn new(device: &Device, config: &MoeConfig, tokens: usize, packed: bool) -> Option<FewTokensPlan> {
        let MoeConfig { hidden_size: hidden, top_k, .. } = *config;
        let intermediate = config.padded_intermediate();
        let pairs = tokens * top_k;
        // GEMM 1 has a column for each of its inputs.
        let first_rows = if config.routing == Routing::SigmoidInput { pairs } else { tokens };
        let fits = device.family() == Family::Sm90a
            && (config.path == Path::OneLaunch
                || (config.path == Path::Auto && is_faster(config, tokens, packed)))
            && config.gated
            && config.shared_run() == SharedRun::None
            && (1..=Self::MOST_TOKENS).contains(&tokens)
            && pairs <= launchers::FEW_MOST_PAIRS as usize
            && first_rows <= launchers::FEW_TILE_ROWS as usize
            && config.local_count() > 0
            && match packed {
                // The kernel knows w13 with gate beside up, as the fused first GEMM has it.
                true => {
                    [hidden, intermediate]
                        .into_iter()
                        .all(|k| k.is_multiple_of(COPY_BYTES) && is_padded_little(k))
                        && first_is_gated(device, config)
                }
                false => hidden.is_multiple_of(64) && intermediate.is_multiple_of(64),
            };
        if !fits {
            return None;
        }
        let SharedMemory { stages, tile_rows, pitches, input_bytes, bytes: shared_bytes } =
            SharedMemory::new(device, [first_rows, tokens], [hidden, intermediate], packed)?;
        let multiprocessors = device.multiprocessors() as usize;
        let tiles = expected_tiles(config, tokens);
        let even = |k, pitch, parts: &[usize], units: &dyn Fn(usize, usize) -> Option<usize>| {
            Cut::most_even(
                Cut::all(k, pitch, packed, parts, units),
                tiles / multiprocessors as f64,
                packed,
                &config.tuning,
            )
        };
        let mut first = even(hidden, pitches[0], &[1], &|half_rows, _| {
            intermediate.is_multiple_of(half_rows).then(|| intermediate / half_rows)
        })?;
        let mut second = even(intermediate, pitches[1], &[1, 2, 4], &|half_rows, parts| {
            hidden.is_multiple_of(2 * half_rows).then(|| hidden / (2 * half_rows) * parts)
        })?;
        (first.dealing, second.dealing) = dealings(config, tokens);
        // The kernel finds a block's share by a product of the three.
        let units = u32::try_from(pairs * first.units.max(second.units)).ok()?;
        units.checked_mul(device.multiprocessors())?;
        // And one of the output by a product of tokens, columns and blocks.
        u32::try_from(tokens * hidden * multiprocessors).ok()?;
        Some(FewTokensPlan {
            pairs,
            tile_rows,
            input_bytes,
            stages,
            shared_bytes,
            packed,
            blocks: multiprocessors.min(pairs * first.units.max(second.units)),
            first,
            second,
        })
    }

    /// Words of what its blocks hand each other: activated values, and products of every part of K.
    pub fn set_words(&self) -> usize {
        self.pairs * (self.second.k + self.second.parts * self.first.k)
    }

    /// The most of them with up to `tokens` tokens, however the weights lie.
    pub fn most_set_words(device: &Device, config: &MoeConfig, tokens: usize) -> usize {
        let of = |tokens| [false, true].map(|packed| Self::new(device, config, tokens, packed));
        let plans = (1..=tokens.min(Self::MOST_TOKENS)).flat_map(of).flatten();
        plans.map(|plan| plan.set_words()).max().unwrap_or(0)
    }
}

/// Whether the launch is faster than the kernels of the ordinary path, by the bytes of weights that a batch
/// reads if its tokens spread evenly, as the config's table has it. On an H200 (`docs/PERFORMANCE.md`) it
/// saves 8 to 11 us of launches and of streams begun anew. Packed weights it streams as fast as the other
/// kernels do, others more slowly: their products take longer than their copies.
fn is_faster(config: &MoeConfig, tokens: usize, packed: bool) -> bool {
    bytes_read(config, tokens) <= config.tuning.one_launch_bytes(tokens, packed)
}

/// How the units of either GEMM are dealt. Drawn, those of GEMM 1 end together, but a block has rows of all
/// tokens to quantise, and not of a few: it pays from so many bytes of weights on for each hidden state.
/// Units of GEMM 2 that are drawn have a tile of their own each, whose rows are to be quantised: it pays
/// where there are many.
fn dealings(config: &MoeConfig, tokens: usize) -> (Dealing, Dealing) {
    let bytes = bytes_read(config, tokens);
    let states = (tokens * config.hidden_size) as f64;
    let first = if bytes >= config.tuning.one_launch_draw_bytes as f64 * states {
        Dealing::Drawn
    } else {
        Dealing::Runs
    };
    let long = bytes >= f64::from(config.tuning.one_launch_draw_second_mb) * 1e6;
    (first, if long { Dealing::RunsThenDrawn } else { Dealing::Runs })
}

/// Bytes of weights that a batch reads if its tokens spread evenly.
pub(crate) fn bytes_read(config: &MoeConfig, tokens: usize) -> f64 {
    let of_expert = 3 * config.hidden_size * config.padded_intermediate();
    expected_tiles(config, tokens) * of_expert as f64
}

/// What lies in a block's shared memory.
struct SharedMemory {
    stages: usize,
    tile_rows: usize,
    /// Bytes from an input row to the next, of either GEMM.
    pitches: [usize; 2],
    input_bytes: usize,
    bytes: usize,
}

impl SharedMemory {
    /// For `rows` inputs of `k[0]` columns of GEMM 1 and a tile's of `k[1]`: up to as many as there are
    /// tokens, since an expert has no more where a token does not name it twice. As many stages as fit beside
    /// them.
    fn new(device: &Device, [rows, tokens]: [usize; 2], k: [usize; 2], packed: bool) -> Option<SharedMemory> {
        let (tables, of_stage) = (launchers::FEW_TABLE_BYTES as usize, launchers::FEW_STAGE_BYTES as usize);
        let room = (device.shared_per_block() as usize).checked_sub(tables)?;
        let most_rows = tokens.min(launchers::FEW_TILE_ROWS as usize);
        (1..=most_rows).rev().find_map(|tile_rows| {
            let rows = [rows, tile_rows];
            // An odd number of rows of 16 bytes: neighbours along K then lie in other banks. Rows as a whole
            // that lie 64 bytes apart in the banks do not conflict.
            let pitches =
                [0, 1].map(|i| if packed { 16 * (rows[i] | 1) } else { k[i].next_multiple_of(SLAB) + 64 });
            let of = |i: usize| pitches[i] * if packed { padded(k[i]) / 16 } else { rows[i] };
            let input_bytes = of(0).max(of(1));
            let past_end = if packed { pitches[0].max(pitches[1]) } else { 0 };
            let behind = launchers::few_input_end_bytes(k[0].max(k[1]), past_end);
            let left = room.checked_sub(input_bytes + behind)?;
            let stages = (left / of_stage).min(launchers::FEW_MOST_STAGES as usize);
            let bytes = tables + stages * of_stage + input_bytes + behind;
            (stages >= FEWEST_STAGES).then_some(SharedMemory {
                stages,
                tile_rows,
                pitches,
                input_bytes,
                bytes,
            })
        })
    }
}

/// Experts of this rank that have rows, on average, if tokens spread evenly. At least 1.
fn expected_tiles(config: &MoeConfig, tokens: usize) -> f64 {
    let idle = 1.0 - config.top_k as f64 / config.experts as f64;
    (config.local_count() as f64 * (1.0 - idle.powi(tokens as i32))).max(1.0)
}

impl Cut {
    /// The cuts that there are, those with the longest copies first: of few parts of K, and of many rows,
    /// since units without cuts are read in long lines. Rows as a checkpoint has them are no longer than K,
    /// so that of these a stage takes few, and up to 2 KiB; packed ones are neighbours whatever K is.
    ///
    /// `units` gives the units of a tile for so many rows of half a unit, and parts.
    fn all(
        k: usize,
        input_pitch: usize,
        packed: bool,
        parts: &[usize],
        units: &dyn Fn(usize, usize) -> Option<usize>,
    ) -> impl Iterator<Item = Cut> {
        let (stage_bytes, stage_k) = (launchers::FEW_STAGE_BYTES as usize, launchers::FEW_STAGE_K as usize);
        let parts = parts.iter().copied().filter(move |&parts| parts <= k.div_ceil(SLAB));
        parts.flat_map(move |parts| {
            [64, 32, 16, 8].into_iter().filter_map(move |half_rows| {
                let stage_k = (stage_bytes / (2 * half_rows)).min(stage_k);
                let fits = packed || stage_k >= k.min(launchers::FEW_STAGE_K as usize);
                fits.then_some(Cut {
                    k,
                    half_rows,
                    stage_k,
                    parts,
                    units: units(half_rows, parts)?,
                    input_pitch,
                    dealing: Dealing::Runs,
                })
            })
        })
    }

    /// The cut by which the busiest block has least to stream. `share`: tiles of a block.
    /// A unit costs more than its bytes: sums among warps, and their store.
    fn most_even(cuts: impl Iterator<Item = Cut>, share: f64, packed: bool, tuning: &Tuning) -> Option<Cut> {
        let (of_unit, shortest) = (tuning.one_launch_unit_bytes, tuning.one_launch_copy_bytes as usize);
        let cost = |cut: &Cut| {
            let units = (share * cut.units as f64).ceil();
            units * (cut.bytes(packed, shortest) + of_unit as usize) as f64
        };
        cuts.min_by(|a, b| cost(a).total_cmp(&cost(b)))
    }

    /// Bytes of a unit, counted as more where it comes in copies below `shortest` bytes.
    fn bytes(&self, packed: bool, shortest: usize) -> usize {
        let k = self.k / self.parts;
        let copy = match packed {
            true => self.half_rows * SLAB,
            false if self.parts == 1 && k <= self.stage_k => self.half_rows * k,
            false => k.min(self.stage_k),
        };
        2 * self.half_rows * k * shortest.max(copy) / copy
    }
}

#[cfg(test)]
mod tests {
    use super::FewTokensPlan;
    use crate::Device;
    use crate::config::{IntermediateScales, MoeConfig, Path, Quantization};

    fn config([experts, top_k, hidden_size, intermediate_size]: [usize; 4]) -> MoeConfig {
        MoeConfig {
            experts,
            top_k,
            hidden_size,
            intermediate_size,
            path: Path::OneLaunch,
            ..MoeConfig::default()
        }
    }

    /// What the models of the benchmarks get at one token: the blocks' shares differ by a few percent, by
    /// more only where fewer, larger units cost less than even shares would save.
    #[test]
    fn shares_are_even() {
        let device = Device::for_test(None);
        let models = [
            [8, 2, 4096, 14336],
            [128, 8, 4096, 1536],
            [128, 8, 2048, 768],
            [160, 8, 5120, 1536],
            [256, 8, 7168, 2048],
            [128, 1, 5120, 8192],
            [256, 8, 2048, 512],
            [256, 8, 7168, 256],
        ];
        for model in models {
            for (tokens, packed) in (1..=8).flat_map(|tokens| [(tokens, false), (tokens, true)]) {
                let plan = FewTokensPlan::new(&device, &config(model), tokens, packed).expect("a plan");
                // Of the widest, a tile is a row short of the tokens.
                assert!(plan.stages >= 3 && plan.tile_rows >= tokens.min(7), "{model:?}, {tokens}: {plan:?}");
                assert!(plan.shared_bytes <= device.shared_per_block() as usize, "{model:?}: {plan:?}");
                if tokens == 1 {
                    for cut in [plan.first, plan.second] {
                        let units = (model[1] * cut.units) as f64 / f64::from(device.multiprocessors());
                        assert!(units / units.ceil() > 0.84, "{model:?}: {cut:?}");
                    }
                }
            }
        }
    }

    /// Where it was faster, and where it was not.
    #[test]
    fn taken_where_it_was_faster() {
        let device = Device::for_test(None);
        let is_taken = |model, tokens, packed| {
            let config = MoeConfig { path: Path::Auto, ..config(model) };
            FewTokensPlan::new(&device, &config, tokens, packed).is_some()
        };
        for tokens in 1..=8 {
            assert!(
                is_taken([256, 8, 2048, 512], tokens, true) && is_taken([256, 8, 7168, 2048], tokens, true)
            );
        }
        assert!(!is_taken([256, 8, 2048, 512], 9, true));
        assert!(is_taken([8, 2, 4096, 14336], 1, false) && !is_taken([8, 2, 4096, 14336], 2, false));
        assert!(is_taken([256, 8, 2048, 512], 4, false) && !is_taken([256, 8, 2048, 512], 5, false));
    }

    /// H and I that are no multiples of 128, as gpt-oss's: packed where K is padded by little.
    #[test]
    fn packed_weights_may_be_padded() {
        let device = Device::for_test(None);
        let plan = |sizes, tokens, packed| FewTokensPlan::new(&device, &config(sizes), tokens, packed);
        for quantization in [Quantization::Block128, Quantization::ChannelToken] {
            for tokens in 1..=8 {
                let gpt_oss = MoeConfig { quantization, path: Path::Auto, ..config([128, 4, 2880, 2880]) };
                let plan = FewTokensPlan::new(&device, &gpt_oss, tokens, true).expect("a plan");
                // Blocks of scales pad I.
                let intermediate = if quantization == Quantization::Block128 { 2944 } else { 2880 };
                assert_eq!([plan.first.k, plan.second.k], [2880, intermediate]);
                assert_eq!(plan.first.units * plan.first.half_rows, intermediate);
                let rows = plan.second.units / plan.second.parts * 2 * plan.second.half_rows;
                assert_eq!(rows, 2880, "{plan:?}");
                assert_eq!(plan.set_words(), plan.pairs * (intermediate + plan.second.parts * 2880));
                // Inputs have the columns that the weights have.
                let pitch = plan.first.input_pitch.max(plan.second.input_pitch);
                assert_eq!(plan.input_bytes, pitch * 2944 / 16, "{plan:?}");
                assert!(plan.stages >= 3 && plan.tile_rows == tokens, "{plan:?}");
            }
        }
        assert!(plan([16, 4, 1008, 128], 1, true).is_some() && plan([16, 4, 1008, 128], 1, false).is_none());
        // More than one part in 32 is missing.
        for sizes in [[16, 4, 192, 128], [16, 4, 1984, 128], [16, 4, 960, 2048]] {
            assert!(plan(sizes, 1, true).is_none() && plan(sizes, 1, false).is_some(), "{sizes:?}");
        }
        // In the middle of 16 bytes.
        assert!(plan([16, 4, 1016, 128], 1, true).is_none());
    }

    #[test]
    fn what_does_not_fit_has_no_plan() {
        let device = Device::for_test(None);
        let plan = |config: MoeConfig, tokens| FewTokensPlan::new(&device, &config, tokens, false);
        let model = [16, 4, 128, 128];
        assert!(plan(config(model), 8).is_some());
        assert!(plan(config(model), 0).is_none() && plan(config(model), 9).is_none());
        assert!(
            plan(config([16, 4, 144, 128]), 1).is_none() && plan(config([32, 32, 128, 128]), 8).is_none()
        );
        for path in [Path::Hopper { blocks: None }, Path::Portable { blocks: None }] {
            assert!(plan(MoeConfig { path, ..config(model) }, 1).is_none());
        }
        let by_row = MoeConfig {
            quantization: Quantization::ChannelToken,
            intermediate_scales: IntermediateScales::Token,
            ..config(model)
        };
        assert!(plan(by_row.clone(), 1).is_some());
        assert!(FewTokensPlan::new(&device, &by_row, 1, true).is_none());
        let nobody = MoeConfig { local_experts: Some(Vec::new()), ..config(model) };
        assert!(plan(nobody, 1).is_none());
    }
}
