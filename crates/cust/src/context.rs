//! Contexts: what memory, modules and streams live in.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::Device;
use crate::driver::Driver;
use crate::error::{CudaResult, call};
use crate::sys::{CU_STREAM_CAPTURE_MODE_RELAXED, CUcontext};

/// A context of a device. Cheap to clone; what lives in it holds a clone, so that it ends after all of that.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    device: Device,
    raw: CUcontext,
    origin: Origin,
    /// What keeps another program's context alive.
    owner: Option<Owner>,
}

/// What keeps something alive as long as a clone of it is there.
pub type Owner = Arc<dyn Any + Send + Sync>;

/// Where a context comes from, and so how it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The device's primary one, retained.
    Primary,
    /// Made here.
    Created,
    /// Another program's.
    Borrowed,
}

// SAFETY: the handle may be used from any thread; the driver API is thread-safe.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Inner {}

impl Context {
    /// The device's primary context, which all parts of a program share (cudarc and the CUDA runtime use it
    /// too).
    pub fn primary(device: Device) -> CudaResult<Context> {
        let (driver, mut raw) = (device.driver(), std::ptr::null_mut());
        // SAFETY: `raw` is a valid place for one handle.
        unsafe { call!(driver, cuDevicePrimaryCtxRetain(&mut raw, device.as_raw())) }?;
        Ok(Context::new(device, raw, Origin::Primary))
    }

    /// A context of its own, which is destroyed with the last clone.
    pub fn create(device: Device) -> CudaResult<Context> {
        let (driver, mut raw) = (device.driver(), std::ptr::null_mut());
        // SAFETY: `raw` is a valid place for one handle.
        unsafe { call!(driver, cuCtxCreate_v2(&mut raw, 0, device.as_raw())) }?;
        let context = Context::new(device, raw, Origin::Created);
        // Making it has made it current, which is the caller's to decide.
        // SAFETY: `raw` is a valid place for one handle; what was pushed by the call above is popped.
        unsafe { call!(driver, cuCtxPopCurrent_v2(&mut raw)) }?;
        Ok(context)
    }

    /// A context that another part of the program owns.
    ///
    /// # Safety
    /// `raw` must be a context of `driver`, and must not be destroyed before the last clone of the result is
    /// dropped.
    pub unsafe fn from_raw(driver: Driver, raw: CUcontext) -> CudaResult<Context> {
        // SAFETY: the caller's contract.
        unsafe { Context::borrow(driver, raw, None) }
    }

    /// As [`Context::from_raw`], of a context that `owner` keeps alive. The result holds it, and so does all
    /// that is made with the result.
    ///
    /// # Safety
    /// `raw` must be a context of `driver`, and must not be destroyed before `owner` is dropped.
    pub unsafe fn from_owner(driver: Driver, raw: CUcontext, owner: Owner) -> CudaResult<Context> {
        // SAFETY: the caller's contract.
        unsafe { Context::borrow(driver, raw, Some(owner)) }
    }

    /// # Safety
    /// As [`Context::from_raw`], or [`Context::from_owner`] where there is one.
    unsafe fn borrow(driver: Driver, raw: CUcontext, owner: Option<Owner>) -> CudaResult<Context> {
        let on = |device| {
            let device = Device::from_raw(driver, device);
            Context { inner: Arc::new(Inner { device, raw, origin: Origin::Borrowed, owner: owner.clone() }) }
        };
        let borrowed = on(0);
        let mut device = 0;
        {
            let _current = borrowed.enter()?;
            // SAFETY: `device` is a valid place for one device.
            unsafe { call!(driver, cuCtxGetDevice(&mut device)) }?;
        }
        Ok(on(device))
    }

    fn new(device: Device, raw: CUcontext, origin: Origin) -> Context {
        Context { inner: Arc::new(Inner { device, raw, origin, owner: None }) }
    }

    /// What keeps it alive, if it is another program's and that has said so.
    pub fn owner(&self) -> Option<&Owner> {
        self.inner.owner.as_ref()
    }

    /// The `CUcontext`.
    pub fn as_raw(&self) -> CUcontext {
        self.inner.raw
    }

    /// Its device.
    pub fn device(&self) -> Device {
        self.inner.device
    }

    /// Its driver.
    pub fn driver(&self) -> Driver {
        self.inner.device.driver()
    }

    /// Makes the context current on this thread, if it is not, until the result is dropped; then the one
    /// before is current again. Results are to be dropped in the reverse order: else another context than one
    /// thinks is current in between, which matters to those alone who do not enter theirs.
    pub fn enter(&self) -> CudaResult<Current> {
        let driver = self.driver();
        if driver.current_context()? == self.as_raw() {
            return Ok(Current { pushed: None, thread: PhantomData });
        }
        // SAFETY: the context is alive, and as long as the result, which holds a clone: what is current on
        // this thread by a push of ours has not been destroyed, also where the result is leaked.
        unsafe { call!(driver, cuCtxPushCurrent_v2(self.as_raw())) }?;
        Ok(Current { pushed: Some(self.clone()), thread: PhantomData })
    }

    /// Waits for all work of the context.
    pub fn synchronize(&self) -> CudaResult<()> {
        let _current = self.enter()?;
        // SAFETY: a call without arguments, of the current context.
        unsafe { call!(self.driver(), cuCtxSynchronize()) }
    }

    /// Memory of the device that is free now, bytes.
    pub fn free_memory(&self) -> CudaResult<usize> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid places for one number, and the context is current.
        unsafe { call!(self.driver(), cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok(free)
    }

    /// Calls `work` with what a capture forbids this thread allowed: nothing in it is for the graph.
    pub fn relaxed<T, E: From<crate::CudaError>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let exchange = |mode: &mut u32| {
            // SAFETY: `mode` is a valid place for one mode, which is read and written.
            unsafe { call!(self.driver(), cuThreadExchangeStreamCaptureMode(mode)) }
        };
        let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        exchange(&mut mode)?;
        let outcome = work();
        exchange(&mut mode)?;
        outcome
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Context) -> bool {
        self.as_raw() == other.as_raw() && self.driver() == other.driver()
    }
}

impl Eq for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {:?} of {:?}", self.inner.raw, self.inner.device.driver())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let table = self.device.driver().table();
        // An error here is a context that a fault has taken away already.
        let _ = match self.origin {
            // SAFETY: retained once by `primary`, and given back once: what lived in it, and every thread on
            // which it was entered, held a clone.
            Origin::Primary => unsafe { (table.cuDevicePrimaryCtxRelease_v2)(self.device.as_raw()) },
            // SAFETY: made by `create`, and destroyed once. As above.
            Origin::Created => unsafe { (table.cuCtxDestroy_v2)(self.raw) },
            Origin::Borrowed => return,
        };
    }
}

/// A thread's current context, until it is dropped. From [`Context::enter`].
#[must_use = "the context is current until this is dropped"]
#[derive(Debug)]
pub struct Current {
    pushed: Option<Context>,
    /// It is this thread's.
    thread: PhantomData<*mut ()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(context) = &self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: `popped` is a valid place for one handle. Of the thread's stack this takes one for each
            // that `enter` has pushed. It fails only where the driver has gone down with the process.
            let _ = unsafe { (context.driver().table().cuCtxPopCurrent_v2)(&mut popped) };
        }
    }
}
