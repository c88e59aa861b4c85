//! What tensor cores make of a sum of FP8 products, and how far from the exact sum they may be.
//!
//! Products of e4m3 numbers are whole multiples of `2^-18` below `2^18`, so that sums are exact in `i64`.
//! Tensor cores do not keep them exact. Those of Hopper work in steps of 32 products, those of Ada of 16:
//!
//! ```text
//!     top   = the largest exponent among the products and the sum carried so far
//!     unit  = 2^(top - F)                                              F = 13 bits behind the leading one
//!     total = sum of cut(term, unit) over the products and the carried sum         cut: towards zero
//!     carried = cut(total, 2^(exponent(total) - F))
//! ```
//!
//! (MMA-Sim, arXiv 2511.10909, and Khattak and Mikaitis, arXiv 2512.07004.) [`truncated`] computes exactly
//! this, as `wgmma` on an H200 does: `crates/ptx_sim/tests/tensor_cores` compared 30,208 results, all bits.
//! `mma.sync` on Hopper converts to f16 and keeps more.
//!
//! [`analyse`] bounds what it does without knowing where a kernel cuts K into parts: every carried sum is the
//! sum of some run of consecutive steps, and of those it knows the largest.
//!
//! - A product loses `|p| mod unit`, which grows with `unit`; the largest possible `unit` gives the largest
//!   loss. Positive products lose downwards, negative ones upwards, so that a step is off by at most the
//!   larger of the two sums.
//! - The carried sum loses less than `unit` where it is aligned, and less than `2^(exponent - F)` where it is
//!   stored.
//!
//! Both happen twice in 32 products with Ada's steps. These add up to `worst`, which holds for exact sums,
//! for any cut of K, and for the tensor cores of either. The typical error is smaller. Products have signs of
//! either kind, so that their losses add up like a random walk: `squares` is the sum of their squares. The
//! carried sum keeps its sign and loses towards zero every time: `drift` adds up the root mean squares of
//! those losses, which bounds the root mean square of their sum whatever their dependence.

/// Bits behind the leading one that are kept.
pub const FRACTION_BITS: u32 = 13;

/// Products that are summed at once.
pub const STEP: usize = 32;

/// The unit of products: that of e4m3 numbers, squared.
pub const PRODUCT_UNIT: f64 = super::e4m3::UNIT * super::e4m3::UNIT;

/// A sum of products, and what bounds the error of a device's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// The exact sum.
    pub value: f64,
    /// The largest error there can be.
    pub worst: f64,
    /// Sum of the squares of what the products lose.
    pub squares: f64,
    /// Root mean square of what carried sums lose.
    pub drift: f64,
}

impl Sum {
    /// The root mean square of the error.
    pub fn rms(&self) -> f64 {
        self.squares.sqrt() + self.drift
    }

    /// Adds `scale` times `other`, summed apart from `self`: drifts are independent then.
    pub fn add(&mut self, other: &Sum, scale: f64) {
        self.value += scale * other.value;
        self.worst += scale.abs() * other.worst;
        self.squares += scale * scale * other.squares;
        self.drift = self.drift.hypot(scale * other.drift);
    }
}

/// The least normal number with the exponent of `x`, or `x` if it is larger: subnormal numbers and zero have
/// that of `2^-6`.
fn with_exponent(x: i32) -> i64 {
    i64::from(x.abs().max(8))
}

fn unit_below(top: u32) -> i64 {
    1 << top.saturating_sub(FRACTION_BITS)
}

/// Sums the products of `a` and `b`, in units of e4m3, and bounds the error of the sum against the exact sum
/// of the same operands. `moved`: for every step, how many elements of a device's `a` may be a neighbouring
/// e4m3 number instead, an eighth larger; then exponents may be one larger, and what those products lose is
/// not known.
pub fn analyse(a: &[i32], b: &[i32], moved: Option<&[u32]>) -> Sum {
    let (mut prefix, mut low, mut high) = (0i64, 0i64, 0i64);
    let (mut worst, mut squares, mut drift, mut shift) = (0i64, 0f64, 0i64, 0i64);
    for (step, (a, b)) in a.chunks(STEP).zip(b.chunks(STEP)).enumerate() {
        let mut products = [0i64; STEP];
        let (mut sums, mut bits) = ([0i64; 2], 0i64);
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            products[i] = i64::from(a) * i64::from(b);
            sums[i / (STEP / 2)] += products[i];
            bits |= with_exponent(a) * with_exponent(b);
        }
        // The largest sum that may be carried into the step or its second half, and its error.
        let run = |prefix: i64| (prefix - low).max(high - prefix);
        let half = prefix + sums[0];
        let carried = run(prefix).max(run(half)) + worst + shift;
        let top = (bits | carried).max(1).ilog2() + u32::from(moved.is_some());
        let unit = unit_below(top);
        let mask = unit - 1;
        let (mut down, mut up, mut square) = (0i64, 0i64, 0i64);
        if mask != 0 {
            for product in products {
                let loss = product.abs() & mask;
                *if product > 0 { &mut down } else { &mut up } += loss;
                square += loss * loss;
            }
        }
        prefix = half + sums[1];
        let stored = run(half).max(run(prefix)) + worst + shift + down.max(up);
        let stored_unit = unit_below(stored.max(1).ilog2() + u32::from(moved.is_some()));
        let of_carried = 2 * (unit - 1) + 2 * (stored_unit - 1);
        let moved = moved.map_or(0, |moved| i64::from(moved[step]));
        shift += moved * (bits / 8);
        worst += down.max(up) + of_carried + moved * mask;
        squares += square as f64;
        drift += of_carried;
        (low, high) = (low.min(prefix), high.max(prefix));
    }
    Sum {
        value: prefix as f64 * PRODUCT_UNIT,
        worst: worst as f64 * PRODUCT_UNIT,
        squares: squares * PRODUCT_UNIT.powi(2),
        drift: drift as f64 * PRODUCT_UNIT / 3f64.sqrt(),
    }
}

/// The sum of products as a tensor core has it that carries `from` into it.
pub fn truncated(a: &[i32], b: &[i32], from: f64) -> f64 {
    let cut = |x: i64, top: u32| x.signum() * (x.abs() & !(unit_below(top) - 1));
    // A product's exponent is the sum of both, one less than its own where it carries.
    let exponent = |x: i32| with_exponent(x).ilog2();
    let mut carried = (from / PRODUCT_UNIT) as i64;
    for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
        let terms = || a.iter().zip(b).filter(|(a, b)| **a != 0 && **b != 0);
        let products = terms().map(|(&a, &b)| exponent(a) + exponent(b));
        let top = products.chain(carried.unsigned_abs().checked_ilog2()).max().unwrap_or(0);
        let total: i64 =
            terms().map(|(&a, &b)| cut(i64::from(a) * i64::from(b), top)).sum::<i64>() + cut(carried, top);
        carried = cut(total, total.unsigned_abs().max(1).ilog2());
    }
    carried as f64 * PRODUCT_UNIT
}
