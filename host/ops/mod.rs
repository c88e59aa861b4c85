//! The operations of the layer, one module each: on device buffers, in the caller's stream, with the caller's workspace;
//! none allocates or synchronises, so all of them can be captured in a graph.
//!
//! Every operation checks its arguments before it launches anything, and says which it refuses and why.

pub mod activation;
pub mod cast;
pub mod gated_gemm;
pub mod grouped_gemm;
pub mod permute;
pub mod problem_sizes;
pub mod quantize;
pub mod router;
pub mod unpermute;
