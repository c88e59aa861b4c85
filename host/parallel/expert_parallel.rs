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

pub(super) mod dispatched;
mod steps;

use std::sync::Arc;

use super::batch::{Batch, ExpertOptions};
use super::communicator::{Communicator, Term};
use super::placement::Placement;
use super::routing::Holders;
use super::wire::{ParallelWorkspace, Wire};
use crate::config::MoeConfig;
use crate::error::{Result, require};
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::stream::Stream;
use crate::layer::{MoeLayer, Routed};
use crate::ops::quantize::{Activations, ActivationsMut};

const OP: &str = "ExpertParallel";

/// A step of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "no part of the public API: the command alone measures steps")]
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
        // Behind an error the last handle would go before the error is noted, and with it this rank: others
        // would learn that it has left, and not why.
        let present = communicator.clone();
        let checked = abort.note(Self::checked(layer, communicator, options));
        drop(present);
        checked
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
        require(same, OP, "layer", format_args!("a layer on {}", layer.device()), || {
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
            require(old == new, OP, "layer", format_args!("{new:?}"), || {
                "must have the config of the old one, but for its experts".into()
            })?;
            let same = layer.device().same_as(self.layer.device());
            require(same, OP, "layer", format_args!("a layer on {}", layer.device()), || {
                format!("must be on {}", self.layer.device())
            })?;
            (self.layer, self.placement) = (layer, placement);
            self.version += 1;
            self.complete()
        };
        abort.note(replace())
    }

    /// Enqueues a forward: this rank's tokens by all ranks' experts, written to `out` `[T, H]` of bf16, f16
    /// or f32. Collective.
    ///
    /// The first forward of a capacity loads kernels and waits, on the host, until all ranks have: also
    /// during a capture.
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
            self.gather(stream, &part, chunk, workspace)?;
            self.run_experts(stream, chunk, workspace)?;
            self.scatter(stream, chunk, workspace)?;
            let elements = range.start * columns..range.end * columns;
            self.sum(stream, chunk, workspace, out.slice_mut(elements))?;
        }
        Ok(())
    }

    /// One step of a forward of one chunk, by itself, on what the workspace holds: what it takes is measured
    /// so. All ranks settle on it first.
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
                self.gather(stream, &batch, chunk, workspace)
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
        require(same, OP, "stream", format_args!("{stream:?}"), || {
            format!("must be on the layer's device, {}", self.layer.device())
        })?;
        let (config, h) = (self.layer.config(), self.wire.hidden);
        let fits = workspace.config == *config && workspace.wire == self.wire;
        require(fits && workspace.capacity == self.chunk(), OP, "workspace", "one of another layer", || {
            "must be of this layer, or of one with equal config and options".into()
        })?;
        let (len, tokens) = (batch.len(), batch.len() / h);
        require(len.is_multiple_of(h), OP, "hidden", format_args!("{len} elements"), || {
            format!("must be a multiple of {h}, the hidden size")
        })?;
        batch.hidden.check(OP, "hidden", len, stream)?;
        let is_taken = !matches!(batch.hidden, Activations::F32(_));
        require(is_taken, OP, "hidden", "f32", || "must be bf16 or f16".into())?;
        let capacity = batch.capacity.unwrap_or(self.options.max_tokens);
        require(capacity <= self.options.max_tokens, OP, "capacity", capacity, || {
            format!("must be at most {}, max_tokens", self.options.max_tokens)
        })?;
        require(tokens <= capacity, OP, "hidden", format_args!("{tokens} tokens"), || {
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
                require(config.vocabulary().is_none(), OP, "routing", "the layer's own", || {
                    "must be given: the layer's experts are looked up by token id".into()
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
            let routed = Routed {
                topk_ids: Slice::imagined(&device, slots),
                topk_weights: Slice::imagined(&device, slots),
            };
            let batch = Batch {
                hidden: match class.types[0] {
                    "f16" => Activations::F16(Slice::imagined(&device, elements)),
                    _ => Activations::Bf16(Slice::imagined(&device, elements)),
                },
                routed: class.is_routed.then_some(routed),
                capacity: None,
            };
            self.dispatch_chunk(rehearsal, &batch, Chunk { tokens, capacity }, workspace)?;
        }
        let chunk = Chunk { tokens: 1, capacity };
        self.run_experts(rehearsal, chunk, workspace)?;
        let out = match class.types[1] {
            "bf16" => ActivationsMut::Bf16(SliceMut::imagined(&device, columns)),
            "f16" => ActivationsMut::F16(SliceMut::imagined(&device, columns)),
            "f32" => ActivationsMut::F32(SliceMut::imagined(&device, columns)),
            _ => return Ok(()),
        };
        self.sum(rehearsal, chunk, workspace, out)
    }
}

impl std::fmt::Debug for ExpertParallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, size) = (self.communicator.rank(), self.communicator.size());
        write!(f, "rank {rank} of {size} of {:?}, {:?}", self.layer.config(), self.placement)
    }
}
