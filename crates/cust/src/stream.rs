//! Streams: ordered queues of work.

use std::fmt;

use crate::context::Context;
use crate::driver::Driver;
use crate::error::{CudaResult, call};
use crate::event::Event;
use crate::graph::Template;
use crate::sys::{self, CUstream};

/// A stream of a context. Destroyed on drop if it was made here; its work goes on then.
pub struct Stream {
    context: Context,
    raw: CUstream,
    owned: bool,
}

// SAFETY: the handle may be used from any thread; the driver API is thread-safe.
unsafe impl Send for Stream {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream.
    pub fn new(context: &Context) -> CudaResult<Stream> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        unsafe { call!(context.driver(), cuStreamCreate(&mut raw, 0)) }?;
        Ok(Stream { context: context.clone(), raw, owned: true })
    }

    /// A stream that another part of the program owns; null is the context's legacy default stream.
    ///
    /// # Safety
    /// `raw` must be a stream of `context`, and outlive the result.
    pub unsafe fn from_raw(context: &Context, raw: CUstream) -> Stream {
        Stream { context: context.clone(), raw, owned: false }
    }

    /// The `CUstream`.
    pub fn as_raw(&self) -> CUstream {
        self.raw
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn driver(&self) -> Driver {
        self.context.driver()
    }

    /// Waits for everything enqueued so far; a fault of a kernel among it is this call's error.
    pub fn synchronize(&self) -> CudaResult<()> {
        let _current = self.context.enter()?;
        // SAFETY: the stream is alive.
        unsafe { call!(self.driver(), cuStreamSynchronize(self.raw)) }
    }

    /// Makes everything enqueued from now on wait for what `event` was last recorded behind. It may be of
    /// another context.
    pub fn wait_event(&self, event: &Event) -> CudaResult<()> {
        if event.context().driver() != self.driver() {
            // Its handle is an address in the other driver.
            return self.driver().check("cuStreamWaitEvent", sys::CUDA_ERROR_INVALID_HANDLE);
        }
        let _current = self.context.enter()?;
        // SAFETY: both are alive, and of one driver.
        unsafe { call!(self.driver(), cuStreamWaitEvent(self.raw, event.as_raw(), 0)) }
    }

    /// Whether what is enqueued is being recorded instead of run.
    pub fn is_capturing(&self) -> CudaResult<bool> {
        let _current = self.context.enter()?;
        let mut status = 0;
        // SAFETY: `status` is a valid place for one number, and the stream is alive.
        unsafe { call!(self.driver(), cuStreamIsCapturing(self.raw, &mut status)) }?;
        Ok(status != sys::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// From here on what is enqueued is recorded. What captures forbid is forbidden to this thread alone.
    pub fn begin_capture(&self) -> CudaResult<()> {
        let _current = self.context.enter()?;
        // SAFETY: the stream is alive.
        unsafe {
            call!(self.driver(), cuStreamBeginCapture_v2(self.raw, sys::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        }
    }

    /// Ends the capture, and gives what was recorded.
    pub fn end_capture(&self) -> CudaResult<Template> {
        let _current = self.context.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is a valid place for one handle, and the stream is alive.
        unsafe { call!(self.driver(), cuStreamEndCapture(self.raw, &mut graph)) }?;
        Ok(Template::new(self.context.clone(), graph))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: made by `new`, destroyed once; the driver finishes the work still in it. What is being
        // captured on it is lost.
        let _ = unsafe { call!(self.driver(), cuStreamDestroy_v2(self.raw)) };
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:?} of {:?}", self.raw, self.context)
    }
}
