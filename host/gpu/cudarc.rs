//! cudarc beside this library: its contexts as devices, its streams and slices for as long as a call.
//!
//! ```text
//!   CudaContext ── Device::from_cudarc ──▶ Device          the device keeps the context alive
//!   CudaStream  ── Device::cudarc_scope ─▶ Scope::stream   as long as the scope
//!   CudaSlice, CudaView    ── Scope::view ─────▶ Slice     likewise: the scope borrows it
//!   CudaViewMut            ── Scope::view_mut ─▶ SliceMut
//! ```
//!
//! # Order
//! cudarc orders its streams by an event for each slice; this library by what each queue does with each
//! allocation. A view joins the two. When it is made, the scope's stream waits for cudarc's event, and the
//! memory is noted as written there, so that other streams of this library wait for that. When the scope
//! ends, the scope's stream waits for all of this library that used the memory, and then cudarc records its
//! event behind that. Nothing waits on the host.
//!
//! # What is safe, and why
//! A scope ends inside the call that opened it, also when its work panics: nobody can leak it, and so all
//! views end before cudarc can free or write what they borrow. What a graph holds would outlive the views:
//! they are refused in captures of this library, and a stream that cudarc captures is refused, when the scope
//! begins and by each operation in it. (To capture a stream while another thread launches on it is a mistake
//! that cudarc's own API allows.) [`MoeLayer::forward_raw`](crate::MoeLayer::forward_raw) can be captured by
//! cudarc, and is unsafe.

use std::cell::OnceCell;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use ::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceSlice, DriverError, SyncOnDrop,
};
use bytemuck::Pod;
use cust::{Context, Driver};

use crate::error::{Error, Result};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::Allocation;
use crate::gpu::stream::Stream;

const OP: &str = "Device::cudarc_scope";

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Error {
        let meaning =
            error.error_string().map_or_else(|_| String::new(), |text| text.to_string_lossy().into());
        Error::Driver { call: "cudarc", code: error.0 as u32, meaning }
    }
}

impl Device {
    /// The device of a cudarc context. It keeps the context alive, and so does all that is made with it.
    /// Devices of one context share the kernels that have been loaded, and which context is current on this
    /// thread does not change.
    ///
    /// # Errors
    /// If the context is of another driver library than the one that this library finds, or if its device
    /// cannot run the kernels.
    pub fn from_cudarc(context: &Arc<CudaContext>) -> Result<Device> {
        let refuse = |reason: String| Error::Device { spec: "of a cudarc context".into(), reason };
        let driver = Driver::cuda().map_err(|error| refuse(error.to_string()))?;
        let raw: *mut c_void = context.cu_ctx().cast();
        // What cudarc makes current is current in its driver. On a thread of its own, it disturbs nobody.
        let current = || -> Result<usize> {
            context.bind_to_thread()?;
            Ok(driver.current_context()? as usize)
        };
        let current = std::thread::scope(|scope| scope.spawn(current).join());
        if current.unwrap_or_else(|panic| std::panic::resume_unwind(panic))? != raw as usize {
            return Err(refuse("cudarc has loaded another driver than fp8-moe".into()));
        }
        // SAFETY: a context of this driver, as was just seen; cudarc destroys it with the last `Arc`.
        let context = unsafe { Context::from_owner(driver, raw, context.clone()) }?;
        Device::in_context(context, None)
    }

    /// Calls `work` with a cudarc stream of this device's context as a [`Stream`], and with a way to use
    /// cudarc's memory on it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use fp8_moe::Device;
    /// let context = cudarc::driver::CudaContext::new(0)?;
    /// let stream = context.new_stream()?;
    /// let device = Device::from_cudarc(&context)?;
    /// let hidden = stream.clone_htod(&[0.0_f32; 64])?;
    /// let mut copy = device.zeros::<f32>(64)?;
    /// device.cudarc_scope(&stream, |scope| {
    ///     copy.as_mut_slice().copy_from_device(scope.view(&hidden)?, scope.stream())
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A stream of another context, one that is being captured, or cudarc's per-thread stream; what `work`
    /// fails with; what cudarc or the driver say when the views end.
    pub fn cudarc_scope<'env, T>(
        &'env self,
        stream: &'env Arc<CudaStream>,
        work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Result<T>,
    ) -> Result<T> {
        let raw: *mut c_void = stream.cu_stream().cast();
        let refuse =
            |rule: &str| Err(Error::argument(OP, "stream", format!("stream {raw:?} of cudarc"), rule));
        if stream.context().cu_ctx().cast::<c_void>() != self.context().as_raw() {
            return refuse("must be a stream of the device's context");
        }
        if raw as usize == PER_THREAD {
            return refuse("must not be the per-thread stream, which is another one in every thread");
        }
        // cudarc makes the context current where it is not, and leaves it so.
        let _current = self.context().enter()?;
        // SAFETY: a stream of the context, which the caller lends for as long as this call.
        let Some(ours) = unsafe { Stream::lent(self, raw) }? else {
            return refuse("must not be one that is being captured: `forward_raw` can be captured by cudarc");
        };
        let mut loans = Loans { stream: &ours, first: OnceCell::new() };
        let scope = Scope {
            device: self,
            cuda: stream,
            stream: &ours,
            loans: &loans,
            scope: PhantomData,
            env: PhantomData,
        };
        let outcome = work(&scope);
        let ended = loans.end();
        outcome.and_then(|value| ended.map(|()| value))
    }
}

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// A cudarc stream, and memory of cudarc's, lent to this library. From [`Device::cudarc_scope`].
pub struct Scope<'scope, 'env: 'scope> {
    device: &'env Device,
    cuda: &'env Arc<CudaStream>,
    stream: &'scope Stream,
    loans: &'scope Loans<'scope, 'env>,
    /// Invariant, as in `std::thread::scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// cudarc's stream.
    pub fn stream(&'scope self) -> &'scope Stream {
        self.stream
    }

    /// Memory of cudarc's, to read: a `&CudaSlice`, or a `CudaView` of a part of one.
    ///
    /// # Errors
    /// Memory of another context.
    pub fn view<T: Pod>(&'scope self, memory: impl Lend<'env, T>) -> Result<Slice<'scope, T>> {
        let view = memory.lend();
        self.check_context(view.stream())?;
        let len = view.len();
        let (address, event) = view.view_ptr(self.cuda);
        let memory = self.lend(event)?;
        // SAFETY: cudarc has `len` elements there, which nobody writes or frees before the scope has ended:
        // the view borrows them for longer.
        Ok(unsafe { Slice::of(self.device, Some(memory), DevicePtr::from_raw(address), len) })
    }

    /// Memory of cudarc's, to write: a `&mut CudaSlice`, or a `CudaViewMut` of a part of one.
    ///
    /// # Errors
    /// Memory of another context.
    pub fn view_mut<T: Pod>(&'scope self, memory: impl LendMut<'env, T>) -> Result<SliceMut<'scope, T>> {
        let view = memory.lend();
        self.check_context(view.stream())?;
        let len = view.len();
        let (address, event) = view.view_ptr_mut(self.cuda);
        let memory = self.lend(event)?;
        // SAFETY: as above, and nobody reads them either: the view borrows them exclusively.
        Ok(unsafe { SliceMut::of(self.device, Some(memory), DevicePtr::from_raw(address), len) })
    }

    /// Refuses memory of another context.
    fn check_context(&self, of: &Arc<CudaStream>) -> Result<()> {
        if of.context().cu_ctx() == self.cuda.context().cu_ctx() {
            return Ok(());
        }
        let value = format!("memory of {:?}", of.context());
        Err(Error::argument(OP, "memory", value, format!("must be of the context of {}", self.device)))
    }

    /// Notes memory for which cudarc records `event` when the scope has ended.
    fn lend(&self, event: SyncOnDrop<'env>) -> Result<&'scope Arc<Allocation>> {
        // cudarc keeps the errors of its waits for later.
        self.cuda.context().check_err()?;
        let loan = self.loans.add(Loan { memory: self.stream.lend(), event, next: OnceCell::new() });
        Ok(&loan.memory)
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The memory that is lent: a list that grows while its elements are borrowed.
struct Loans<'scope, 'env> {
    stream: &'scope Stream,
    first: OnceCell<Box<Loan<'env>>>,
}

struct Loan<'env> {
    memory: Arc<Allocation>,
    /// Dropped, it records cudarc's event.
    event: SyncOnDrop<'env>,
    next: OnceCell<Box<Loan<'env>>>,
}

impl<'env> Loans<'_, 'env> {
    fn add(&self, loan: Loan<'env>) -> &Loan<'env> {
        let mut place = &self.first;
        while let Some(loan) = place.get() {
            place = &loan.next;
        }
        place.get_or_init(|| Box::new(loan))
    }

    /// Makes the stream wait for all uses of the memory, and cudarc record its events behind that.
    fn end(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        let mut rest = self.first.take();
        while let Some(loan) = rest {
            let Loan { memory, event, next } = *loan;
            let returned = self.stream.takes_back(&memory);
            drop(event);
            outcome = outcome.and(returned);
            rest = next.into_inner();
        }
        outcome
    }
}

impl Drop for Loans<'_, '_> {
    /// After `end` nothing is left; before, the work has panicked.
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Memory of cudarc's that can be lent to be read.
pub trait Lend<'a, T>: private::Lend<'a, T> {}

/// Memory of cudarc's that can be lent to be written.
pub trait LendMut<'a, T>: private::LendMut<'a, T> {}

impl<'a, T, M: private::Lend<'a, T>> Lend<'a, T> for M {}
impl<'a, T, M: private::LendMut<'a, T>> LendMut<'a, T> for M {}

mod private {
    use super::{CudaSlice, CudaView, CudaViewMut};

    pub trait Lend<'a, T> {
        fn lend(self) -> CudaView<'a, T>;
    }

    impl<'a, T> Lend<'a, T> for &'a CudaSlice<T> {
        fn lend(self) -> CudaView<'a, T> {
            self.as_view()
        }
    }

    impl<'a, T> Lend<'a, T> for CudaView<'a, T> {
        fn lend(self) -> CudaView<'a, T> {
            self
        }
    }

    pub trait LendMut<'a, T> {
        fn lend(self) -> CudaViewMut<'a, T>;
    }

    impl<'a, T> LendMut<'a, T> for &'a mut CudaSlice<T> {
        fn lend(self) -> CudaViewMut<'a, T> {
            self.as_view_mut()
        }
    }

    impl<'a, T> LendMut<'a, T> for CudaViewMut<'a, T> {
        fn lend(self) -> CudaViewMut<'a, T> {
            self
        }
    }
}
