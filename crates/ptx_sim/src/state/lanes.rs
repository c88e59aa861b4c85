//! Sets of lanes of a warp.

/// Lanes of a warp, one bit each.
pub(crate) type Mask = u32;

/// Every lane.
pub(crate) const FULL: Mask = !0;

/// Lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes_of(mut mask: Mask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
