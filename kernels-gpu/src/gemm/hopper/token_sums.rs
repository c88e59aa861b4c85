//! The order-free reduction: rows of D are added to the sums of their tokens, instead of being written.
//!
//! ```text
//!   row of D --sorted_rows--> slot = token * top_k + j          sums[token] += topk_weights[slot] * row
//!
//!   row 7 of expert 3 --> slot 13, top_k = 4: token 3           sums[3] += w[13] * D[7]
//! ```
//!
//! The additions are `red`, which no thread waits for. The order is arbitrary, so the last bits vary. Split
//! parts are added directly.

use cuda_std::{arguments, memory};

/// Which token's sum a row of D belongs to. Unused where D is written.
#[arguments]
pub struct TokenSums {
    /// i32 `[P]`, row of D to slot; `slots` or more where the row belongs to no token.
    pub sorted_rows: *const i32,
    /// f32 `[slots]`; null where all weights are 1.
    pub topk_weights: *const f32,
    /// Tokens times `top_k`, at least 1.
    pub slots: u32,
    /// Slots of a token, at least 1.
    pub top_k: u32,
}

impl TokenSums {
    /// The token of a row and its slot's weight; none where the row belongs to no token.
    ///
    /// # Safety
    /// The row is one of the P, and the kernel has waited for its predecessor.
    #[inline(always)]
    pub unsafe fn of_row(&self, row: u32) -> (Option<u32>, f32) {
        // SAFETY: the caller's contract. The slot is brought back to an existing one instead of branching
        // round the second load, so that those of several rows are on their way together. `top_k` is not 0: a
        // check would end in a trap, and with a trap in reach ptxas does not use the registers that
        // `setmaxnreg` brings.
        unsafe {
            let slot = memory::load_nc(self.sorted_rows.add(row as usize)) as u32;
            let mut weight = 1.0;
            if !self.topk_weights.is_null() {
                weight = memory::load_nc(self.topk_weights.add(slot.min(self.slots - 1) as usize));
            }
            core::hint::assert_unchecked(self.top_k != 0);
            ((slot < self.slots).then_some(slot / self.top_k), weight)
        }
    }
}
