//! How ranks that are processes find each other, and how they know of each other afterwards.
//!
//! ```text
//!   rank 1 --hello--.                                            '--terms-->  all alike?  --verdict--> all
//!   rank 2 --hello---+--> rank 0: all have come --welcome--> all  --beat--->  who is silent, who has ended?
//!   rank 3 --hello--'                                            '--failed->  --failed--> all
//! ```
//!
//! Every rank keeps one TCP connection with rank 0, of frames: the length in four bytes, little-endian, and a
//! message in JSON. What is said there is small and rare: NCCL's id, what ranks must have alike, a beat every
//! half second, failures. Rows do not travel this way.
//!
//! A process that ends is noticed at once, by its connection. One that is stopped, or a machine that is gone,
//! is noticed when nothing has been heard of it for [`Rendezvous::silence`]. NCCL itself may say nothing of
//! either inside a host.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_core::de::Error as _;
use serde_json::{Value, from_value, json};

use super::communicator::{Limits, Term, compare};
use super::failure::{AbortHandle, Board, Failure, late};
use crate::error::{Error, Result, require};

const OP: &str = "Rendezvous";

/// Between two beats.
const BEAT: Duration = Duration::from_millis(500);
/// Between two attempts to reach rank 0, and two looks for who has come.
const RETRY: Duration = Duration::from_millis(20);
/// How much longer the others wait for rank 0's verdict than rank 0 waits for them: it knows who is missing.
const GRACE: Duration = Duration::from_secs(2);
/// The longest message, bytes.
const MOST_BYTES: u32 = 1 << 20;
/// What the library says of itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the ranks of a group meet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendezvous {
    /// This rank, from 0.
    pub rank: usize,
    /// R, ranks of the group.
    pub size: usize,
    /// This rank's number on its machine, from 0: that of its GPU.
    pub local_rank: usize,
    /// The machine of rank 0, by name or address.
    pub address: String,
    /// The TCP port on which rank 0 listens.
    pub port: u16,
    /// How long ranks wait for each other; [`Limits::start`] for all to come.
    pub limits: Limits,
    /// Nothing heard of a rank for so long is a failure.
    pub silence: Duration,
}

impl Rendezvous {
    /// At a port of rank 0's machine, all ranks on one machine, with default limits: 30 s, 10 minutes, and 5 s
    /// of silence.
    pub fn new(rank: usize, size: usize, address: impl Into<String>, port: u16) -> Rendezvous {
        let (limits, silence) = (Limits::default(), Duration::from_secs(5));
        Rendezvous { rank, size, local_rank: rank, address: address.into(), port, limits, silence }
    }

    /// As `torchrun` says it: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, with
    /// default limits. Where `torchrun`'s own agent has that port (`TORCHELASTIC_USE_AGENT_STORE`), the next
    /// one is taken; `FP8_MOE_PORT` names another.
    ///
    /// # Errors
    /// If a variable is missing or no number.
    pub fn from_env() -> Result<Rendezvous> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), of variables from elsewhere.
    ///
    /// # Errors
    /// If a variable is missing or no number.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Rendezvous> {
        let text = |name: &str| {
            variable(name).ok_or_else(|| {
                Error::argument(OP, name, "unset", "must be set, as torchrun or `fp8-moe run --ranks` does")
            })
        };
        let number = |name: &str| -> Result<usize> {
            let text = text(name)?;
            text.parse().map_err(|_| Error::argument(OP, name, &text, "must be a number"))
        };
        let (rank, size) = (number("RANK")?, number("WORLD_SIZE")?);
        require(rank < size, OP, "RANK", rank, || format!("must be below {size}, WORLD_SIZE"))?;
        let port = match variable("FP8_MOE_PORT") {
            Some(_) => number("FP8_MOE_PORT")?,
            None => {
                let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
                number("MASTER_PORT")? + usize::from(agent)
            }
        };
        let port = u16::try_from(port)
            .map_err(|_| Error::argument(OP, "MASTER_PORT", port, "must be at most 65535"))?;
        let local_rank = number("LOCAL_RANK")?;
        Ok(Rendezvous { local_rank, ..Rendezvous::new(rank, size, text("MASTER_ADDR")?, port) })
    }
}

/// What ranks say to each other; written as `{what: its parts}`.
enum Message {
    /// To rank 0, first.
    Hello { version: String, rank: usize, size: usize },
    /// From rank 0: all have come.
    Welcome,
    /// From rank 0: not all have come, or they do not fit together.
    Refused { rank: usize, what: String },
    /// To rank 0: this rank's terms of an agreement, the agreements being numbered.
    Terms { round: u64, terms: Vec<(String, String)> },
    /// From rank 0: whether all were alike.
    Verdict { round: u64, failure: Option<(usize, String)> },
    /// From rank 0: bytes for all.
    Shared { bytes: Vec<u8> },
    /// That the sender is there, and how many collective calls it has enqueued; from rank 0 those of all.
    Beat { calls: Vec<u64> },
    /// A failure that the sender has found, or has been told of.
    Failed { rank: usize, what: String },
    /// The sender leaves, with nothing left to do.
    Bye,
}

impl Message {
    fn to_json(&self) -> Value {
        match self {
            Message::Hello { version, rank, size } => json!({ "hello": (version, rank, size) }),
            Message::Welcome => json!({ "welcome": () }),
            Message::Refused { rank, what } => json!({ "refused": (rank, what) }),
            Message::Terms { round, terms } => json!({ "terms": (round, terms) }),
            Message::Verdict { round, failure } => json!({ "verdict": (round, failure) }),
            Message::Shared { bytes } => json!({ "shared": bytes }),
            Message::Beat { calls } => json!({ "beat": calls }),
            Message::Failed { rank, what } => json!({ "failed": (rank, what) }),
            Message::Bye => json!({ "bye": () }),
        }
    }

    fn of_json(text: &[u8]) -> serde_json::Result<Message> {
        let (what, parts) =
            serde_json::from_slice::<BTreeMap<String, Value>>(text)?.pop_first().unwrap_or_default();
        Ok(match what.as_str() {
            "hello" => {
                from_value(parts).map(|(version, rank, size)| Message::Hello { version, rank, size })?
            }
            "welcome" => Message::Welcome,
            "refused" => from_value(parts).map(|(rank, what)| Message::Refused { rank, what })?,
            "terms" => from_value(parts).map(|(round, terms)| Message::Terms { round, terms })?,
            "verdict" => from_value(parts).map(|(round, failure)| Message::Verdict { round, failure })?,
            "shared" => Message::Shared { bytes: from_value(parts)? },
            "beat" => Message::Beat { calls: from_value(parts)? },
            "failed" => from_value(parts).map(|(rank, what)| Message::Failed { rank, what })?,
            "bye" => Message::Bye,
            other => return Err(serde_json::Error::custom(format!("{other:?} is no message"))),
        })
    }
}

/// The other ranks of a group of processes. From [`Peers::join`].
pub struct Peers {
    inner: Arc<Inner>,
    rendezvous: Rendezvous,
}

struct Inner {
    rank: usize,
    size: usize,
    board: Arc<Board>,
    state: Mutex<State>,
    changed: Condvar,
    /// By rank: the connection, to write to. Rank 0 has all, the others rank 0's.
    lines: Vec<Option<Mutex<TcpStream>>>,
}

/// What a rank says of itself: names and values.
type Terms = Vec<(String, String)>;

#[derive(Default)]
struct State {
    /// Agreements that this rank has taken part in.
    round: u64,
    /// On rank 0: what ranks have said, by agreement and rank.
    terms: BTreeMap<u64, Vec<Option<Terms>>>,
    /// On the others: what rank 0 has found.
    verdicts: BTreeMap<u64, Option<Failure>>,
    shared: Option<Vec<u8>>,
    /// By rank: when something was heard last, and how many calls it had enqueued.
    heard: Vec<Option<Instant>>,
    calls: Vec<u64>,
    /// By rank: whether it has said goodbye.
    left: Vec<bool>,
    /// This rank is leaving.
    is_over: bool,
}

impl Peers {
    /// Waits until all ranks have come. Rank 0 listens, the others call it.
    ///
    /// # Errors
    /// If a rank does not come within [`Limits::start`]: the error, of every rank that did, says which. If
    /// ranks are of different versions or sizes; if the port is taken.
    pub fn join(rendezvous: &Rendezvous) -> Result<Peers> {
        let Rendezvous { rank, size, .. } = *rendezvous;
        require(rank < size, OP, "rank", rank, || format!("must be below {size}, the size"))?;
        let lines = if rank == 0 { receive(rendezvous)? } else { call(rendezvous)? };
        let readers = lines.iter().map(|line| line.as_ref().map(TcpStream::try_clone).transpose());
        let readers = readers.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let now = Instant::now();
        let state = State {
            heard: readers.iter().map(|reader| reader.as_ref().map(|_| now)).collect(),
            calls: vec![0; size],
            left: vec![false; size],
            ..State::default()
        };
        let inner = Arc::new(Inner {
            rank,
            size,
            board: Arc::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            lines: lines.into_iter().map(|line| line.map(Mutex::new)).collect(),
        });
        let weak = Arc::downgrade(&inner);
        inner.board.on_failure(move |Failure { rank, what }| {
            if let Some(inner) = weak.upgrade() {
                inner.tell(&Message::Failed { rank: *rank, what: what.clone() });
                inner.wake();
            }
        });
        for (from, reader) in readers.into_iter().enumerate() {
            if let Some(reader) = reader {
                let inner = inner.clone();
                spawn(format!("fp8-moe peer {from}"), move || inner.listen(from, reader))?;
            }
        }
        let (beating, silence) = (inner.clone(), rendezvous.silence);
        spawn("fp8-moe beat".into(), move || beating.beat(silence))?;
        Ok(Peers { inner, rendezvous: rendezvous.clone() })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// R.
    pub fn size(&self) -> usize {
        self.inner.size
    }

    /// How long ranks wait for each other.
    pub fn limits(&self) -> Limits {
        self.rendezvous.limits
    }

    /// Makes every rank give up.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle::new(self.inner.rank, self.inner.board.clone())
    }

    /// Whether the group works.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.inner.board
    }

    /// Returns when all ranks have called it with equal terms; without terms it is a barrier.
    ///
    /// # Errors
    /// If a rank has other terms, has failed or left, or does not come within [`Limits::start`].
    pub fn agree(&self, terms: &[Term]) -> Result<()> {
        let terms = terms.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let result = self.inner.agree(terms, self.rendezvous.limits.start);
        self.inner.board.note(self.inner.rank, result)
    }

    /// Rank 0's `bytes` on every rank; the others give none. Once in the life of a group.
    ///
    /// # Errors
    /// If rank 0 gives none, has failed, or does not come within [`Limits::start`].
    pub fn share(&self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let (inner, limit) = (&self.inner, self.rendezvous.limits.start);
        let result = match bytes {
            Some(bytes) => {
                inner.tell(&Message::Shared { bytes: bytes.clone() });
                Ok(bytes)
            }
            None => inner.wait(limit, "share", |state| state.shared.take().ok_or_else(|| vec![0])),
        };
        inner.board.note(inner.rank, result)
    }

    /// Says, with the next beat, that so many collective calls have been enqueued.
    pub(crate) fn count(&self, calls: u64) {
        self.inner.lock().calls[self.inner.rank] = calls;
    }

    /// The rank that has enqueued the fewest collective calls, by its last beat, and how many; none if all
    /// have enqueued as many as this one or more.
    pub(crate) fn slowest(&self) -> Option<(usize, u64)> {
        let state = self.inner.lock();
        let (rank, calls) = state.calls.iter().copied().enumerate().min_by_key(|&(_, calls)| calls)?;
        (calls < state.calls[self.inner.rank]).then_some((rank, calls))
    }

    /// The first rank that has left.
    pub(crate) fn left(&self) -> Option<usize> {
        self.inner.lock().left.iter().position(|&left| left)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abort_handle().abort("has panicked");
        }
        self.inner.tell(&Message::Bye);
        self.inner.lock().is_over = true;
        self.inner.wake();
        // The readers of both ends return; what was written before arrives.
        for line in self.inner.lines.iter().flatten() {
            let _ = line.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Write);
        }
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rendezvous { rank, size, address, port, .. } = &self.rendezvous;
        write!(f, "rank {rank} of {size}, met at {address}:{port}")
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets waiting threads look again.
    fn wake(&self) {
        // Whoever is about to wait has the lock until it does.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// To rank 0, or from rank 0 to all. Who cannot be reached has a reader that finds out.
    fn tell(&self, message: &Message) {
        for line in self.lines.iter().flatten() {
            let _ = send(&mut line.lock().unwrap_or_else(PoisonError::into_inner), message);
        }
    }

    /// Waits for what `look` finds; where it finds nothing, it says which ranks that is up to.
    fn wait<T>(
        &self,
        limit: Duration,
        op: &str,
        mut look: impl FnMut(&mut State) -> Result<T, Vec<usize>>,
    ) -> Result<T> {
        let started = Instant::now();
        let mut state = self.lock();
        loop {
            self.board.check()?;
            let missing = match look(&mut state) {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            if let Some(&rank) = missing.iter().find(|&&rank| state.left[rank]) {
                return Err(Error::Rank { rank, what: format!("has left the group; {op} waits for it") });
            }
            let Some(rest) = limit.checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) else {
                return Err(late(&missing, op, limit).error());
            };
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn agree(&self, terms: Vec<(String, String)>, limit: Duration) -> Result<()> {
        let round = {
            let mut state = self.lock();
            state.round += 1;
            state.round
        };
        if self.rank > 0 {
            self.tell(&Message::Terms { round, terms });
            let verdict = self
                .wait(limit + GRACE, "agree", |state| state.verdicts.remove(&round).ok_or_else(|| vec![0]))?;
            return verdict.map_or(Ok(()), |failure| Err(failure.error()));
        }
        self.lock().terms.entry(round).or_insert_with(|| vec![None; self.size])[0] = Some(terms);
        let all = self.wait(limit, "agree", |state| {
            let entry = state.terms.entry(round).or_insert_with(|| vec![None; self.size]);
            let missing: Vec<_> = (0..self.size).filter(|&rank| entry[rank].is_none()).collect();
            if !missing.is_empty() {
                return Err(missing);
            }
            let all = state.terms.remove(&round).unwrap_or_default();
            Ok(all.into_iter().flatten().collect::<Vec<_>>())
        })?;
        let failure = compare(&all).err();
        let told = failure.clone().map(|Failure { rank, what }| (rank, what));
        self.tell(&Message::Verdict { round, failure: told });
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Reads what rank `from` says until its connection ends.
    fn listen(&self, from: usize, mut line: TcpStream) {
        loop {
            let message = read(&mut line);
            let mut state = self.lock();
            state.heard[from] = Some(Instant::now());
            match message {
                Ok(Message::Terms { round, terms }) => {
                    let size = self.size;
                    state.terms.entry(round).or_insert_with(|| vec![None; size])[from] = Some(terms);
                }
                Ok(Message::Verdict { round, failure }) => {
                    let failure = failure.map(|(rank, what)| Failure { rank, what });
                    state.verdicts.insert(round, failure);
                }
                Ok(Message::Shared { bytes }) => state.shared = Some(bytes),
                Ok(Message::Beat { calls }) => {
                    let own = state.calls[self.rank];
                    if calls.len() == self.size {
                        state.calls = calls;
                    } else if let [calls] = calls[..] {
                        state.calls[from] = calls;
                    }
                    state.calls[self.rank] = own;
                }
                Ok(Message::Failed { rank, what }) => {
                    drop(state);
                    self.board.fail(Failure { rank, what });
                    continue;
                }
                Ok(Message::Bye) => state.left[from] = true,
                Ok(Message::Hello { .. } | Message::Welcome | Message::Refused { .. }) => {}
                Err(_) => {
                    let is_expected = state.left[from] || state.is_over;
                    state.heard[from] = None;
                    drop(state);
                    if !is_expected {
                        let what = "has ended: its connection was closed";
                        self.board.fail(Failure { rank: from, what: what.into() });
                    }
                    self.wake();
                    return;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Says that this rank is there, and looks for those that are not heard.
    fn beat(&self, silence: Duration) {
        loop {
            let (calls, silent) = {
                let state = self.lock();
                if state.is_over {
                    return;
                }
                let state = self.changed.wait_timeout_while(state, BEAT, |state| !state.is_over);
                let state = state.unwrap_or_else(PoisonError::into_inner).0;
                if state.is_over {
                    return;
                }
                let calls = if self.rank == 0 { state.calls.clone() } else { vec![state.calls[self.rank]] };
                let is_silent = |&rank: &usize| {
                    let heard = state.heard[rank].filter(|_| !state.left[rank]);
                    heard.is_some_and(|heard| heard.elapsed() > silence)
                };
                (calls, (0..self.size).find(is_silent))
            };
            self.tell(&Message::Beat { calls });
            if let Some(rank) = silent {
                let what = format!("has not been heard for {:.1} s", silence.as_secs_f64());
                self.board.fail(Failure { rank, what });
            }
        }
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name).spawn(work).map(|_| ()).map_err(failed)
}

fn failed(error: io::Error) -> Error {
    Error::argument(OP, "connection", error, "must work")
}

fn send(line: &mut TcpStream, message: &Message) -> io::Result<()> {
    let text = message.to_json().to_string();
    let mut frame = (text.len() as u32).to_le_bytes().to_vec();
    frame.extend(text.into_bytes());
    line.write_all(&frame)
}

fn read(line: &mut TcpStream) -> io::Result<Message> {
    let mut length = [0; 4];
    line.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long a message"));
    }
    let mut text = vec![0; length as usize];
    line.read_exact(&mut text)?;
    Ok(Message::of_json(&text)?)
}

/// Rank 0: the connections of all others, by rank.
fn receive(rendezvous: &Rendezvous) -> Result<Vec<Option<TcpStream>>> {
    let Rendezvous { size, address, port, limits, .. } = rendezvous;
    let place = format!("{address}:{port}");
    let mut lines: Vec<Option<TcpStream>> = (0..*size).map(|_| None).collect();
    if *size == 1 {
        return Ok(lines);
    }
    // The others' name for this machine need not be one of its own addresses.
    let listener = TcpListener::bind((address.as_str(), *port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)))
        .map_err(|error| Error::argument(OP, "address", &place, format!("must be free: {error}")))?;
    listener.set_nonblocking(true).map_err(failed)?;
    let started = Instant::now();
    let failure = loop {
        let missing: Vec<_> = (1..*size).filter(|&rank| lines[rank].is_none()).collect();
        if missing.is_empty() {
            break None;
        }
        if started.elapsed() > limits.start {
            let [first, rest @ ..] = &missing[..] else { break None };
            let others = if rest.is_empty() { String::new() } else { format!(" (nor have {rest:?})") };
            let seconds = limits.start.as_secs_f64();
            let what = format!("has not come to {place} within {seconds:.1} s{others}");
            break Some(Failure { rank: *first, what });
        }
        let Ok((line, _)) = listener.accept() else {
            thread::sleep(RETRY);
            continue;
        };
        // Who does not say hello is no rank.
        let Ok((mut line, rank, failure)) = greet(line, *size) else { continue };
        let failure = failure.or_else(|| {
            let is_there = lines.get(rank).is_none_or(Option::is_some) || rank == 0;
            is_there.then(|| Failure { rank, what: "has come twice".into() })
        });
        if let Some(Failure { rank, what }) = &failure {
            let _ = send(&mut line, &Message::Refused { rank: *rank, what: what.clone() });
            break failure;
        }
        lines[rank] = Some(line);
    };
    for line in lines.iter_mut().flatten() {
        let message = match &failure {
            None => Message::Welcome,
            Some(Failure { rank, what }) => Message::Refused { rank: *rank, what: what.clone() },
        };
        let _ = send(line, &message);
    }
    match failure {
        Some(failure) => Err(failure.error()),
        None => Ok(lines),
    }
}

/// Reads a hello: the rank, and what is wrong with it.
fn greet(mut line: TcpStream, size: usize) -> io::Result<(TcpStream, usize, Option<Failure>)> {
    line.set_nonblocking(false)?;
    line.set_nodelay(true)?;
    line.set_read_timeout(Some(Duration::from_secs(2)))?;
    let Message::Hello { version, rank, size: theirs } = read(&mut line)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no hello"));
    };
    line.set_read_timeout(None)?;
    let failure = if version != VERSION {
        Some(format!("is version {version}; rank 0 is {VERSION}"))
    } else if theirs != size {
        Some(format!("is of {theirs} ranks; rank 0 is of {size}"))
    } else {
        None
    };
    Ok((line, rank, failure.map(|what| Failure { rank, what })))
}

/// The other ranks: the connection with rank 0.
fn call(rendezvous: &Rendezvous) -> Result<Vec<Option<TcpStream>>> {
    let Rendezvous { rank, size, address, port, limits, .. } = rendezvous;
    let started = Instant::now();
    let late = |error: &dyn std::fmt::Display| {
        let seconds = limits.start.as_secs_f64();
        Error::Rank {
            rank: 0,
            what: format!("cannot be reached at {address}:{port} within {seconds:.1} s: {error}"),
        }
    };
    loop {
        let attempt = || -> io::Result<(TcpStream, Message)> {
            let mut found = (address.as_str(), *port).to_socket_addrs()?;
            let place = found.next().ok_or_else(|| io::Error::other("the name has no address"))?;
            let mut line = TcpStream::connect_timeout(&place, Duration::from_secs(2))?;
            line.set_nodelay(true)?;
            send(&mut line, &Message::Hello { version: VERSION.into(), rank: *rank, size: *size })?;
            line.set_read_timeout(Some(limits.start + GRACE))?;
            let answer = read(&mut line)?;
            line.set_read_timeout(None)?;
            Ok((line, answer))
        };
        match attempt() {
            Ok((line, Message::Welcome)) => {
                let mut lines: Vec<Option<TcpStream>> = (0..*size).map(|_| None).collect();
                lines[0] = Some(line);
                return Ok(lines);
            }
            Ok((_, Message::Refused { rank, what })) => return Err(Error::Rank { rank, what }),
            Ok(_) => return Err(Error::Rank { rank: 0, what: "speaks another language".into() }),
            Err(error) if started.elapsed() > limits.start => return Err(late(&error)),
            Err(_) => thread::sleep(RETRY),
        }
    }
}
