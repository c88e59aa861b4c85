//! Which part of a distance to a reference flipped roundings explain.
//!
//! Tensor cores cut what lies 13 bits below the largest product of a step. So an element v of an
//! intermediate, which comes from two sums of GEMM 1, is off by some 2^-11 of itself. That matters where it
//! carries v over the border between two roundings to e4m3, whose distance is 2^-4 to 2^-3 of v: for about
//! one element in two hundred. It *flips*, by one step:
//!
//! ```text
//!     y = sum over i of q_i s_i w2[:, i]            flipped at i:   y' - y = (q_i' - q_i) s_i w2[:, i]
//!                                                                   |q_i' - q_i| <= |q_i| / 8
//! ```
//!
//! - *In a layer of thousands of columns* many elements of every token flip, each a small part of the output.
//!   Their squares add up to a distance of 0.003 to 0.004 (`docs/ARCHITECTURE.md`): no case for this file.
//! - *In a layer of 32 columns* one token in a hundred has a flip that shows. A column contributes a fifth to
//!   a half of a token's norm there, an eighth of which is up to 6 % of the token, and 2 % of nine tokens. No
//!   limit of the distance allows for that and refuses a wrong weight too.
//!
//! But a flip can be told from a mistake by its direction. It moves a token along one column of the down
//! projection of one of its experts, by at most an eighth of what the column contributes, and that is no more
//! than the whole output, unless experts cancel. What is left without flips are roundings of the experts'
//! outputs to 16 bits, [`ROUNDING`] of the output at most. So a token is explained if some such moves bring
//! its difference below that, and a layer if its distance is below that then: less than half of what it may
//! be before. Of the k * I elements of a token one in two hundred flips, and few of those show: in tokens of
//! 64 to 320 elements more than 3 to 5 are no chance.
//!
//! Wrong numbers are not explained away:
//!
//! - A wrong weight or scale of down changes rows of the output, which are no columns. In H = 64 dimensions
//!   the best of 64 columns shares a tenth of the square of a direction that has nothing to do with it.
//! - A wrong weight or scale of gate or up moves every token of its expert along the same column. But flips
//!   of one column in two tokens are independent: a column explains one token.
//! - A wrong expert moves tokens by more than an eighth, along all columns.
//!
//! What this lets through, and a distance might not: a wrong weight of gate or up that changes one token
//! alone, by less than a flip would. So it is for devices that cut sums alone.

use std::collections::HashSet;

use fp8_moe::{
    Checkpoint, ExpertWeights, MoeConfig, MoeWeights, Quantization, Result, SharedKind, SharedMatrices,
};

/// What rounding to 16 bits changes at most, relative to a number of bf16.
pub const ROUNDING: f64 = 1.0 / 256.0;

/// Flips that may explain one token, whatever its elements: more take long to find, and average out.
const MOST: usize = 8;

/// The largest step of e4m3, relative to the number that is rounded.
const STEP: f64 = 1.0 / 8.0;

/// The down projections of a layer.
pub struct Downs {
    config: MoeConfig,
    weights: MoeWeights<'static>,
}

/// A down projection of a token: of a routed expert, or of the shared one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Routed(usize),
    Shared,
}

/// A move along a column.
struct Move {
    place: Place,
    column: usize,
    /// The column, as f64.
    direction: Vec<f64>,
    /// How much of it.
    factor: f64,
    /// The length of the move.
    length: f64,
}

impl Downs {
    /// Those of the layer at `prefix`, as `config` has it: with its shared expert or without.
    ///
    /// # Errors
    /// Those of [`Checkpoint::weights`].
    pub fn load(checkpoint: &Checkpoint, prefix: &str, config: &MoeConfig) -> Result<Downs> {
        Ok(Downs { config: config.clone(), weights: checkpoint.weights(prefix, config)? })
    }

    /// Takes flips away from `difference` `[T, H]` where they bring a token within [`ROUNDING`] of the norm
    /// of its `reference`. `ids` `[T, k]`. Returns how many there were.
    pub fn take_flips(&self, difference: &mut [f64], reference: &[f32], ids: &[i64]) -> usize {
        let MoeConfig { hidden_size: h, top_k, intermediate_size, .. } = self.config;
        let most = MOST.min(3 + top_k * intermediate_size / 128);
        let mut used = HashSet::new();
        let mut flips = 0;
        let tokens = difference.chunks_mut(h).zip(reference.chunks(h)).zip(ids.chunks(top_k));
        for ((difference, reference), ids) in tokens {
            let size = norm(reference.iter().map(|&x| x.into()));
            let routed = ids.iter().filter_map(|&id| usize::try_from(id).ok()).map(Place::Routed);
            let places: Vec<_> = routed.chain([Place::Shared]).collect();
            let (mut rest, mut columns) = (difference.to_vec(), Vec::new());
            while norm(rest.iter().copied()) > ROUNDING * size && columns.len() < most {
                let best = places.iter().filter_map(|&place| self.best(place, &rest, &used));
                let best = best.max_by(|a, b| a.length.total_cmp(&b.length));
                let Some(best) = best.filter(|best| best.length <= STEP * size) else { break };
                rest.iter_mut().zip(&best.direction).for_each(|(rest, x)| *rest -= best.factor * x);
                columns.push((best.place, best.column));
            }
            if norm(rest.iter().copied()) <= ROUNDING * size {
                flips += columns.len();
                used.extend(columns);
                difference.copy_from_slice(&rest);
            }
        }
        flips
    }

    /// The column of a projection along which `rest` goes furthest, among those that are not `used`.
    fn best(&self, place: Place, rest: &[f64], used: &HashSet<(Place, usize)>) -> Option<Move> {
        let (expert, quantization, columns) = self.projection(place)?;
        let element = |row: usize, column: usize| {
            let scale = quantization.weight_scale_at(columns, row, column);
            f64::from(expert.down[row * columns + column].to_f32()) * f64::from(expert.down_scale[scale])
        };
        let (mut products, mut squares) = (vec![0.0; columns], vec![0.0; columns]);
        for (row, rest) in rest.iter().enumerate() {
            for column in 0..columns {
                let x = element(row, column);
                products[column] += x * rest;
                squares[column] += x * x;
            }
        }
        let length = |column: usize| products[column].abs() / squares[column].sqrt();
        let free = (0..columns).filter(|&column| squares[column] > 0.0 && !used.contains(&(place, column)));
        let column = free.max_by(|&a, &b| length(a).total_cmp(&length(b)))?;
        Some(Move {
            place,
            column,
            direction: (0..rest.len()).map(|row| element(row, column)).collect(),
            factor: products[column] / squares[column],
            length: length(column),
        })
    }

    /// The expert at `place`, its scheme, and the columns of its down projection; none where no such expert
    /// rounds its intermediate to e4m3.
    fn projection(&self, place: Place) -> Option<(&ExpertWeights<'static>, Quantization, usize)> {
        match place {
            Place::Routed(expert) => {
                let expert = self.weights.experts.get(expert)?;
                Some((expert, self.config.quantization, self.config.intermediate_size))
            }
            Place::Shared => {
                let config = self.config.shared?;
                match (&self.weights.shared.as_ref()?.matrices, config.weights) {
                    (SharedMatrices::Quantised { expert, .. }, SharedKind::Quantised(quantization)) => {
                        Some((expert, quantization, config.intermediate_size))
                    }
                    _ => None,
                }
            }
        }
    }
}

/// The Euclidean norm.
pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x.powi(2)).sum::<f64>().sqrt()
}
