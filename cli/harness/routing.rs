//! Routings to measure at: which experts the tokens go to, and with which weights.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};

use super::OP;
use fp8_moe::internals::require;
use fp8_moe::{Error, Result};

/// How experts are drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum RoutingKind {
    /// k different experts per token, all equally likely.
    Uniform,
    /// k different experts per token, one after the other, the n-th most popular with a probability
    /// proportional to `1 / n^S`. Which expert is how popular is drawn too.
    Zipf(f64),
    /// The tensors `topk_ids` `[N, k]` (i32 or i64) and, if there, `topk_weights` `[N, k]` (f32) of a
    /// safetensors file, such as `fp8-moe run --output` writes; from the top again after N tokens.
    File(PathBuf),
}

/// A routing: `[T, k]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// Experts of the tokens, all different in a row.
    pub topk_ids: Vec<i32>,
    /// Their weights; a row's sum is 1 where they were drawn here.
    pub topk_weights: Vec<f32>,
}

impl RoutingKind {
    /// Draws a routing of `tokens` tokens to `top_k` of `experts` experts.
    pub fn draw(&self, tokens: usize, experts: usize, top_k: usize, seed: u64) -> Result<Routed> {
        let mut source = ChaCha8Rng::seed_from_u64(seed);
        let mut popularity: Vec<f64> = match self {
            RoutingKind::Uniform => vec![1.0; experts],
            RoutingKind::Zipf(s) => (1..=experts).map(|n| (n as f64).powf(-s)).collect(),
            RoutingKind::File(path) => {
                let file = RoutingFile::read(path, top_k)?;
                let weights = random_weights(&mut source, tokens, top_k);
                return Ok(file.rows(weights));
            }
        };
        popularity.shuffle(&mut source);
        let mut topk_ids = Vec::with_capacity(tokens * top_k);
        let mut keys = Vec::with_capacity(experts);
        for _ in 0..tokens {
            // The k smallest of exponential variables with rates p are k draws without replacement in
            // proportion to p.
            keys.clear();
            keys.extend((0..experts).map(|expert| {
                let u: f64 = source.random();
                (-(1.0 - u).ln() / popularity[expert], expert)
            }));
            if top_k < experts {
                keys.select_nth_unstable_by(top_k, |a, b| a.0.total_cmp(&b.0));
            }
            keys[..top_k].sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            topk_ids.extend(keys[..top_k].iter().map(|&(_, expert)| expert as i32));
        }
        Ok(Routed { topk_ids, topk_weights: random_weights(&mut source, tokens, top_k) })
    }
}

/// Weights `[T, k]` whose rows sum to 1.
fn random_weights(source: &mut ChaCha8Rng, tokens: usize, top_k: usize) -> Vec<f32> {
    let mut weights: Vec<f32> = (0..tokens * top_k).map(|_| source.random_range(0.1..1.0)).collect();
    for row in weights.chunks_exact_mut(top_k) {
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}

/// What a routing file holds.
struct RoutingFile {
    topk_ids: Vec<i32>,
    topk_weights: Option<Vec<f32>>,
}

impl RoutingFile {
    fn read(path: &Path, top_k: usize) -> Result<RoutingFile> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let refuse = |what: String| Error::checkpoint(path, what);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
        let ids = tensors.tensor("topk_ids").map_err(|e| refuse(e.to_string()))?;
        if ids.shape().len() != 2 || ids.shape()[1] != top_k || ids.shape()[0] == 0 {
            return Err(refuse(format!("topk_ids: has shape {:?}; [N, {top_k}] is expected", ids.shape())));
        }
        let topk_ids = match ids.dtype() {
            Dtype::I32 => bytemuck::pod_collect_to_vec(ids.data()),
            Dtype::I64 => {
                bytemuck::pod_collect_to_vec::<u8, i64>(ids.data()).into_iter().map(|id| id as i32).collect()
            }
            other => return Err(refuse(format!("topk_ids: is {other:?}; I32 or I64 is expected"))),
        };
        let topk_weights = match tensors.tensor("topk_weights") {
            Err(_) => None,
            Ok(weights) if weights.dtype() == Dtype::F32 && weights.shape() == ids.shape() => {
                Some(bytemuck::pod_collect_to_vec(weights.data()))
            }
            Ok(weights) => {
                let (dtype, shape) = (weights.dtype(), weights.shape());
                let expected = ids.shape();
                return Err(refuse(format!(
                    "topk_weights: is {dtype:?} {shape:?}; F32 {expected:?} is expected"
                )));
            }
        };
        Ok(RoutingFile { topk_ids, topk_weights })
    }

    /// As many rows as asked for, from the top again at the end; `weights` where the file has none.
    fn rows(&self, weights: Vec<f32>) -> Routed {
        let len = weights.len();
        let topk_weights = match &self.topk_weights {
            Some(own) => own.iter().copied().cycle().take(len).collect(),
            None => weights,
        };
        Routed { topk_ids: self.topk_ids.iter().copied().cycle().take(len).collect(), topk_weights }
    }
}

impl FromStr for RoutingKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<RoutingKind> {
        if text == "uniform" {
            return Ok(RoutingKind::Uniform);
        }
        if let Some(exponent) = text.strip_prefix("zipf:") {
            let s = exponent.parse().ok().filter(|s: &f64| s.is_finite() && (0.0..=10.0).contains(s));
            return s.map(RoutingKind::Zipf).ok_or_else(|| {
                Error::argument(OP, "routing", text, "must have an exponent of 0 to 10, as zipf:1.0 has")
            });
        }
        let path = PathBuf::from(text);
        require(path.exists(), OP, "routing", text, || {
            "must be uniform, zipf:S or a safetensors file with topk_ids".into()
        })?;
        Ok(RoutingKind::File(path))
    }
}

impl fmt::Display for RoutingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoutingKind::Uniform => f.write_str("uniform"),
            RoutingKind::Zipf(s) => write!(f, "zipf:{s}"),
            RoutingKind::File(path) => {
                write!(f, "{}", path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of each expert, most first.
    fn counts(routed: &Routed, experts: usize) -> Vec<usize> {
        let mut counts = vec![0; experts];
        routed.topk_ids.iter().for_each(|&id| counts[id as usize] += 1);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn rows_have_different_experts_and_weights_that_sum_to_one() {
        for kind in [RoutingKind::Uniform, RoutingKind::Zipf(1.2)] {
            for (experts, top_k) in [(16, 4), (4, 4), (8, 1)] {
                let routed = kind.draw(100, experts, top_k, 7).expect("a routing");
                for row in routed.topk_ids.chunks(top_k) {
                    let mut ids = row.to_vec();
                    ids.sort_unstable();
                    ids.dedup();
                    assert_eq!(ids.len(), top_k, "{row:?}");
                    assert!(ids.iter().all(|id| (0..experts as i32).contains(id)));
                }
                for row in routed.topk_weights.chunks(top_k) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_one_routing() {
        let draw = |seed| RoutingKind::Zipf(1.0).draw(50, 32, 4, seed).expect("a routing");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).topk_ids, draw(2).topk_ids);
    }

    #[test]
    fn zipf_follows_its_law() {
        // With k = 1 the expected counts are T / (n^S * sum of m^-S).
        let (tokens, experts, s) = (40_000, 8, 1.0);
        let routed = RoutingKind::Zipf(s).draw(tokens, experts, 1, 3).expect("a routing");
        let harmonic: f64 = (1..=experts).map(|m| (m as f64).powf(-s)).sum();
        for (n, count) in counts(&routed, experts).into_iter().enumerate() {
            let expected = tokens as f64 / ((n + 1) as f64).powf(s) / harmonic;
            assert!((count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{n}: {count}, not {expected}");
        }
        let uniform = counts(&RoutingKind::Uniform.draw(tokens, experts, 1, 3).expect("a routing"), experts);
        assert!(uniform.iter().all(|&count| count.abs_diff(tokens / experts) < 350), "{uniform:?}");
    }

    #[test]
    fn kinds_are_read() {
        assert_eq!("uniform".parse::<RoutingKind>().expect("uniform"), RoutingKind::Uniform);
        assert_eq!("zipf:0.8".parse::<RoutingKind>().expect("zipf"), RoutingKind::Zipf(0.8));
        for text in ["zipf:", "zipf:x", "zipf:-1", "zipf:inf", "/nonexistent.safetensors"] {
            let refusal = text.parse::<RoutingKind>().expect_err(text).to_string();
            assert!(refusal.starts_with(&format!("bench: routing = {text}: must ")), "{refusal}");
        }
    }

    #[test]
    fn files_are_read_and_repeated() {
        use safetensors::tensor::TensorView;
        let file = tempfile::NamedTempFile::new().expect("a file");
        let ids: Vec<u8> = bytemuck::cast_slice(&[3i64, 1, 0, 2]).to_vec();
        let view = TensorView::new(Dtype::I64, vec![2, 2], &ids).expect("a tensor");
        std::fs::write(file.path(), safetensors::serialize([("topk_ids", view)], None).expect("bytes"))
            .expect("a file");
        let kind = RoutingKind::File(file.path().into());
        assert_eq!(kind.draw(3, 4, 2, 0).expect("a routing").topk_ids, [3, 1, 0, 2, 3, 1]);
        let refusal = kind.draw(3, 4, 1, 0).expect_err("another k").to_string();
        assert!(refusal.ends_with("topk_ids: has shape [2, 2]; [N, 1] is expected"), "{refusal}");
    }
}
