//! Forwards of random layers on random inputs, counted on the emulated device or captured as graphs.

use std::cell::RefCell;
use std::marker::PhantomData;

#[cfg(feature = "sim")]
use cust::sim::{Counters, take_counters};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::layers::Layers;
use super::part::Part;
use super::pool::Pool;
use super::routing::Routed;
use fp8_moe::Buffer;
use fp8_moe::internals::{Capture, Recorder};
use fp8_moe::{Error, Result};
use fp8_moe::{Forward, Graph, MoeLayer, OutputElement, Step, Stream, Workspace};

/// The inputs of forwards, and the memory they work in. Layers that take turns share them.
pub struct Run<'l> {
    layers: &'l [MoeLayer],
    inputs: Inputs,
    workspace: Workspace,
    out: Buffer<bf16>,
}

struct Inputs {
    stream: Stream,
    hidden: Buffer<bf16>,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
}

impl Inputs {
    /// Enqueues a forward of `layer` on `stream`, telling `observe` of every operation. Without it, it is the
    /// forward that programs run; an observed one keeps what its operations read, for their replays.
    fn forward<O: OutputElement>(
        &self,
        stream: &Stream,
        layer: &MoeLayer,
        workspace: &mut Workspace,
        out: &mut Buffer<O>,
        observe: Option<&dyn Fn(Step)>,
    ) -> Result<()> {
        let forward = Forward::new(&self.hidden, workspace, out).routed(&self.topk_ids, &self.topk_weights);
        layer.forward_with(stream, observe.into_iter().fold(forward, Forward::observed))
    }
}

impl<'l> Run<'l> {
    /// Random hidden states for the routing `routed`, which is that of `tokens` tokens.
    pub fn new(layers: &'l Layers, tokens: usize, routed: &Routed, seed: u64) -> Result<Run<'l>> {
        let layers = layers.as_slice();
        let layer = &layers[0];
        let (device, elements) = (layer.device(), tokens * layer.config().hidden_size);
        let stream = Stream::new(device)?;
        let pool = Pool::hidden_states(device, seed)?;
        let mut hidden = device.uninit(elements)?;
        pool.fill(hidden.as_mut_slice(), &mut ChaCha8Rng::seed_from_u64(seed), &stream)?;
        stream.synchronize()?;
        let topk_ids = device.upload(&routed.topk_ids)?;
        let topk_weights = device.upload(&routed.topk_weights)?;
        Ok(Run {
            layers,
            inputs: Inputs { stream, hidden, topk_ids, topk_weights },
            workspace: layer.workspace(tokens)?,
            out: device.uninit(elements)?,
        })
    }

    /// The first of the layers that take turns.
    pub fn layer(&self) -> &MoeLayer {
        &self.layers[0]
    }

    /// The hidden states, bf16 `[T, H]`.
    pub fn hidden(&self) -> &Buffer<bf16> {
        &self.inputs.hidden
    }

    /// Runs the first layer once, as a program runs it, and waits for it.
    pub fn forward(&mut self) -> Result<()> {
        self.enqueue(0, None)?;
        self.inputs.stream.synchronize()
    }

    /// The output of the first layer, f32 `[T, H]`.
    pub fn output(&mut self) -> Result<Buffer<f32>> {
        let layer = &self.layers[0];
        let mut out = layer.device().uninit(self.out.len())?;
        self.inputs.forward(&self.inputs.stream, layer, &mut self.workspace, &mut out, None)?;
        self.inputs.stream.synchronize()?;
        Ok(out)
    }

    /// Enqueues a forward of layer `set` on the run's stream, telling `observe`, if it is given, of every
    /// operation.
    fn enqueue(&mut self, set: usize, observe: Option<&dyn Fn(Step)>) -> Result<()> {
        let Run { layers, inputs, workspace, out } = self;
        inputs.forward(&inputs.stream, &layers[set], workspace, out, observe)
    }

    /// As `enqueue`, on another stream.
    fn enqueue_on(&mut self, stream: &Stream, set: usize, observe: Option<&dyn Fn(Step)>) -> Result<()> {
        let Run { layers, inputs, workspace, out } = self;
        inputs.forward(stream, &layers[set], workspace, out, observe)
    }

    /// Runs the first layer once and returns what the emulated device counted: for the layer, then for its
    /// operations in order. On a GPU all counts are zero.
    #[cfg(feature = "sim")]
    pub fn count(&mut self) -> Result<Vec<(Part, Counters)>> {
        let counted = RefCell::new(vec![(Part::Layer, Counters::default())]);
        let settle = || {
            let counters = take_counters();
            let mut counted = counted.borrow_mut();
            let last = counted.len() - 1;
            if last > 0 {
                counted[0].1 += &counters;
            }
            counted[last].1 += counters;
        };
        take_counters();
        self.enqueue(
            0,
            Some(&|step| {
                settle();
                if let Some(part) = Part::of_step(step.name) {
                    counted.borrow_mut().push((part, Counters::default()));
                }
            }),
        )?;
        settle();
        self.inputs.stream.synchronize()?;
        Ok(counted.into_inner())
    }

    /// Captures graphs of the first `sets` layers, or of all there are, whole. Runs the first layer once
    /// before.
    pub fn capture_whole(&mut self, sets: usize) -> Result<Captured<'_>> {
        self.enqueue(0, None)?;
        self.inputs.stream.synchronize()?;
        let stream = Stream::new(self.layers[0].device())?;
        let whole = (0..sets.min(self.layers.len()))
            .map(|set| stream.capture(|stream| self.enqueue_on(stream, set, None)))
            .collect::<Result<_>>()?;
        Ok(Captured { graphs: vec![(Part::Layer, whole)], stream, memory: PhantomData })
    }

    /// As [`Run::capture_whole`], whole and by operation.
    pub fn capture(&mut self, sets: usize) -> Result<Captured<'_>> {
        let Captured { graphs: mut all, stream, .. } = self.capture_whole(sets)?;
        let mut parts: Vec<(Part, Vec<Graph>)> = Vec::new();
        let recorder = Recorder::new(self.layers[0].device())?;
        for set in 0..sets.min(self.layers.len()) {
            let cuts = Cuts::new(&recorder);
            self.enqueue_on(recorder.stream(), set, Some(&|step| cuts.step(step)))?;
            for (part, graph) in cuts.finish()? {
                match parts.iter_mut().find(|(known, _)| *known == part) {
                    Some((_, graphs)) => graphs.push(graph),
                    None => parts.push((part, vec![graph])),
                }
            }
        }
        all.extend(parts);
        Ok(Captured { graphs: all, stream, memory: PhantomData })
    }
}

/// Captures a forward operation by operation. One that is no part of its own goes with the one before.
struct Cuts<'s> {
    recorder: &'s Recorder,
    open: RefCell<Option<(Part, Capture<'s>)>>,
    closed: RefCell<Result<Vec<(Part, Graph)>>>,
}

impl<'s> Cuts<'s> {
    fn new(recorder: &'s Recorder) -> Cuts<'s> {
        Cuts { recorder, open: RefCell::new(None), closed: RefCell::new(Ok(Vec::new())) }
    }

    /// Called before `step` is enqueued.
    fn step(&self, step: Step) {
        let Some(part) = Part::of_step(step.name) else { return };
        self.close();
        // SAFETY: all graphs of a run sort the same ids to the same place of the workspace, which stays
        // borrowed: once a permutation has been replayed, its lists stay the same. `Captured`
        // replays what comes before a part. This thread alone has the recorder, and a step is observed
        // between operations.
        match unsafe { self.recorder.begin() } {
            Ok(capture) => *self.open.borrow_mut() = Some((part, capture)),
            Err(error) => self.fail(error),
        }
    }

    fn close(&self) {
        let Some((part, capture)) = self.open.borrow_mut().take() else { return };
        match capture.end() {
            Ok(graph) => {
                if let Ok(graphs) = self.closed.borrow_mut().as_mut() {
                    graphs.push((part, graph));
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Keeps the first error.
    fn fail(&self, error: Error) {
        let mut closed = self.closed.borrow_mut();
        if closed.is_ok() {
            *closed = Err(error);
        }
    }

    fn finish(self) -> Result<Vec<(Part, Graph)>> {
        self.close();
        self.closed.into_inner()
    }
}

/// The graphs of a run, which stays borrowed and thereby allocated.
pub struct Captured<'r> {
    /// By part, the layer first; one graph per layer.
    graphs: Vec<(Part, Vec<Graph>)>,
    stream: Stream,
    memory: PhantomData<&'r mut ()>,
}

/// Graphs of one part, to be replayed in turn.
#[derive(Clone, Copy)]
pub struct Replays<'c> {
    graphs: &'c [Graph],
}

impl Captured<'_> {
    /// The layer and its parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.graphs.iter().map(|(part, _)| *part)
    }

    /// The replays of `part`, after running once what comes before it, so that its inputs are there. `None`
    /// where the layer has no such operation.
    pub fn replays(&self, part: Part) -> Result<Option<Replays<'_>>> {
        let Some((_, graphs)) = self.graphs.iter().find(|(known, _)| *known == part) else { return Ok(None) };
        for (_, graphs) in self.graphs[1..].iter().take_while(|(before, _)| *before != part) {
            Replays { graphs }.enqueue(0, &self.stream)?;
        }
        self.stream.synchronize()?;
        Ok(Some(Replays { graphs }))
    }
}

impl<'c> Replays<'c> {
    /// Of graphs that do the same on memory of their own; at least one.
    pub fn of(graphs: &'c [Graph]) -> Replays<'c> {
        Replays { graphs }
    }

    /// Graphs that take turns.
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }

    /// Kernels that one replay launches.
    pub fn launches(&self) -> usize {
        self.graphs[0].kernels()
    }

    /// Enqueues replay number `index`.
    pub fn enqueue(&self, index: usize, stream: &Stream) -> Result<()> {
        let graph = &self.graphs[index % self.graphs.len()];
        graph.launch(stream)
    }
}
