//! `#[host]`: items that the host has as well, and the text of records.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, Fields, Item, ItemConst, ItemEnum, Type};

/// An item as it was, and its record.
pub fn expand(attribute: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(attribute.span(), "`#[host]` takes nothing"));
    }
    let item: Item = syn::parse2(item)?;
    let also = match &item {
        Item::Const(constant) => self::constant(constant)?,
        Item::Enum(codes) => {
            let kind = kind(codes)?;
            let record = record("host", &codes.to_token_stream());
            quote!(#kind #record)
        }
        Item::Struct(_) => record("host", &item.to_token_stream()),
        Item::Fn(function) if function.sig.constness.is_some() => record("host", &item.to_token_stream()),
        _ => {
            let message = "`#[host]` is for constants, enums, structs of numbers and `const fn`";
            return Err(Error::new(item.span(), message));
        }
    };
    Ok(quote! {
        #[allow(dead_code, reason = "the host may be the only one to use it")]
        #item
        #also
    })
}

/// A record without values: `//#kind text`.
pub fn record(kind: &str, text: &TokenStream) -> TokenStream {
    let line = line(kind, text);
    quote!(::core::arch::global_asm!(#line);)
}

/// The template of `global_asm!` for a record.
fn line(kind: &str, text: &TokenStream) -> String {
    let text = text.to_string().replace('\n', " ").replace('{', "{{").replace('}', "}}");
    format!("//#{kind} {text}")
}

/// The record of a constant's value.
fn constant(constant: &ItemConst) -> syn::Result<TokenStream> {
    let ItemConst { ident, ty, .. } = constant;
    let documentation = documentation(&constant.attrs);
    let declaration = line("host", &quote!(#(#documentation)* pub const #ident: #ty =));
    if let Expr::Struct(literal) = &*constant.expr {
        if literal.rest.is_some() {
            return Err(Error::new(literal.span(), "every field is written out"));
        }
        let fields = literal.fields.iter().map(|field| &field.member).collect::<Vec<_>>();
        let operands = (0..fields.len()).map(|i| format_ident!("value{i}")).collect::<Vec<_>>();
        let values = fields
            .iter()
            .zip(&operands)
            .map(|(field, operand)| format!("{}: {{{operand}}}", field.to_token_stream()));
        let path = literal.path.to_token_stream();
        let template = format!("{declaration} {path} {{{{ {} }}}};", values.collect::<Vec<_>>().join(", "));
        return Ok(quote! {
            ::core::arch::global_asm!(#template, #(#operands = const { #ident.#fields }),*);
        });
    }
    if !matches!(&**ty, Type::Path(path) if path.path.get_ident().is_some_and(is_integer)) {
        return Err(Error::new(ty.span(), "expected an integer, or a struct literal of integers"));
    }
    let template = format!("{declaration} {{value}};");
    Ok(quote!(::core::arch::global_asm!(#template, value = const { #ident });))
}

fn is_integer(ident: &proc_macro2::Ident) -> bool {
    ["u32", "i32", "u64", "i64", "usize"].iter().any(|name| ident == name)
}

/// What makes an enum one of codes that a kernel takes.
fn kind(codes: &ItemEnum) -> syn::Result<TokenStream> {
    let is_u32 = |attribute: &Attribute| {
        attribute.path().is_ident("repr")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|repr| repr == "u32")
    };
    if !codes.attrs.iter().any(is_u32) {
        return Err(Error::new(codes.span(), "codes are `#[repr(u32)]`"));
    }
    let with_fields = codes.variants.iter().find(|variant| !matches!(variant.fields, Fields::Unit));
    if let Some(variant) = with_fields {
        return Err(Error::new(variant.span(), "a code has no fields"));
    }
    let ident = &codes.ident;
    Ok(quote! {
        impl ::cuda_std::code::Kind for #ident {
            #[inline(always)]
            fn code(self) -> u32 {
                self as u32
            }
        }
    })
}

fn documentation(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("doc"))
}
