//! Candidate models of what a tensor core computes, in integers, and the search for those that fit what was
//! seen.
//!
//! This shares no code with the emulator. A model is a choice in each of these:
//!
//! ```text
//!   grouping     which elements of K are summed at once, one group after the other
//!   exponents    what a product counts with: the operands' fields, their normalised exponents, or its own
//!   zeros        whether a product with zero counts with the exponent of its fields
//!   fraction     bits that a term keeps below the largest exponent, and how it is cut there
//!   accumulator  aligned with the products and cut like them; aligned and not cut; added to their sum
//!                afterwards; or added once, to the sum of all groups
//!   mantissa     bits of the result, and how it is rounded to them
//! ```

use std::fmt;

/// Type of operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    E4m3,
    E5m2,
    F16,
    Bf16,
}

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Type::E4m3 => "e4m3",
            Type::E5m2 => "e5m2",
            Type::F16 => "f16",
            Type::Bf16 => "bf16",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if matches!(self, Type::E4m3 | Type::E5m2) { 1 } else { 2 }
    }

    /// Bits of the exponent and of the mantissa.
    pub fn layout(self) -> (u32, u32) {
        match self {
            Type::E4m3 => (4, 3),
            Type::E5m2 => (5, 2),
            Type::F16 => (5, 10),
            Type::Bf16 => (8, 7),
        }
    }

    fn bias(self) -> i32 {
        (1 << (self.layout().0 - 1)) - 1
    }

    /// Exponents of the smallest and of the largest normal number.
    pub fn range(self) -> (i32, i32) {
        let (exponent, _) = self.layout();
        let largest = (1 << exponent) - if self == Type::E4m3 { 1 } else { 2 };
        (1 - self.bias(), largest - self.bias())
    }

    /// The number with this sign, exponent and mantissa; below the range a subnormal, whose lower bits are
    /// lost.
    pub fn encode(self, negative: bool, exponent: i32, mantissa: u32) -> u32 {
        let (exponent_bits, mantissa_bits) = self.layout();
        let (least, most) = self.range();
        let exponent = exponent.min(most);
        let magnitude = if exponent < least {
            ((1 << mantissa_bits) | mantissa) >> ((least - exponent) as u32).min(31)
        } else {
            ((exponent - least + 1) as u32) << mantissa_bits | mantissa
        };
        // `e4m3` has a NaN where others would have their largest mantissa.
        let nan = self == Type::E4m3 && magnitude == 0x7f;
        (magnitude - u32::from(nan)) | u32::from(negative) << (exponent_bits + mantissa_bits)
    }

    /// Significand with its sign, and exponent of the field: the value is `significand * 2^(exponent -
    /// mantissa bits)`.
    fn parts(self, bits: u32) -> (i64, i32) {
        let (exponent_bits, mantissa_bits) = self.layout();
        let field = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
        let fraction = i64::from(bits & ((1 << mantissa_bits) - 1));
        let significand = if field == 0 { fraction } else { fraction | 1 << mantissa_bits };
        let sign = if bits >> (exponent_bits + mantissa_bits) & 1 != 0 { -1 } else { 1 };
        (sign * significand, field.max(1) as i32 - self.bias())
    }
}

/// A product of two elements.
#[derive(Clone, Copy, Debug, Default)]
struct Product {
    /// In units of `2^unit`.
    significand: i64,
    unit: i32,
    /// Sum of the exponents of the fields.
    fields: i32,
    /// Sum of the exponents of the normalised operands.
    operands: i32,
}

/// One element of a result.
#[derive(Clone, Debug)]
pub struct Observation {
    products: Vec<Product>,
    pub c: f32,
    pub got: f32,
    /// How often the products were added.
    times: u32,
    /// The operands, to be shown.
    pub a: Vec<u32>,
    pub b: Vec<u32>,
}

impl Observation {
    pub fn new(
        (ta, tb): (Type, Type),
        a: Vec<u32>,
        b: Vec<u32>,
        c: f32,
        times: u32,
        got: f32,
    ) -> Observation {
        let normal = |significand: i64, exponent: i32, bits: u32| {
            exponent - (bits as i32 - (63 - significand.unsigned_abs().max(1).leading_zeros() as i32))
        };
        let product = |(&a, &b): (&u32, &u32)| {
            let ((sa, ea), (sb, eb)) = (ta.parts(a), tb.parts(b));
            let (ma, mb) = (ta.layout().1, tb.layout().1);
            Product {
                significand: sa * sb,
                unit: ea + eb - (ma + mb) as i32,
                fields: ea + eb,
                operands: normal(sa, ea, ma) + normal(sb, eb, mb),
            }
        };
        let products = a.iter().zip(&b).map(product).collect();
        Observation { products, c, got, times, a, b }
    }
}

/// How bits are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Zero,
    Floor,
    Nearest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    Whole,
    /// The first half of K, then the second.
    Halves,
    /// Elements 0, 1 of every four, then 2, 3.
    Pairs,
    Quarters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exponents {
    Fields,
    Operands,
    Product,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulator {
    Aligned,
    AlignedUncut,
    /// Added to the sum of the products, which has been rounded like a result; the total has the bits of an
    /// f32.
    After,
    /// Likewise, and the total is rounded like a result.
    AfterRounded,
    /// Groups are summed from zero; the accumulator is added to the last sum, rounded to the nearest f32.
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The definition of the emulator: products summed in f64, k ascending, one rounding to f32.
    Exact,
    Cutting {
        grouping: Grouping,
        exponents: Exponents,
        zeros_count: bool,
        fraction: i32,
        cut: Cut,
        accumulator: Accumulator,
        mantissa: i32,
        round: Cut,
    },
}

impl Candidate {
    /// As MMA-Sim has them: cut towards zero, and zeros do not count.
    pub const fn mma_sim(
        grouping: Grouping,
        exponents: Exponents,
        (fraction, mantissa): (i32, i32),
        accumulator: Accumulator,
    ) -> Candidate {
        Candidate::Cutting {
            grouping,
            exponents,
            zeros_count: false,
            fraction,
            cut: Cut::Zero,
            accumulator,
            mantissa,
            round: Cut::Zero,
        }
    }

    /// All of them.
    pub fn all() -> Vec<Candidate> {
        let mut all = vec![Candidate::Exact];
        for grouping in [Grouping::Whole, Grouping::Halves, Grouping::Pairs, Grouping::Quarters] {
            for exponents in [Exponents::Fields, Exponents::Operands, Exponents::Product] {
                for zeros_count in [false, true] {
                    for fraction in 10..=30 {
                        for cut in [Cut::Zero, Cut::Floor, Cut::Nearest] {
                            for accumulator in [
                                Accumulator::Aligned,
                                Accumulator::AlignedUncut,
                                Accumulator::After,
                                Accumulator::AfterRounded,
                                Accumulator::Last,
                            ] {
                                for mantissa in 10..=23 {
                                    for round in [Cut::Zero, Cut::Nearest] {
                                        all.push(Candidate::Cutting {
                                            grouping,
                                            exponents,
                                            zeros_count,
                                            fraction,
                                            cut,
                                            accumulator,
                                            mantissa,
                                            round,
                                        });
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// What it predicts.
    pub fn predict(&self, seen: &Observation) -> f32 {
        (0..seen.times).fold(seen.c, |c, _| self.add(&seen.products, c))
    }

    fn add(&self, products: &[Product], c: f32) -> f32 {
        let Candidate::Cutting { grouping, accumulator, .. } = *self else { return exact(products, c) };
        let len = products.len();
        let group_of = |k: usize| match grouping {
            Grouping::Whole => 0,
            Grouping::Halves => k / (len / 2),
            Grouping::Pairs => k / 2 % 2,
            Grouping::Quarters => k / (len / 4),
        };
        let groups = match grouping {
            Grouping::Whole => 1,
            Grouping::Halves | Grouping::Pairs => 2,
            Grouping::Quarters => 4,
        };
        let last = accumulator == Accumulator::Last;
        let sum = (0..groups).fold(if last { 0.0 } else { c }, |c, group| {
            self.step(products.iter().enumerate().filter(|(k, _)| group_of(*k) == group).map(|(_, p)| p), c)
        });
        if last { sum + c } else { sum }
    }

    fn step<'a>(&self, products: impl Iterator<Item = &'a Product> + Clone, c: f32) -> f32 {
        let Candidate::Cutting {
            exponents, zeros_count, fraction, cut, accumulator, mantissa, round, ..
        } = *self
        else {
            unreachable!("exact sums have no steps")
        };
        let (c_significand, c_exponent) = f32_parts(c);
        let aligned = !matches!(accumulator, Accumulator::After | Accumulator::AfterRounded);
        let counts = products.clone().filter(|p| zeros_count || p.significand != 0);
        let exponent = |p: &Product| match exponents {
            Exponents::Fields => p.fields,
            Exponents::Operands => p.operands,
            Exponents::Product if p.significand == 0 => p.fields,
            Exponents::Product => p.unit + 63 - p.significand.unsigned_abs().leading_zeros() as i32,
        };
        let own = (aligned && c_significand != 0).then_some(c_exponent);
        let Some(largest) = counts.map(exponent).chain(own).max() else {
            return if aligned { 0.0 } else { c + 0.0 };
        };
        let quantum = largest - fraction;
        let mut sum: i64 = products.map(|p| shift(p.significand, p.unit - quantum, cut)).sum();
        if matches!(accumulator, Accumulator::Aligned | Accumulator::Last) {
            sum += shift(c_significand, c_exponent - 23 - quantum, cut);
        }
        let value = sum as f64 * 2f64.powi(quantum);
        match accumulator {
            Accumulator::Aligned | Accumulator::Last => rounded(value, mantissa, round),
            Accumulator::AlignedUncut => rounded(to_odd(value, f64::from(c)), mantissa, round),
            Accumulator::After | Accumulator::AfterRounded => {
                let total = to_odd(f64::from(rounded(value, mantissa, round)), f64::from(c));
                let bits = if accumulator == Accumulator::After { 23 } else { mantissa };
                rounded(total, bits, round)
            }
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Candidate::Cutting {
            grouping,
            exponents,
            zeros_count,
            fraction,
            cut,
            accumulator,
            mantissa,
            round,
        } = self
        else {
            return write!(f, "exact sums, rounded once");
        };
        let zeros = if *zeros_count { ", zeros count" } else { "" };
        write!(
            f,
            "{grouping:?} of K; exponents {exponents:?}{zeros}; {fraction} fraction bits, cut {cut:?}; accumulator \
             {accumulator:?}; {mantissa} mantissa bits, rounded {round:?}"
        )
    }
}

/// `significand * 2^by` as a whole number.
fn shift(significand: i64, by: i32, cut: Cut) -> i64 {
    if by >= 0 {
        return significand << by;
    }
    let by = (-by).min(62) as u32;
    let floor = significand >> by;
    let rest = significand - (floor << by);
    floor
        + match cut {
            Cut::Floor => 0,
            Cut::Zero => i64::from(significand < 0 && rest != 0),
            Cut::Nearest => {
                let half = 1i64 << (by - 1);
                i64::from(rest > half || rest == half && floor & 1 != 0)
            }
        }
}

fn f32_parts(x: f32) -> (i64, i32) {
    let bits = x.to_bits();
    let field = (bits >> 23 & 0xff) as i32;
    let fraction = i64::from(bits & 0x7f_ffff);
    let significand = if field == 0 { fraction } else { fraction | 1 << 23 };
    (if bits >> 31 != 0 { -significand } else { significand }, field.max(1) - 127)
}

/// `x` with so many bits of mantissa, as an f32.
fn rounded(x: f64, mantissa: i32, round: Cut) -> f32 {
    if x == 0.0 {
        return 0.0;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-126);
    let last = 2f64.powi(exponent - mantissa);
    let places = x / last;
    let whole = match round {
        Cut::Zero => places.trunc(),
        Cut::Floor => places.floor(),
        Cut::Nearest => places.round_ties_even(),
    };
    (whole * last) as f32
}

/// `a + b`, with the last bit set if anything was lost: it rounds to fewer bits as the exact sum does.
fn to_odd(a: f64, b: f64) -> f64 {
    let (large, small) = if a.abs() >= b.abs() { (a, b) } else { (b, a) };
    let sum = large + small;
    let lost = small - (sum - large);
    if lost == 0.0 || sum.to_bits() & 1 != 0 {
        return sum;
    }
    let up = (lost > 0.0) == (sum > 0.0);
    f64::from_bits(if up { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

fn exact(products: &[Product], c: f32) -> f32 {
    let sum = products.iter().fold(0.0, |sum, p| sum + p.significand as f64 * 2f64.powi(p.unit));
    to_odd(sum, f64::from(c)) as f32
}

/// Equal to the bit; zeros of either sign are alike.
pub fn is_equal(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a == 0.0 && b == 0.0
}

/// What the search found.
pub struct Found {
    /// Candidates that predict everything.
    pub fits: Vec<Candidate>,
    /// If there is none: the best, and how many observations they miss.
    pub best: Vec<(Candidate, usize)>,
}

/// Tries every candidate on every observation.
pub fn search(seen: &[Observation]) -> Found {
    // In an order that brings observations of all kinds early.
    let step = (0..).map(|n| seen.len() * 5 / 8 + n).find(|n| gcd(*n, seen.len()) == 1).unwrap_or(1);
    let order: Vec<&Observation> = (0..seen.len()).map(|i| &seen[i * step % seen.len()]).collect();
    let fits = |candidate: &Candidate| order.iter().all(|o| is_equal(candidate.predict(o), o.got));
    let all = Candidate::all();
    let found: Vec<Candidate> = all.iter().copied().filter(fits).collect();
    let mut best = Vec::new();
    if found.is_empty() {
        let misses = |candidate: &Candidate, among: &[&Observation]| {
            among.iter().filter(|o| !is_equal(candidate.predict(o), o.got)).count()
        };
        let mut ranked: Vec<(Candidate, usize)> = all
            .iter()
            .map(|candidate| (*candidate, misses(candidate, &order[..order.len().min(256)])))
            .collect();
        ranked.sort_by_key(|(_, missed)| *missed);
        best = ranked[..64.min(ranked.len())].iter().map(|(c, _)| (*c, misses(c, &order))).collect();
        best.sort_by_key(|(_, missed)| *missed);
        best.truncate(10);
    }
    Found { fits: found, best }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
