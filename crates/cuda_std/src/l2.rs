//! How long the L2 cache keeps what an access brings in: policies, made once and handed to accesses (sm_80
//! and later).
//!
//! ```text
//!   l2::Policy::evict_first()    a stream that is read once
//!   l2::Policy::evict_last()     what every block reads again
//! ```
//!
//! A policy is a hint: results do not depend on it. PTX ISA, "createpolicy", "Cache Eviction Priority Hints".

use core::arch::asm;

/// A cache policy, as `createpolicy` encodes it. It lies in a register; make it once, before a loop.
#[derive(Clone, Copy)]
pub struct Policy(u64);

impl Policy {
    /// What is accessed is the first to be evicted: `createpolicy.fractional.L2::evict_first`.
    #[inline(always)]
    pub fn evict_first() -> Self {
        let policy;
        // SAFETY: computes a value.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;", out(reg64) policy,
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(policy)
    }

    /// What is accessed is the last to be evicted: `createpolicy.fractional.L2::evict_last`.
    #[inline(always)]
    pub fn evict_last() -> Self {
        Self::evict_last_of(1.0)
    }

    /// As [`evict_last`](Self::evict_last), of a part of what is accessed, chosen by address; the priority of
    /// the rest is unchanged.
    ///
    /// `part` is above 0 and at most 1. It is for data that does not fit into L2 together: a part that stays
    /// is worth more than all of it evicting itself.
    #[inline(always)]
    pub fn evict_last_of(part: f32) -> Self {
        let policy;
        // SAFETY: computes a value.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 {}, {};", out(reg64) policy, in(reg32) part,
                options(pure, nomem, nostack, preserves_flags));
        }
        Self(policy)
    }

    /// The operand of `.L2::cache_hint`.
    #[inline(always)]
    pub(crate) fn operand(self) -> u64 {
        self.0
    }
}
