//! Streams, events and captured graphs.
//!
//! A stream runs what is enqueued on it in order. [`Stream::capture`] records the operations of a closure instead of
//! running them; the [`Graph`] replays them with one call.

use std::fmt;
use std::sync::Mutex;

use cust::sys::{
    self, CUevent, CUgraph, CUgraphExec, CUgraphNodeType, CUstream, CUstreamCaptureMode,
    CUstreamCaptureStatus,
};

use crate::error::{Error, Result, check};
use crate::gpu::device::Device;

/// An ordered queue of work on one device.
pub struct Stream {
    device: Device,
    raw: CUstream,
    owned: bool,
    /// The kernels that were launched, if it runs nothing.
    rehearsed: Option<Mutex<Vec<&'static str>>>,
}

// SAFETY: the driver API is thread-safe; the handle lives as long as the stream, which keeps its device open.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream.
    pub fn new(device: &Device) -> Result<Stream> {
        device.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, 0) })?;
        Ok(Stream { device: device.clone(), raw, owned: true, rehearsed: None })
    }

    /// A stream that another program owns.
    ///
    /// # Safety
    /// `raw` must be a stream of `device`'s primary context, and outlive the result.
    pub unsafe fn from_raw(device: &Device, raw: CUstream) -> Stream {
        Stream::borrowed(device.clone(), raw)
    }

    pub(crate) fn borrowed(device: Device, raw: CUstream) -> Stream {
        Stream { device, raw, owned: false, rehearsed: None }
    }

    /// A stream on which operations check their arguments and choose their kernels, as on any other, and run nothing: it notes the
    /// kernels.
    pub(crate) fn rehearsal(device: &Device) -> Stream {
        let rehearsed = Some(Mutex::default());
        Stream { device: device.clone(), raw: std::ptr::null_mut(), owned: false, rehearsed }
    }

    /// Notes that `kernel` is launched, and returns true, if nothing runs here.
    pub(crate) fn rehearses(&self, kernel: &'static str) -> bool {
        let Some(rehearsed) = &self.rehearsed else { return false };
        rehearsed.lock().unwrap_or_else(|e| e.into_inner()).push(kernel);
        true
    }

    /// Whether nothing runs here.
    pub(crate) fn is_rehearsal(&self) -> bool {
        self.rehearsed.is_some()
    }

    /// The kernels that were launched in a rehearsal, in order.
    pub(crate) fn into_rehearsed(mut self) -> Vec<&'static str> {
        let rehearsed = self.rehearsed.take();
        rehearsed.map(|kernels| kernels.into_inner().unwrap_or_else(|e| e.into_inner())).unwrap_or_default()
    }

    /// The `CUstream`.
    pub fn raw(&self) -> CUstream {
        // Null is the driver's default stream, on which a rehearsal must not put anything.
        assert!(!self.is_rehearsal(), "nothing runs in a rehearsal");
        self.raw
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn make_current(&self) -> Result<()> {
        self.device.make_current()
    }

    /// The driver's number of the capture that records what is enqueued here; none where it runs, or is rehearsed.
    pub(crate) fn capture_id(&self) -> Result<Option<u64>> {
        if self.is_rehearsal() {
            return Ok(None);
        }
        self.make_current()?;
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let mut id = 0;
        // SAFETY: both are valid places for their values, and the driver takes null for what is not asked for.
        let code = unsafe {
            let (graph, dependencies, count) =
                (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
            sys::cuStreamGetCaptureInfo_v2(self.raw, &mut status, &mut id, graph, dependencies, count)
        };
        check("cuStreamGetCaptureInfo", code)?;
        Ok((status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE).then_some(id))
    }

    /// Waits for everything enqueued so far; a fault of a kernel among it is this call's error.
    pub fn synchronize(&self) -> Result<()> {
        self.make_current()?;
        // SAFETY: the handle is valid for as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Makes everything enqueued from now on wait for `event`.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        self.make_current()?;
        // SAFETY: both handles are valid for as long as their owners.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }

    /// Records what `work` enqueues on this stream, without running it.
    ///
    /// `work` must not synchronise or allocate; the operations of this library do neither.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let capture = Capture::begin(self)?;
        let recorded = work(self);
        // Capture ends even when `work` failed, and then its error is the one that matters.
        let graph = capture.end();
        recorded.and(graph)
    }
}

/// A stream that records instead of running, until `end` or drop.
pub struct Capture<'a> {
    stream: &'a Stream,
}

impl<'a> Capture<'a> {
    /// Begins to record what is enqueued on `stream`.
    pub fn begin(stream: &'a Stream) -> Result<Capture<'a>> {
        stream.make_current()?;
        // SAFETY: the handle is valid; the mode confines the capture's restrictions to this thread.
        let code = unsafe {
            sys::cuStreamBeginCapture_v2(stream.raw, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        };
        check("cuStreamBeginCapture", code)?;
        Ok(Capture { stream })
    }

    /// Makes a graph of what was recorded.
    pub fn end(self) -> Result<Graph> {
        let stream = self.stream;
        std::mem::forget(self);
        let template = Template::of(stream)?;
        let kernels = template.kernels()?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: `exec` is a valid place for one handle, the template is alive, and no log buffer is passed.
        let code = unsafe {
            sys::cuGraphInstantiate_v2(&mut exec, template.0, std::ptr::null_mut(), std::ptr::null_mut(), 0)
        };
        check("cuGraphInstantiate", code)?;
        Ok(Graph { device: stream.device.clone(), exec, kernels })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is dropped with its template; an error of the capture is not this drop's to report.
        let _ = Template::of(self.stream);
    }
}

/// A recorded graph that cannot run yet.
struct Template(CUgraph);

impl Template {
    /// Ends the capture on `stream`.
    fn of(stream: &Stream) -> Result<Template> {
        stream.make_current()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is a valid place for one handle, and the stream is valid.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.raw, &mut graph) })?;
        Ok(Template(graph))
    }

    /// How many of its nodes launch a kernel.
    fn kernels(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: without an array the driver writes the number of nodes alone.
        check("cuGraphGetNodes", unsafe { sys::cuGraphGetNodes(self.0, std::ptr::null_mut(), &mut count) })?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            // SAFETY: `nodes` has room for `count` handles.
            check("cuGraphGetNodes", unsafe {
                sys::cuGraphGetNodes(self.0, nodes.as_mut_ptr(), &mut count)
            })?;
        }
        let mut kernels = 0;
        for node in nodes {
            // A place for any of the driver's values, those newer than the binding's included.
            let mut kind = 0u32;
            // SAFETY: the node is the graph's, and the driver's enumeration has the size of `kind`.
            check("cuGraphNodeGetType", unsafe {
                sys::cuGraphNodeGetType(node, std::ptr::from_mut(&mut kind).cast())
            })?;
            kernels += usize::from(kind == CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL as u32);
        }
        Ok(kernels)
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the graph came from a capture and is destroyed once; instantiated graphs do not refer to it.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned && self.make_current().is_ok() {
            // SAFETY: created by `new`, destroyed once; the driver finishes the work still in it.
            unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:?} of {}", self.raw, self.device)
    }
}

/// A point in a stream, with its time.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: CUevent,
}

// SAFETY: the driver API is thread-safe; the handle lives as long as the event, which keeps its device open.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has not been recorded.
    pub fn new(device: &Device) -> Result<Event> {
        device.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, 0) })?;
        Ok(Event { device: device.clone(), raw })
    }

    /// Marks the end of everything enqueued on `stream` so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("record", "stream", format!("{stream:?}"), rule));
        }
        self.device.make_current()?;
        // SAFETY: both handles are valid for as long as their owners.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, stream.raw()) })
    }

    /// Waits until the stream has passed the event.
    pub fn synchronize(&self) -> Result<()> {
        self.device.make_current()?;
        // SAFETY: the handle is valid for as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Milliseconds from `start` to this event, both passed.
    pub fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        self.device.make_current()?;
        let mut ms = 0.0;
        // SAFETY: `ms` is a valid place for one float, and both handles are valid.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime(&mut ms, start.raw, self.raw) })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: created by `new`, destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

/// Captured work, ready to be replayed.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    exec: CUgraphExec,
    kernels: usize,
}

// SAFETY: the driver API is thread-safe; the handle lives as long as the graph, which keeps its device open.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Kernels that one replay launches.
    pub fn kernels(&self) -> usize {
        self.kernels
    }

    /// Enqueues the captured work.
    ///
    /// # Safety
    /// The memory that the captured operations were given must still be allocated, and stay so until the stream has
    /// run them; nothing else may write it meanwhile. The lists of a [`Permutation`](crate::ops::permutation::Permutation) that
    /// was made before the capture hold what they held then.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("graph launch", "stream", format!("{stream:?}"), rule));
        }
        self.device.make_current()?;
        // SAFETY: both handles are valid; the memory is the caller's contract.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, stream.raw()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: instantiated by `capture`, destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
