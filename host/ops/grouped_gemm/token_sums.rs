//! The order-free reduction: D is not written but added up by token, as soon as it is there.

use super::{GemmShape, OP, check_matrix, elements};
use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;

/// Sums of D's rows by token: `sums[t] += w[t, j] * D[r]` for every row r that is slot j of token t, `sorted_rows[r] = t * k + j`. D is
/// f32 here, rounded nowhere.
///
/// The additions are atomic and come in any order, so that two runs differ in the last bits. Whoever calls sets `sums` to what is to be
/// added to, 0 as a rule. The kernels of Hopper alone have this.
pub struct TokenSums<'a> {
    /// f32 `[T, N]`, 16-byte aligned.
    pub sums: SliceMut<'a, f32>,
    /// i32 `[P]`, from [`permute`](crate::ops::permute::permute): t * k + j; T * k or more for rows to leave out.
    pub sorted_rows: Slice<'a, i32>,
    /// w, f32 `[T, k]`; without it all weights are 1.
    pub topk_weights: Option<Slice<'a, f32>>,
    /// T, at least 1.
    pub tokens: usize,
    /// k, at least 1.
    pub top_k: usize,
}

/// What kernels take where D is written.
pub(super) const NONE: launchers::TokenSums = launchers::TokenSums {
    sorted_rows: DevicePtr::null(),
    topk_weights: DevicePtr::null(),
    slots: 1,
    top_k: 1,
};

impl TokenSums<'_> {
    /// As the kernels take them, besides the sums.
    pub(super) fn raw(&self) -> launchers::TokenSums {
        launchers::TokenSums {
            sorted_rows: self.sorted_rows.ptr(),
            topk_weights: self.topk_weights.map_or(DevicePtr::null(), |weights| weights.ptr()),
            slots: (self.tokens * self.top_k) as u32,
            top_k: self.top_k as u32,
        }
    }

    pub(super) fn check(&self, shape: &GemmShape, stream: &Stream) -> Result<()> {
        let TokenSums { tokens, top_k, .. } = *self;
        require((1..=i32::MAX as usize).contains(&tokens), OP, "out.tokens", tokens, || {
            "must be in 1..2^31".into()
        })?;
        let most = i32::MAX as usize / tokens;
        require((1..=most).contains(&top_k), OP, "out.top_k", top_k, || {
            format!("must be in 1..={most} with {tokens} tokens: slots are counted in i32")
        })?;
        let sums = elements(OP, "out.sums", &[tokens, shape.n])?;
        check_matrix(OP, &self.sums.as_slice(), "out.sums", sums, stream)?;
        self.sorted_rows.check(OP, "out.sorted_rows", shape.rows, stream)?;
        match &self.topk_weights {
            Some(weights) => weights.check(OP, "out.topk_weights", tokens * top_k, stream),
            None => Ok(()),
        }
    }
}
