//! A driver that watches for races: every copy, fill and graph is checked against all before it, by vector
//! clocks.
//!
//! The emulated device runs work one piece after the other, so that a missing order never shows in a result.
//! Here the order is what is tested: two accesses to the same bytes, one of which writes, must be on one
//! stream, or the later one's stream must have waited for an event behind the earlier one, or the host for
//! that stream. Memory must not be freed before the host knows that nobody uses it. Kernels are not watched,
//! since their arguments do not say what they access.

use std::collections::HashMap;
use std::ffi::{c_uint, c_ulonglong, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cust::Driver;
use cust::sys::{CUdeviceptr, CUevent, CUgraph, CUgraphExec, CUresult, CUstream, Table};

/// By stream, how much of its work comes before something.
type Clock = HashMap<usize, u64>;

fn join(clock: &mut Clock, other: &Clock) {
    for (&stream, &time) in other {
        let known = clock.entry(stream).or_default();
        *known = time.max(*known);
    }
}

#[derive(Clone, Copy, Debug)]
struct Access {
    start: u64,
    end: u64,
    writes: bool,
}

/// What has been seen.
#[derive(Default)]
pub struct Seen {
    streams: HashMap<usize, Clock>,
    events: HashMap<usize, Clock>,
    host: Clock,
    accesses: Vec<(Access, usize, u64)>,
    memory: HashMap<u64, u64>,
    capturing: HashMap<usize, Vec<Access>>,
    graphs: HashMap<usize, Vec<Access>>,
    ready: HashMap<usize, Vec<Access>>,
    /// What was wrong, a line each.
    pub faults: Vec<String>,
    /// Waits of streams for events.
    pub waits: usize,
}

impl Seen {
    fn work(&mut self, stream: CUstream, accesses: &[Access]) {
        let stream = stream as usize;
        if let Some(captured) = self.capturing.get_mut(&stream) {
            captured.extend_from_slice(accesses);
            return;
        }
        let clock = self.streams.entry(stream).or_default();
        join(clock, &self.host);
        let time = clock.get(&stream).copied().unwrap_or_default() + 1;
        clock.insert(stream, time);
        for access in accesses {
            if !self
                .memory
                .iter()
                .any(|(&start, &bytes)| start <= access.start && access.end <= start + bytes)
            {
                self.faults.push(format!("{access:x?} is not allocated"));
            }
            for (earlier, other, at) in &self.accesses {
                let overlap = earlier.start < access.end && access.start < earlier.end;
                let ordered = *other == stream || clock.get(other).is_some_and(|known| known >= at);
                if overlap && (earlier.writes || access.writes) && !ordered {
                    self.faults
                        .push(format!("{access:x?} on {stream:x} races with {earlier:x?} on {other:x}"));
                }
            }
        }
        self.accesses.extend(accesses.iter().map(|access| (*access, stream, time)));
    }

    fn free(&mut self, start: u64) {
        let end = start + self.memory.remove(&start).unwrap_or_default();
        let host = &self.host;
        self.accesses.retain(|(access, stream, at)| {
            let inside = start <= access.start && access.start < end;
            if inside && host.get(stream).is_none_or(|known| known < at) {
                self.faults
                    .push(format!("{access:x?} on {stream:x} may be running when its memory is freed"));
            }
            !inside
        });
    }
}

static SEEN: OnceLock<Mutex<Seen>> = OnceLock::new();
static ORIGINAL: OnceLock<Table> = OnceLock::new();

/// What has been seen so far.
pub fn seen() -> MutexGuard<'static, Seen> {
    SEEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn original() -> &'static Table {
    ORIGINAL.get().expect("`driver` has been called")
}

const fn range(start: CUdeviceptr, bytes: usize, writes: bool) -> Access {
    Access { start, end: start + bytes as u64, writes }
}

/// Defines a function that does something and then what the driver's of the same name does.
macro_rules! watched {
    (fn $name:ident($($argument:ident: $type:ty),*) $before:tt $after:tt) => {
        #[allow(non_snake_case)]
        unsafe extern "system" fn $name($($argument: $type),*) -> CUresult {
            let before: fn(&mut Seen, $($type),*) = $before;
            before(&mut seen(), $($argument),*);
            // SAFETY: the caller's contract is that of the driver's function.
            let result = unsafe { (original().$name)($($argument),*) };
            let after: unsafe fn(&mut Seen, $($type),*) = $after;
            if result.is_success() {
                // SAFETY: on success the driver has written where the arguments point to.
                unsafe { after(&mut seen(), $($argument),*) };
            }
            result
        }
    };
}

/// Defines those functions, and puts them into a table.
macro_rules! all_watched {
    ($($name:ident: $before:expr, $after:expr;)*) => {
        $(cust::driver_function!($name, watched, $before, $after);)*

        fn watch(table: &mut Table) {
            $(table.$name = $name;)*
        }
    };
}

all_watched! {
    cuMemAlloc_v2:
        |_, _, _| (),
        // SAFETY: the driver has written the address.
        |seen, address, bytes| { seen.memory.insert(unsafe { *address }, bytes as u64); };
    cuMemFree_v2: |seen, address| seen.free(address), |_, _| ();
    cuMemsetD8Async:
        |seen, address, _, bytes, stream| seen.work(stream, &[range(address, bytes, true)]),
        |_, _, _, _, _| ();
    cuMemcpyHtoDAsync_v2:
        |seen, to, _, bytes, stream| seen.work(stream, &[range(to, bytes, true)]),
        |_, _, _, _, _| ();
    cuMemcpyDtoHAsync_v2:
        |seen, _, from, bytes, stream| seen.work(stream, &[range(from, bytes, false)]),
        |_, _, _, _, _| ();
    cuMemcpyDtoDAsync_v2:
        |seen, to, from, bytes, stream| {
            seen.work(stream, &[range(from, bytes, false), range(to, bytes, true)])
        },
        |_, _, _, _, _| ();
    cuEventRecord:
        |_, _, _| (),
        |seen, event, stream| {
            let mut clock = seen.streams.get(&(stream as usize)).cloned().unwrap_or_default();
            join(&mut clock, &seen.host);
            seen.events.insert(event as usize, clock);
        };
    cuStreamWaitEvent:
        |_, _, _, _| (),
        |seen, stream, event, _| {
            seen.waits += 1;
            let event = seen.events.get(&(event as usize)).cloned().unwrap_or_default();
            join(seen.streams.entry(stream as usize).or_default(), &event);
        };
    cuStreamSynchronize:
        |_, _| (),
        |seen, stream| {
            let clock = seen.streams.get(&(stream as usize)).cloned().unwrap_or_default();
            join(&mut seen.host, &clock);
        };
    cuEventSynchronize:
        |_, _| (),
        |seen, event| {
            let clock = seen.events.get(&(event as usize)).cloned().unwrap_or_default();
            join(&mut seen.host, &clock);
        };
    cuStreamBeginCapture_v2:
        |_, _, _| (),
        |seen, stream, _| { seen.capturing.insert(stream as usize, Vec::new()); };
    cuStreamEndCapture:
        |_, _, _| (),
        |seen, stream, graph| {
            let captured = seen.capturing.remove(&(stream as usize)).unwrap_or_default();
            // SAFETY: the driver has written the graph.
            seen.graphs.insert(unsafe { *graph } as usize, captured);
        };
    cuGraphInstantiateWithFlags:
        |_, _, _, _| (),
        |seen, exec, graph, _| {
            let accesses = seen.graphs.get(&(graph as usize)).cloned().unwrap_or_default();
            // SAFETY: the driver has written the graph that can run.
            seen.ready.insert(unsafe { *exec } as usize, accesses);
        };
    cuGraphLaunch:
        |seen, exec, stream| {
            let accesses = seen.ready.get(&(exec as usize)).cloned().unwrap_or_default();
            seen.work(stream, &accesses);
        },
        |_, _, _| ();
}

/// `driver`, watched. One per process.
pub fn driver(driver: Driver) -> Driver {
    static WATCHED: OnceLock<Driver> = OnceLock::new();
    *WATCHED.get_or_init(|| {
        ORIGINAL.get_or_init(|| *driver.table());
        // SAFETY: the functions above do what the driver's do.
        unsafe { driver.with(watch) }
    })
}
