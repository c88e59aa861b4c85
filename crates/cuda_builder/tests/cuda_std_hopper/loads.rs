//! Loads into shared memory, and copies that arrive at an mbarrier.

use ptx_sim::counters::prefetch_digest;
use ptx_sim::{Counters, Fault, FaultKind};

use super::ways::*;
use super::{Device, PLAIN, SEEDS, SWIZZLED, UINT32, caught, map, right, word_of_box, words};

/// Runs a kernel in each of `ways` under all seeds and compares what is at the address that it gives; then in
/// a way that is wrong.
#[track_caller]
fn check(
    run: impl Fn(&Device, u32) -> (u64, Result<Counters, Fault>),
    ways: &[u32],
    expected: &[u32],
    wrong: u32,
) {
    for seed in SEEDS {
        for way in ways {
            let device = Device::new(seed);
            let (out, result) = run(&device, *way);
            right(&device, result);
            assert_eq!(device.words(out, expected.len()), expected, "seed {seed}, way {way}");
        }
        let device = Device::new(seed);
        let (_, result) = run(&device, wrong);
        caught(&device, result, FaultKind::AsyncHazard);
    }
}

#[test]
fn lines() {
    let values = words(64);
    let run = |device: &Device, way: u32| {
        let out = device.upload(&[7; 128]);
        let arguments = vec![device.upload(&values).into(), out.into(), way.into()];
        (out, device.run("load_lines", (1, 1, 64), arguments))
    };
    check(run, &[RIGHT], &values.repeat(2), NO_LANDING);
}

#[test]
fn prefetches() {
    let values = words(64 * 64);
    for seed in SEEDS {
        let run = |device: &Device, way: u32| {
            let (from, out) = (device.upload(&values), device.upload(&[7; 64]));
            (from, out, device.run("prefetch_lines", (1, 1, 64), vec![from.into(), out.into(), way.into()]))
        };
        let device = Device::new(seed);
        let (from, out, result) = run(&device, RIGHT);
        let counters = right(&device, result);
        assert_eq!(device.words(out, 64), Vec::from_iter(0..64));
        assert_eq!(counters.l2_prefetch_bytes, 16 << 10);
        assert_eq!(counters.l2_prefetch_digest, prefetch_digest(from..from + (16 << 10)));
        let device = Device::new(seed);
        caught(&device, run(&device, PAST_THE_END).2, FaultKind::OutOfBounds);
    }
}

/// Words of a matrix of `width` x `height`, zero outside.
fn element(values: &[u32], [width, height]: [i32; 2], [x, y]: [i32; 2]) -> u32 {
    if (0..width).contains(&x) && (0..height).contains(&y) { values[(y * width + x) as usize] } else { 0 }
}

#[test]
fn boxes_with_hints() {
    // The kernel's places: (-4, 2) in a matrix of 40 x 20, boxes of 32 x 16; (4, 1, 1) in 3 of them, boxes of
    // 32 x 8 in 2.
    let values = words(40 * 20 * 3);
    let mut expected = vec![0; 1024];
    for row in 0..16 {
        for column in 0..32 {
            let (x, y) = (column as i32, row as i32);
            expected[word_of_box(row, column, SWIZZLED)] = element(&values, [40, 20], [x - 4, y + 2]);
            let matrix = &values[800 * (1 + row / 8)..];
            expected[512 + word_of_box(row, column, PLAIN)] = element(matrix, [40, 20], [x + 4, y % 8 + 1]);
        }
    }
    let run = |device: &Device, way: u32| {
        let from = device.upload(&values);
        let out = device.upload(&[7; 1024]);
        let map_2d = map(UINT32, from, &[40, 20], &[32, 16], SWIZZLED);
        let map_3d = map(UINT32, from, &[40, 20, 3], &[32, 8, 2], PLAIN);
        (out, device.run("load_boxes_hinted", (1, 1, 64), vec![map_2d, map_3d, out.into(), way.into()]))
    };
    check(run, &[RIGHT], &expected, NO_LANDING);
}

#[test]
fn a_box_for_two_blocks() {
    let values = words(40 * 20);
    let box_of = |i: i32| element(&values, [40, 20], [i % 32 + 4, i / 32 + 2]);
    let expected: Vec<u32> = (0..512).map(box_of).collect();
    let run = |device: &Device, way: u32| {
        let out = device.upload(&[7; 1024]);
        let map = map(UINT32, device.upload(&values), &[40, 20], &[32, 16], PLAIN);
        (out, device.run("load_2d_multicast_hinted", (2, 2, 64), vec![map, out.into(), way.into()]))
    };
    check(run, &[RIGHT], &expected.repeat(2), NO_LANDING);
}

#[test]
fn arrivals_of_copies() {
    let values = words(256);
    let expected: Vec<u32> = (0..256).map(|i| values[(i + 4 * 33) % 256]).collect();
    let run = |device: &Device, way: u32| {
        let out = device.upload(&[7; 256]);
        let arguments = vec![device.upload(&values).into(), out.into(), way.into()];
        (out, device.run("arrive_after_copies", (1, 1, 64), arguments))
    };
    check(run, &[RIGHT, HOLD_FOR_COPIES], &expected, ARRIVE_AT_ONCE);
}

#[test]
fn plain_loads_with_hints_and_registers_that_move() {
    for seed in SEEDS {
        let device = Device::new(seed);
        let values = words(256);
        let out = device.upload(&[7; 256]);
        let arguments = vec![device.upload(&values).into(), out.into()];
        right(&device, device.run("load_nc_hinted", (1, 1, 256), arguments));
        assert_eq!(device.words(out, 256), values);
    }
}
