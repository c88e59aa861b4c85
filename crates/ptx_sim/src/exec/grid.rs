//! `griddepcontrol` (ISA "Parallel Synchronization and Communication Instructions: griddepcontrol"), and the
//! check of what may be touched before it; the rule is in [`crate::state::overlap`].

use std::sync::atomic::Ordering::Relaxed;

use super::{Ctx, Flow, Inst, lanes_of};
use crate::fault::FaultKind;
use crate::state::overlap::refusal;

impl Ctx<'_> {
    /// Ends the launch if executing lanes that have not waited touch what is unsettled.
    #[cold]
    pub(crate) fn check_settled(
        &mut self,
        addresses: &[u64; 32],
        bytes: u32,
        what: &str,
    ) -> Result<(), Flow> {
        for lane in lanes_of(self.exec & !self.warp.waited) {
            if let Some(detail) = refusal(self.env, addresses[lane], bytes.into(), what) {
                return Err(self.stop(FaultKind::MissingGridWait, 1 << lane, detail));
            }
        }
        Ok(())
    }
}

/// `griddepcontrol.wait`: what is unsettled has long been written here.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    ctx.tally.counters.grid_dependency_controls += 1;
    ctx.warp.waited |= ctx.exec;
    ctx.cluster.blocks[ctx.rank].waited = true;
    Flow::Next
}

/// `griddepcontrol.launch_dependents`: a block signals when the first of its threads does.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn launch_dependents(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    ctx.tally.counters.grid_dependency_controls += 1;
    if ctx.exec & !ctx.warp.waited != 0 {
        ctx.env.early.store(true, Relaxed);
    }
    Flow::Next
}
