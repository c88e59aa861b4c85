//! A forward in three calls, between which a program enqueues work of its own.

use super::{Chunk, ExpertParallel, OP};
use crate::error::{Result, require};
use crate::gpu::stream::Stream;
use crate::ops::quantize::ActivationsMut;
use crate::parallel::batch::Batch;
use crate::parallel::wire::ParallelWorkspace;

impl ExpertParallel {
    /// The first of three calls that make a forward: this rank's rows go to all ranks. Between them other work
    /// may be enqueued on other streams, a shared expert's for example. The rest are
    /// [`Dispatched::experts`] and [`Dispatched::combine`]. Collective.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward); a capacity over that of the workspace.
    pub fn dispatch<'a>(
        &'a mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &'a mut ParallelWorkspace,
    ) -> Result<Dispatched<'a>> {
        let abort = self.communicator.abort_handle();
        let chunk = abort.note(self.dispatch_whole(stream, batch, workspace))?;
        Ok(Dispatched { parallel: self, workspace, chunk, has_run: false, is_over: false })
    }

    fn dispatch_whole(
        &mut self,
        stream: &Stream,
        batch: Batch<'_>,
        workspace: &mut ParallelWorkspace,
    ) -> Result<Chunk> {
        let chunk = self.check(stream, &batch, workspace)?;
        require(chunk.capacity <= self.chunk(), OP, "capacity", chunk.capacity, || {
            format!("must be at most {}, the chunk, for a forward in three calls", self.chunk())
        })?;
        self.prepare(&batch, chunk.capacity, workspace, None)?;
        self.dispatch_chunk(stream, &batch, chunk, workspace)?;
        self.gather(stream, &batch, chunk, workspace)?;
        Ok(chunk)
    }
}

/// A forward whose rows are at all ranks. It must be combined: dropped before, it has failed the group, whose
/// other ranks wait for this one's part.
#[must_use]
pub struct Dispatched<'a> {
    parallel: &'a mut ExpertParallel,
    workspace: &'a mut ParallelWorkspace,
    chunk: Chunk,
    has_run: bool,
    is_over: bool,
}

impl Dispatched<'_> {
    /// The second call: this rank's experts on the rows of all ranks. Not collective.
    ///
    /// # Errors
    /// If a launch fails. The group has failed then.
    pub fn experts(&mut self, stream: &Stream) -> Result<()> {
        let abort = self.parallel.communicator.abort_handle();
        if self.chunk.capacity > 0 {
            abort.note(self.parallel.run_experts(stream, self.chunk, self.workspace))?;
        }
        self.has_run = true;
        Ok(())
    }

    /// The third call: the results come back, and their sum is written to `out` `[T, H]` of bf16, f16 or f32.
    /// Collective.
    ///
    /// # Errors
    /// If [`experts`](Self::experts) has not been called; an `out` that is too short; a rank that has failed.
    /// The group has failed then.
    pub fn combine<'o>(mut self, stream: &Stream, out: impl Into<ActivationsMut<'o>>) -> Result<()> {
        self.is_over = true;
        let abort = self.parallel.communicator.abort_handle();
        abort.note(self.finish(stream, out.into()))
    }

    fn finish(&mut self, stream: &Stream, mut out: ActivationsMut<'_>) -> Result<()> {
        require(self.has_run, OP, "combine", "no experts", || "must come behind Dispatched::experts".into())?;
        let elements = self.chunk.tokens * self.parallel.wire.hidden;
        out.check(OP, "out", elements, stream)?;
        if self.chunk.capacity == 0 {
            return Ok(());
        }
        self.parallel.scatter(stream, self.chunk, self.workspace)?;
        self.parallel.sum(stream, self.chunk, self.workspace, out.slice_mut(0..elements))
    }
}

impl Drop for Dispatched<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.parallel.communicator.abort_handle().abort("has dispatched a forward and not combined it");
        }
    }
}

impl std::fmt::Debug for Dispatched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Chunk { tokens, capacity } = self.chunk;
        write!(f, "{tokens} tokens, of a capacity of {capacity}, at all ranks")
    }
}
