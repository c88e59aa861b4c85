//! `#[arguments]`: structs that kernels take, and how a kernel comes to know their fields.
//!
//! An attribute sees the item that it stands on and nothing else. So a struct of arguments leaves a macro
//! beside it, under its own name, which hands its fields on:
//!
//! ```text
//! #[kernel] fn gemm(arguments: Plain)  -->  Plain! { state }  -->  resolve_arguments! { {fields of Plain} state }
//!     Plain has a field scales: crate::abi::Scales          -->  crate::abi::Scales! { state }  -->  ..  -->  the entry
//! ```

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, Fields, GenericArgument, ItemStruct, PathArguments, Type};

use crate::host::record;

/// The struct, the macro that hands its fields on, and its record.
pub fn expand(attribute: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(attribute.span(), "`#[arguments]` takes nothing"));
    }
    let mut item: ItemStruct = syn::parse2(item)?;
    if !item.generics.params.is_empty() {
        return Err(Error::new(item.generics.span(), "a struct of arguments is not generic"));
    }
    let record = record("arguments", &item.to_token_stream());
    let Fields::Named(fields) = &mut item.fields else {
        return Err(Error::new(item.fields.span(), "arguments have names"));
    };
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for field in &mut fields.named {
        Leaf::of(&field.ty)?;
        names.push(field.ident.clone());
        types.push(field.ty.clone());
        if let Some(Leaf::TensorMap) = Leaf::of(&field.ty)? {
            field.ty = syn::parse_quote!(*const ::cuda_std::tma::TensorMap);
        }
    }
    let ident = &item.ident;
    let hand_on = format_ident!("__fields_of_{ident}");
    Ok(quote! {
        #[derive(Clone, Copy)]
        #item
        #[doc(hidden)]
        #[allow(unused_macros)]
        macro_rules! #hand_on {
            ($($state:tt)*) => { ::cuda_std::resolve_arguments! { { #(#names: #types),* } $($state)* } };
        }
        #[allow(unused_imports)]
        pub(crate) use #hand_on as #ident;
        #record
    })
}

/// What a parameter of an entry may be.
#[derive(Clone, Copy, PartialEq)]
pub enum Leaf {
    /// A pointer or a number, as it is.
    Plain,
    /// `Flag`: a u32, 0 or not.
    Flag,
    /// `Code<..>`: a u32.
    Code,
    /// 128 bytes by value, which the kernel sees as a pointer.
    TensorMap,
}

impl Leaf {
    /// What `ty` is; none for a path to a struct of arguments.
    pub fn of(ty: &Type) -> syn::Result<Option<Leaf>> {
        match ungroup(ty) {
            Type::Ptr(pointer) => element(&pointer.elem).map(|()| Some(Leaf::Plain)),
            Type::Path(path) => {
                let Some(last) = path.path.segments.last() else { return Ok(None) };
                Ok(match last.ident.to_string().as_str() {
                    "u32" | "i32" | "u64" | "i64" | "f32" => Some(Leaf::Plain),
                    "Flag" => Some(Leaf::Flag),
                    "TensorMap" => Some(Leaf::TensorMap),
                    "Code" => code(&last.arguments).map(|()| Some(Leaf::Code))?,
                    _ => None,
                })
            }
            other => {
                let message = "a kernel takes raw pointers, u32, i32, u64, i64, f32, Flag, Code<..>, TensorMap and \
                               structs of `#[arguments]`";
                Err(Error::new(other.span(), message))
            }
        }
    }
}

/// The type a pointer argument points to: a path, or an array of such.
fn element(ty: &Type) -> syn::Result<()> {
    match ungroup(ty) {
        Type::Path(_) => Ok(()),
        Type::Array(array) => element(&array.elem),
        other => Err(Error::new(other.span(), "a kernel's pointers point to numbers or arrays of numbers")),
    }
}

/// The kind that a `Code<..>` names.
fn code(arguments: &PathArguments) -> syn::Result<()> {
    match arguments {
        PathArguments::AngleBracketed(kinds)
            if kinds.args.len() == 1 && matches!(kinds.args[0], GenericArgument::Type(Type::Path(_))) =>
        {
            Ok(())
        }
        other => Err(Error::new(other.span(), "a code is of one kind: `Code<Kind>`")),
    }
}

/// `macro_rules!` wraps a substituted type in an invisible group.
pub fn ungroup(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungroup(&group.elem),
        Type::Paren(paren) => ungroup(&paren.elem),
        other => other,
    }
}
