//! What the element-wise kernels share.
//!
//! ```text
//!   source: rows of f32 values --chunk: 8 columns a lane--> warp_rows or block_rows --> destinations: rows of e4m3
//!                                                             |    scale: of a largest magnitude
//!                                                             +--> cleared: sums that become 0 on the way
//! ```

pub(crate) mod block_rows;
pub(crate) mod chunk;
pub(crate) mod cleared;
pub(crate) mod destinations;
pub(crate) mod scale;
pub(crate) mod source;
pub(crate) mod warp_rows;
