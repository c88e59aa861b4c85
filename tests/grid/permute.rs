//! ```text
//! permute: T {1,33,1024,5000} x H {2048,7168} x E {16,64,256} x k {2,6,8} x ranks {1,4,16} x align
//!     {none,128}; must hold: offsets, inverse, rows bit-exact
//! ```
//!
//! The permutation does not depend on H: it runs in full on the emulated device. Copies of rows do.

use fp8_moe::ops::permute::{PermutePath, PermuteShape};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::permute::{Skew, check, check_rows, draw_ids, rank_map};
use crate::common::{Size, devices, size};

/// Offsets, sorted rows, inverse, problem sizes and schedules.
fn permutations(tokens: usize) {
    let rng = &mut ChaCha8Rng::seed_from_u64(7);
    for device in devices() {
        for experts in [16, 64, 256] {
            for top_k in [2, 6, 8] {
                let ids = draw_ids(Skew::Distinct, tokens, top_k, experts, rng);
                for ranks in [1, 4, 16] {
                    let (map, local_experts) = rank_map(experts, rng.random_range(0..ranks), ranks);
                    for alignment in [1, 128] {
                        let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment };
                        check(&device, shape, &ids, Some(&map), PermutePath::Auto, 0xff);
                    }
                }
            }
        }
    }
}

/// Rows in FP8 with their scales per group, and rows in 16 bits.
fn rows(small: (usize, &[usize]), tokens: usize) {
    let (tokens, columns) = if size() == Size::Small { small } else { (tokens, &[2048, 7168][..]) };
    let rng = &mut ChaCha8Rng::seed_from_u64(8);
    for device in devices() {
        for (experts, top_k) in [16, 64, 256].into_iter().flat_map(|e| [2, 6, 8].map(|k| (e, k))) {
            for ranks in [1, 4, 16] {
                let (map, local_experts) = rank_map(experts, rng.random_range(0..ranks), ranks);
                for alignment in [1, 128] {
                    let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment };
                    // Padding makes many rows of few tokens: the emulated device copies the narrow ones.
                    let padded = alignment != 1 && size() == Size::Small;
                    for &columns in &columns[..if padded { 1 } else { columns.len() }] {
                        let ids = (Skew::Distinct, Some(&map[..]));
                        check_rows::<u8>(
                            &device,
                            shape,
                            ids,
                            columns,
                            columns.div_ceil(128),
                            false,
                            rng.random(),
                        );
                    }
                }
            }
            let shape = PermuteShape { tokens, top_k, experts, local_experts: experts, alignment: 1 };
            check_rows::<u16>(&device, shape, (Skew::Invalid, None), columns[0], 0, false, rng.random());
        }
    }
}

#[test]
fn t1() {
    permutations(1);
}

#[test]
fn t33() {
    permutations(33);
}

#[test]
fn t1024() {
    permutations(1024);
}

#[test]
fn t5000() {
    permutations(5000);
}

#[test]
fn rows_t1() {
    rows((1, &[256, 2048]), 1);
}

#[test]
fn rows_t33() {
    rows((9, &[128, 7168]), 33);
}

#[test]
fn rows_t1024() {
    rows((65, &[128]), 1024);
}

#[test]
fn rows_t5000() {
    rows((200, &[16]), 5000);
}
