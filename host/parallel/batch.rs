//! What a forward over ranks is asked to do: the choices that all ranks share, and this rank's tokens.

use super::placement::Placement;
use super::wire::Partials;
use crate::gpu::buffer::Slice;
use crate::layer::{ExpertIds, Routed};
use crate::ops::quantize::Activations;

/// Choices of an [`ExpertParallel`](super::ExpertParallel); the same on all ranks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpertOptions {
    /// Most tokens of a rank in one forward.
    pub max_tokens: usize,
    /// Tokens of each rank that the workspace has room for at a time; `max_tokens` if `None`. Larger forwards
    /// are cut into chunks.
    pub chunk: Option<usize>,
    /// Which rank holds which experts; consecutive ones if `None`.
    pub placement: Option<Placement>,
    /// The type in which ranks' parts of the result travel.
    pub partials: Partials,
    /// Whether rows are counted per expert: one launch more in each chunk.
    pub statistics: bool,
}

impl ExpertOptions {
    /// The plain choices, for up to `max_tokens` tokens of a rank.
    pub fn new(max_tokens: usize) -> ExpertOptions {
        let partials = Partials::default();
        ExpertOptions { max_tokens, chunk: None, placement: None, partials, statistics: false }
    }

    /// With memory for so many tokens of each rank at a time.
    #[must_use]
    pub fn chunk(self, tokens: usize) -> ExpertOptions {
        ExpertOptions { chunk: Some(tokens), ..self }
    }

    /// With a placement.
    #[must_use]
    pub fn placement(self, placement: Placement) -> ExpertOptions {
        ExpertOptions { placement: Some(placement), ..self }
    }

    /// With parts that travel as `partials` says.
    #[must_use]
    pub fn partials(self, partials: Partials) -> ExpertOptions {
        ExpertOptions { partials, ..self }
    }

    /// With rows counted per expert, or not.
    #[must_use]
    pub fn statistics(self, statistics: bool) -> ExpertOptions {
        ExpertOptions { statistics, ..self }
    }
}

/// This rank's tokens in a forward.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Batch<'a> {
    pub(super) hidden: Activations<'a>,
    pub(super) routed: Option<Routed<'a>>,
    pub(super) capacity: Option<usize>,
}

impl<'a> Batch<'a> {
    /// Hidden states `[T, H]`, in bf16 or f16, routed by the layer's own router (of bf16); T may be 0, and
    /// differ between ranks.
    pub fn new(hidden: impl Into<Activations<'a>>) -> Batch<'a> {
        Batch { hidden: hidden.into(), routed: None, capacity: None }
    }

    /// With a given routing, `[T, k]` each. Ids below 0 or past the last expert contribute nothing.
    pub fn routed(self, ids: impl Into<ExpertIds<'a>>, weights: impl Into<Slice<'a, f32>>) -> Batch<'a> {
        Batch { routed: Some(Routed { topk_ids: ids.into().signed(), topk_weights: weights.into() }), ..self }
    }

    /// The tokens that no rank exceeds in this forward, the same number on all ranks:
    /// [`ExpertOptions::max_tokens`] unless it is said. The forward costs what so many tokens of each rank
    /// cost to move.
    pub fn capacity(self, tokens: usize) -> Batch<'a> {
        Batch { capacity: Some(tokens), ..self }
    }

    /// Elements of the hidden states.
    pub(super) fn len(&self) -> usize {
        self.hidden.len()
    }

    /// The tokens `tokens` of it, of `columns` columns and `top_k` slots.
    pub(super) fn part(&self, tokens: std::ops::Range<usize>, [columns, top_k]: [usize; 2]) -> Batch<'a> {
        let elements = tokens.start * columns..tokens.end * columns;
        let slots = tokens.start * top_k..tokens.end * top_k;
        let hidden = self.hidden.slice(elements);
        let routed = self.routed.map(|routed| Routed {
            topk_ids: routed.topk_ids.slice(slots.clone()),
            topk_weights: routed.topk_weights.slice(slots),
        });
        Batch { hidden, routed, capacity: self.capacity }
    }
}
