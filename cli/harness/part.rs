//! The parts of a layer that are measured one by one.

use std::fmt;
use std::str::FromStr;

use super::OP;
use fp8_moe::{Error, Result};

/// The whole layer, or an operation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Everything, from routed ids and hidden states to hidden states.
    Layer,
    /// The sort of rows by expert.
    Permute,
    /// Quantisation of hidden states, into permuted order.
    Quantise,
    /// The first grouped GEMM, with the activation where they are one operation.
    Gemm1,
    /// Activation and requantisation, where they are an operation of their own.
    Activation,
    /// The second grouped GEMM.
    Gemm2,
    /// The weighted sum of expert outputs, where GEMM 2 does not add them up.
    Unpermute,
    /// The cast of the sums, where GEMM 2 adds them up.
    Cast,
}

impl Part {
    /// The layer, then its operations in order.
    pub const ALL: [Part; 8] = [
        Part::Layer,
        Part::Permute,
        Part::Quantise,
        Part::Gemm1,
        Part::Activation,
        Part::Gemm2,
        Part::Unpermute,
        Part::Cast,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Layer => "layer",
            Part::Permute => "permute",
            Part::Quantise => "quantise",
            Part::Gemm1 => "gemm1",
            Part::Activation => "activation",
            Part::Gemm2 => "gemm2",
            Part::Unpermute => "unpermute",
            Part::Cast => "cast",
        }
    }

    /// The part that an operation of a forward is, by the beginning of its [`fp8_moe::Step`]'s name.
    pub(crate) fn of_step(name: &str) -> Option<Part> {
        [
            ("permute", Part::Permute),
            ("quantise", Part::Quantise),
            ("grouped GEMM 1", Part::Gemm1),
            ("activation", Part::Activation),
            ("grouped GEMM 2", Part::Gemm2),
            ("unpermute", Part::Unpermute),
            ("cast", Part::Cast),
        ]
        .into_iter()
        .find_map(|(prefix, part)| name.starts_with(prefix).then_some(part))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Part> {
        Part::ALL.into_iter().find(|part| part.name() == text).ok_or_else(|| {
            let names = Part::ALL.map(Part::name).join(", ");
            Error::argument(OP, "part", text, format!("must be all, or of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn every_operation_of_a_routed_forward_is_a_part() {
        let parts: Vec<_> = fp8_moe::Step::NAMES.iter().filter_map(|name| Part::of_step(name)).collect();
        assert_eq!(fp8_moe::Step::NAMES[..2], ["shared expert", "router"]);
        assert_eq!(parts.len(), fp8_moe::Step::NAMES.len() - 3, "not shared expert, router, one launch");
        assert!(parts.is_sorted());
    }
}
