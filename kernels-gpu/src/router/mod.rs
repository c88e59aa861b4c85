//! The router: hidden states to the experts of every token.
//!
//! ```text
//! hidden [T, H] --logits--> [T, E] --top-k--> topk_ids [T, k], topk_weights [T, k]
//! ```
//!
//! [`logits`] multiplies by the gate's weights; four top-k kernels score and pick: [`softmax`] (Mixtral,
//! Qwen3), [`grouped`] (DeepSeek-V3, GLM, Kimi), [`sigmoid`] (Llama 4) and [`sqrt_softplus`] (DeepSeek-V4).
//! Behind the picks they write the experts that every token has; [`shared`] does so for a routing of the
//! caller's.

mod grouped;
mod logits;
pub(crate) mod selection;
mod shared;
mod sigmoid;
mod softmax;
mod sqrt_softplus;
