//! ```text
//! layer, per-tensor/per-token: T,I,H in {2,64,224}x{1024,3072}x{1024,1536}, (7,3072,1536),
//!     (32768,1024,1024); E {40,64} x k {6,8}; must hold: atol 5.5e-2, rtol 1e-2 against dequantised maths;
//!     graph replay equals eager bit for bit
//! layer, large: (7232,2048,5120) and (40000,2048,5120); must hold: the same
//! ```
//!
//! Small sizes keep few and many tokens for each expert, and divide I and H.

use fp8_moe::Quantization::{self, ChannelToken, TensorStatic};

use crate::common::{Size, size};
use crate::points::Points;

/// T, I, H, E and k of a row.
struct Row {
    t: &'static [usize],
    ih: [usize; 2],
    e: &'static [usize],
    k: &'static [usize],
}

fn check(quantization: Quantization, small: Row, full: Row) {
    let Row { t, ih: [i, h], e, k } = if size() == Size::Small { small } else { full };
    for &experts in e {
        Points { quantization, i, h, experts }.check(k, t);
    }
}

const T: &[usize] = &[2, 64, 224];
const E: &[usize] = &[40, 64];
const K: &[usize] = &[6, 8];

/// Tests of rows: name, quantisation, small size, full size.
macro_rules! rows {
    ($($name:ident: $quantization:expr,
        ($small_t:expr, $small_ih:expr, $small_e:expr, $small_k:expr),
        ($t:expr, $ih:expr, $e:expr, $k:expr);)*) => {
        $(#[test]
        fn $name() {
            check(
                $quantization,
                Row { t: $small_t, ih: $small_ih, e: $small_e, k: $small_k },
                Row { t: $t, ih: $ih, e: $e, k: $k },
            );
        })*
    };
}

rows! {
    //                                     small: T, (I, H), E, k               full
    per_tensor_i1024_h1024: TensorStatic, (&[2], [1024, 1024], &[40], &[6]),   (T, [1024, 1024], E, K);
    per_tensor_i1024_h1536: TensorStatic, (&[64], [512, 256], &[8], &[8]),     (T, [1024, 1536], E, K);
    per_tensor_i3072_h1024: TensorStatic, (&[2, 64], [384, 192], &[8], &[6]),  (T, [3072, 1024], E, K);
    per_tensor_i3072_h1536: TensorStatic, (&[224], [128, 256], &[40], &[6]),   (T, [3072, 1536], E, K);
    per_token_i1024_h1024: ChannelToken,  (&[2], [1024, 1024], &[40], &[6]),   (T, [1024, 1024], E, K);
    per_token_i1024_h1536: ChannelToken,  (&[64], [512, 256], &[8], &[8]),     (T, [1024, 1536], E, K);
    per_token_i3072_h1024: ChannelToken,  (&[2, 64], [384, 192], &[8], &[6]),  (T, [3072, 1024], E, K);
    per_token_i3072_h1536: ChannelToken,  (&[224], [128, 256], &[40], &[6]),   (T, [3072, 1536], E, K);

    t7_i3072_h1536_per_tensor: TensorStatic, (&[7], [384, 192], &[40], K), (&[7], [3072, 1536], E, K);
    t7_i3072_h1536_per_token: ChannelToken,  (&[7], [384, 192], &[40], K), (&[7], [3072, 1536], E, K);
    t32768_i1024_h1024_per_tensor: TensorStatic, (&[512], [64, 64], &[40], &[6]),
        (&[32768], [1024, 1024], E, K);
    t32768_i1024_h1024_per_token: ChannelToken,  (&[512], [64, 64], &[64], &[8]),
        (&[32768], [1024, 1024], E, K);

    large_t7232_i2048_h5120_per_tensor: TensorStatic, (&[226], [64, 160], &[40], &[6]),
        (&[7232], [2048, 5120], &[40], K);
    large_t7232_i2048_h5120_per_token: ChannelToken,  (&[226], [64, 160], &[40], &[6]),
        (&[7232], [2048, 5120], &[64], K);
    large_t40000_i2048_h5120_per_tensor: TensorStatic, (&[1250], [32, 80], &[40], &[6]),
        (&[40000], [2048, 5120], &[40], K);
    large_t40000_i2048_h5120_per_token: ChannelToken,  (&[1250], [32, 80], &[40], &[6]),
        (&[40000], [2048, 5120], &[64], K);
}
