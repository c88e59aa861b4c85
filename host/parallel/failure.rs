//! What becomes known of a group's ranks: who failed, why, and what to do then.
//!
//! ```text
//!   an error of this rank --.
//!   another rank's word -----+--> Board: the first failure stays --> hooks, once: abort NCCL, tell the others
//!   AbortHandle::abort -----'                                   '--> every call and every wait returns it
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// A rank that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The rank at fault.
    pub rank: usize,
    /// What it did, or did not do.
    pub what: String,
}

impl Failure {
    /// As an error.
    pub(crate) fn error(&self) -> Error {
        Error::Rank { rank: self.rank, what: self.what.clone() }
    }
}

type Hook = Box<dyn FnOnce(&Failure) + Send>;

/// Whether a group still works. Shared by all who may find out that it does not.
#[derive(Default)]
pub(crate) struct Board {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    hooks: Vec<Hook>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure and runs the hooks, unless there is one already: the first is the cause, what comes
    /// later its consequence.
    pub fn fail(&self, failure: Failure) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return;
        }
        let hooks = std::mem::take(&mut state.hooks);
        state.failure = Some(failure.clone());
        drop(state);
        hooks.into_iter().for_each(|hook| hook(&failure));
    }

    /// What to do when the group fails, on the thread that says so; at once, if it has failed.
    pub fn on_failure(&self, hook: impl FnOnce(&Failure) + Send + 'static) {
        let mut state = self.lock();
        match state.failure.clone() {
            None => state.hooks.push(Box::new(hook)),
            Some(failure) => {
                drop(state);
                hook(&failure);
            }
        }
    }

    /// The failure, if there is one.
    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// The failure as an error, if there is one.
    pub fn check(&self) -> Result<()> {
        self.failure().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// What `result` says, after noting an error as a failure of `rank`: a rank that leaves a call early
    /// leaves the others waiting. If another rank failed before, that is the error.
    pub fn note<T>(&self, rank: usize, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            match &error {
                Error::Rank { rank, what } => self.fail(Failure { rank: *rank, what: what.clone() }),
                other => self.fail(Failure { rank, what: other.to_string() }),
            }
            match self.failure() {
                Some(failure) if failure.rank != rank => failure.error(),
                _ => error,
            }
        })
    }
}

/// Makes every rank of a group give up, from any thread and any number of times.
#[derive(Clone)]
pub struct AbortHandle {
    rank: usize,
    board: Arc<Board>,
}

impl AbortHandle {
    pub(crate) fn new(rank: usize, board: Arc<Board>) -> AbortHandle {
        AbortHandle { rank, board }
    }

    /// Gives up, because of `what`: calls and waits of all ranks return an error that names this rank. Later
    /// calls change nothing. Work that is running on a GPU ends, but its results are undefined.
    pub fn abort(&self, what: impl Into<String>) {
        self.board.fail(Failure { rank: self.rank, what: what.into() });
    }

    /// The failure that the group gave up for, if it has.
    pub fn failure(&self) -> Option<Failure> {
        self.board.failure()
    }

    /// What `result` says, after giving up if it is an error.
    pub(crate) fn note<T>(&self, result: Result<T>) -> Result<T> {
        self.board.note(self.rank, result)
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AbortHandle").field("rank", &self.rank).field("failure", &self.failure()).finish()
    }
}

/// Ranks that did not come.
pub(super) fn late(missing: &[usize], op: &str, limit: Duration) -> Failure {
    let others = match missing {
        [] | [_] => String::new(),
        [_, others @ ..] => format!(" (nor have {others:?})"),
    };
    let what = format!("has not called {op} within {:.1} s{others}", limit.as_secs_f64());
    Failure { rank: missing.first().copied().unwrap_or(0), what }
}
