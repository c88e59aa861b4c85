//! The operations of the layer, one module each: on device buffers, in the caller's stream, with the caller's
//! workspace; none allocates or synchronises, so all of them can be captured in a graph.
//!
//! Every operation checks its arguments before it launches anything, and says which it refuses and why. What
//! decides where threads write is checked too, or cannot be forged: sizes against a plan,
//! lists of rows as a [`Permutation`](permutation::Permutation).
//!
//! | operation | from | to |
//! |---|---|---|
//! | [`pack_weights`](mod@pack_weights) | weights | the same, packed |
//! | [`router`] | hidden states | ids and weights |
//! | [`permute`](mod@permute) | ids | a permutation |
//! | [`quantize`](mod@quantize) | hidden states, permutation | e4m3 rows and scales |
//! | [`grouped_gemm`](mod@grouped_gemm), [`gated_gemm`](mod@gated_gemm) | rows, weights, permutation | products; activated and quantised |
//! | [`activation`](mod@activation) | gate and up | e4m3 rows and scales |
//! | [`unpermute`](mod@unpermute), [`cast`](mod@cast) | products, permutation; sums | hidden states |
//! | [`sum_ranks`](mod@sum_ranks) | rows of several ranks | their sum |

pub mod activation;
pub mod cast;
pub(crate) mod few_tokens;
pub mod gated_gemm;
pub mod grouped_gemm;
pub mod pack_weights;
pub mod permutation;
pub mod permute;
pub mod problem_sizes;
pub mod quantize;
pub(crate) mod read_stream;
pub mod router;
pub mod sum_ranks;
pub mod unpermute;
