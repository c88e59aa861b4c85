//! Rows in, rows out: kernels that compute every element by itself, or with its row.
//!
//! | module | what it computes |
//! |---|---|
//! | [`quantize`] | e4m3 and scales of the hidden states, to permuted rows |
//! | [`activation`] | the activation of gate and up, e4m3 and scales of the intermediate |
//! | [`unpermute`] | the weighted sum of each token's rows |
//! | [`cast`] | f32 to 16 bits |
//! | [`rows`] | what they share: rows in chunks of 8 columns, a warp or a block to a row, destinations, scales |

pub(crate) mod activation;
mod cast;
pub(crate) mod quantize;
pub(crate) mod rows;
mod unpermute;
