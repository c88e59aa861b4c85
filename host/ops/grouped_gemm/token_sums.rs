//! The order-free reduction: D is not written but added up by token, as soon as it is there.

use super::{OP, check_matrix_mut};
use crate::error::Result;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::ops::permutation::Permutation;
use crate::plan::elements;

/// Sums of D's rows by token: `sums[t] += w[t, j] * D[p]` for every row p that the permutation has for slot j
/// of token t. D is f32 here, rounded nowhere.
///
/// The additions are atomic and come in any order, so that two runs differ in the last bits. Whoever calls
/// sets `sums` to what is to be added to, 0 as a rule. The kernels of Hopper alone have this.
#[derive(Debug)]
pub struct TokenSums<'a> {
    /// f32 `[T, N]`, 16-byte aligned.
    pub sums: SliceMut<'a, f32>,
    /// w, f32 `[T, k]`; without it all weights are 1.
    pub topk_weights: Option<Slice<'a, f32>>,
}

/// What kernels take where D is written.
pub(super) const NONE: launchers::TokenSums = launchers::TokenSums {
    sorted_rows: DevicePtr::null(),
    topk_weights: DevicePtr::null(),
    slots: 1,
    top_k: 1,
};

impl TokenSums<'_> {
    /// As the kernels take them, besides the sums. After [`TokenSums::check`], of a permutation that has
    /// rows.
    pub(super) fn raw(&self, permutation: &Permutation<'_>) -> launchers::TokenSums {
        let (tokens, top_k) = (permutation.tokens(), permutation.top_k());
        launchers::TokenSums {
            sorted_rows: permutation.sorted_rows().map_or(DevicePtr::null(), |list| list.ptr()),
            topk_weights: self.topk_weights.map_or(DevicePtr::null(), |weights| weights.ptr()),
            slots: (tokens * top_k) as u32,
            top_k: top_k as u32,
        }
    }

    pub(super) fn check(&self, n: usize, permutation: &Permutation<'_>, stream: &Stream) -> Result<()> {
        let (tokens, top_k) = (permutation.tokens(), permutation.top_k());
        permutation.checked_sorted_rows(OP, stream)?;
        let sums = elements(OP, "out.sums", &[tokens, n])?;
        check_matrix_mut(OP, &self.sums, "out.sums", sums, stream)?;
        match &self.topk_weights {
            Some(weights) => weights.check(OP, "out.topk_weights", tokens * top_k, stream),
            None => Ok(()),
        }
    }
}
