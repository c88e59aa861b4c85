//! Types of operands that instructions share.

use crate::ptx::ast::{Kind, Type};

pub(super) const U32: Type = Type { kind: Kind::Unsigned, bits: 32 };
pub(super) const S32: Type = Type { kind: Kind::Signed, bits: 32 };
pub(super) const U64: Type = Type { kind: Kind::Unsigned, bits: 64 };
pub(super) const PRED: Type = Type { kind: Kind::Pred, bits: 1 };
