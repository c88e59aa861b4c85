//! What travels between ranks, and the memory that it lies in.
//!
//! ```text
//!              R ranks, c tokens of each (its capacity), k slots, H columns, G scales of a row
//!
//!   dispatch   values   e4m3 [R, c, H]  --.
//!              scales   f32  [R, c, G]    | block r: rank r's own tokens, the rest by all_gather
//!              ids      i32  [R, c, k]    | -1 where rank r has no such token
//!              weights  f32  [R, c, k]  --'
//!              chosen   i32  [R, c, k]      ids of the rows that this rank takes; where experts have replicas
//!
//!   experts    partial  bf16 [R, c, H]      what this rank's experts make of every rank's tokens, weighed
//!
//!   combine    arrived  bf16 [R, c, H]      block r: what rank r's experts made of this rank's tokens, by all_to_all
//! ```
//!
//! A forward of a capacity below the memory's takes the front of each array, as if there were no more. G is 1
//! where there is a scale for each row, `ceil(H / 128)` where there is one for each 128 columns, and 0 where
//! one is given for all. A row takes `H + 4G + 8k` bytes on its way out and 2H on its way back.

use crate::config::MoeConfig;
use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::layer::Workspace;
use crate::plan::elements;
use crate::plan::rows::ScaleLayout;

const OP: &str = "ExpertParallel::workspace";

/// The type in which ranks' parts of the result travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Partials {
    /// bfloat16: a part is rounded to it before the sum.
    #[default]
    Bf16,
    /// IEEE binary32: the sum alone is rounded, and twice the bytes travel.
    F32,
}

impl Partials {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Partials::Bf16 => 2,
            Partials::F32 => 4,
        }
    }
}

/// The sizes of what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    /// R.
    pub ranks: usize,
    /// H.
    pub hidden: usize,
    /// k.
    pub top_k: usize,
    /// G.
    pub groups: usize,
    /// The type of the parts.
    pub partials: Partials,
}

impl Wire {
    /// Of a layer over `ranks` ranks.
    pub fn new(config: &MoeConfig, ranks: usize, partials: Partials) -> Wire {
        let hidden = config.hidden_size;
        let groups = config.first_scales().of_row(hidden);
        Wire { ranks, hidden, top_k: config.top_k, groups, partials }
    }

    /// Bytes that a token takes: to every other rank, and back from it.
    pub fn token_bytes(&self) -> [usize; 2] {
        [self.hidden + 4 * self.groups + 8 * self.top_k, self.partials.size() * self.hidden]
    }

    /// Where the scales of rows that travel are.
    pub fn scale_layout(&self) -> ScaleLayout {
        ScaleLayout::row_major(self.groups)
    }
}

/// The memory of forwards over several ranks, one at a time. From
/// [`ExpertParallel::workspace`](super::ExpertParallel::workspace).
///
/// Layers of equal configs may share one, placements included.
#[derive(Debug)]
pub struct ParallelWorkspace {
    pub(super) config: MoeConfig,
    pub(super) wire: Wire,
    /// c at most.
    pub(super) capacity: usize,
    pub(super) values: Buffer<E4m3>,
    pub(super) scales: Buffer<f32>,
    pub(super) ids: Buffer<i32>,
    pub(super) weights: Buffer<f32>,
    pub(super) chosen: Buffer<i32>,
    pub(super) logits: Buffer<f32>,
    pub(super) partial: Buffer<u8>,
    pub(super) arrived: Buffer<u8>,
    /// The layer's own.
    pub(super) layer: Workspace,
}

impl ParallelWorkspace {
    pub(super) fn new(
        device: &Device,
        config: &MoeConfig,
        wire: Wire,
        capacity: usize,
        layer: Workspace,
    ) -> Result<ParallelWorkspace> {
        let rows = elements(OP, "tokens", &[wire.ranks, capacity])?;
        let of = |columns: usize| elements(OP, "tokens", &[rows, columns]);
        Ok(ParallelWorkspace {
            config: config.clone(),
            wire,
            capacity,
            values: device.uninit(of(wire.hidden)?)?,
            scales: device.uninit(of(wire.groups)?)?,
            ids: device.uninit(of(wire.top_k)?)?,
            weights: device.uninit(of(wire.top_k)?)?,
            chosen: device.uninit(of(wire.top_k)?)?,
            logits: device.uninit(elements(OP, "tokens", &[capacity, config.experts])?)?,
            partial: device.uninit(of(wire.hidden * wire.partials.size())?)?,
            arrived: device.uninit(of(wire.hidden * wire.partials.size())?)?,
            layer,
        })
    }

    /// Tokens of each rank that it has room for at a time.
    pub fn tokens(&self) -> usize {
        self.capacity
    }

    /// The routing of all ranks' tokens in the last forward of a capacity of `tokens`, in one chunk: ids and
    /// weights `[R, tokens, k]`, -1 where a rank has no such token.
    ///
    /// # Panics
    /// If it has no room for so many tokens.
    pub fn routing(&self, tokens: usize) -> (Slice<'_, i32>, Slice<'_, f32>) {
        let slots = self.wire.ranks * tokens * self.wire.top_k;
        (self.ids.slice(..slots), self.weights.slice(..slots))
    }

    /// All of its memory. A forward writes whatever it reads, so that the contents do not matter.
    pub fn memory(&mut self) -> [SliceMut<'_, u8>; 9] {
        [
            self.values.as_mut_slice().cast(),
            self.scales.as_mut_slice().cast(),
            self.ids.as_mut_slice().cast(),
            self.weights.as_mut_slice().cast(),
            self.chosen.as_mut_slice().cast(),
            self.logits.as_mut_slice().cast(),
            self.partial.as_mut_slice(),
            self.arrived.as_mut_slice(),
            self.layer.memory(),
        ]
    }
}
