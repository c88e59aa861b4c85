//! The order of work on several streams: who uses which memory, and who waits for whom.
//!
//! ```text
//!   stream A ── fill x ─────── record e ── ...      x: written by A, as its 1st piece of work
//!   stream B ── ... ── wait e ── read x ── ...      B reads x, and has not waited for A's 1st: it does
//! ```
//!
//! - A [`Queue`] is a stream. It counts the pieces of work that have been enqueued, and knows up to which
//!   number they have been waited for: by the host, and by each other queue that has waited for it.
//! - An [`Allocation`] is device memory. For every queue it knows the number of the last work that read it,
//!   and that wrote it.
//!
//! Before an operation enqueues, it says what it is about to read and write (`Queue::uses`, which the checks
//! of slices call). Its queue then waits for the work of other queues that conflicts and has not been waited
//! for: all that uses the memory if the operation writes, what writes it if the operation reads. When the
//! work has been enqueued, its number goes to all memory that it uses. On one queue there is nothing to wait
//! for, and readers do not wait for readers.
//!
//! # Why this suffices
//! An operation borrows its slices from its checks until its last launch, so that no other thread begins an
//! operation that conflicts in between: whoever comes later finds the numbers. Slices of one buffer that do
//! not overlap may be in use by several threads; they share an allocation, and wait for each other too often,
//! never too rarely, since a number is noted after its work was enqueued.
//!
//! A forward is several operations over the same memory, borrowed from before the first until after the last:
//! a *group* ([`Queue::together`]). Nobody else can begin in between what conflicts with any of them. So what
//! has been waited for once in a group is not waited for again, and the number of its last work goes to all
//! its memory when it ends, however it ends.
//!
//! Graphs hold memory without borrowing it. So an operation on memory that a graph holds waits once more at
//! its launch, under the *gate* of the context, and graphs are launched under the gate. A group that uses
//! such memory notes each piece of work. (Who captures memory borrows it meanwhile: what no graph held when
//! the group first named it, none that conflicts holds before the group has ended.)
//!
//! A launch of a graph overwrites what somebody may have borrowed. Contents that operations rely on, the
//! lists of permutations, are [`Unchanged`] only until then: launches are numbered, an allocation knows the
//! number of the last that writes it, and an operation that relies on older contents is not enqueued. It asks
//! under the gate, so that no launch comes between.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cust::{Context, CudaResult, DeviceMemory, Event};

pub(crate) use crate::gpu::notes::Access;
use crate::gpu::notes::{Group, Notes};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of the driver, as something to wait for. It outlives its handles while memory notes it.
pub(crate) struct Queue {
    raw: cust::Stream,
    /// A number that no other queue has had.
    id: u64,
    /// Pieces of work that have been enqueued.
    enqueued: AtomicU64,
    /// Of them, those that the host has waited for.
    done: AtomicU64,
    /// Whether it is being captured: whether `state` has `captured`.
    captures: AtomicBool,
    state: Mutex<State>,
    /// By the id of another queue: how much of its work this one has waited for.
    waited: Mutex<HashMap<u64, u64>>,
}

struct State {
    /// Streams of this library's API that lead here.
    handles: usize,
    end: End,
    /// What others wait for; made when somebody has to.
    event: Option<Arc<Event>>,
    /// While it is captured: what the captured operations use.
    captured: Option<Vec<Held>>,
}

/// What may still come.
#[derive(PartialEq, Eq)]
enum End {
    /// More work.
    Open,
    /// None: the last handle is gone, and the event lies behind all work.
    Marked,
    /// None, and none is running: it has been waited for, or a fault has taken the context away.
    Done,
}

/// Queues that a queue remembers to have waited for. To forget one costs a wait.
const MANY_QUEUES: usize = 256;

impl Queue {
    /// The queue of `raw`, with one handle.
    pub fn new(raw: cust::Stream) -> Arc<Queue> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Queue {
            raw,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            enqueued: AtomicU64::new(0),
            done: AtomicU64::new(0),
            captures: AtomicBool::new(false),
            state: Mutex::new(State { handles: 1, end: End::Open, event: None, captured: None }),
            waited: Mutex::default(),
        })
    }

    /// The driver's stream.
    pub fn raw(&self) -> &cust::Stream {
        &self.raw
    }

    /// A number that no other queue has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// One handle more. If it had ended, another program's stream may be a new one under an old name: it
    /// waits for the end. False if that cannot be.
    pub fn open(&self) -> bool {
        let mut state = lock(&self.state);
        if state.handles == 0 {
            let waits = match (&state.end, &state.event) {
                (End::Marked, Some(event)) => self.raw.wait_event(event).is_ok(),
                _ => false,
            };
            if !waits {
                return false;
            }
            state.end = End::Open;
        }
        state.handles += 1;
        true
    }

    /// One handle less. After the last nothing comes.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.handles -= 1;
        if state.handles == 0 {
            state.end = match self.mark(&mut state) {
                Ok(Some(_)) => End::Marked,
                // Without an event it is waited for. If that fails too, a fault has taken the context away,
                // and all work with it.
                _ => {
                    let _ = self.raw.synchronize();
                    End::Done
                }
            };
        }
    }

    /// An event behind everything enqueued so far; none if nothing is running.
    fn mark(&self, state: &mut State) -> CudaResult<Option<Arc<Event>>> {
        if state.end == End::Done {
            return Ok(None);
        }
        let event = match &state.event {
            Some(event) => event.clone(),
            None => state.event.insert(Arc::new(Event::new(self.raw.context(), false)?)).clone(),
        };
        if state.end == End::Open {
            event.record(&self.raw)?;
        }
        Ok(Some(event))
    }

    /// Makes what is enqueued from now on wait for the work of `other` up to number `until`.
    fn wait_for(&self, other: &Queue, until: u64) -> CudaResult<()> {
        if self.id == other.id || until <= other.done.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut waited = lock(&self.waited);
        if waited.get(&other.id).is_some_and(|&waited| until <= waited) {
            return Ok(());
        }
        // Read before the event is recorded, which lies behind at least as much.
        let enqueued = other.enqueued.load(Ordering::Acquire);
        // The lock is held until the wait is enqueued: what waits is this record.
        let mut state = lock(&other.state);
        if let Some(event) = other.mark(&mut state)? {
            self.raw.wait_event(&event)?;
        }
        if waited.len() >= MANY_QUEUES {
            waited.clear();
        }
        waited.insert(other.id, enqueued);
        Ok(())
    }

    /// Waits, on the host, for the work up to number `until`.
    fn finish(&self, until: u64) -> CudaResult<()> {
        if until <= self.done.load(Ordering::Acquire) {
            return Ok(());
        }
        let enqueued = self.enqueued.load(Ordering::Acquire);
        let event = self.mark(&mut lock(&self.state))?;
        event.map_or(Ok(()), |event| event.synchronize())?;
        self.done.fetch_max(enqueued, Ordering::AcqRel);
        Ok(())
    }

    /// If it has ended, asks the driver whether its work is done, without waiting.
    fn look(&self) {
        let state = lock(&self.state);
        let is_done = match (&state.end, &state.event) {
            (End::Done, _) => true,
            // To ask is nothing that a graph records.
            (End::Marked, Some(event)) => self.raw.context().relaxed(|| event.is_done()).unwrap_or(false),
            _ => false,
        };
        if is_done {
            self.done.fetch_max(self.enqueued.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// Waits, on the host, for everything enqueued so far.
    pub fn synchronize(&self) -> CudaResult<()> {
        let enqueued = self.enqueued.load(Ordering::Acquire);
        self.raw.synchronize()?;
        self.done.fetch_max(enqueued, Ordering::AcqRel);
        Ok(())
    }

    /// Says that an operation is about to be enqueued that uses `allocation`: makes the queue wait for whom
    /// it must.
    pub fn uses(self: &Arc<Queue>, allocation: &Arc<Allocation>, access: Access) -> CudaResult<()> {
        if self.is_capturing()
            && let Some(captured) = &mut lock(&self.state).captured
        {
            Held::add(captured, allocation, access);
            return Ok(());
        }
        if group(self, |group| group.has(allocation, access)) == Some(true) {
            return Ok(());
        }
        allocation.wait(self, access)?;
        let in_a_graph = allocation.is_in_a_graph();
        if group(self, |group| group.add(allocation, access, in_a_graph)).is_none() {
            NOTES.with_borrow_mut(|notes| notes.add(self.id, allocation, access));
        }
        Ok(())
    }

    /// Whether this thread is in a group of operations on this queue.
    #[cfg(feature = "cudarc")]
    pub fn is_in_a_group(&self) -> bool {
        group(self, |_| ()).is_some()
    }

    /// Calls `work`, which enqueues operations that belong together: what they use is noted once for all of
    /// them, at the end. In another group, or in a capture, that changes nothing.
    ///
    /// # Safety
    /// All memory that `work` uses on this queue is borrowed from before the call until after it: exclusively
    /// where it is written. `work` calls no code of others, which might enqueue more here.
    pub unsafe fn together<T>(self: &Arc<Queue>, work: impl FnOnce() -> T) -> T {
        let begins = GROUP.with_borrow_mut(|group| {
            let begins = group.is_none() && !self.is_capturing();
            if begins {
                *group = Some(Group::new(self.id));
            }
            begins
        });
        let _end = EndOfGroup(begins.then_some(self));
        work()
    }

    /// Enqueues `work`, whose uses of memory have been said by this thread, and which relies on what `lists`
    /// held; returns false, with nothing enqueued, if a graph may have overwritten them. What is captured
    /// relies on what the same graph writes before.
    pub fn enqueue(
        self: &Arc<Queue>,
        gate: &Mutex<()>,
        lists: &Unchanged<'_>,
        work: impl FnOnce(&cust::Stream) -> CudaResult<()>,
    ) -> CudaResult<bool> {
        if self.is_capturing() {
            return work(&self.raw).map(|()| true);
        }
        let notes = match group(self, |group| group.for_launch()) {
            Some(None) => {
                if !lists.holds() {
                    return Ok(false);
                }
                work(&self.raw)?;
                let number = self.has_enqueued();
                group(self, |group| group.has_enqueued(number));
                return Ok(true);
            }
            Some(Some(notes)) => notes,
            None => NOTES.with_borrow_mut(|notes| notes.take(self.id)),
        };
        let _alone = notes.iter().any(|(allocation, _)| allocation.is_in_a_graph()).then(|| lock(gate));
        if _alone.is_some() {
            notes.iter().try_for_each(|(allocation, access)| allocation.wait(self, *access))?;
        }
        if !lists.holds() {
            return Ok(false);
        }
        work(&self.raw)?;
        let number = self.has_enqueued();
        for (allocation, access) in &notes {
            allocation.note(self, *access, number);
        }
        Ok(true)
    }

    /// Memory that another program has lent, as written by what it has enqueued on this stream so far.
    #[cfg(feature = "cudarc")]
    pub fn lend(self: &Arc<Queue>) -> Arc<Allocation> {
        let allocation = Arc::new(Allocation::lent());
        allocation.note(self, Access::Write, self.has_enqueued());
        allocation
    }

    /// Waits for all who use memory that was lent. If that cannot be enqueued, the host waits.
    #[cfg(feature = "cudarc")]
    pub fn takes_back(&self, allocation: &Allocation) -> CudaResult<()> {
        allocation.wait(self, Access::Write).or_else(|error| {
            lock(&allocation.uses).finish()?;
            Err(error)
        })
    }

    /// Counts a piece of work that has been enqueued: its number.
    fn has_enqueued(&self) -> u64 {
        self.enqueued.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Enqueues `graph`, a piece of work that uses `held` and is itself used, by one launch at a time. The
    /// gate is held.
    pub fn enqueue_graph(
        self: &Arc<Queue>,
        held: &[Held],
        launches: &Launches,
        graph: impl FnOnce(&cust::Stream) -> CudaResult<()>,
    ) -> CudaResult<()> {
        lock(&launches.uses).wait(self, Access::Write)?;
        held.iter().try_for_each(|held| held.allocation.wait(self, held.access))?;
        // Before it runs, and whether or not it does.
        let replay = REPLAYS.fetch_add(1, Ordering::AcqRel) + 1;
        for held in held.iter().filter(|held| held.access == Access::Write) {
            held.allocation.overwritten.fetch_max(replay, Ordering::AcqRel);
        }
        graph(&self.raw)?;
        let number = self.has_enqueued();
        lock(&launches.uses).note(self, Access::Write, number);
        held.iter().for_each(|held| held.allocation.note(self, held.access, number));
        Ok(())
    }

    /// From here on uses are those of a capture. What has been enqueued before is waited for, so that nobody
    /// else has to while it is captured.
    pub fn begin_capture(&self) -> CudaResult<()> {
        self.synchronize()?;
        self.raw.begin_capture()?;
        lock(&self.state).captured = Some(Vec::new());
        self.captures.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends the capture: the graph, and what it uses.
    pub fn end_capture(&self) -> (CudaResult<cust::graph::Template>, Vec<Held>) {
        self.captures.store(false, Ordering::Release);
        let captured = lock(&self.state).captured.take();
        (self.raw.end_capture(), captured.unwrap_or_default())
    }

    /// Whether it is being captured.
    pub fn is_capturing(&self) -> bool {
        self.captures.load(Ordering::Acquire)
    }
}

/// The queues that use something, one entry each.
#[derive(Default)]
struct Uses(Vec<Use>);

struct Use {
    queue: Arc<Queue>,
    /// The number of its last work that reads, and that writes; 0 if none does.
    read: u64,
    written: u64,
}

impl Use {
    /// The number of its last work that conflicts with `access`.
    fn conflict(&self, access: Access) -> u64 {
        match access {
            Access::Read => self.written,
            Access::Write => self.read.max(self.written),
        }
    }
}

/// Queues in the list from which on those that have ended are asked whether they are done.
const MANY_USES: usize = 8;

impl Uses {
    /// Makes `queue` wait for what conflicts with `access`.
    fn wait(&self, queue: &Queue, access: Access) -> CudaResult<()> {
        self.0.iter().try_for_each(|used| queue.wait_for(&used.queue, used.conflict(access)))
    }

    /// Notes work of `queue` that has been enqueued.
    fn note(&mut self, queue: &Arc<Queue>, access: Access, number: u64) {
        let index = self.0.iter().position(|used| used.queue.id == queue.id).unwrap_or_else(|| {
            // What is known to be done need not be remembered.
            if self.0.len() >= MANY_USES {
                self.0.iter().for_each(|used| used.queue.look());
            }
            self.0.retain(|used| used.conflict(Access::Write) > used.queue.done.load(Ordering::Acquire));
            self.0.push(Use { queue: queue.clone(), read: 0, written: 0 });
            self.0.len() - 1
        });
        let used = &mut self.0[index];
        let last = match access {
            Access::Read => &mut used.read,
            Access::Write => &mut used.written,
        };
        *last = number.max(*last);
    }

    /// Waits, on the host, for all of them.
    fn finish(&self) -> CudaResult<()> {
        self.0.iter().try_for_each(|used| used.queue.finish(used.conflict(Access::Write)))
    }
}

/// Device memory, freed when nobody holds it and no stream uses it any more.
pub(crate) struct Allocation {
    /// None of memory that another program has lent.
    memory: Option<DeviceMemory>,
    uses: Mutex<Uses>,
    /// How often graphs hold it.
    graphs: AtomicUsize,
    /// The number of the last launch of a graph that writes it; 0 if there was none.
    overwritten: AtomicU64,
}

/// Launches of graphs so far, of all contexts.
static REPLAYS: AtomicU64 = AtomicU64::new(0);

/// Launches of graphs so far: what memory holds is known from here on, if it is written or read from here on.
pub(crate) fn replays() -> u64 {
    REPLAYS.load(Ordering::Acquire)
}

/// Memory that holds what it held after `since` launches of graphs, but for what those write who borrow it.
#[derive(Clone, Copy)]
pub(crate) struct Unchanged<'a> {
    /// A number of [`replays`].
    pub since: u64,
    /// None is memory of another program, or of no elements.
    pub memory: [Option<&'a Arc<Allocation>>; 4],
}

impl Unchanged<'_> {
    /// No memory at all.
    pub const NOTHING: Self = Unchanged { since: 0, memory: [None; 4] };

    /// Whether no later launch writes it.
    pub fn holds(&self) -> bool {
        let holds = |memory: &&Arc<Allocation>| memory.overwritten.load(Ordering::Acquire) <= self.since;
        self.memory.iter().flatten().all(holds)
    }
}

impl Allocation {
    /// `bytes` bytes with undefined contents, at least one.
    pub fn new(context: &Context, bytes: usize) -> CudaResult<Allocation> {
        let memory = Some(DeviceMemory::uninitialized(context, bytes)?);
        let (graphs, overwritten) = (AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Allocation { memory, uses: Mutex::default(), graphs, overwritten })
    }

    /// Memory that another program has lent, of which nothing is known. It is neither freed nor waited for.
    #[cfg(feature = "cudarc")]
    pub fn lent() -> Allocation {
        Allocation {
            memory: None,
            uses: Mutex::default(),
            graphs: AtomicUsize::new(0),
            overwritten: AtomicU64::new(0),
        }
    }

    /// Whether another program has lent it.
    #[cfg(feature = "cudarc")]
    pub fn is_lent(&self) -> bool {
        self.memory.is_none()
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, DeviceMemory::address)
    }

    fn wait(&self, queue: &Queue, access: Access) -> CudaResult<()> {
        lock(&self.uses).wait(queue, access)
    }

    fn note(&self, queue: &Arc<Queue>, access: Access, number: u64) {
        lock(&self.uses).note(queue, access, number);
    }

    fn is_in_a_graph(&self) -> bool {
        // Acquire: a graph that holds it was captured by somebody who borrowed it before.
        self.graphs.load(Ordering::Acquire) > 0
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let uses = self.uses.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Waiting is nothing that a graph records, even if this thread is capturing one.
        if memory.context().relaxed(|| uses.finish()).is_err() {
            // Nobody knows whether it is still in use: it is lost with the context.
            std::mem::forget(memory);
        }
    }
}

/// Memory that a graph uses, and keeps.
pub(crate) struct Held {
    allocation: Arc<Allocation>,
    access: Access,
}

impl Held {
    /// A graph that reads memory and writes it, writes it: that conflicts with more.
    fn add(held: &mut Vec<Held>, allocation: &Arc<Allocation>, access: Access) {
        match held.iter_mut().find(|held| Arc::ptr_eq(&held.allocation, allocation)) {
            Some(held) => held.access = held.access.max(access),
            None => {
                allocation.graphs.fetch_add(1, Ordering::Release);
                held.push(Held { allocation: allocation.clone(), access });
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.allocation.graphs.fetch_sub(1, Ordering::Release);
    }
}

/// The launches of a graph, which may be running.
#[derive(Default)]
pub(crate) struct Launches {
    uses: Mutex<Uses>,
}

impl Launches {
    /// Waits, on the host, for all of them.
    pub fn finish(&mut self, context: &Context) -> CudaResult<()> {
        let uses = self.uses.get_mut().unwrap_or_else(PoisonError::into_inner);
        context.relaxed(|| uses.finish())
    }
}

thread_local! {
    static NOTES: RefCell<Notes<Allocation>> = const { RefCell::new(Notes::new()) };
    static GROUP: RefCell<Option<Group<Allocation>>> = const { RefCell::new(None) };
}

/// Asks or changes this thread's group of operations, if it is one on `queue`.
fn group<T>(queue: &Queue, f: impl FnOnce(&mut Group<Allocation>) -> T) -> Option<T> {
    GROUP.with_borrow_mut(|group| group.as_mut().filter(|group| group.queue() == queue.id).map(f))
}

/// Ends a group of operations, also in a panic: notes what they use. None ends nothing.
struct EndOfGroup<'q>(Option<&'q Arc<Queue>>);

impl Drop for EndOfGroup<'_> {
    fn drop(&mut self) {
        let Some(queue) = self.0 else { return };
        let Some(group) = GROUP.take() else { return };
        let (said, number) = group.end();
        said.iter().for_each(|(allocation, access)| allocation.note(queue, *access, number));
    }
}
