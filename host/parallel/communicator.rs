//! What a group of ranks can do together: the trait that [`ExpertParallel`](super::ExpertParallel) and
//! [`TensorParallel`](super::TensorParallel) stand on.
//!
//! ```text
//!   all_gather    part of rank r: [ block 0 | .. | block r: own, written before | .. ]    after: every block, everywhere
//!   all_to_all    send of rank r: [ for 0 | for 1 | .. ]   receive of rank r: [ from 0 | from 1 | .. ]
//!   all_reduce    x := sum of every rank's x
//!   agree         host: all ranks say the same, or all return an error that names who differs
//! ```
//!
//! # Safe, though other processes take part
//! The first three move as many bytes between ranks as each rank says. Ranks that say different numbers might
//! write past each other's buffers. So they settle before they enqueue ([`Communicator::settle`]): they agree,
//! on the host, on what is coming and on how much has been enqueued so far. It costs nothing as long as the
//! same thing is enqueued again and again. The layers above settle once for all calls of a forward.
//!
//! That is what the unsafe calls rest on, and so the trait is closed: [`Nccl`](super::Nccl) and
//! [`InProcess`](super::InProcess) alone agree, and count what they enqueue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::{AbortHandle, Failure};
use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::stream::{Event, Stream};
use crate::ops::quantize::ActivationsMut;

/// Something that all ranks must have alike: its name, and this rank's value.
pub type Term = (&'static str, String);

/// How long ranks wait for each other: 30 s and 10 minutes by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// For a call that all ranks make at about the same time.
    pub call: Duration,
    /// For what takes one rank longer than another: starting, loading weights, compiling kernels.
    pub start: Duration,
}

impl Limits {
    /// Limits of calls and of starting.
    pub fn new(call: Duration, start: Duration) -> Limits {
        Limits { call, start }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { call: Duration::from_secs(30), start: Duration::from_secs(600) }
    }
}

/// A group of ranks, as one of them sees it. All ranks make the same calls in the same order.
///
/// Collective calls enqueue work on `stream`, in its order, and need not wait for it. A call that returns an
/// error has failed the group: calls and waits of all ranks return an error from then on, which names the
/// rank at fault, and what was enqueued before may have left undefined results.
pub trait Communicator: closed::Closed + Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// R, ranks of the group.
    fn size(&self) -> usize;

    /// The device whose memory it takes.
    fn device(&self) -> &Device;

    /// Whether collective calls on a stream that is being captured become part of the graph.
    fn can_be_captured(&self) -> bool;

    /// How long ranks wait for each other.
    fn limits(&self) -> Limits;

    /// What has been enqueued.
    fn calls(&self) -> &Calls;

    /// As [`all_gather`](Self::all_gather), of ranks that have settled already, and with this rank's blocks
    /// wherever they are.
    ///
    /// # Safety
    /// All ranks have settled ([`settle`](Self::settle)) on calls that have this one in this place, with the
    /// same lengths.
    ///
    /// # Errors
    /// Those of [`all_gather`](Self::all_gather).
    unsafe fn enqueue_all_gather(&self, stream: &Stream, parts: &mut [Part<'_>]) -> Result<()>;

    /// As [`all_to_all`](Self::all_to_all), of ranks that have settled already.
    ///
    /// # Safety
    /// That of [`enqueue_all_gather`](Self::enqueue_all_gather).
    ///
    /// # Errors
    /// Those of [`all_to_all`](Self::all_to_all).
    unsafe fn enqueue_all_to_all(
        &self,
        stream: &Stream,
        send: Slice<'_, u8>,
        receive: SliceMut<'_, u8>,
    ) -> Result<()>;

    /// As [`all_reduce`](Self::all_reduce), of ranks that have settled already.
    ///
    /// # Safety
    /// That of [`enqueue_all_gather`](Self::enqueue_all_gather).
    ///
    /// # Errors
    /// Those of [`all_reduce`](Self::all_reduce).
    unsafe fn enqueue_all_reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()>;

    /// Returns when all ranks have called it with equal terms; it enqueues nothing. Without terms it is a
    /// barrier of the hosts.
    ///
    /// # Errors
    /// If a rank has other terms, has failed, or does not come within [`Limits::start`].
    fn agree(&self, terms: &[Term]) -> Result<()>;

    /// Waits, on the host, for what has been enqueued on `stream`, and asks meanwhile whether the group still
    /// works.
    ///
    /// # Errors
    /// If the group has failed, or if the work takes longer than `limit`: the group fails then.
    fn wait(&self, stream: &Stream, limit: Duration) -> Result<()>;

    /// A handle with which any thread makes all ranks give up.
    fn abort_handle(&self) -> AbortHandle;

    /// Fills every part of every rank. A part is `[R, n]` bytes, the same n on all ranks; the caller has
    /// written block [`rank`](Self::rank), and gets the others.
    ///
    /// # Errors
    /// A part that does not divide by R, or lies on another device; ranks with other parts, by name; a group
    /// that has failed.
    fn all_gather(&self, stream: &Stream, parts: &mut [SliceMut<'_, u8>]) -> Result<()> {
        let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
        self.settle(&[("bytes to gather", format!("{lengths:?}"))])?;
        let mut parts: Vec<_> = parts.iter_mut().map(|part| Part::in_place(part.reborrow())).collect();
        // SAFETY: settled, by a communicator of this library.
        unsafe { self.enqueue_all_gather(stream, &mut parts) }
    }

    /// Sends block r of `send` to rank r, and receives block r from rank r. Both are `[R, n]` bytes, the same
    /// n on all ranks.
    ///
    /// # Errors
    /// Those of [`all_gather`](Self::all_gather); two lengths that differ.
    fn all_to_all(&self, stream: &Stream, send: Slice<'_, u8>, receive: SliceMut<'_, u8>) -> Result<()> {
        self.settle(&[("bytes to exchange", format!("{} for {}", send.len(), receive.len()))])?;
        // SAFETY: as above.
        unsafe { self.enqueue_all_to_all(stream, send, receive) }
    }

    /// Replaces `x` by the sum of every rank's, all of one length and type.
    /// [`InProcess`](super::InProcess) adds in the order of the ranks, in f32 with one rounding; NCCL in an
    /// order of its own, the same on every rank.
    ///
    /// # Errors
    /// Those of [`all_gather`](Self::all_gather).
    fn all_reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        let (len, kind) = match &x {
            ActivationsMut::Bf16(x) => (x.len(), "bf16"),
            ActivationsMut::F16(x) => (x.len(), "f16"),
            ActivationsMut::F32(x) => (x.len(), "f32"),
        };
        self.settle(&[("elements to add up", format!("{len} of {kind}"))])?;
        // SAFETY: as above.
        unsafe { self.enqueue_all_reduce(stream, x) }
    }

    /// As [`agree`](Self::agree) on `terms` and on how much has been enqueued so far; returns at once where
    /// the last call had the same terms.
    ///
    /// # Errors
    /// Those of [`agree`](Self::agree).
    fn settle(&self, terms: &[Term]) -> Result<()> {
        let mut last = self.calls().settled.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == terms {
            return Ok(());
        }
        let mut all = terms.to_vec();
        all.push(("collective calls so far", self.calls().enqueued().to_string()));
        last.clear();
        self.agree(&all)?;
        *last = terms.to_vec();
        Ok(())
    }
}

/// One part of what all gather: every rank's block, and where this rank's comes from.
#[derive(Debug)]
pub struct Part<'a> {
    /// `[R, n]` bytes.
    pub(super) all: SliceMut<'a, u8>,
    /// This rank's n bytes; `None` where they are in their block already.
    pub(super) own: Option<Slice<'a, u8>>,
}

impl<'a> Part<'a> {
    /// Of which this rank has written its block.
    pub fn in_place(all: SliceMut<'a, u8>) -> Part<'a> {
        Part { all, own: None }
    }

    /// The bytes of a block; refused where the part does not divide, or this rank's block has others.
    pub(super) fn block_bytes(&self, op: &'static str, ranks: usize) -> Result<usize> {
        let bytes = block_bytes(op, "parts", self.all.len(), ranks)?;
        let own = self.own.map_or(bytes, |own| own.len());
        require(own == bytes, op, "own", format_args!("{own} bytes"), || {
            format!("must have {bytes}, a block of the part")
        })?;
        Ok(bytes)
    }
}

/// Keeps other crates from implementing [`Communicator`].
pub(super) mod closed {
    pub trait Closed {}
}

/// Counts the collective calls of a rank.
#[derive(Debug, Default)]
pub struct Calls {
    enqueued: AtomicU64,
    captured: AtomicU64,
    /// The capture that a `ParallelGraph` is made of.
    capture: Mutex<Option<u64>>,
    /// What the ranks settled on last.
    settled: Mutex<Vec<Term>>,
}

impl Calls {
    /// Calls that have been enqueued, replays included.
    pub fn enqueued(&self) -> u64 {
        self.enqueued.load(Ordering::Acquire)
    }

    /// Calls that have been captured.
    pub fn captured(&self) -> u64 {
        self.captured.load(Ordering::Acquire)
    }

    /// Counts a call that is about to be enqueued on `stream`. Refuses one on a stream that is being captured
    /// otherwise than by `ParallelGraph`, whose launches settle: ranks might launch graphs that do not fit
    /// together.
    pub(super) fn count(&self, op: &'static str, stream: &Stream) -> Result<()> {
        let Some(capture) = stream.capture_id() else {
            self.enqueued.fetch_add(1, Ordering::AcqRel);
            return Ok(());
        };
        let own = *self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        require(
            own == Some(capture),
            op,
            "stream",
            format_args!("{stream:?}, which is being captured"),
            || "must be captured by ParallelGraph".into(),
        )?;
        self.captured.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Runs `work`, which may enqueue calls on a stream that is being captured.
    pub(super) fn in_capture<T>(&self, stream: &Stream, work: impl FnOnce() -> T) -> T {
        let set = |capture| *self.capture.lock().unwrap_or_else(PoisonError::into_inner) = capture;
        set(stream.capture_id());
        let result = work();
        set(None);
        result
    }

    /// Counts the calls of a graph that has been launched.
    pub(super) fn replayed(&self, calls: u64) {
        self.enqueued.fetch_add(calls, Ordering::AcqRel);
    }
}

/// Compares the terms of all ranks, in their order: names the first rank whose term is not what most ranks
/// have.
pub(crate) fn compare<T: AsRef<str>>(all: &[Vec<(T, String)>]) -> Result<(), Failure> {
    let names = |rank: usize| all[rank].iter().map(|(name, _)| name.as_ref()).collect::<Vec<_>>();
    if let Some(rank) = (0..all.len()).find(|&rank| names(rank) != names(0)) {
        let [mine, first] = [rank, 0].map(|rank| names(rank).join(", "));
        return Err(Failure { rank, what: format!("asks about [{mine}] where rank 0 asks about [{first}]") });
    }
    for (index, name) in names(0).into_iter().enumerate() {
        let value = |rank: usize| &all[rank][index].1;
        let votes = |rank: usize| (0..all.len()).filter(|&other| value(other) == value(rank)).count();
        // Of those that are as frequent, the last of the reversed order: the lowest rank.
        let usual = (0..all.len()).rev().max_by_key(|&rank| votes(rank)).unwrap_or(0);
        if let Some(rank) = (0..all.len()).find(|&rank| value(rank) != value(usual)) {
            let what = format!("has {name} = {}; rank {usual} has {}", value(rank), value(usual));
            return Err(Failure { rank, what });
        }
    }
    Ok(())
}

/// Waits for `stream`, asking `look` meanwhile whether that makes sense. False: the limit has passed.
pub(crate) fn poll(stream: &Stream, limit: Duration, mut look: impl FnMut() -> Result<()>) -> Result<bool> {
    let end = Event::new(stream.device())?;
    end.record(stream)?;
    let started = Instant::now();
    loop {
        look()?;
        if end.is_passed()? {
            return Ok(true);
        }
        let elapsed = started.elapsed();
        if elapsed > limit {
            return Ok(false);
        }
        // Short waits spin: a step's end is not to be found late.
        if elapsed > Duration::from_millis(2) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The bytes of a rank's block of `len` bytes; refused where they do not divide.
pub(crate) fn block_bytes(op: &'static str, name: &str, len: usize, ranks: usize) -> Result<usize> {
    require(len.is_multiple_of(ranks), op, name, format_args!("{len} bytes"), || {
        format!("must be a multiple of {ranks}, the ranks")
    })?;
    Ok(len / ranks)
}

#[cfg(test)]
mod tests {
    use super::{Failure, compare};

    fn terms(config: &str, tokens: &str) -> Vec<(&'static str, String)> {
        vec![("config", config.into()), ("tokens", tokens.into())]
    }

    #[test]
    fn the_rank_that_differs_from_most_is_named() {
        let failure = |rank, what: &str| Err(Failure { rank, what: what.into() });
        let same = || terms("a", "5");
        assert_eq!(compare(&[same(), same()]), Ok(()));
        let text = "has tokens = 7; rank 1 has 5";
        assert_eq!(compare(&[terms("a", "7"), same(), same()]), failure(0, text));
        assert_eq!(compare(&[same(), terms("b", "7")]), failure(1, "has config = b; rank 0 has a"));
        let text = "asks about [config] where rank 0 asks about [config, tokens]";
        assert_eq!(compare(&[same(), same()[..1].to_vec()]), failure(1, text));
    }
}
