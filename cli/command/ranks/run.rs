//! `fp8-moe run --ranks N`: the tokens are dealt out to the ranks, each reads its own experts' bytes, and
//! rank 0 gets all results.

use std::sync::Arc;

use fp8_moe::parallel::{Batch, Communicator, ExpertOptions, ExpertParallel, Placement};
use fp8_moe::{MoeLayer, Result, Stream};
use half::bf16;

use crate::run::Output;

/// Runs this rank's part of the layer on its part of `hidden` `[T, H]`, which all ranks have; on rank 0 the
/// result of all tokens.
pub fn forward(
    layer: MoeLayer,
    placement: Placement,
    communicator: Arc<dyn Communicator>,
    hidden: &[bf16],
) -> Result<Option<Output>> {
    let (rank, ranks) = (communicator.rank(), communicator.size());
    let (width, top_k) = (layer.config().hidden_size, layer.config().top_k);
    let tokens = hidden.len() / width;
    let each = tokens.div_ceil(ranks).max(1);
    // Rank r has the tokens from r * each on; the last ones may have fewer, or none.
    let of_rank = |rank: usize| (rank * each).min(tokens)..((rank + 1) * each).min(tokens);
    let own = of_rank(rank);
    let device = communicator.device().clone();
    let stream = Stream::new(&device)?;
    let options = ExpertOptions::new(each).placement(placement);
    let mut experts = ExpertParallel::new(layer, communicator.clone(), options)?;
    let mut workspace = experts.workspace()?;
    let hidden = device.upload(&hidden[own.start * width..own.end * width])?;
    // All ranks' results, each in a block; those of tokens that there are not stay zeros.
    let mut all = device.zeros::<f32>(ranks * each * width)?;
    let block = rank * each * width;
    let out = all.slice_mut(block..block + own.len() * width);
    experts.forward(&stream, Batch::new(&hidden), &mut workspace, out)?;
    communicator.all_gather(&stream, &mut [all.as_mut_slice().cast()])?;
    communicator.wait(&stream, communicator.limits().start)?;
    let (ids, weights) = workspace.routing(each);
    let (all, ids, weights) = (all.to_vec(&stream)?, ids.to_vec(&stream)?, weights.to_vec(&stream)?);
    // Nobody leaves while another needs it.
    communicator.agree(&[])?;
    // The blocks of the ranks without the places of tokens that there are not.
    let places: Vec<usize> =
        (0..ranks).flat_map(|rank| (0..of_rank(rank).len()).map(move |t| rank * each + t)).collect();
    Ok((rank == 0).then(|| Output {
        hidden_states: places.iter().flat_map(|t| &all[t * width..(t + 1) * width]).copied().collect(),
        topk_ids: places.iter().flat_map(|t| &ids[t * top_k..(t + 1) * top_k]).map(|&id| id.into()).collect(),
        topk_weights: places.iter().flat_map(|t| &weights[t * top_k..(t + 1) * top_k]).copied().collect(),
    }))
}
