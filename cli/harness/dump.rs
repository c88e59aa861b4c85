//! One case as a safetensors file, for other programs to compute and compare.
//!
//! | tensor | what |
//! |---|---|
//! | `hidden` | bf16 `[T, H]` |
//! | `topk_ids`, `topk_weights` | i32 and f32 `[T, k]`; global experts |
//! | `w13` | e4m3 `[E_loc, 2I, H]`, gate rows before up rows |
//! | `w13_scale` | f32: per token and per tensor `[E_loc, 2I]`, in blocks `[E_loc, 2 ceil(I/128), ceil(H/128)]`: those of gate, then those of up, which begins a block of its own |
//! | `w2` | e4m3 `[E_loc, H, I]` |
//! | `w2_scale` | f32: per token `[E_loc, H]`, per tensor `[E_loc]`, in blocks `[E_loc, ceil(H/128), ceil(I/128)]` |
//! | `input_scales` | f32 `[2]`, of the activations before either GEMM; per tensor only |
//! | `expert_map` | i32 `[E]`, global to local expert, -1 = not on this rank; with expert parallelism only |
//! | `out` | f32 `[T, H]`: what the layer made of it |

use std::collections::HashMap;
use std::path::Path;

use bytemuck::cast_slice;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::routing::Routed;
use super::run::Run;
use super::work::Load;
use fp8_moe::E4m3;
use fp8_moe::ops::grouped_gemm::SCALE_BLOCK;
use fp8_moe::{Error, Result};
use fp8_moe::{WeightScales, internals};

/// A tensor to be written.
struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Runs the first layer of `run`, whose routing is `routed`, and writes the case with `metadata` to `path`.
pub fn dump(
    path: &Path,
    run: &mut Run<'_>,
    routed: &Routed,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let out = run.output()?;
    let layer = run.layer();
    let stream = layer.device().default_stream();
    let (config, weights) = (
        layer.config().clone(),
        internals::weights(layer, &Load::new(layer.config(), routed).active, &stream)?,
    );
    let (h, i, padded) =
        (config.hidden_size, config.intermediate_size, internals::padded_intermediate(&config));
    let (local, k) = (config.local_count(), config.top_k);
    let tokens = routed.topk_ids.len() / k;

    let halves = unpadded(&weights.w13.to_vec(&stream)?, padded * h, i * h);
    let w2 = unpadded(&weights.w2.to_vec(&stream)?, padded, i);
    let (w13_scale_shape, w2_scale_shape) = match config.quantization.weights() {
        WeightScales::Tensor => (vec![local, 2 * i], vec![local]),
        WeightScales::Channel => (vec![local, 2 * i], vec![local, h]),
        WeightScales::Block128 => {
            let (rows, columns) = (i.div_ceil(SCALE_BLOCK), h.div_ceil(SCALE_BLOCK));
            (vec![local, 2 * rows, columns], vec![local, columns, rows])
        }
        other => return Err(Error::argument("dump", "quantization", other, "must be one that it can write")),
    };
    let tensor = |name, dtype, shape, bytes: &[u8]| Tensor { name, dtype, shape, bytes: bytes.to_vec() };
    let mut tensors = vec![
        tensor("hidden", Dtype::BF16, vec![tokens, h], cast_slice(&run.hidden().to_vec(&stream)?)),
        tensor("topk_ids", Dtype::I32, vec![tokens, k], cast_slice(&routed.topk_ids)),
        tensor("topk_weights", Dtype::F32, vec![tokens, k], cast_slice(&routed.topk_weights)),
        tensor("w13", Dtype::F8_E4M3, vec![local, 2 * i, h], cast_slice(&halves)),
        tensor("w13_scale", Dtype::F32, w13_scale_shape, cast_slice(&weights.w13_scale.to_vec(&stream)?)),
        tensor("w2", Dtype::F8_E4M3, vec![local, h, i], cast_slice(&w2)),
        tensor("w2_scale", Dtype::F32, w2_scale_shape, cast_slice(&weights.w2_scale.to_vec(&stream)?)),
        tensor("out", Dtype::F32, vec![tokens, h], cast_slice(&out.to_vec(&stream)?)),
    ];
    if config.quantization.is_static() {
        let [first, second] = weights.input_scales;
        let scales = [first.to_vec(&stream)?, second.to_vec(&stream)?].concat();
        tensors.push(tensor("input_scales", Dtype::F32, vec![2], cast_slice(&scales)));
    }
    if let Some(map) = internals::expert_map(&config) {
        tensors.push(tensor("expert_map", Dtype::I32, vec![config.experts], cast_slice(&map)));
    }
    let failed = |error: safetensors::SafeTensorError| Error::checkpoint(path, error.to_string());
    let views = tensors
        .iter()
        .map(|t| Ok((t.name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map_err(failed)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(failed)
}

/// The first `used` of every `row` elements.
fn unpadded(values: &[E4m3], row: usize, used: usize) -> Vec<E4m3> {
    values.chunks_exact(row).flat_map(|row| &row[..used]).copied().collect()
}
