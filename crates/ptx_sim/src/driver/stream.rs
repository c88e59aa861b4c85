//! Streams and events. Work runs to its end inside the call that submits it, in the order of the calls, so
//! waiting never takes time; a stream that captures records instead.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::abi::*;
use super::capture::{self, Branch, Capture};
use super::context::current;
use super::history::{self, History};
use super::state::{Outcome, Registry, api, fail, give, lock};
use super::work::Work;
use crate::Chain;

/// One stream.
pub(super) struct Stream {
    pub flags: c_uint,
    priority: c_int,
    pub context: usize,
    /// Its part in a capture, while it captures.
    pub branch: Mutex<Option<Branch>>,
    history: History,
}

/// One event.
pub(super) struct Event {
    flags: c_uint,
    pub state: Mutex<EventState>,
}

/// What an event stands for.
pub(super) enum EventState {
    /// Nothing yet.
    New,
    /// The moment at which all work before it was done.
    Recorded(Instant),
    /// A point in a capture.
    Captured { capture: Arc<Capture>, tail: BTreeSet<usize> },
}

/// Of the streams that exist without being made.
static HISTORY: History = History::new();
static STREAMS: Registry<Stream> = Registry::new("stream");
static EVENTS: Registry<Event> = Registry::new("event");

/// Whether a handle is one of the default streams, which exist without being made.
pub(super) fn is_special(handle: CUstream) -> bool {
    (handle as usize) <= CU_STREAM_PER_THREAD
}

/// The stream behind a handle that is not special.
pub(super) fn stream_of(handle: CUstream) -> Outcome<Arc<Stream>> {
    STREAMS.get(handle)
}

/// Runs work, or records it if the stream is capturing.
///
/// # Safety
/// What [`Work::run`] asks, until the work is done or, when recorded, whenever the graph is launched.
pub(super) unsafe fn submit(handle: CUstream, work: Work) -> Outcome {
    if is_special(handle) {
        if handle as usize != CU_STREAM_PER_THREAD {
            capture::forbid_legacy_stream()?;
        }
    } else {
        let stream = stream_of(handle)?;
        if let Some(branch) = &mut *lock(&stream.branch) {
            return branch.append(work);
        }
    }
    // SAFETY: handed on.
    continued(handle, |chain| unsafe { work.run(chain, false) })?
}

/// Runs something that continues a stream.
pub(super) fn continued<T>(handle: CUstream, run: impl FnOnce(&mut Chain) -> T) -> Outcome<T> {
    if is_special(handle) {
        return Ok(HISTORY.continued(run));
    }
    Ok(stream_of(handle)?.history.continued(run))
}

/// Makes a stream.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuStreamCreate(out: *mut CUstream, flags: c_uint) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuStreamCreate", || unsafe { create(out, flags, 0) })
}

/// Makes a stream with a priority, which has no effect here.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut CUstream,
    flags: c_uint,
    priority: c_int,
) -> CUresult {
    // SAFETY: the caller's promise.
    api("cuStreamCreateWithPriority", || unsafe { create(out, flags, priority) })
}

/// # Safety
/// `out` is null or valid for a write.
unsafe fn create(out: *mut CUstream, flags: c_uint, priority: c_int) -> Outcome {
    let context = current()?;
    if flags > CU_STREAM_NON_BLOCKING {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("Flags is {flags}: must be 0 or 1"));
    }
    if out.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "phStream is null");
    }
    let priority = priority.clamp(-5, 0);
    let stream = Stream { flags, priority, context, branch: Mutex::new(None), history: History::new() };
    // SAFETY: the caller's promise.
    unsafe { give(out, "phStream", STREAMS.insert(Arc::new(stream))) }
}

/// Destroys a stream.
pub extern "C" fn cuStreamDestroy_v2(handle: CUstream) -> CUresult {
    api("cuStreamDestroy_v2", || {
        if is_special(handle) {
            return fail(CUDA_ERROR_INVALID_HANDLE, "a default stream cannot be destroyed");
        }
        capture::forbid_in(handle)?;
        STREAMS.remove(handle).map(drop)
    })
}

/// Waits for the work of a stream: it is done.
pub extern "C" fn cuStreamSynchronize(handle: CUstream) -> CUresult {
    api("cuStreamSynchronize", || wait(handle))
}

/// Whether the work of a stream is done: it is.
pub extern "C" fn cuStreamQuery(handle: CUstream) -> CUresult {
    api("cuStreamQuery", || wait(handle))
}

fn wait(handle: CUstream) -> Outcome {
    current()?;
    if is_special(handle) {
        history::end_all();
        return capture::forbid_legacy_stream();
    }
    capture::forbid_in(handle)?;
    stream_of(handle)?.history.end();
    Ok(())
}

/// Makes a stream wait for an event. Work runs in the order of the calls, so this matters to captures only.
pub extern "C" fn cuStreamWaitEvent(handle: CUstream, event: CUevent, _flags: c_uint) -> CUresult {
    api("cuStreamWaitEvent", || {
        current()?;
        capture::wait_for(handle, &*EVENTS.get(event)?)
    })
}

/// A stream's flags.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuStreamGetFlags(handle: CUstream, out: *mut c_uint) -> CUresult {
    api("cuStreamGetFlags", || {
        current()?;
        let flags = if is_special(handle) { 0 } else { stream_of(handle)?.flags };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "flags", flags) }
    })
}

/// A stream's priority.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuStreamGetPriority(handle: CUstream, out: *mut c_int) -> CUresult {
    api("cuStreamGetPriority", || {
        current()?;
        let priority = if is_special(handle) { 0 } else { stream_of(handle)?.priority };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "priority", priority) }
    })
}

/// The context a stream was made in.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuStreamGetCtx(handle: CUstream, out: *mut CUcontext) -> CUresult {
    api("cuStreamGetCtx", || {
        let here = current()?;
        let context = if is_special(handle) { here } else { stream_of(handle)?.context };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pctx", context as CUcontext) }
    })
}

/// A number that no other stream has had.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuStreamGetId(handle: CUstream, out: *mut u64) -> CUresult {
    api("cuStreamGetId", || {
        current()?;
        if !is_special(handle) {
            stream_of(handle)?;
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "streamId", handle as u64) }
    })
}

/// Calls a host function in the order of a stream.
///
/// # Safety
/// As [`cuStreamCreate`]; the function may be called with the data.
pub unsafe extern "C" fn cuLaunchHostFunc(
    handle: CUstream,
    function: CUhostFn,
    data: *mut c_void,
) -> CUresult {
    api("cuLaunchHostFunc", || {
        current()?;
        let Some(function) = function else { return fail(CUDA_ERROR_INVALID_VALUE, "fn is null") };
        // SAFETY: the caller's promise.
        unsafe { submit(handle, Work::Host { function, data: data as usize }) }
    })
}

/// Makes an event.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuEventCreate(out: *mut CUevent, flags: c_uint) -> CUresult {
    api("cuEventCreate", || {
        current()?;
        if flags > 7 {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("Flags is {flags}: must be below 8"));
        }
        if out.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "phEvent is null");
        }
        let event = Event { flags, state: Mutex::new(EventState::New) };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "phEvent", EVENTS.insert(Arc::new(event))) }
    })
}

/// Destroys an event.
pub extern "C" fn cuEventDestroy_v2(event: CUevent) -> CUresult {
    api("cuEventDestroy_v2", || EVENTS.remove(event).map(drop))
}

fn record(event: CUevent, handle: CUstream) -> Outcome {
    current()?;
    let event = EVENTS.get(event)?;
    let mut state = lock(&event.state);
    if is_special(handle) {
        if handle as usize != CU_STREAM_PER_THREAD {
            capture::forbid_legacy_stream()?;
        }
    } else if let Some(branch) = &*lock(&stream_of(handle)?.branch) {
        *state = EventState::Captured { capture: branch.capture.clone(), tail: branch.tail.clone() };
        return Ok(());
    }
    *state = EventState::Recorded(Instant::now());
    Ok(())
}

/// Records the work of a stream so far in an event.
pub extern "C" fn cuEventRecord(event: CUevent, handle: CUstream) -> CUresult {
    api("cuEventRecord", || record(event, handle))
}

/// Records the work of a stream so far in an event.
pub extern "C" fn cuEventRecordWithFlags(event: CUevent, handle: CUstream, _flags: c_uint) -> CUresult {
    api("cuEventRecordWithFlags", || record(event, handle))
}

fn completed(event: CUevent) -> Outcome {
    current()?;
    let event = EVENTS.get(event)?;
    match &*lock(&event.state) {
        EventState::Captured { .. } => {
            fail(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capturing stream")
        }
        _ => Ok(()),
    }
}

/// Whether the work recorded in an event is done: it is.
pub extern "C" fn cuEventQuery(event: CUevent) -> CUresult {
    api("cuEventQuery", || {
        capture::forbid_unsafe_call()?;
        history::end_all();
        completed(event)
    })
}

/// Waits for the work recorded in an event: it is done.
pub extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    api("cuEventSynchronize", || {
        capture::forbid_unsafe_call()?;
        history::end_all();
        completed(event)
    })
}

/// Time between two events, in milliseconds of this computer's clock.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuEventElapsedTime(out: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    api("cuEventElapsedTime", || {
        completed(start)?;
        completed(end)?;
        let moment = |event: CUevent, name: &str| {
            let event = EVENTS.get(event)?;
            if event.flags & CU_EVENT_DISABLE_TIMING != 0 {
                return fail(CUDA_ERROR_INVALID_HANDLE, format!("{name} was made without timing"));
            }
            match &*lock(&event.state) {
                EventState::Recorded(at) => Ok(*at),
                _ => fail(CUDA_ERROR_INVALID_HANDLE, format!("{name} was never recorded")),
            }
        };
        let (start, end) = (moment(start, "hStart")?, moment(end, "hEnd")?);
        let milliseconds = match end.checked_duration_since(start) {
            Some(duration) => duration.as_secs_f32() * 1e3,
            None => -start.duration_since(end).as_secs_f32() * 1e3,
        };
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "pMilliseconds", milliseconds) }
    })
}

/// Time between two events, in milliseconds of this computer's clock.
///
/// # Safety
/// As [`cuStreamCreate`].
pub unsafe extern "C" fn cuEventElapsedTime_v2(out: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime(out, start, end) }
}
