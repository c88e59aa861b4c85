//! FP8 schemes: which elements of weights and of activations share a scale.

use super::{GROUP, SCALE_BLOCK};

/// How weights and activations are quantised to e4m3: a pair of [`WeightScales`] and [`ActivationScales`].
///
/// | weights | static | per token | groups of 128 |
/// |---|---|---|---|
/// | per tensor | `TensorStatic` | | |
/// | per output channel | `ChannelStatic` | `ChannelToken` | `ChannelGroup` |
/// | 128x128 blocks | `BlockStatic` | `BlockToken` | `Block128` |
///
/// The empty places are those of `Channel*`: a scale per tensor is one for each of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantization {
    /// Weights per tensor (gate and up apart), activations by one given scale per projection; Mixtral's
    /// static scheme.
    TensorStatic,
    /// Weights per output channel, activations by one given scale per projection.
    ChannelStatic,
    /// Weights per output channel, activations per token at run time; compressed-tensors, Llama-4.
    ChannelToken,
    /// Weights per output channel, activations in 1x128 groups at run time.
    ChannelGroup,
    /// Weights in 128x128 blocks, activations by one given scale per projection.
    BlockStatic,
    /// Weights in 128x128 blocks, activations per token at run time.
    BlockToken,
    /// Weights in 128x128 blocks, activations in 1x128 groups at run time; DeepSeek-V3, Qwen3.
    Block128,
}

/// Elements that share a scale of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightScales {
    /// All of a matrix.
    Tensor,
    /// A row: what makes one output column.
    Channel,
    /// A block of 128 rows and 128 columns.
    Block128,
}

/// Elements that share a scale of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ActivationScales {
    /// All, in front of a projection; the scale is given.
    Static,
    /// A row, found at run time.
    Token,
    /// 128 columns of a row, found at run time.
    Group128,
}

impl Quantization {
    /// All of them, in the order of the table.
    pub const ALL: [Quantization; 7] = [
        Quantization::TensorStatic,
        Quantization::ChannelStatic,
        Quantization::ChannelToken,
        Quantization::ChannelGroup,
        Quantization::BlockStatic,
        Quantization::BlockToken,
        Quantization::Block128,
    ];

    /// How the weights are scaled.
    pub fn weights(self) -> WeightScales {
        use Quantization as Q;
        match self {
            Q::TensorStatic => WeightScales::Tensor,
            Q::ChannelStatic | Q::ChannelToken | Q::ChannelGroup => WeightScales::Channel,
            Q::BlockStatic | Q::BlockToken | Q::Block128 => WeightScales::Block128,
        }
    }

    /// How the activations are scaled.
    pub fn activations(self) -> ActivationScales {
        use Quantization as Q;
        match self {
            Q::TensorStatic | Q::ChannelStatic | Q::BlockStatic => ActivationScales::Static,
            Q::ChannelToken | Q::BlockToken => ActivationScales::Token,
            Q::ChannelGroup | Q::Block128 => ActivationScales::Group128,
        }
    }

    /// Whether the scales of the activations are given with the weights.
    pub fn is_static(self) -> bool {
        self.activations() == ActivationScales::Static
    }

    /// Scales of a weight matrix `[rows, columns]`, row-major: 1, `[rows]`, or `[ceil(rows / 128),
    /// ceil(columns / 128)]`.
    pub fn weight_scales(self, rows: usize, columns: usize) -> usize {
        match self.weights() {
            WeightScales::Tensor => 1,
            WeightScales::Channel => rows,
            WeightScales::Block128 => rows.div_ceil(SCALE_BLOCK) * columns.div_ceil(SCALE_BLOCK),
        }
    }

    /// Which of the [`weight_scales`](Self::weight_scales) of a matrix of `columns` columns is that of the
    /// weight at `row` and `column`.
    pub fn weight_scale_at(self, columns: usize, row: usize, column: usize) -> usize {
        match self.weights() {
            WeightScales::Tensor => 0,
            WeightScales::Channel => row,
            WeightScales::Block128 => {
                row / SCALE_BLOCK * columns.div_ceil(SCALE_BLOCK) + column / SCALE_BLOCK
            }
        }
    }

    /// Scales of a row of `columns` hidden states that are found at run time: none, 1, or `ceil(columns /
    /// 128)`.
    pub fn row_scales(self, columns: usize) -> usize {
        self.activations().of_row(columns)
    }
}

impl ActivationScales {
    /// Scales of a row of `columns` columns; 0 where one is given for all.
    pub(crate) fn of_row(self, columns: usize) -> usize {
        match self {
            ActivationScales::Static => 0,
            ActivationScales::Token => 1,
            ActivationScales::Group128 => columns.div_ceil(GROUP),
        }
    }
}

impl std::fmt::Display for WeightScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WeightScales::Tensor => "per-tensor weights",
            WeightScales::Channel => "per-channel weights",
            WeightScales::Block128 => "128x128-block weights",
        })
    }
}

impl std::fmt::Display for ActivationScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ActivationScales::Static => "static per-tensor activations",
            ActivationScales::Token => "per-token activations",
            ActivationScales::Group128 => "1x128-group activations",
        })
    }
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.weights(), self.activations())
    }
}
