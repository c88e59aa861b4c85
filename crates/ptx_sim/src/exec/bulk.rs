//! Bulk copies (ISA "Data Movement and Conversion Instructions: cp.async.bulk, cp.reduce.async.bulk,
//! cp.async.bulk.tensor, cp.async.bulk.prefetch, st.async"). What happens after issue is in
//! [`crate::engine`].
//!
//! ```text
//!   list of operands, an address being slot, offset, 1 if the slot has 32-bit lanes:
//!     load    destination, mbarrier, source or tensor map, coordinates ..
//!     store   source, destination or tensor map, coordinates ..
//!     prefetch  source or tensor map, coordinates ..
//! ```

use super::address::{Window, window_of};
use super::{Ctx, Flow, Inst, lanes_of};
use crate::counters::prefetch_digest;
use crate::engine::transfer::may_prefetch;
use crate::engine::{Failure, Surroundings};
use crate::fault::FaultKind;
use crate::state::memory::Lookup;
use crate::state::operations::{Global, Operation, Place, Source, Work};
use crate::state::race::{Access, Clock};
use crate::state::reduction::Reduction;
use crate::tensor_map::{DataType, TensorMap};

/// Fields of `inst.e` of a load.
pub(crate) mod kind {
    /// To the blocks of the mask in `c`.
    pub const MULTICAST: u32 = 1;
    /// From shared memory.
    pub const SHARED: u32 = 2;
}

/// Words of an address in the list of operands.
pub(crate) const ADDRESS: usize = 3;

impl<'a> Ctx<'a> {
    /// What operations of the engine work with.
    pub fn surroundings(&mut self) -> Surroundings<'_, 'a> {
        Surroundings {
            env: self.env,
            cluster: self.cluster,
            counters: &mut self.tally.counters,
            random: self.random,
        }
    }

    /// A lane's address of a list of operands.
    ///
    /// # Safety
    /// The list starts with an address as the decoder makes it.
    unsafe fn address_of(&self, list: &[u32], lane: usize) -> u64 {
        let offset = list[1] as i32;
        // SAFETY: by the caller's contract.
        unsafe {
            if list[2] != 0 {
                u64::from(self.read::<u32>(list[0])[lane].wrapping_add(offset as u32))
            } else {
                self.read::<u64>(list[0])[lane].wrapping_add(offset as u64)
            }
        }
    }

    /// `bytes` bytes of shared memory at an aligned address, or the launch ends.
    fn shared_range(
        &mut self,
        lane: usize,
        address: u64,
        bytes: u32,
        align: u64,
        what: &str,
    ) -> Result<Place, Flow> {
        let Some((rank, within)) = self.shared_place(address) else {
            return Err(self.outside_shared(lane, address, bytes, what));
        };
        if !within.is_multiple_of(align) {
            let detail = format!("{what} at shared address {within:#x}, which is not a multiple of {align}");
            return Err(self.stop(FaultKind::Misaligned, 1 << lane, detail));
        }
        if !self.cluster.blocks[rank].shared.contains(within, bytes) {
            return Err(self.outside_shared(lane, address, bytes, what));
        }
        Ok((rank, within))
    }

    /// The size operand of a copy of a line.
    fn line_bytes(&mut self, lane: usize, bytes: u32) -> Result<u32, Flow> {
        if bytes.is_multiple_of(16) {
            return Ok(bytes);
        }
        let detail = format!("a bulk copy of {bytes} bytes: the size must be a multiple of 16");
        Err(self.stop(FaultKind::InvalidOperand, 1 << lane, detail))
    }

    fn line(&mut self, lane: usize, address: u64) -> Result<Global, Flow> {
        if window_of(address).0 != Window::Global {
            let detail = format!("{address:#x} is not an address of global memory");
            return Err(self.stop(FaultKind::InvalidOperand, 1 << lane, detail));
        }
        if !address.is_multiple_of(16) {
            let detail = format!("bulk copy at global address {address:#x}, which is not a multiple of 16");
            return Err(self.stop(FaultKind::Misaligned, 1 << lane, detail));
        }
        Ok(Global::Line(address))
    }

    /// The box that a tensor map and coordinates name.
    ///
    /// # Safety
    /// The list holds an address and then `rank` slots of 32-bit lanes.
    unsafe fn tile(
        &mut self,
        list: &[u32],
        rank: u32,
        lane: usize,
    ) -> Result<(Box<TensorMap>, Vec<i32>), Flow> {
        // SAFETY: by the caller's contract.
        let (address, coordinates) = unsafe {
            let coordinates = list[ADDRESS..ADDRESS + rank as usize]
                .iter()
                .map(|slot| self.read::<u32>(*slot)[lane] as i32)
                .collect::<Vec<_>>();
            (self.address_of(list, lane), coordinates)
        };
        let map = match self.tensor_map(address) {
            Ok(map) => map,
            Err(detail) => return Err(self.stop(FaultKind::InvalidOperand, 1 << lane, detail)),
        };
        if map.rank != rank as usize {
            let detail = format!("the tensor map has rank {}, the instruction {rank}", map.rank);
            return Err(self.stop(FaultKind::InvalidOperand, 1 << lane, detail));
        }
        Ok((Box::new(map), coordinates))
    }

    /// The tensor map at a generic address.
    fn tensor_map(&self, address: u64) -> Result<TensorMap, String> {
        let mut bytes = [0; TensorMap::BYTES];
        if !address.is_multiple_of(64) {
            return Err(format!("the tensor map's address {address:#x} is not a multiple of 64"));
        }
        match window_of(address) {
            (Window::Param, at) => {
                let params = self.env.params.get(at as usize..at as usize + TensorMap::BYTES);
                bytes.copy_from_slice(params.ok_or("a tensor map past the end of the parameters")?);
            }
            (Window::Global, _) => {
                let Lookup::Live(allocation) = self.env.memory.lookup(address) else {
                    return Err(format!("no memory at the tensor map's address {address:#x}"));
                };
                allocation
                    .read(address, &mut bytes)
                    .ok_or_else(|| format!("the tensor map at {address:#x} is not inside its allocation"))?;
            }
            _ => {
                return Err(format!(
                    "a tensor map at {address:#x}: it must be a parameter or in global memory"
                ));
            }
        }
        TensorMap::decode(&bytes).map_err(|error| format!("tensor map at {address:#x}: {error}"))
    }

    /// Puts an operation of a lane into flight.
    fn issue(&mut self, lane: usize, work: Work, clock: &Clock, group: u32) -> Result<(), Flow> {
        let issuer = self.issuer(lane);
        let issued: Result<(), Failure> = self.surroundings().issue(issuer, work, clock, group);
        issued.map_err(|failure| self.failed(failure))
    }

    /// Marks the destination of a load, and puts the load into flight.
    fn load(
        &mut self,
        lane: usize,
        source: Source,
        to: Place,
        bytes: u32,
        barrier: Place,
    ) -> Result<(), Flow> {
        let by = self.access(false).asynchronous();
        let mut clock = self.warp.clock;
        let (rank, within) = to;
        let expected = self.cluster.blocks[rank]
            .shared
            .for_cells(within, bytes, |cell, mask| cell.expect(by, mask, &clock));
        if let Err(hazard) = expected {
            return Err(self.hazard(hazard, lane, within, bytes, "bulk copy"));
        }
        if let Source::Shared((rank, from)) = source {
            self.warp.stores.issued += 1;
            let (agent, number) = self.read_shared(lane, (rank, from), bytes, &clock)?;
            // Whoever sees the copy complete knows that its source has been read.
            clock.reach(agent, number);
        }
        self.issue(lane, Work::Load { source, to, bytes, barrier, by }, &clock, 0)
    }

    /// Notes that the last bulk store reads shared memory. Its agent and number.
    fn read_shared(
        &mut self,
        lane: usize,
        (rank, from): Place,
        bytes: u32,
        clock: &Clock,
    ) -> Result<(u32, u32), Flow> {
        let agents = self.env.agents();
        let agent = agents.bulk(self.rank, self.warp.index);
        let number = self.warp.stores.issued;
        let now = Access::new(agent, number, self.pc, false).asynchronous();
        let fences = agents.fences();
        let noted = self.cluster.blocks[rank]
            .shared
            .for_cells(from, bytes, |cell, mask| cell.read_async(now, mask, clock, fences));
        match noted {
            Ok(()) => Ok((agent, number)),
            Err(hazard) => Err(self.hazard(hazard, lane, from, bytes, "bulk read")),
        }
    }
}

/// `cp.async.bulk{.tensor}` to shared memory: list `imm`, rank of the tensor or 0 for a line in `d`, size of
/// a line in `b`; see [`kind`] for `e`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn load(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    for lane in lanes_of(ctx.exec) {
        // SAFETY: by the caller's contract.
        if let Err(flow) = unsafe { load_lane(ctx, inst, lane) } {
            return flow;
        }
    }
    let agent = ctx.warp.agent;
    ctx.warp.clock.tick(agent);
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`].
unsafe fn load_lane(ctx: &mut Ctx<'_>, inst: &Inst, lane: usize) -> Result<(), Flow> {
    let (rank, e) = (inst.d, inst.e);
    let list = ctx.list(inst.imm, 3 * ADDRESS + rank as usize);
    let (own_list, from) = list.split_at(2 * ADDRESS);
    // SAFETY: the decoder lists two addresses, then an address and the slots of coordinates; `b` and `c` are
    // slots of 32-bit lanes where they are used.
    unsafe {
        let (to, barrier) = (ctx.address_of(own_list, lane), ctx.address_of(&own_list[ADDRESS..], lane));
        let (global, bytes, align) = if rank > 0 {
            let (map, coordinates) = ctx.tile(from, rank, lane)?;
            let bytes = map.box_bytes();
            (Some(Global::Tile(map, coordinates)), bytes, 128)
        } else {
            let bytes = ctx.read::<u32>(inst.b)[lane];
            let bytes = ctx.line_bytes(lane, bytes)?;
            let address = ctx.address_of(from, lane);
            let global = if e & kind::SHARED == 0 { Some(ctx.line(lane, address)?) } else { None };
            (global, bytes, 16)
        };
        let to = ctx.shared_range(lane, to, bytes, align, "bulk copy")?;
        let barrier = ctx.mbarrier_place(lane, barrier, true)?;
        let Some(global) = global else {
            let address = ctx.address_of(from, lane);
            let from = ctx.shared_range(lane, address, bytes, 16, "bulk read")?;
            return ctx.load(lane, Source::Shared(from), to, bytes, barrier);
        };
        if e & kind::MULTICAST == 0 {
            return ctx.load(lane, Source::Global(global, true), to, bytes, barrier);
        }
        let mask = ctx.read::<u32>(inst.c)[lane] & 0xffff;
        let blocks = ctx.cluster.blocks.len();
        if mask == 0 || mask >> blocks != 0 {
            let detail = format!("multicast to the blocks {mask:#x} of a cluster of {blocks}");
            return Err(ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail));
        }
        for rank in lanes_of(mask) {
            if rank != ctx.rank && ctx.cluster.blocks[rank].live == 0 {
                let detail = format!("multicast to the block of rank {rank}, which has exited");
                return Err(ctx.stop(FaultKind::OutOfBounds, 1 << lane, detail));
            }
            let source = Source::Global(global.clone(), rank == mask.trailing_zeros() as usize);
            ctx.load(lane, source, (rank, to.1), bytes, (rank, barrier.1))?;
        }
    }
    Ok(())
}

/// `cp.async.bulk{.tensor}` and `cp.reduce.async.bulk{.tensor}` to global memory: list `imm`, rank of the
/// tensor or 0 for a line in `d`, size of a line in `b`, 0 or one more than the number of a reduction in `e`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn store(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    for lane in lanes_of(ctx.exec) {
        // SAFETY: by the caller's contract.
        if let Err(flow) = unsafe { store_lane(ctx, inst, lane) } {
            return flow;
        }
    }
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`].
unsafe fn store_lane(ctx: &mut Ctx<'_>, inst: &Inst, lane: usize) -> Result<(), Flow> {
    let rank = inst.d;
    let list = ctx.list(inst.imm, 2 * ADDRESS + rank as usize);
    let (from, to) = list.split_at(ADDRESS);
    let mut reduce = inst.e.checked_sub(1).map(Reduction::number);
    // SAFETY: the decoder lists an address, then an address and the slots of coordinates; `b` is a slot of
    // 32-bit lanes.
    let (from, to, bytes, align) = unsafe {
        let from = ctx.address_of(from, lane);
        if rank > 0 {
            let (map, coordinates) = ctx.tile(to, rank, lane)?;
            let bytes = map.box_bytes();
            if let Some(reduction) = reduce {
                reduce = type_name(map.data_type).and_then(|ty| reduction.on(ty));
                if reduce.is_none() {
                    let detail = format!("this reduction of elements of type {:?}", map.data_type);
                    return Err(ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail));
                }
            }
            (from, Global::Tile(map, coordinates), bytes, 128)
        } else {
            let address = ctx.address_of(to, lane);
            let bytes = ctx.read::<u32>(inst.b)[lane];
            (from, ctx.line(lane, address)?, ctx.line_bytes(lane, bytes)?, 16)
        }
    };
    let from = ctx.shared_range(lane, from, bytes, align, "bulk read")?;
    let clock = ctx.warp.clock;
    ctx.warp.stores.issued += 1;
    let (_, number) = ctx.read_shared(lane, from, bytes, &clock)?;
    let group = ctx.warp.stores.committed[lane];
    ctx.warp.stores.open.push((lane as u8, group, number));
    ctx.issue(lane, Work::Store { from, bytes, to, reduce }, &clock, group)
}

/// `cp.async.bulk.prefetch{.tensor}.L2.global`: list `imm`, rank of the tensor or 0 for a line in `d`, size
/// of a line in `b`.
///
/// There is no L2 to fill, so that nothing is read: neither the wait for a predecessor nor initialisation is
/// asked for. A line that a copy could not have is a mistake all the same.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn prefetch(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    for lane in lanes_of(ctx.exec) {
        // SAFETY: by the caller's contract.
        if let Err(flow) = unsafe { prefetch_lane(ctx, inst, lane) } {
            return flow;
        }
    }
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`].
unsafe fn prefetch_lane(ctx: &mut Ctx<'_>, inst: &Inst, lane: usize) -> Result<(), Flow> {
    let list = ctx.list(inst.imm, ADDRESS + inst.d as usize);
    // SAFETY: the decoder lists an address and the slots of coordinates; `b` is a slot of 32-bit lanes where
    // it is used.
    let (address, bytes) = unsafe {
        if inst.d > 0 {
            // A box may hang over its tensor's edges.
            return ctx.tile(list, inst.d, lane).map(|_| ());
        }
        (ctx.address_of(list, lane), ctx.read::<u32>(inst.b)[lane])
    };
    ctx.line(lane, address)?;
    let bytes = u64::from(ctx.line_bytes(lane, bytes)?);
    if let Err((kind, detail)) = may_prefetch(ctx.env, address, bytes) {
        return Err(ctx.stop(kind, 1 << lane, detail));
    }
    let counters = &mut ctx.tally.counters;
    counters.l2_prefetch_bytes += bytes;
    let digest = prefetch_digest(address..address + bytes);
    counters.l2_prefetch_digest = counters.l2_prefetch_digest.wrapping_add(digest);
    Ok(())
}

/// The name that PTX has for the elements of a tensor.
fn type_name(ty: DataType) -> Option<&'static str> {
    Some(match ty {
        DataType::Uint8 | DataType::Uint16 => return None,
        DataType::Uint32 => "u32",
        DataType::Int32 => "s32",
        DataType::Uint64 => "u64",
        DataType::Int64 => "s64",
        DataType::Float16 => "f16",
        DataType::Float32 => "f32",
        DataType::Float64 => "f64",
        DataType::Bfloat16 => "bf16",
    })
}

/// `cp.async.bulk.commit_group`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn commit(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    for lane in lanes_of(ctx.exec) {
        ctx.warp.stores.committed[lane] += 1;
    }
    Flow::Next
}

/// `cp.async.bulk.wait_group{.read} imm`: `e` is 1 with `.read`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let (exec, committed, left) = (ctx.exec, ctx.warp.stores.committed, inst.imm);
    let covered = |lane: u8, group: u32| {
        exec >> lane & 1 != 0 && u64::from(group) + left < u64::from(committed[usize::from(lane)])
    };
    let (rank, warp) = (ctx.rank, ctx.warp.index);
    let forced = |operation: &Operation| {
        (operation.issuer.rank, operation.issuer.warp) == (rank, warp)
            && matches!(operation.work, Work::Store { .. })
            && covered(operation.issuer.lane, operation.group)
    };
    if let Err(failure) = ctx.surroundings().force(forced, inst.e != 0) {
        return ctx.failed(failure);
    }
    let stores = &mut ctx.warp.stores;
    stores.open.retain(|&(lane, group, _)| !covered(lane, group));
    let done = stores.open.iter().map(|&(.., number)| number - 1).min().unwrap_or(stores.issued);
    let agent = ctx.env.agents().bulk(rank, warp);
    ctx.warp.clock.reach(agent, done);
    Flow::Next
}

/// `st.async.mbarrier::complete_tx::bytes`: list `imm` holds the destination, the mbarrier, and the `d` slots
/// of the values, `e` bytes each.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn store_value(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let list = ctx.list(inst.imm, 2 * ADDRESS + inst.d as usize);
    let bytes = inst.d * inst.e;
    for lane in lanes_of(ctx.exec) {
        let mut value = Vec::new();
        // SAFETY: the decoder lists two addresses, then slots of lanes of `e` bytes.
        let (to, barrier) = unsafe {
            for slot in &list[2 * ADDRESS..] {
                match inst.e {
                    4 => value.extend(ctx.read::<u32>(*slot)[lane].to_le_bytes()),
                    _ => value.extend(ctx.read::<u64>(*slot)[lane].to_le_bytes()),
                }
            }
            (ctx.address_of(list, lane), ctx.address_of(&list[ADDRESS..], lane))
        };
        let issued = ctx.shared_range(lane, to, bytes, u64::from(bytes), "st.async").and_then(|to| {
            let barrier = ctx.mbarrier_place(lane, barrier, true)?;
            ctx.load(lane, Source::Value(value), to, bytes, barrier)
        });
        if let Err(flow) = issued {
            return flow;
        }
    }
    let agent = ctx.warp.agent;
    ctx.warp.clock.tick(agent);
    Flow::Next
}
