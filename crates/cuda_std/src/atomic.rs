//! Atomics on global and shared memory, with an explicit order and scope.
//!
//! | function | `u32` | `i32` | `u64` | `f32` | PTX |
//! |---|---|---|---|---|---|
//! | [`add`] | x | x | x | x | `atom.add` |
//! | [`min`], [`max`] | x | x | x | | `atom.min`, `atom.max` |
//! | [`or`], [`and`] | x | | | | `atom.or`, `atom.and` |
//! | [`exchange`], [`compare_exchange`] | x | x | x | | `atom.exch`, `atom.cas` |
//! | [`load`], [`store`] | x | x | x | x | `ld`/`st` with `.relaxed`, `.acquire`, `.release` |
//! | [`reduce_add`] | | | | x, also two or four | `red.relaxed.add` |
//!
//! Pointers are generic pointers into *global* memory, or [`Shared`] pointers. Orders are those of the
//! PTX memory model: [`Order::Relaxed`] makes the operation atomic and orders nothing else; a release by one
//! thread that an acquire of another observes makes what came before visible to what comes after. The scope
//! says which threads take part. Both arguments are constants at every call, so that one instruction remains
//! after inlining.
//!
//! An unused result makes ptxas emit `RED`, which does not wait for the old value.
//!
//! PTX ISA, `atom`, `red`, "Memory Consistency Model".

use core::arch::asm;

use crate::shared::Shared;

/// What else the atomic operation orders.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing: `.relaxed`.
    Relaxed,
    /// Later accesses stay behind it: `.acquire`.
    Acquire,
    /// Earlier accesses stay before it: `.release`.
    Release,
    /// Both: `.acq_rel`.
    AcqRel,
}

/// Among which threads the operation is atomic and ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The threads of the block: `.cta`.
    Block,
    /// All threads on the GPU: `.gpu`.
    Gpu,
}

/// What an atomic operates on: `*mut T` into global memory, or [`Shared<T>`].
pub trait Place: Copy {
    /// The type of the value there.
    type Value: Copy;
}

impl<T: Copy> Place for *mut T {
    type Value = T;
}

impl<T: Copy> Place for Shared<T> {
    type Value = T;
}

/// Expands `$emit!` once for each order and scope; the arguments are constants, so one arm remains.
macro_rules! select {
    ($order:ident, $scope:ident, $emit:ident, $($argument:tt)*) => {
        match ($order, $scope) {
            (Order::Relaxed, Scope::Block) => $emit!(".relaxed.cta", $($argument)*),
            (Order::Relaxed, Scope::Gpu) => $emit!(".relaxed.gpu", $($argument)*),
            (Order::Acquire, Scope::Block) => $emit!(".acquire.cta", $($argument)*),
            (Order::Acquire, Scope::Gpu) => $emit!(".acquire.gpu", $($argument)*),
            (Order::Release, Scope::Block) => $emit!(".release.cta", $($argument)*),
            (Order::Release, Scope::Gpu) => $emit!(".release.gpu", $($argument)*),
            (Order::AcqRel, Scope::Block) => $emit!(".acq_rel.cta", $($argument)*),
            (Order::AcqRel, Scope::Gpu) => $emit!(".acq_rel.gpu", $($argument)*),
        }
    };
}

/// `atom.. old, [global], value` and, with a second value, `atom.. old, [global], compare, value`.
macro_rules! atom_global {
    ($semantics:literal, $suffix:literal, $class:ident, $place:ident, $old:ident, $a:ident) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!("atom", $semantics, ".global", $suffix, " {old}, [{address}], {a};"),
            address = out(reg64) _,
            pointer = in(reg64) $place,
            old = out($class) $old,
            a = in($class) $a,
            options(nostack, preserves_flags),
        )
    };
    ($semantics:literal, $suffix:literal, $class:ident, $place:ident, $old:ident, $a:ident, $b:ident) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!("atom", $semantics, ".global", $suffix, " {old}, [{address}], {a}, {b};"),
            address = out(reg64) _,
            pointer = in(reg64) $place,
            old = out($class) $old,
            a = in($class) $a,
            b = in($class) $b,
            options(nostack, preserves_flags),
        )
    };
}

/// As `atom_global`, for shared memory.
macro_rules! atom_shared {
    ($semantics:literal, $suffix:literal, $class:ident, $place:ident, $old:ident, $a:ident) => {{
        let address = $place.address();
        asm!(
            concat!("atom", $semantics, ".shared", $suffix, " {old}, [{address}], {a};"),
            address = in(reg32) address,
            old = out($class) $old,
            a = in($class) $a,
            options(nostack, preserves_flags),
        )
    }};
    ($semantics:literal, $suffix:literal, $class:ident, $place:ident, $old:ident, $a:ident, $b:ident) => {{
        let address = $place.address();
        asm!(
            concat!("atom", $semantics, ".shared", $suffix, " {old}, [{address}], {a}, {b};"),
            address = in(reg32) address,
            old = out($class) $old,
            a = in($class) $a,
            b = in($class) $b,
            options(nostack, preserves_flags),
        )
    }};
}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident, $trait:ident, $operands:tt, $($ty:ty: $class:ident $suffix:literal),+) => {
        operation!(@declare $(#[$doc])* $name, $trait, $operands);
        $(operation!(@implement $name, $trait, $operands, $ty, $class, $suffix);)+
    };
    (@declare $(#[$doc:meta])* $name:ident, $trait:ident, ($($operand:ident),+)) => {
        $(#[$doc])*
        ///
        /// Returns the old value.
        ///
        /// # Safety
        /// The place is valid, a multiple of the value's size, and touched by nothing but atomics while other
        /// threads may access it.
        #[inline(always)]
        pub unsafe fn $name<P: $trait>(place: P, $($operand: P::Value,)+ order: Order, scope: Scope) -> P::Value {
            // SAFETY: the caller's contract.
            unsafe { $trait::$name(place, $($operand,)+ order, scope) }
        }

        #[doc = concat!("Places on which [`", stringify!($name), "`] works.")]
        pub trait $trait: Place {
            #[doc = concat!("As the function [`", stringify!($name), "`].")]
            ///
            /// # Safety
            /// As the function.
            unsafe fn $name(self, $($operand: Self::Value,)+ order: Order, scope: Scope) -> Self::Value;
        }
    };
    (@implement $name:ident, $trait:ident, ($($operand:ident),+), $ty:ty, $class:ident, $suffix:literal) => {
        impl $trait for *mut $ty {
            #[inline(always)]
            unsafe fn $name(self, $($operand: $ty,)+ order: Order, scope: Scope) -> $ty {
                let old: $ty;
                // SAFETY: the caller vouches for the pointer.
                unsafe { select!(order, scope, atom_global, $suffix, $class, self, old, $($operand),+) };
                old
            }
        }

        impl $trait for Shared<$ty> {
            #[inline(always)]
            unsafe fn $name(self, $($operand: $ty,)+ order: Order, scope: Scope) -> $ty {
                let old: $ty;
                // SAFETY: the caller vouches for the address.
                unsafe { select!(order, scope, atom_shared, $suffix, $class, self, old, $($operand),+) };
                old
            }
        }
    };
}

operation! {
    /// Adds `value`, integers modulo their size, `f32` rounded to nearest even: `atom.add`.
    add, AtomicAdd, (value),
    u32: reg32 ".add.u32", i32: reg32 ".add.s32", u64: reg64 ".add.u64", f32: reg32 ".add.f32"
}

/// What [`reduce_add`] adds: an `f32`, or on Hopper a vector of two or four.
pub trait Reducible: Copy {
    /// As the function [`reduce_add`].
    ///
    /// # Safety
    /// As the function.
    unsafe fn reduce_add(self, place: *mut Self, scope: Scope);
}

/// Adds `value` to what is at `place` in global memory and returns nothing: `red.relaxed.add.f32`, of vectors
/// `.v2.f32` and `.v4.f32`. The elements of a vector are added one by one, each atomically, to nearest even;
/// subnormals count as 0. What several threads add is summed in any order.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn reduce_add<V: Reducible>(place: *mut V, value: V, scope: Scope) {
    // SAFETY: the caller's contract.
    unsafe { value.reduce_add(place, scope) }
}

macro_rules! reducible {
    ($($(#[$cfg:meta])* $ty:ty, $suffix:literal, $operands:literal, ($($name:ident = $from:expr),+), $self:ident;)+) => {$(
        $(#[$cfg])*
        impl Reducible for $ty {
            #[inline(always)]
            unsafe fn reduce_add($self, place: *mut Self, scope: Scope) {
                // SAFETY: the caller vouches for the place.
                unsafe {
                    match scope {
                        Scope::Block => reducible!(@red ".relaxed.cta", $suffix, $operands, place, $($name = $from),+),
                        Scope::Gpu => reducible!(@red ".relaxed.gpu", $suffix, $operands, place, $($name = $from),+),
                    }
                }
            }
        }
    )+};
    (@red $semantics:literal, $suffix:literal, $operands:literal, $place:ident, $($name:ident = $from:expr),+) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!("red", $semantics, ".global.add", $suffix, " [{address}], ", $operands, ";"),
            $($name = in(reg32) $from,)+
            address = out(reg64) _,
            pointer = in(reg64) $place,
            options(nostack, preserves_flags),
        )
    };
}

reducible! {
    f32, ".f32", "{a}", (a = self), self;
    #[cfg(target_feature = "sm_90a")]
    [f32; 2], ".v2.f32", "{{{a}, {b}}}", (a = self[0], b = self[1]), self;
    #[cfg(target_feature = "sm_90a")]
    [f32; 4], ".v4.f32", "{{{a}, {b}, {c}, {d}}}", (a = self[0], b = self[1], c = self[2], d = self[3]), self;
}

operation! {
    /// Keeps the smaller of the value there and `value`: `atom.min`.
    min, AtomicMin, (value),
    u32: reg32 ".min.u32", i32: reg32 ".min.s32", u64: reg64 ".min.u64"
}

operation! {
    /// Keeps the larger of the value there and `value`: `atom.max`.
    max, AtomicMax, (value),
    u32: reg32 ".max.u32", i32: reg32 ".max.s32", u64: reg64 ".max.u64"
}

operation! {
    /// Sets the bits that are set in `value`: `atom.or.b32`.
    or, AtomicOr, (value), u32: reg32 ".or.b32"
}

operation! {
    /// Clears the bits that are clear in `value`: `atom.and.b32`.
    and, AtomicAnd, (value), u32: reg32 ".and.b32"
}

operation! {
    /// Puts `value` there: `atom.exch`.
    exchange, AtomicExchange, (value),
    u32: reg32 ".exch.b32", i32: reg32 ".exch.b32", u64: reg64 ".exch.b64"
}

operation! {
    /// Puts `value` there if it holds `expected`: `atom.cas`.
    compare_exchange, AtomicCompareExchange, (expected, value),
    u32: reg32 ".cas.b32", i32: reg32 ".cas.b32", u64: reg64 ".cas.b64"
}

/// Places that [`load`] and [`store`] access.
pub trait AtomicAccess: Place {
    /// As the function [`load`].
    ///
    /// # Safety
    /// As the function.
    unsafe fn load(self, acquire: bool, scope: Scope) -> Self::Value;
    /// As the function [`store`].
    ///
    /// # Safety
    /// As the function.
    unsafe fn store(self, value: Self::Value, release: bool, scope: Scope);
}

/// Reads what other threads may write at the same time: `ld.relaxed`, or `ld.acquire` for any stronger order.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn load<P: AtomicAccess>(place: P, order: Order, scope: Scope) -> P::Value {
    // SAFETY: the caller's contract.
    unsafe { AtomicAccess::load(place, order != Order::Relaxed, scope) }
}

/// Writes what other threads may read at the same time: `st.relaxed`, or `st.release` for any stronger order.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub unsafe fn store<P: AtomicAccess>(place: P, value: P::Value, order: Order, scope: Scope) {
    // SAFETY: the caller's contract.
    unsafe { AtomicAccess::store(place, value, order != Order::Relaxed, scope) }
}

macro_rules! ld {
    (global $opcode:expr, $class:ident, $place:ident, $value:ident) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!($opcode, " {value}, [{address}];"),
            address = out(reg64) _,
            pointer = in(reg64) $place,
            value = out($class) $value,
            options(nostack, preserves_flags),
        )
    };
    (shared $opcode:expr, $class:ident, $place:ident, $value:ident) => {
        asm!(
            concat!($opcode, " {value}, [{address}];"),
            address = in(reg32) $place.address(),
            value = out($class) $value,
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! st {
    (global $opcode:expr, $class:ident, $place:ident, $value:ident) => {
        asm!(
            "cvta.to.global.u64 {address}, {pointer};",
            concat!($opcode, " [{address}], {value};"),
            address = out(reg64) _,
            pointer = in(reg64) $place,
            value = in($class) $value,
            options(nostack, preserves_flags),
        )
    };
    (shared $opcode:expr, $class:ident, $place:ident, $value:ident) => {
        asm!(
            concat!($opcode, " [{address}], {value};"),
            address = in(reg32) $place.address(),
            value = in($class) $value,
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! access {
    ($space:ident, $name:literal, $place:ty, $ty:ty, $class:ident, $bits:literal) => {
        impl AtomicAccess for $place {
            #[inline(always)]
            unsafe fn load(self, acquire: bool, scope: Scope) -> $ty {
                let value: $ty;
                // SAFETY: the caller vouches for the place.
                unsafe {
                    match (acquire, scope) {
                        (false, Scope::Block) => ld!($space concat!("ld.relaxed.cta.", $name, $bits), $class, self, value),
                        (false, Scope::Gpu) => ld!($space concat!("ld.relaxed.gpu.", $name, $bits), $class, self, value),
                        (true, Scope::Block) => ld!($space concat!("ld.acquire.cta.", $name, $bits), $class, self, value),
                        (true, Scope::Gpu) => ld!($space concat!("ld.acquire.gpu.", $name, $bits), $class, self, value),
                    }
                }
                value
            }

            #[inline(always)]
            unsafe fn store(self, value: $ty, release: bool, scope: Scope) {
                // SAFETY: the caller vouches for the place.
                unsafe {
                    match (release, scope) {
                        (false, Scope::Block) => st!($space concat!("st.relaxed.cta.", $name, $bits), $class, self, value),
                        (false, Scope::Gpu) => st!($space concat!("st.relaxed.gpu.", $name, $bits), $class, self, value),
                        (true, Scope::Block) => st!($space concat!("st.release.cta.", $name, $bits), $class, self, value),
                        (true, Scope::Gpu) => st!($space concat!("st.release.gpu.", $name, $bits), $class, self, value),
                    }
                }
            }
        }
    };
    ($($ty:ty: $class:ident $bits:literal),+) => {$(
        access!(global, "global", *mut $ty, $ty, $class, $bits);
        access!(shared, "shared", Shared<$ty>, $ty, $class, $bits);
    )+};
}

access!(u32: reg32 ".b32", i32: reg32 ".b32", u64: reg64 ".b64", f32: reg32 ".b32");
