//! Device memory that a measurement needs, known before any is allocated.

use super::layers::weight_lengths;
use super::{OP, pool};
use fp8_moe::internals::workspace_bytes;
use fp8_moe::{Device, MoeConfig, MoeDeviceWeights};
use fp8_moe::{Error, Result};

/// Bytes left to the driver on a GPU.
const MARGIN: u64 = 512 << 20;
/// Most layers that are made; far more than any L2 cache needs.
const MOST_SETS: u64 = 64;

/// How much memory a config at a number of tokens takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights and scales of one layer, bytes.
    pub weights: u64,
    /// Workspace, hidden states, routing and output, bytes.
    pub activations: u64,
    /// What random values are copied from, bytes.
    pub pools: u64,
}

impl Memory {
    /// Of layers of `config` on `device`, and runs of up to `tokens` tokens.
    pub fn new(device: &Device, config: &MoeConfig, tokens: usize) -> Result<Memory> {
        let ([.., w13_scale, w2_scale], [w13, w2]) =
            (MoeDeviceWeights::lengths(config), weight_lengths(device, config));
        let (h, k) = (config.hidden_size, config.top_k);
        // bf16 hidden states, bf16 or f32 output, ids and weights.
        let inputs = tokens * (h * 2 + h * 4 + k * 8);
        Ok(Memory {
            weights: (w13 + w2 + 4 * (w13_scale + w2_scale)) as u64,
            activations: (workspace_bytes(device, config, tokens)? + inputs) as u64,
            // Two of weights, or one of hidden states.
            pools: 2 * pool::elements(device) as u64,
        })
    }

    /// How many of the `wanted` layers fit into `free` bytes; an error if not one does.
    pub fn sets(&self, device: &Device, free: u64, tokens: usize, wanted: usize) -> Result<usize> {
        let margin = if device.is_emulated() { 0 } else { MARGIN };
        let besides = self.activations + self.pools + margin;
        let fit = free.saturating_sub(besides) / self.weights;
        if fit == 0 {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return Err(Error::argument(
                OP,
                "tokens",
                tokens,
                format!(
                    "needs {:.2} GiB of device memory, {:.2} of them weights; {:.2} GiB of {device} may be used",
                    gib(besides + self.weights),
                    gib(self.weights),
                    gib(free)
                ),
            ));
        }
        Ok(fit.min(wanted as u64) as usize)
    }
}

/// How many layers must take turns so that the weights they touch, `touched` bytes each, exceed three times
/// the L2 cache.
pub fn sets_to_outgrow_cache(l2_bytes: u32, touched: u64) -> usize {
    (3 * u64::from(l2_bytes) / touched.max(1) + 1).min(MOST_SETS) as usize
}

#[cfg(test)]
mod tests {
    use super::sets_to_outgrow_cache;

    #[test]
    fn enough_layers_take_turns() {
        const L2: u32 = 50 << 20;
        // One token of Qwen3-30B touches 37.7 MB; five times that is over 157 MB.
        assert_eq!(sets_to_outgrow_cache(L2, 37_748_736), 5);
        assert_eq!(sets_to_outgrow_cache(L2, 604 << 20), 1);
        assert_eq!(sets_to_outgrow_cache(L2, 0), 64);
    }
}
