//! Captured forwards of several ranks: each rank captures its own graph, and all replay theirs together.

use std::fmt;
use std::sync::Arc;

use super::communicator::{Communicator, Term};
use crate::error::{Result, require};
use crate::gpu::graph::Graph;
use crate::gpu::stream::Stream;

/// A graph that takes part in a group. A launch settles with the other ranks on which graph it is, so that
/// ranks that launch different ones get an error, and no wrong output.
pub struct ParallelGraph {
    /// Dropped before the communicator, which NCCL's nodes use.
    graph: Graph,
    communicator: Arc<dyn Communicator>,
    terms: Vec<Term>,
    calls: u64,
}

impl ParallelGraph {
    /// Records what `work` enqueues on the stream that it is given, as [`Stream::capture`] does. Collective:
    /// all ranks capture under the same `name`, with as many collective calls. Names differ between graphs.
    ///
    /// # Errors
    /// A communicator that cannot be captured; what `work` fails with; ranks with another name or other calls,
    /// by name. The group has failed then.
    pub fn capture(
        communicator: &Arc<dyn Communicator>,
        stream: &Stream,
        name: &str,
        work: impl FnOnce(&Stream) -> Result<()>,
    ) -> Result<ParallelGraph> {
        let abort = communicator.abort_handle();
        let capture = || {
            let can = communicator.can_be_captured();
            require(can, "ParallelGraph::capture", "communicator", "of ranks in one process", || {
                "must be one that can be captured, as NCCL's".into()
            })?;
            let before = communicator.calls().captured();
            let calls = communicator.calls();
            let graph = stream.capture(|stream| calls.in_capture(stream, || work(stream)))?;
            let calls = communicator.calls().captured() - before;
            let terms = vec![("the graph", name.to_owned()), ("collective calls in it", calls.to_string())];
            communicator.agree(&terms)?;
            Ok(ParallelGraph { graph, communicator: communicator.clone(), terms, calls })
        };
        abort.note(capture())
    }

    /// Enqueues the captured work. Collective.
    ///
    /// # Errors
    /// Ranks that launch another graph or do something else, by name; a group that has failed; those of
    /// [`Graph::launch`].
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        let launch = || {
            self.communicator.settle(&self.terms)?;
            self.graph.launch(stream)?;
            self.communicator.calls().replayed(self.calls);
            Ok(())
        };
        self.communicator.abort_handle().note(launch())
    }

    /// Collective calls that a launch makes.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}

impl fmt::Debug for ParallelGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} with {} collective calls", self.graph, self.terms[0].1, self.calls)
    }
}
