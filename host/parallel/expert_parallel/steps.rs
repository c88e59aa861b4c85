//! The steps of a forward of one chunk: what each enqueues.

use half::bf16;

use super::{Chunk, ExpertParallel};
use crate::config::{ActivationScales, GROUP, Routing};
use crate::error::Result;
use crate::gpu::stream::Stream;
use crate::layer::{Hidden, Output, Request, Routed};
use crate::ops::quantize::{
    Activations, ActivationsMut, Destinations, Quantize, QuantizeShape, Scheme, quantize,
};
use crate::ops::sum_ranks::{SumRanks, sum_ranks};
use crate::parallel::batch::Batch;
use crate::parallel::communicator::Part;
use crate::parallel::routing;
use crate::parallel::wire::{ParallelWorkspace, Partials, Wire};

/// A routing that travels from where the program has it: one for every place of the rank. Others are copied
/// to the rank's block first, with places of no token behind them.
fn whole<'a>(batch: &Batch<'a>, chunk: Chunk) -> Option<Routed<'a>> {
    batch.routed.filter(|_| chunk.tokens == chunk.capacity)
}

impl ExpertParallel {
    /// Routes and quantises this rank's tokens into its block of what travels.
    pub(super) fn dispatch_chunk(
        &self,
        stream: &Stream,
        batch: &Batch<'_>,
        chunk: Chunk,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let (rank, Wire { hidden, top_k, groups, .. }) = (self.communicator.rank(), self.wire);
        let Chunk { tokens, capacity } = chunk;
        let block = |columns: usize| rank * capacity * columns..(rank + 1) * capacity * columns;
        let mut ids = workspace.ids.slice_mut(block(top_k));
        let mut weights = workspace.weights.slice_mut(block(top_k));
        let slots = tokens * top_k;
        if let (None, Activations::Bf16(hidden)) = (&batch.routed, batch.hidden) {
            let logits = workspace.logits.as_mut_slice();
            let (ids, weights) = (ids.slice_mut(..slots), weights.slice_mut(..slots));
            self.layer.route(stream, hidden, logits, ids, weights)?;
        }
        let whole = whole(batch, chunk);
        if whole.is_none() {
            let given = batch.routed.map(|routed| (routed.topk_ids, routed.topk_weights));
            routing::stage(stream, given, slots, ids, weights.reborrow())?;
        }
        let weights = whole.map_or(weights.as_slice(), |routed| routed.topk_weights);
        let scales = workspace.scales.slice_mut(block(groups));
        let config = self.layer.config();
        let args = Quantize {
            x: batch.hidden,
            row_weight: (config.routing == Routing::SigmoidInput).then_some(weights),
            destinations: Destinations::Identity,
            scheme: match config.first_scales() {
                ActivationScales::Static => {
                    Scheme::TensorStatic { scale: self.layer.weights().input_scales[0].as_slice() }
                }
                ActivationScales::Token => Scheme::Token { scales, absmax_limit: None },
                ActivationScales::Group128 => {
                    Scheme::Group { group_size: GROUP, scales, layout: self.wire.scale_layout() }
                }
            },
            q: workspace.values.slice_mut(block(hidden)),
            cleared: None,
        };
        quantize(stream, QuantizeShape { rows: tokens, columns: hidden }, args)
    }

    /// Everybody's rows to everybody.
    pub(super) fn gather(
        &self,
        stream: &Stream,
        batch: &Batch<'_>,
        chunk: Chunk,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let Wire { ranks, hidden, top_k, groups, .. } = self.wire;
        let rows = ranks * chunk.capacity;
        let whole = whole(batch, chunk);
        let ids = whole.map(|routed| routed.topk_ids.slice(..chunk.tokens * top_k).cast());
        let weights = whole.map(|routed| routed.topk_weights.slice(..chunk.tokens * top_k).cast());
        let mut parts = vec![
            Part::in_place(workspace.values.slice_mut(..rows * hidden).cast()),
            Part { all: workspace.ids.slice_mut(..rows * top_k).cast(), own: ids },
            Part { all: workspace.weights.slice_mut(..rows * top_k).cast(), own: weights },
        ];
        if groups > 0 {
            parts.push(Part::in_place(workspace.scales.slice_mut(..rows * groups).cast()));
        }
        // SAFETY: the ranks have settled, in `prepare`, on sizes and capacity, from which the lengths follow;
        // an exchange follows each gather, in a forward or in its combination, or the group fails.
        unsafe { self.communicator.enqueue_all_gather(stream, &mut parts) }
    }

    /// This rank's experts on the rows of all ranks.
    pub(super) fn run_experts(
        &mut self,
        stream: &Stream,
        chunk: Chunk,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let Wire { ranks, hidden, top_k, groups, partials } = self.wire;
        let (rank, rows) = (self.communicator.rank(), ranks * chunk.capacity);
        let mut ids = workspace.ids.slice(..rows * top_k);
        if let Some(holders) = &self.holders {
            let chosen = workspace.chosen.slice_mut(..rows * top_k);
            holders.choose(stream, rank, [chunk.capacity, top_k], ids, chosen)?;
            ids = workspace.chosen.slice(..rows * top_k);
        }
        let partial = workspace.partial.slice_mut(..rows * hidden * partials.size());
        let out = match partials {
            Partials::Bf16 => ActivationsMut::Bf16(partial.cast::<bf16>()),
            Partials::F32 => ActivationsMut::F32(partial.cast::<f32>()),
        };
        let (memory, control) = workspace.layer.parts();
        let request = Request {
            hidden: Hidden::Quantised {
                values: workspace.values.slice(..rows * hidden),
                scales: (groups > 0).then(|| workspace.scales.slice(..rows * groups)),
                layout: self.wire.scale_layout(),
            },
            routed: Some(Routed { topk_ids: ids, topk_weights: workspace.weights.slice(..rows * top_k) }),
            token_ids: None,
            workspace: memory,
            control: Some(control),
            out: Output::Write(out),
            observe: None,
            is_weighed: true,
        };
        self.layer.enqueue(stream, request)?;
        match &mut self.counts {
            Some(counts) if !counts.is_empty() => {
                routing::count(stream, workspace.layer.expert_offsets(rows)?, counts.as_mut_slice())
            }
            _ => Ok(()),
        }
    }

    /// Every part of the result to the rank whose tokens it is of.
    pub(super) fn scatter(
        &self,
        stream: &Stream,
        chunk: Chunk,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let bytes = self.wire.ranks * chunk.capacity * self.wire.hidden * self.wire.partials.size();
        let (send, receive) = (workspace.partial.slice(..bytes), workspace.arrived.slice_mut(..bytes));
        // SAFETY: as in `gather`.
        unsafe { self.communicator.enqueue_all_to_all(stream, send, receive) }
    }

    /// Adds up what the ranks made of this rank's tokens.
    pub(super) fn sum(
        &self,
        stream: &Stream,
        chunk: Chunk,
        workspace: &ParallelWorkspace,
        out: ActivationsMut<'_>,
    ) -> Result<()> {
        let Wire { ranks, hidden, partials, .. } = self.wire;
        let arrived = workspace.arrived.slice(..ranks * chunk.capacity * hidden * partials.size());
        let x = match partials {
            Partials::Bf16 => Activations::Bf16(arrived.cast::<bf16>()),
            Partials::F32 => Activations::F32(arrived.cast::<f32>()),
        };
        let (rank_rows, rows) = (chunk.capacity, chunk.tokens);
        sum_ranks(stream, SumRanks { ranks, rank_rows, rows, columns: hidden, x, out })
    }
}
