//! What tensor cores compute, bit by bit: on a GPU the card's answer, else the emulator's, against candidate
//! models.
//!
//! ```text
//!   FP8_MOE_DEVICE=cuda:0 cargo test --release -p ptx_sim --test tensor_cores    (the bundle runs it too)
//! ```
//!
//! Each test multiplies random and directed operands by one instruction, one product per block, and searches
//! the [`model`]s for those that predict every bit. On the emulated device the model that it was asked to
//! follow must be among them: exact sums, or with `FP8_MOE_SIM_SUMS=hardware` those of
//! `ptx_sim::mma::Truncation`. On a GPU it must be the latter. If it is not, the report names the models that
//! fit, or the nearest ones with what they miss.

mod cases;
mod device;
mod kernels;
mod model;

use std::fmt::Write as _;
use std::io::Write as _;

use cases::tiles;
use device::device;
use kernels::{Instruction, module};
use model::{Accumulator, Candidate, Cut, Exponents, Grouping, Observation, Type, is_equal, search};

/// The model that the emulator has for an instruction on a GPU of this capability; `None`: it knows exact
/// sums only.
fn expected(instruction: Instruction, types: (Type, Type), capability: (i32, i32)) -> Option<Candidate> {
    let fp8 = types.0.bytes() == 1;
    let aligned = Accumulator::Aligned;
    Some(match (instruction, capability.0) {
        _ if !fp8 => return None,
        (Instruction::Wgmma, 9) => Candidate::mma_sim(Grouping::Whole, Exponents::Fields, (13, 13), aligned),
        (Instruction::Mma, 8) => Candidate::mma_sim(Grouping::Halves, Exponents::Fields, (13, 13), aligned),
        (Instruction::Mma, 9) => {
            // Converted to f16, where e4m3 has no subnormals and e5m2 has its own.
            let exponents = if types.0 == Type::E4m3 { Exponents::Operands } else { Exponents::Fields };
            Candidate::mma_sim(Grouping::Pairs, exponents, (25, 23), Accumulator::Last)
        }
        _ => return None,
    })
}

/// Multiplies everything, once by one instruction and a few tiles by two in a row.
fn observe(instruction: Instruction, types: (Type, Type)) -> Vec<Observation> {
    let all = tiles(types);
    let mut seen = Vec::new();
    for (times, tiles) in [(1, &all[..]), (2, &all[..6])] {
        let results = device().run(&module(instruction, types, times == 2), tiles, types.0.bytes());
        for (tile, result) in tiles.iter().zip(results) {
            for (row, got) in result.iter().enumerate() {
                for (column, got) in got.iter().enumerate() {
                    let (a, b) = (tile.a[row].clone(), tile.b[column].clone());
                    seen.push(Observation::new(types, a, b, tile.c[row][column], times, *got));
                }
            }
        }
    }
    seen
}

/// The text goes past the test harness, which keeps back what tests print unless they fail.
fn report(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).expect("standard error can be written");
}

fn compare(instruction: Instruction, types: (Type, Type)) {
    let name = format!("{instruction:?} {} x {}", types.0.name(), types.1.name());
    if instruction == Instruction::Wgmma && device().capability.0 != 9 {
        report(&format!("{name}: skipped, the device has no wgmma\n"));
        return;
    }
    let seen = observe(instruction, types);
    assert!(seen.iter().all(|o| o.got.is_finite()), "{name}: finite operands give finite results");
    let found = search(&seen);
    let mut text = format!("{name}: {} results", seen.len());
    let negative = seen.iter().filter(|o| o.got.to_bits() == 1 << 31).count();
    let _ = writeln!(text, ", {negative} of them -0; {} models predict every bit", found.fits.len());
    for candidate in found.fits.iter().take(24) {
        let _ = writeln!(text, "  fits: {candidate}");
    }
    for (candidate, missed) in &found.best {
        let _ = writeln!(text, "  misses {missed}: {candidate}");
    }
    let wanted = expected(instruction, types, device().capability);
    // What the candidates that matter miss, where it is not known yet which of them it is.
    let told = if found.fits.is_empty() { vec![wanted, Some(Candidate::Exact)] } else { vec![wanted] };
    for candidate in told.into_iter().flatten() {
        let wrong: Vec<_> = seen.iter().filter(|o| !is_equal(candidate.predict(o), o.got)).collect();
        let _ = writeln!(text, "  {candidate}: {} wrong", wrong.len());
        for o in wrong.iter().take(if found.fits.is_empty() { 8 } else { 2 }) {
            let _ = write!(text, "    c {:e} ({:#010x}), products", o.c, o.c.to_bits());
            for (k, (a, b)) in o.a.iter().zip(&o.b).enumerate().filter(|(_, (a, b))| **a != 0 && **b != 0) {
                let _ = write!(text, " {k}:{a:02x}*{b:02x}");
            }
            let predicted = candidate.predict(o);
            let _ = writeln!(
                text,
                "\n      got {:e} ({:#010x}), predicted {predicted:e} ({:#010x})",
                o.got,
                o.got.to_bits(),
                predicted.to_bits()
            );
        }
    }
    report(&text);
    let fits = |candidate: Candidate| seen.iter().all(|o| is_equal(candidate.predict(o), o.got));
    if device().emulated {
        let hardware = std::env::var("FP8_MOE_SIM_SUMS").is_ok_and(|sums| sums == "hardware");
        let asked = wanted.filter(|_| hardware).unwrap_or(Candidate::Exact);
        assert!(fits(asked), "{name}: the emulator does not do as asked: {asked}\n{text}");
    } else {
        match wanted {
            Some(model) => {
                assert!(fits(model), "{name}: the card does not compute by the emulator's model\n{text}")
            }
            None => assert!(!found.fits.is_empty(), "{name}: no model fits\n{text}"),
        }
    }
}

macro_rules! compare {
    ($($name:ident: $instruction:ident $a:ident $b:ident;)*) => {$(
        #[test]
        fn $name() {
            compare(Instruction::$instruction, (Type::$a, Type::$b));
        }
    )*};
}

compare! {
    wgmma_e4m3: Wgmma E4m3 E4m3;
    wgmma_e5m2: Wgmma E5m2 E5m2;
    wgmma_e4m3_e5m2: Wgmma E4m3 E5m2;
    wgmma_bf16: Wgmma Bf16 Bf16;
    mma_e4m3: Mma E4m3 E4m3;
    mma_e5m2: Mma E5m2 E5m2;
    mma_bf16: Mma Bf16 Bf16;
    mma_f16: Mma F16 F16;
}

/// The search finds each of a few models again, from results that the model itself makes up.
#[test]
fn the_search_tells_models_apart() {
    let types = (Type::E4m3, Type::E4m3);
    let fields = |grouping, bits| Candidate::mma_sim(grouping, Exponents::Fields, bits, Accumulator::Aligned);
    for truth in [
        Candidate::Exact,
        fields(Grouping::Whole, (13, 13)),
        fields(Grouping::Halves, (13, 13)),
        fields(Grouping::Whole, (14, 13)),
        Candidate::mma_sim(Grouping::Pairs, Exponents::Operands, (25, 23), Accumulator::Last),
    ] {
        let mut seen = Vec::new();
        for tile in tiles(types).iter().step_by(2) {
            for (row, c) in tile.c.iter().enumerate() {
                let column = row % 8;
                let (a, b) = (tile.a[row].clone(), tile.b[column].clone());
                let mut o = Observation::new(types, a, b, c[column], 1, 0.0);
                o.got = truth.predict(&o);
                seen.push(o);
            }
        }
        let fits = search(&seen).fits;
        assert!(fits.contains(&truth), "{truth}");
        let differ = |other: &&Candidate| match (**other, truth) {
            (
                Candidate::Cutting { grouping: g, fraction: f, mantissa: m, .. },
                Candidate::Cutting { grouping, fraction, mantissa, .. },
            ) => (g, f, m) != (grouping, fraction, mantissa),
            // Thirty bits and one rounding are all but exact.
            (
                Candidate::Cutting { fraction: 28.., mantissa: 23, round: Cut::Nearest, .. },
                Candidate::Exact,
            ) => false,
            (other, truth) => other != truth,
        };
        let confused: Vec<_> = fits.iter().filter(differ).map(Candidate::to_string).collect();
        assert!(confused.is_empty(), "{truth} is taken for {confused:#?}");
    }
}
