//! The scales of a layer's experts: under which names and in which shapes a checkpoint has them, as numbers
//! of the kinds that the kernels know.
//!
//! | weights by | one matrix | fused, P parts of N rows and C columns |
//! |---|---|---|
//! | tensor | `[]`, `[1]`, `[1, 1]` | `[]`, `[1]`, `[E]`, `[E, 1]`, `[E, 1, 1]`, `[E, P]`, `[E, P, 1]` |
//! | channel | `[n]`, `[n, 1]` | `[E, P N]`, `[E, P N, 1]`, `[E, 1, P N]` |
//! | blocks | `[ceil(n / high), ceil(c / wide)]` | `[E, P ceil(N / high), ceil(C / wide)]`, or the last two exchanged |
//!
//! A shape is looked at before the numbers are read.

use super::experts::{LayerReader, Layout, part_of_fused};
use super::header::Dtype;
use super::models::Order;
use super::quantization::WeightScales;
use super::scale_names::{input_scale_names, weight_scale_names};
use super::tensor::Tensor;
use crate::config::SCALE_BLOCK;
use crate::error::Result;
use crate::layer::{self, Matrix};

/// Columns and rows of a block as a layer has them.
const BLOCK: usize = SCALE_BLOCK;

impl LayerReader<'_> {
    /// The static scales of the activations, before the first projection and before the second.
    ///
    /// A checkpoint has them per expert and matrix; tokens are quantised once for all experts, so the largest
    /// is taken, over all experts of the model, so that every rank uses the same. An expert that calibration
    /// never reached has none, and takes that of the others.
    pub(super) fn input_scales(&self) -> Result<[f32; 2]> {
        // A shared expert that is computed as one of them is quantised with them.
        let shared = self.shared_reader().filter(|_| self.config.shared_slots() > 0);
        let largest = |matrix| -> Result<Option<f32>> {
            let own = self.largest_input_scale(matrix)?;
            let other = shared.as_ref().map(|reader| reader.largest_input_scale(matrix)).transpose()?;
            Ok(own.into_iter().chain(other.flatten()).reduce(f32::max))
        };
        let gate = if self.config.gated { largest(Matrix::Gate) } else { Ok(None) };
        let (up, down) = (largest(Matrix::Up), largest(Matrix::Down));
        let first = gate?.into_iter().chain(up?).reduce(f32::max);
        let found = |scale: Option<f32>, matrix| {
            let name = self.tensor_name(matrix, 0);
            match scale {
                Some(0.0) => Err(self.refuse(format!(
                    "the input scale of {}.{name} is 0, and so is that of every expert; one must be positive",
                    self.prefix
                ))),
                Some(scale) => Ok(scale),
                None => Err(self.refuse(format!(
                    "there is no tensor {}.{}, nor one of another expert; {} needs it",
                    self.prefix,
                    input_scale_names(&name)[0],
                    self.scheme.said_by
                ))),
            }
        };
        Ok([found(first, self.matrices()[0])?, found(down?, Matrix::Down)?])
    }

    fn largest_input_scale(&self, matrix: Matrix) -> Result<Option<f32>> {
        let of_each = !matches!(self.layout, Layout::Fused(..));
        let mut largest: Option<f32> = None;
        for expert in 0..if of_each { self.config.experts } else { 1 } {
            let names = input_scale_names(&self.tensor_name(matrix, expert));
            let Some(tensor) = self.one_of(&names)? else { continue };
            let is_one = tensor.shape.iter().all(|&size| size == 1);
            if !is_one && (of_each || tensor.elements() != self.config.experts) {
                return Err(tensor.error(format!("has shape {:?}; one number is expected", tensor.shape)));
            }
            let values = self.scale_values(&tensor)?;
            largest = values.into_iter().chain(largest).reduce(f32::max);
        }
        Ok(largest)
    }

    /// The scales of a matrix of an expert, as [`ExpertWeights`] has them.
    pub(super) fn weight_scale(&self, matrix: Matrix, expert: usize) -> Result<Vec<f32>> {
        let name = self.tensor_name(matrix, expert);
        let mut names = weight_scale_names(&name);
        if matches!(self.scheme.weights, WeightScales::Tensor | WeightScales::Channel) {
            names.swap(0, 1);
        }
        let missing = || self.refuse(format!("there is no tensor {}.{}", self.prefix, names[0]));
        let tensor = self.one_of(&names)?.ok_or_else(missing)?;
        let found = match self.layout {
            Layout::Each(_) | Layout::One(..) => self.scales_of_one(matrix, &tensor),
            Layout::Fused(_, order) => self.scales_of_fused(matrix, expert, order, &tensor),
        }?;
        match (self.scheme.weights, self.config.quantization.weights()) {
            (WeightScales::Tensor, layer::WeightScales::Channel) => Ok(vec![found[0]; self.shape(matrix)[0]]),
            (WeightScales::Block(block), _) => {
                in_blocks(self.shape(matrix), block, &found).map_err(|what| tensor.error(what))
            }
            _ => Ok(found),
        }
    }

    /// The numbers of a tensor of scales, which must be finite and not negative. Zero is one: an all-zero
    /// block may have it.
    fn scale_values(&self, tensor: &Tensor<'_>) -> Result<Vec<f32>> {
        let values = match tensor.dtype {
            Dtype::U8 if self.scheme.byte_exponents => tensor.exponents()?,
            _ => tensor.to_f32()?,
        };
        match values.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            Some(at) => Err(tensor
                .error(format!("element {at} is {}; a scale must be finite and not negative", values[at]))),
            None => Ok(values),
        }
    }

    /// Scales of a matrix that is a tensor of its own.
    fn scales_of_one(&self, matrix: Matrix, tensor: &Tensor<'_>) -> Result<Vec<f32>> {
        let [rows, columns] = self.shape(matrix);
        let (fits, expected) = match self.scheme.weights {
            WeightScales::Tensor => {
                let is_one = tensor.shape.iter().all(|&size| size == 1);
                (is_one, "one number is expected".to_owned())
            }
            WeightScales::Channel => {
                let fits = tensor.shape == [rows] || tensor.shape == [rows, 1];
                (fits, format!("the config says {:?}", [rows, 1]))
            }
            WeightScales::Block([high, wide]) => {
                let blocks = [rows.div_ceil(high), columns.div_ceil(wide)];
                let fits = tensor.shape == blocks || tensor.shape == [blocks[0], 1, blocks[1], 1];
                (fits, format!("the config says {blocks:?}"))
            }
        };
        if !fits {
            return Err(tensor.error(format!("has shape {:?}; {expected}", tensor.shape)));
        }
        self.scale_values(tensor)
    }

    /// Scales of a matrix of expert `expert` in a tensor that holds all experts.
    fn scales_of_fused(
        &self,
        matrix: Matrix,
        expert: usize,
        order: Order,
        tensor: &Tensor<'_>,
    ) -> Result<Vec<f32>> {
        let experts = self.config.experts;
        let [rows, columns] = self.shape(matrix);
        let (part, parts) = part_of_fused(matrix, self.config.gated);
        let is_interleaved = order == Order::Interleaved && parts > 1;
        let wrong = |expected: &[usize]| {
            Err(tensor.error(format!("has shape {:?}; the config says {expected:?}", tensor.shape)))
        };
        let values = || self.fused_values(matrix, tensor);
        match self.scheme.weights {
            WeightScales::Tensor => match tensor.shape {
                [] | [1] => Ok(vec![values()?[0]]),
                [e] | [e, 1] | [e, 1, 1] if *e == experts => Ok(vec![values()?[expert]]),
                [e, p] | [e, p, 1] if *e == experts && *p == parts => {
                    Ok(vec![values()?[expert * parts + part]])
                }
                _ => wrong(&[experts, parts, 1]),
            },
            WeightScales::Channel => {
                let all = parts * rows;
                match tensor.shape {
                    [e, n] | [e, n, 1] | [e, 1, n] if *e == experts && *n == all => {
                        let own = &values()?[expert * all..(expert + 1) * all];
                        Ok(match is_interleaved {
                            true => own.iter().skip(part).step_by(parts).copied().collect(),
                            false => own[part * rows..(part + 1) * rows].to_vec(),
                        })
                    }
                    _ => wrong(&[experts, all, 1]),
                }
            }
            WeightScales::Block(_) if is_interleaved => {
                Err(tensor.error("blocks of gate and up in turns are not supported: they share scales"))
            }
            WeightScales::Block([high, wide]) => {
                // Each part has blocks of its own: one never holds rows of both.
                let [down, across] = [rows.div_ceil(high), columns.div_ceil(wide)];
                let all = down * parts;
                let shape = match order.is_transposed() {
                    false => [experts, all, across],
                    true => [experts, across, all],
                };
                if tensor.shape != shape {
                    return wrong(&shape);
                }
                let of_expert = &values()?[expert * all * across..][..all * across];
                let at = |row: usize, column: usize| match order.is_transposed() {
                    false => of_expert[(part * down + row) * across + column],
                    true => of_expert[column * all + part * down + row],
                };
                Ok((0..down).flat_map(|row| (0..across).map(move |column| at(row, column))).collect())
            }
        }
    }

    /// The numbers of a tensor that holds the scales of all experts, read once.
    fn fused_values(&self, matrix: Matrix, tensor: &Tensor<'_>) -> Result<&[f32]> {
        let known = &self.fused_scales[usize::from(matrix == Matrix::Down)];
        if let Some(values) = known.get() {
            return Ok(values);
        }
        let values = self.scale_values(tensor)?;
        Ok(known.get_or_init(|| values))
    }
}

/// The scales of a `[rows, columns]` matrix in blocks of `[high, wide]`, row-major, as those of its blocks of
/// 128 by 128. Each of these must have one scale: a larger block's is repeated, smaller blocks' must agree.
fn in_blocks(
    [rows, columns]: [usize; 2],
    [high, wide]: [usize; 2],
    scales: &[f32],
) -> Result<Vec<f32>, String> {
    let across = columns.div_ceil(wide);
    let mut blocks = Vec::new();
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            let (bottom, right) = ((top + BLOCK).min(rows) - 1, (left + BLOCK).min(columns) - 1);
            let first = scales[top / high * across + left / wide];
            for row in top / high..=bottom / high {
                for column in left / wide..=right / wide {
                    let other = scales[row * across + column];
                    if other != first {
                        return Err(format!(
                            "the blocks of {high}x{wide} in rows {top}..={bottom} and columns {left}..={right} \
                             have different scales, {first} and {other}: not supported: the kernels have one \
                             for 128x128, and to quantise the weights again would change them"
                        ));
                    }
                }
            }
            blocks.push(first);
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_other_sizes_keep_their_scales_or_are_refused() {
        // 256x128: repeated, the last one short. 64x128 and 1x128: merged where they agree.
        assert_eq!(
            in_blocks([272, 130], [256, 128], &[1.0, 2.0, 3.0, 4.0]),
            Ok(vec![1.0, 2.0, 1.0, 2.0, 3.0, 4.0])
        );
        assert_eq!(in_blocks([192, 64], [64, 128], &[1.0, 1.0, 2.0]), Ok(vec![1.0, 2.0]));
        assert_eq!(in_blocks([3, 256], [1, 128], &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), Ok(vec![1.0, 2.0]));
        let error = in_blocks([192, 128], [64, 64], &[1.0, 1.0, 1.0, 5.0, 1.0, 1.0]).unwrap_err();
        assert!(error.starts_with("the blocks of 64x64 in rows 0..=127 and columns 0..=127"), "{error}");
    }
}
