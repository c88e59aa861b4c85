//! `#[kernel]`: from a function to an entry of the PTX, and its record.

use std::cmp::Reverse;
use std::mem;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    Error, Expr, Field, FnArg, Ident, ItemFn, Pat, PatType, Path, ReturnType, Stmt, Token, Type, braced,
    bracketed, parenthesized,
};

use crate::arguments::{Leaf, ungroup};

/// Parameters of a kernel in its source, at most.
const MOST_PARAMETERS: usize = 8;

/// Bytes of a tensor map.
const MAP_BYTES: u32 = 128;

/// The first step: a kernel, of whose structs nothing is known yet.
pub fn begin(attribute: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let function: ItemFn = syn::parse2(item)?;
    check(&function)?;
    Kernel { attribute, function, known: Vec::new() }.step()
}

/// A further step: the fields of one more struct have come.
pub fn resume(input: TokenStream) -> syn::Result<TokenStream> {
    syn::parse2::<Kernel>(input)?.step()
}

/// A kernel, and the structs among its parameters whose fields are known.
struct Kernel {
    attribute: TokenStream,
    function: ItemFn,
    known: Vec<(Path, Vec<Field>)>,
}

impl Parse for Kernel {
    /// `{ fields } (path) [ (path) { fields } .. ] [ attribute ] { function }`: first the struct that has
    /// come, then those that had come before it.
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let fields = fields(input)?;
        let mut known = vec![(path(input)?, fields)];
        let before;
        bracketed!(before in input);
        while !before.is_empty() {
            let path = path(&before)?;
            known.push((path, self::fields(&before)?));
        }
        let (attribute, function);
        bracketed!(attribute in input);
        braced!(function in input);
        Ok(Kernel { attribute: attribute.parse()?, function: function.parse()?, known })
    }
}

fn path(input: ParseStream<'_>) -> syn::Result<Path> {
    let path;
    parenthesized!(path in input);
    path.parse()
}

fn fields(input: ParseStream<'_>) -> syn::Result<Vec<Field>> {
    let fields;
    braced!(fields in input);
    Ok(Punctuated::<Field, Token![,]>::parse_terminated_with(&fields, Field::parse_named)?
        .into_iter()
        .collect())
}

impl Kernel {
    /// Asks for the fields of a struct that is not known yet, or makes the entry.
    fn step(self) -> syn::Result<TokenStream> {
        let parameters = self.function.sig.inputs.iter().map(parameter).collect::<syn::Result<Vec<_>>>()?;
        let types = parameters.iter().map(|&(_, ty)| ty);
        let fields = self.known.iter().flat_map(|(_, fields)| fields.iter().map(|field| &field.ty));
        for ty in types.chain(fields) {
            if let Some(path) = structure(ty)?
                && self.fields_of(path).is_none()
            {
                let Kernel { attribute, function, known } = &self;
                let known = known.iter().map(|(path, fields)| quote!((#path) { #(#fields),* }));
                return Ok(quote!(#path! { (#path) [#(#known)*] [#attribute] { #function } }));
            }
        }
        self.entry(&parameters)
    }

    fn fields_of(&self, path: &Path) -> Option<&[Field]> {
        let same = |other: &Path| other.to_token_stream().to_string() == path.to_token_stream().to_string();
        self.known.iter().find(|(known, _)| same(known)).map(|(_, fields)| fields.as_slice())
    }

    /// The entry and its record.
    fn entry(&self, parameters: &[(&Ident, &Type)]) -> syn::Result<TokenStream> {
        let Bounds { threads, min_blocks, cluster, wgmma_n, shared, overlap, may_unroll } =
            syn::parse2(self.attribute.clone())?;
        let mut function = self.function.clone();
        let source = function.sig.inputs.to_token_stream().to_string().replace('\n', " ");
        let record = format!(
            "//#kernel {} threads={{threads}} min_blocks={{min_blocks}} cluster={{cluster}} wgmma_n={} overlap={} \
             unroll={} shared={{shared}} ({source})",
            function.sig.ident,
            (0..wgmma_n.len()).map(|number| format!("{{wgmma_n_{number}}}")).collect::<Vec<_>>().join("+"),
            u32::from(overlap.is_some()),
            u32::from(may_unroll),
        );
        let wgmma_n = wgmma_n.iter().enumerate().map(|(number, n)| {
            let name = quote::format_ident!("wgmma_n_{number}");
            quote!(#name = const { #n })
        });
        let mut flat = Flat { kernel: function.sig.ident.to_string(), parameters: Vec::new() };
        let mut statements: Vec<Stmt> = Vec::new();
        for (name, ty) in parameters {
            let value = self.value(&mut flat, &name.to_string(), ty)?;
            // Of a tensor map the name is its address.
            let ty = if Leaf::of(ty)? == Some(Leaf::TensorMap) { quote!(_) } else { quote!(#ty) };
            statements.push(syn::parse_quote!(let #name: #ty = #value;));
        }
        let mut flat = flat.parameters;
        if !self.known.is_empty() {
            flat.sort_by_key(|parameter| Reverse(parameter.size));
        }
        let names = flat.iter().map(|parameter| &parameter.name);
        let types = flat.iter().map(|parameter| &parameter.ty);
        function.sig.inputs = syn::parse_quote!(#(#names: #types),*);
        function.sig.abi = Some(syn::parse_quote!(extern "ptx-kernel"));
        if overlap == Some(Overlap::Before) {
            statements.push(syn::parse_quote!(::cuda_std::grid::wait();));
            statements.push(syn::parse_quote!(::cuda_std::grid::launch_dependents();));
        }
        function.block.stmts.splice(0..0, statements);
        Ok(quote! {
            ::core::arch::global_asm!(
                #record,
                threads = const { #threads },
                min_blocks = const { #min_blocks },
                cluster = const { #cluster },
                #(#wgmma_n,)*
                shared = const { #shared }
            );
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments, reason = "parameters of an entry, written as structs")]
            #function
        })
    }

    /// The value of a parameter or field of type `ty`, in terms of the entry's parameters, which are added to
    /// `flat`.
    fn value(&self, flat: &mut Flat, name: &str, ty: &Type) -> syn::Result<TokenStream> {
        if let Some(leaf) = Leaf::of(ty)? {
            return Ok(match leaf {
                Leaf::Plain => flat.push(name, quote!(#ty), size(ty)),
                Leaf::Flag => {
                    let flag = flat.push(name, quote!(u32), 4);
                    quote!(::cuda_std::code::Flag::from_raw(#flag))
                }
                Leaf::Code => {
                    let code = flat.push(name, quote!(u32), 4);
                    quote!(::cuda_std::code::Code::from_raw(#code))
                }
                Leaf::TensorMap => flat.push_map(name, !self.known.is_empty()),
            });
        }
        let Some(path) = structure(ty)? else { return Err(Error::new(ty.span(), "expected a struct")) };
        let fields = self.fields_of(path).unwrap_or_default();
        let mut values = Vec::new();
        for Field { ident, ty, .. } in fields {
            let field = ident.as_ref().map(ToString::to_string).unwrap_or_default();
            let value = self.value(flat, &format!("{name}_{field}"), ty)?;
            values.push(quote!(#ident: #value));
        }
        Ok(quote!(#path { #(#values),* }))
    }
}

/// The parameters of an entry. Those of structs go by size, the largest first: so that there is no padding
/// between them.
struct Flat {
    kernel: String,
    parameters: Vec<Parameter>,
}

/// A parameter of an entry.
struct Parameter {
    name: Ident,
    ty: TokenStream,
    size: u32,
}

/// Bytes of a pointer or number.
fn size(ty: &Type) -> u32 {
    let is_64_bits = |path: &Path| path.is_ident("u64") || path.is_ident("i64");
    match ungroup(ty) {
        Type::Path(path) if !is_64_bits(&path.path) => 4,
        _ => 8,
    }
}

impl Flat {
    /// One more; its name.
    fn push(&mut self, name: &str, ty: TokenStream, size: u32) -> TokenStream {
        let name = Ident::new(&format!("__{name}"), Span::mixed_site());
        self.parameters.push(Parameter { name: name.clone(), ty, size });
        quote!(#name)
    }

    /// One more, a tensor map: 128 bytes that rustc can pass (it crashes on a parameter aligned over 16).
    /// `cuda_builder` raises the alignment in the PTX.
    ///
    /// The address is taken in PTX, by the parameter's symbol: taken in Rust, LLVM would copy the parameter
    /// to the stack.
    fn push_map(&mut self, name: &str, is_sorted: bool) -> TokenStream {
        // Where parameters are sorted, maps come first.
        let before = |parameter: &&Parameter| !is_sorted || parameter.size == MAP_BYTES;
        let index = self.parameters.iter().filter(before).count();
        let take = format!("mov.b64 {{map}}, {}_param_{index};", self.kernel);
        let unused = self.push(name, quote!(::cuda_std::tma::TensorMapBytes), MAP_BYTES);
        quote!({
            let _ = #unused;
            let map: *const ::cuda_std::tma::TensorMap;
            // SAFETY: computes the address of a parameter, touches no memory.
            unsafe {
                ::core::arch::asm!(#take, "cvta.param.u64 {map}, {map};", map = out(reg64) map,
                    options(pure, nomem, nostack, preserves_flags))
            }
            map
        })
    }
}

/// Name and type of a parameter.
fn parameter(argument: &FnArg) -> syn::Result<(&Ident, &Type)> {
    let FnArg::Typed(PatType { pat, ty, .. }) = argument else {
        return Err(Error::new(argument.span(), "a kernel has no `self`"));
    };
    match &**pat {
        Pat::Ident(name) if name.by_ref.is_none() && name.mutability.is_none() => Ok((&name.ident, ty)),
        other => Err(Error::new(other.span(), "a parameter of a kernel is a plain name")),
    }
}

/// The path of a struct of arguments; none for what is a parameter of the entry itself.
fn structure(ty: &Type) -> syn::Result<Option<&Path>> {
    match (Leaf::of(ty)?, ungroup(ty)) {
        (None, Type::Path(path)) => Ok(Some(&path.path)),
        _ => Ok(None),
    }
}

/// Refuses a function that cannot be a kernel.
fn check(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    let refuse = |span: Span, message: &str| Err(Error::new(span, message));
    if signature.unsafety.is_none() {
        let message = "a kernel is an `unsafe fn`: its pointers come from the host unchecked";
        return refuse(signature.fn_token.span(), message);
    }
    if signature.abi.is_some() {
        return refuse(signature.abi.span(), "the attribute sets the ABI, leave `extern` out");
    }
    if !signature.generics.params.is_empty() {
        return refuse(
            signature.generics.span(),
            "a kernel is not generic: instantiate it with macro_rules!",
        );
    }
    if !matches!(signature.output, ReturnType::Default) {
        return refuse(signature.output.span(), "a kernel returns nothing");
    }
    if signature.inputs.len() > MOST_PARAMETERS {
        let message = format!("a kernel takes at most {MOST_PARAMETERS} parameters: make structs of them");
        return refuse(signature.inputs.span(), &message);
    }
    Ok(())
}

/// The arguments of the attribute.
struct Bounds {
    threads: Expr,
    min_blocks: Expr,
    cluster: Expr,
    /// One or several, at least one.
    wgmma_n: Vec<Expr>,
    shared: Expr,
    overlap: Option<Overlap>,
    /// Whether `ptxas` may unroll loops.
    may_unroll: bool,
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
        let (mut wgmma_n, mut shared) = (None, None);
        let (mut overlap, mut may_unroll) = (None, true);
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
            } else if key == "unroll" {
                let when: Ident = input.parse()?;
                if when != "never" {
                    return Err(Error::new(when.span(), "expected `never`"));
                }
                !mem::replace(&mut may_unroll, false)
            } else {
                let slot = match key.to_string().as_str() {
                    "threads" => &mut threads,
                    "min_blocks" => &mut min_blocks,
                    "cluster" => &mut cluster,
                    "wgmma_n" => &mut wgmma_n,
                    "shared" => &mut shared,
                    _ => {
                        let known = "expected `threads`, `min_blocks`, `cluster`, `wgmma_n`, `shared`, \
                                     `overlap` or `unroll`";
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
            wgmma_n: match wgmma_n {
                Some(Expr::Array(list)) if !list.elems.is_empty() => list.elems.into_iter().collect(),
                Some(one) => vec![one],
                None => vec![syn::parse_quote!(0)],
            },
            shared: shared.unwrap_or_else(|| syn::parse_quote!(0)),
            overlap,
            may_unroll,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a kernel with this attribute.
    fn expand(attribute: &str) -> syn::Result<String> {
        let function = quote!(
            unsafe fn clear(x: *mut f32) {}
        );
        begin(attribute.parse()?, function).map(|expanded| expanded.to_string())
    }

    #[test]
    fn the_record_says_whether_ptxas_may_unroll() {
        let record = |attribute| expand(attribute).expect("a valid attribute");
        assert!(record("threads = 128").contains("overlap=0 unroll=1 shared={shared} (x : * mut f32)"));
        assert!(record("threads = 128, unroll = never").contains("overlap=0 unroll=0 shared="));
        assert!(
            record("unroll = never, overlap = within, threads = 128").contains("overlap=1 unroll=0 shared=")
        );
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let refused = |attribute| expand(attribute).expect_err(attribute).to_string();
        assert_eq!(refused("threads = 128, unroll = always"), "expected `never`");
        assert_eq!(refused("threads = 128, unroll = never, unroll = never"), "`unroll` is given twice");
        assert!(refused("threads = 128, unroll = false").contains("expected identifier"));
        assert_eq!(refused("threads = 128, overlap = never"), "expected `before` or `within`");
        assert!(refused("threads = 128, rolled = 1").ends_with("`shared`, `overlap` or `unroll`"));
        assert!(refused("unroll = never").ends_with("`threads = ..` is missing"));
    }
}
