//! Stream capture: while a stream captures, its work becomes nodes of a graph instead of running.
//!
//! ```text
//!   begin(A) ─ k1 ─ k2 ───────────── k4 ─ end(A)      k2 → record(e), B waits for e: B joins the capture
//!                    └ e → B: k3 ─ f ┘                k3 → record(f), A waits for f: B is joined back
//! ```
//!
//! A capture is a graph under construction that one or more streams add to. Each stream has a *tail*: the
//! nodes that its next node depends on. An event recorded in a capturing stream carries that stream's tail.
//! Calls that would break the capture (synchronising with it, allocating during it, leaking dependencies out
//! of it) are refused with the code that the CUDA API gives and invalidate it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::c_uint;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use super::abi::*;
use super::context::current;
use super::graph::{self, Node};
use super::state::{Outcome, api, fail, give, lock, new_handle};
use super::stream::{Event, EventState, Stream, is_special, stream_of};
use super::work::Work;

/// A capture under way.
pub(super) struct Capture {
    id: u64,
    /// The stream it began in.
    origin: usize,
    /// The context of that stream.
    context: usize,
    /// That stream synchronises with the legacy stream of its context.
    blocking: bool,
    mode: c_uint,
    thread: ThreadId,
    state: Mutex<State>,
}

struct State {
    valid: bool,
    nodes: Vec<Node>,
    /// Streams that take part, by handle.
    members: BTreeSet<usize>,
}

/// A stream's part in a capture.
pub(super) struct Branch {
    pub capture: Arc<Capture>,
    /// What the stream's next node depends on.
    pub tail: BTreeSet<usize>,
}

static ACTIVE: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

thread_local! {
    /// How careful the thread wants to be about captures of others.
    static THREAD_MODE: Cell<c_uint> = const { Cell::new(CU_STREAM_CAPTURE_MODE_GLOBAL) };
}

impl Capture {
    fn invalidate(&self) {
        lock(&self.state).valid = false;
    }

    fn check(&self) -> Outcome {
        if lock(&self.state).valid {
            Ok(())
        } else {
            fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier call has invalidated the capture")
        }
    }
}

impl Branch {
    /// Adds a node behind the branch's tail.
    pub fn append(&mut self, work: Work) -> Outcome {
        self.capture.check()?;
        let mut state = lock(&self.capture.state);
        let index = state.nodes.len();
        state.nodes.push(Node::new(Arc::new(work), std::mem::take(&mut self.tail)));
        self.tail.insert(index);
        Ok(())
    }
}

/// Refuses a call that must not happen while a capture of the same or, unless both agreed otherwise, of
/// another thread is under way, and invalidates the capture.
pub(super) fn forbid_unsafe_call() -> Outcome {
    let own_mode = THREAD_MODE.get();
    if own_mode == CU_STREAM_CAPTURE_MODE_RELAXED {
        return Ok(());
    }
    let me = thread::current().id();
    let mut hit = false;
    for capture in lock(&ACTIVE).iter() {
        let mine = capture.thread == me && capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        let global =
            capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL && own_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if mine || global {
            capture.invalidate();
            hit = true;
        }
    }
    if hit {
        return fail(
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            "not permitted while a stream is capturing; the capture is now invalid",
        );
    }
    Ok(())
}

/// Refuses to wait for the whole context while any of its streams captures.
pub(super) fn forbid_synchronisation() -> Outcome {
    let active = lock(&ACTIVE);
    if active.is_empty() {
        return Ok(());
    }
    let (me, here) = (thread::current().id(), current()?);
    let mut hit = false;
    let touches = |c: &Capture| c.thread == me || c.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    for capture in active.iter().filter(|c| c.context == here && touches(c)) {
        capture.invalidate();
        hit = true;
    }
    if hit {
        return fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "waits for a stream that is capturing");
    }
    Ok(())
}

/// Refuses work for the legacy stream while a stream that synchronises with it captures.
pub(super) fn forbid_legacy_stream() -> Outcome {
    let active = lock(&ACTIVE);
    if active.is_empty() {
        return Ok(());
    }
    let here = current()?;
    let mut hit = false;
    for capture in active.iter().filter(|c| c.context == here && c.blocking) {
        capture.invalidate();
        hit = true;
    }
    if hit {
        return fail(
            CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
            "the legacy stream would depend on a capturing stream that was not made non-blocking",
        );
    }
    Ok(())
}

/// Refuses an operation on a stream that is capturing, and invalidates the capture.
pub(super) fn forbid_in(stream: CUstream) -> Outcome {
    if is_special(stream) {
        return Ok(());
    }
    if let Some(branch) = &*lock(&stream_of(stream)?.branch) {
        branch.capture.invalidate();
        return fail(
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            "not permitted on a capturing stream; the capture is now invalid",
        );
    }
    Ok(())
}

/// Begins a capture in a stream.
pub extern "C" fn cuStreamBeginCapture_v2(handle: CUstream, mode: c_uint) -> CUresult {
    api("cuStreamBeginCapture_v2", || {
        current()?;
        if mode > CU_STREAM_CAPTURE_MODE_RELAXED {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("mode is {mode}: must be 0, 1 or 2"));
        }
        if is_special(handle) {
            return fail(
                CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                "the legacy and per-thread default streams cannot capture; use a stream of your own",
            );
        }
        let stream = stream_of(handle)?;
        let mut branch = lock(&stream.branch);
        if branch.is_some() {
            return fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is already capturing");
        }
        let capture = Arc::new(Capture {
            id: new_handle() as u64,
            origin: handle as usize,
            context: stream.context,
            blocking: stream.flags & CU_STREAM_NON_BLOCKING == 0,
            mode,
            thread: thread::current().id(),
            state: Mutex::new(State {
                valid: true,
                nodes: Vec::new(),
                members: BTreeSet::from([handle as usize]),
            }),
        });
        lock(&ACTIVE).push(capture.clone());
        *branch = Some(Branch { capture, tail: BTreeSet::new() });
        Ok(())
    })
}

/// Ends a capture in the stream it began in and gives the graph.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuStreamEndCapture(handle: CUstream, out: *mut CUgraph) -> CUresult {
    api("cuStreamEndCapture", || {
        current()?;
        if is_special(handle) {
            return fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is not capturing");
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "phGraph", std::ptr::null_mut()) }?;
        let stream = stream_of(handle)?;
        let Some(capture) = lock(&stream.branch).as_ref().map(|branch| branch.capture.clone()) else {
            return fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is not capturing");
        };
        if capture.origin != handle as usize {
            capture.invalidate();
            return fail(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began in another stream");
        }
        if capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture.thread != thread::current().id() {
            return fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture was begun by another thread");
        }
        let nodes = finish(&capture, &stream)?;
        let graph = graph::register(nodes);
        // SAFETY: as above.
        unsafe { give(out, "phGraph", graph) }
    })
}

/// Takes all streams out of a capture and gives its nodes, if it is whole.
fn finish(capture: &Arc<Capture>, origin: &Arc<Stream>) -> Outcome<Vec<Node>> {
    lock(&ACTIVE).retain(|other| !Arc::ptr_eq(other, capture));
    let members = std::mem::take(&mut lock(&capture.state).members);
    let mut joined = BTreeSet::new();
    let mut loose = BTreeSet::new();
    for member in members {
        // A member stream that was destroyed has left its nodes behind unjoined; its tail is not known.
        let Ok(stream) = stream_of(member as CUstream) else { continue };
        let mut branch = lock(&stream.branch);
        if branch.as_ref().is_some_and(|b| Arc::ptr_eq(&b.capture, capture)) {
            let tail = branch.take().map(|b| b.tail).unwrap_or_default();
            if Arc::ptr_eq(&stream, origin) { joined = tail } else { loose.extend(tail) }
        }
    }
    capture.check()?;
    let nodes = std::mem::take(&mut lock(&capture.state).nodes);
    let mut reached = joined.clone();
    let mut front: Vec<usize> = joined.into_iter().collect();
    while let Some(index) = front.pop() {
        for &before in &nodes[index].dependencies {
            if reached.insert(before) {
                front.push(before);
            }
        }
    }
    if loose.difference(&reached).next().is_some() || reached.len() < nodes.len() {
        return fail(
            CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
            "work captured in another stream was not joined back by an event",
        );
    }
    Ok(nodes)
}

/// Whether a stream is capturing.
///
/// # Safety
/// As [`cuStreamEndCapture`].
pub unsafe extern "C" fn cuStreamIsCapturing(handle: CUstream, out: *mut c_uint) -> CUresult {
    api("cuStreamIsCapturing", || {
        current()?;
        let (status, _) = status(handle)?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "captureStatus", status) }
    })
}

fn status(handle: CUstream) -> Outcome<(c_uint, u64)> {
    if is_special(handle) {
        return Ok((CU_STREAM_CAPTURE_STATUS_NONE, 0));
    }
    let stream = stream_of(handle)?;
    let branch = lock(&stream.branch);
    Ok(match &*branch {
        None => (CU_STREAM_CAPTURE_STATUS_NONE, 0),
        Some(branch) if branch.capture.check().is_ok() => {
            (CU_STREAM_CAPTURE_STATUS_ACTIVE, branch.capture.id)
        }
        Some(branch) => (CU_STREAM_CAPTURE_STATUS_INVALIDATED, branch.capture.id),
    })
}

/// Whether a stream is capturing, and which capture; the graph and the tail are not given out (null, none).
///
/// # Safety
/// As [`cuStreamEndCapture`]; all pointers but `status_out` may be null.
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v2(
    handle: CUstream,
    status_out: *mut c_uint,
    id_out: *mut u64,
    graph_out: *mut CUgraph,
    dependencies_out: *mut *const CUgraphNode,
    count_out: *mut usize,
) -> CUresult {
    api("cuStreamGetCaptureInfo_v2", || {
        current()?;
        let (status, id) = status(handle)?;
        // SAFETY: the caller's pointers are null or valid for writes.
        unsafe {
            give(status_out, "captureStatus_out", status)?;
            if !id_out.is_null() {
                give(id_out, "id_out", id)?;
            }
            if !graph_out.is_null() {
                give(graph_out, "graph_out", std::ptr::null_mut())?;
            }
            if !dependencies_out.is_null() {
                give(dependencies_out, "dependencies_out", std::ptr::null())?;
            }
            if !count_out.is_null() {
                give(count_out, "numDependencies_out", 0)?;
            }
        }
        Ok(())
    })
}

/// Swaps the calling thread's capture mode with `*mode`.
///
/// # Safety
/// As [`cuStreamEndCapture`]; `mode` is also read.
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> CUresult {
    api("cuThreadExchangeStreamCaptureMode", || {
        if mode.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "mode is null");
        }
        // SAFETY: not null, and then valid by the caller's promise.
        let wanted = unsafe { mode.read() };
        if wanted > CU_STREAM_CAPTURE_MODE_RELAXED {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("mode is {wanted}: must be 0, 1 or 2"));
        }
        // SAFETY: as above.
        unsafe { give(mode, "mode", THREAD_MODE.replace(wanted)) }
    })
}

/// Makes a stream wait for an event, in the terms of captures: it may join one.
pub(super) fn wait_for(handle: CUstream, event: &Event) -> Outcome {
    let state = lock(&event.state);
    if is_special(handle) {
        return match &*state {
            EventState::Captured { capture, .. } => {
                capture.invalidate();
                fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a default stream cannot join a capture")
            }
            _ => Ok(()),
        };
    }
    let stream = stream_of(handle)?;
    let mut branch = lock(&stream.branch);
    match (&*state, &mut *branch) {
        (EventState::Captured { capture, tail }, None) => {
            capture.check()?;
            lock(&capture.state).members.insert(handle as usize);
            *branch = Some(Branch { capture: capture.clone(), tail: tail.clone() });
            Ok(())
        }
        (EventState::Captured { capture, tail }, Some(own)) => {
            if !Arc::ptr_eq(capture, &own.capture) {
                capture.invalidate();
                own.capture.invalidate();
                return fail(CUDA_ERROR_STREAM_CAPTURE_MERGE, "the event belongs to another capture");
            }
            capture.check()?;
            own.tail.extend(tail);
            Ok(())
        }
        (EventState::Recorded(_), Some(own)) => {
            own.capture.invalidate();
            fail(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "the event was recorded outside the capture")
        }
        _ => Ok(()),
    }
}
