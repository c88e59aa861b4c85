//! The tile list: which rows of which expert a GEMM takes, and in what order.
//!
//! ```text
//!   expert_offsets --> write: the schedule, by `permute` or by a kernel of its own --> work: items of a GEMM
//!                        |                                                              |
//!                        +------------ entry: the format, packed and unpacked -----------+
//!                  --> problem_sizes: (m, n, k) of every expert, for GEMMs of others
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`entry`] | draws the schedule, packs and unpacks its entries; nobody else knows their bits |
//! | [`mod@write`] | cuts the experts' rows into tiles and bands, and stores the entries |
//! | [`work`] | numbers the items: tiles times columns of D |
//! | [`problem_sizes`] | lists the problem of every expert |
//!
//! All of it is made of `expert_offsets` on the device, so that the host never waits for the routing. The
//! permutation writes schedule and sizes on its way; the kernels here do it from offsets that come from
//! elsewhere.

pub(crate) mod entry;
pub(crate) mod problem_sizes;
pub(crate) mod work;
pub(crate) mod write;
