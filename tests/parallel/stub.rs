//! A recording in the place of NCCL's library: it writes down every call, fails where it is told to, and
//! moves nothing between ranks. What a rank sends to itself is copied.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use fp8_moe::parallel::nccl::sys::*;
use fp8_moe::parallel::nccl::{Library, Table};

use crate::common::device;

/// What has been done with a communicator.
#[derive(Default)]
pub struct Record {
    /// Calls, without addresses, in order.
    pub calls: Mutex<Vec<String>>,
    rank: c_int,
    size: c_int,
}

impl Record {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    /// How often a function was called.
    pub fn count(&self, name: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.split('(').next() == Some(name)).count()
    }

    /// The calls that enqueue something, or group what does.
    pub fn work(&self) -> Vec<String> {
        let is_work = |call: &&String| {
            ["Group", "AllGather", "AllReduce", "Send", "Recv"].iter().any(|name| call.starts_with(name))
        };
        self.calls.lock().unwrap().iter().filter(is_work).cloned().collect()
    }
}

/// What goes wrong on this thread.
#[derive(Clone, Copy, Default)]
pub struct Plan {
    /// A function that fails, the `.1`-th time that this thread calls it, from 0, with this result.
    pub failure: Option<(&'static str, usize, ncclResult_t)>,
    /// Groups go on until they have been asked after so often.
    pub asked: usize,
}

thread_local! {
    static PLAN: Cell<Plan> = Cell::default();
    static COUNTS: RefCell<HashMap<&'static str, usize>> = RefCell::default();
    static RECORD: RefCell<Option<Arc<Record>>> = const { RefCell::new(None) };
    static SENT: Cell<*const c_void> = const { Cell::new(std::ptr::null()) };
    static TO_ASK: Cell<usize> = const { Cell::new(0) };
}

/// All communicators, by what stands for their address.
static RECORDS: Mutex<Vec<Arc<Record>>> = Mutex::new(Vec::new());

/// Sets what goes wrong on this thread from here on.
pub fn plan(plan: Plan) {
    PLAN.set(plan);
    COUNTS.take();
}

/// The record of the communicator that this thread made last.
pub fn record() -> Arc<Record> {
    RECORD.with_borrow(|record| record.clone().expect("a communicator"))
}

/// The library.
pub fn library() -> Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    // SAFETY: the functions touch no memory but what they are given.
    *LIBRARY.get_or_init(|| unsafe { Library::from_table(table(22809), Path::new("a recording")) }.unwrap())
}

fn of(comm: ncclComm_t) -> Arc<Record> {
    RECORDS.lock().unwrap()[comm as usize - 1].clone()
}

/// The result of a call of `name` on this thread.
fn outcome(name: &'static str) -> ncclResult_t {
    let count = COUNTS.with_borrow_mut(|counts| {
        let count = counts.entry(name).or_default();
        *count += 1;
        *count - 1
    });
    match PLAN.get().failure {
        Some((function, number, result)) if function == name && number == count => result,
        _ => ncclSuccess,
    }
}

/// Notes a call of this thread's communicator.
fn noted(name: &'static str, arguments: String) -> ncclResult_t {
    RECORD.with_borrow(|record| {
        if let Some(record) = record {
            record.note(format!("{name}({arguments})"));
        }
    });
    outcome(name)
}

unsafe extern "C" fn unique_id(id: *mut ncclUniqueId) -> ncclResult_t {
    // SAFETY: the caller's place.
    unsafe { (*id).internal = [7; 128] };
    outcome("GetUniqueId")
}

unsafe extern "C" fn init(
    comm: *mut ncclComm_t,
    size: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    // SAFETY: the caller's place.
    let config = unsafe { *config };
    assert_eq!((config.blocking, config.magic, config.size), (0, 0xcafe_beef, 48));
    assert_eq!(id.internal, [7; 128], "rank 0's id");
    let record = Arc::new(Record { rank, size, ..Record::default() });
    let mut records = RECORDS.lock().unwrap();
    records.push(record.clone());
    RECORD.set(Some(record));
    // SAFETY: the caller's place.
    unsafe { *comm = records.len() as ncclComm_t };
    drop(records);
    noted("CommInitRankConfig", format!("{rank} of {size}"))
}

macro_rules! of_comm {
    ($($function:ident: $name:literal),*) => {$(
        unsafe extern "C" fn $function(comm: ncclComm_t) -> ncclResult_t {
            of(comm).note(concat!($name, "()").into());
            outcome($name)
        }
    )*};
}

of_comm!(finalize: "CommFinalize", destroy: "CommDestroy", abort: "CommAbort");

unsafe extern "C" fn async_error(comm: ncclComm_t, result: *mut ncclResult_t) -> ncclResult_t {
    of(comm).note("CommGetAsyncError()".into());
    let left = TO_ASK.get();
    TO_ASK.set(left.saturating_sub(1));
    // SAFETY: the caller's place.
    unsafe { *result = if left > 0 { ncclInProgress } else { outcome("CommGetAsyncError") } };
    ncclSuccess
}

unsafe extern "C" fn count(comm: ncclComm_t, value: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's place.
    unsafe { *value = of(comm).size };
    ncclSuccess
}

unsafe extern "C" fn user_rank(comm: ncclComm_t, value: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's place.
    unsafe { *value = of(comm).rank };
    ncclSuccess
}

unsafe extern "C" fn cu_device(_: ncclComm_t, value: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's place.
    unsafe { *value = 0 };
    ncclSuccess
}

unsafe extern "C" fn error_string(_: ncclResult_t) -> *const c_char {
    c"a planned failure".as_ptr()
}

unsafe extern "C" fn last_error(_: ncclComm_t) -> *const c_char {
    c"".as_ptr()
}

unsafe extern "C" fn group_start() -> ncclResult_t {
    noted("GroupStart", String::new())
}

unsafe extern "C" fn group_end() -> ncclResult_t {
    let result = noted("GroupEnd", String::new());
    if result == ncclSuccess && PLAN.get().asked > 0 {
        TO_ASK.set(PLAN.get().asked);
        return ncclInProgress;
    }
    result
}

unsafe extern "C" fn all_gather(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    assert_eq!(data_type, ncclUint8);
    let (from, all, group) = (send as usize, receive as usize, of(comm));
    let own = all + group.rank as usize * count;
    if from != own {
        let is_apart = from + count <= all || all + group.size as usize * count <= from;
        assert!(is_apart, "this rank's block is in its place, or nowhere in the part");
        copy(own as u64, from as u64, count, stream);
    }
    noted("AllGather", format!("{count}"))
}

/// Enqueues what a rank sends to itself.
fn copy(to: u64, from: u64, bytes: usize, stream: cudaStream_t) {
    let driver = if device().is_emulated() { cust::Driver::sim() } else { cust::Driver::cuda() };
    let table = driver.expect("the driver of the tests").table();
    // SAFETY: both are memory of the device, as NCCL is given it; the context is current.
    let copied = unsafe { (table.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream) };
    assert!(copied.is_success());
}

unsafe extern "C" fn all_reduce(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    operation: c_int,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    assert_eq!((send, operation), (receive.cast_const(), ncclSum), "in place");
    noted("AllReduce", format!("{count} of type {data_type}"))
}

unsafe extern "C" fn send(
    from: *const c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    assert_eq!(data_type, ncclUint8);
    if peer == of(comm).rank {
        SENT.set(from);
    }
    noted("Send", format!("{count} to {peer}"))
}

unsafe extern "C" fn recv(
    to: *mut c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    assert_eq!(data_type, ncclUint8);
    if peer == of(comm).rank {
        copy(to as u64, SENT.get() as u64, count, stream);
    }
    noted("Recv", format!("{count} from {peer}"))
}

/// The functions, of a library that says it has this version.
pub fn table(version: c_int) -> Table {
    unsafe extern "C" fn new(version: *mut c_int) -> ncclResult_t {
        // SAFETY: the caller's place.
        unsafe { *version = 22809 };
        ncclSuccess
    }
    unsafe extern "C" fn old(version: *mut c_int) -> ncclResult_t {
        // SAFETY: the caller's place.
        unsafe { *version = 21705 };
        ncclSuccess
    }
    Table {
        ncclGetVersion: if version < 21800 { old } else { new },
        ncclGetUniqueId: unique_id,
        ncclCommInitRankConfig: init,
        ncclCommFinalize: finalize,
        ncclCommDestroy: destroy,
        ncclCommAbort: abort,
        ncclCommGetAsyncError: async_error,
        ncclCommCount: count,
        ncclCommCuDevice: cu_device,
        ncclCommUserRank: user_rank,
        ncclGetErrorString: error_string,
        ncclGetLastError: last_error,
        ncclGroupStart: group_start,
        ncclGroupEnd: group_end,
        ncclAllGather: all_gather,
        ncclAllReduce: all_reduce,
        ncclSend: send,
        ncclRecv: recv,
    }
}
