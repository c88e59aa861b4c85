//! Tensor maps: every documented rule refuses what it should, and boxes copy what a naive loop copies.

use proptest::prelude::*;
use ptx_sim::tensor_map::{Chunk, TensorMap, TensorMapError, TiledArguments};

const GOOD: TiledArguments<'static> = TiledArguments {
    data_type: 0,
    address: 0x1000,
    dims: &[256, 64, 4],
    strides: &[256, 16384],
    box_dims: &[128, 8, 1],
    element_strides: &[1, 1, 1],
    interleave: 0,
    swizzle: 3,
    l2_promotion: 2,
    oob_fill: 0,
};

#[test]
fn each_rule_is_named() {
    assert!(TensorMap::tiled(&GOOD).is_ok());
    let cases: [(TiledArguments<'_>, &str); 23] = [
        (TiledArguments { data_type: 16, ..GOOD }, "tensorDataType is 16: must be a CUtensorMapDataType"),
        (
            TiledArguments { data_type: 11, ..GOOD },
            "tensorDataType is 11: TF32 and FTZ types are not emulated",
        ),
        (TiledArguments { data_type: 13, ..GOOD }, "tensorDataType is 13: packed types need sm_100"),
        (TiledArguments { dims: &[], ..GOOD }, "tensorRank is 0: must be 1 to 5"),
        (TiledArguments { dims: &[1; 6], ..GOOD }, "tensorRank is 6: must be 1 to 5"),
        (TiledArguments { address: 0x1008, ..GOOD }, "globalAddress is 0x1008: must be a multiple of 16"),
        (TiledArguments { dims: &[256, 0, 4], ..GOOD }, "globalDim[1] is 0: must be 1 to 2^32"),
        (
            TiledArguments { dims: &[256, (1 << 32) + 1, 4], ..GOOD },
            "globalDim[1] is 4294967297: must be 1 to 2^32",
        ),
        (
            TiledArguments { strides: &[264, 16384], ..GOOD },
            "globalStrides[0] is 264: must be a multiple of 16",
        ),
        (
            TiledArguments { strides: &[256, 1 << 40], ..GOOD },
            "globalStrides[1] is 1099511627776: must be less than 2^40",
        ),
        (TiledArguments { strides: &[256], ..GOOD }, "globalStrides is 1 long: a map of rank 3 needs 2"),
        (TiledArguments { box_dims: &[128, 8], ..GOOD }, "boxDim is 2 long: a map of rank 3 needs 3"),
        (
            TiledArguments { element_strides: &[], ..GOOD },
            "elementStrides is 0 long: a map of rank 3 needs 3",
        ),
        (TiledArguments { box_dims: &[128, 257, 1], ..GOOD }, "boxDim[1] is 257: must be 1 to 256"),
        (TiledArguments { box_dims: &[128, 0, 1], ..GOOD }, "boxDim[1] is 0: must be 1 to 256"),
        (
            TiledArguments { box_dims: &[120, 8, 1], ..GOOD },
            "boxDim[0] is 120: a row of 120 bytes must be a multiple of 16",
        ),
        (
            TiledArguments { box_dims: &[144, 8, 1], ..GOOD },
            "boxDim[0] is 144: a row of 144 bytes exceeds the swizzle's 128",
        ),
        (
            TiledArguments { box_dims: &[48, 8, 1], swizzle: 1, ..GOOD },
            "boxDim[0] is 48: a row of 48 bytes exceeds the swizzle's 32",
        ),
        (TiledArguments { element_strides: &[0, 9, 1], ..GOOD }, "elementStrides[1] is 9: must be 1 to 8"),
        (TiledArguments { interleave: 1, ..GOOD }, "interleave is 1: interleaved layouts are not emulated"),
        (TiledArguments { swizzle: 7, ..GOOD }, "swizzle is 7: must be a CUtensorMapSwizzle"),
        (TiledArguments { l2_promotion: 4, ..GOOD }, "l2Promotion is 4: must be a CUtensorMapL2promotion"),
        (
            TiledArguments { oob_fill: 1, ..GOOD },
            "oobFill is 1: NaN can only fill a tensor of a floating-point type",
        ),
    ];
    for (arguments, message) in cases {
        assert_eq!(TensorMap::tiled(&arguments).unwrap_err().to_string(), message);
    }
}

#[test]
fn the_first_element_stride_is_ignored() {
    let map = TensorMap::tiled(&TiledArguments { element_strides: &[0, 1, 1], ..GOOD }).unwrap();
    assert_eq!(map.element_strides, [1; 5]);
}

#[test]
fn foreign_bytes_are_not_a_map() {
    let mut bytes = TensorMap::tiled(&GOOD).unwrap().encode();
    bytes[0] ^= 1;
    assert!(
        TensorMap::decode(&bytes).unwrap_err().to_string().contains("not made by cuTensorMapEncodeTiled")
    );
    let mut bytes = TensorMap::tiled(&GOOD).unwrap().encode();
    bytes[16] = 8;
    assert_eq!(TensorMap::decode(&bytes).unwrap_err().argument, "globalAddress");
}

fn chunks(map: &TensorMap, coordinates: &[i32], shared: u32) -> Result<Vec<Chunk>, TensorMapError> {
    let mut chunks = vec![];
    map.visit_box(coordinates, shared, |chunk| {
        chunks.push(chunk);
        Ok::<(), TensorMapError>(())
    })?;
    Ok(chunks)
}

#[test]
fn copies_that_no_box_can_describe() {
    let map = TensorMap::tiled(&GOOD).unwrap();
    let message = |result: Result<Vec<Chunk>, TensorMapError>| result.unwrap_err().to_string();
    assert_eq!(
        message(chunks(&map, &[0, 0], 0)),
        "the number of coordinates is 2: the tensor map has rank 3"
    );
    assert_eq!(
        message(chunks(&map, &[0, 0, 0], 64)),
        "the shared-memory address is 0x40: must be a multiple of 128"
    );
    assert_eq!(
        message(chunks(&map, &[8, 0, 0], 0)),
        "the innermost coordinate, in bytes, is 8: must be a multiple of 16"
    );
    let narrow = TensorMap::tiled(&TiledArguments { box_dims: &[64, 8, 1], ..GOOD }).unwrap();
    assert!(message(chunks(&narrow, &[0, 0, 0], 0)).contains("narrower than the 128-byte swizzle"));
}

#[test]
fn a_128_byte_swizzle_is_the_picture() {
    let map = TensorMap::tiled(&GOOD).unwrap();
    assert_eq!(map.box_bytes(), 1024);
    let chunks = chunks(&map, &[128, 3, 1], 0x2000).unwrap();
    for (i, chunk) in chunks.iter().enumerate() {
        let (row, column) = (i as u32 / 8, i as u32 % 8);
        assert_eq!(chunk.shared, 0x2000 + 128 * row + 16 * (column ^ row));
        let global = 0x1000 + 16384 + (3 + u64::from(row)) * 256 + 128 + 16 * u64::from(column);
        assert_eq!((chunk.global, chunk.valid.clone()), (global, 0..16));
    }
}

#[test]
fn nan_fill_is_a_nan_of_the_type() {
    for (data_type, nan) in [(6, 0x7fffu64), (9, 0x7fff), (7, 0x7fff_ffff), (8, 0x7fff_ffff_ffff_ffff)] {
        let map = TensorMap::tiled(&TiledArguments { data_type, oob_fill: 1, swizzle: 0, ..GOOD }).unwrap();
        let bytes = map.data_type.bytes() as usize;
        assert_eq!(map.fill()[..bytes], nan.to_le_bytes()[..bytes]);
        assert_eq!(map.fill()[..bytes], map.fill()[16 - bytes..]);
    }
    assert_eq!(TensorMap::tiled(&GOOD).unwrap().fill(), [0; 16]);
}

proptest! {
    /// Against one loop per dimension over single elements.
    #[test]
    fn boxes_copy_what_a_naive_loop_copies(
        data_type in prop::sample::select(vec![0u32, 1, 2, 4, 7, 9]),
        dims in prop::collection::vec(1u64..9, 1..=4),
        row in 1u64..70,
        box_outer in prop::collection::vec(1u32..5, 4),
        steps in prop::collection::vec(1u32..4, 4),
        corner in prop::collection::vec(-6i32..10, 5),
        swizzle in 0u32..4,
    ) {
        let size = [1usize, 2, 4, 4, 8, 8, 2, 4, 8, 2][data_type as usize];
        let mut dims = dims;
        dims.insert(0, row);
        let rank = dims.len();
        let mut strides = vec![(row * size as u64).next_multiple_of(16) + 16];
        for d in 1..rank - 1 {
            strides.push(strides[d - 1] * dims[d] + 32);
        }
        let row_bytes = [48, 32, 64, 128][swizzle as usize];
        let mut box_dims = vec![(row_bytes / size) as u32];
        box_dims.extend(&box_outer[..rank - 1]);
        let mut element_strides = vec![1];
        element_strides.extend(&steps[..rank - 1]);
        // A line is begun at multiples of 16 bytes.
        let mut corner = corner;
        corner[0] *= (16 / size) as i32;
        let coordinates = &corner[..rank];
        let map = TensorMap::tiled(&TiledArguments {
            data_type, address: 64, dims: &dims, strides: &strides, box_dims: &box_dims,
            element_strides: &element_strides, interleave: 0, swizzle, l2_promotion: 0, oob_fill: 0,
        }).unwrap();
        prop_assert_eq!(&TensorMap::decode(&map.encode()).unwrap(), &map);

        // Device memory whose every 8-byte word differs; shared memory as the chunks say.
        let memory_bytes = 64 + (strides[rank - 2] * dims[rank - 1]) as u32;
        let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 23) as u8 | 1;
        let memory: Vec<u8> = (0..memory_bytes).map(byte).collect();
        let mut shared = vec![0xee; 1 << 16];
        for chunk in chunks(&map, coordinates, 1024).unwrap() {
            let at = chunk.shared as usize;
            shared[at..at + 16].copy_from_slice(&map.fill());
            for byte in chunk.valid {
                shared[at + byte] = memory[chunk.global as usize + byte];
            }
        }

        let mut offset = 0usize;
        let extent = |d: usize| if d < rank { box_dims[d].div_ceil(element_strides[d]) as i64 } else { 1 };
        for i4 in 0..extent(4) { for i3 in 0..extent(3) { for i2 in 0..extent(2) { for i1 in 0..extent(1) {
            for i0 in 0..extent(0) {
                let indices = [i0, i1, i2, i3, i4];
                let mut inside = true;
                let mut global = 64i64;
                for d in 0..rank {
                    let index = i64::from(coordinates[d]) + indices[d] * i64::from(element_strides[d]);
                    inside &= 0 <= index && index < dims[d] as i64;
                    global += index * if d == 0 { size as i64 } else { strides[d - 1] as i64 };
                }
                // The swizzle from its picture: 16-byte chunk numbers exchanged by the 128-byte line.
                let plain = 1024 + offset;
                let mask = [0, 1, 3, 7][swizzle as usize];
                let place = plain ^ (((plain / 128) & mask) * 16);
                for byte in 0..size {
                    let expected = if inside { memory[global as usize + byte] } else { 0 };
                    prop_assert_eq!(shared[place + byte], expected);
                }
                offset += size;
            }
        }}}}
        prop_assert_eq!(offset, map.box_bytes() as usize);
        prop_assert!(shared[1024 + offset.next_multiple_of(128)..].iter().all(|byte| *byte == 0xee));
    }
}
