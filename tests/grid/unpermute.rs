//! ```text
//! unpermute: T {1,33,1024,5000} x H {2048,7168} x E {16,64,256} x k {2,6,8} x ranks {1,4,16} x align
//!     {none,128}; must hold: atol 2e-2 at bf16; and against f64 within one bf16 rounding
//! ```
//!
//! What holds is more: the bits of fused multiply-adds in slot order. E and the alignment decide no more than
//! which rows are read: every T, H, k and number of ranks has one pair of them, and every T all pairs.

use fp8_moe::ops::permute::PermuteShape;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common::unpermute::{Case, Types};
use crate::common::{Size, device, families, size};

/// E and the alignment.
const PAIRS: [(usize, usize); 6] = [(16, 1), (64, 128), (256, 1), (16, 128), (64, 1), (256, 128)];

fn check(small: (usize, &[usize]), tokens: usize) {
    let (tokens, hidden) = if size() == Size::Small { small } else { (tokens, &[2048, 7168][..]) };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (turn, &hidden) in hidden.iter().enumerate() {
        let points = [2, 6, 8].into_iter().flat_map(|top_k| [1, 4, 16].map(|ranks| (top_k, ranks)));
        for (index, (top_k, ranks)) in points.enumerate() {
            let (experts, alignment) = PAIRS[(index + 3 * turn) % PAIRS.len()];
            // Padding makes many rows of few tokens: the emulated device has narrow ones.
            let is_narrow = alignment != 1 && size() == Size::Small;
            let hidden = if is_narrow { hidden.min(64) } else { hidden };
            let sort = PermuteShape { tokens, top_k, experts, local_experts: experts, alignment };
            let types = Types::ALL[(top_k + ranks) % Types::ALL.len()];
            let case = Case::permuted(types, sort, hidden, ranks, &mut rng);
            // Either family where it is cheap.
            let devices = if tokens <= 33 { families() } else { vec![device()] };
            devices.iter().for_each(|device| case.check(device, 0xff));
        }
    }
}

#[test]
fn t1() {
    check((1, &[2048, 7168]), 1);
}

#[test]
fn t33() {
    check((33, &[2048]), 33);
}

#[test]
fn t1024() {
    check((1024, &[48]), 1024);
}

#[test]
fn t5000() {
    check((5000, &[8]), 5000);
}
