//! Events: points in a stream.

use std::fmt;

use crate::context::Context;
use crate::error::{CudaResult, call};
use crate::stream::Stream;
use crate::sys::{self, CUevent};

/// A point in a stream, with its time unless it was made without.
pub struct Event {
    context: Context,
    raw: CUevent,
}

// SAFETY: the handle may be used from any thread; the driver API is thread-safe.
unsafe impl Send for Event {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has not been recorded. With `timing` it keeps the time at which it is passed.
    pub fn new(context: &Context, timing: bool) -> CudaResult<Event> {
        let _current = context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = if timing { 0 } else { sys::CU_EVENT_DISABLE_TIMING };
        // SAFETY: `raw` is a valid place for one handle, and the context is current.
        unsafe { call!(context.driver(), cuEventCreate(&mut raw, flags)) }?;
        Ok(Event { context: context.clone(), raw })
    }

    /// The `CUevent`.
    pub fn as_raw(&self) -> CUevent {
        self.raw
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Puts the event behind everything enqueued on `stream` so far, a stream of the same context; others are
    /// refused.
    pub fn record(&self, stream: &Stream) -> CudaResult<()> {
        if stream.context() != &self.context {
            return self.context.driver().check("cuEventRecord", sys::CUDA_ERROR_INVALID_HANDLE);
        }
        let _current = self.context.enter()?;
        // SAFETY: both are alive, and of one context.
        unsafe { call!(self.context.driver(), cuEventRecord(self.raw, stream.as_raw())) }
    }

    /// Whether what it was last recorded behind is done. True if it was never recorded.
    pub fn is_done(&self) -> CudaResult<bool> {
        let (driver, _current) = (self.context.driver(), self.context.enter()?);
        // SAFETY: the event is alive.
        let code = unsafe { (driver.table().cuEventQuery)(self.raw) };
        if code == sys::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        driver.check("cuEventQuery", code).map(|()| true)
    }

    /// Waits until what it was last recorded behind is done.
    pub fn synchronize(&self) -> CudaResult<()> {
        let _current = self.context.enter()?;
        // SAFETY: the event is alive.
        unsafe { call!(self.context.driver(), cuEventSynchronize(self.raw)) }
    }

    /// Milliseconds from `start`, an event of the same driver, to this event, both passed and made with
    /// timing.
    pub fn elapsed_ms(&self, start: &Event) -> CudaResult<f32> {
        let driver = self.context.driver();
        if start.context.driver() != driver {
            // Its handle is an address in the other driver.
            driver.check("cuEventElapsedTime", sys::CUDA_ERROR_INVALID_HANDLE)?;
        }
        let (_current, mut milliseconds) = (self.context.enter()?, 0.0);
        // SAFETY: `milliseconds` is a valid place for one float, and both events are alive, and this
        // driver's.
        unsafe { call!(self.context.driver(), cuEventElapsedTime(&mut milliseconds, start.raw, self.raw)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: made by `new`, destroyed once; who waits for it goes on waiting for what it was recorded
        // behind.
        let _ = unsafe { call!(self.context.driver(), cuEventDestroy_v2(self.raw)) };
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {:?} of {:?}", self.raw, self.context)
    }
}
