//! Which kernel computes the router's logits, and its grid.

use crate::error::{Result, require};
use crate::gpu::launch::Grid;

/// The kernels of [`router_logits`](crate::ops::router::router_logits); any of them takes any size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RouterLogitsPath {
    /// By the number of tokens: up to 8, up to 512, more.
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
    /// What it is for so many tokens.
    pub(crate) fn resolve(self, tokens: usize) -> Self {
        match (self, tokens) {
            (RouterLogitsPath::Auto, ..=8) => RouterLogitsPath::Few,
            (RouterLogitsPath::Auto, ..=512) => RouterLogitsPath::Tile16x8,
            (RouterLogitsPath::Auto, _) => RouterLogitsPath::Tile64x64,
            (path, _) => path,
        }
    }

    /// Refuses more tokens or experts than the grid of the kernel reaches; `self` is resolved. Both are below 2^31.
    pub(crate) fn check(self, op: &'static str, tokens: usize, experts: usize) -> Result<()> {
        let (most_tokens, most_experts) = match self {
            RouterLogitsPath::Few => (8 * GRID_Y, usize::MAX),
            RouterLogitsPath::Tile16x8 => (usize::MAX, 8 * GRID_Y),
            RouterLogitsPath::Tile64x64 | RouterLogitsPath::Auto => (usize::MAX, 64 * GRID_Y),
        };
        require(tokens <= most_tokens, op, "tokens", tokens, || format!("must be at most {most_tokens}"))?;
        require(experts <= most_experts, op, "experts", experts, || format!("must be at most {most_experts}"))
    }

    /// Grid and dynamic shared memory of the kernel; `self` is resolved.
    pub(crate) fn grid(self, tokens: u32, experts: u32) -> (Grid, u32) {
        match self {
            RouterLogitsPath::Few => ((experts, tokens.div_ceil(8)).into(), 256),
            RouterLogitsPath::Tile16x8 => ((tokens.div_ceil(16), experts.div_ceil(8)).into(), 7 * 512),
            RouterLogitsPath::Tile64x64 | RouterLogitsPath::Auto => {
                ((tokens.div_ceil(64), experts.div_ceil(64)).into(), 16384)
            }
        }
    }
}
