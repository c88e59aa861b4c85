//! Addresses: windows of the generic address space, and the lanes' addresses of an instruction.
//!
//! ```text
//!   generic address                        is
//!   0x1000_0000_0000 .. 0x7000_0000_0000   global memory, at the same address
//!   PARAM .. + 4 GiB                       kernel parameters
//!   LOCAL .. + 4 GiB                       local memory of the thread
//!   SHARED .. + 4 GiB                      shared memory; bits 24.. are 1 + rank in the cluster, or 0
//! ```

use super::{Ctx, Flow, Inst, Mask, lanes_of};
use crate::fault::FaultKind;
use crate::state::race::{Clock, Released};

/// Start of the window of kernel parameters.
pub(crate) const PARAM: u64 = 0x7c00_0000_0000;
/// Start of the window of local memory.
pub(crate) const LOCAL: u64 = 0x7d00_0000_0000;
/// Start of the window of shared memory.
pub(crate) const SHARED: u64 = 0x7e00_0000_0000;
/// Size of these windows.
pub(crate) const WINDOW: u64 = 1 << 32;

/// Flags of memory instructions, in `inst.target`.
pub(crate) mod flag {
    /// The address register has 32 bits.
    pub const NARROW: u32 = 1;
    /// `.volatile`, `.relaxed`, `.acquire`, `.release`, atomic: may race with its like.
    pub const STRONG: u32 = 2;
    /// What the location was released with is learnt.
    pub const ACQUIRE: u32 = 4;
    /// What is known is left at the location.
    pub const RELEASE: u32 = 8;
    /// The destination of an atomic operation is wanted.
    pub const RESULT: u32 = 16;
    /// The scope is a block or a cluster: nothing is ordered for other clusters.
    pub const NEAR: u32 = 32;
}

/// A state space that data instructions can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Global,
    Shared,
    Local,
    Param,
}

/// The window of a generic address, and the address in it.
#[inline(always)]
pub(crate) fn window_of(address: u64) -> (Window, u64) {
    if address < PARAM || address >= SHARED + WINDOW {
        (Window::Global, address)
    } else if address >= SHARED {
        (Window::Shared, address - SHARED)
    } else if address >= LOCAL {
        (Window::Local, address - LOCAL)
    } else {
        (Window::Param, address - PARAM)
    }
}

/// The address of every lane: slot `a` plus the immediate.
///
/// # Safety
/// `inst.a` is a slot of 64-bit lanes, or of 32-bit lanes with [`flag::NARROW`].
#[inline(always)]
pub(crate) unsafe fn addresses(ctx: &Ctx<'_>, inst: &Inst) -> [u64; 32] {
    // Loops rather than `map`, which is not inlined and then not vectorised.
    let mut at = [0; 32];
    // SAFETY: by the caller's contract.
    unsafe {
        if inst.target & flag::NARROW != 0 {
            let base = ctx.read::<u32>(inst.a);
            for lane in 0..32 {
                at[lane] = u64::from(base[lane].wrapping_add(inst.imm as u32));
            }
        } else {
            let base = ctx.read::<u64>(inst.a);
            for lane in 0..32 {
                at[lane] = base[lane].wrapping_add(inst.imm);
            }
        }
    }
    at
}

/// Carries an instruction on generic addresses out window by window: `f` gets the addresses within the
/// window, with `ctx.exec` set to the lanes concerned.
#[inline(always)]
pub(crate) fn by_window(
    ctx: &mut Ctx<'_>,
    addresses: &[u64; 32],
    mut f: impl FnMut(&mut Ctx<'_>, Window, &[u64; 32]) -> Flow,
) -> Flow {
    let mut elsewhere = 0;
    for (lane, address) in addresses.iter().enumerate() {
        elsewhere |= u32::from(window_of(*address).0 != Window::Global) << lane;
    }
    if elsewhere & ctx.exec == 0 {
        return f(ctx, Window::Global, addresses);
    }
    let all = ctx.exec;
    for window in [Window::Global, Window::Shared, Window::Local, Window::Param] {
        let mut within = [0; 32];
        let mut lanes: Mask = 0;
        for lane in lanes_of(all) {
            let (found, address) = window_of(addresses[lane]);
            if found == window {
                within[lane] = address;
                lanes |= 1 << lane;
            }
        }
        if lanes != 0 {
            ctx.exec = lanes;
            let flow = f(ctx, window, &within);
            // Who only looks goes on with the other windows.
            if !matches!(flow, Flow::Next | Flow::Yield) {
                return flow;
            }
        }
    }
    ctx.exec = all;
    Flow::Next
}

impl Ctx<'_> {
    /// Ends the launch because of misaligned addresses, if there are any.
    pub fn misaligned(&mut self, addresses: &[u64; 32], bytes: u32, what: &str) -> Option<Flow> {
        let off = |lane: &usize| !addresses[*lane].is_multiple_of(u64::from(bytes));
        let lanes: Mask = lanes_of(self.exec).filter(off).fold(0, |m, lane| m | 1 << lane);
        if lanes == 0 {
            return None;
        }
        let address = addresses[lanes.trailing_zeros() as usize];
        let detail = format!("{bytes}-byte {what} at {address:#x}, which is not a multiple of {bytes}");
        Some(self.stop(FaultKind::Misaligned, lanes, detail))
    }

    /// One name for a location, whichever way it is addressed: an address of global memory, or of shared
    /// memory (`base` is then [`SHARED`]).
    fn location(&self, address: u64, base: u64) -> u64 {
        match address >> 24 {
            0 if base == SHARED => base | (self.rank as u64 + 1) << 24 | address,
            _ => base + address,
        }
    }

    /// A write to these generic addresses is about to happen: leave what it releases.
    pub fn release(&mut self, inst: &Inst, addresses: &[u64; 32], base: u64) {
        if inst.target & flag::STRONG == 0 {
            return;
        }
        let warp = &mut self.warp;
        let released = if inst.target & flag::RELEASE != 0 {
            let clock = warp.clock;
            warp.clock.tick(warp.agent);
            Some(clock)
        } else {
            warp.fenced
        };
        self.release_to_grid(inst, addresses, base, released);
        let Some(clock) = released else { return };
        for lane in lanes_of(self.exec) {
            let entry = self.cluster.released.entry(self.location(addresses[lane], base));
            entry.or_insert(Released { clock: Clock::ZERO }).clock.join(&clock);
        }
    }

    /// A read of these generic addresses has happened: learn what was released there.
    pub fn acquire(&mut self, inst: &Inst, addresses: &[u64; 32], base: u64) {
        if inst.target & flag::STRONG == 0 {
            return;
        }
        self.acquire_from_grid(inst, addresses, base);
        if self.cluster.released.is_empty() {
            return;
        }
        for lane in lanes_of(self.exec) {
            if let Some(released) = self.cluster.released.get(&self.location(addresses[lane], base)) {
                self.warp.seen.join(&released.clock);
            }
        }
        if inst.target & flag::ACQUIRE != 0 {
            let seen = self.warp.seen;
            self.warp.clock.join(&seen);
        }
    }
}
