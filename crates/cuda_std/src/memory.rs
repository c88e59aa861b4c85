//! Global memory beyond plain loads and stores: 8 and 16 bytes at once, the read-only path, cache hints,
//! lines that are not needed any more, fences.
//!
//! A Rust load through a kernel argument already is `ld.global`; what it cannot say is the width, the cache
//! policy, or that nobody writes the data while the grid runs. Those are here. All addresses are generic
//! pointers into global memory and a multiple of the access's size.
//!
//! PTX ISA, `ld`, `ld.global.nc`, `st`, `prefetch`, `discard`, `fence`.

use core::arch::asm;

use crate::l2::Policy;

/// The path of a load through the caches, as a const parameter of [`Vector::load`].
mod path {
    pub const COHERENT: u32 = 0;
    pub const READ_ONLY: u32 = 1;
    pub const READ_ONLY_STREAMING: u32 = 2;
    pub const STRONG: u32 = 3;
}

/// Loads through L1 and L2: `ld.global`.
///
/// # Safety
/// The pointer is to readable global memory and a multiple of the size of `V`.
#[inline(always)]
pub unsafe fn load<V: Vector>(pointer: *const V) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::load::<{ path::COHERENT }>(pointer) }
}

/// Loads through the read-only path what nobody writes while the grid runs: `ld.global.nc`.
///
/// # Safety
/// As [`load`], and no thread of any running grid writes the data.
#[inline(always)]
pub unsafe fn load_nc<V: Vector>(pointer: *const V) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::load::<{ path::READ_ONLY }>(pointer) }
}

/// As [`load_nc`], for data that is read once and should leave L1 to others: `ld.global.nc.L1::no_allocate`.
///
/// # Safety
/// As [`load_nc`].
#[inline(always)]
pub unsafe fn load_nc_streaming<V: Vector>(pointer: *const V) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::load::<{ path::READ_ONLY_STREAMING }>(pointer) }
}

/// As [`load_nc`], with a hint to L2: `ld.global.nc.L2::cache_hint`.
///
/// # Safety
/// As [`load_nc`].
#[inline(always)]
pub unsafe fn load_nc_hinted<V: Vector>(pointer: *const V, policy: Policy) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::load_nc_hinted(pointer, policy) }
}

/// Loads from L2, whatever an earlier kernel has left in L1: `ld.relaxed.gpu.global`.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub unsafe fn load_strong<V: Vector>(pointer: *const V) -> V {
    // SAFETY: the caller's contract.
    unsafe { V::load::<{ path::STRONG }>(pointer) }
}

/// Stores: `st.global`.
///
/// # Safety
/// The pointer is to writable global memory and a multiple of the size of `V`.
#[inline(always)]
pub unsafe fn store<V: Vector>(pointer: *mut V, value: V) {
    // SAFETY: the caller's contract.
    unsafe { value.store::<false>(pointer) }
}

/// Stores data that is not read again soon, first to be evicted: `st.global.cs`.
///
/// # Safety
/// As [`store`].
#[inline(always)]
pub unsafe fn store_streaming<V: Vector>(pointer: *mut V, value: V) {
    // SAFETY: the caller's contract.
    unsafe { value.store::<true>(pointer) }
}

/// What one global-memory instruction moves: a register, or a vector of two or four.
pub trait Vector: Copy {
    /// The load that the functions of this module instantiate.
    ///
    /// # Safety
    /// As [`load`], or [`load_nc`] for the read-only paths.
    unsafe fn load<const PATH: u32>(pointer: *const Self) -> Self;
    /// What the function [`load_nc_hinted`] does.
    ///
    /// # Safety
    /// As [`load_nc`].
    unsafe fn load_nc_hinted(pointer: *const Self, policy: Policy) -> Self;
    /// The store that the functions of this module instantiate.
    ///
    /// # Safety
    /// As [`store`].
    unsafe fn store<const STREAMING: bool>(self, pointer: *mut Self);
}

macro_rules! vector {
    ($($ty:ty, $class:ident as $lane:ty, $suffix:literal, $operands:literal, ($($name:ident = $from:expr),+), $self:ident => $make:expr;)+) => {$(
        impl Vector for $ty {
            #[inline(always)]
            unsafe fn load<const PATH: u32>(pointer: *const Self) -> Self {
                $(let $name: $lane;)+
                // SAFETY: the caller vouches for the address. `readonly`: the load stays between the writes
                // around it.
                unsafe {
                    match PATH {
                        path::COHERENT => vector!(@load "ld.global.", $suffix, $operands, $class, pointer, $($name)+),
                        path::READ_ONLY => vector!(@load "ld.global.nc.", $suffix, $operands, $class, pointer, $($name)+),
                        path::STRONG => vector!(@load "ld.relaxed.gpu.global.", $suffix, $operands, $class, pointer, $($name)+),
                        _ => vector!(@load "ld.global.nc.L1::no_allocate.", $suffix, $operands, $class, pointer, $($name)+),
                    }
                }
                $make
            }

            #[inline(always)]
            unsafe fn load_nc_hinted(pointer: *const Self, policy: Policy) -> Self {
                $(let $name: $lane;)+
                // SAFETY: as in `load`.
                unsafe {
                    asm!(
                        "cvta.to.global.u64 {address}, {pointer};",
                        concat!("ld.global.nc.L2::cache_hint.", $suffix, " ", $operands, ", [{address}], {policy};"),
                        $($name = out($class) $name,)+
                        address = out(reg64) _,
                        pointer = in(reg64) pointer,
                        policy = in(reg64) policy.operand(),
                        options(pure, readonly, nostack, preserves_flags),
                    )
                }
                $make
            }

            #[inline(always)]
            unsafe fn store<const STREAMING: bool>($self, pointer: *mut Self) {
                // SAFETY: the caller vouches for the address.
                unsafe {
                    if STREAMING {
                        vector!(@store "st.global.cs.", $suffix, $operands, $class, $lane, pointer, $($name = $from),+)
                    } else {
                        vector!(@store "st.global.", $suffix, $operands, $class, $lane, pointer, $($name = $from),+)
                    }
                }
            }
        }
    )+};
    (@load $opcode:literal, $suffix:literal, $operands:literal, $class:ident, $pointer:ident, $($name:ident)+) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!($opcode, $suffix, " ", $operands, ", [{address}];"),
            $($name = out($class) $name,)+
            address = out(reg64) _,
            pointer = in(reg64) $pointer,
            options(pure, readonly, nostack, preserves_flags),
        )
    };
    (@store $opcode:literal, $suffix:literal, $operands:literal, $class:ident, $lane:ty, $pointer:ident, $($name:ident = $from:expr),+) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!($opcode, $suffix, " [{address}], ", $operands, ";"),
            $($name = in($class) $from,)+
            address = out(reg64) _,
            pointer = in(reg64) $pointer,
            options(nostack, preserves_flags),
        )
    };
}

vector! {
    u8, reg16 as u16, "u8", "{a}", (a = self as u16), self => a as u8;
    u16, reg16 as u16, "u16", "{a}", (a = self), self => a;
    u32, reg32 as u32, "b32", "{a}", (a = self), self => a;
    i32, reg32 as i32, "b32", "{a}", (a = self), self => a;
    f32, reg32 as f32, "b32", "{a}", (a = self), self => a;
    u64, reg64 as u64, "b64", "{a}", (a = self), self => a;
    i64, reg64 as i64, "b64", "{a}", (a = self), self => a;
    [u32; 2], reg32 as u32, "v2.b32", "{{{a}, {b}}}", (a = self[0], b = self[1]), self => [a, b];
    [f32; 2], reg32 as f32, "v2.b32", "{{{a}, {b}}}", (a = self[0], b = self[1]), self => [a, b];
    [u32; 4], reg32 as u32, "v4.b32", "{{{a}, {b}, {c}, {d}}}", (a = self[0], b = self[1], c = self[2], d = self[3]), self => [a, b, c, d];
    [i32; 4], reg32 as i32, "v4.b32", "{{{a}, {b}, {c}, {d}}}", (a = self[0], b = self[1], c = self[2], d = self[3]), self => [a, b, c, d];
    [f32; 4], reg32 as f32, "v4.b32", "{{{a}, {b}, {c}, {d}}}", (a = self[0], b = self[1], c = self[2], d = self[3]), self => [a, b, c, d];
}

/// Brings the line of `pointer` into L2: `prefetch.global.L2`. Any address is allowed.
#[inline(always)]
pub fn prefetch_l2<T>(pointer: *const T) {
    // SAFETY: a prefetch reads nothing that the program sees and does not fault.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            "prefetch.global.L2 [{address}];",
            address = out(reg64) _,
            pointer = in(reg64) pointer,
            options(nostack, preserves_flags),
        );
    }
}

/// Bytes of a line of L2, as [`discard_line`] takes it.
pub const LINE: usize = 128;

/// Says that nobody needs the 128 bytes at `line` any more: `discard.global.L2`.
///
/// L2 drops what it holds of them. What was written and lies there alone is not carried to device memory,
/// which it would be sooner or later although nobody reads it again.
///
/// ```text
///   all lanes load ── sync::warp ── one lane discards ── ..      nobody reads, until somebody writes
/// ```
///
/// # Safety
/// It counts as a write of all 128 bytes, of a value that may be another at each look:
/// - `line` is a multiple of 128, and the address of as many bytes of writable global memory.
/// - No other thread accesses them without order to this. Who has read them, before, has met the caller since
///   ([`sync::warp`](crate::sync::warp) for the lanes of a warp), and read them by other loads than those of
///   the read-only path ([`load_nc`]), which may come later than they stand.
/// - Nobody reads a byte of them before it is written anew.
#[inline(always)]
pub unsafe fn discard_line(line: *mut u8) {
    // SAFETY: the caller's contract. Without `nomem` it stays behind the loads and stores before it.
    unsafe {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            "discard.global.L2 [{address}], 128;",
            address = out(reg64) _,
            pointer = in(reg64) line,
            options(nostack, preserves_flags),
        );
    }
}

/// Orders this thread's accesses before it and after it, as the other threads of the block see them:
/// `fence.acq_rel.cta`.
#[inline(always)]
pub fn fence_block() {
    // SAFETY: only orders.
    unsafe { asm!("fence.acq_rel.cta;", options(nostack, preserves_flags)) }
}

/// As [`fence_block`], for all threads of the GPU: `fence.acq_rel.gpu`.
#[inline(always)]
pub fn fence_gpu() {
    // SAFETY: only orders.
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags)) }
}

/// As [`fence_block`], for the whole system, the host included: `fence.acq_rel.sys`.
#[inline(always)]
pub fn fence_system() {
    // SAFETY: only orders.
    unsafe { asm!("fence.acq_rel.sys;", options(nostack, preserves_flags)) }
}
