//! A communicator of NCCL that does not block, and that several threads may give up.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::library::{
    Library, ncclComm_t, ncclConfig_t, ncclInProgress, ncclResult_t, ncclSuccess, ncclUniqueId,
};
use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::parallel::failure::Board;

/// Between two questions whether a call is done, once it has taken longer than a short while.
const PAUSE: Duration = Duration::from_micros(50);
/// Shorter calls are waited for without pauses.
const SHORT: Duration = Duration::from_millis(1);

/// A communicator, until it is aborted.
pub(super) struct Comm {
    library: Library,
    device: Device,
    board: Arc<Board>,
    /// None once it is gone.
    raw: Mutex<Option<Raw>>,
    /// Whether it was made here.
    is_own: bool,
}

struct Raw(ncclComm_t);

// SAFETY: NCCL lets any thread use a communicator, one at a time, as the mutex has it.
unsafe impl Send for Raw {}

impl Comm {
    /// Makes this rank's; returns when all ranks have.
    pub fn new(
        library: Library,
        device: &Device,
        board: &Arc<Board>,
        id: ncclUniqueId,
        [rank, size]: [c_int; 2],
        limit: Duration,
    ) -> Result<Arc<Comm>> {
        const CALL: &str = "ncclCommInitRankConfig";
        let _current = device.context().enter()?;
        let (mut raw, mut config) = (std::ptr::null_mut(), ncclConfig_t::non_blocking());
        // SAFETY: `raw` and `config` are valid places, and the device's context is current.
        let result =
            unsafe { (library.table().ncclCommInitRankConfig)(&mut raw, size, id, rank, &mut config) };
        library.check(CALL, std::ptr::null_mut(), result)?;
        let comm = Comm::of(library, device, board, raw, true);
        let begun = comm.complete(&comm.lock(), CALL, result, limit);
        // Not left to the drop, which would wait for the others.
        begun.inspect_err(|_| comm.abort())?;
        Ok(comm)
    }

    /// One that exists; `is_own` where it ends with this.
    pub fn of(
        library: Library,
        device: &Device,
        board: &Arc<Board>,
        raw: ncclComm_t,
        is_own: bool,
    ) -> Arc<Comm> {
        let raw = Mutex::new(Some(Raw(raw)));
        let comm = Arc::new(Comm { library, device: device.clone(), board: board.clone(), raw, is_own });
        let weak = Arc::downgrade(&comm);
        board.on_failure(move |_| {
            if let Some(comm) = weak.upgrade() {
                comm.abort();
            }
        });
        comm
    }

    fn lock(&self) -> MutexGuard<'_, Option<Raw>> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of NCCL's, or a group of calls; returns when it has been enqueued.
    ///
    /// # Safety
    /// `work` calls functions of the table with the communicator, and with memory and streams that are what
    /// NCCL's documentation asks for.
    pub unsafe fn enqueue(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl FnOnce(Library, ncclComm_t) -> Result<()>,
    ) -> Result<()> {
        self.board.check()?;
        let raw = self.lock();
        let comm = self.alive(&raw)?;
        let _current = self.device.context().enter()?;
        let table = self.library.table();
        // SAFETY: groups are of this thread, and one that begins here ends here.
        let started = unsafe { (table.ncclGroupStart)() };
        self.library.check("ncclGroupStart", comm, started)?;
        let worked = work(self.library, comm);
        // SAFETY: as above; also after a failure, or the thread's next calls would belong to this group.
        let ended = unsafe { (table.ncclGroupEnd)() };
        worked?;
        self.library.check(call, comm, ended)?;
        self.complete(&raw, call, ended, limit)
    }

    /// Waits until a call that returned `result` has ended.
    fn complete(
        &self,
        raw: &MutexGuard<'_, Option<Raw>>,
        call: &'static str,
        result: ncclResult_t,
        limit: Duration,
    ) -> Result<()> {
        if result == ncclSuccess {
            return Ok(());
        }
        let (comm, started) = (self.alive(raw)?, Instant::now());
        loop {
            self.board.check()?;
            match self.state_of(comm)? {
                state if state != ncclInProgress => return self.library.check(call, comm, state),
                _ if started.elapsed() > limit => {
                    let meaning = format!("not done within {:.1} s", limit.as_secs_f64());
                    return Err(Error::Nccl { call, meaning });
                }
                _ if started.elapsed() > SHORT => std::thread::sleep(PAUSE),
                _ => std::hint::spin_loop(),
            }
        }
    }

    fn state_of(&self, comm: ncclComm_t) -> Result<ncclResult_t> {
        let mut state = ncclSuccess;
        // SAFETY: `state` is a valid place, and the communicator is alive while its lock is held.
        let result = unsafe { (self.library.table().ncclCommGetAsyncError)(comm, &mut state) };
        self.library.check("ncclCommGetAsyncError", comm, result)?;
        Ok(state)
    }

    /// Refuses a communicator that has failed; one that another thread uses has not, as far as is known.
    pub fn check(&self) -> Result<()> {
        self.board.check()?;
        let Ok(raw) = self.raw.try_lock() else { return Ok(()) };
        let comm = self.alive(&raw)?;
        let state = self.state_of(comm)?;
        self.library.check("ncclCommGetAsyncError", comm, state)
    }

    fn alive(&self, raw: &Option<Raw>) -> Result<ncclComm_t> {
        let gone = || {
            let meaning = "the communicator has been aborted".into();
            self.board
                .failure()
                .map_or(Error::Nccl { call: "communicator", meaning }, |failure| failure.error())
        };
        raw.as_ref().map(|raw| raw.0).ok_or_else(gone)
    }

    /// Stops its kernels and frees it, unless that has been done. Returns when it is gone, also where another
    /// thread has begun: a program that ends while NCCL aborts crashes in NCCL's destructors.
    pub fn abort(&self) {
        let mut raw = self.lock();
        let Some(Raw(comm)) = raw.take() else { return };
        let Ok(_current) = self.device.context().enter() else { return };
        // SAFETY: nobody else has the communicator, which was taken from under the lock.
        let _ = unsafe { (self.library.table().ncclCommAbort)(comm) };
    }

    /// Ends it in order, when all that was enqueued is done; where that takes longer than `limit`, by an abort.
    pub fn end(&self, limit: Duration) {
        if !self.is_own {
            *self.lock() = None;
            return;
        }
        if self.board.failure().is_some() {
            return self.abort();
        }
        let finalized = {
            let raw = self.lock();
            // None once an abort has ended, which held the lock.
            let Some(Raw(comm)) = *raw else { return };
            let Ok(_current) = self.device.context().enter() else { return };
            // SAFETY: the communicator is alive.
            let result = unsafe { (self.library.table().ncclCommFinalize)(comm) };
            let begun = self.library.check("ncclCommFinalize", comm, result);
            begun.and_then(|()| self.complete(&raw, "ncclCommFinalize", result, limit))
        };
        if finalized.is_err() {
            return self.abort();
        }
        let mut raw = self.lock();
        let Some(Raw(comm)) = raw.take() else { return };
        let Ok(_current) = self.device.context().enter() else { return };
        // SAFETY: nobody else has the communicator, which was taken from under the lock.
        let _ = unsafe { (self.library.table().ncclCommDestroy)(comm) };
    }
}
