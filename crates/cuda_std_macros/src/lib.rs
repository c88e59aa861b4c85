//! The attributes of `cuda_std`: `#[kernel]`, `#[arguments]`, `#[host]`.
//!
//! ```text
//! #[arguments]                                     #[host]
//! pub struct Scale { x: *const f32, n: u32 }       pub const COLUMNS: u32 = 32 * CHUNK;
//!        |                                                |
//!        |                                                +--> //#host pub const COLUMNS : u32 = 256 ;
//!        +--> //#arguments pub struct Scale { x : * const f32 , n : u32 , }
//!
//! #[kernel(threads = 256, min_blocks = 2)]
//! pub unsafe fn scale(rows: Scale) { .. }
//!        |
//!        +--> #[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn scale(x: *const f32, n: u32) {
//!        |        let rows = Scale { x, n };
//!        |        ..
//!        |    }
//!        +--> //#kernel scale threads=256 min_blocks=2 cluster=1 wgmma_n=0 overlap=0 unroll=1 shared=0 (rows : Scale)
//! ```
//!
//! The lines that begin with `//#` are records: comments in the PTX, left there by `global_asm!`.
//! `cuda_builder` reads them back. The launch bounds become `.maxntid`/`.minnctapersm` directives; structs of
//! arguments, numbers, enums and functions become Rust for the host, so that both sides have the same.
//! Because a record is made by the compiler and not by scanning source, kernels that `macro_rules!` generates
//! work like any other, and numbers arrive evaluated.

mod arguments;
mod host;
mod kernel;
mod unroll;
mod wgmma;

use proc_macro::TokenStream;
use syn::{Error, parse_macro_input};

/// Makes an `unsafe fn` a kernel that the host can launch.
///
/// `threads` (required) is the number of threads of a block, `min_blocks` (default 1) the number of blocks
/// that must fit on one SM at a time; together they bound the registers a thread may use. `cluster`
/// (default 1) is the number of blocks along x that make a cluster. `shared` (default 0) is the dynamic
/// shared memory of a block, in bytes, where that is the same for every launch. All are constant expressions.
///
/// `wgmma_n` is N of the kernel's `wgmma`s, or a list of those that it has, `[8, 16]`: the PTX gate looks for
/// `QGMMA.64xNx32` of each in its machine code, and for no other. Without it, the gate wants none.
///
/// With `overlap = before` the kernel may begin while its predecessor in the stream still runs; before its
/// body, `grid::wait` waits for that and `grid::launch_dependents` lets its own successor begin. With
/// `overlap = within` the body does both itself.
///
/// With `unroll = never` the driver's compiler, and `ptxas`, leave the kernel's loops as they are in the PTX;
/// what LLVM or `unroll!` has unrolled before stays so. The driver compiles a kernel when it is first used,
/// and that takes the longer the more machine code it makes. It unrolls loops that LLVM left rolled, whether
/// they are worth it or not: in a kernel much of whose code a block runs once, that is time of the first
/// launch spent on copies that gain nothing.
///
/// Parameters are at most eight: raw pointers (to numbers, `Bf16`, `F16` or arrays of them), `u32`, `i32`,
/// `u64`, `i64`, `f32`, `Flag`, `Code<..>`, `TensorMap`, which the body sees as a `*const TensorMap` into the
/// kernel's parameters, and structs of [`arguments`](macro@arguments), which are taken apart: into the
/// entry's parameters, the largest first. Slices, references and other structs are refused: rustc passes them
/// so that PTX loses the address space.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    kernel::begin(attribute.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

/// Makes a struct one that kernels take, as it is or inside of another. Its fields are what a kernel's
/// parameters may be; a field that is such a struct itself is named by a path that is valid wherever the
/// kernel is, `crate::..`.
///
/// The host has a struct of the same name with the same fields, and the same documentation: no links in it.
/// Names are those of one namespace.
#[proc_macro_attribute]
pub fn arguments(attribute: TokenStream, item: TokenStream) -> TokenStream {
    arguments::expand(attribute.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

/// Gives the host an item as well:
///
/// - a constant: of an integer type, or of a struct of integers, written as a struct literal. The host gets
///   its value;
/// - an enum with `#[repr(u32)]`, the codes that a `Code` may hold;
/// - a struct of numbers;
/// - a `const fn`, which names nothing but its parameters and other such items.
///
/// The documentation goes along: no links in it. Names are those of one namespace.
#[proc_macro_attribute]
pub fn host(attribute: TokenStream, item: TokenStream) -> TokenStream {
    host::expand(attribute.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

/// The next step of `#[kernel]`, with the fields of one more struct: what the macro beside such a struct
/// expands to.
#[doc(hidden)]
#[proc_macro]
pub fn resolve_arguments(input: TokenStream) -> TokenStream {
    kernel::resume(input.into()).unwrap_or_else(Error::into_compile_error).into()
}

/// Writes a loop over integer literals out: `unroll!(for i in 0..64 { acc[i] += part[i] })`.
///
/// In the body, `i` is the literal, so that arrays in registers are indexed by constants; also inside other
/// macros, nested `unroll!`s among them.
#[proc_macro]
pub fn unroll(input: TokenStream) -> TokenStream {
    unroll::unroll(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

/// `wgmma_e4m3!(N, acc, a, b, accumulate)`: four `wgmma.mma_async.m64nNk32` over 128 bytes of K; `b` is the
/// lower half of a descriptor, or `[low, high, step]` of `Cores`. See `cuda_std::wgmma`.
#[proc_macro]
pub fn wgmma_e4m3(input: TokenStream) -> TokenStream {
    wgmma::product(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

/// `wgmma_tie!(REGISTERS, acc)`: ties the accumulators to this place of the program; see `cuda_std::wgmma`.
#[proc_macro]
pub fn wgmma_tie(input: TokenStream) -> TokenStream {
    wgmma::tie(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}
