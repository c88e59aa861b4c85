//! Kernel `problem_sizes`: the problem of every expert, as a grouped GEMM of others asks for it.
//!
//! ```text
//!   sizes1[e] = (m_e, 2I, H)     sizes2[e] = (m_e, H, I)     operands swapped: (2I, m_e, H) and (H, m_e, I)
//! ```

use cuda_std::code::Flag;
use cuda_std::{arguments, host, kernel, thread};

/// Where the problem sizes go.
#[arguments]
pub(crate) struct ProblemSizes {
    /// i32 `[local_experts, 3]`: `(m, 2I, H)`; null if not wanted.
    pub sizes1: *mut i32,
    /// i32 `[local_experts, 3]`: `(m, H, I)`; null if not wanted.
    pub sizes2: *mut i32,
    /// H.
    pub hidden: u32,
    /// I.
    pub intermediate: u32,
    /// The weights take the place of the rows: `(n, m, k)`.
    pub swap_operands: Flag,
}

impl ProblemSizes {
    /// Writes the two problems of `expert`: `(m, 2I, H)` and `(m, H, I)`.
    ///
    /// # Safety
    /// `expert` is below the lists' length.
    #[inline(always)]
    pub unsafe fn write(self, expert: u32, m: u32) {
        let write = |sizes: *mut i32, n: u32, k: u32| {
            if sizes.is_null() {
                return;
            }
            let (first, second) = if self.swap_operands.is_set() { (n, m) } else { (m, n) };
            // SAFETY: entries 3*expert .. 3*expert + 3 exist by the caller's contract.
            unsafe {
                let size = sizes.add(expert as usize * 3);
                *size = first as i32;
                *size.add(1) = second as i32;
                *size.add(2) = k as i32;
            }
        };
        write(self.sizes1, 2 * self.intermediate, self.hidden);
        write(self.sizes2, self.hidden, self.intermediate);
    }
}

/// Experts of a block of the kernel `problem_sizes`, a thread each.
#[host]
pub(crate) const PROBLEM_SIZES_EXPERTS: u32 = 128;

/// Arguments of the kernel `problem_sizes`.
#[arguments]
pub(crate) struct WriteProblemSizes {
    /// i64 `[local_experts + 1]`.
    pub expert_offsets: *const i64,
    /// Experts of this rank.
    pub local_experts: u32,
    /// Where the problem sizes go.
    pub sizes: crate::schedule::problem_sizes::ProblemSizes,
}

/// Writes the problem sizes from the offsets, one thread to an expert.
///
/// Launch: a block for every [`PROBLEM_SIZES_EXPERTS`].
///
/// # Safety
/// The lists have their stated lengths.
#[kernel(threads = PROBLEM_SIZES_EXPERTS, min_blocks = 1)]
pub unsafe fn problem_sizes(arguments: WriteProblemSizes) {
    let WriteProblemSizes { expert_offsets, local_experts, sizes } = arguments;
    let expert = thread::index_1d();
    if expert >= local_experts {
        return;
    }
    // SAFETY: expert < local_experts, and the lists have their stated lengths.
    unsafe {
        let rows = *expert_offsets.add(expert as usize + 1) - *expert_offsets.add(expert as usize);
        sizes.write(expert, rows as u32);
    }
}
