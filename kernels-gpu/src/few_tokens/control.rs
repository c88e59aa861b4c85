//! What blocks hand each other, and how a launch finds it empty.
//!
//! ```text
//!   word 0      parity p
//!   word 1      blocks that have read it
//!   word 2, 3   words of set 0 and of set 1 that the last launch of that parity may have filled
//!   word 4, 5   units of GEMM 1 that blocks have drawn, of a launch with parity 0 and 1
//!   word 6, 7   likewise, of GEMM 2
//!   32 ..       set 0    activated [pairs, I], products [parts of the second, pairs, H]
//!   32 + S ..   set 1    likewise                           S words, as many as the host has made room for
//! ```
//!
//! A word of a set is 0 while it is empty. What fills it is a value's negative, with `-0` for either zero:
//! never 0 again ([`filled`]). So a value is its own flag. Who needs it looks until it is there: no counter,
//! no fence, and one trip through L2 from writer to reader. Each word is written once in a launch, by one
//! thread; both accesses are relaxed and of the GPU's scope, and nothing else is taken from having seen one.
//!
//! A launch fills set p and empties set 1 - p, which the launch before has filled. It changes p when all its
//! blocks have read it. All of that is the producer warps', behind their last copies, so that nothing is
//! cleared or counted on the way to a result. The next launch begins when this one has ended.

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::{host, memory, thread};

use super::FewTokens;
use super::memory::Memory;

/// Words before the sets.
#[host]
pub const FEW_CONTROL_WORDS: u32 = 32;

/// The sign of an f32.
const SIGN: u32 = 1 << 31;

/// The word that says `value`.
#[inline(always)]
fn filled(value: f32) -> u32 {
    // The sum turns -0 into 0, whose negative is not 0.
    (value + 0.0).to_bits() ^ SIGN
}

/// Whether all words, read as f32, have been filled. Their values are the negatives.
#[inline(always)]
pub fn are_filled<const N: usize>(words: &[f32; N]) -> bool {
    words.iter().fold(true, |all, word| all & (word.to_bits() != 0))
}

/// Between two looks at the same words: the compiler must not take the second to find what the first has
/// found.
#[inline(always)]
pub fn look_again() {
    // SAFETY: no instruction at all. It might write memory, for all that the compiler knows.
    unsafe { core::arch::asm!("// look again", options(nostack, preserves_flags)) };
}

/// Fills a word of the set that this launch fills.
///
/// # Safety
/// The word exists, and nobody else fills it.
#[inline(always)]
pub unsafe fn fill(word: *mut f32, value: f32) {
    // SAFETY: the caller's contract.
    unsafe { atomic::store(word.cast::<u32>(), filled(value), Order::Relaxed, Scope::Gpu) }
}

/// Where a set's parts are.
#[derive(Clone, Copy)]
pub struct Set {
    /// `[pairs, I]`.
    pub activated: *mut f32,
    /// `[parts of the second, pairs, H]`.
    pub products: *mut f32,
}

/// Words that this launch may fill.
#[inline(always)]
fn words(arguments: &FewTokens) -> u32 {
    let FewTokens { ref second, tokens, top_k, .. } = *arguments;
    tokens * top_k * (second.k + second.parts * second.rows)
}

/// The first word of set `parity`.
#[inline(always)]
fn set(arguments: &FewTokens, parity: u32) -> *mut u32 {
    let first = arguments.control.wrapping_add(FEW_CONTROL_WORDS as usize);
    if parity == 0 { first } else { first.wrapping_add(arguments.set_words as usize) }
}

/// Reads the first four words, for [`keep`]: one lane of the block does.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn read(arguments: &FewTokens) -> [u32; 4] {
    // SAFETY: the words exist, aligned. Nobody writes them before all blocks have arrived, this one too.
    unsafe { memory::load_strong(arguments.control.cast()) }
}

/// The set that this launch fills, by what [`read`] has found; a barrier lies between it and the caller.
///
/// # Safety
/// The contract of the kernel; the table has the words.
#[inline(always)]
pub unsafe fn of_launch(arguments: &FewTokens, shared: &Memory) -> Set {
    let FewTokens { ref second, tokens, top_k, .. } = *arguments;
    // SAFETY: the caller's contract.
    let activated = set(arguments, unsafe { shared.launch().read() }[0] & 1).cast::<f32>();
    let products = activated.wrapping_add((tokens * top_k * second.k) as usize);
    Set { activated, products }
}

/// The counter of the units of GEMM 1, or 2, that blocks have drawn.
///
/// # Safety
/// As [`of_launch`].
#[inline(always)]
pub unsafe fn drawn(arguments: &FewTokens, shared: &Memory, is_first: bool) -> *mut u32 {
    // SAFETY: the caller's contract.
    let parity = unsafe { shared.launch().read() }[0] & 1;
    arguments.control.wrapping_add(if is_first { 4 } else { 6 } + parity as usize)
}

/// Empties this block's share of the other set; the first block makes it the next launch's. All lanes of the
/// producer warp call it together, behind everything else that takes time.
///
/// # Safety
/// The contract of the kernel; the table has what [`read`] has found.
#[inline(always)]
pub unsafe fn end(arguments: &FewTokens, shared: &Memory) {
    let (words_of_control, block, blocks) = (arguments.control, thread::block_idx_x(), thread::grid_dim_x());
    // SAFETY: nobody else touches the other set in this launch; its words are as many as the last launch that
    // filled it has left here, a multiple of 16, for which the host has made room. The first four
    // words are touched by atomics alone; they change when all blocks have read them.
    unsafe {
        let [parity, _, of_0, of_1] = shared.launch().read();
        let parity = parity & 1;
        let arrived = words_of_control.add(1);
        if thread::lane_id() == 0 {
            atomic::add(arrived, 1, Order::Release, Scope::Gpu);
        }
        let (other, all) = (set(arguments, parity ^ 1), if parity == 0 { of_1 } else { of_0 });
        let mut four = block * thread::WARP_SIZE + thread::lane_id();
        while four < all / 4 {
            memory::store(other.cast::<[u32; 4]>().add(four as usize), [0; 4]);
            four += blocks * thread::WARP_SIZE;
        }
        if block == 0 && thread::lane_id() == 0 {
            while atomic::load(arrived, Order::Acquire, Scope::Gpu) != blocks {}
            atomic::store(arrived, 0, Order::Relaxed, Scope::Gpu);
            let drawn_before = words_of_control.add(4 + (parity ^ 1) as usize);
            atomic::store(drawn_before, 0, Order::Relaxed, Scope::Gpu);
            atomic::store(drawn_before.add(2), 0, Order::Relaxed, Scope::Gpu);
            atomic::store(
                words_of_control.add(2 + parity as usize),
                words(arguments),
                Order::Relaxed,
                Scope::Gpu,
            );
            atomic::store(words_of_control, parity ^ 1, Order::Relaxed, Scope::Gpu);
        }
    }
}
