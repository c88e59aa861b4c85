//! A layer whose experts are spread over ranks.
//!
//! ```text
//!   own tokens [T, H] --route, quantise--> block r of values, scales, ids, weights
//!                                             |
//!                                         all_gather              dispatch: every rank has every rank's rows
//!                                             |
//!                      [R * c, H] --choose replicas--> this rank's experts --> partial [R, c, H]        experts
//!                                                                                 |
//!                                                                             all_to_all                combine
//!                                                                                 |
//!   out [T, H] <--sum in the order of the ranks, one rounding-- arrived [R, c, H]-'
//! ```
//!
//! - *Rows travel quantised*, by the layer's scheme, which is exact: a row's values and scales do not depend
//!   on other rows. Where the routing weighs the input, that is done at the source.
//! - *Capacity.* All ranks say how many tokens none of them exceeds, c, and move as many rows: so no rank
//!   waits for another's count, and the forward can be captured. Places without a token have the id -1, which
//!   no expert has. A capacity over the workspace's is cut into chunks, on all ranks alike.
//! - *The result* is that of R layers, each with its experts, on the tokens of all ranks, added in the order
//!   of the ranks: the same bits every time.
//! - *A rank that returns an error* has failed the group: the others would wait for what it did not enqueue.

use std::sync::Arc;

use half::bf16;

use super::batch::{Batch, ExpertOptions};
use super::communicator::{Communicator, Term};
use super::placement::Placement;
use super::routing::{self, Holders};
use super::wire::{ParallelWorkspace, Partials, Wire};
use crate::config::{ActivationScales, GROUP, MoeConfig, Routing};
use crate::error::{Result, require};
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::layer::{Hidden, MoeLayer, Output, Request, Routed};
use crate::ops::quantize::{
    Activations, ActivationsMut, Destinations, Quantize, QuantizeShape, Scheme, quantize,
};
use crate::ops::sum_ranks::{SumRanks, sum_ranks};

const OP: &str = "ExpertParallel";

/// A step of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Rows are quantised and go to all ranks.
    Dispatch,
    /// This rank's experts.
    Experts,
    /// Results come back and are added up.
    Combine,
}

/// An MoE layer over the ranks of a [`Communicator`], as one of them sees it.
///
/// Creation, changes of placement and every forward are collective: all ranks make the same calls in the same
/// order, also those that have no tokens.
pub struct ExpertParallel {
    layer: MoeLayer,
    communicator: Arc<dyn Communicator>,
    options: ExpertOptions,
    placement: Placement,
    wire: Wire,
    /// Where experts have replicas.
    holders: Option<Holders>,
    /// Rows of this rank's experts so far; where they are counted.
    counts: Option<Buffer<u64>>,
    /// Changes of placement.
    version: u64,
    /// Forwards whose kernels have been loaded.
    loaded: Vec<Class>,
}

/// What decides which kernels a forward takes beside those of the layer, and which of the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    capacity: usize,
    types: [&'static str; 2],
    is_routed: bool,
}

/// The tokens of one chunk: this rank's, and those that no rank exceeds.
#[derive(Clone, Copy)]
struct Chunk {
    tokens: usize,
    capacity: usize,
}

impl ExpertParallel {
    /// The layer of this rank, with the experts that the placement gives it
    /// ([`Placement::config`]), as a part of the whole. Collective: the ranks compare version, config,
    /// placement and options.
    ///
    /// # Errors
    /// A layer that does not have this rank's experts, or is on another device than the communicator's; ranks
    /// that differ, by name; options of 0 tokens.
    pub fn new(
        layer: MoeLayer,
        communicator: Arc<dyn Communicator>,
        options: ExpertOptions,
    ) -> Result<ExpertParallel> {
        let abort = communicator.abort_handle();
        abort.note(Self::checked(layer, communicator, options))
    }

    fn checked(
        layer: MoeLayer,
        communicator: Arc<dyn Communicator>,
        options: ExpertOptions,
    ) -> Result<ExpertParallel> {
        let (experts, ranks) = (layer.config().experts, communicator.size());
        require(options.max_tokens > 0, OP, "max_tokens", options.max_tokens, || {
            "must be at least 1".into()
        })?;
        require(options.chunk != Some(0), OP, "chunk", 0, || "must be at least 1".into())?;
        let same = layer.device().same_as(communicator.device());
        require(same, OP, "layer", format!("a layer on {}", layer.device()), || {
            format!("must be on the communicator's device, {}", communicator.device())
        })?;
        let placement = match &options.placement {
            Some(placement) => placement.clone(),
            None => Placement::linear(experts, ranks)?,
        };
        let wire = Wire::new(layer.config(), ranks, options.partials);
        let mut parallel = ExpertParallel {
            layer,
            communicator,
            options,
            placement,
            wire,
            holders: None,
            counts: None,
            version: 0,
            loaded: Vec::new(),
        };
        parallel.complete()?;
        Ok(parallel)
    }

    /// Takes over layer and placement: checks them, compares them with the other ranks', and makes what the
    /// forwards need of them.
    fn complete(&mut self) -> Result<()> {
        let (config, rank) = (self.layer.config(), self.communicator.rank());
        require(
            self.placement.experts() == config.experts && self.placement.ranks() == self.communicator.size(),
            OP,
            "placement",
            format!("{} experts on {} ranks", self.placement.experts(), self.placement.ranks()),
            || format!("must be of {} experts on {} ranks", config.experts, self.communicator.size()),
        )?;
        require(config.shared.is_none(), OP, "layer", "with a shared expert", || {
            "must be without: rows here are those of all ranks' tokens; a layer of it beside this one has its own"
                .into()
        })?;
        let expected = self.placement.of_rank(rank);
        require(
            config.local_ids() == expected,
            OP,
            "layer",
            format!("experts {:?}", config.local_ids()),
            || format!("must have the experts of rank {rank}, {expected:?}"),
        )?;
        let device = self.layer.device();
        self.holders =
            self.placement.has_replicas().then(|| Holders::new(device, &self.placement)).transpose()?;
        self.counts = self.options.statistics.then(|| device.zeros(expected.len())).transpose()?;
        self.loaded.clear();
        self.communicator.agree(&self.terms()?)
    }

    /// What all ranks must have alike.
    fn terms(&self) -> Result<Vec<Term>> {
        let shared = MoeConfig { local_experts: None, ..self.layer.config().clone() };
        let mut terms = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("config", format!("{shared:?}")),
            ("placement", format!("{:?}", self.placement)),
            ("changes of placement", self.version.to_string()),
            ("max_tokens", self.options.max_tokens.to_string()),
            ("chunk", self.chunk().to_string()),
            ("partials", format!("{:?}", self.options.partials)),
        ];
        if shared.quantization.is_static() {
            // Rows are quantised by one rank and multiplied by another.
            let stream = self.layer.device().default_stream();
            let scale = self.layer.weights().input_scales[0].to_vec(&stream)?;
            terms.push(("input scale", format!("{scale:?}")));
        }
        Ok(terms)
    }

    /// This rank's part of the layer.
    pub fn layer(&self) -> &MoeLayer {
        &self.layer
    }

    /// Which rank holds which experts.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The group.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.communicator
    }

    /// Bytes that a token takes: to every other rank, and back from it.
    pub fn token_bytes(&self) -> [usize; 2] {
        self.wire.token_bytes()
    }

    /// Tokens of each rank that a chunk has at most.
    fn chunk(&self) -> usize {
        self.options.chunk.map_or(self.options.max_tokens, |chunk| chunk.min(self.options.max_tokens))
    }

    /// Memory for forwards of any number of tokens.
    ///
    /// # Errors
    /// More rows than the kernels can count, or than the device has memory for.
    pub fn workspace(&self) -> Result<ParallelWorkspace> {
        let (device, chunk) = (self.layer.device(), self.chunk());
        let rows = crate::plan::elements(OP, "chunk", &[self.wire.ranks, chunk])?;
        ParallelWorkspace::new(device, self.layer.config(), self.wire, chunk, self.layer.workspace(rows)?)
    }

    /// Replaces layer and placement, e.g. by one with replicas of hot experts. Collective. Forwards that have
    /// been enqueued use the old ones; graphs that have been captured keep them, on all ranks.
    ///
    /// # Errors
    /// Those of [`ExpertParallel::new`]. The group has failed then.
    pub fn replace(&mut self, layer: MoeLayer, placement: Placement) -> Result<()> {
        let abort = self.communicator.abort_handle();
        let replace = || {
            let [old, new] = [&self.layer, &layer]
                .map(|layer| MoeConfig { local_experts: None, ..layer.config().clone() });
            require(old == new, OP, "layer", format!("{new:?}"), || {
                "must have the config of the old one, but for its experts".into()
            })?;
            let same = layer.device().same_as(self.layer.device());
            require(same, OP, "layer", format!("a layer on {}", layer.device()), || {
                format!("must be on {}", self.layer.device())
            })?;
            (self.layer, self.placement) = (layer, placement);
            self.version += 1;
            self.complete()
        };
        abort.note(replace())
    }

    /// Enqueues a forward: this rank's tokens by all ranks' experts, written to `out` `[T, H]` of bf16, f16 or
    /// f32. Collective.
    ///
    /// The first forward of a capacity loads kernels and waits, on the host, until all ranks have: also during
    /// a capture.
    ///
    /// # Errors
    /// Slices that are too short or on another device; more tokens than the capacity, or a capacity over
    /// [`ExpertOptions::max_tokens`]; a workspace of another layer; ranks with other capacities, by name; a
    /// rank that has failed. The group has failed then.
    pub fn forward<'a>(
        &mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &mut ParallelWorkspace,
        out: impl Into<ActivationsMut<'a>>,
    ) -> Result<()> {
        let abort = self.communicator.abort_handle();
        abort.note(self.enqueue(stream, batch, workspace, out.into()))
    }

    fn enqueue(
        &mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &mut ParallelWorkspace,
        mut out: ActivationsMut<'_>,
    ) -> Result<()> {
        let Chunk { tokens, capacity } = self.check(stream, &batch, workspace)?;
        let [columns, top_k] = [self.wire.hidden, self.wire.top_k];
        out.check(OP, "out", tokens * columns, stream)?;
        self.prepare(&batch, capacity, workspace, Some(out.as_activations().type_name()))?;
        let size = self.chunk();
        for first in (0..capacity).step_by(size) {
            let chunk = Chunk {
                tokens: tokens.saturating_sub(first).min(size),
                capacity: (capacity - first).min(size),
            };
            let range = first.min(tokens)..first.min(tokens) + chunk.tokens;
            let part = batch.part(range.clone(), [columns, top_k]);
            self.dispatch_chunk(stream, &part, chunk, workspace)?;
            self.gather(stream, chunk, workspace)?;
            self.run_experts(stream, chunk, workspace)?;
            self.scatter(stream, chunk, workspace)?;
            let elements = range.start * columns..range.end * columns;
            self.sum(stream, chunk, workspace, out.slice_mut(elements))?;
        }
        Ok(())
    }

    /// The first of three calls that make a forward: this rank's rows go to all ranks. Between them other work
    /// may be enqueued on other streams, a shared expert's for example. The rest are
    /// [`Dispatched::experts`] and [`Dispatched::combine`]. Collective.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward); a capacity over that of the workspace.
    pub fn dispatch<'a>(
        &'a mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &'a mut ParallelWorkspace,
    ) -> Result<Dispatched<'a>> {
        let abort = self.communicator.abort_handle();
        let chunk = abort.note(self.dispatch_whole(stream, batch, workspace))?;
        Ok(Dispatched { parallel: self, workspace, chunk, has_run: false, is_over: false })
    }

    fn dispatch_whole(
        &mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &mut ParallelWorkspace,
    ) -> Result<Chunk> {
        let chunk = self.check(stream, &batch, workspace)?;
        require(chunk.capacity <= self.chunk(), OP, "capacity", chunk.capacity, || {
            format!("must be at most {}, the chunk, for a forward in three calls", self.chunk())
        })?;
        self.prepare(&batch, chunk.capacity, workspace, None)?;
        self.dispatch_chunk(stream, &batch, chunk, workspace)?;
        self.gather(stream, chunk, workspace)?;
        Ok(chunk)
    }

    /// One step of a forward of one chunk, by itself, on what the workspace holds: what it takes is measured so.
    /// All ranks settle on it first.
    pub(crate) fn step(
        &mut self,
        step: Step,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &mut ParallelWorkspace,
        out: ActivationsMut<'_>,
    ) -> Result<()> {
        let chunk = self.check(stream, &batch, workspace)?;
        require(chunk.capacity <= self.chunk(), OP, "capacity", chunk.capacity, || {
            format!("must be at most {}, the chunk", self.chunk())
        })?;
        self.prepare(&batch, chunk.capacity, workspace, Some(out.as_activations().type_name()))?;
        let alone = [("a step", format!("{step:?} of {}", chunk.capacity))];
        self.communicator.settle(&alone)?;
        match step {
            Step::Dispatch => {
                self.dispatch_chunk(stream, &batch, chunk, workspace)?;
                self.gather(stream, chunk, workspace)
            }
            Step::Experts => self.run_experts(stream, chunk, workspace),
            Step::Combine => {
                self.scatter(stream, chunk, workspace)?;
                self.sum(stream, chunk, workspace, out)
            }
        }
    }

    /// Rows that this rank's experts have had so far, with the experts' numbers; of a replica its own share.
    /// Waits for the forwards on the host, and holds up none of them. Without
    /// [`ExpertOptions::statistics`] it is empty.
    ///
    /// # Errors
    /// If a kernel has faulted.
    pub fn counts(&self) -> Result<Vec<(usize, u64)>> {
        let Some(counts) = &self.counts else { return Ok(Vec::new()) };
        let stream = Stream::new(self.layer.device())?;
        let of_rank = self.placement.of_rank(self.communicator.rank());
        Ok(of_rank.iter().copied().zip(counts.to_vec(&stream)?).collect())
    }

    /// Refuses a batch that does not fit; its tokens and its capacity.
    fn check(&self, stream: &Stream, batch: &Batch<'_>, workspace: &ParallelWorkspace) -> Result<Chunk> {
        let same = self.layer.device().same_as(stream.device());
        require(same, OP, "stream", format!("{stream:?}"), || {
            format!("must be on the layer's device, {}", self.layer.device())
        })?;
        let (config, h) = (self.layer.config(), self.wire.hidden);
        let fits = workspace.config == *config && workspace.wire == self.wire;
        require(fits && workspace.capacity == self.chunk(), OP, "workspace", "one of another layer", || {
            "must be of this layer, or of one with equal config and options".into()
        })?;
        let (len, tokens) = (batch.len(), batch.len() / h);
        require(len.is_multiple_of(h), OP, "hidden", format!("{len} elements"), || {
            format!("must be a multiple of {h}, the hidden size")
        })?;
        batch.hidden.check(OP, "hidden", len, stream)?;
        let is_taken = !matches!(batch.hidden, Activations::F32(_));
        require(is_taken, OP, "hidden", "f32", || "must be bf16 or f16".into())?;
        let capacity = batch.capacity.unwrap_or(self.options.max_tokens);
        require(capacity <= self.options.max_tokens, OP, "capacity", capacity, || {
            format!("must be at most {}, max_tokens", self.options.max_tokens)
        })?;
        require(tokens <= capacity, OP, "hidden", format!("{tokens} tokens"), || {
            format!("must be at most {capacity} tokens, the capacity that was announced")
        })?;
        match &batch.routed {
            Some(Routed { topk_ids, topk_weights }) => {
                topk_ids.check(OP, "topk_ids", tokens * config.top_k, stream)?;
                topk_weights.check(OP, "topk_weights", tokens * config.top_k, stream)?;
            }
            None => {
                let routes = matches!(batch.hidden, Activations::Bf16(_));
                require(routes, OP, "hidden", batch.hidden.type_name(), || {
                    "must be bf16 for the layer's own router; other types take a given routing".into()
                })?;
            }
        }
        Ok(Chunk { tokens, capacity })
    }

    /// Loads what forwards of this kind need, so that no rank waits for another's compilation inside a
    /// collective call; then settles with the other ranks on what is coming.
    fn prepare(
        &mut self,
        batch: &Batch<'_>,
        capacity: usize,
        workspace: &mut ParallelWorkspace,
        out: Option<&'static str>,
    ) -> Result<()> {
        let types = [batch.hidden.type_name(), out.unwrap_or("none")];
        let class = Class { capacity, types, is_routed: batch.routed.is_some() };
        if !self.loaded.contains(&class) {
            let device = self.layer.device().clone();
            let stream = Stream::rehearsal(&device);
            for capacity in [capacity.min(self.chunk()), capacity % self.chunk()] {
                if capacity > 0 {
                    self.rehearse(&stream, class, capacity, workspace)?;
                }
            }
            device.load(&stream.rehearsed())?;
            self.loaded.push(class);
        }
        self.communicator.settle(&[
            ("the layer's sizes", format!("{:?}, changed {} times", self.wire, self.version)),
            ("capacity", capacity.to_string()),
            ("chunk", self.chunk().to_string()),
        ])
    }

    /// The steps of a chunk of `class` that run on this rank, on a stream on which nothing runs: it notes
    /// their kernels. The router's depends on the number of tokens.
    fn rehearse(
        &mut self,
        rehearsal: &Stream,
        class: Class,
        capacity: usize,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let device = self.layer.device().clone();
        let [columns, top_k] = [self.wire.hidden, self.wire.top_k];
        for tokens in [1, capacity] {
            let (elements, slots) = (tokens * columns, tokens * top_k);
            let routed =
                Routed { topk_ids: imagined(&device, slots), topk_weights: imagined(&device, slots) };
            let batch = Batch {
                hidden: match class.types[0] {
                    "f16" => Activations::F16(imagined(&device, elements)),
                    _ => Activations::Bf16(imagined(&device, elements)),
                },
                routed: class.is_routed.then_some(routed),
                capacity: None,
            };
            self.dispatch_chunk(rehearsal, &batch, Chunk { tokens, capacity }, workspace)?;
        }
        let chunk = Chunk { tokens: 1, capacity };
        self.run_experts(rehearsal, chunk, workspace)?;
        let out = match class.types[1] {
            "bf16" => ActivationsMut::Bf16(imagined_mut(&device, columns)),
            "f16" => ActivationsMut::F16(imagined_mut(&device, columns)),
            "f32" => ActivationsMut::F32(imagined_mut(&device, columns)),
            _ => return Ok(()),
        };
        self.sum(rehearsal, chunk, workspace, out)
    }

    /// Routes and quantises this rank's tokens into its block of what travels.
    fn dispatch_chunk(
        &self,
        stream: &Stream,
        batch: &Batch<'_>,
        Chunk { tokens, capacity }: Chunk,
        workspace: &mut ParallelWorkspace,
    ) -> Result<()> {
        let (rank, Wire { hidden, top_k, groups, .. }) = (self.communicator.rank(), self.wire);
        let block = |columns: usize| rank * capacity * columns..(rank + 1) * capacity * columns;
        let mut ids = workspace.ids.slice_mut(block(top_k));
        let mut weights = workspace.weights.slice_mut(block(top_k));
        let slots = tokens * top_k;
        if let (None, Activations::Bf16(hidden)) = (&batch.routed, batch.hidden) {
            let logits = workspace.logits.as_mut_slice();
            let (ids, weights) = (ids.slice_mut(..slots), weights.slice_mut(..slots));
            self.layer.route(stream, hidden, logits, ids, weights)?;
        }
        let given = batch.routed.map(|routed| (routed.topk_ids, routed.topk_weights));
        routing::stage(stream, given, slots, ids, weights.reborrow())?;
        let scales = workspace.scales.slice_mut(block(groups));
        let config = self.layer.config();
        let args = Quantize {
            x: batch.hidden,
            row_weight: (config.routing == Routing::SigmoidInput).then(|| weights.as_slice()),
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
    fn gather(&self, stream: &Stream, chunk: Chunk, workspace: &mut ParallelWorkspace) -> Result<()> {
        let Wire { ranks, hidden, top_k, groups, .. } = self.wire;
        let rows = ranks * chunk.capacity;
        let mut parts = vec![
            workspace.values.slice_mut(..rows * hidden).cast(),
            workspace.ids.slice_mut(..rows * top_k).cast(),
            workspace.weights.slice_mut(..rows * top_k).cast(),
        ];
        if groups > 0 {
            parts.push(workspace.scales.slice_mut(..rows * groups).cast());
        }
        // SAFETY: the ranks have settled, in `prepare`, on sizes and capacity, from which the lengths follow;
        // an exchange follows each gather, in a forward or in its combination, or the group fails.
        unsafe { self.communicator.enqueue_all_gather(stream, &mut parts) }
    }

    /// This rank's experts on the rows of all ranks.
    fn run_experts(
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
            workspace: memory,
            control: Some(control),
            out: Output::Write(out),
            observe: &|_| {},
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
    fn scatter(&self, stream: &Stream, chunk: Chunk, workspace: &mut ParallelWorkspace) -> Result<()> {
        let bytes = self.wire.ranks * chunk.capacity * self.wire.hidden * self.wire.partials.size();
        let (send, receive) = (workspace.partial.slice(..bytes), workspace.arrived.slice_mut(..bytes));
        // SAFETY: as in `gather`.
        unsafe { self.communicator.enqueue_all_to_all(stream, send, receive) }
    }

    /// Adds up what the ranks made of this rank's tokens.
    fn sum(
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

impl std::fmt::Debug for ExpertParallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, size) = (self.communicator.rank(), self.communicator.size());
        write!(f, "rank {rank} of {size} of {:?}, {:?}", self.layer.config(), self.placement)
    }
}

/// Elements for a rehearsal.
fn imagined<T: bytemuck::Pod>(device: &Device, len: usize) -> Slice<'_, T> {
    // SAFETY: operations on a rehearsal's stream look at lengths and enqueue nothing, and `rehearse`, which
    // alone calls this, has such a stream.
    unsafe { Slice::from_raw(device, DevicePtr::null(), len) }
}

/// As [`imagined`], to be written.
fn imagined_mut<T: bytemuck::Pod>(device: &Device, len: usize) -> SliceMut<'_, T> {
    // SAFETY: as above.
    unsafe { SliceMut::from_raw(device, DevicePtr::null(), len) }
}

/// A forward whose rows are at all ranks. It must be combined: dropped before, it has failed the group, whose
/// other ranks wait for this one's part.
#[must_use]
pub struct Dispatched<'a> {
    parallel: &'a mut ExpertParallel,
    workspace: &'a mut ParallelWorkspace,
    chunk: Chunk,
    has_run: bool,
    is_over: bool,
}

impl Dispatched<'_> {
    /// The second call: this rank's experts on the rows of all ranks. Not collective.
    ///
    /// # Errors
    /// If a launch fails. The group has failed then.
    pub fn experts(&mut self, stream: &Stream) -> Result<()> {
        let abort = self.parallel.communicator.abort_handle();
        if self.chunk.capacity > 0 {
            abort.note(self.parallel.run_experts(stream, self.chunk, self.workspace))?;
        }
        self.has_run = true;
        Ok(())
    }

    /// The third call: the results come back, and their sum is written to `out` `[T, H]` of bf16, f16 or f32.
    /// Collective.
    ///
    /// # Errors
    /// If [`experts`](Self::experts) has not been called; an `out` that is too short; a rank that has failed.
    /// The group has failed then.
    pub fn combine<'o>(mut self, stream: &Stream, out: impl Into<ActivationsMut<'o>>) -> Result<()> {
        self.is_over = true;
        let abort = self.parallel.communicator.abort_handle();
        abort.note(self.finish(stream, out.into()))
    }

    fn finish(&mut self, stream: &Stream, mut out: ActivationsMut<'_>) -> Result<()> {
        require(self.has_run, OP, "combine", "no experts", || "must come behind Dispatched::experts".into())?;
        let elements = self.chunk.tokens * self.parallel.wire.hidden;
        out.check(OP, "out", elements, stream)?;
        if self.chunk.capacity == 0 {
            return Ok(());
        }
        self.parallel.scatter(stream, self.chunk, self.workspace)?;
        self.parallel.sum(stream, self.chunk, self.workspace, out.slice_mut(0..elements))
    }
}

impl Drop for Dispatched<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.parallel.communicator.abort_handle().abort("has dispatched a forward and not combined it");
        }
    }
}

impl std::fmt::Debug for Dispatched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Chunk { tokens, capacity } = self.chunk;
        write!(f, "{tokens} tokens, of a capacity of {capacity}, at all ranks")
    }
}
