//! Packed weights against their drawing, and back; what is refused.

use crate::common::{cases, device};
use fp8_moe::ops::pack_weights::{
    PackedShape, pack_expert_in_place, pack_weights, pack_weights_in_place, unpack_weights,
};
use fp8_moe::{Device, E4m3, Family};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The tests' device, where it has the kernel.
fn hopper() -> Option<Device> {
    Some(device()).filter(|device| device.family() == Family::Sm90a)
}

/// Matrices `[experts, rows, k]`, packed by the definition: items of 256 rows, or of gate and up of 128
/// columns; slabs of 128 of K; a line a row, its chunks of 16 exchanged.
fn packed(matrices: &[E4m3], experts: usize, rows: usize, k: usize, gated: bool) -> Vec<E4m3> {
    let (columns, span) = if gated { (rows / 2, 128) } else { (rows, 256) };
    let mut packed = Vec::new();
    for expert in 0..experts {
        for first in (0..columns).step_by(span) {
            let half = first..columns.min(first + 128);
            let second = if gated {
                columns + half.start..columns + half.end
            } else {
                half.end..columns.min(half.end + 128)
            };
            for slab in 0..k.div_ceil(128) {
                for half in [&half, &second] {
                    for (line, row) in half.clone().enumerate() {
                        let mut bytes = [E4m3::default(); 128];
                        for at in slab * 128..k.min(slab * 128 + 128) {
                            let (chunk, byte) = (at % 128 / 16, at % 16);
                            bytes[(chunk ^ (line % 8)) * 16 + byte] =
                                matrices[(expert * rows + row) * k + at];
                        }
                        packed.extend(bytes);
                    }
                }
            }
        }
    }
    packed
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn equals_the_drawing_and_comes_back(
        seed in any::<u64>(),
        experts in 0usize..4,
        units in 1usize..50,
        k in (1usize..30).prop_map(|k| k * 16),
        gated in any::<bool>(),
    ) {
        let Some(device) = hopper() else { return Ok(()) };
        let (rows, shape) = if gated {
            (2 * 16 * units, PackedShape::gated(experts, 16 * units, k).unwrap())
        } else {
            (8 * units, PackedShape::plain(experts, 8 * units, k).unwrap())
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let matrices: Vec<E4m3> = (0..experts * rows * k).map(|_| E4m3(rng.random())).collect();
        let want = packed(&matrices, experts, rows, k, gated);
        prop_assert_eq!((shape.checkpoint_len(), shape.len()), (matrices.len(), want.len()));
        let stream = device.default_stream();
        let from = device.upload(&matrices).unwrap();
        let mut to = device.uninit(shape.len()).unwrap();
        pack_weights(&stream, shape, from.as_slice(), to.as_mut_slice()).unwrap();
        prop_assert!(to.to_vec(&stream).unwrap() == want);
        let mut back = device.uninit(matrices.len()).unwrap();
        unpack_weights(&stream, shape, to.as_slice(), back.as_mut_slice()).unwrap();
        prop_assert!(back.to_vec(&stream).unwrap() == matrices);
        let mut scratch = device.uninit(shape.of_one().checkpoint_len()).unwrap();
        // Where packed weights need more room, the matrices stand at its beginning.
        let mut here = device.upload(&[&matrices[..], &want[matrices.len()..]].concat()).unwrap();
        pack_weights_in_place(&stream, shape, here.as_mut_slice(), scratch.as_mut_slice()).unwrap();
        prop_assert!(here.to_vec(&stream).unwrap() == want);
    }
}

#[test]
fn refusals() {
    let error = |shape: fp8_moe::Result<PackedShape>| shape.unwrap_err().to_string();
    assert_eq!(error(PackedShape::plain(1, 12, 16)), "PackedShape: n = 12: must be a positive multiple of 8");
    assert_eq!(
        error(PackedShape::gated(1, 24, 16)),
        "PackedShape: intermediate = 24: must be a positive multiple of 16"
    );
    assert_eq!(error(PackedShape::plain(1, 8, 0)), "PackedShape: k = 0: must be a positive multiple of 16");
    assert_eq!(
        error(PackedShape::plain(1 << 20, 4096, 128)),
        "PackedShape: experts = 1048576: must keep 4096 rows of 128 columns below 2^32 lines of 128 bytes"
    );
    let Some(device) = hopper() else { return };
    let (stream, shape) = (device.default_stream(), PackedShape::plain(2, 8, 144).unwrap());
    let (matrices, mut packed) =
        (device.zeros::<E4m3>(2 * 8 * 144).unwrap(), device.zeros(shape.len()).unwrap());
    let short = pack_weights(&stream, shape, matrices.as_slice(), packed.slice_mut(16..));
    let short = short.unwrap_err().to_string();
    assert!(short.starts_with("pack_weights: packed = 4080 elements"), "{short}");
    let short =
        unpack_weights(&stream, shape, packed.slice(16..), packed_like(&device, &shape).as_mut_slice());
    assert!(short.unwrap_err().to_string().starts_with("unpack_weights: packed = 4080 elements"));
    let mut scratch = device.zeros(8 * 144).unwrap();
    let mut place = |weights: usize, scratch_len: usize| {
        let mut weights = device.zeros::<E4m3>(weights).unwrap();
        let scratch = scratch.slice_mut(..scratch_len);
        let refused = pack_weights_in_place(&stream, shape, weights.as_mut_slice(), scratch);
        let mut weights = device.zeros::<E4m3>(2 * 8 * 256).unwrap();
        let beyond = pack_expert_in_place(&stream, shape, 2, weights.as_mut_slice(), packed.as_mut_slice());
        [refused, beyond].map(|result| result.unwrap_err().to_string())
    };
    let [short, beyond] = place(2 * 8 * 256 - 16, 8 * 144);
    assert!(short.starts_with("pack_weights_in_place: weights = 4080 elements"), "{short}");
    assert_eq!(beyond, "pack_weights_in_place: expert = 2: must be below 2");
    let [short, _] = place(2 * 8 * 256, 8 * 144 - 16);
    assert!(short.starts_with("pack_weights_in_place: scratch = 1136 elements"), "{short}");
}

fn packed_like(device: &Device, shape: &PackedShape) -> fp8_moe::Buffer<E4m3> {
    device.zeros(shape.checkpoint_len()).unwrap()
}
