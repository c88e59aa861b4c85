//! PTX text to syntax tree (ISA chapters "Syntax", "State Spaces, Types, and Variables", "Directives").
//!
//! ```text
//!   text ──lexer──▶ tokens ──parser──▶ ast::Source { variables, functions { statements } }
//! ```
//!
//! The tree keeps names as slices of the text and knows nothing of what instructions mean: an instruction is
//! its dotted name and its operands. What it means is decided by `decode`, which refuses what it does not
//! know.

pub mod ast;
mod directives;
pub mod lexer;
mod parser;

pub use parser::parse;
