//! Streams and events.
//!
//! A stream runs what is enqueued on it in order. Of two streams, one waits for the other where they use the
//! same memory (`order`).

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cust::CudaResult;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::launch::KernelText;
use crate::gpu::order::{Access, Allocation, Queue, Unchanged};

/// An ordered queue of work on one device.
///
/// Dropping it does not wait: its work goes on.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec};
/// # let device = Device::open(DeviceSpec::Sim)?;
/// use fp8_moe::Stream;
///
/// let (one, two) = (Stream::new(&device)?, Stream::new(&device)?);
/// let mut numbers = device.zeros::<u8>(4)?;
/// numbers.fill_bytes(5, &one)?;
/// // Of what `one` has written, `two` waits for by itself.
/// assert_eq!(numbers.to_vec(&two)?, [5; 4]);
/// # Ok(())
/// # }
/// ```
pub struct Stream {
    queue: Arc<Queue>,
    mode: Mode,
    device: Device,
}

/// What becomes of operations.
enum Mode {
    /// They run, or are captured here.
    Run,
    /// Another program captures them: what they use, and when, is its business.
    Foreign,
    /// They run. Another program has lent the stream for a while, and must not capture it meanwhile.
    #[cfg(feature = "cudarc")]
    Lent,
    /// Nothing runs: their kernels are noted.
    Rehearse(Mutex<Vec<KernelText>>),
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// If the driver makes none.
    pub fn new(device: &Device) -> Result<Stream> {
        let raw = cust::Stream::new(device.context())?;
        Ok(Stream { queue: Queue::new(raw), mode: Mode::Run, device: device.clone() })
    }

    /// A stream that another program owns: a `CUstream`. Null is the legacy default stream of the device's
    /// context.
    ///
    /// If the stream is being captured by that program now, what is enqueued through this handle becomes part
    /// of its graph, and is not ordered with other streams.
    ///
    /// # Safety
    /// - `raw` must be a stream of `device`'s context, and outlive the result. It must not be
    ///   `CU_STREAM_PER_THREAD`, which is another stream in every thread.
    /// - A capture by another program must not begin or end on it while the handle is there. What is captured
    ///   through a handle must stay alive as long as the graph. Whoever launches the graph must order it with
    ///   other uses of the same memory, and must not launch it between two operations of a forward, or of a
    ///   `Permutation`, whose memory it writes.
    /// - Kernels of others on it that are launched with programmatic stream serialization wait for their
    ///   predecessor (`griddepcontrol.wait`), in all threads.
    pub unsafe fn from_raw(device: &Device, raw: *mut c_void) -> Stream {
        // SAFETY: the caller's contract.
        let stream = unsafe { cust::Stream::from_raw(device.context(), raw) };
        let (queue, mode) = match stream.is_capturing() {
            Ok(true) => (Queue::new(stream), Mode::Foreign),
            _ => (device.shared().foreign_queue(stream), Mode::Run),
        };
        Stream { queue, mode, device: device.clone() }
    }

    /// A stream that another program lends: as [`Stream::from_raw`], but that captures are refused. None if
    /// it is being captured now.
    ///
    /// # Safety
    /// `raw` must be a stream of `device`'s context, and outlive the result.
    #[cfg(feature = "cudarc")]
    pub(crate) unsafe fn lent(device: &Device, raw: *mut c_void) -> Result<Option<Stream>> {
        // SAFETY: the caller's contract.
        let stream = unsafe { cust::Stream::from_raw(device.context(), raw) };
        if stream.is_capturing()? {
            return Ok(None);
        }
        let queue = device.shared().foreign_queue(stream);
        Ok(Some(Stream { queue, mode: Mode::Lent, device: device.clone() }))
    }

    /// Memory that another program lends, as written by what it has enqueued here so far.
    #[cfg(feature = "cudarc")]
    pub(crate) fn lend(&self) -> Arc<Allocation> {
        self.queue.lend()
    }

    /// Makes what is enqueued here from now on come after all uses of memory that was lent.
    #[cfg(feature = "cudarc")]
    pub(crate) fn takes_back(&self, memory: &Allocation) -> Result<()> {
        Ok(self.queue.takes_back(memory)?)
    }

    /// A stream on which operations check their arguments and choose their kernels, as on any other, and run
    /// nothing: it notes the kernels.
    pub(crate) fn rehearsal(device: &Device) -> Stream {
        Self::default_of(device, Mode::Rehearse(Mutex::default()))
    }

    fn default_of(device: &Device, mode: Mode) -> Stream {
        let queue = device.shared().default_queue.clone();
        // It has a handle of its context's, and so has never ended.
        queue.open();
        Stream { queue, mode, device: device.clone() }
    }

    /// Notes that `kernel` is launched, and returns true, if nothing runs here.
    pub(crate) fn rehearses(&self, kernel: KernelText) -> bool {
        let Mode::Rehearse(kernels) = &self.mode else { return false };
        kernels.lock().unwrap_or_else(PoisonError::into_inner).push(kernel);
        true
    }

    /// Whether nothing runs here.
    pub(crate) fn is_rehearsal(&self) -> bool {
        matches!(self.mode, Mode::Rehearse(_))
    }

    /// The kernels that were launched in a rehearsal, in order.
    pub(crate) fn rehearsed(&self) -> Vec<KernelText> {
        let Mode::Rehearse(kernels) = &self.mode else { return Vec::new() };
        kernels.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The `CUstream`.
    pub fn raw(&self) -> *mut c_void {
        self.queue.raw().as_raw()
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether another program captures what is enqueued.
    pub(crate) fn is_foreign_capture(&self) -> bool {
        matches!(self.mode, Mode::Foreign)
    }

    /// The stream as others wait for it.
    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Whether operations run, or are captured by this library.
    fn runs(&self) -> bool {
        !self.is_foreign_capture() && !self.is_rehearsal()
    }

    /// Whether it is lent, and its owner captures it meanwhile.
    fn is_captured_by_its_owner(&self) -> Result<bool> {
        #[cfg(feature = "cudarc")]
        if matches!(self.mode, Mode::Lent) {
            return Ok(self.queue.raw().is_capturing()?);
        }
        Ok(false)
    }

    /// Refuses what would outlive a loan: work on a lent stream that its owner captures, and lent memory in a
    /// capture of this library.
    #[cfg(feature = "cudarc")]
    fn refuse_captured_loans(&self, memory: &Allocation) -> Result<()> {
        // Of a group of operations it was asked at the beginning.
        if matches!(self.mode, Mode::Lent) && !self.queue.is_in_a_group() {
            self.refuse_capture_by_its_owner()?;
        }
        if memory.is_lent() && self.queue.is_capturing() {
            let rule = "must not be captured: the graph would outlive the loan";
            return Err(Error::argument("Device::cudarc_scope", "memory", "a view", rule));
        }
        Ok(())
    }

    #[cfg(feature = "cudarc")]
    fn refuse_capture_by_its_owner(&self) -> Result<()> {
        if !self.is_captured_by_its_owner()? {
            return Ok(());
        }
        let rule = "must not be captured while it is lent: `forward_raw` can be captured by cudarc";
        Err(Error::argument("Device::cudarc_scope", "stream", format!("{self:?}"), rule))
    }

    /// Says that an operation is about to be enqueued that uses `memory`; none is memory of another program.
    pub(crate) fn uses(&self, memory: Option<&Arc<Allocation>>, access: Access) -> Result<()> {
        let Some(memory) = memory.filter(|_| self.runs()) else { return Ok(()) };
        #[cfg(feature = "cudarc")]
        self.refuse_captured_loans(memory)?;
        Ok(self.queue.uses(memory, access)?)
    }

    /// Calls `work`, which enqueues operations that belong together: what they use is noted once for all of
    /// them ([`Queue::together`]).
    ///
    /// # Safety
    /// All memory of slices that `work` uses on this stream is borrowed from before the call until after it:
    /// exclusively where it is written. `work` calls no code of others, which might enqueue more here.
    pub(crate) unsafe fn together(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.runs() {
            return work();
        }
        #[cfg(feature = "cudarc")]
        self.refuse_capture_by_its_owner()?;
        // SAFETY: the caller's contract.
        unsafe { self.queue.together(work) }
    }

    /// Enqueues `work`, whose uses of memory have been said; nothing in a rehearsal.
    pub(crate) fn enqueue(&self, work: impl FnOnce(&cust::Stream) -> CudaResult<()>) -> CudaResult<()> {
        self.enqueue_over(&Unchanged::NOTHING, work).map(|_| ())
    }

    /// As [`enqueue`](Self::enqueue), for work that relies on what `lists` held; returns false, with nothing
    /// enqueued, if a graph may have overwritten them.
    pub(crate) fn enqueue_over(
        &self,
        lists: &Unchanged<'_>,
        work: impl FnOnce(&cust::Stream) -> CudaResult<()>,
    ) -> CudaResult<bool> {
        if self.is_rehearsal() {
            return Ok(true);
        }
        self.queue.enqueue(&self.device.shared().gate, lists, work)
    }

    /// Refuses `op`, which a graph cannot hold, on a stream that is being captured.
    pub(crate) fn refuse_capture(&self, op: &'static str) -> Result<()> {
        if !self.queue.is_capturing() && !self.is_captured_by_its_owner()? {
            return Ok(());
        }
        let rule = "must not be one that is being captured";
        Err(Error::argument(op, "stream", format!("{self:?}"), rule))
    }

    /// A number of the capture that records what is enqueued here, or of captures that go together; none
    /// where it runs, or is rehearsed.
    pub(crate) fn capture_id(&self) -> Option<u64> {
        match self.mode {
            Mode::Foreign => Some(self.queue.id()),
            _ => self.queue.is_capturing().then(|| self.queue.id()),
        }
    }

    /// Waits for everything enqueued so far; a fault of a kernel among it is this call's error.
    ///
    /// # Errors
    /// If a kernel has faulted, or if the stream is being captured.
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_capture("synchronize")?;
        Ok(self.queue.synchronize()?)
    }

    /// Makes everything enqueued from now on wait for `event`. Memory of buffers needs no such thing:
    /// operations on several streams that use the same are ordered.
    ///
    /// # Errors
    /// If the stream is being captured.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        self.refuse_capture("wait_event")?;
        Ok(self.queue.raw().wait_event(&event.raw)?)
    }
}

impl Device {
    /// The stream that is there from the start. An ordinary stream, not CUDA's legacy null stream.
    pub fn default_stream(&self) -> Stream {
        Stream::default_of(self, Mode::Run)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What another program captures has no end that this library could wait for.
        if !self.is_foreign_capture() {
            self.queue.close();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:?} of {}", self.raw(), self.device)
    }
}

/// A point in a stream, with its time.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec};
/// # let device = Device::open(DeviceSpec::Sim)?;
/// use fp8_moe::Event;
///
/// let stream = device.default_stream();
/// let (begin, end) = (Event::new(&device)?, Event::new(&device)?);
/// let mut buffer = device.zeros::<u8>(1 << 16)?;
/// begin.record(&stream)?;
/// buffer.fill_bytes(1, &stream)?;
/// end.record(&stream)?;
/// end.synchronize()?;
/// assert!(end.elapsed_ms(&begin)? >= 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Event {
    raw: cust::Event,
    device: Device,
}

impl Event {
    /// An event that has not been recorded.
    ///
    /// # Errors
    /// If the driver makes none.
    pub fn new(device: &Device) -> Result<Event> {
        Ok(Event { raw: cust::Event::new(device.context(), true)?, device: device.clone() })
    }

    /// The `CUevent`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.as_raw()
    }

    /// Marks the end of everything enqueued on `stream` so far.
    ///
    /// # Errors
    /// If the stream is another device's, or is being captured, by whomever.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("record", "stream", format!("{stream:?}"), rule));
        }
        stream.refuse_capture("record")?;
        if stream.is_foreign_capture() {
            // Who waits for it would be captured too, and would not know.
            let rule = "must not be one that another program captures";
            return Err(Error::argument("record", "stream", format!("{stream:?}"), rule));
        }
        Ok(self.raw.record(stream.queue.raw())?)
    }

    /// Waits until the stream has passed the event.
    ///
    /// # Errors
    /// If a kernel before it has faulted.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.raw.synchronize()?)
    }

    /// Whether the stream has passed the event. True if it was never recorded.
    ///
    /// # Errors
    /// If a kernel before it has faulted.
    pub fn is_passed(&self) -> Result<bool> {
        Ok(self.raw.is_done()?)
    }

    /// Milliseconds from `start` to this event, both passed.
    ///
    /// # Errors
    /// If one of them has not been passed.
    pub fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        Ok(self.raw.elapsed_ms(&start.raw)?)
    }
}
