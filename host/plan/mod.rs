//! What will run, decided once, on the host, from sizes: tiles, gathering, fusion, kernels, grids, layouts of
//! scales, and the workspace.
//!
//! ```text
//!   device, MoeConfig, tokens ---> Plan           of a layer's forward: workspace, operations, warm-up and bench read it
//!   device, shape, options ------> GemmPlan       of one grouped GEMM
//!                                  GatedPlan      of one gated GEMM
//! ```
//!
//! | file | what it decides |
//! |---|---|
//! | `mod` | a forward: which operations there are, and what they hand to each other |
//! | `few_tokens` | whether the layer is one launch, and how it cuts its matrices |
//! | `gemm` | height of the tiles, kernel and grid of a GEMM, its partial sums; whether rows are gathered |
//! | `packed` | how weights lie in memory |
//! | `tiles` | what a tile takes of an SM |
//! | `permutation` | capacity of the permuted rows, tiles of a schedule, cut of the sort |
//! | `rows` | grids of what goes over rows; layouts of scales |
//! | `router` | which kernel multiplies by the router's matrix |
//! | `workspace` | what lies where in a forward's memory |
//!
//! The numbers by which shapes decide are a table of the config's, `host/config/tuning.rs`.
//!
//! Counts per expert are known on the device alone. Nothing here asks for them: sizes of memory are those of
//! the worst case, heights of tiles those of an even spread.

pub(crate) mod few_tokens;
pub(crate) mod gemm;
pub(crate) mod packed;
mod path;
pub(crate) mod permutation;
pub(crate) mod router;
pub(crate) mod rows;
pub(crate) mod tiles;
pub(crate) mod workspace;

use crate::config::{ActivationScales, MoeConfig, Reduction, Routing, SharedRun, WeightScales};
use crate::error::{Result, require};
use crate::gpu::device::Device;
use few_tokens::FewTokensPlan;
pub use gemm::{GatedPlan, GatedShape, GemmOptions, GemmPlan, GemmShape};
use packed::WeightLayout;
use permutation::PermuteShape;
use router::RouterLogitsPath;
use rows::{MOST_DISCARDED_BYTES, ScaleLayout};
use workspace::Layout;

const OP: &str = "MoeConfig";

/// How a layer's first GEMM and its activation run.
#[derive(Clone, Debug)]
pub(crate) enum First {
    /// In one launch.
    Gated(GatedPlan),
    /// The GEMM with an f32 output `[P, 2I']`, then the activation.
    Apart(GemmPlan),
}

/// The plan of a forward.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The router's kernel, where the layer routes.
    pub router: RouterLogitsPath,
    /// T, k, E, E_loc.
    pub permutation: PermuteShape,
    /// Rows of the tiles that both GEMMs walk.
    pub block_m: usize,
    /// `[P, 2I'] = [P, H] * w13^T`.
    pub first: First,
    /// `[P, H] = [P, I'] * w2^T`.
    pub second: GemmPlan,
    /// Rows of the quantised hidden states: P, or T where GEMM 1 gathers.
    pub quantised_rows: usize,
    /// Rows that have scales in front of GEMM 1: T where they come along with gathered rows, else P.
    pub scaled_rows: usize,
    /// Where those scales are, if there is one per group.
    pub first_scales: ScaleLayout,
    /// Where the scales in front of GEMM 2 are, if there is one per group.
    pub second_scales: ScaleLayout,
    /// Whether unpermute discards the rows of GEMM 2, of which there are few enough to lie in L2 still.
    pub discards: bool,
    /// The layer behind the router in one launch, where few tokens allow it: instead of everything above but
    /// the router.
    pub few_tokens: Option<FewTokensPlan>,
    /// A shared expert beside the grouped GEMMs.
    pub shared: SharedPlan,
    /// What lies where in the workspace.
    pub layout: Layout,
}

/// How a shared expert beside the grouped GEMMs runs.
#[derive(Clone, Debug)]
pub(crate) enum SharedPlan {
    /// There is none beside them.
    None,
    /// By the router's kernels, which multiply in bf16, and an activation between.
    Bf16,
    /// As a layer of one expert.
    Layer(Box<Plan>),
}

impl Plan {
    /// The plan of forwards of `tokens` tokens. The config has been validated.
    ///
    /// # Errors
    /// More tokens than the kernels can count.
    pub fn new(device: &Device, config: &MoeConfig, tokens: usize, weights: WeightLayout) -> Result<Plan> {
        check_device(device, config)?;
        let MoeConfig { path, hidden_size: hidden, .. } = *config;
        let (top_k, experts) = (config.slots(), config.slot_experts());
        let local_experts = config.slot_local_experts();
        let permutation = PermuteShape { tokens, top_k, experts, local_experts, alignment: 1 };
        permutation.check(true)?;
        let capacity = permutation.capacity();
        let intermediate = config.padded_intermediate();
        let first_shape = GatedShape { rows: capacity, intermediate, k: hidden, experts: local_experts };
        let first_gemm = GemmShape { n: config.halves() * intermediate, ..first_shape.gemm() };
        let expected = GemmShape { rows: expected_rows(&permutation), ..first_gemm };
        let block_m = config.tuning.block_m(device, &expected, path);
        let has_blocks = config.quantization.weights() == WeightScales::Block128;
        let options = GemmOptions {
            accumulation: config.accumulation,
            slab_scales: has_blocks || config.first_scales() == ActivationScales::Group128,
            path,
            weights,
        };
        let is_gated = first_is_gated(device, config);
        let rows = gemm::Gathering {
            of_token: (top_k * local_experts, experts),
            of_expert: gemm::mean_rows(expected.rows, local_experts),
            intermediate,
        };
        // Slots of a token that are weighed before they are quantised are not copies of one row.
        let slots_differ = config.routing == Routing::SigmoidInput && top_k > 1;
        let gathers =
            is_gated && !slots_differ && gemm::gathers(config.gather, &config.tuning, block_m, rows);
        let first = if is_gated {
            First::Gated(GatedPlan::new(device, first_shape, block_m, options, gathers)?)
        } else {
            First::Apart(GemmPlan::new(device, first_gemm, block_m, options)?)
        };
        let second_shape = GemmShape { rows: capacity, n: hidden, k: intermediate, experts: local_experts };
        let slab_scales = has_blocks || config.second_scales() == ActivationScales::Group128;
        let second = GemmPlan::new(device, second_shape, block_m, GemmOptions { slab_scales, ..options })?;
        let quantised_rows = if gathers { tokens } else { capacity };
        // Scales per group come along with the rows, one per row does not.
        let scaled_rows =
            if config.first_scales() == ActivationScales::Group128 { quantised_rows } else { capacity };
        let mut plan = Plan {
            router: RouterLogitsPath::Auto.resolve(tokens, config.logits(), &config.tuning),
            permutation,
            block_m,
            first,
            second,
            quantised_rows,
            scaled_rows,
            first_scales: ScaleLayout::group_major(scale_rows(scaled_rows)),
            second_scales: ScaleLayout::group_major(scale_rows(capacity)),
            discards: expected.rows.saturating_mul(2 * hidden) <= MOST_DISCARDED_BYTES,
            few_tokens: FewTokensPlan::new(device, config, tokens, weights == WeightLayout::Packed),
            shared: match (config.shared_run(), config.shared_layer()) {
                (SharedRun::None | SharedRun::Slots(_), _) => SharedPlan::None,
                (SharedRun::Beside, Some(layer)) => {
                    let weights = WeightLayout::Checkpoint;
                    SharedPlan::Layer(Box::new(Plan::new(device, &layer, tokens, weights)?))
                }
                (SharedRun::Beside, None) => SharedPlan::Bf16,
            },
            layout: Layout::default(),
        };
        plan.layout = Layout::new(&plan, config)?;
        Ok(plan)
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.permutation.tokens
    }

    /// P, rows of the permuted matrices.
    pub fn capacity(&self) -> usize {
        self.permutation.capacity()
    }

    /// Whether GEMM 1 gathers its rows by token.
    pub fn gathers(&self) -> bool {
        matches!(&self.first, First::Gated(plan) if plan.gathers())
    }

    /// Whether GEMM 1 and the activation are one launch.
    pub fn is_gated(&self) -> bool {
        matches!(self.first, First::Gated(_))
    }

    /// Bytes that suffice for forwards of any number of tokens up to `tokens`.
    ///
    /// They do not depend on how the weights lie in memory. They grow with the tokens as long as the tiles'
    /// height stays the same. Taller tiles may need less: fewer partial sums, and gathered rows are not
    /// scattered. So the last number of tokens before each change of height counts as well.
    ///
    /// # Errors
    /// More tokens than the kernels can count.
    pub fn workspace_bytes(device: &Device, config: &MoeConfig, tokens: usize) -> Result<usize> {
        // A layer beside this one changes its tiles at other numbers of tokens: the most of both suffices.
        let beside = match config.shared_layer() {
            Some(layer) => Plan::workspace_bytes(device, &layer, tokens)?,
            None => 0,
        };
        let (mut most, mut last) = (0, tokens);
        // The launch for few tokens needs memory besides, by cuts that follow the number of tokens.
        for few in 1..=tokens.min(FewTokensPlan::MOST_TOKENS) {
            for weights in [WeightLayout::Checkpoint, WeightLayout::Packed] {
                // What cannot be packed is not.
                if let Ok(plan) = Plan::new(device, config, few, weights) {
                    most = most.max(plan.layout.bytes);
                }
            }
        }
        loop {
            let plan = Plan::new(device, config, last, WeightLayout::Checkpoint)?;
            most = most.max(plan.layout.bytes - plan.layout.shared_layer.len() + beside);
            // The first number of tokens with tiles of this height, which grow with the tokens.
            let (mut low, mut high) = (0, last);
            while low < high {
                let middle = low + (high - low) / 2;
                if Plan::new(device, config, middle, WeightLayout::Checkpoint)?.block_m < plan.block_m {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            match low {
                0 => return Ok(most),
                first => last = first - 1,
            }
        }
    }
}

/// Whether the first GEMM and its activation are one launch.
pub(crate) fn first_is_gated(device: &Device, config: &MoeConfig) -> bool {
    config.second_scales() != ActivationScales::Token && GatedPlan::is_supported(device, config.path)
}

/// Mean number of rows of this rank's experts that have any, if tokens spread evenly: what decides the tiles'
/// height.
pub(crate) fn mean_rows(config: &MoeConfig, tokens: usize) -> usize {
    let (top_k, experts) = (config.slots(), config.slot_experts());
    let local_experts = config.slot_local_experts();
    let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment: 1 };
    gemm::mean_rows(expected_rows(&shape), local_experts)
}

/// Rows that this rank can expect: all of them, or its experts' share of them if tokens spread evenly. At
/// least 1, if there are any.
fn expected_rows(shape: &PermuteShape) -> usize {
    let all = shape.rows() as u128 * shape.local_experts as u128;
    all.div_ceil(shape.experts.max(1) as u128) as usize
}

/// Rows that there is room for in a group of scales of `rows` rows: a multiple of 4, as the Hopper GEMMs ask
/// for.
fn scale_rows(rows: usize) -> usize {
    rows.next_multiple_of(4)
}

/// Refuses a config that the kernels of `device` cannot do, with the rule.
pub(crate) fn check_device(device: &Device, config: &MoeConfig) -> Result<()> {
    path::takes_hopper(OP, device, config.path)?;
    match config.reduction {
        Reduction::Deterministic => Ok(()),
        Reduction::OrderFree => {
            gemm::require_hopper(OP, "reduction", "OrderFree", device, config.path, "Deterministic")
        }
    }
}

/// Refuses a value over `i32::MAX`.
pub(crate) fn checked_i32(op: &'static str, name: &str, value: usize) -> Result<u32> {
    require(value <= i32::MAX as usize, op, name, value, || "must be below 2^31".into())?;
    Ok(value as u32)
}

/// The product of dimensions, refused where it does not fit.
pub(crate) fn elements(op: &'static str, name: &str, dimensions: &[usize]) -> Result<usize> {
    let product = dimensions.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    let product = product.filter(|&elements| elements <= isize::MAX as usize);
    require(product.is_some(), op, name, format_args!("{dimensions:?}"), || {
        "must have below 2^63 elements".into()
    })?;
    Ok(product.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::few_tokens::FewTokensPlan;
    use super::router::RouterLogitsPath;
    use super::{GemmShape, PermuteShape, Plan, WeightLayout, expected_rows, mean_rows};
    use crate::Device;
    use crate::config::{MoeConfig, Path, Tuning};

    fn rank(tokens: usize, local_experts: usize) -> PermuteShape {
        PermuteShape { tokens, top_k: 8, experts: 128, local_experts, alignment: 1 }
    }

    #[test]
    fn a_rank_expects_its_share_of_the_rows() {
        assert_eq!(expected_rows(&rank(256, 128)), 2048);
        assert_eq!(expected_rows(&rank(256, 16)), 256);
        assert_eq!([0, 1, 2].map(|tokens| expected_rows(&rank(tokens, 8))), [0, 1, 1]);
        assert_eq!(expected_rows(&rank(1, 0)), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// A plan chooses what its table says, and a workspace for some tokens suffices for fewer.
        #[test]
        fn plans_obey_their_table(
            limits in any::<[u8; 9]>(),
            one_launch_packed_mb in any::<[u8; 8]>(),
            [experts, top_k] in prop_oneof![Just([8, 2]), Just([64, 6]), Just([128, 8])],
            intermediate_size in prop_oneof![Just(128), Just(768)],
            tokens in 1usize..600,
        ) {
            let device = Device::for_test(None);
            let [a, b, gather_from, c, d, router_few_tokens, logits, e, f] = limits.map(u32::from);
            let router_tile_16x8_logits = 100 * logits;
            let tuning = Tuning {
                hopper_rows_8: a / 8,
                hopper_rows_16: b / 4,
                hopper_rows_32: e / 4,
                hopper_large_mb: f / 128,
                gather_from: gather_from % 12,
                gather_rows: e,
                gather_intermediate: 4 * f,
                portable_rows_16: c / 8,
                portable_rows_64: d / 4,
                router_few_tokens,
                router_tile_16x8_logits,
                one_launch_packed_mb: one_launch_packed_mb.map(|mb| u32::from(mb) / 4),
                ..Tuning::default()
            };
            let sizes = MoeConfig { hidden_size: 512, intermediate_size, experts, top_k, ..Default::default() };
            let config = MoeConfig { tuning: tuning.clone(), ..sizes };
            let plan = |tokens| Plan::new(&device, &config, tokens, WeightLayout::Packed).expect("a plan");
            let made = plan(tokens);
            let shape = GemmShape { rows: tokens * top_k, n: 2 * intermediate_size, k: 512, experts };
            prop_assert_eq!(made.block_m, tuning.block_m(&device, &shape, Path::Auto));
            let few_times = mean_rows(&config, tokens) <= tuning.gather_rows as usize
                || intermediate_size <= tuning.gather_intermediate as usize;
            let many = top_k >= tuning.gather_from as usize;
            let gathers = made.is_gated() && made.block_m == 128 && many && few_times;
            prop_assert_eq!(made.gathers(), gathers);
            let router = match tokens as u32 {
                tokens if tokens <= router_few_tokens => RouterLogitsPath::Few,
                tokens if tokens * experts as u32 <= router_tile_16x8_logits => RouterLogitsPath::Tile16x8,
                _ => RouterLogitsPath::Tile64x64,
            };
            prop_assert_eq!(made.router, router);
            let bytes = Plan::workspace_bytes(&device, &config, tokens).expect("few tokens");
            for fewer in (1..=tokens).step_by(7).chain(1..=tokens.min(9)) {
                prop_assert!(plan(fewer).layout.bytes <= bytes, "{} tokens of {}", fewer, tokens);
            }
            for few in 1..=8 {
                let bytes = tuning.one_launch_packed_mb[few - 1] as f64 * 1e6;
                let idle = (1.0 - top_k as f64 / experts as f64).powi(few as i32);
                let read = experts as f64 * (1.0 - idle) * (3 * 512 * intermediate_size) as f64;
                let forced = MoeConfig { path: Path::OneLaunch, ..config.clone() };
                let fits = FewTokensPlan::new(&device, &forced, few, true).is_some();
                prop_assert_eq!(plan(few).few_tokens.is_some(), fits && read <= bytes, "{} tokens", few);
            }
        }
    }

    /// Tiles are chosen by the rows of an expert, which do not depend on how many ranks there are; memory is
    /// not.
    #[test]
    fn ranks_choose_the_tiles_of_the_whole_layer() {
        let device = Device::for_test(None);
        let config = MoeConfig {
            hidden_size: 256,
            intermediate_size: 256,
            experts: 128,
            top_k: 8,
            ..MoeConfig::default()
        };
        for tokens in [1, 64, 256, 512, 4096] {
            let whole = Plan::new(&device, &config, tokens, WeightLayout::Checkpoint).expect("a plan");
            for ranks in [2, 8] {
                let config = config.for_rank(1, ranks).expect("a rank");
                let plan = Plan::new(&device, &config, tokens, WeightLayout::Checkpoint).expect("a plan");
                // A rank's few rows are rounded up to a row for each of its experts.
                assert!(tokens < 64 || plan.block_m == whole.block_m, "{tokens} tokens, {ranks} ranks");
                assert_eq!(plan.capacity(), whole.capacity());
            }
        }
    }
}
