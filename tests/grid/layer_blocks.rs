//! ```text
//! layer, 128-blocks: T {1,83,128,2048,8192} x (I,H) in {128,512,1024,4608}x{128,512,7168}; E {2,8,16} x k
//!     {1,2,6}; must hold: 3.5e-2
//! ```
//!
//! A test for each I. Two experts have no top 6.

use fp8_moe::Quantization::Block128;

use crate::common::{Size, size};
use crate::points::Points;

/// T, H, and pairs of E and every k.
type Row = (&'static [usize], &'static [usize], &'static [(usize, &'static [usize])]);

const FULL: Row =
    (&[1, 83, 128, 2048, 8192], &[128, 512, 7168], &[(2, &[1, 2]), (8, &[1, 2, 6]), (16, &[1, 2, 6])]);

fn check(i: usize, small: &[Row]) {
    let rows = if size() == Size::Small { small } else { &[FULL] };
    for &(t, hs, experts) in rows {
        for &h in hs {
            for &(experts, k) in experts {
                Points { quantization: Block128, i, h, experts }.check(k, t);
            }
        }
    }
}

#[test]
fn i128() {
    check(
        128,
        &[
            (&[1, 83], &[512], &[(2, &[1, 2])]),
            (&[128], &[128], &[(16, &[6])]),
            (&[512], &[128], &[(8, &[1])]),
        ],
    );
}

#[test]
fn i512() {
    check(512, &[(&[83], &[128], &[(8, &[2, 6])])]);
}

#[test]
fn i1024() {
    check(1024, &[(&[8], &[128], &[(8, &[6])]), (&[1], &[512], &[(2, &[1])])]);
}

#[test]
fn i4608() {
    // And an I that is no multiple of a block, as tensor parallelism makes them.
    check(4608, &[(&[1], &[128], &[(2, &[1])])]);
    check(192, &[(&[83], &[128], &[(2, &[2])])]);
}
