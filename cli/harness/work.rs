//! The least that a part of a layer must do: floating-point operations, and bytes through device memory.
//!
//! With R' rows routed to experts of this rank, T' tokens that have such a row, and E' of this rank's experts
//! that have one; scales f32; e4m3 one byte; ids and lists i32; hidden states and products bf16:
//!
//! | part | FLOPs | bytes |
//! |---|---|---|
//! | layer | `6 R' H I` | `T' H 2` in, ids and weights `R 8`, w13 and w2 and their scales of E', out `T H 2` |
//! | permute | | ids `R 4` in, `expert_offsets` `(E_loc + 1) 8`, `sorted_rows` and `inverse` `R 8` out |
//! | quantise | | `T' H 2` and `inverse` `R 4` in, `R' H` and scales out; where gemm1 gathers, `T' H 2` in, `T' H` and scales out |
//! | gemm1 | `4 R' H I` | `R' H` and scales in, or gathered `T' H`, scales and `sorted_rows` `R' 4`; w13 and scales of E', `R' 2I 2` out, or `R' I` and scales with the activation in it |
//! | activation | | `R' 2I 2` in, `R' I` and scales out |
//! | gemm2 | `2 R' H I` | `R' I` and scales in, w2 and scales of E', `R' H 2` out |
//! | unpermute | | `R' H 2`, weights and `inverse` `R 8` in, `T H 2` out |
//!
//! Of an order-free reduction, whose sums are f32 (that they are set to 0 is not counted):
//!
//! | part | FLOPs | bytes |
//! |---|---|---|
//! | gemm2 | `2 R' H I` | `R' I` and scales in, w2 and scales of E', `sorted_rows` and weights `R' 8` in, `T' H 4` out |
//! | cast | | `T H 4` in, `T H 2` out |
//!
//! Each byte counts once, as if caches were perfect, and nothing that a part keeps for itself counts. An
//! intermediate whose type is the implementation's choice counts at 16 bits.

use super::part::Part;
use super::routing::Routed;
use fp8_moe::internals::is_gated;
use fp8_moe::{MoeConfig, MoeLayer, Reduction, Result};

/// What a routing means for one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// T.
    pub tokens: usize,
    /// Tokens with at least one expert on this rank.
    pub local_tokens: usize,
    /// Rows whose expert is on this rank.
    pub local_rows: usize,
    /// By local expert, whether it has a row.
    pub active: Vec<bool>,
}

impl Load {
    /// The load that `routed` is for the rank of `config`.
    pub fn new(config: &MoeConfig, routed: &Routed) -> Load {
        let local_ids = config.local_ids();
        let mut active = vec![false; local_ids.len()];
        let (mut local_rows, mut local_tokens) = (0, 0);
        for row in routed.topk_ids.chunks_exact(config.top_k) {
            let before = local_rows;
            for &id in row {
                let found = usize::try_from(id).ok().and_then(|id| local_ids.binary_search(&id).ok());
                if let Some(local) = found {
                    active[local] = true;
                    local_rows += 1;
                }
            }
            local_tokens += usize::from(local_rows > before);
        }
        Load { tokens: routed.topk_ids.len() / config.top_k, local_tokens, local_rows, active }
    }

    /// E', experts with a row.
    pub fn active_experts(&self) -> usize {
        self.active.iter().filter(|&&active| active).count()
    }
}

/// Rates that floors are computed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes per second that device memory delivers: of a stream that is only read, or where none was
    /// measured of a plain copy, read and written bytes together.
    pub bytes_per_second: f64,
    /// FLOP per second of a large dense FP8 GEMM.
    pub matrix_flops_per_second: f64,
}

/// What a layer fuses, as far as that changes the work of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fusion {
    /// GEMM 1 applies the activation.
    pub activation: bool,
    /// GEMM 1 gathers its rows by token.
    pub gather: bool,
}

impl Fusion {
    /// Of forwards of `tokens` tokens, by the layer's plan.
    pub fn of(layer: &MoeLayer, tokens: usize) -> Result<Fusion> {
        Ok(Fusion { activation: is_gated(layer, tokens)?, gather: layer.gathers(tokens)? })
    }
}

/// The least to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of the matrix products, two per multiply-add.
    pub flops: u64,
    /// Bytes through device memory.
    pub bytes: u64,
}

impl Work {
    /// The work of a part.
    pub fn new(part: Part, config: &MoeConfig, load: &Load, fusion: Fusion) -> Work {
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let (rows, experts) = (load.local_rows, load.active_experts());
        let all_rows = load.tokens * config.top_k;
        let quantization = config.quantization;
        let scales = |rows: usize, columns: usize| 4 * rows * quantization.row_scales(columns);
        // Scales of one expert; gate and up apart.
        let (w13_scales, w2_scales) =
            (2 * quantization.weight_scales(i, h), quantization.weight_scales(h, i));
        let w13 = experts * (2 * i * h + 4 * w13_scales);
        let w2 = experts * (h * i + 4 * w2_scales);
        let first_rows = if fusion.gather { load.local_tokens } else { rows };
        let first = first_rows * h + scales(rows, h);
        // Which rows go where: read for their copies or those of their scales, and where rows are gathered.
        let is_scattered = !fusion.gather || scales(1, h) > 0;
        let scatter = if is_scattered { all_rows * 4 } else { 0 };
        let gather = if fusion.gather { rows * 4 } else { 0 };
        let second = rows * i + scales(rows, i);
        let products = rows * 2 * i * 2;
        let (flops, bytes) = match part {
            Part::Layer => {
                (6 * rows * h * i, load.local_tokens * h * 2 + all_rows * 8 + w13 + w2 + load.tokens * h * 2)
            }
            Part::Permute => (0, all_rows * 4 + (config.local_count() + 1) * 8 + all_rows * 8),
            Part::Quantise => (0, load.local_tokens * h * 2 + scatter + first),
            Part::Gemm1 => {
                let out = if fusion.activation { second } else { products };
                (4 * rows * h * i, first + gather + w13 + out)
            }
            Part::Activation => (0, products + second),
            Part::Gemm2 => {
                let out = match config.reduction == Reduction::OrderFree {
                    true => rows * 8 + load.local_tokens * h * 4,
                    false => rows * h * 2,
                };
                (2 * rows * h * i, second + w2 + out)
            }
            Part::Unpermute => (0, rows * h * 2 + all_rows * 8 + load.tokens * h * 2),
            Part::Cast => (0, load.tokens * h * (4 + 2)),
        };
        Work { flops: flops as u64, bytes: bytes as u64 }
    }

    /// The least time for it, microseconds: the longer of streaming the bytes and multiplying.
    pub fn floor_us(&self, rates: &Rates) -> f64 {
        let stream = self.bytes as f64 / rates.bytes_per_second;
        let multiply = self.flops as f64 / rates.matrix_flops_per_second;
        stream.max(multiply) * 1e6
    }

    /// Bytes of weights and their scales that the routing touches.
    pub fn weight_bytes(config: &MoeConfig, load: &Load) -> u64 {
        let none = Load { local_rows: 0, local_tokens: 0, tokens: 0, active: load.active.clone() };
        Work::new(Part::Layer, config, &none, Fusion::default()).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Shape};

    /// Two experts, top 1, H 256, I 128; token 0 and 2 to expert 1, token 1 nowhere.
    fn case(scheme: Scheme) -> (MoeConfig, Load) {
        let shape = Shape { experts: 2, top_k: 1, hidden: 256, intermediate: 128 };
        let config = shape.config(scheme, 1, 1).expect("a config");
        let routed = Routed { topk_ids: vec![1, -1, 1], topk_weights: vec![1.0; 3] };
        let load = Load::new(&config, &routed);
        assert_eq!(load, Load { tokens: 3, local_tokens: 2, local_rows: 2, active: vec![false, true] });
        (config, load)
    }

    #[track_caller]
    fn assert_work(scheme: Scheme, part: Part, activation: bool, flops: u64, bytes: u64) {
        let (config, load) = case(scheme);
        let fusion = Fusion { activation, gather: false };
        assert_eq!(Work::new(part, &config, &load, fusion), Work { flops, bytes }, "{scheme} {part}");
    }

    #[test]
    fn hand_computed_per_token() {
        let scheme = Scheme::PerToken;
        // w13: 2*128*256 + 2*128 scales = 65536 + 1024; w2: 256*128 + 256 scales = 32768 + 1024.
        assert_work(scheme, Part::Layer, false, 393_216, 2 * 512 + 24 + 66_560 + 33_792 + 3 * 512);
        assert_work(scheme, Part::Permute, false, 0, 12 + 24 + 24);
        assert_work(scheme, Part::Quantise, false, 0, 1024 + 12 + 2 * 256 + 8);
        assert_work(scheme, Part::Gemm1, false, 262_144, 520 + 66_560 + 2 * 256 * 2);
        assert_work(scheme, Part::Gemm1, true, 262_144, 520 + 66_560 + 2 * 128 + 8);
        assert_work(scheme, Part::Activation, false, 0, 1024 + 264);
        assert_work(scheme, Part::Gemm2, false, 131_072, 264 + 33_792 + 2 * 256 * 2);
        assert_work(scheme, Part::Unpermute, false, 0, 1024 + 24 + 1536);
    }

    #[test]
    fn hand_computed_order_free() {
        let (config, load) = case(Scheme::PerToken);
        let config = config.to_builder().reduction(Reduction::OrderFree).build().unwrap();
        let bytes = |part| Work::new(part, &config, &load, Fusion { activation: true, gather: false }).bytes;
        assert_eq!(bytes(Part::Gemm2), 264 + 33_792 + 2 * 8 + 2 * 256 * 4);
        assert_eq!(bytes(Part::Cast), 3 * 256 * 6);
    }

    #[test]
    fn hand_computed_gathered() {
        let shape = Shape { experts: 2, top_k: 2, hidden: 256, intermediate: 128 };
        let config = shape.config(Scheme::PerToken, 1, 1).expect("a config");
        let routed = Routed { topk_ids: vec![0, 1, 1, 0, -1, -1], topk_weights: vec![1.0; 6] };
        let load = Load::new(&config, &routed);
        let fusion = Fusion { activation: true, gather: true };
        let bytes = |part| Work::new(part, &config, &load, fusion).bytes;
        // Six slots lead to the four rows' scales.
        assert_eq!(bytes(Part::Quantise), 1024 + 6 * 4 + 2 * 256 + 16);
        assert_eq!(bytes(Part::Gemm1), 528 + 4 * 4 + 2 * 66_560 + 4 * 128 + 16);
    }

    #[test]
    fn hand_computed_per_tensor_and_block() {
        assert_work(Scheme::PerTensor, Part::Gemm1, false, 262_144, 512 + 65_536 + 8 + 1024);
        assert_work(Scheme::PerTensor, Part::Gemm2, false, 131_072, 256 + 32_768 + 4 + 1024);
        // Two groups in H, one in I; 2x1x2 blocks in w13, 2x1 in w2.
        assert_work(Scheme::Block, Part::Gemm1, false, 262_144, 512 + 16 + 65_536 + 16 + 1024);
        assert_work(Scheme::Block, Part::Gemm2, false, 131_072, 256 + 8 + 32_768 + 8 + 1024);
    }

    #[test]
    fn the_floor_is_the_longer_of_two() {
        let work = Work { flops: 2_000_000, bytes: 1_000 };
        let rates = |copy, matrix| Rates { bytes_per_second: copy, matrix_flops_per_second: matrix };
        assert_eq!(work.floor_us(&rates(1e9, 1e12)), 2.0);
        assert_eq!(work.floor_us(&rates(1e8, 1e12)), 10.0);
    }

    #[test]
    fn published_floors() {
        // Weights read once at 4.3 TB/s: Mixtral 82 us, Qwen3-30B 9 us for one token.
        for (name, us) in [("mixtral-8x7b", 82.0), ("qwen3-30b", 9.0)] {
            let shape = crate::Model::named(name).expect("a model").shape;
            let config = shape.config(Scheme::PerToken, 1, 1).expect("a config");
            let ids = (0..shape.top_k as i32).collect();
            let load = Load::new(&config, &Routed { topk_ids: ids, topk_weights: vec![] });
            let floor = Work::weight_bytes(&config, &load) as f64 / 4.3e12 * 1e6;
            assert!((floor - us).abs() < 0.5, "{name}: {floor}");
        }
    }

    #[test]
    fn other_ranks_experts_do_not_count() {
        let shape = Shape { experts: 4, top_k: 2, hidden: 256, intermediate: 128 };
        let config = shape.config(Scheme::PerToken, 1, 2).expect("a config");
        let routed = Routed { topk_ids: vec![0, 3, 2, 3], topk_weights: vec![0.5; 4] };
        let load = Load::new(&config, &routed);
        assert_eq!(load, Load { tokens: 2, local_tokens: 1, local_rows: 1, active: vec![true, false] });
    }
}
