//! A rank of a group over NCCL.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::comm::Comm;
use super::library::{
    Library, ncclBfloat16, ncclComm_t, ncclFloat16, ncclFloat32, ncclResult_t, ncclSum, ncclUint8,
    ncclUniqueId,
};
use crate::error::{Error, Result, require};
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::stream::Stream;
use crate::ops::quantize::ActivationsMut;
use crate::parallel::communicator::closed::Closed;
use crate::parallel::communicator::{Calls, Communicator, Limits, Part, Term, block_bytes, compare, poll};
use crate::parallel::failure::{AbortHandle, Board};
use crate::parallel::start::Peers;

/// Terms of an agreement that goes over NCCL itself.
const MOST_TERMS: usize = 16;
/// How long a rank that has left may be waited for: what it enqueued may still be running.
const AFTER_LEAVING: Duration = Duration::from_secs(2);

/// A rank of a group over NCCL: a process, or a thread, to a GPU.
pub struct Nccl {
    rank: usize,
    size: usize,
    device: Device,
    library: Library,
    comm: Arc<Comm>,
    agreement: Agreement,
    board: Arc<Board>,
    limits: Limits,
    calls: Calls,
}

/// How the ranks agree on the host.
enum Agreement {
    /// Over their own connections.
    Peers(Peers),
    /// Over NCCL: hashes of the terms, `[R, MOST_TERMS]`.
    Device { stream: Stream, hashes: Mutex<Buffer<u64>> },
}

impl Nccl {
    /// Makes the communicator of this rank of `peers`, over the NCCL that is found ([`Library::load`]). Rank 0
    /// draws the id and gives it to the others. Collective.
    ///
    /// # Errors
    /// If there is no NCCL; if ranks have other versions of it; if it is not there within [`Limits::start`];
    /// on the emulated device.
    pub fn connect(device: &Device, peers: Peers) -> Result<Nccl> {
        let abort = peers.abort_handle();
        let connect = || {
            require(!device.is_emulated(), "Nccl::connect", "device", device, || {
                "must be a GPU; InProcess has ranks over the emulated device".into()
            })?;
            Library::load()
        };
        let library = abort.note(connect())?;
        Self::connect_by(library, device, peers)
    }

    /// As [`connect`](Self::connect), by a library that has been loaded, or is a recording.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub fn connect_by(library: Library, device: &Device, peers: Peers) -> Result<Nccl> {
        let abort = peers.abort_handle();
        let (rank, size, limits) = (peers.rank(), peers.size(), peers.limits());
        let make = || {
            peers.agree(&[("NCCL", library.to_string())])?;
            let id = if rank == 0 { Some(Self::draw(library)?.internal.to_vec()) } else { None };
            let bytes = peers.share(id)?;
            let internal = bytes.try_into().map_err(|bytes: Vec<u8>| {
                Error::argument("Nccl::connect", "id", format!("{} bytes", bytes.len()), "must have 128")
            })?;
            let ranks = [narrow("rank", rank)?, narrow("size", size)?];
            Comm::new(library, device, peers.board(), ncclUniqueId { internal }, ranks, limits.start)
        };
        let comm = abort.note(make())?;
        let (device, board, calls) = (device.clone(), peers.board().clone(), Calls::default());
        let agreement = Agreement::Peers(peers);
        Ok(Nccl { rank, size, device, library, comm, agreement, board, limits, calls })
    }

    /// Draws an id for [`with_id`](Self::with_id): rank 0 does, and gives it to the others.
    ///
    /// # Errors
    /// If NCCL has none.
    pub fn draw_id(library: Library) -> Result<[u8; 128]> {
        Ok(Self::draw(library)?.internal)
    }

    fn draw(library: Library) -> Result<ncclUniqueId> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: `id` is a valid place.
        let result = unsafe { (library.table().ncclGetUniqueId)(&mut id) };
        library.check("ncclGetUniqueId", std::ptr::null_mut(), result)?;
        Ok(id)
    }

    /// Makes the communicator of a rank by an id that came some other way. Ranks agree over NCCL then, by
    /// hashes: what differs is named, its values are not, and a rank that dies shows when a limit has passed.
    ///
    /// # Errors
    /// If it is not there within [`Limits::start`].
    ///
    /// # Safety
    /// All ranks of the id call this library, in one version, and make the same calls in the same order with
    /// the same sizes: without connections of their own they cannot compare them before memory moves.
    pub unsafe fn with_id(
        library: Library,
        device: &Device,
        id: [u8; 128],
        rank: usize,
        size: usize,
        limits: Limits,
    ) -> Result<Nccl> {
        require(rank < size, "Nccl::with_id", "rank", rank, || format!("must be below {size}, the size"))?;
        let (board, ranks) = (Arc::default(), [narrow("rank", rank)?, narrow("size", size)?]);
        let comm = Comm::new(library, device, &board, ncclUniqueId { internal: id }, ranks, limits.start)?;
        Self::alone(library, device, comm, board, rank, size, limits)
    }

    /// A rank over a communicator that the program has: an `ncclComm_t`. It is not destroyed with this, but
    /// aborted if the group fails.
    ///
    /// # Errors
    /// If NCCL does not know it, or has it on another GPU than `device`.
    ///
    /// # Safety
    /// - `comm` is alive as long as the result, and of `library`; nothing else uses it meanwhile.
    /// - That of [`with_id`](Self::with_id).
    pub unsafe fn from_raw(
        library: Library,
        device: &Device,
        comm: *mut c_void,
        limits: Limits,
    ) -> Result<Nccl> {
        type Ask = unsafe extern "C" fn(ncclComm_t, *mut c_int) -> ncclResult_t;
        let ask = |call, function: Ask| -> Result<usize> {
            let mut value = 0;
            // SAFETY: `value` is a valid place, and the communicator is alive by the caller's contract.
            let result = unsafe { function(comm, &mut value) };
            library.check(call, comm, result)?;
            Ok(value.max(0) as usize)
        };
        let table = library.table();
        let rank = ask("ncclCommUserRank", table.ncclCommUserRank)?;
        let size = ask("ncclCommCount", table.ncclCommCount)?;
        let ordinal = ask("ncclCommCuDevice", table.ncclCommCuDevice)?;
        let own = device.context().device().as_raw().max(0) as usize;
        require(ordinal == own, "Nccl::from_raw", "comm", format_args!("of GPU {ordinal}"), || {
            format!("must be of the device, {device}")
        })?;
        let board = Arc::default();
        let comm = Comm::of(library, device, &board, comm, false);
        Self::alone(library, device, comm, board, rank, size, limits)
    }

    fn alone(
        library: Library,
        device: &Device,
        comm: Arc<Comm>,
        board: Arc<Board>,
        rank: usize,
        size: usize,
        limits: Limits,
    ) -> Result<Nccl> {
        let hashes = Mutex::new(device.uninit(size * MOST_TERMS)?);
        let agreement = Agreement::Device { stream: Stream::new(device)?, hashes };
        let (device, calls) = (device.clone(), Calls::default());
        Ok(Nccl { rank, size, device, library, comm, agreement, board, limits, calls })
    }

    /// The library.
    pub fn library(&self) -> Library {
        self.library
    }

    /// Enqueues a group of calls on `stream`; the uses of memory have been said.
    ///
    /// # Safety
    /// As [`Comm::enqueue`].
    unsafe fn group(
        &self,
        stream: &Stream,
        call: &'static str,
        work: impl FnOnce(&Calling) -> Result<()>,
    ) -> Result<()> {
        self.calls.count(call, stream)?;
        let mut outcome = Ok(());
        stream.enqueue(|raw| {
            // SAFETY: the caller's contract; the stream is the one whose memory has been said.
            outcome = unsafe {
                self.comm.enqueue(call, self.limits.call, |library, comm| {
                    work(&Calling { library, comm, stream: raw.as_raw() })
                })
            };
            Ok(())
        })?;
        if let Agreement::Peers(peers) = &self.agreement {
            peers.count(self.calls.enqueued());
        }
        outcome
    }

    fn gather(&self, stream: &Stream, parts: &mut [Part<'_>]) -> Result<()> {
        const OP: &str = "all_gather";
        let mut blocks = Vec::with_capacity(parts.len());
        for part in parts.iter() {
            part.all.check(OP, "parts", part.all.len(), stream)?;
            let bytes = part.block_bytes(OP, self.size)?;
            let all = part.all.ptr().raw();
            let own = match &part.own {
                Some(own) => {
                    own.check(OP, "own", bytes, stream)?;
                    own.ptr().raw()
                }
                None => all + (self.rank * bytes) as u64,
            };
            blocks.push((own, all, bytes));
        }
        // SAFETY: each part is `size` blocks in this device's memory. This rank's is read where it is one of
        // them, as NCCL asks for a gather in place, or where no `SliceMut` reaches.
        unsafe {
            self.group(stream, OP, |nccl| {
                blocks.iter().filter(|&&(.., bytes)| bytes > 0).try_for_each(|&(own, all, bytes)| {
                    let Calling { comm, stream, .. } = *nccl;
                    let (own, all) = (own as *const c_void, all as *mut c_void);
                    let gather = nccl.library.table().ncclAllGather;
                    nccl.check("ncclAllGather", gather(own, all, bytes, ncclUint8, comm, stream))
                })
            })
        }
    }

    fn transpose(&self, stream: &Stream, send: Slice<'_, u8>, receive: SliceMut<'_, u8>) -> Result<()> {
        const OP: &str = "all_to_all";
        let bytes = block_bytes(OP, "send", send.len(), self.size)?;
        require(receive.len() == send.len(), OP, "receive", format_args!("{} bytes", receive.len()), || {
            format!("must have {}, as `send` has", send.len())
        })?;
        send.check(OP, "send", send.len(), stream)?;
        receive.check(OP, "receive", receive.len(), stream)?;
        let (from, to) = (send.ptr().raw(), receive.ptr().raw());
        // SAFETY: both have a block for every rank in this device's memory; every rank of the group sends and
        // receives in the same group of calls.
        unsafe {
            self.group(stream, OP, |nccl| {
                let ranks = if bytes > 0 { 0..self.size } else { 0..0 };
                for rank in ranks {
                    let offset = (rank * bytes) as u64;
                    let Calling { library, comm, stream, .. } = *nccl;
                    let (table, peer) = (library.table(), rank as c_int);
                    let own = (from + offset) as *const c_void;
                    nccl.check("ncclSend", (table.ncclSend)(own, bytes, ncclUint8, peer, comm, stream))?;
                    let theirs = (to + offset) as *mut c_void;
                    nccl.check("ncclRecv", (table.ncclRecv)(theirs, bytes, ncclUint8, peer, comm, stream))?;
                }
                Ok(())
            })
        }
    }

    fn reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        const OP: &str = "all_reduce";
        let (address, len, kind) = match &x {
            ActivationsMut::Bf16(x) => (x.ptr().raw(), x.len(), ncclBfloat16),
            ActivationsMut::F16(x) => (x.ptr().raw(), x.len(), ncclFloat16),
            ActivationsMut::F32(x) => (x.ptr().raw(), x.len(), ncclFloat32),
        };
        x.check(OP, "x", len, stream)?;
        // SAFETY: `x` has `len` elements of the type in this device's memory; NCCL reduces in place.
        unsafe {
            self.group(stream, OP, |nccl| {
                if len == 0 {
                    return Ok(());
                }
                let Calling { library, comm, stream, .. } = *nccl;
                let all = library.table().ncclAllReduce;
                let (from, to) = (address as *const c_void, address as *mut c_void);
                nccl.check("ncclAllReduce", all(from, to, len, kind, ncclSum, comm, stream))
            })
        }
    }

    /// Compares hashes of the terms over NCCL.
    fn agree_on_device(&self, stream: &Stream, hashes: &Mutex<Buffer<u64>>, terms: &[Term]) -> Result<()> {
        require(terms.len() < MOST_TERMS, "agree", "terms", terms.len(), || {
            format!("must be below {MOST_TERMS}")
        })?;
        let mut own = [0u64; MOST_TERMS];
        // The last says what the terms are.
        let names: Vec<_> = terms.iter().map(|(name, _)| *name).collect();
        own[MOST_TERMS - 1] = hash(&names);
        for (hash_of, (_, value)) in own.iter_mut().zip(terms) {
            *hash_of = hash(value);
        }
        let mut buffer = hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let block = self.rank * MOST_TERMS..(self.rank + 1) * MOST_TERMS;
        buffer.slice_mut(block).copy_from(&own, stream)?;
        self.gather(stream, &mut [Part::in_place(buffer.as_mut_slice().cast())])?;
        self.wait_for(stream, self.limits.start)?;
        let all = buffer.to_vec(stream)?;
        let names = names.into_iter().chain(vec![""; MOST_TERMS]).take(MOST_TERMS - 1).chain(["the call"]);
        let names: Vec<_> = names.collect();
        let of_rank = |own: &[u64]| {
            let values = own.iter().map(|hash| format!("#{hash:016x}"));
            names.iter().copied().zip(values).collect::<Vec<_>>()
        };
        let all: Vec<_> = all.chunks(MOST_TERMS).map(of_rank).collect();
        compare(&all).map_err(|failure| failure.error())
    }

    fn wait_for(&self, stream: &Stream, limit: Duration) -> Result<()> {
        let mut left_at = None;
        let look = || {
            self.comm.check()?;
            if let Agreement::Peers(peers) = &self.agreement
                && let Some(rank) = peers.left()
                && left_at.get_or_insert_with(Instant::now).elapsed() > AFTER_LEAVING
            {
                let what = "has left the group; work waits for it".into();
                return Err(Error::Rank { rank, what });
            }
            Ok(())
        };
        if poll(stream, limit, look)? {
            return Ok(());
        }
        let (own, seconds) = (self.calls.enqueued(), limit.as_secs_f64());
        let slowest = match &self.agreement {
            Agreement::Peers(peers) => peers.slowest(),
            Agreement::Device { .. } => None,
        };
        let (rank, what) = match slowest {
            Some((rank, calls)) => {
                let waiting = format!("rank {} has made {own} and waited {seconds:.1} s", self.rank);
                (rank, format!("has made {calls} collective calls; {waiting}"))
            }
            None => (self.rank, format!("has work that has not ended within {seconds:.1} s")),
        };
        Err(Error::Rank { rank, what })
    }

    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        self.board.note(self.rank, result)
    }
}

/// Inside a group of calls.
struct Calling {
    library: Library,
    comm: ncclComm_t,
    stream: *mut c_void,
}

impl Calling {
    fn check(&self, call: &'static str, result: ncclResult_t) -> Result<()> {
        self.library.check(call, self.comm, result)
    }
}

fn narrow(name: &str, value: usize) -> Result<c_int> {
    c_int::try_from(value).map_err(|_| Error::argument("Nccl", name, value, "must be below 2^31"))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Closed for Nccl {}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn can_be_captured(&self) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn calls(&self) -> &Calls {
        &self.calls
    }

    unsafe fn enqueue_all_gather(&self, stream: &Stream, parts: &mut [Part<'_>]) -> Result<()> {
        let result = self.gather(stream, parts);
        self.noted(result)
    }

    unsafe fn enqueue_all_to_all(
        &self,
        stream: &Stream,
        send: Slice<'_, u8>,
        receive: SliceMut<'_, u8>,
    ) -> Result<()> {
        let result = self.transpose(stream, send, receive);
        self.noted(result)
    }

    unsafe fn enqueue_all_reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        let result = self.reduce(stream, x);
        self.noted(result)
    }

    fn agree(&self, terms: &[Term]) -> Result<()> {
        match &self.agreement {
            Agreement::Peers(peers) => peers.agree(terms),
            Agreement::Device { stream, hashes } => {
                let result = self.agree_on_device(stream, hashes, terms);
                self.noted(result)
            }
        }
    }

    fn wait(&self, stream: &Stream, limit: Duration) -> Result<()> {
        let result = self.wait_for(stream, limit);
        self.noted(result)
    }

    fn abort_handle(&self) -> AbortHandle {
        AbortHandle::new(self.rank, self.board.clone())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort_handle().abort("has panicked");
        }
        self.comm.end(self.limits.call);
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} over {}, on {}", self.rank, self.size, self.library, self.device)
    }
}
