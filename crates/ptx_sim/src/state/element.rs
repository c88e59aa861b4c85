//! Values in memory, shared between threads as atomics.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// A value in memory, accessed as relaxed atomics.
pub(crate) trait Element: Copy + Eq {
    /// Every byte one: the shadow of initialised bytes.
    const WRITTEN: Self;
    /// Size in bytes.
    const BYTES: u32 = size_of::<Self>() as u32;

    /// # Safety
    /// `at` is aligned and inside an allocation.
    unsafe fn load(at: *const u8) -> Self;
    /// # Safety
    /// `at` is aligned and inside an allocation.
    unsafe fn store(self, at: *mut u8);
    /// From bytes in shared memory's order; the slice is `BYTES` long.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// To bytes in shared memory's order, the first `BYTES` of the result.
    fn to_bytes(self) -> [u8; 16];
}

macro_rules! element {
    ($($ty:ty, $atomic:ty, $written:expr;)*) => {$(
        impl Element for $ty {
            const WRITTEN: $ty = $written;
            #[inline(always)]
            unsafe fn load(at: *const u8) -> $ty {
                // SAFETY: aligned and in bounds by the caller's contract; shared only as atomics.
                unsafe { &*at.cast::<$atomic>() }.load(Relaxed)
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut u8) {
                // SAFETY: as above.
                unsafe { &*at.cast::<$atomic>() }.store(self, Relaxed);
            }
            #[inline(always)]
            fn from_bytes(bytes: &[u8]) -> $ty {
                let mut array = [0; size_of::<$ty>()];
                array.copy_from_slice(bytes);
                <$ty>::from_le_bytes(array)
            }
            #[inline(always)]
            fn to_bytes(self) -> [u8; 16] {
                u128::from(self).to_le_bytes()
            }
        }
    )*};
}

element! {
    u8, AtomicU8, 0x01;
    u16, AtomicU16, 0x0101;
    u32, AtomicU32, 0x0101_0101;
    u64, AtomicU64, 0x0101_0101_0101_0101;
}

impl Element for u128 {
    const WRITTEN: u128 = 0x0101_0101_0101_0101_0101_0101_0101_0101;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> u128 {
        // SAFETY: both halves are aligned and in bounds by the caller's contract.
        unsafe { u128::from(u64::load(at)) | u128::from(u64::load(at.add(8))) << 64 }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: both halves are aligned and in bounds by the caller's contract.
        unsafe {
            (self as u64).store(at);
            ((self >> 64) as u64).store(at.add(8));
        }
    }
    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> u128 {
        let mut array = [0; 16];
        array.copy_from_slice(bytes);
        u128::from_le_bytes(array)
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; 16] {
        self.to_le_bytes()
    }
}

/// A value that memory can change atomically.
pub(crate) trait Atomic: Element {
    /// # Safety
    /// `at` is aligned and inside an allocation.
    unsafe fn exchange_if(at: *mut u8, old: Self, new: Self) -> Result<(), Self>;
}

macro_rules! atomic {
    ($($ty:ty, $atomic:ty;)*) => {$(
        impl Atomic for $ty {
            #[inline(always)]
            unsafe fn exchange_if(at: *mut u8, old: $ty, new: $ty) -> Result<(), $ty> {
                // SAFETY: aligned and in bounds by the caller's contract; shared only as atomics.
                unsafe { &*at.cast::<$atomic>() }.compare_exchange(old, new, SeqCst, SeqCst).map(|_| ())
            }
        }
    )*};
}

atomic! {
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}
