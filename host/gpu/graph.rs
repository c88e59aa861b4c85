//! Captured graphs.
//!
//! A capture records operations instead of running them, on a stream of its own: what other threads enqueue
//! meanwhile, or this one on other streams, runs. The [`Graph`] replays them with one call. It holds the
//! memory that they use, and a replay is ordered with what other streams do with that memory, like any other
//! operation.

use std::fmt;
use std::sync::PoisonError;

use cust::GraphExec;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::order::{Held, Launches};
use crate::gpu::stream::Stream;

impl Stream {
    /// Records what `work` enqueues on the stream that it is given, without running it. That is another
    /// stream than this one: what `work` enqueues on others runs.
    ///
    /// `work` must not wait for the stream or copy to or from the host; the operations of this library do
    /// neither. A `Permutation` that it uses must be made in it. Kernels that it needs are loaded.
    ///
    /// # Errors
    /// What `work` fails with, or what the driver says of the capture.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let recorder = Recorder::new(self.device())?;
        // SAFETY: it begins once, so that no graph takes a permutation from another. No thread has the stream
        // before `begin`, and those that `work` lends it to give it back before `work` returns.
        let capture = unsafe { recorder.begin() }?;
        let recorded = work(recorder.stream());
        // Capture ends even when `work` failed, and then its error is the one that matters.
        let graph = capture.end();
        recorded.and(graph)
    }
}

/// A stream for captures, one after the other.
#[derive(Debug)]
pub struct Recorder {
    stream: Stream,
}

impl Recorder {
    /// A new one.
    ///
    /// # Errors
    /// If the driver makes no stream.
    pub fn new(device: &Device) -> Result<Recorder> {
        Ok(Recorder { stream: Stream::new(device)? })
    }

    /// What is captured, between `begin` and `end`; else what is enqueued runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Begins to record what is enqueued.
    ///
    /// # Safety
    /// - Operations take permutations that were made in earlier captures of the same recorder. When a graph
    ///   of a later capture is launched, the graph that makes its permutations has been launched before, on
    ///   the same stream, and nothing has written their lists since.
    /// - No operation on the stream, of another thread, is under way when the capture begins or ends: half of
    ///   it would be captured, and the graph would not hold its memory.
    ///
    /// # Errors
    /// What the driver says.
    pub unsafe fn begin(&self) -> Result<Capture<'_>> {
        self.stream.queue().begin_capture()?;
        Ok(Capture { stream: &self.stream })
    }
}

/// A stream that records instead of running, until `end` or drop.
#[derive(Debug)]
pub struct Capture<'a> {
    stream: &'a Stream,
}

impl Capture<'_> {
    /// Makes a graph of what was recorded.
    ///
    /// # Errors
    /// What the driver says of the capture.
    pub fn end(self) -> Result<Graph> {
        let stream = self.stream;
        std::mem::forget(self);
        let (template, held) = stream.queue().end_capture();
        let template = template?;
        let (kernels, exec) = (template.kernels()?, template.instantiate()?);
        let device = stream.device().clone();
        Ok(Graph { exec: Some(exec), kernels, launches: Launches::default(), held, device })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is dropped; an error of the capture is not this drop's to report.
        let _ = self.stream.queue().end_capture();
    }
}

/// Captured work, ready to be replayed: from [`Stream::capture`].
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
/// # use half::bf16;
/// # let device = Device::open(DeviceSpec::Sim)?;
/// # let config = MoeConfig::builder().hidden_size(64).intermediate_size(64).experts(2).top_k(1).build()?;
/// # let ones = vec![E4m3::from_f32(1.0); 64 * 64];
/// # let expert = ExpertWeights::new().gate(&ones, &[1.0]).up(&ones, &[1.0]).down(&ones, &[1.0]);
/// # let weights = MoeWeights::new(vec![expert; 2]).router(vec![bf16::ONE; 2 * 64]);
/// # let layer = MoeLayer::new(&device, &config, &weights)?;
/// # let stream = device.default_stream();
/// # let hidden = device.upload(&[bf16::ONE; 3 * 64])?;
/// let (mut workspace, mut out) = (layer.workspace(3)?, device.zeros::<bf16>(3 * 64)?);
/// let graph = stream.capture(|stream| layer.forward(stream, &hidden, &mut workspace, &mut out))?;
/// assert_eq!(out.to_vec(&stream)?[0], bf16::ZERO, "nothing has run");
/// graph.launch(&stream)?;
/// assert_ne!(out.to_vec(&stream)?[0], bf16::ZERO);
/// # Ok(())
/// # }
/// ```
pub struct Graph {
    /// There until it is dropped.
    exec: Option<GraphExec>,
    kernels: usize,
    launches: Launches,
    held: Vec<Held>,
    device: Device,
}

impl Graph {
    /// Kernels that one replay launches.
    pub fn kernels(&self) -> usize {
        self.kernels
    }

    /// Enqueues the captured work.
    ///
    /// The memory that it uses stays allocated as long as the graph. A replay reads what buffers hold when it
    /// runs, and overwrites what the operations wrote when they were captured, also while somebody borrows
    /// those buffers: the order is that of the calls, on whatever streams. Memory of other programs, from
    /// [`Slice::from_raw`](crate::Slice::from_raw), is their business.
    ///
    /// A `Permutation` whose lists lie in memory that the graph writes cannot be used any more, and a forward
    /// that another thread is enqueueing in that memory, the same workspace, ends with an error.
    ///
    /// # Errors
    /// If the stream is another device's, or is being captured: a graph is no part of another.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("graph launch", "stream", format!("{stream:?}"), rule));
        }
        stream.refuse_capture("graph launch")?;
        let Some(exec) = self.exec.as_ref().filter(|_| !stream.is_rehearsal()) else { return Ok(()) };
        // SAFETY: the graph holds its memory, or has it from `from_raw`, whose contract covers its replays.
        // The lists of permutations that it relies on are written by itself, before: others are refused in
        // captures, but for those of a `Recorder`, whose contract they are. Permutations whose lists it
        // overwrites are refused from here on. The stream waits for other uses of the memory, and later ones
        // will wait for it (in a capture by another program all of that is the contract of the stream's
        // `from_raw`). The gate admits one thread at a time: none that launches the graph too, and none that
        // is about to use its memory.
        let launch = |stream: &cust::Stream| unsafe { exec.launch(stream) };
        let _alone = self.device.shared().gate.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match stream.is_foreign_capture() {
            true => launch(stream.queue().raw()),
            false => stream.queue().enqueue_graph(&self.held, &self.launches, launch),
        }?)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let exec = self.exec.take();
        if self.launches.finish(self.device.context()).is_err() {
            // Nobody knows whether it is still running: it is lost with the context.
            std::mem::forget(exec);
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph of {} kernels on {}", self.kernels, self.device)
    }
}
