//! Shared memory: static arrays, the dynamic area, and pointers into both.
//!
//! ```text
//! shared_array!(permute.counts: [u32; 33])      .shared .align 16 .b8 permute_counts[132];     module scope
//!        |                                       mov.u32 %r1, permute_counts;                   where it is used
//!        v
//!   Shared<u32>  = a byte offset in the block's shared window (address space 3, 32 bits)
//!        |-- read/write/add/atomics             ld.shared, st.shared, atom.shared
//!        `-- as_ptr()                           cvta.shared.u64: a generic pointer
//! ```
//!
//! rustc knows no address spaces, so a Rust `static` cannot live in shared memory. The array is declared by
//! `global_asm!` and its address is a `u32`, which is also what `ldmatrix`, `cp.async` and `mbarrier` want.
//! [`Shared::read`] and [`Shared::write`] are `ld.shared` and `st.shared`; an access through
//! [`Shared::as_ptr`] is generic, which costs a check of the address window on every access.
//!
//! Nothing initialises shared memory: write first. Accesses of different threads are ordered by barriers
//! ([`crate::sync`]).
//!
//! PTX ISA, "State Spaces: Shared State Space".

use core::arch::{asm, global_asm};
use core::marker::PhantomData;

global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");

/// A pointer to `T` in the block's shared memory: a 32-bit address of state space `.shared`.
#[repr(transparent)]
pub struct Shared<T> {
    address: u32,
    marker: PhantomData<*mut T>,
}

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer with this address in the shared window, in bytes.
    #[inline(always)]
    pub const fn from_address(address: u32) -> Self {
        Shared { address, marker: PhantomData }
    }

    /// The address in the shared window, in bytes: what `ldmatrix`, `cp.async` and `mbarrier` take.
    #[inline(always)]
    pub const fn address(self) -> u32 {
        self.address
    }

    /// The pointer `count` elements on.
    #[allow(clippy::should_implement_trait)]
    #[inline(always)]
    pub const fn add(self, count: u32) -> Self {
        Shared::from_address(self.address.wrapping_add(count.wrapping_mul(size_of::<T>() as u32)))
    }

    /// The pointer `bytes` bytes on.
    #[inline(always)]
    pub const fn byte_add(self, bytes: u32) -> Self {
        Shared::from_address(self.address.wrapping_add(bytes))
    }

    /// The same address, as a pointer to another type.
    #[inline(always)]
    pub const fn cast<U>(self) -> Shared<U> {
        Shared::from_address(self.address)
    }

    /// The generic pointer to the same memory: `cvta.shared.u64`.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut T {
        let pointer: *mut T;
        // SAFETY: computes an address from an address, touches no memory.
        unsafe {
            asm!(
                "cvt.u64.u32 {pointer}, {address};",
                "cvta.shared.u64 {pointer}, {pointer};",
                pointer = out(reg64) pointer,
                address = in(reg32) self.address,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        pointer
    }
}

impl<T: Element> Shared<T> {
    /// Reads the element: one `ld.shared`, of 1, 2, 4, 8 or 16 bytes.
    ///
    /// # Safety
    /// The address lies in the block's shared memory, is a multiple of the element's size, and was written;
    /// no other thread writes it between the same two barriers.
    #[inline(always)]
    pub unsafe fn read(self) -> T {
        // SAFETY: the caller's contract is the trait's.
        unsafe { T::load_shared(self.address) }
    }

    /// Writes the element: one `st.shared`, of 1, 2, 4, 8 or 16 bytes.
    ///
    /// # Safety
    /// The address lies in the block's shared memory and is a multiple of the element's size; no other thread
    /// accesses it between the same two barriers.
    #[inline(always)]
    pub unsafe fn write(self, value: T) {
        // SAFETY: the caller's contract is the trait's.
        unsafe { T::store_shared(self.address, value) }
    }
}

/// What one shared-memory instruction moves.
pub trait Element: Copy {
    /// `ld.shared` from a byte address.
    ///
    /// # Safety
    /// As [`Shared::read`].
    unsafe fn load_shared(address: u32) -> Self;
    /// `st.shared` to a byte address.
    ///
    /// # Safety
    /// As [`Shared::write`].
    unsafe fn store_shared(address: u32, value: Self);
}

macro_rules! element {
    ($($ty:ty, $register:ident as $carrier:ty, $suffix:literal;)+) => {$(
        impl Element for $ty {
            #[inline(always)]
            unsafe fn load_shared(address: u32) -> Self {
                let value: $carrier;
                // SAFETY: the caller vouches for the address; `readonly` keeps the load behind barriers,
                // which write.
                unsafe {
                    asm!(
                        concat!("ld.shared.", $suffix, " {value}, [{address}];"),
                        value = out($register) value,
                        address = in(reg32) address,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                value as $ty
            }

            #[inline(always)]
            unsafe fn store_shared(address: u32, value: Self) {
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!(
                        concat!("st.shared.", $suffix, " [{address}], {value};"),
                        value = in($register) value as $carrier,
                        address = in(reg32) address,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }
    )+};
}

element! {
    u8, reg16 as u16, "u8";
    u16, reg16 as u16, "u16";
    u32, reg32 as u32, "b32";
    i32, reg32 as i32, "b32";
    f32, reg32 as f32, "b32";
    u64, reg64 as u64, "b64";
    i64, reg64 as i64, "b64";
}

macro_rules! vector_element {
    ($($ty:ty, $lane:ty, $suffix:literal, $($name:ident $index:literal),+;)+) => {$(
        impl Element for $ty {
            #[inline(always)]
            unsafe fn load_shared(address: u32) -> Self {
                $(let $name: $lane;)+
                // SAFETY: as for one register.
                unsafe {
                    asm!(
                        concat!("ld.shared.", $suffix, " {{", vector_element!(@list $($name)+), "}}, [{address}];"),
                        $($name = out(reg32) $name,)+
                        address = in(reg32) address,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                [$($name),+]
            }

            #[inline(always)]
            unsafe fn store_shared(address: u32, value: Self) {
                // SAFETY: as for one register.
                unsafe {
                    asm!(
                        concat!("st.shared.", $suffix, " [{address}], {{", vector_element!(@list $($name)+), "}};"),
                        $($name = in(reg32) value[$index],)+
                        address = in(reg32) address,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }
    )+};
    (@list $a:ident $b:ident) => { concat!("{", stringify!($a), "}, {", stringify!($b), "}") };
    (@list $a:ident $b:ident $c:ident $d:ident) => {
        concat!("{", stringify!($a), "}, {", stringify!($b), "}, {", stringify!($c), "}, {", stringify!($d), "}")
    };
}

vector_element! {
    [u32; 2], u32, "v2.b32", a 0, b 1;
    [f32; 2], f32, "v2.b32", a 0, b 1;
    [u32; 4], u32, "v4.b32", a 0, b 1, c 2, d 3;
    [i32; 4], i32, "v4.b32", a 0, b 1, c 2, d 3;
    [f32; 4], f32, "v4.b32", a 0, b 1, c 2, d 3;
}

/// The dynamic shared memory of the block, whose size the host gives at launch; aligned to 1024 bytes.
///
/// `.extern .shared .align 1024 .b8 dynamic_shared[]` and `mov.u32`. It begins behind the static arrays of
/// the kernel.
#[inline(always)]
pub fn dynamic<T>() -> Shared<T> {
    let address: u32;
    // SAFETY: reads the address of a symbol.
    unsafe {
        asm!("mov.u32 {}, dynamic_shared;", out(reg32) address, options(pure, nomem, nostack, preserves_flags));
    }
    Shared::from_address(address)
}

/// Declares an array in static shared memory and yields a [`Shared`] pointer to its first element.
///
/// ```ignore
/// let counts = shared_array!(permute.counts: [u32; 33]);               // symbol permute_counts, aligned to 16 bytes
/// let tile = shared_array!(gemm.tile: [u8; 4096], align = 128);
/// ```
///
/// The array's type and length are names of the enclosing module. The dotted name becomes the PTX symbol; it
/// is unique in the module, so it begins with the kernel's name (which a macro that generates kernels has at
/// hand: `shared_array!($kernel.tile: ..)`). A kernel that does not use the array pays nothing.
#[macro_export]
macro_rules! shared_array {
    ($kernel:ident . $name:ident : [$ty:ty; $len:expr]) => {
        $crate::shared_array!($kernel.$name: [$ty; $len], align = 16)
    };
    ($kernel:ident . $name:ident : [$ty:ty; $len:expr], align = $align:expr) => {{
        // `global_asm!` is an item that only a module may hold.
        mod declaration {
            #[allow(unused_imports)]
            use super::*;
            ::core::arch::global_asm!(
                concat!(".shared .align {align} .b8 ", stringify!($kernel), "_", stringify!($name), "[{bytes}];"),
                align = const { $align },
                bytes = const { ::core::mem::size_of::<[$ty; $len]>() },
            );
        }
        let address: u32;
        // SAFETY: reads the address of the symbol declared above.
        unsafe {
            ::core::arch::asm!(
                concat!("mov.u32 {}, ", stringify!($kernel), "_", stringify!($name), ";"),
                out(reg32) address,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        $crate::shared::Shared::<$ty>::from_address(address)
    }};
}
