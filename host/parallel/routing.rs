//! The operations on routings that travel: launches of `kernels-gpu/src/ranks/routing.rs`.

use crate::error::Result;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers::{self, ROUTING_THREADS};
use crate::parallel::placement::Placement;
use crate::plan::checked_i32;

const OP: &str = "ExpertParallel";

/// Blocks that cover `count` threads' work; they stride over what is more than eight for each SM.
fn blocks(device: &Device, count: u32) -> u32 {
    count.div_ceil(ROUTING_THREADS).min(8 * device.multiprocessors())
}

/// Writes this rank's block, `[c, k]`: `routing`, or what is there already if none is given, for the first
/// `slots` slots, and slots of no token behind them.
pub(super) fn stage(
    stream: &Stream,
    routing: Option<(Slice<'_, i32>, Slice<'_, f32>)>,
    slots: usize,
    ids: SliceMut<'_, i32>,
    weights: SliceMut<'_, f32>,
) -> Result<()> {
    let capacity = ids.len();
    if routing.is_none() && slots == capacity {
        return Ok(());
    }
    let narrow = checked_i32(OP, "tokens", capacity)?;
    ids.check(OP, "ids", capacity, stream)?;
    weights.check(OP, "weights", capacity, stream)?;
    crate::error::require(slots <= capacity, OP, "slots", slots, || format!("must be at most {capacity}"))?;
    if let Some((ids, weights)) = &routing {
        ids.check(OP, "topk_ids", slots, stream)?;
        weights.check(OP, "topk_weights", slots, stream)?;
    }
    let arguments = launchers::StageRouting {
        ids: routing.map_or(DevicePtr::null(), |(ids, _)| ids.ptr()),
        weights: routing.map_or(DevicePtr::null(), |(_, weights)| weights.ptr()),
        ids_out: ids.ptr(),
        weights_out: weights.ptr(),
        slots: slots as u32,
        capacity: narrow,
    };
    let device = stream.device();
    // SAFETY: what is read has `slots` elements and what is written `capacity`, as checked, on this device; a
    // `SliceMut` overlaps nothing.
    unsafe { device.launch(stream, &launchers::STAGE_ROUTING, blocks(device, narrow), &arguments) }
}

/// Who holds which expert, on the device.
#[derive(Debug)]
pub(super) struct Holders {
    experts: usize,
    first: Buffer<u32>,
    holders: Buffer<u32>,
}

impl Holders {
    pub fn new(device: &Device, placement: &Placement) -> Result<Holders> {
        let (first, holders) = placement.tables();
        let (first, holders) = (device.upload(&first)?, device.upload(&holders)?);
        Ok(Holders { experts: placement.experts(), first, holders })
    }

    /// Of the ids `[R, c, k]` of all ranks those that `rank` takes; -1 for the others.
    pub fn choose(
        &self,
        stream: &Stream,
        rank: usize,
        [rank_tokens, top_k]: [usize; 2],
        ids: Slice<'_, i32>,
        out: SliceMut<'_, i32>,
    ) -> Result<()> {
        let slots = checked_i32(OP, "tokens", ids.len())?;
        ids.check(OP, "ids", ids.len(), stream)?;
        out.check(OP, "chosen", ids.len(), stream)?;
        let (first, holders) = (self.first.as_slice(), self.holders.as_slice());
        first.check(OP, "first", self.experts + 1, stream)?;
        holders.check(OP, "holders", holders.len(), stream)?;
        if slots == 0 {
            return Ok(());
        }
        let arguments = launchers::ChooseReplicas {
            ids: ids.ptr(),
            out: out.ptr(),
            first: first.ptr(),
            holders: holders.ptr(),
            slots,
            top_k: checked_i32(OP, "top_k", top_k)?.max(1),
            rank_tokens: checked_i32(OP, "tokens", rank_tokens)?.max(1),
            experts: checked_i32(OP, "experts", self.experts)?,
            rank: checked_i32(OP, "rank", rank)?,
        };
        let device = stream.device();
        // SAFETY: the arrays have their lengths, as checked, on this device; `first` ascends to the length of
        // `holders` by `Placement::tables`, and nobody writes either.
        unsafe { device.launch(stream, &launchers::CHOOSE_REPLICAS, blocks(device, slots), &arguments) }
    }
}

/// Adds the rows of every expert, by its offsets `[E_loc + 1]`, to its count.
pub(super) fn count(stream: &Stream, offsets: Slice<'_, i64>, counts: SliceMut<'_, u64>) -> Result<()> {
    let experts = checked_i32(OP, "experts", counts.len())?;
    offsets.check(OP, "offsets", counts.len() + 1, stream)?;
    counts.check(OP, "counts", counts.len(), stream)?;
    if experts == 0 {
        return Ok(());
    }
    let arguments = launchers::CountRows { offsets: offsets.ptr(), counts: counts.ptr(), experts };
    let device = stream.device();
    // SAFETY: the arrays have their lengths, as checked, on this device; a `SliceMut` overlaps nothing.
    unsafe { device.launch(stream, &launchers::COUNT_ROWS, blocks(device, experts), &arguments) }
}
