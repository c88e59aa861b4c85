//! The GPU families that the kernels are compiled for.

use std::fmt;

/// The GPU families that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Family {
    /// `cp.async` + `ldmatrix` + `mma.sync` e4m3: Ada, and through the driver's compiler everything newer.
    Sm89,
    /// Hopper: the same, and what only compute capability 9.0 has.
    Sm90a,
}

impl Family {
    /// The families, in ascending order.
    pub const ALL: [Family; 2] = [Family::Sm89, Family::Sm90a];

    /// The `-arch` name, e.g. `sm_90a`.
    pub const fn arch(self) -> &'static str {
        match self {
            Family::Sm89 => "sm_89",
            Family::Sm90a => "sm_90a",
        }
    }

    /// The best family for a compute capability; none below 8.9, where the tensor cores have no FP8.
    pub fn for_capability(major: u32, minor: u32) -> Option<Family> {
        match (major, minor) {
            (9, 0) => Some(Family::Sm90a),
            (8, 9) => Some(Family::Sm89),
            (major, _) if major >= 9 => Some(Family::Sm89),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.arch())
    }
}
