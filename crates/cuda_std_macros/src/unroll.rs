//! `unroll!`: a loop over integer literals, written out.
//!
//! Register arrays must be indexed by constants, or they move to local memory; LLVM's own unrolling comes
//! too late (and sometimes not at all) to rely on.

use proc_macro2::{Group, Literal, Span, TokenStream, TokenTree};
use quote::quote;
use syn::visit_mut::{self, VisitMut};
use syn::{Error, Expr, ExprForLoop, ExprLit, Ident, Lit, LitInt, Pat, Result};

struct Substitute<'a> {
    variable: &'a Ident,
    value: usize,
}

impl VisitMut for Substitute<'_> {
    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        if let Expr::Path(path) = expr
            && path.path.is_ident(self.variable)
        {
            let literal = LitInt::new(&self.value.to_string(), Span::call_site());
            *expr = Expr::Lit(ExprLit { attrs: Vec::new(), lit: Lit::Int(literal) });
            return;
        }
        visit_mut::visit_expr_mut(self, expr);
    }

    fn visit_macro_mut(&mut self, invocation: &mut syn::Macro) {
        invocation.tokens = self.in_tokens(std::mem::take(&mut invocation.tokens));
    }
}

fn literal(expr: Option<&Expr>) -> Result<usize> {
    match expr {
        Some(Expr::Lit(ExprLit { lit: Lit::Int(value), .. })) => value.base10_parse(),
        other => Err(Error::new_spanned(other, "unroll! needs integer literals as bounds: `for i in 0..64`")),
    }
}

impl Substitute<'_> {
    /// The tokens of another macro, nested `unroll!`s above all, with every identifier of the variable's name
    /// replaced.
    fn in_tokens(&self, tokens: TokenStream) -> TokenStream {
        let replace = |token| match token {
            TokenTree::Ident(name) if name == *self.variable => {
                TokenTree::Literal(Literal::usize_unsuffixed(self.value))
            }
            TokenTree::Group(group) => {
                let mut replaced = Group::new(group.delimiter(), self.in_tokens(group.stream()));
                replaced.set_span(group.span());
                TokenTree::Group(replaced)
            }
            other => other,
        };
        tokens.into_iter().map(replace).collect()
    }
}

pub fn unroll(input: ExprForLoop) -> Result<TokenStream> {
    let Pat::Ident(variable) = &*input.pat else {
        return Err(Error::new_spanned(&input.pat, "unroll! needs a plain loop variable"));
    };
    let Expr::Range(range) = &*input.expr else {
        return Err(Error::new_spanned(&input.expr, "unroll! needs a range of literals"));
    };
    let bodies = (literal(range.start.as_deref())?..literal(range.end.as_deref())?).map(|value| {
        let mut body = input.body.clone();
        Substitute { variable: &variable.ident, value }.visit_block_mut(&mut body);
        body
    });
    Ok(quote! { #(#bodies)* })
}
