//! Talking across the 32 lanes of a warp: shuffles, votes, match, reductions.
//!
//! All are convergent LLVM intrinsics (see [`crate::sync`] for why). `mask` names the lanes that take part:
//! the calling lane is one of them, and all of them execute the same call with the same `mask`. A shuffle
//! that reads a lane outside `mask` yields an undefined value.
//!
//! PTX ISA, `shfl.sync`, `vote.sync`, `match.sync`, `redux.sync`, `elect.sync`, `activemask`.

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_bfly(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn shfl_up_i32(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    fn shfl_down_i32(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_idx_i32(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    fn vote_all(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn match_any_i32(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i64"]
    fn match_any_i64(mask: u32, value: u64) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn redux_add(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn redux_umin(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.min"]
    fn redux_min(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.max"]
    fn redux_max(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.or"]
    fn redux_or(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.and"]
    fn redux_and(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.activemask"]
    fn nvvm_activemask() -> u32;
}

/// All 32 lanes.
pub const FULL_MASK: u32 = u32::MAX;

/// A value that fits one 32-bit register, so that `shfl.sync` can carry it.
pub trait Lane: Copy {
    /// The bits, as the register holds them.
    fn to_lane(self) -> u32;
    /// The value whose bits these are.
    fn from_lane(bits: u32) -> Self;
}

impl Lane for u32 {
    #[inline(always)]
    fn to_lane(self) -> u32 {
        self
    }
    #[inline(always)]
    fn from_lane(bits: u32) -> Self {
        bits
    }
}

impl Lane for i32 {
    #[inline(always)]
    fn to_lane(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn from_lane(bits: u32) -> Self {
        bits as i32
    }
}

impl Lane for f32 {
    #[inline(always)]
    fn to_lane(self) -> u32 {
        self.to_bits()
    }
    #[inline(always)]
    fn from_lane(bits: u32) -> Self {
        f32::from_bits(bits)
    }
}

/// The value of lane `lane_id ^ lane_mask`: `shfl.sync.bfly.b32`.
#[inline(always)]
pub fn shfl_xor<T: Lane>(mask: u32, value: T, lane_mask: u32) -> T {
    // SAFETY: a shuffle touches registers only; that the lanes of `mask` arrive together is the contract of
    // the module.
    T::from_lane(unsafe { shfl_bfly(mask, value.to_lane(), lane_mask, 31) })
}

/// The value of lane `lane_id - delta`, or the lane's own where there is none: `shfl.sync.up.b32`.
#[inline(always)]
pub fn shfl_up<T: Lane>(mask: u32, value: T, delta: u32) -> T {
    // SAFETY: as `shfl_xor`.
    T::from_lane(unsafe { shfl_up_i32(mask, value.to_lane(), delta, 0) })
}

/// The value of lane `lane_id + delta`, or the lane's own where there is none: `shfl.sync.down.b32`.
#[inline(always)]
pub fn shfl_down<T: Lane>(mask: u32, value: T, delta: u32) -> T {
    // SAFETY: as `shfl_xor`.
    T::from_lane(unsafe { shfl_down_i32(mask, value.to_lane(), delta, 31) })
}

/// The value of lane `lane` (modulo 32): `shfl.sync.idx.b32`.
#[inline(always)]
pub fn shfl_idx<T: Lane>(mask: u32, value: T, lane: u32) -> T {
    // SAFETY: as `shfl_xor`.
    T::from_lane(unsafe { shfl_idx_i32(mask, value.to_lane(), lane, 31) })
}

/// Bit `i` of the result says whether `predicate` holds in lane `i` of `mask`: `vote.sync.ballot.b32`.
#[inline(always)]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { vote_ballot(mask, predicate) }
}

/// Whether `predicate` holds in any lane of `mask`: `vote.sync.any.pred`.
#[inline(always)]
pub fn any(mask: u32, predicate: bool) -> bool {
    // SAFETY: as `shfl_xor`.
    unsafe { vote_any(mask, predicate) }
}

/// Whether `predicate` holds in all lanes of `mask`: `vote.sync.all.pred`.
#[inline(always)]
pub fn all(mask: u32, predicate: bool) -> bool {
    // SAFETY: as `shfl_xor`.
    unsafe { vote_all(mask, predicate) }
}

/// The lanes of `mask` that hold the same 32 bits as this one: `match.any.sync.b32`.
#[inline(always)]
pub fn match_any<T: Lane>(mask: u32, value: T) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { match_any_i32(mask, value.to_lane()) }
}

/// The lanes of `mask` that hold the same 64 bits as this one: `match.any.sync.b64`.
#[inline(always)]
pub fn match_any_u64(mask: u32, value: u64) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { match_any_i64(mask, value) }
}

/// The lanes that execute this call at this moment: `activemask.b32`. A hint, not a synchronisation.
#[inline(always)]
pub fn active_mask() -> u32 {
    // SAFETY: reads which lanes are active.
    unsafe { nvvm_activemask() }
}

/// Whether this is the one lane that the hardware picks: `elect.sync` of all 32 lanes. What is behind it runs
/// in one thread, and the assembler knows that, so that it need not look for more threads at instructions
/// that take uniform registers, as bulk copies do. All 32 lanes call it together.
#[inline(always)]
pub fn elect() -> bool {
    let is_elected: u32;
    // SAFETY: reads which lane is picked. Where a caller has all lanes together, a copy of this code has too.
    unsafe {
        core::arch::asm!(
            "{{",
            ".reg .pred elected;",
            "elect.sync _|elected, 0xffffffff;",
            "selp.u32 {is_elected}, 1, 0, elected;",
            "}}",
            is_elected = out(reg32) is_elected,
            options(nostack)
        );
    }
    is_elected != 0
}

/// One lane of `mask`, the same in all of them: its lowest.
#[inline(always)]
pub fn first_lane(mask: u32) -> u32 {
    mask.trailing_zeros()
}

/// Sum over the lanes of `mask`, modulo 2^32, in all of them: `redux.sync.add.s32`.
#[inline(always)]
pub fn reduce_add_u32(mask: u32, value: u32) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_add(value, mask) }
}

/// Minimum over the lanes of `mask`: `redux.sync.min.u32`.
#[inline(always)]
pub fn reduce_min_u32(mask: u32, value: u32) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_umin(value, mask) }
}

/// Maximum over the lanes of `mask`: `redux.sync.max.u32`.
#[inline(always)]
pub fn reduce_max_u32(mask: u32, value: u32) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_umax(value, mask) }
}

/// Minimum over the lanes of `mask`: `redux.sync.min.s32`.
#[inline(always)]
pub fn reduce_min_i32(mask: u32, value: i32) -> i32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_min(value, mask) }
}

/// Maximum over the lanes of `mask`: `redux.sync.max.s32`.
#[inline(always)]
pub fn reduce_max_i32(mask: u32, value: i32) -> i32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_max(value, mask) }
}

/// Bitwise or over the lanes of `mask`: `redux.sync.or.b32`.
#[inline(always)]
pub fn reduce_or(mask: u32, value: u32) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_or(value, mask) }
}

/// Bitwise and over the lanes of `mask`: `redux.sync.and.b32`.
#[inline(always)]
pub fn reduce_and(mask: u32, value: u32) -> u32 {
    // SAFETY: as `shfl_xor`.
    unsafe { redux_and(value, mask) }
}

/// Combines the values of all 32 lanes with `op` in a butterfly; every lane gets the result.
///
/// Five `shfl.sync.bfly.b32`. `op` is commutative; then all lanes get the same bits, since a butterfly pairs
/// the same operands in every lane. All 32 lanes take part.
#[inline(always)]
pub fn reduce<T: Lane>(value: T, op: impl Fn(T, T) -> T) -> T {
    reduce_groups::<T, 32>(value, op)
}

/// As [`reduce`], within each aligned group of `LANES` lanes (a power of two up to 32). All 32 lanes take
/// part.
#[inline(always)]
pub fn reduce_groups<T: Lane, const LANES: u32>(value: T, op: impl Fn(T, T) -> T) -> T {
    const {
        assert!(
            LANES.is_power_of_two() && LANES <= 32,
            "a warp splits into groups of 1, 2, 4, 8, 16 or 32 lanes"
        )
    };
    let mut value = value;
    let mut step = LANES / 2;
    while step > 0 {
        value = op(value, shfl_xor(FULL_MASK, value, step));
        step /= 2;
    }
    value
}

/// Sum over all 32 lanes, the same bits in every lane.
#[inline(always)]
pub fn reduce_add_f32(value: f32) -> f32 {
    reduce(value, |a, b| a + b)
}

/// Maximum over all 32 lanes; NaN loses to any number.
#[inline(always)]
pub fn reduce_max_f32(value: f32) -> f32 {
    reduce(value, f32::max)
}

/// Minimum over all 32 lanes; NaN loses to any number.
#[inline(always)]
pub fn reduce_min_f32(value: f32) -> f32 {
    reduce(value, f32::min)
}

/// Sum of `value` over the lanes up to and including this one. All 32 lanes take part.
///
/// Five `shfl.sync.up.b32`: the scan of Hillis and Steele.
#[inline(always)]
pub fn inclusive_scan_add(value: u32) -> u32 {
    let lane = crate::thread::lane_id();
    let mut sum = value;
    let mut step = 1;
    while step < 32 {
        let below = shfl_up(FULL_MASK, sum, step);
        if lane >= step {
            sum += below;
        }
        step *= 2;
    }
    sum
}
