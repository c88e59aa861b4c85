//! A layer whose experts are cut: each rank has some of the intermediate columns of every expert.
//!
//! ```text
//!   expert         gate [I, H]                up [I, H]               down [H, I]
//!
//!   rank 0         rows 0 .. I/2              rows 0 .. I/2           columns 0 .. I/2
//!   rank 1         rows I/2 .. I              rows I/2 .. I           columns I/2 .. I
//!
//!   every rank:    out = its share's layer on the same tokens  --all_reduce-->  the sum over the ranks
//! ```
//!
//! A share is cut where scales allow it. Per-tensor and per-channel scales allow every multiple of 16. Blocks
//! allow multiples of 128: a share of 1.5 blocks begins and ends inside blocks, and its rows are put into
//! another order then, whole blocks first, so that its own grid of blocks begins at a block. The order of
//! intermediate columns changes no result, since the sum over them does not know it.
//!
//! ```text
//!   I = 384 on 2 ranks, 192 each       blocks of 128 rows   |   0   |   1   |   2   |
//!   rank 0: rows 0 .. 192              [ 0 whole ][ first half of 1 ]
//!   rank 1: rows 192 .. 384            [ 2 whole ][ second half of 1 ]
//! ```

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::communicator::Communicator;
use crate::config::{MoeConfig, Quantization, SCALE_BLOCK, WeightScales};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::Slice;
use crate::gpu::stream::Stream;
use crate::layer::{ExpertWeights, Forward, MoeLayer, MoeWeights, OutputElement, Workspace};
use crate::ops::quantize::ActivationsMut;

const OP: &str = "TensorShare";

/// A rank's part of the intermediate columns of every expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShare {
    /// Its rows of gate and up and columns of down, in the order in which the share has them.
    ranges: Vec<Range<usize>>,
    hidden: usize,
    intermediate: usize,
    quantization: Quantization,
}

impl TensorShare {
    /// The share of rank `rank` of `ranks`: `I / ranks` columns each.
    ///
    /// # Errors
    /// If I does not divide into as many multiples of 16.
    pub fn new(config: &MoeConfig, rank: usize, ranks: usize) -> Result<TensorShare> {
        let MoeConfig { hidden_size: hidden, intermediate_size: intermediate, quantization, .. } = *config;
        require(rank < ranks, OP, "rank", rank, || format!("must be below {ranks}, the ranks"))?;
        require(intermediate.is_multiple_of(16 * ranks), OP, "ranks", ranks, || {
            format!("must divide the intermediate size, {intermediate}, into multiples of 16")
        })?;
        require(
            config.shared.is_none() && config.gated,
            OP,
            "config",
            "a shared expert, or no gate",
            || "must be of experts with a gate, without a shared one".into(),
        )?;
        let each = intermediate / ranks;
        let (start, end) = (rank * each, (rank + 1) * each);
        let ranges = if quantization.weights() == WeightScales::Block128 {
            blocks_first(start..end)?
        } else {
            std::iter::once(start..end).collect()
        };
        Ok(TensorShare { ranges, hidden, intermediate, quantization })
    }

    /// Columns of it.
    pub fn columns(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// The layer as this rank has it.
    pub fn config(&self, config: &MoeConfig) -> MoeConfig {
        MoeConfig { intermediate_size: self.columns(), ..config.clone() }
    }

    /// The share of all weights of a layer: router and biases are the same on every rank.
    ///
    /// # Errors
    /// Matrices or scales of other lengths than the config says.
    pub fn weights<'w>(&self, weights: &MoeWeights<'w>) -> Result<MoeWeights<'w>> {
        require(weights.expert_biases.is_none(), OP, "weights.expert_biases", "Some", || {
            "must be None: each share would add down's".into()
        })?;
        let experts = weights.experts.iter().enumerate();
        let experts = experts.map(|(index, expert)| self.expert(index, expert)).collect::<Result<_>>()?;
        Ok(MoeWeights {
            router: weights.router.clone(),
            correction_bias: weights.correction_bias.clone(),
            token_experts: weights.token_experts.clone(),
            experts,
            input_scales: weights.input_scales,
            router_bias: weights.router_bias.clone(),
            ..MoeWeights::default()
        })
    }

    fn expert(&self, index: usize, expert: &ExpertWeights<'_>) -> Result<ExpertWeights<'static>> {
        let (h, i) = (self.hidden, self.intermediate);
        let (down_blocks, row_blocks) = (i.div_ceil(SCALE_BLOCK), h.div_ceil(SCALE_BLOCK));
        let scales = [self.quantization.weight_scales(i, h), self.quantization.weight_scales(h, i)];
        let lengths = [
            ("gate", expert.gate.len(), i * h),
            ("up", expert.up.len(), i * h),
            ("down", expert.down.len(), i * h),
            ("gate_scale", expert.gate_scale.len(), scales[0]),
            ("up_scale", expert.up_scale.len(), scales[0]),
            ("down_scale", expert.down_scale.len(), scales[1]),
        ];
        for (name, len, expected) in lengths {
            require(
                len == expected,
                OP,
                &format!("experts[{index}].{name}"),
                format!("{len} elements"),
                || format!("must have {expected}"),
            )?;
        }
        // The blocks of the share's own grid, by the block that each is (a part) of.
        let blocks = || {
            self.ranges.iter().flat_map(|range| (range.start / SCALE_BLOCK)..range.end.div_ceil(SCALE_BLOCK))
        };
        let rows = |matrix: &[E4m3]| -> Cow<'static, [E4m3]> {
            self.ranges.iter().flat_map(|range| &matrix[range.start * h..range.end * h]).copied().collect()
        };
        let row_scales = |scale: &[f32]| -> Cow<'static, [f32]> {
            match self.quantization.weights() {
                WeightScales::Tensor => scale.to_vec().into(),
                WeightScales::Channel => {
                    self.ranges.iter().flat_map(|range| &scale[range.clone()]).copied().collect()
                }
                WeightScales::Block128 => {
                    blocks().flat_map(|b| &scale[b * row_blocks..(b + 1) * row_blocks]).copied().collect()
                }
            }
        };
        let columns = expert.down.chunks_exact(i);
        let down = columns.flat_map(|row| self.ranges.iter().flat_map(move |range| &row[range.clone()]));
        let down_scale = match self.quantization.weights() {
            WeightScales::Tensor | WeightScales::Channel => expert.down_scale.to_vec(),
            WeightScales::Block128 => {
                expert.down_scale.chunks_exact(down_blocks).flat_map(|row| blocks().map(|b| row[b])).collect()
            }
        };
        Ok(ExpertWeights {
            gate: rows(&expert.gate),
            up: rows(&expert.up),
            down: down.copied().collect(),
            gate_scale: row_scales(&expert.gate_scale),
            up_scale: row_scales(&expert.up_scale),
            down_scale: down_scale.into(),
        })
    }
}

/// The ranges that make up `share`, whole blocks of 128 first: what is left of blocks at its ends comes last,
/// and must fit into one block of its own, with one scale.
fn blocks_first(share: Range<usize>) -> Result<Vec<Range<usize>>> {
    let whole = share.start.next_multiple_of(SCALE_BLOCK)..share.end / SCALE_BLOCK * SCALE_BLOCK;
    if whole.start > whole.end {
        // Inside one block, or over the border of two.
        let border = share.start.next_multiple_of(SCALE_BLOCK);
        require(border >= share.end, OP, "ranks", format!("a share of rows {share:?}"), || {
            "must not take parts of two blocks of 128".into()
        })?;
        return Ok(vec![share]);
    }
    let ends = [share.start..whole.start, whole.end..share.end];
    let parts = ends.iter().filter(|end| !end.is_empty()).count();
    require(parts < 2, OP, "ranks", format!("a share of rows {share:?}"), || {
        "must begin or end at a multiple of 128: it has one block that is not whole".into()
    })?;
    Ok([whole].into_iter().chain(ends).filter(|range| !range.is_empty()).collect())
}

/// A layer that is cut over the ranks of a [`Communicator`], as one of them sees it. All ranks have the same
/// tokens, and get the same output.
pub struct TensorParallel {
    layer: MoeLayer,
    communicator: Arc<dyn Communicator>,
}

impl TensorParallel {
    /// The layer of this rank's share ([`TensorShare`]). Collective: the ranks compare version and config.
    ///
    /// # Errors
    /// A layer on another device than the communicator's; ranks that differ, by name.
    pub fn new(layer: MoeLayer, communicator: Arc<dyn Communicator>) -> Result<TensorParallel> {
        let abort = communicator.abort_handle();
        let check = || {
            let same = layer.device().same_as(communicator.device());
            require(same, "TensorParallel", "layer", format!("a layer on {}", layer.device()), || {
                format!("must be on the communicator's device, {}", communicator.device())
            })?;
            communicator.agree(&[
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("config", format!("{:?}", layer.config())),
            ])
        };
        abort.note(check())?;
        Ok(TensorParallel { layer, communicator })
    }

    /// This rank's share.
    pub fn layer(&self) -> &MoeLayer {
        &self.layer
    }

    /// The group.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.communicator
    }

    /// Enqueues the layer on `hidden` `[T, H]` by its own router, and the sum over the ranks: `out` `[T, H]`
    /// of bf16, f16 or f32. The type of `out` is also that in which shares are added. Collective.
    ///
    /// # Errors
    /// Those of [`MoeLayer::forward`]; ranks with other numbers of tokens or types, by name; a rank that has
    /// failed. The group has failed then.
    pub fn forward<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        workspace: &mut Workspace,
        out: &mut crate::Buffer<O>,
    ) -> Result<()> {
        let (abort, hidden) = (self.communicator.abort_handle(), hidden.into());
        abort.note(self.layer.forward(stream, hidden, workspace, out.as_mut_slice()))?;
        self.reduce(stream, O::erase(out.slice_mut(..hidden.len())))
    }

    /// As [`forward`](Self::forward), with a given routing, `[T, k]` each.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_routed<'a, O: OutputElement>(
        &self,
        stream: &Stream,
        hidden: impl Into<Slice<'a, bf16>>,
        topk_ids: impl Into<Slice<'a, i32>>,
        topk_weights: impl Into<Slice<'a, f32>>,
        workspace: &mut Workspace,
        out: &mut crate::Buffer<O>,
    ) -> Result<()> {
        let (abort, hidden) = (self.communicator.abort_handle(), hidden.into());
        let (ids, weights): (Slice<'_, i32>, Slice<'_, f32>) = (topk_ids.into(), topk_weights.into());
        let forward = Forward::new(hidden, workspace, out.as_mut_slice()).routed(ids, weights);
        abort.note(self.layer.forward_with(stream, forward))?;
        self.reduce(stream, O::erase(out.slice_mut(..hidden.len())))
    }

    /// The sum over the ranks of `x`, in place: what makes the output of a layer of shares whole, also that
    /// of an [`ExpertParallel`](super::ExpertParallel) whose layers are shares. Collective.
    ///
    /// # Errors
    /// Ranks with other lengths or types, by name; a rank that has failed. The group has failed then.
    pub fn reduce(&self, stream: &Stream, x: ActivationsMut<'_>) -> Result<()> {
        self.communicator.all_reduce(stream, x)
    }
}

impl fmt::Debug for TensorParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rank, size) = (self.communicator.rank(), self.communicator.size());
        write!(f, "rank {rank} of {size}, a share of {:?}", self.layer.config())
    }
}

#[cfg(test)]
mod tests {
    use super::blocks_first;

    #[test]
    fn shares_begin_with_whole_blocks() {
        let one = |range: std::ops::Range<usize>| std::iter::once(range).collect::<Vec<_>>();
        let lists = [
            (0..192, vec![0..128, 128..192]),
            (192..384, vec![256..384, 192..256]),
            (128..256, one(128..256)),
            (64..128, one(64..128)),
        ];
        for (share, expected) in lists {
            assert_eq!(blocks_first(share).expect("a share"), expected);
        }
        for share in [96..288, 96..160] {
            assert!(blocks_first(share).is_err(), "parts of two blocks");
        }
    }
}
