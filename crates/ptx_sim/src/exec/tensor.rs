//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync` (ISA "Warp-level Matrix Instructions"). The fragment
//! layouts and the arithmetic are in [`crate::ldmatrix`] and [`crate::mma`].

use std::marker::PhantomData;

use super::address::{addresses, flag};
use super::lanes::{Body, handler, instance};
use super::shared::{bank_conflicts, block_of};
use super::{Ctx, FULL, Flow, Handler, Inst, slot_list};
use crate::fault::FaultKind;
use crate::ldmatrix::{Rows, address_lane, collect, collect_transposed, distribute, distribute_transposed};
use crate::mma::{self, Lanes, Operand, TensorCores};

impl Ctx<'_> {
    /// Whether all 32 lanes are here, as warp-wide matrix instructions demand.
    #[inline(always)]
    fn whole_warp(&mut self) -> Result<(), Flow> {
        if self.exec == FULL {
            return Ok(());
        }
        if self.exec != self.warp.live {
            return Err(Flow::Meet);
        }
        let detail = format!("a matrix instruction needs 32 lanes; only {:#010x} exist", self.exec);
        Err(self.stop(FaultKind::Divergent, 0, detail))
    }
}

/// `ldmatrix.sync.aligned.m8n8.x{1,2,4}{.trans}.shared.b16`: `e` registers in list `b`, address in `a`;
/// `.trans` if `c` is not zero.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn load_matrix(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.whole_warp() {
        return flow;
    }
    // SAFETY: the decoder gives an address slot.
    let at = unsafe { shared_addresses(ctx, inst) };
    let now = ctx.access(false);
    for (matrix, slot) in slot_list(ctx, inst).iter().enumerate() {
        let mut rows: Rows = [[0; 4]; 8];
        for (row, words) in rows.iter_mut().enumerate() {
            let lane = address_lane(matrix, row);
            let address = at[lane];
            let Some((rank, within)) = block_of(ctx, address) else {
                return ctx.bad_shared(lane, address, 16, "matrix load");
            };
            let shared = &mut ctx.cluster.blocks[rank].shared;
            if address & 15 != 0 || !shared.contains(within, 16) {
                return ctx.bad_shared(lane, address, 16, "matrix load");
            }
            if let Err(hazard) = shared.note_read(within, 16, now, &ctx.warp.clock) {
                return ctx.hazard(hazard, lane, address, 16, "matrix load");
            }
            for (word, bytes) in words.iter_mut().zip(shared.slice(within, 16).chunks_exact(4)) {
                *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        let lanes = if inst.c != 0 { distribute_transposed(&rows) } else { distribute(&rows) };
        // SAFETY: the decoder lists slots of 32-bit lanes.
        unsafe { ctx.write(*slot, &lanes) };
    }
    let lanes = if inst.e == 4 { FULL } else { (1 << (8 * inst.e)) - 1 };
    ctx.tally.counters.shared_bank_conflicts += bank_conflicts(lanes, &at, 16);
    Flow::Next
}

/// Shared addresses, also when they come as generic ones.
///
/// # Safety
/// As for [`addresses`].
#[inline(always)]
unsafe fn shared_addresses(ctx: &Ctx<'_>, inst: &Inst) -> [u64; 32] {
    // SAFETY: by the caller's contract.
    let at = unsafe { addresses(ctx, inst) };
    if inst.target & flag::NARROW != 0 { at } else { at.map(|a| super::address::window_of(a).1) }
}

/// `stmatrix`: as [`load_matrix`], from registers to memory.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn store_matrix(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.whole_warp() {
        return flow;
    }
    // SAFETY: the decoder gives an address slot.
    let at = unsafe { shared_addresses(ctx, inst) };
    let now = ctx.access(false);
    for (matrix, slot) in slot_list(ctx, inst).iter().enumerate() {
        // SAFETY: the decoder lists slots of 32-bit lanes.
        let lanes = unsafe { ctx.read::<u32>(*slot) };
        let rows = if inst.c != 0 { collect_transposed(&lanes) } else { collect(&lanes) };
        for (row, words) in rows.iter().enumerate() {
            let lane = address_lane(matrix, row);
            let address = at[lane];
            let Some((rank, within)) = block_of(ctx, address) else {
                return ctx.bad_shared(lane, address, 16, "matrix store");
            };
            let shared = &mut ctx.cluster.blocks[rank].shared;
            if address & 15 != 0 || !shared.contains(within, 16) {
                return ctx.bad_shared(lane, address, 16, "matrix store");
            }
            if let Err(hazard) = shared.note_write(within, 16, now, &ctx.warp.clock) {
                return ctx.hazard(hazard, lane, address, 16, "matrix store");
            }
            for (word, value) in words.iter().enumerate() {
                shared.set(within + 4 * word as u64, &value.to_le_bytes());
            }
        }
    }
    let lanes = if inst.e == 4 { FULL } else { (1 << (8 * inst.e)) - 1 };
    ctx.tally.counters.shared_bank_conflicts += bank_conflicts(lanes, &at, 16);
    Flow::Next
}

/// `movmatrix.sync.aligned.m8n8.trans.b16 d, a`.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn move_matrix(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.whole_warp() {
        return flow;
    }
    // SAFETY: the decoder gives slots of 32-bit lanes.
    unsafe {
        let rows = collect(&ctx.read::<u32>(inst.a));
        ctx.write(inst.d, &distribute_transposed(&rows));
    }
    Flow::Next
}

/// Which sums `mma.sync` forms, and on which GPU.
pub(crate) struct Sums {
    tensor_cores: TensorCores,
    capability: (u32, u32),
}

impl Sums {
    /// `mma.sync.m16n8k32` on FP8.
    pub fn m16n8k32(
        &self,
        types: (Operand, Operand),
        a: &[Lanes; 4],
        b: &[Lanes; 2],
        c: &[Lanes; 4],
    ) -> [Lanes; 4] {
        match self.tensor_cores.mma(types, self.capability) {
            Some(model) => mma::m16n8k32_truncated(model, types, a, b, c),
            None => mma::m16n8k32(types.0, types.1, a, b, c),
        }
    }
}

struct Multiply<const NA: usize, const NB: usize, const NC: usize, F>(PhantomData<F>);

impl<const NA: usize, const NB: usize, const NC: usize, F> Body for Multiply<NA, NB, NC, F>
where
    F: Fn(&Sums, &[Lanes; NA], &[Lanes; NB], &[Lanes; NC]) -> [Lanes; NC] + Copy,
{
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        if let Err(flow) = ctx.whole_warp() {
            return flow;
        }
        let f: F = instance();
        let slots = ctx.list(inst.imm, NC + NA + NB + NC);
        let sums = Sums { tensor_cores: ctx.env.tensor_cores, capability: ctx.env.capability };
        // SAFETY: the decoder lists slots of 32-bit lanes.
        unsafe {
            let a = std::array::from_fn(|i| ctx.read::<u32>(slots[NC + i]));
            let b = std::array::from_fn(|i| ctx.read::<u32>(slots[NC + NA + i]));
            let c = std::array::from_fn(|i| ctx.read::<u32>(slots[NC + NA + NB + i]));
            for (slot, lanes) in slots.iter().zip(f(&sums, &a, &b, &c)) {
                ctx.write(*slot, &lanes);
            }
        }
        ctx.tally.counters.tensor_flops += u64::from(inst.b);
        Flow::Next
    }
}

/// `mma.sync`: list `imm` holds the slots of D, A, B and C; `b` is the number of floating-point operations.
pub(crate) fn multiply<const NA: usize, const NB: usize, const NC: usize, F>(_: F) -> Handler
where
    F: Fn(&Sums, &[Lanes; NA], &[Lanes; NB], &[Lanes; NC]) -> [Lanes; NC] + Copy,
{
    handler::<Multiply<NA, NB, NC, F>>()
}
