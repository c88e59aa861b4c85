//! ```text
//! layer, EP: T 64, I 1024, H 4096, E 16, k {1,8}, ranks {1,2,4,8,16}; (1,8192,5120,k31),
//!     (65536,512,1024,k16) at E 128, 8 ranks; must hold: sum over ranks = reference
//! ```
//!
//! The reference is the oracle, for some tokens; for all of them it is the layer with all experts. A rank's
//! GEMMs may cut sums elsewhere than the whole layer's, and then the last bits differ, and roundings to e4m3
//! with them.

use fp8_moe::{MoeLayer, Quantization::ChannelToken, Routing};

use crate::common::checks::{Tolerance, out_of_bounds};
use crate::common::layers::{config, on_device, run_own};
use crate::common::oracle::{self, Layer};
use crate::common::{Size, device, size};
use crate::points::FACTOR;

/// vLLM's tolerance of the per-token layer.
const TOLERANCE: Tolerance = Tolerance { atol: 5.5e-2, rtol: 1e-2 };

/// T, I, H, E, k.
type Point = [usize; 5];

#[track_caller]
fn check(small: Point, full: Point, ranks: &[usize]) {
    let [tokens, i, h, experts, k] = if size() == Size::Small { small } else { full };
    let stream = device().default_stream();
    let mut layer =
        Layer::random(config(ChannelToken, Routing::Softmax { renormalize: true }, [experts, k, h, i]), 9);
    layer.scale_outputs(FACTOR);
    let hidden = oracle::hidden_states(tokens * h, 10);
    let (whole, ids, weights) = run_own(&stream, &on_device(&device(), &layer), &hidden).unwrap();
    // The first token and the last.
    let ends = &[0, tokens - 1][..tokens.min(2)];
    let of = |values: &[f32]| ends.iter().flat_map(|t| values[t * h..][..h].to_vec()).collect::<Vec<_>>();
    let expected: Vec<_> = ends
        .iter()
        .flat_map(|&t| {
            let (row, slots) = (t * h..(t + 1) * h, t * k..(t + 1) * k);
            layer.forward(&hidden[row], &ids[slots.clone()], &weights[slots])
        })
        .collect();
    assert_eq!(out_of_bounds(&of(&whole), &expected), None, "all experts");
    for &ranks in ranks {
        let mut sum = vec![0.0; whole.len()];
        for rank in 0..ranks {
            let rank = layer.config.for_rank(rank, ranks).unwrap();
            let rank = MoeLayer::new(&device(), &rank, &layer.weights(&rank)).unwrap();
            let (part, rank_ids, _) = run_own(&stream, &rank, &hidden).unwrap();
            assert_eq!(rank_ids, ids, "the routing is global");
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        assert_eq!(out_of_bounds(&of(&sum), &expected), None, "k {k}, {ranks} ranks");
        let broken = TOLERANCE.broken(&sum, whole.iter().map(|&x| f64::from(x)));
        assert_eq!(broken, None, "k {k}, {ranks} ranks");
    }
}

#[test]
fn t64_i1024_h4096_e16_k1() {
    check([64, 128, 512, 16, 1], [64, 1024, 4096, 16, 1], &[1, 2, 4, 8, 16]);
}

#[test]
fn t64_i1024_h4096_e16_k8() {
    check([64, 128, 512, 16, 8], [64, 1024, 4096, 16, 8], &[1, 2, 4, 8, 16]);
}

#[test]
fn t1_i8192_h5120_e128_k31() {
    check([1, 256, 160, 128, 31], [1, 8192, 5120, 128, 31], &[8]);
}

#[test]
fn t65536_i512_h1024_e128_k16() {
    check([256, 16, 32, 128, 16], [65536, 512, 1024, 128, 16], &[8]);
}
