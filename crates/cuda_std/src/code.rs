//! Codes: which of several kinds something is, as a number that host and device agree on; and flags.
//!
//! An enum with `#[host]` is known to both. The host passes the enum; a kernel gets a [`Code`], a number that
//! it compares with the enum.

use core::marker::PhantomData;

/// An enum with `#[repr(u32)]`. Implemented by [`host`](macro@crate::host).
pub trait Kind: Copy {
    /// The number.
    fn code(self) -> u32;
}

/// The number of a kind, as a kernel gets it.
#[repr(transparent)]
pub struct Code<K> {
    code: u32,
    kind: PhantomData<K>,
}

impl<K> Clone for Code<K> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Code<K> {}

impl<K: Kind> Code<K> {
    /// The code that the host has passed.
    #[inline(always)]
    pub const fn from_raw(code: u32) -> Self {
        Code { code, kind: PhantomData }
    }

    /// Its number.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.code
    }

    /// Whether it is that of `kind`.
    #[inline(always)]
    pub fn is(self, kind: K) -> bool {
        self.code == kind.code()
    }

    /// Whether it is another. (`!is(..)` is another instruction to LLVM, which makes one of two branches on
    /// it.)
    #[inline(always)]
    pub fn is_not(self, kind: K) -> bool {
        self.code != kind.code()
    }
}

/// A `bool` of the host, as a kernel gets it: a number that is compared where it is used.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Flag(u32);

impl Flag {
    /// False.
    pub const CLEAR: Self = Flag(0);
    /// True.
    pub const SET: Self = Flag(1);

    /// The flag that the host has passed.
    #[inline(always)]
    pub const fn from_raw(flag: u32) -> Self {
        Flag(flag)
    }

    /// Whether it is true.
    #[inline(always)]
    pub const fn is_set(self) -> bool {
        self.0 != 0
    }

    /// Whether it is false.
    #[inline(always)]
    pub const fn is_clear(self) -> bool {
        self.0 == 0
    }
}
