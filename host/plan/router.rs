//! Which kernel computes the router's logits, and its grid.

use crate::config::Tuning;
use crate::error::{Result, require};
use crate::gpu::launch::{Grid, Kernel};
use crate::kernels::launchers::{self, LogitsTile, RouterLogits};

/// The kernels of [`router_logits`](crate::ops::router::router_logits); any of them takes any size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouterLogitsPath {
    /// By the number of tokens and of logits: for few, for more, for many. In a layer its [`Tuning`] says how
    /// many that is, elsewhere that of [`Tuning::default`].
    #[default]
    Auto,
    /// A block for an expert and 8 tokens, on the CUDA cores.
    Few,
    /// A block for 16 tokens and 8 experts, on the tensor cores.
    Tile16x8,
    /// A block for 64 tokens and 64 experts, on the tensor cores.
    Tile64x64,
}

/// Blocks along y that a grid may have.
const GRID_Y: usize = 65535;

impl RouterLogitsPath {
    /// What it is for so many tokens and experts.
    pub(crate) fn resolve(self, tokens: usize, experts: usize, tuning: &Tuning) -> Self {
        let logits = tokens.saturating_mul(experts);
        match self {
            RouterLogitsPath::Auto if tokens <= tuning.router_few_tokens as usize => RouterLogitsPath::Few,
            RouterLogitsPath::Auto if logits <= tuning.router_tile_16x8_logits as usize => {
                RouterLogitsPath::Tile16x8
            }
            RouterLogitsPath::Auto => RouterLogitsPath::Tile64x64,
            path => path,
        }
    }

    /// The kernel for hidden states in f16 or in bf16, and what a block of it computes; `self` is resolved.
    /// Blocks of `Few` are along x for the experts and along y for the tokens, of the others the other way
    /// round.
    fn kernel(self, is_f16: bool) -> (Kernel<RouterLogits>, LogitsTile) {
        match self {
            RouterLogitsPath::Few if is_f16 => (launchers::ROUTER_LOGITS_FEW_F16, launchers::LOGITS_FEW),
            RouterLogitsPath::Few => (launchers::ROUTER_LOGITS_FEW, launchers::LOGITS_FEW),
            RouterLogitsPath::Tile16x8 => (launchers::ROUTER_LOGITS_16X8, launchers::LOGITS_16X8),
            RouterLogitsPath::Tile64x64 | RouterLogitsPath::Auto => {
                (launchers::ROUTER_LOGITS_64X64, launchers::LOGITS_64X64)
            }
        }
    }

    /// Refuses more tokens or experts than the grid of the kernel reaches; `self` is resolved. Both are below
    /// 2^31.
    pub(crate) fn check(self, op: &'static str, tokens: usize, experts: usize) -> Result<()> {
        let (_, tile) = self.kernel(false);
        let (name, along_y, of_block) = match self {
            RouterLogitsPath::Few => ("tokens", tokens, tile.tokens),
            _ => ("experts", experts, tile.experts),
        };
        let most = of_block as usize * GRID_Y;
        require(along_y <= most, op, name, along_y, || format!("must be at most {most}"))
    }

    /// The kernel for hidden states in f16 or in bf16, and its grid; `self` is resolved.
    pub(crate) fn launch(self, tokens: u32, experts: u32, is_f16: bool) -> (Kernel<RouterLogits>, Grid) {
        let (kernel, tile) = self.kernel(is_f16);
        let (tokens, experts) = (tokens.div_ceil(tile.tokens), experts.div_ceil(tile.experts));
        match self {
            RouterLogitsPath::Few => (kernel, (experts, tokens).into()),
            _ => (kernel, (tokens, experts).into()),
        }
    }
}
