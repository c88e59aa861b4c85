//! PTX from another compiler: what nvcc 13.0 makes of the CUDA C++ in `nvcc/`, run and compared with oracles.
//!
//! Every kernel runs under several seeds: results must not depend on the timing.

#![allow(clippy::precedence, clippy::manual_is_multiple_of)]

#[path = "nvcc/gpu.rs"]
mod gpu;

use gpu::{Arg, Gpu};
use ptx_sim::formats::{self, Rounding};
use ptx_sim::tensor_map::{TensorMap, TiledArguments};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEEDS: [u64; 3] = [0, 1, 0x5eed];

fn floats(length: usize, seed: u64) -> Vec<f32> {
    let rng = &mut SmallRng::seed_from_u64(seed);
    (0..length).map(|_| rng.random_range(-8.0..8.0f32)).collect()
}

fn ints(length: usize, seed: u64) -> Vec<i32> {
    let rng = &mut SmallRng::seed_from_u64(seed);
    (0..length).map(|_| rng.random_range(-1000..1000)).collect()
}

#[track_caller]
fn assert_close(actual: f64, expected: f64, tolerance: f64, what: &str) {
    let bound = tolerance * expected.abs().max(1.0);
    assert!((actual - expected).abs() <= bound, "{what}: {actual:e} is not {expected:e}");
}

#[test]
fn vectors() {
    let gpu = Gpu::new(include_str!("nvcc/vector.ptx"));
    for seed in SEEDS {
        for n in [0usize, 1, 31, 1000, 4096] {
            let (x, y) = (floats(n, 1), floats(n, 2));
            let (dx, dy) = (gpu.upload(&x), gpu.upload(&y));
            gpu.launch("saxpy", seed, 5, 96, &[Arg::Int(n as i32), Arg::Float(1.5), dx, dy]);
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 1.5f32.mul_add(*x, *y)).collect();
            assert_eq!(gpu.download::<f32>(dy, n), expected);
        }
        let n = 777;
        let x: Vec<f64> = floats(n, 3).iter().map(|x| f64::from(*x) / 3.0).collect();
        let y: Vec<f64> = floats(n, 4).iter().map(|x| f64::from(*x) * 7.0).collect();
        let (dx, dy) = (gpu.upload(&x), gpu.upload(&y));
        gpu.launch("daxpy", seed, 7, 128, &[Arg::Int(n as i32), Arg::Double(0.1), dx, dy]);
        for (i, actual) in gpu.download::<f64>(dy, n).into_iter().enumerate() {
            let expected = 0.1f64.mul_add(x[i], y[i] / x[i].mul_add(x[i], 1.0));
            assert_eq!(actual, expected, "daxpy {i}");
        }
        let x = floats(1024, 5);
        let (dx, dy) = (gpu.upload(&x), gpu.output::<f32>(1024));
        gpu.launch("scale4", seed, 3, 128, &[Arg::Int(1024), Arg::Float(-3.0), dx, dy]);
        assert_eq!(gpu.download::<f32>(dy, 1024), x.iter().map(|x| -3.0 * x).collect::<Vec<_>>());
    }
}

#[test]
fn reductions() {
    let gpu = Gpu::new(include_str!("nvcc/reduce.ptx"));
    for seed in SEEDS {
        // Whole numbers, so that no order of summation rounds.
        let x: Vec<f32> = ints(5000, 1).iter().map(|x| *x as f32).collect();
        let (dx, sums, total) = (gpu.upload(&x), gpu.output::<f32>(6), gpu.upload(&[0f32]));
        gpu.launch("block_sum", seed, 6, 160, &[dx, Arg::Int(5000), sums, total]);
        let mut expected = [0f32; 6];
        for (i, x) in x.iter().enumerate() {
            expected[i / 160 % 6] += x;
        }
        assert_eq!(gpu.download::<f32>(sums, 6), expected);
        assert_eq!(gpu.download::<f32>(total, 1), [x.iter().sum::<f32>()]);

        let mut x = floats(9 * 45, 2);
        x[5] = 8.0;
        x[40] = 8.0; // the first of equals wins
        let (dx, index) = (gpu.upload(&x), gpu.output::<i32>(9));
        gpu.launch("row_argmax", seed, 9, 32, &[dx, Arg::Int(45), index]);
        let expected: Vec<i32> = x
            .chunks(45)
            .map(|row| {
                row.iter().position(|v| *v == row.iter().copied().fold(f32::MIN, f32::max)).unwrap() as i32
            })
            .collect();
        assert_eq!(gpu.download::<i32>(index, 9), expected);

        let flags: Vec<i32> = ints(128, 3).iter().map(|x| x & 1).collect();
        let (flags_at, rank, count) = (gpu.upload(&flags), gpu.output::<i32>(128), gpu.output::<i32>(4));
        gpu.launch("warp_rank", seed, 2, 64, &[flags_at, rank, count]);
        let rank_of = |i: usize| flags[i / 32 * 32..i].iter().sum::<i32>();
        assert_eq!(gpu.download::<i32>(rank, 128), (0..128).map(rank_of).collect::<Vec<_>>());
        assert_eq!(
            gpu.download::<i32>(count, 4),
            flags.chunks(32).map(|w| w.iter().sum()).collect::<Vec<i32>>()
        );

        let keys: Vec<i32> = ints(96, 4).iter().map(|x| x % 5).collect();
        let (at, same) = (gpu.upload(&keys), gpu.output::<i32>(96));
        gpu.launch("same_key", seed, 1, 96, &[at, same]);
        let same_as =
            |i: usize| keys[i / 32 * 32..][..32].iter().filter(|key| **key == keys[i]).count() as i32;
        assert_eq!(gpu.download::<i32>(same, 96), (0..96).map(same_as).collect::<Vec<_>>());

        let x = ints(64, 5);
        let (at, out) = (gpu.upload(&x), gpu.output::<i32>(6));
        gpu.launch("warp_extremes", seed, 1, 64, &[at, out]);
        let expected: Vec<i32> = x
            .chunks(32)
            .flat_map(|w| [*w.iter().min().unwrap(), *w.iter().max().unwrap(), w.iter().sum()])
            .collect();
        assert_eq!(gpu.download::<i32>(out, 6), expected);
    }
}

#[test]
fn histograms_and_atomics() {
    let gpu = Gpu::new(include_str!("nvcc/histogram.ptx"));
    for seed in SEEDS {
        let rng = &mut SmallRng::seed_from_u64(6);
        let x: Vec<u8> = (0..3000).map(|_| (rng.random::<f32>().powi(2) * 256.0) as u8).collect();
        let (at, bins) = (gpu.upload(&x), gpu.upload(&[0u32; 256]));
        gpu.launch("histogram", seed, 3, 192, &[at, Arg::Int(3000), bins]);
        let mut expected = [0u32; 256];
        x.iter().for_each(|x| expected[usize::from(*x)] += 1);
        assert_eq!(gpu.download::<u32>(bins, 256), expected);

        let x: Vec<i32> = ints(500, 7).iter().map(|x| x + 1001).collect();
        let before = [i32::MAX, i32::MIN, -1, 0, 0, 0, 0, 0, 7, 1];
        let (at, out, wide) = (gpu.upload(&x), gpu.upload(&before), gpu.upload(&[0u64; 2]));
        gpu.launch("atomics", seed, 4, 128, &[at, Arg::Int(500), out, wide]);
        let expected = [
            *x.iter().min().unwrap(),
            *x.iter().max().unwrap(),
            x.iter().fold(-1, |a, b| a & b),
            x.iter().fold(0, |a, b| a | b),
            x.iter().fold(0, |a, b| a ^ b),
            -x.iter().sum::<i32>(),
            500,
            1,
            42,
            x.iter().fold(1i32, |a, b| a.wrapping_mul(2 * b + 1)),
        ];
        assert_eq!(gpu.download::<i32>(out, 10), expected);
        let sum = x.iter().map(|x| *x as u64).sum::<u64>() * 0x1_0000_0001;
        assert_eq!(gpu.download::<u64>(wide, 2), [sum, (expected[1] as u64) << 20]);

        let x = ints(4000, 8);
        let (at, partial) = (gpu.upload(&x), gpu.output::<i32>(9));
        let (ticket, total) = (gpu.upload(&[0u32]), gpu.output::<i32>(1));
        gpu.launch("last_block", seed, 9, 32, &[at, Arg::Int(4000), partial, ticket, total]);
        assert_eq!(gpu.download::<i32>(total, 1), [x.iter().sum::<i32>()]);
    }
}

#[test]
fn tensor_cores() {
    let gpu = Gpu::new(include_str!("nvcc/tensor.ptx"));
    let rng = &mut SmallRng::seed_from_u64(9);
    for seed in SEEDS {
        let mut fp8 = |length: usize| -> Vec<u8> {
            let value = |_| formats::f32_to_e4m3_satfinite(rng.random_range(-20.0..20f32).to_bits());
            (0..length).map(value).collect()
        };
        let (a, b) = (fp8(16 * 32), fp8(8 * 32));
        let (da, db, d) = (gpu.upload(&a), gpu.upload(&b), gpu.output::<f32>(128));
        gpu.launch("mma_e4m3", seed, 1, 32, &[da, db, d]);
        let value = |code: u8| f64::from(formats::E4M3_TO_F32[usize::from(code)]);
        for (i, actual) in gpu.download::<f32>(d, 128).into_iter().enumerate() {
            let (row, column) = (i / 8, i % 8);
            let sum: f64 = (0..32).map(|k| value(a[32 * row + k]) * value(b[32 * column + k])).sum();
            assert_eq!(actual, sum as f32, "e4m3 ({row}, {column})");
        }

        // Small whole numbers: every sum is exact.
        let k = 48;
        let a: Vec<i32> = ints(16 * k, seed + 1).iter().map(|x| x % 9).collect();
        let b: Vec<i32> = ints(k * 8, seed + 2).iter().map(|x| x % 9).collect();
        let half =
            |x: &[i32]| x.iter().map(|x| formats::f32_to_f16_rn((*x as f32).to_bits())).collect::<Vec<u16>>();
        let (da, db) = (gpu.upload(&half(&a)), gpu.upload(&half(&b)));
        let d = gpu.output::<f32>(128);
        gpu.launch("mma_f16", seed, 1, 32, &[da, db, Arg::Int(k as i32), d]);
        for (i, actual) in gpu.download::<f32>(d, 128).into_iter().enumerate() {
            let (row, column) = (i / 8, i % 8);
            let sum: i32 = (0..k).map(|kk| a[k * row + kk] * b[8 * kk + column]).sum();
            assert_eq!(actual, sum as f32, "f16 ({row}, {column})");
        }
    }
}

#[test]
fn copies_in_flight() {
    let gpu = Gpu::new(include_str!("nvcc/pipeline.ptx"));
    for seed in SEEDS {
        for tiles in [1usize, 2, 7] {
            let x: Vec<f32> = ints(tiles * 256, 10).iter().map(|x| *x as f32).collect();
            let (at, out) = (gpu.upload(&x), gpu.output::<f32>(256));
            gpu.launch("weighted_sum", seed, 1, 256, &[at, Arg::Int(tiles as i32), out]);
            let sum = |i: usize| (0..tiles).map(|t| (t + 1) as f32 * x[256 * t + 255 - i]).sum::<f32>();
            assert_eq!(gpu.download::<f32>(out, 256), (0..256).map(sum).collect::<Vec<_>>());
        }
    }
}

fn collatz(mut n: u32, limit: i32) -> i32 {
    let mut steps = 0;
    while n != 1 && steps < limit {
        n = if n % 2 == 1 { n.wrapping_mul(3).wrapping_add(1) } else { n / 2 };
        steps += 1;
    }
    steps
}

/// The interpreter of `control.cu`, for one thread.
fn interpret(program: &[i32], thread: i32) -> i32 {
    let (mut x, mut y) = (thread, 1i32);
    for operation in program {
        match operation {
            0 => x = x.wrapping_add(3),
            1 => x = x.wrapping_mul(5),
            2 => x ^= y << 3,
            3 => y = y.wrapping_add(x & 7),
            4 if x & 1 == 1 => y = y.wrapping_neg(),
            4 => x = x.wrapping_sub(y),
            5 => x = (x >> 2).wrapping_add(y),
            6 => y = x % 17,
            7 => std::mem::swap(&mut x, &mut y),
            8 => (0..x & 3).for_each(|k| y = y.wrapping_add(k.wrapping_mul(x))),
            _ => x = !x,
        }
    }
    x.wrapping_mul(31).wrapping_add(y)
}

#[test]
fn control_flow() {
    let gpu = Gpu::new(include_str!("nvcc/control.ptx"));
    for seed in SEEDS {
        let n: Vec<u32> = (1..=200).collect();
        let (at, steps) = (gpu.upload(&n), gpu.output::<i32>(200));
        gpu.launch("collatz_steps", seed, 4, 64, &[at, steps, Arg::Int(200)]);
        let expected = |n: &u32| if n % 3 == 0 { -collatz(*n, 1000) } else { collatz(n + 1, 1000) };
        assert_eq!(gpu.download::<i32>(steps, 200), n.iter().map(expected).collect::<Vec<_>>());

        let x: Vec<f64> = floats(50, 11).iter().map(|x| f64::from(*x) / 3.0).collect();
        let (at, sums, counts) = (gpu.upload(&x), gpu.output::<f64>(64), gpu.output::<i32>(64));
        gpu.launch("pairs", seed, 1, 64, &[at, Arg::Int(50), sums, counts]);
        let prefix = |i: usize| &x[..(i + 1).min(50)];
        let sum = |i: usize| prefix(i).iter().fold(0.0, |sum, x| sum + x);
        let count = |i: usize| prefix(i).iter().filter(|x| **x > 0.0).count() as i32;
        assert_eq!(gpu.download::<f64>(sums, 64), (0..64).map(sum).collect::<Vec<_>>());
        assert_eq!(gpu.download::<i32>(counts, 64), (0..64).map(count).collect::<Vec<_>>());

        let program: Vec<i32> = ints(60, seed).iter().map(|x| x.rem_euclid(10)).collect();
        let (at, out) = (gpu.upload(&program), gpu.output::<i32>(96));
        gpu.launch("interpret", seed, 2, 48, &[at, Arg::Int(60), out]);
        let expected: Vec<i32> = (0..96).map(|thread| interpret(&program, thread)).collect();
        assert_eq!(gpu.download::<i32>(out, 96), expected);

        let x = ints(8 * 40, 12);
        let at = gpu.upload(&x);
        gpu.launch("sort_eight", seed, 1, 40, &[at]);
        let mut expected = x;
        expected.chunks_mut(8).for_each(|chunk| chunk.sort());
        assert_eq!(gpu.download::<i32>(at, 320), expected);
    }
}

/// Edge cases first, then random words.
fn words(seed: u64) -> Vec<i32> {
    let rng = &mut SmallRng::seed_from_u64(seed);
    let edges = [0, 1, -1, 2, i32::MAX, i32::MIN, i32::MIN + 1, 0x55aa_33cc, 31, 32];
    let mut words: Vec<i32> = (0..128).map(|_| rng.random()).collect();
    for (i, word) in words.iter_mut().enumerate().take(100) {
        *word = edges[if seed % 2 == 0 { i / 10 } else { i % 10 }];
    }
    words
}

fn bytes_of(x: u32, y: u32, selector: u32) -> u32 {
    let bytes = u64::from(x) | u64::from(y) << 32;
    (0..4).map(|i| ((bytes >> (8 * (selector >> (4 * i) & 7))) as u32 & 0xff) << (8 * i)).sum()
}

fn integer_results(x: i32, y: i32) -> [i64; 24] {
    let (ux, uy) = (x as u32, y as u32);
    let (lx, ly) = (i64::from(x), i64::from(y));
    let int = i64::from;
    let word = |x: u32| i64::from(x);
    let divided = if y == 0 { 0 } else { x.wrapping_div(y) };
    let dp4a: i32 = x
        .to_le_bytes()
        .iter()
        .zip(y.to_le_bytes())
        .map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8))
        .sum();
    let low24 = |x: i32| i64::from(x << 8 >> 8);
    let hash = (lx as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64;
    [
        lx * ly,
        (u64::from(ux) * u64::from(uy)) as i64,
        int(((lx * ly) >> 32) as i32),
        word((u64::from(ux) * u64::from(uy) >> 32) as u32),
        int(divided),
        word(if uy == 0 { 0 } else { ux % uy }),
        word(ux.count_ones()),
        word(ux.leading_zeros()),
        word(ux.reverse_bits()),
        if x == 0 { 0 } else { word(ux.trailing_zeros() + 1) },
        word(bytes_of(ux, uy, 0x5140)),
        word(((u64::from(uy) << 32 | u64::from(ux)) << (uy & 31) >> 32) as u32),
        word(ux & uy | !ux & 0x0f0f_0f0f),
        int((x.min(y) as u32).wrapping_sub(ux.max(uy)) as i32) & 0xffff_ffff,
        word(x.abs_diff(y).wrapping_add(5)),
        lx << (y & 63),
        (lx << 20 | i64::from(uy)) >> (x & 31),
        int(i32::from(x as i16) * i32::from(y as i8)),
        int(x.wrapping_abs().wrapping_add(((lx + ly) >> 1) as i32)),
        if x > 0 { word(ux >> (y & 7) & 0xff) } else { word(ux << 3) },
        int(dp4a.wrapping_add(7)),
        hash.wrapping_div(ly | 1),
        int((low24(x).wrapping_mul(low24(y))) as i32),
        int(i32::from(ux > uy) + 2 * i32::from(x > y) + 4 * i32::from(x == y)),
    ]
}

#[test]
fn integer_arithmetic() {
    let gpu = Gpu::new(include_str!("nvcc/arithmetic.ptx"));
    let (x, y) = (words(0), words(1));
    let (a, b, out) = (gpu.upload(&x), gpu.upload(&y), gpu.output::<i64>(128 * 24));
    gpu.launch("integers", 0, 1, 128, &[a, b, out]);
    for (i, actual) in gpu.download::<i64>(out, 128 * 24).chunks(24).enumerate() {
        assert_eq!(actual, integer_results(x[i], y[i]), "of {:#x}, {:#x}", x[i], y[i]);
    }
}

/// Edge cases first, then ordinary numbers.
fn reals(seed: u64) -> Vec<f32> {
    let edges = [0.0, -0.0, 1.0, -1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, 3e38, 65519.9];
    let mut reals = floats(128, seed);
    for (i, real) in reals.iter_mut().enumerate().take(100) {
        *real = edges[if seed % 2 == 0 { i / 10 } else { i % 10 }];
    }
    reals
}

fn float_results(x: f32, y: f32) -> [f32; 20] {
    let through_f16 = |rounding| {
        f32::from_bits(formats::f16_to_f32(formats::f32_to_f16(x.to_bits(), rounding, Default::default())))
    };
    let to_int = if x.is_nan() { 0 } else { x as i32 };
    let to_unsigned = if x.is_nan() { 0 } else { x.abs() as u32 };
    [
        x / y,
        x.abs().sqrt(),
        x.mul_add(y, 1.0),
        x.min(y),
        x.max(y),
        x.floor(),
        x.round_ties_even(),
        y.trunc(),
        formats::add_f32(x, y, Rounding::Rz),
        formats::mul_f32(x, y, Rounding::Rp),
        x.copysign(y),
        to_int as f32,
        to_unsigned as f32,
        if x > 0.0 { x.min(1.0) } else { 0.0 },
        if x < y {
            1.0
        } else if x == y {
            0.5
        } else {
            0.0
        },
        through_f16(Rounding::Rn),
        through_f16(Rounding::Rz),
        (f64::from(x) * f64::from(y)) as f32,
        1.0 / x,
        if x.is_nan() {
            1.0
        } else if x.is_infinite() {
            2.0
        } else {
            3.0
        },
    ]
}

#[test]
fn float_arithmetic() {
    let gpu = Gpu::new(include_str!("nvcc/arithmetic.ptx"));
    let (x, y) = (reals(0), reals(1));
    let (a, b, out) = (gpu.upload(&x), gpu.upload(&y), gpu.output::<f32>(128 * 20));
    gpu.launch("floats", 0, 1, 128, &[a, b, out]);
    for (i, actual) in gpu.download::<f32>(out, 128 * 20).chunks(20).enumerate() {
        for (which, (actual, expected)) in actual.iter().zip(float_results(x[i], y[i])).enumerate() {
            // The sign of a zero that min and max choose between two zeros is not the point here.
            let same = actual.to_bits() == expected.to_bits()
                || actual.is_nan() && expected.is_nan()
                || (which == 3 || which == 4) && *actual == expected;
            assert!(same, "result {which} of {:e}, {:e} is {actual:e}, not {expected:e}", x[i], y[i]);
        }
    }
}

#[test]
fn functions_within_their_error() {
    let gpu = Gpu::new(include_str!("nvcc/arithmetic.ptx"));
    let x = floats(128, 13);
    let (a, out) = (gpu.upload(&x), gpu.output::<f32>(1280));
    gpu.launch("functions", 0, 1, 128, &[a, out]);
    for (x, actual) in x.iter().zip(gpu.download::<f32>(out, 1280).chunks(10)) {
        let x = f64::from(*x);
        let shifted = x.abs() + 0.25;
        let expected = [
            x.exp(),
            shifted.ln(),
            x.exp(),
            shifted.ln(),
            x.sin(),
            x.cos(),
            1.0 / shifted.sqrt(),
            x.tanh(),
            x / (1.0 + (-x).exp()),
            shifted.powf(1.5),
        ];
        for (which, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            assert_close(f64::from(*actual), expected, 2e-6, &format!("function {which} of {x}"));
        }
    }
}

#[test]
fn double_arithmetic() {
    let gpu = Gpu::new(include_str!("nvcc/arithmetic.ptx"));
    let doubles =
        |seed| -> Vec<f64> { reals(seed).iter().map(|x| f64::from(*x) * 1.000_000_000_1).collect() };
    let (x, y) = (doubles(0), doubles(1));
    let (a, b, out) = (gpu.upload(&x), gpu.upload(&y), gpu.output::<f64>(1280));
    gpu.launch("doubles", 0, 1, 128, &[a, b, out]);
    for (i, actual) in gpu.download::<f64>(out, 1280).chunks(10).enumerate() {
        let (x, y) = (x[i], y[i]);
        let nan_is_top = |x: f64, cast: f64| if x.is_nan() { None } else { Some(cast) };
        let expected = [
            Some(x / y),
            Some(x.abs().sqrt()),
            Some(x.mul_add(y, -1.0)),
            Some(x.min(y)),
            Some(x.floor()),
            Some(y.round_ties_even()),
            nan_is_top(x, x as i64 as f64).or(Some(i64::MIN as f64)),
            Some(f64::from(x as f32)),
            Some(if x > y { x } else { -y }),
            nan_is_top(y, y.abs() as u64 as f64).or(Some((1u64 << 63) as f64)),
        ];
        for (which, (actual, expected)) in actual.iter().zip(expected.map(Option::unwrap)).enumerate() {
            let same = *actual == expected || actual.is_nan() && expected.is_nan();
            assert!(same, "result {which} of {x:e}, {y:e} is {actual:e}, not {expected:e}");
        }
    }
}

#[test]
fn half_arithmetic() {
    let gpu = Gpu::new(include_str!("nvcc/arithmetic.ptx"));
    let halves = |seed| -> Vec<u16> {
        floats(128, seed).iter().map(|x| formats::f32_to_f16_rn(x.to_bits())).collect()
    };
    let (x, y) = (halves(14), halves(15));
    let (a, b, out) = (gpu.upload(&x), gpu.upload(&y), gpu.output::<u16>(640));
    gpu.launch("halves", 0, 1, 64, &[a, b, out]);
    let out = gpu.download::<u16>(out, 640);
    let wide = |bits: u16| f64::from(f32::from_bits(formats::f16_to_f32(bits)));
    let narrow = |x: f64| formats::f64_to_f16(x.to_bits(), Rounding::Rn);
    for i in 0..128 {
        let (x, y) = (wide(x[i]), wide(y[i]));
        // f64 holds sums and products of f16 exactly.
        let expected = [narrow(x + y), narrow(x * y), narrow(x * y + x), narrow(x.max(y)), narrow(-x)];
        let actual: [u16; 5] = std::array::from_fn(|which| out[i / 2 * 10 + 2 * which + i % 2]);
        assert_eq!(actual, expected, "of {x}, {y}");
    }
}

#[test]
fn tensor_maps_mbarriers_and_wgmma() {
    let gpu = Gpu::new(include_str!("nvcc/hopper.ptx"));
    for seed in SEEDS {
        // Rows of A and B beyond the tensors are zeros.
        let (rows_a, rows_b, k) = (100usize, 70usize, 512usize);
        let rng = &mut SmallRng::seed_from_u64(16);
        let mut fp8 = |length: usize| -> Vec<u8> {
            let value = |_| formats::f32_to_e4m3_satfinite(rng.random_range(-20.0..20f32).to_bits());
            (0..length).map(value).collect()
        };
        let (a, b) = (fp8(rows_a * k), fp8(rows_b * k));
        let map = |data: Arg, rows: usize| {
            let Arg::Pointer(address) = data else { panic!("not a pointer") };
            let arguments = TiledArguments {
                data_type: 0,
                address,
                dims: &[k as u64, rows as u64],
                strides: &[k as u64],
                box_dims: &[128, 64],
                element_strides: &[1, 1],
                interleave: 0,
                swizzle: 3,
                l2_promotion: 2,
                oob_fill: 0,
            };
            Arg::Map(TensorMap::tiled(&arguments).unwrap().encode())
        };
        let (map_a, map_b) = (map(gpu.upload(&a), rows_a), map(gpu.upload(&b), rows_b));
        let d = gpu.output::<f32>(64 * 64);
        let int = |x: usize| Arg::Int(x as i32);
        for (steps, row_a, row_b) in [(1, 0, 0), (4, 36, 24), (3, 64, 0)] {
            let args = [map_a, map_b, int(128 * steps), int(row_a), int(row_b), d];
            gpu.launch_with_shared("tile_e4m3", seed, 1, 128, 4 * 64 * 128, &args);
            let value = |data: &[u8], rows: usize, row: usize, kk: usize| match row < rows {
                true => f64::from(formats::E4M3_TO_F32[usize::from(data[k * row + kk])]),
                false => 0.0,
            };
            for (i, actual) in gpu.download::<f32>(d, 64 * 64).into_iter().enumerate() {
                let (row, column) = (row_a + i / 64, row_b + i % 64);
                let term = |kk| value(&a, rows_a, row, kk) * value(&b, rows_b, column, kk);
                let sum: f64 = (0..128 * steps).map(term).sum();
                // One rounding of at most 2^-12 for each of up to 16 steps of k = 32.
                let error = (f64::from(actual) - sum).abs();
                assert!(error < 0.01, "D({row}, {column}), {steps} steps: {actual:e} is not {sum:e}");
            }
        }
    }
}
