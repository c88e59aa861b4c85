//! ```text
//! quantisation: hidden {17,1024,1025,1026,5137,8193} x rows {1,7,4096}; must hold: bit-exact against the
//!     reference
//! ```
//!
//! In every scheme, a test for each width. The emulated device has 4096 rows of the narrowest, and 40 of the
//! others.

use rayon::prelude::*;

use crate::common::quantise::{MODES, TYPES, Type, dense};
use crate::common::{Size, device, size};

fn check(columns: usize) {
    let device = device();
    let many = if size() == Size::Full || columns == 17 { 4096 } else { 40 };
    for rows in [1, 7, many] {
        for (i, mode) in MODES.into_iter().enumerate() {
            let ty = if rows > 7 { Type::Bf16 } else { TYPES[(i + rows + columns) % 3] };
            dense(ty, mode, rows, columns, columns as u64).check(&device, 0xff);
        }
    }
}

#[test]
fn hidden_17() {
    check(17);
}

#[test]
fn hidden_1024() {
    check(1024);
}

#[test]
fn hidden_1025() {
    check(1025);
}

#[test]
fn hidden_1026() {
    check(1026);
}

#[test]
fn hidden_5137() {
    check(5137);
}

#[test]
fn hidden_8193() {
    check(8193);
}

/// The kernels' division, on the host: whether it compares with every e4m3 value and midpoint as the IEEE
/// quotient does, for significands of the scale (every one at full size), all five-bit significands m, and
/// the values within six units of scale times m.
#[test]
fn the_kernels_division_is_ieee_where_it_decides() {
    let stride = if size() == Size::Full { 1 } else { 1021 };
    (0x3f80_0000..0x4000_0000_u32).into_par_iter().step_by(stride).for_each(|bits| {
        let scale = f32::from_bits(bits);
        let reciprocal = 1.0 / scale;
        for sixteenths in 0..16_u8 {
            let mark = 1.0 + f32::from(sixteenths) / 16.0;
            for ulps in 0..=12 {
                let x = f32::from_bits((mark * scale).to_bits() + ulps - 6);
                let quotient = x * reciprocal;
                let residual = scale.mul_add(quotient, -x);
                let quotient = (-reciprocal).mul_add(residual, quotient);
                assert_eq!(quotient.partial_cmp(&mark), (x / scale).partial_cmp(&mark), "{x:e} / {scale:e}");
            }
        }
    });
}
