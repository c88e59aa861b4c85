//! Register-to-register instructions: a function of scalars, applied to 32 lanes.
//!
//! `binary(|a: u32, b: u32| a.wrapping_add(b))` makes the handler of `add.u32`. The function is applied to
//! every lane, executing or not, and only executing lanes are written, which leaves loops without branches
//! that the compiler vectorises. Functions must therefore be total: no panics, whatever the registers hold.
//!
//! A function's type carries all there is to know of it (it captures nothing), so a handler is an ordinary
//! function pointer. Each is compiled twice: for the baseline CPU, and for AVX2 and FMA.

use std::marker::PhantomData;

use super::{Ctx, Flow, Handler, Inst, Mask};

/// A body of a handler, to be compiled for more than one instruction set.
pub(crate) trait Body {
    /// # Safety
    /// As for [`Handler`].
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow;
}

unsafe fn baseline<B: Body>(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the caller's contract is the same.
    unsafe { B::run(ctx, inst) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt")]
unsafe fn wide<B: Body>(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the caller's contract is the same.
    unsafe { B::run(ctx, inst) }
}

/// Whether the wide handlers can run here.
#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// The handler of a body, for this CPU.
pub(crate) fn handler<B: Body>() -> Handler {
    #[cfg(target_arch = "x86_64")]
    if is_wide() {
        return wide::<B>;
    }
    baseline::<B>
}

/// A type that registers hold: how it lies in a slot's lanes.
pub(crate) trait Lane: Copy {
    /// What a slot holds per lane.
    type Slot: Copy;
    /// Reads a lane.
    fn get(slot: Self::Slot) -> Self;
    /// Makes a lane.
    fn put(self) -> Self::Slot;
}

macro_rules! lane {
    ($($ty:ty: $slot:ty, $get:expr, $put:expr;)*) => {$(
        impl Lane for $ty {
            type Slot = $slot;
            #[inline(always)]
            fn get(slot: $slot) -> $ty {
                let get: fn($slot) -> $ty = $get;
                get(slot)
            }
            #[inline(always)]
            fn put(self) -> $slot {
                let put: fn($ty) -> $slot = $put;
                put(self)
            }
        }
    )*};
}

// 16-bit registers are kept zero-extended.
lane! {
    u8: u32, |s| s as u8, |v| u32::from(v);
    i8: u32, |s| s as i8, |v| u32::from(v as u16);
    u16: u32, |s| s as u16, |v| u32::from(v);
    i16: u32, |s| s as i16, |v| u32::from(v as u16);
    u32: u32, |s| s, |v| v;
    i32: u32, |s| s as i32, |v| v as u32;
    f32: u32, |s| f32::from_bits(s), |v| v.to_bits();
    u64: u64, |s| s, |v| v;
    i64: u64, |s| s as i64, |v| v as u64;
    f64: u64, |s| f64::from_bits(s), |v| v.to_bits();
    u128: u128, |s| s, |v| v;
}

/// Recreates a function that captures nothing.
#[inline(always)]
pub(crate) fn instance<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a lane function may not capture anything") };
    // SAFETY: `F` has no bytes to be wrong, and as it is `Copy`, the instance that the maker of the handler
    // was given may be duplicated.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

macro_rules! map {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident: $ty:ident @ $field:ident),*)) => {
        struct $body<$($ty,)* R, F>(PhantomData<($($ty,)* R, F)>);

        impl<$($ty: Lane,)* R: Lane, F: Fn($($ty),*) -> R + Copy> Body for $body<$($ty,)* R, F> {
            #[inline(always)]
            unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
                let f: F = instance();
                // SAFETY: the decoder gives this handler slots of these types.
                unsafe {
                    $(let $arg = ctx.read::<$ty::Slot>(inst.$field);)*
                    let mut result = ctx.read::<R::Slot>(inst.d);
                    if ctx.exec == super::FULL {
                        for lane in 0..32 {
                            result[lane] = f($($ty::get($arg[lane])),*).put();
                        }
                    } else {
                        for lane in 0..32 {
                            let value = f($($ty::get($arg[lane])),*).put();
                            result[lane] = if ctx.exec >> lane & 1 != 0 { value } else { result[lane] };
                        }
                    }
                    *ctx.regs.add(inst.d as usize).cast::<[R::Slot; 32]>() = result;
                }
                Flow::Next
            }
        }

        $(#[$doc])*
        pub(crate) fn $name<$($ty: Lane,)* R: Lane, F: Fn($($ty),*) -> R + Copy>(_: F) -> Handler {
            handler::<$body<$($ty,)* R, F>>()
        }
    };
}

map!(
    /// `d = f(a)`.
    unary, Unary, (a: A @ a)
);
map!(
    /// `d = f(a, b)`.
    binary, Binary, (a: A @ a, b: B @ b)
);
map!(
    /// `d = f(a, b, c)`.
    ternary, Ternary, (a: A @ a, b: B @ b, c: C @ c)
);
map!(
    /// `d = f(a, b, c, e)`.
    quaternary, Quaternary, (a: A @ a, b: B @ b, c: C @ c, e: E @ e)
);

/// How a comparison combines with a third operand, as `inst.imm & 3`.
pub(crate) mod combine {
    pub const NONE: u64 = 0;
    pub const AND: u64 = 1;
    pub const OR: u64 = 2;
    pub const XOR: u64 = 3;
    /// The third operand is negated.
    pub const NOT: u64 = 4;
    /// There is a second destination, in `inst.e`.
    pub const PAIR: u64 = 8;
}

#[inline(always)]
fn combined(kind: u64, truth: Mask, other: Mask) -> Mask {
    let other = if kind & combine::NOT != 0 { !other } else { other };
    match kind & 3 {
        combine::AND => truth & other,
        combine::OR => truth | other,
        combine::XOR => truth ^ other,
        _ => truth,
    }
}

struct Compare<A, F>(PhantomData<(A, F)>);

impl<A: Lane, F: Fn(A, A) -> bool + Copy> Body for Compare<A, F> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        let f: F = instance();
        // SAFETY: the decoder gives this handler slots of these types; `c` and `e` are predicates.
        unsafe {
            let a = ctx.read::<A::Slot>(inst.a);
            let b = ctx.read::<A::Slot>(inst.b);
            let mut truth = 0;
            for lane in 0..32 {
                truth |= u32::from(f(A::get(a[lane]), A::get(b[lane]))) << lane;
            }
            if inst.imm == combine::NONE {
                ctx.set_predicate(inst.d, truth);
            } else {
                let other = ctx.predicate(inst.c);
                ctx.set_predicate(inst.d, combined(inst.imm, truth, other));
                if inst.imm & combine::PAIR != 0 {
                    ctx.set_predicate(inst.e, combined(inst.imm, !truth, other));
                }
            }
        }
        Flow::Next
    }
}

/// `setp`: `d = f(a, b)` combined with predicate `c` as `imm` says; with [`combine::PAIR`], `e` gets `!f(a,
/// b)`.
pub(crate) fn compare<A: Lane, F: Fn(A, A) -> bool + Copy>(_: F) -> Handler {
    handler::<Compare<A, F>>()
}

struct Select<T>(PhantomData<T>);

impl<T: Copy> Body for Select<T> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        // SAFETY: the decoder gives this handler slots of this width, and a predicate in `c`.
        unsafe {
            let (a, mut b) = (ctx.read::<T>(inst.a), ctx.read::<T>(inst.b));
            let choice = ctx.predicate(inst.c);
            for lane in 0..32 {
                b[lane] = if choice >> lane & 1 != 0 { a[lane] } else { b[lane] };
            }
            ctx.write(inst.d, &b);
        }
        Flow::Next
    }
}

/// `selp`: `d = c ? a : b` on slots of `T`.
pub(crate) fn select<T: Copy>() -> Handler {
    handler::<Select<T>>()
}

/// `mov` between slots of one width.
pub(crate) fn copy<T: Copy>() -> Handler {
    struct Move<T>(PhantomData<T>);
    impl<T: Copy> Body for Move<T> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
            // SAFETY: the decoder gives this handler slots of this width.
            unsafe {
                let values = ctx.read::<T>(inst.a);
                ctx.write(inst.d, &values);
            }
            Flow::Next
        }
    }
    handler::<Move<T>>()
}

/// Functions of predicates, on whole masks: `d = f(a, b)`.
pub(crate) fn logic<F: Fn(Mask, Mask) -> Mask + Copy>(_: F) -> Handler {
    struct Logic<F>(PhantomData<F>);
    impl<F: Fn(Mask, Mask) -> Mask + Copy> Body for Logic<F> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
            let f: F = instance();
            // SAFETY: the decoder gives this handler predicates.
            unsafe {
                let value = f(ctx.predicate(inst.a), ctx.predicate(inst.b));
                ctx.set_predicate(inst.d, value);
            }
            Flow::Next
        }
    }
    handler::<Logic<F>>()
}

/// Arithmetic with carry on 32 or 64 bits: `(d, carry) = f(a, b, c, carry)`; the carry is the predicate `e`.
/// `imm` bit 0: the carry out is kept.
pub(crate) fn carry<T: Lane, F: Fn(T, T, T, bool) -> (T, bool) + Copy>(_: F) -> Handler {
    struct Carry<T, F>(PhantomData<(T, F)>);
    impl<T: Lane, F: Fn(T, T, T, bool) -> (T, bool) + Copy> Body for Carry<T, F> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
            let f: F = instance();
            // SAFETY: the decoder gives this handler slots of these types, and a predicate in `e`.
            unsafe {
                let a = ctx.read::<T::Slot>(inst.a);
                let b = ctx.read::<T::Slot>(inst.b);
                let mut d = ctx.read::<T::Slot>(inst.c);
                let carry_in = ctx.predicate(inst.e);
                let mut carry_out = 0;
                for lane in 0..32 {
                    let (value, carry) =
                        f(T::get(a[lane]), T::get(b[lane]), T::get(d[lane]), carry_in >> lane & 1 != 0);
                    d[lane] = value.put();
                    carry_out |= u32::from(carry) << lane;
                }
                ctx.write(inst.d, &d);
                if inst.imm & 1 != 0 {
                    ctx.set_predicate(inst.e, carry_out);
                }
            }
            Flow::Next
        }
    }
    handler::<Carry<T, F>>()
}

/// Like [`ternary`], with `inst.imm` as a fourth argument: for the less frequent variants of an instruction,
/// which are told apart lane by lane.
pub(crate) fn flagged<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C, u64) -> R + Copy>(_: F) -> Handler {
    struct Flagged<A, B, C, R, F>(PhantomData<(A, B, C, R, F)>);
    impl<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C, u64) -> R + Copy> Body for Flagged<A, B, C, R, F> {
        #[inline(always)]
        unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
            let f: F = instance();
            // SAFETY: the decoder gives this handler slots of these types.
            unsafe {
                let a = ctx.read::<A::Slot>(inst.a);
                let b = ctx.read::<B::Slot>(inst.b);
                let c = ctx.read::<C::Slot>(inst.c);
                let mut result = ctx.read::<R::Slot>(inst.d);
                for lane in super::lanes_of(ctx.exec) {
                    result[lane] = f(A::get(a[lane]), B::get(b[lane]), C::get(c[lane]), inst.imm).put();
                }
                *ctx.regs.add(inst.d as usize).cast::<[R::Slot; 32]>() = result;
            }
            Flow::Next
        }
    }
    handler::<Flagged<A, B, C, R, F>>()
}
