//! Tests that stand beside their code, of rooms that the emulator's public face does not show.
//!
//! Each room is compiled here by itself, in ten seconds. A test of the library would compile all of it a
//! second time, in minutes.

#![allow(dead_code, unused_imports, missing_docs, clippy::needless_range_loop)]

#[path = "../src/code/control_flow.rs"]
mod control_flow;
#[path = "../src/formats/mod.rs"]
mod formats;
#[path = "../src/mma/mod.rs"]
mod mma;
#[path = "../src/exec/printf.rs"]
mod printf;
