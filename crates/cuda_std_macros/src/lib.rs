//! The `#[kernel]` attribute of `cuda_std`.
//!
//! ```text
//! #[kernel(threads = 256, min_blocks = 2)]
//! pub unsafe fn scale(x: *const f32, y: *mut f32, n: u32) { .. }
//!        |
//!        +--> #[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn scale(..) { .. }
//!        +--> global_asm!("//#kernel scale threads=256 min_blocks=2 cluster=1 wgmma_n=0 overlap=0 (x: ..)")
//! ```
//!
//! The second line ends up in the PTX as a comment. `cuda_builder` reads it back: the launch bounds become
//! `.maxntid`/`.minnctapersm` directives, the arguments become the fields of a typed launcher on the host.
//! Because the record is made by the compiler and not by scanning source, kernels that `macro_rules!` generates work
//! like any other.

mod unroll;
mod wgmma;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Error, Expr, FnArg, Ident, ItemFn, Pat, ReturnType, Token, Type, parse_macro_input};

/// Makes an `unsafe fn` a kernel that the host can launch.
///
/// `threads` (required) is the number of threads of a block, `min_blocks` (default 1) the number of blocks that must fit
/// on one SM at a time; together they bound the registers a thread may use. `cluster` (default 1) is the number of blocks along x
/// that make a cluster. All are constant expressions.
///
/// `wgmma_n` is N of the kernel's `wgmma`s, all of one shape: the PTX gate looks for `QGMMA.64xNx32` in its machine code, and for no
/// other. Without it, the gate wants none.
///
/// With `overlap = before` the kernel may begin while its predecessor in the stream still runs; before its body, `grid::wait` waits
/// for that and `grid::launch_dependents` lets its own successor begin. With `overlap = within` the body does both itself.
///
/// Arguments are raw pointers (to numbers, `Bf16`, `F16` or arrays of them), `u32`, `i32`, `u64`, `i64`, `f32`, and
/// `TensorMap`, which the body sees as a `*const TensorMap` into the kernel's parameters. Slices, references and other structs
/// are refused: rustc passes them so that PTX loses the address space.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let bounds = parse_macro_input!(attribute as Bounds);
    let function = parse_macro_input!(item as ItemFn);
    expand(bounds, function).unwrap_or_else(Error::into_compile_error).into()
}

/// Writes a loop over integer literals out: `unroll!(for i in 0..64 { acc[i] += part[i] })`.
///
/// In the body, `i` is the literal, so that arrays in registers are indexed by constants; also inside other macros, nested
/// `unroll!`s among them.
#[proc_macro]
pub fn unroll(input: TokenStream) -> TokenStream {
    unroll::unroll(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

/// `wgmma_e4m3!(N, acc, a, b, accumulate)`: four `wgmma.mma_async.m64nNk32` over 128 bytes of K; see `cuda_std::wgmma`.
#[proc_macro]
pub fn wgmma_e4m3(input: TokenStream) -> TokenStream {
    wgmma::product(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

/// `wgmma_tie!(REGISTERS, acc)`: ties the accumulators to this place of the program; see `cuda_std::wgmma`.
#[proc_macro]
pub fn wgmma_tie(input: TokenStream) -> TokenStream {
    wgmma::tie(parse_macro_input!(input)).unwrap_or_else(Error::into_compile_error).into()
}

/// The arguments of the attribute.
struct Bounds {
    threads: Expr,
    min_blocks: Expr,
    cluster: Expr,
    wgmma_n: Expr,
    overlap: Option<Overlap>,
}

/// Where a kernel that may begin before its predecessor has ended waits for it.
#[derive(Clone, Copy, PartialEq)]
enum Overlap {
    /// Before its body: the attribute does it.
    Before,
    /// Within its body, which does it itself.
    Within,
}

impl Parse for Bounds {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let (mut threads, mut min_blocks, mut cluster) = (None, None, None);
        let (mut wgmma_n, mut overlap) = (None, None);
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            input.parse::<Token![=]>()?;
            let twice = if key == "overlap" {
                let place: Ident = input.parse()?;
                let place = match place.to_string().as_str() {
                    "before" => Overlap::Before,
                    "within" => Overlap::Within,
                    _ => return Err(Error::new(place.span(), "expected `before` or `within`")),
                };
                overlap.replace(place).is_some()
            } else {
                let slot = match key.to_string().as_str() {
                    "threads" => &mut threads,
                    "min_blocks" => &mut min_blocks,
                    "cluster" => &mut cluster,
                    "wgmma_n" => &mut wgmma_n,
                    _ => {
                        let known = "expected `threads`, `min_blocks`, `cluster`, `wgmma_n` or `overlap`";
                        return Err(Error::new(key.span(), known));
                    }
                };
                slot.replace(input.parse::<Expr>()?).is_some()
            };
            if twice {
                return Err(Error::new(key.span(), format!("`{key}` is given twice")));
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(Bounds {
            threads: threads.ok_or_else(|| input.error("`threads = ..` is missing"))?,
            min_blocks: min_blocks.unwrap_or_else(|| syn::parse_quote!(1)),
            cluster: cluster.unwrap_or_else(|| syn::parse_quote!(1)),
            wgmma_n: wgmma_n.unwrap_or_else(|| syn::parse_quote!(0)),
            overlap,
        })
    }
}

fn expand(bounds: Bounds, mut function: ItemFn) -> syn::Result<TokenStream2> {
    let signature = &mut function.sig;
    if signature.unsafety.is_none() {
        return Err(Error::new(
            signature.fn_token.span(),
            "a kernel is an `unsafe fn`: its pointers come from the host unchecked",
        ));
    }
    if signature.abi.is_some() {
        return Err(Error::new(signature.abi.span(), "the attribute sets the ABI, leave `extern` out"));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(
            signature.generics.span(),
            "a kernel is not generic: instantiate it with macro_rules!",
        ));
    }
    if !matches!(signature.output, ReturnType::Default) {
        return Err(Error::new(signature.output.span(), "a kernel returns nothing"));
    }
    let arguments = signature.inputs.iter().map(argument).collect::<syn::Result<Vec<_>>>()?;
    let maps = tensor_maps(signature);
    let record = format!(
        "//#kernel {} threads={{threads}} min_blocks={{min_blocks}} cluster={{cluster}} wgmma_n={{wgmma_n}} overlap={} ({})",
        signature.ident,
        u32::from(bounds.overlap.is_some()),
        arguments.join(", ")
    );
    signature.abi = Some(syn::parse_quote!(extern "ptx-kernel"));
    if bounds.overlap == Some(Overlap::Before) {
        function.block.stmts.insert(0, syn::parse_quote!(::cuda_std::grid::wait();));
        function.block.stmts.insert(1, syn::parse_quote!(::cuda_std::grid::launch_dependents();));
    }
    function.block.stmts.splice(0..0, maps);
    let Bounds { threads, min_blocks, cluster, wgmma_n, .. } = bounds;
    Ok(quote! {
        ::core::arch::global_asm!(
            #record,
            threads = const { #threads },
            min_blocks = const { #min_blocks },
            cluster = const { #cluster },
            wgmma_n = const { #wgmma_n }
        );
        #[unsafe(no_mangle)]
        #function
    })
}

/// Turns every argument of type `TensorMap` into 128 bytes that rustc can pass (it crashes on a parameter aligned over 16), and
/// gives the statements that define the argument's name as their address. `cuda_builder` raises the alignment in the PTX.
///
/// The address is taken in PTX, by the parameter's symbol: taken in Rust, LLVM would copy the parameter to the stack.
fn tensor_maps(signature: &mut syn::Signature) -> Vec<syn::Stmt> {
    let kernel = signature.ident.to_string();
    let mut statements = Vec::new();
    for (index, argument) in signature.inputs.iter_mut().enumerate() {
        let FnArg::Typed(argument) = argument else { continue };
        if ungroup(&argument.ty).to_token_stream().to_string() != "TensorMap" {
            continue;
        }
        let name = &argument.pat;
        let take = format!("mov.b64 {{map}}, {kernel}_param_{index};");
        statements.push(syn::parse_quote! {
            let #name: *const ::cuda_std::tma::TensorMap = {
                let map;
                // SAFETY: computes the address of a parameter, touches no memory.
                unsafe {
                    ::core::arch::asm!(#take, "cvta.param.u64 {map}, {map};", map = out(reg64) map,
                        options(pure, nomem, nostack, preserves_flags))
                }
                map
            };
        });
        *argument.pat = syn::parse_quote!(_);
        *argument.ty = syn::parse_quote!(::cuda_std::tma::TensorMapBytes);
    }
    statements
}

/// One argument as it is written in the record: `name: type`.
fn argument(argument: &FnArg) -> syn::Result<String> {
    let FnArg::Typed(argument) = argument else {
        return Err(Error::new(argument.span(), "a kernel has no `self`"));
    };
    let Pat::Ident(name) = &*argument.pat else {
        return Err(Error::new(argument.pat.span(), "an argument of a kernel is a plain name"));
    };
    let ty = match ungroup(&argument.ty) {
        Type::Ptr(pointer) => {
            let mutability = if pointer.mutability.is_some() { "mut" } else { "const" };
            format!("*{mutability} {}", element(&pointer.elem)?)
        }
        other => {
            let name = other.to_token_stream().to_string();
            if !["u32", "i32", "u64", "i64", "f32", "TensorMap"].contains(&name.as_str()) {
                return Err(Error::new(
                    other.span(),
                    "a kernel takes raw pointers, u32, i32, u64, i64, f32 and TensorMap",
                ));
            }
            name
        }
    };
    Ok(format!("{}: {ty}", name.ident))
}

/// The type a pointer argument points to: the last segment of a path, or an array of such.
fn element(ty: &Type) -> syn::Result<String> {
    match ungroup(ty) {
        Type::Path(path) => {
            let segment =
                path.path.segments.last().ok_or_else(|| Error::new(path.span(), "expected a type"))?;
            Ok(segment.ident.to_string())
        }
        Type::Array(array) => Ok(format!("[{}; {}]", element(&array.elem)?, array.len.to_token_stream())),
        other => Err(Error::new(other.span(), "a kernel's pointers point to numbers or arrays of numbers")),
    }
}

/// `macro_rules!` wraps a substituted type in an invisible group.
fn ungroup(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungroup(&group.elem),
        Type::Paren(paren) => ungroup(&paren.elem),
        other => other,
    }
}
