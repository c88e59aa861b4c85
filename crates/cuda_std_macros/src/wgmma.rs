//! `wgmma_e4m3!`: the asynchronous tensor-core product over 128 bytes of K in shared memory.
//!
//! `wgmma.mma_async.m64nNk32` names every accumulator register as an operand of its own (N/2 of them),
//! so a wrapper is a list, not a loop; this macro writes the list for each N.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, LitInt, Result, Token};

/// `N, accumulators, a descriptor, b descriptor, keep the old accumulators?`
pub struct Product {
    n: LitInt,
    accumulators: Expr,
    a: Expr,
    b: Operand,
    accumulate: Expr,
}

/// B.
enum Operand {
    /// In the 128-byte swizzle: the lower half of its descriptor.
    Swizzled(Expr),
    /// `[low, high, step]`: the halves of its descriptor, and units from a K step to the next.
    Cores(Box<[Expr; 3]>),
}

impl Operand {
    fn of(operand: Expr) -> Result<Self> {
        match operand {
            Expr::Array(array) => {
                let [low, high, step] =
                    array.elems.into_iter().collect::<Vec<_>>().try_into().map_err(|_| {
                        Error::new(
                            array.bracket_token.span.join(),
                            "an operand of cores is `[low, high, step]`",
                        )
                    })?;
                Ok(Self::Cores(Box::new([low, high, step])))
            }
            operand => Ok(Self::Swizzled(operand)),
        }
    }
}

impl Parse for Product {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let n = input.parse()?;
        input.parse::<Token![,]>()?;
        let accumulators = input.parse()?;
        input.parse::<Token![,]>()?;
        let a = input.parse()?;
        input.parse::<Token![,]>()?;
        let b = Operand::of(input.parse()?)?;
        input.parse::<Token![,]>()?;
        let accumulate = input.parse()?;
        input.parse::<Option<Token![,]>>()?;
        Ok(Product { n, accumulators, a, b, accumulate })
    }
}

/// K of one `wgmma` e4m3 instruction, and of the four that walk a 128-byte row.
const K_STEPS: u32 = 4;
/// The upper half of the descriptor of every swizzled operand: atoms of 8 rows 1024 bytes apart, 128-byte
/// swizzle; see `cuda_std::wgmma::descriptor`.
const DESCRIPTOR_HIGH: u32 = (1024 >> 4) | 1 << 30;
/// Descriptor units (16 bytes) between two K steps of 32 bytes of a swizzled operand.
const STEP_UNITS: u32 = 2;

pub fn product(p: Product) -> Result<TokenStream> {
    let n: u32 = p.n.base10_parse()?;
    if n == 0 || n > 256 || !n.is_multiple_of(8) {
        return Err(Error::new(
            p.n.span(),
            format!("wgmma N is {n}; it must be a multiple of 8 from 8 to 256"),
        ));
    }
    let names: Vec<_> = (0..n / 2).map(|i| format_ident!("r{i}")).collect();
    let list = names.iter().map(|r| format!("{{{r}}}")).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        "{{".to_string(),
        ".reg .pred keep;".into(),
        ".reg .b64 da, db;".into(),
        ".reg .b32 la, lb;".into(),
        "setp.ne.b32 keep, {accumulate}, 0;".into(),
    ];
    let Product { accumulators: acc, a, b, accumulate, .. } = p;
    let (b, b_high, b_operands) = match b {
        Operand::Swizzled(low) => (low, DESCRIPTOR_HIGH.to_string(), quote! {}),
        Operand::Cores(parts) => {
            let [low, high, step] = *parts;
            (low, "{b_high}".into(), quote! { b_high = in(reg32) #high, b_step = in(reg32) #step, })
        }
    };
    for step in 0..K_STEPS {
        let units = step * STEP_UNITS;
        lines.push(format!("add.u32 la, {{a}}, {units};"));
        lines.push(match b_operands.is_empty() {
            true => format!("add.u32 lb, {{b}}, {units};"),
            false => format!("mad.lo.u32 lb, {{b_step}}, {step}, {{b}};"),
        });
        lines.push(format!("mov.b64 da, {{{{la, {DESCRIPTOR_HIGH}}}}};"));
        lines.push(format!("mov.b64 db, {{{{lb, {b_high}}}}};"));
        let keep = if step == 0 { "keep" } else { "1" };
        lines.push(format!(
            "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{{{list}}}}}, da, db, {keep}, 1, 1;"
        ));
    }
    lines.push("}}".into());
    let index = 0..names.len();
    Ok(quote! {
        ::core::arch::asm!(
            #(#lines,)*
            a = in(reg32) #a,
            b = in(reg32) #b,
            #b_operands
            accumulate = in(reg32) (#accumulate) as u32,
            #(#names = inout(reg32) #acc[#index],)*
            options(nostack)
        )
    })
}

/// `registers, accumulators`: an empty statement that reads and writes every accumulator.
pub struct Tie {
    registers: LitInt,
    accumulators: Expr,
}

impl Parse for Tie {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let registers = input.parse()?;
        input.parse::<Token![,]>()?;
        Ok(Tie { registers, accumulators: input.parse()? })
    }
}

pub fn tie(t: Tie) -> Result<TokenStream> {
    let count: usize = t.registers.base10_parse()?;
    let names: Vec<_> = (0..count).map(|i| format_ident!("r{i}")).collect();
    let list = names.iter().map(|r| format!("{{{r}}}")).collect::<Vec<_>>().join(" ");
    let comment = format!("// {list}");
    let acc = t.accumulators;
    let index = 0..count;
    Ok(quote! {
        ::core::arch::asm!(#comment, #(#names = inout(reg32) #acc[#index],)* options(nostack))
    })
}
