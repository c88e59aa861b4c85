//! What decides whether a result is right: distances, tolerances of the specification, derived bounds.

use super::bounds::Outputs;

/// `|a - b| / |b|` in the Euclidean norm; 0 for two empty or zero vectors, NaN when there is a NaN.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Asserts `|a - b| <= atol + rtol * |b|` everywhere, NaN equal to NaN.
#[track_caller]
pub fn assert_close(a: &[f32], b: &[f32], atol: f32, rtol: f32) {
    assert_eq!(a.len(), b.len(), "lengths");
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        let close = (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= atol + rtol * b.abs();
        assert!(close, "element {i}: {a} is not {b} within {atol} + {rtol} relative");
    }
}

/// An elementwise tolerance of the specification: `|a - b| <= atol + rtol * |b|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub atol: f64,
    pub rtol: f64,
}

impl Tolerance {
    /// The first element of `ours` that is not `expected`, in words.
    pub fn broken(self, ours: &[f32], expected: impl IntoIterator<Item = f64>) -> Option<String> {
        let bound = |expected: f64| self.atol + self.rtol * expected.abs();
        let expected = expected.into_iter().map(|expected| (expected, bound(expected)));
        outside(ours, expected).map(|what| format!("{what}, by the specification"))
    }
}

/// The first element of `ours`, the outputs of some tokens, that is further from the exact layer than its
/// bound, in words.
pub fn out_of_bounds(ours: &[f32], expected: &[Outputs]) -> Option<String> {
    let expected =
        expected.iter().flat_map(|row| (0..row.values.len()).map(|n| (row.values[n], row.bound(n))));
    outside(ours, expected)
}

/// The values of the exact layer.
pub fn values(expected: &[Outputs]) -> Vec<f32> {
    expected.iter().flat_map(|row| row.values.iter().map(|&x| x as f32)).collect()
}

fn outside(ours: &[f32], expected: impl Iterator<Item = (f64, f64)>) -> Option<String> {
    let mut count = 0;
    let mut first = None;
    for (i, (expected, bound)) in expected.enumerate() {
        count += 1;
        let Some(&found) = ours.get(i) else { continue };
        let found = f64::from(found);
        // A NaN is not inside.
        let inside = (found - expected).abs() <= bound;
        if first.is_none() && !inside {
            first = Some(format!("element {i} is {found:e}: {expected:e} is expected, within {bound:e}"));
        }
    }
    if count == ours.len() { first } else { Some(format!("{} elements, not {count}", ours.len())) }
}

/// The refusal of an argument, as text.
pub fn refusal<T>(result: fp8_moe::Result<T>) -> String {
    match result {
        Err(error @ fp8_moe::Error::Argument { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was accepted"),
    }
}
