//! Streams, events and captured graphs.
//!
//! A stream runs what is enqueued on it in order. [`Stream::capture`] records the operations of a closure instead of
//! running them; the [`Graph`] replays them with one call.

use std::ffi::c_void;
use std::fmt;
use std::sync::Mutex;

use cust::GraphExec;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::launch::KernelText;

/// An ordered queue of work on one device.
pub struct Stream {
    raw: cust::Stream,
    /// The kernels that were launched, if it runs nothing.
    rehearsed: Option<Mutex<Vec<KernelText>>>,
    device: Device,
}

impl Stream {
    /// A new stream.
    pub fn new(device: &Device) -> Result<Stream> {
        Ok(Stream { raw: cust::Stream::new(device.context())?, rehearsed: None, device: device.clone() })
    }

    /// A stream that another program owns: a `CUstream`. Null is the legacy default stream of the device's context.
    ///
    /// # Safety
    /// `raw` must be a stream of `device`'s context, and outlive the result.
    pub unsafe fn from_raw(device: &Device, raw: *mut c_void) -> Stream {
        // SAFETY: the caller's contract.
        let raw = unsafe { cust::Stream::from_raw(device.context(), raw) };
        Stream { raw, rehearsed: None, device: device.clone() }
    }

    /// The stream that is there from the start.
    pub(crate) fn default_of(device: &Device) -> Stream {
        // SAFETY: the stream lives as long as the context's `Shared`, which the device holds.
        unsafe { Self::from_raw(device, device.shared().default_stream.as_raw()) }
    }

    /// A stream on which operations check their arguments and choose their kernels, as on any other, and run nothing: it notes the
    /// kernels.
    pub(crate) fn rehearsal(device: &Device) -> Stream {
        Stream { rehearsed: Some(Mutex::default()), ..Self::default_of(device) }
    }

    /// Notes that `kernel` is launched, and returns true, if nothing runs here.
    pub(crate) fn rehearses(&self, kernel: KernelText) -> bool {
        let Some(rehearsed) = &self.rehearsed else { return false };
        rehearsed.lock().unwrap_or_else(|e| e.into_inner()).push(kernel);
        true
    }

    /// Whether nothing runs here.
    pub(crate) fn is_rehearsal(&self) -> bool {
        self.rehearsed.is_some()
    }

    /// The kernels that were launched in a rehearsal, in order.
    pub(crate) fn into_rehearsed(mut self) -> Vec<KernelText> {
        let rehearsed = self.rehearsed.take();
        rehearsed.map(|kernels| kernels.into_inner().unwrap_or_else(|e| e.into_inner())).unwrap_or_default()
    }

    /// The `CUstream`.
    pub fn raw(&self) -> *mut c_void {
        self.raw_stream().as_raw()
    }

    pub(crate) fn raw_stream(&self) -> &cust::Stream {
        // A rehearsal must not put anything on the default stream.
        assert!(!self.is_rehearsal(), "nothing runs in a rehearsal");
        &self.raw
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits for everything enqueued so far; a fault of a kernel among it is this call's error.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.raw.synchronize()?)
    }

    /// Makes everything enqueued from now on wait for `event`.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        Ok(self.raw.wait_event(&event.raw)?)
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
        stream.raw.begin_capture()?;
        Ok(Capture { stream })
    }

    /// Makes a graph of what was recorded.
    pub fn end(self) -> Result<Graph> {
        let stream = self.stream;
        std::mem::forget(self);
        let template = stream.raw.end_capture()?;
        let kernels = template.kernels()?;
        Ok(Graph { exec: template.instantiate()?, kernels, device: stream.device.clone() })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is dropped; an error of the capture is not this drop's to report.
        let _ = self.stream.raw.end_capture();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:?} of {}", self.raw.as_raw(), self.device)
    }
}

/// A point in a stream, with its time.
#[derive(Debug)]
pub struct Event {
    raw: cust::Event,
    device: Device,
}

impl Event {
    /// An event that has not been recorded.
    pub fn new(device: &Device) -> Result<Event> {
        Ok(Event { raw: cust::Event::new(device.context(), true)?, device: device.clone() })
    }

    /// The `CUevent`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.as_raw()
    }

    /// Marks the end of everything enqueued on `stream` so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("record", "stream", format!("{stream:?}"), rule));
        }
        Ok(self.raw.record(stream.raw_stream())?)
    }

    /// Waits until the stream has passed the event.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.raw.synchronize()?)
    }

    /// Milliseconds from `start` to this event, both passed.
    pub fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        Ok(self.raw.elapsed_ms(&start.raw)?)
    }
}

/// Captured work, ready to be replayed.
#[derive(Debug)]
pub struct Graph {
    exec: GraphExec,
    kernels: usize,
    device: Device,
}

impl Graph {
    /// Kernels that one replay launches.
    pub fn kernels(&self) -> usize {
        self.kernels
    }

    /// Enqueues the captured work.
    ///
    /// # Safety
    /// The memory that the captured operations were given must still be allocated, and stay so until the stream has
    /// run them; nothing else may write it meanwhile.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        if !self.device.same_as(stream.device()) {
            let rule = format!("must be a stream of {}", self.device);
            return Err(Error::argument("graph launch", "stream", format!("{stream:?}"), rule));
        }
        // SAFETY: the memory is the caller's contract.
        Ok(unsafe { self.exec.launch(stream.raw_stream()) }?)
    }
}
