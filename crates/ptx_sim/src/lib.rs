//! A CUDA device without a GPU: executes PTX on the CPU.
//!
//! ```text
//!   PTX text ──ptx──▶ syntax tree ──decode──▶ instructions with register slots ──run──▶ warps of 32 lanes
//!                                                                                   │
//!             Machine: global memory, SMs ──▶ blocks on worker threads ──▶ warps ───┘
//! ```
//!
//! # Rooms
//!
//! A room may use the rooms above it, as far as the table in `xtask/src/rooms.rs` allows, and none below it.
//!
//! ```text
//!   formats  approx                      numbers: bit formats, approximate functions
//!   fault  counters  random  limits      what is reported; draws of timing; sizes of an SM
//!   mma  wgmma  ldmatrix  tensor_map     tensor cores and TMA: layouts and arithmetic, without a machine
//!   ptx                                  text ──▶ syntax tree
//!   code                                 decoded instructions: operands as register slots. Knows no warps
//!   state                                a running machine: memory, blocks, warps. Knows no instructions
//!   engine                               the copy engine: what becomes of asynchronous operations
//!   exec                                 handlers: what instructions do to a warp. Know no decoder
//!   module                               entries, code and variables of a loaded text
//!   decode                               syntax tree ──▶ code, with the handler of each instruction
//!   run                                  clusters on worker threads, warps in turns, instructions one by one
//!   machine                              loads and launches
//!   driver                               the CUDA driver API over machines
//! ```
//!
//! A [`Machine`] is one simulated GPU. [`Machine::load`] turns PTX text into a [`Module`] (an unknown
//! instruction or modifier is a [`LoadError`], never a guess), and [`Machine::launch`] runs one of its
//! entries over a grid, synchronously, and returns [`Counters`] or the first [`Fault`].
//!
//! * A *warp instruction* runs at once over 32 lanes; registers are stored lane-contiguous. Lanes that
//!   diverge reconverge at the immediate post-dominator of the branch.
//! * Which warp runs next, and when an asynchronous operation (`cp.async`, a bulk copy, a `wgmma`) reads its
//!   source and lands its result, is drawn from the launch's seed, anywhere the PTX ISA allows.
//! * Always checked: out-of-bounds and misaligned accesses, use after free, uninitialised reads of shared and
//!   global memory, divergent use of aligned instructions, deadlock, data races on shared memory, results and
//!   operands of asynchronous operations touched before their wait, missing proxy fences; in a [`Chain`] of
//!   launches, what the preceding kernel wrote touched before `griddepcontrol.wait`.
//!
//! The chapters of the PTX ISA that an implementation follows are named where it is implemented.

#![allow(
    clippy::neg_cmp_op_on_partial_ord, // a negated comparison is PTX's unordered one
    clippy::nonminimal_bool,           // likewise
    clippy::double_comparisons,        // "ne" is ordered: less or greater
    clippy::needless_range_loop,       // the index is a lane
    clippy::unnecessary_cast,          // in macros over integer types
    clippy::result_large_err,          // an error ends the load
    clippy::if_same_then_else,         // `+n` and `-n` are both read with their sign
    clippy::never_loop,
    clippy::should_implement_trait,
    clippy::manual_range_contains,
    clippy::derivable_impls
)]

pub mod approx;
mod code;
pub mod counters;
mod decode;
pub mod driver;
mod engine;
mod exec;
pub mod fault;
pub mod formats;
pub mod ldmatrix;
mod limits;
pub mod machine;
pub mod mma;
pub mod module;
pub mod ptx;
mod random;
mod run;
mod state;
pub mod tensor_map;
pub mod wgmma;

pub use counters::Counters;
pub use fault::{Fault, FaultKind, LoadError};
pub use machine::{Launch, Machine, MachineConfig};
pub use module::{Entry, Module, Param};
pub use state::memory::MemoryError;
pub use state::overlap::Chain;
