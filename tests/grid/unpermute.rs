//! ```text
//! unpermute: T {1,33,1024,5000} x H {2048,7168} x E {16,64,256} x k {2,6,8} x ranks {1,4,16}; must hold:
//!     atol 2e-2 at bf16; and against f64 within one bf16 rounding
//! ```
//!
//! What holds is more: the bits of fused multiply-adds in slot order. E is in the permutation alone, which is
//! random.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common::unpermute::{Case, Types};
use crate::common::{Size, device, families, size};

fn check(small: (usize, &[usize]), tokens: usize) {
    let (tokens, hidden) = if size() == Size::Small { small } else { (tokens, &[2048, 7168][..]) };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for &hidden in hidden {
        for top_k in [2, 6, 8] {
            for ranks in [1, 4, 16] {
                let types = Types::ALL[(top_k + ranks) % Types::ALL.len()];
                let case = Case::draw(types, tokens, top_k, hidden, 1.0 / ranks as f64, &mut rng);
                // Either family where it is cheap.
                let devices = if tokens <= 33 { families() } else { vec![device()] };
                devices.iter().for_each(|device| case.check(device, 0xff));
            }
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
