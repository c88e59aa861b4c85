//! What a test may set and ask of the emulated device, beside the CUDA API. All of it belongs to the calling
//! thread, so that tests that run at the same time do not disturb each other.

use std::cell::RefCell;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Counters;

/// One kernel launch that ran, as [`take_launch_log`] tells it.
#[derive(Clone, Debug)]
pub struct LaunchRecord {
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks in the grid.
    pub grid: [u32; 3],
    /// Threads in a block.
    pub block: [u32; 3],
    /// Blocks in a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Launched with programmatic stream serialization allowed.
    pub programmatic: bool,
    /// Launched as a node of a graph.
    pub from_graph: bool,
    /// The seed that chose its timing.
    pub seed: u64,
    /// What it did; `None` if it stopped at a fault.
    pub counters: Option<Counters>,
}

/// Launches kept in a thread's log; older ones are dropped.
const LOG_LENGTH: usize = 1 << 16;

#[derive(Default)]
struct Session {
    seed: u64,
    launches_since_seed: u64,
    choices: u64,
    workers: Option<usize>,
    forgiving: bool,
    counters: Counters,
    log: Vec<LaunchRecord>,
    last_fault: Option<String>,
    last_error: Option<String>,
    /// The driver functions that are called, while they are recorded.
    calls: Option<Vec<&'static str>>,
}

thread_local! {
    static SESSION: RefCell<Session> = RefCell::new(Session {
        seed: from_environment("FP8_MOE_SIM_SEED").unwrap_or(0),
        workers: from_environment("FP8_MOE_SIM_WORKERS").map(|n| (n as usize).max(1)),
        ..Session::default()
    });
}

fn from_environment(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Changes or asks the thread's session. A thread that is ending has none any more: what is set then is lost,
/// and what is asked is as at the start.
fn with<T>(f: impl FnOnce(&mut Session) -> T) -> T {
    let mut f = Some(f);
    let done = SESSION.try_with(|session| f.take().map(|f| f(&mut session.borrow_mut())));
    match (done, f) {
        (Ok(Some(result)), _) => result,
        (_, Some(f)) => f(&mut Session::default()),
        _ => unreachable!("`f` runs once"),
    }
}

/// Sets the seed that the timing of this thread's launches is drawn from: same seed, same sequence of
/// launches, one worker: same run. Each launch gets a seed of its own. It starts at `FP8_MOE_SIM_SEED`, or 0.
pub fn set_seed(seed: u64) {
    with(|s| {
        s.seed = seed;
        s.launches_since_seed = 0;
        s.choices = 0;
    });
}

/// How many host threads one launch of this thread may use; `None` is all cores. It starts at
/// `FP8_MOE_SIM_WORKERS`, or `None`. With one, a launch is deterministic for its seed.
pub fn set_workers(workers: Option<usize>) {
    with(|s| s.workers = workers.map(|n| n.max(1)));
}

/// Whether contexts survive the faults of this thread's kernels, for tests that provoke some on purpose and
/// share a context with others. On a GPU they never do, and here they do not to begin with.
pub fn forgive_faults(forgiving: bool) {
    with(|s| s.forgiving = forgiving);
}

pub(super) fn forgives_faults() -> bool {
    with(|s| s.forgiving)
}

/// The sum of the counters of this thread's launches since the last call.
pub fn take_counters() -> Counters {
    with(|s| std::mem::take(&mut s.counters))
}

/// This thread's launches since the last call, oldest first.
pub fn take_launch_log() -> Vec<LaunchRecord> {
    with(|s| std::mem::take(&mut s.log))
}

/// What `work` returns, and the driver functions that this thread called in it, in order, by their exported
/// names.
pub fn record_calls<T>(work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    let before = with(|s| s.calls.replace(Vec::new()));
    let result = work();
    let calls = with(|s| std::mem::replace(&mut s.calls, before));
    (result, calls.unwrap_or_default())
}

/// Notes a call of the driver function `name`.
pub(super) fn note_call(name: &'static str) {
    with(|s| {
        if let Some(calls) = &mut s.calls {
            calls.push(name);
        }
    });
}

/// What the last kernel of this thread that stopped at a fault did wrong: kernel, thread, instruction, source
/// line and the mistake, in one line.
pub fn last_fault() -> Option<String> {
    with(|s| s.last_fault.clone())
}

/// As [`last_fault`], and forgets it.
pub fn take_last_fault() -> Option<String> {
    with(|s| s.last_fault.take())
}

/// Why the last driver function of this thread that failed did: its name and the rule it met.
pub fn last_error() -> Option<String> {
    with(|s| s.last_error.clone())
}

/// As [`last_error`], and forgets it.
pub fn take_last_error() -> Option<String> {
    with(|s| s.last_error.take())
}

pub(super) fn set_last_error(text: String) {
    with(|s| s.last_error = Some(text));
}

pub(super) fn set_last_fault(text: String) {
    tell(&text);
    with(|s| s.last_fault = Some(text));
}

/// Faults are printed on standard error.
static PRINTS: AtomicBool = AtomicBool::new(false);

/// Prints faults, and refusals of kernels, on standard error as well, for all threads of the process: a
/// program above the C API sees only a number. `libcuda_sim` turns it on; `FP8_MOE_SIM_QUIET=1` keeps it
/// quiet all the same.
pub fn print_faults(on: bool) {
    let quiet = std::env::var_os("FP8_MOE_SIM_QUIET").is_some_and(|value| value == "1");
    PRINTS.store(on && !quiet, Ordering::Relaxed);
}

/// Prints a line for people, if they are to be told.
pub(super) fn tell(text: &str) {
    if PRINTS.load(Ordering::Relaxed) {
        // Nobody is told that standard error is closed.
        let _ = writeln!(std::io::stderr(), "ptx_sim: {text}");
    }
}

/// The seed of the next launch and the workers it may use.
pub(super) fn next_launch() -> (u64, Option<usize>) {
    with(|s| {
        let seed = mix(s.seed ^ mix(s.launches_since_seed));
        s.launches_since_seed += 1;
        (seed, s.workers)
    })
}

/// A number below `n`, drawn from the seed; 0 if there is no choice.
pub(super) fn choose(n: usize) -> usize {
    if n < 2 {
        return 0;
    }
    with(|s| {
        s.choices += 1;
        (mix(s.seed ^ mix(s.choices.wrapping_neg())) % n as u64) as usize
    })
}

/// Adds a launch to this thread's counters and log.
pub(super) fn record(record: LaunchRecord) {
    with(|s| {
        if let Some(counters) = &record.counters {
            s.counters += counters;
        }
        if s.log.len() >= LOG_LENGTH {
            s.log.drain(..LOG_LENGTH / 2);
        }
        s.log.push(record);
    });
}

/// A bijection of 64-bit words that spreads nearby ones far apart (the finaliser of SplitMix64).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
