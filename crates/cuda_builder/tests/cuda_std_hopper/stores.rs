//! Stores and sums from shared memory.

use half::{bf16, f16};
use ptx_sim::{Counters, Fault, FaultKind};

use super::ways::*;
use super::{Device, FLOAT32, PLAIN, SEEDS, SWIZZLED, UINT32, caught, map, right, word_of_box, words};

/// Words of a line.
const LINE: usize = 64;

/// What is wrong with a kernel that stores from shared memory and then writes there again, and how it ends.
const MISTAKES: [(u32, FaultKind); 5] = [
    (NO_FENCE, FaultKind::MissingProxyFence),
    (FENCE_TOO_EARLY, FaultKind::MissingProxyFence),
    (NO_WAIT, FaultKind::Race),
    (WAIT_LEAVES_ONE, FaultKind::Race),
    (NO_COMMIT, FaultKind::Race),
];

/// Runs a kernel in all wrong ways under all seeds.
#[track_caller]
fn mistakes_are_caught(run: impl Fn(&Device, u32) -> Result<Counters, Fault>) {
    for seed in SEEDS {
        for (way, kind) in MISTAKES {
            let device = Device::new(seed);
            let result = run(&device, way);
            caught(&device, result, kind);
        }
    }
}

/// Runs a kernel in both right ways under all seeds, then `check`s what is at the address that it gives.
#[track_caller]
fn right_ways(run: impl Fn(&Device, u32) -> (u64, Result<Counters, Fault>), check: impl Fn(&Device, u64)) {
    for seed in SEEDS {
        for way in [RIGHT, FENCE_BY_ASKER] {
            let device = Device::new(seed);
            let (out, result) = run(&device, way);
            right(&device, result);
            check(&device, out);
        }
    }
}

/// Width and height of the matrix that boxes of 32 x 16 are stored to.
const MATRIX: (i32, i32) = (64, 40);
/// Places of a box: inside, over the lower right corner, over the upper left one.
const PLACES: [(i32, i32); 3] = [(8, 3), (44, 30), (-4, -2)];

/// The word of the box at `(c0, c1)` that element `at` of the matrix comes from, if any.
fn source(at: usize, (c0, c1): (i32, i32), swizzle: u32) -> Option<usize> {
    let (column, row) = (at as i32 % MATRIX.0 - c0, at as i32 / MATRIX.0 - c1);
    let inside = (0..32).contains(&column) && (0..16).contains(&row);
    inside.then(|| word_of_box(row as usize, column as usize, swizzle))
}

fn run_2d(
    device: &Device,
    kernel: &str,
    blocks: u32,
    (data_type, swizzle): (u32, u32),
    (values, old): (&[u32], u32),
    place: (i32, i32),
    way: u32,
) -> (u64, Result<Counters, Fault>) {
    let out = device.upload(&vec![old; (MATRIX.0 * MATRIX.1) as usize]);
    let map = map(data_type, out, &[MATRIX.0 as u64, MATRIX.1 as u64], &[32, 16], swizzle);
    let values = device.upload(values);
    let arguments = vec![map, values.into(), place.0.into(), place.1.into(), way.into()];
    (out, device.run(kernel, (blocks, 1, 64), arguments))
}

#[test]
fn boxes_of_rank_2() {
    let values = words(512);
    for swizzle in [PLAIN, SWIZZLED] {
        for place in PLACES {
            right_ways(
                |device, way| run_2d(device, "store_2d", 1, (UINT32, swizzle), (&values, 7), place, way),
                |device, out| {
                    for (at, word) in device.words(out, 64 * 40).into_iter().enumerate() {
                        let expected = source(at, place, swizzle).map_or(7, |word| values[word]);
                        assert_eq!(word, expected, "element {at}, box at {place:?}");
                    }
                },
            );
        }
    }
    mistakes_are_caught(|device, way| {
        run_2d(device, "store_2d", 1, (UINT32, PLAIN), (&values, 7), PLACES[0], way).1
    });
}

#[test]
fn boxes_of_rank_3() {
    // 3 matrices of 40 x 20, boxes of 32 x 8 in 2 matrices; the last is over an edge in every dimension.
    let values = words(512);
    for (swizzle, place) in [(PLAIN, [4, 3, 0]), (SWIZZLED, [0, 8, 1]), (SWIZZLED, [12, -3, 2])] {
        let run = |device: &Device, way: u32| {
            let out = device.upload(&vec![7; 40 * 20 * 3]);
            let map = map(UINT32, out, &[40, 20, 3], &[32, 8, 2], swizzle);
            let values = device.upload(&values);
            let [c0, c1, c2] = place.map(Into::into);
            (out, device.run("store_3d", (1, 1, 64), vec![map, values.into(), c0, c1, c2, way.into()]))
        };
        right_ways(run, |device, out| {
            for (at, word) in device.words(out, 40 * 20 * 3).into_iter().enumerate() {
                let at = at as i32;
                let [x, y, z] = [at % 40 - place[0], at / 40 % 20 - place[1], at / 800 - place[2]];
                let inside = (0..32).contains(&x) && (0..8).contains(&y) && (0..2).contains(&z);
                let from = inside.then(|| word_of_box((8 * z + y) as usize, x as usize, swizzle));
                assert_eq!(word, from.map_or(7, |word| values[word]), "element {at}, box at {place:?}");
            }
        });
        mistakes_are_caught(|device, way| run(device, way).1);
    }
}

#[test]
fn sums_of_boxes() {
    const BLOCKS: u32 = 5;
    let values: Vec<u32> = (0..512).map(|i| (i as f32 - 100.5).to_bits()).collect();
    for place in PLACES {
        let run = |device: &Device, way: u32| {
            let old = 2f32.to_bits();
            run_2d(device, "reduce_add_2d", BLOCKS, (FLOAT32, SWIZZLED), (&values, old), place, way)
        };
        right_ways(run, |device, out| {
            for (at, word) in device.words(out, 64 * 40).into_iter().enumerate() {
                let added = source(at, place, SWIZZLED).map_or(0.0, |word| f32::from_bits(values[word]));
                assert_eq!(
                    f32::from_bits(word),
                    2.0 + BLOCKS as f32 * added,
                    "element {at}, box at {place:?}"
                );
            }
        });
        mistakes_are_caught(|device, way| run(device, way).1);
    }
}

#[test]
fn lines() {
    let values = words(LINE as u32);
    let run = |device: &Device, way: u32| {
        let out = device.upload(&[7; LINE + 8]);
        let arguments = vec![device.upload(&values).into(), (out + 16).into(), way.into()];
        (out, device.run("store_line", (1, 1, 64), arguments))
    };
    right_ways(run, |device, out| {
        let expected = [&[7; 4], &values[..], &[7; 4]].concat();
        assert_eq!(device.words(out, LINE + 8), expected);
    });
    mistakes_are_caught(|device, way| run(device, way).1);
}

#[test]
fn a_wait_shows_the_groups_that_it_covers() {
    let values = words(2 * LINE as u32);
    let seen = |seed, way: u32| {
        let device = Device::new(seed);
        let (out, seen) = (device.upload(&[7; 2 * LINE]), device.upload(&[0; 2]));
        let arguments = vec![device.upload(&values).into(), out.into(), seen.into(), way.into()];
        right(&device, device.run("store_and_read_back", (1, 1, 64), arguments));
        assert_eq!(device.words(out, 2 * LINE), values);
        device.words(seen, 2)
    };
    let new = [values[0], values[LINE]];
    assert!(SEEDS.map(|seed| seen(seed, RIGHT)).all(|seen| seen == new));
    // That shared memory has been read does not say that global memory has been written.
    assert!(SEEDS.map(|seed| seen(seed, WAIT_FOR_READS)).any(|seen| seen != new));
}

/// Blocks that add.
const BLOCKS: i32 = 6;

/// Two 16-bit numbers to a word.
fn pairs(halves: impl Iterator<Item = u16>) -> Vec<u32> {
    let halves: Vec<u16> = halves.collect();
    halves.as_chunks().0.iter().map(|[low, high]| u32::from(*low) | u32::from(*high) << 16).collect()
}

/// Number `i` of the line of block `b`: small enough that all sums are exact in 8 bits; that of block -1 is
/// there before.
fn number(b: i32, i: i32) -> i32 {
    (i * 5 + b * 3) % 17 - 8
}

fn sum(i: i32) -> i32 {
    (-1..BLOCKS).map(|b| number(b, i)).sum()
}

/// A line as words: of numbers that a function gives.
type Line = fn(&dyn Fn(i32) -> i32) -> Vec<u32>;

#[test]
fn sums_of_lines() {
    let u64_line: Line = |number| {
        let halves = |i| [number(i) as i64 as u32, (i64::from(number(i)) >> 32) as u32];
        (0..32).flat_map(halves).collect()
    };
    let kernels: [(&str, Line); 6] = [
        ("reduce_add_u32", |number| (0..64).map(|i| number(i) as u32).collect()),
        ("reduce_add_i32", |number| (0..64).map(|i| number(i) as u32).collect()),
        ("reduce_add_u64", u64_line),
        ("reduce_add_f32", |number| (0..64).map(|i| (number(i) as f32 / 4.0).to_bits()).collect()),
        ("reduce_add_f16", |number| pairs((0..128).map(|i| f16::from_f32(number(i) as f32 / 4.0).to_bits()))),
        ("reduce_add_bf16", |number| {
            pairs((0..128).map(|i| bf16::from_f32(number(i) as f32 / 4.0).to_bits()))
        }),
    ];
    for (kernel, line) in kernels {
        let run = |device: &Device, way: u32| {
            let values: Vec<u32> = (0..BLOCKS).flat_map(|b| line(&|i| number(b, i))).collect();
            let out = device.upload(&line(&|i| number(-1, i)));
            let arguments = vec![device.upload(&values).into(), out.into(), way.into()];
            (out, device.run(kernel, (BLOCKS as u32, 1, 64), arguments))
        };
        right_ways(run, |device, out| assert_eq!(device.words(out, LINE), line(&sum), "{kernel}"));
        mistakes_are_caught(|device, way| run(device, way).1);
    }
}
