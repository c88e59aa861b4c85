//! The activations in f64, from their definitions.

use fp8_moe::ActivationFunction;

/// All of them.
pub const FUNCTIONS: [ActivationFunction; 5] = [
    ActivationFunction::Silu,
    ActivationFunction::Gelu,
    ActivationFunction::GeluTanh,
    ActivationFunction::SwigluOai,
    ActivationFunction::Relu2,
];

/// What gate is at most, and up in magnitude, where nothing else is said.
pub fn limit(function: ActivationFunction) -> f64 {
    if function == ActivationFunction::SwigluOai { 7.0 } else { f64::INFINITY }
}

/// What the function makes of the gate, within its limit, and x: the documented relative error is
/// `(8 + 2 |x|) 2^-23`.
pub fn gate(function: ActivationFunction, gate: f64) -> (f64, f64) {
    gate_within(function, limit(function), gate)
}

/// As [`gate`], within another limit.
pub fn gate_within(function: ActivationFunction, limit: f64, gate: f64) -> (f64, f64) {
    let gate = if gate > limit { limit } else { gate };
    let logistic = |y: f64| 1.0 / (1.0 + (-y).exp());
    match function {
        ActivationFunction::Silu => (gate * logistic(gate), 0.5 * gate),
        ActivationFunction::Gelu => (gate * normal(gate), 0.0),
        ActivationFunction::GeluTanh => {
            let u = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            (gate * logistic(u), u)
        }
        ActivationFunction::SwigluOai => (gate * logistic(1.702 * gate), 1.702 * gate),
        ActivationFunction::Relu2 => (if gate < 0.0 { 0.0 } else { gate }, 0.0),
        other => panic!("no oracle for {other:?}"),
    }
}

/// What the activated gate is multiplied by.
pub fn factor(function: ActivationFunction, up: f64) -> f64 {
    factor_within(function, limit(function), up)
}

/// As [`factor`], within another limit.
pub fn factor_within(function: ActivationFunction, limit: f64, up: f64) -> f64 {
    let up = up.clamp(-limit, limit);
    if function == ActivationFunction::SwigluOai { up + 1.0 } else { up }
}

/// Phi(x), the normal distribution, to about 1e-14 relative.
fn normal(x: f64) -> f64 {
    let z = x.abs() / 2f64.sqrt();
    // erfc(z): by the series with terms of one sign below 2, by its continued fraction from there.
    let erfc = if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        1.0 - 2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum
    } else {
        let fraction = (1..200).rev().fold(z, |rest, n| z + f64::from(n) / 2.0 / rest);
        (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    if x < 0.0 { erfc / 2.0 } else { 1.0 - erfc / 2.0 }
}
