//! A group of ranks that are threads of one process over one device, emulated or not: for tests, and for
//! programs that are written for several GPUs and have one.
//!
//! ```text
//!   rank 0:  post [slices, ready event] --.              .-- copies from the others' slices, records done --.
//!   rank 1:  post                        --> all are here --> copies ..                                      --> all have enqueued --> stream waits
//!   rank 2:  post                       --'              '-- copies ..                                     --'    for the others' done events
//! ```
//!
//! A rank lends its slices to the others from its post until all have enqueued their copies; it stays inside
//! its call for that long, whatever fails meanwhile. Its stream then waits for the copies, so that what comes
//! later on it may write what they read.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::communicator::closed::Closed;
use super::communicator::{Calls, Communicator, Limits, Part, Term, block_bytes, compare, poll};
use super::failure::{AbortHandle, Board, Failure, late};
use crate::error::{Error, Result, require};
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::slice::Lent;
use crate::gpu::stream::{Event, Stream};
use crate::ops::quantize::{Activations, ActivationsMut};
use crate::ops::sum_ranks::{SumRanks, sum_ranks};

/// One rank of a group over one device. A thread to a rank, and a stream to a rank.
pub struct InProcess {
    rank: usize,
    group: Arc<Group>,
    device: Device,
    /// Recorded before the others copy, and after this rank has.
    ready: Arc<Event>,
    done: Arc<Event>,
    /// Room for every rank's part of a sum.
    scratch: Mutex<Option<Buffer<u8>>>,
    calls: Calls,
}

struct Group {
    size: usize,
    limits: Limits,
    board: Arc<Board>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Exchanges that are complete.
    rounds: u64,
    /// What the ranks have posted for the next.
    posts: Vec<Option<Post>>,
    /// What they had posted for the last.
    last: Arc<Vec<Post>>,
    /// Ranks that may still read what others have lent.
    readers: usize,
    /// By rank: whether its handle has been dropped.
    gone: Vec<bool>,
}

/// What a rank tells the others.
struct Post {
    /// The call, and what must be alike in it.
    terms: Vec<Term>,
    lent: Vec<Lent<u8>>,
    /// Behind what wrote the slices, and behind the copies from others'.
    events: Option<[Arc<Event>; 2]>,
}

impl InProcess {
    /// The ranks of a group of `size` over `device`.
    ///
    /// # Errors
    /// If `size` is 0, or if the device refuses events.
    pub fn group(device: &Device, size: usize, limits: Limits) -> Result<Vec<InProcess>> {
        require(size > 0, "InProcess::group", "size", size, || "must be at least 1".into())?;
        let state = State {
            rounds: 0,
            posts: (0..size).map(|_| None).collect(),
            last: Arc::default(),
            readers: 0,
            gone: vec![false; size],
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let group = Arc::new(Group { size, limits, board: Arc::default(), state, changed });
        let weak = Arc::downgrade(&group);
        group.board.on_failure(move |_| {
            if let Some(group) = weak.upgrade() {
                // Whoever is about to wait has the lock until it does.
                drop(group.lock());
                group.changed.notify_all();
            }
        });
        let rank = |rank| {
            let (ready, done) = (Arc::new(Event::new(device)?), Arc::new(Event::new(device)?));
            let (scratch, calls) = (Mutex::default(), Calls::default());
            Ok(InProcess { rank, group: group.clone(), device: device.clone(), ready, done, scratch, calls })
        };
        (0..size).map(rank).collect()
    }

    /// Copies from what the others lend, between the posts and the end of the copies: `copy` gets the slices
    /// of every rank.
    fn exchange(
        &self,
        stream: &Stream,
        op: &'static str,
        lent: Vec<Lent<u8>>,
        copy: impl FnOnce(&[Vec<Slice<'_, u8>>]) -> Result<()>,
    ) -> Result<()> {
        if !self.can_be_captured() {
            stream.refuse_capture(op)?;
        }
        self.calls.count(op, stream)?;
        if self.group.size == 1 {
            return self.group.board.check();
        }
        self.ready.record(stream)?;
        let lengths = lent.iter().map(|lent| lent.len().to_string()).collect::<Vec<_>>().join(" + ");
        let terms = vec![("the call", op.to_owned()), ("bytes to send", lengths)];
        let events = Some([self.ready.clone(), self.done.clone()]);
        let posts = self.group.meet(self.rank, op, Post { terms, lent, events }, self.group.limits.call)?;
        let reading = Reading { group: &self.group };
        let others = || posts.iter().enumerate().filter(|&(rank, _)| rank != self.rank);
        let copied = self.group.compare(&posts).and_then(|()| {
            for [ready, _] in others().filter_map(|(_, post)| post.events.as_ref()) {
                stream.wait_event(ready)?;
            }
            // SAFETY: every rank stays in its call, with the borrows of what it lends, until `readers` is 0,
            // which it is not before `reading` is dropped, below.
            let slices = unsafe {
                posts
                    .iter()
                    .map(|post| post.lent.iter().map(|lent| lent.as_slice()).collect())
                    .collect::<Vec<_>>()
            };
            copy(&slices)
        });
        let recorded = self.done.record(stream);
        drop(reading);
        self.group.all_have_read();
        // Also after a failure: what was enqueued still reads this rank's memory.
        let waited = others().try_for_each(|(_, post)| match &post.events {
            Some([_, done]) => stream.wait_event(done),
            None => Ok(()),
        });
        copied.and(recorded).and(waited)?;
        self.group.board.check()
    }

    fn gather(&self, stream: &Stream, parts: &mut [Part<'_>]) -> Result<()> {
        const OP: &str = "all_gather";
        let (rank, ranks) = (self.rank, self.group.size);
        let mut lent = Vec::with_capacity(parts.len());
        for part in parts.iter_mut() {
            part.all.check_device(OP, "parts", stream)?;
            let bytes = part.block_bytes(OP, ranks)?;
            let block = rank * bytes..(rank + 1) * bytes;
            if let Some(own) = part.own {
                own.check_device(OP, "own", stream)?;
                part.all.slice_mut(block.clone()).copy_from_device(own, stream)?;
            }
            lent.push(part.all.as_slice().slice(block).lend());
        }
        self.exchange(stream, OP, lent, |all| {
            for (index, part) in parts.iter_mut().enumerate() {
                for (other, slices) in all.iter().enumerate().filter(|&(other, _)| other != rank) {
                    let (from, bytes) = (slices[index], slices[index].len());
                    part.all.slice_mut(other * bytes..(other + 1) * bytes).copy_from_device(from, stream)?;
                }
            }
            Ok(())
        })
    }

    fn transpose(&self, stream: &Stream, send: Slice<'_, u8>, mut receive: SliceMut<'_, u8>) -> Result<()> {
        const OP: &str = "all_to_all";
        let (rank, ranks) = (self.rank, self.group.size);
        let bytes = block_bytes(OP, "send", send.len(), ranks)?;
        send.check_device(OP, "send", stream)?;
        receive.check_device(OP, "receive", stream)?;
        require(receive.len() == send.len(), OP, "receive", format_args!("{} bytes", receive.len()), || {
            format!("must have {}, as `send` has", send.len())
        })?;
        let block = |rank: usize| rank * bytes..(rank + 1) * bytes;
        receive.slice_mut(block(rank)).copy_from_device(send.slice(block(rank)), stream)?;
        self.exchange(stream, OP, vec![send.lend()], |all| {
            for (other, slices) in all.iter().enumerate().filter(|&(other, _)| other != rank) {
                receive.slice_mut(block(other)).copy_from_device(slices[0].slice(block(rank)), stream)?;
            }
            Ok(())
        })
    }

    fn reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        const OP: &str = "all_reduce";
        let ranks = self.group.size;
        let (mine, size) = match &x {
            ActivationsMut::Bf16(x) => (x.as_slice().cast::<u8>(), 2),
            ActivationsMut::F16(x) => (x.as_slice().cast::<u8>(), 2),
            ActivationsMut::F32(x) => (x.as_slice().cast::<u8>(), 4),
        };
        mine.check_device(OP, "x", stream)?;
        let bytes = mine.len();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if ranks > 1 && scratch.as_ref().is_none_or(|scratch| scratch.len() < ranks * bytes) {
            *scratch = Some(self.device.uninit(ranks * bytes)?);
        }
        self.exchange(stream, OP, vec![mine.lend()], |all| {
            let Some(scratch) = scratch.as_mut() else { return Ok(()) };
            for (rank, slices) in all.iter().enumerate() {
                scratch.slice_mut(rank * bytes..(rank + 1) * bytes).copy_from_device(slices[0], stream)?;
            }
            Ok(())
        })?;
        let Some(scratch) = scratch.as_ref().filter(|_| ranks > 1 && bytes > 0) else { return Ok(()) };
        // Everybody has read `x`. Its shape does not matter to a sum, but for the width of accesses.
        let (len, all) = (bytes / size, scratch.slice(..ranks * bytes));
        let columns = 1 << len.trailing_zeros().min(11);
        let rows = len / columns;
        let from = match &x {
            ActivationsMut::Bf16(_) => Activations::Bf16(all.cast()),
            ActivationsMut::F16(_) => Activations::F16(all.cast()),
            ActivationsMut::F32(_) => Activations::F32(all.cast()),
        };
        sum_ranks(stream, SumRanks { ranks, rank_rows: rows, rows, columns, x: from, out: x })
    }

    /// Notes an error as a failure of this rank.
    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        self.group.board.note(self.rank, result)
    }
}

/// A rank that may read what others have lend. Dropped when it has enqueued all that does.
struct Reading<'a> {
    group: &'a Group,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.group.lock().readers -= 1;
        self.group.changed.notify_all();
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every rank has posted, and returns all posts, by rank. Every rank is a reader then.
    fn meet(&self, rank: usize, op: &str, post: Post, limit: Duration) -> Result<Arc<Vec<Post>>> {
        let started = Instant::now();
        let mut state = self.lock();
        self.board.check()?;
        let round = state.rounds;
        state.posts[rank] = Some(post);
        if state.posts.iter().all(Option::is_some) {
            state.last = Arc::new(state.posts.iter_mut().filter_map(Option::take).collect());
            state.rounds += 1;
            state.readers = self.size;
            self.changed.notify_all();
        }
        while state.rounds == round {
            let missing: Vec<_> = (0..self.size).filter(|&rank| state.posts[rank].is_none()).collect();
            let gone = missing.iter().copied().find(|&rank| state.gone[rank]);
            let failure = if let Some(failure) = self.board.failure() {
                Some(failure)
            } else if let Some(rank) = gone {
                Some(Failure { rank, what: format!("has left the group; {op} waits for it") })
            } else if started.elapsed() >= limit {
                Some(late(&missing, op, limit))
            } else {
                None
            };
            if let Some(failure) = failure {
                // Nobody may read what this rank lends from here on.
                state.posts[rank] = None;
                drop(state);
                self.board.fail(failure.clone());
                return Err(self.board.failure().unwrap_or(failure).error());
            }
            let rest = limit.saturating_sub(started.elapsed());
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state.last.clone())
    }

    /// Refuses posts that differ.
    fn compare(&self, posts: &[Post]) -> Result<()> {
        let terms: Vec<_> = posts.iter().map(|post| post.terms.clone()).collect();
        compare(&terms).map_err(|failure| failure.error())
    }

    /// Waits until no rank reads what others have lent. Between its post and this a rank calls the driver and
    /// nothing else, so that there is no limit.
    fn all_have_read(&self) {
        let mut state = self.lock();
        while state.readers > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Closed for InProcess {}

impl Communicator for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn device(&self) -> &Device {
        &self.device
    }

    /// A group of one rank alone: others meet on the host.
    fn can_be_captured(&self) -> bool {
        self.group.size == 1
    }

    fn limits(&self) -> Limits {
        self.group.limits
    }

    fn calls(&self) -> &Calls {
        &self.calls
    }

    unsafe fn enqueue_all_gather(&self, stream: &Stream, parts: &mut [Part<'_>]) -> Result<()> {
        let result = self.gather(stream, parts);
        self.noted(result)
    }

    unsafe fn enqueue_all_to_all(
        &self,
        stream: &Stream,
        send: Slice<'_, u8>,
        receive: SliceMut<'_, u8>,
    ) -> Result<()> {
        let result = self.transpose(stream, send, receive);
        self.noted(result)
    }

    unsafe fn enqueue_all_reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        let result = self.reduce(stream, x);
        self.noted(result)
    }

    fn agree(&self, terms: &[Term]) -> Result<()> {
        let post = Post { terms: terms.to_vec(), lent: Vec::new(), events: None };
        let agree = || {
            if self.group.size == 1 {
                return self.group.board.check();
            }
            let posts = self.group.meet(self.rank, "agree", post, self.group.limits.start)?;
            drop(Reading { group: &self.group });
            self.group.compare(&posts)
        };
        self.noted(agree())
    }

    fn wait(&self, stream: &Stream, limit: Duration) -> Result<()> {
        let waited = poll(stream, limit, || self.group.board.check()).and_then(|done| {
            let what = || format!("has work that has not ended within {:.1} s", limit.as_secs_f64());
            if done { Ok(()) } else { Err(Error::Rank { rank: self.rank, what: what() }) }
        });
        self.noted(waited)
    }

    fn abort_handle(&self) -> AbortHandle {
        AbortHandle::new(self.rank, self.group.board.clone())
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.group.lock().gone[self.rank] = true;
        self.group.changed.notify_all();
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} in this process, on {}", self.rank, self.group.size, self.device)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::InProcess;
    use crate::parallel::{ExpertOptions, ExpertParallel, Limits};
    use crate::{Device, MoeConfig, MoeDeviceWeights, MoeLayer, Quantization, Routing};

    fn layer(device: &Device) -> MoeLayer {
        let config = MoeConfig {
            hidden_size: 128,
            intermediate_size: 128,
            experts: 2,
            top_k: 1,
            quantization: Quantization::Block128,
            routing: Routing::Softmax { renormalize: true },
            ..Default::default()
        };
        let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&config);
        let [w13_scale, w2_scale] = [w13_scale, w2_scale].map(|len| device.zeros(len).expect("memory"));
        let [w13, w2] = [w13, w2].map(|len| device.zeros(len).expect("memory"));
        let weights = MoeDeviceWeights::new(w13, w13_scale, w2, w2_scale);
        let weights = weights.router(device.zeros(2 * 128).expect("memory"));
        MoeLayer::from_device(device, &config, weights).expect("a layer")
    }

    /// A rank's mistake is known before the group can see that the rank has left, whichever check of `new`
    /// found it: options, which it looks at first, or experts, when all but the agreement is done.
    #[test]
    fn a_mistake_is_known_before_its_rank_leaves() {
        let device = Device::for_test(None);
        for options in [ExpertOptions::new(0), ExpertOptions::new(4)] {
            let mut ranks = InProcess::group(&device, 2, Limits::default()).expect("a group").into_iter();
            let (at_fault, _other) = (ranks.next().expect("rank 0"), ranks.next().expect("rank 1"));
            let (group, (sender, seen)) = (at_fault.group.clone(), mpsc::channel());
            let noted = group.clone();
            // Runs where the failure is noted, before whoever notes it goes on.
            group.board.on_failure(move |_| sender.send(noted.lock().gone[0]).expect("a receiver"));
            // All experts are not rank 0's alone.
            let error = ExpertParallel::new(layer(&device), Arc::new(at_fault), options);
            assert!(error.is_err(), "a mistake");
            assert_eq!(seen.try_recv(), Ok(false), "left before its mistake was known");
            assert!(group.lock().gone[0], "and left then");
        }
    }
}
