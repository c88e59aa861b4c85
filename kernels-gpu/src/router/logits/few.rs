//! Router logits of a few tokens, on the CUDA cores: a block for each expert, whose warps split H.
//!
//! Hidden states in f16 have this kernel alone, for any number of tokens. It widens both operands to f32: the
//! tensor cores multiply numbers of one type, and the gate's planes leave the range of f16.

use cuda_std::bf16::{Bf16, F16, f32x2_from_bf16x2, f32x2_from_f16x2};
use cuda_std::{host, kernel, shared, sync, thread, warp};

use super::{LogitsTile, Matrix, Out, RouterLogits, WARPS};

/// A type of hidden states.
trait State {
    /// A pair of states in f32.
    fn pair(states: u32) -> [f32; 2];

    /// One state in f32.
    fn one(state: u16) -> f32;
}

impl State for Bf16 {
    #[inline(always)]
    fn pair(states: u32) -> [f32; 2] {
        f32x2_from_bf16x2(states)
    }

    #[inline(always)]
    fn one(state: u16) -> f32 {
        Bf16(state).to_f32()
    }
}

impl State for F16 {
    #[inline(always)]
    fn pair(states: u32) -> [f32; 2] {
        f32x2_from_f16x2(states)
    }

    #[inline(always)]
    fn one(state: u16) -> f32 {
        F16(state).to_f32()
    }
}

/// Tokens of a block of `router_logits_few`.
const FEW: usize = 8;
/// Of `router_logits_few`.
#[host]
pub const LOGITS_FEW: LogitsTile = LogitsTile { tokens: FEW as u32, experts: 1 };

/// Repeats a block for every token of [`FEW`], with the index as a constant: a loop left as one would put the
/// sums that it indexes in local memory.
macro_rules! for_few_tokens {
    ($index:ident, $body:block) => {
        for_few_tokens!(@ $index, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $index:ident, $body:block, $($value:literal)+) => {
        $({
            const $index: usize = $value;
            const { assert!($index < FEW) };
            $body
        })+
    };
}

macro_rules! few {
    ($($name:ident: $state:ident),+) => {$(
        /// Logits of a few tokens; in f16, of any number.
        ///
        /// Launch: blocks along x for the experts, along y for the tokens, of [`LOGITS_FEW`] each.
        ///
        /// # Safety
        /// As `router_logits_16x8`.
        #[kernel(threads = 32 * WARPS, min_blocks = 2, shared = WARPS * FEW as u32 * 4)]
        pub unsafe fn $name(arguments: RouterLogits) {
            // SAFETY: the kernel's contract.
            unsafe { few::<$state>(arguments) }
        }
    )+};
}

few!(router_logits_few: Bf16, router_logits_few_f16: F16);

/// Logits of [`LOGITS_FEW`] by this block.
///
/// # Safety
/// As `router_logits_16x8`; dynamic shared memory has an f32 for each warp and token.
#[inline(always)]
unsafe fn few<S: State>(arguments: RouterLogits) {
    let RouterLogits { hidden_states, gate, bias, logits, tokens, experts, hidden, planes } = arguments;
    let (states, gate) =
        (Matrix::new(hidden_states.cast(), tokens, hidden), Matrix::new(gate, experts, hidden));
    let expert = thread::block_idx_x();
    let first_token = thread::block_idx_y() * FEW as u32;
    let mut sums = [0.0f32; FEW];
    let thread = thread::thread_idx_x();
    let mut plane = 0;
    while plane < planes {
        let weights = gate.plane(plane).row(expert);
        // SAFETY: `weights` and every `states.row` are rows, and all columns are inside; with aligned rows,
        // their number is a multiple of 8.
        unsafe {
            if states.aligned && gate.aligned {
                let mut column = thread * 8;
                while column < hidden {
                    let weight = gate.load_vector(weights, column);
                    for_few_tokens!(T, {
                        let token = first_token + T as u32;
                        if token < tokens {
                            let states = states.load_vector(states.row(token), column);
                            sums[T] = add_products::<S>(sums[T], states, weight);
                        }
                    });
                    column += WARPS * 32 * 8;
                }
            } else {
                let mut column = thread;
                while column < hidden {
                    let weight = (*weights.add(column as usize)).to_f32();
                    // A token past the last repeats it.
                    for_few_tokens!(T, {
                        let state = *states.row(first_token + T as u32).add(column as usize);
                        sums[T] = fused(S::one(state.0), weight, sums[T]);
                    });
                    column += WARPS * 32;
                }
            }
        }
        plane += 1;
    }

    // [warp][token]
    let partial = shared::dynamic::<f32>();
    let (lane, warp_id) = (thread::lane_id(), thread::warp_id());
    // All reductions first: with a write by lane 0 between two of them, LLVM threads that branch past the
    // next reduction, and its shuffles exist twice, once for lane 0 and once for the others.
    for_few_tokens!(T, {
        sums[T] = warp::reduce_add_f32(sums[T]);
    });
    if lane == 0 {
        for_few_tokens!(T, {
            // SAFETY: one writer to each word, ordered before the reads by the barrier.
            unsafe { partial.add(warp_id * FEW as u32 + T as u32).write(sums[T]) };
        });
    }
    sync::block();
    let t = thread;
    if t < FEW as u32 && first_token + t < tokens {
        let mut sum = 0.0;
        let mut other = 0;
        while other < WARPS {
            // SAFETY: written before the barrier.
            sum += unsafe { partial.add(other * FEW as u32 + t).read() };
            other += 1;
        }
        // SAFETY: token < tokens, expert < experts.
        unsafe { Out { logits, bias }.put(first_token + t, expert, experts, sum) };
    }
}

/// `sum` plus the products of eight states with eight bf16, one fused multiply-add after the other.
#[inline(always)]
fn add_products<S: State>(sum: f32, a: [u32; 4], b: [u32; 4]) -> f32 {
    let mut sum = sum;
    let mut i = 0;
    while i < 4 {
        let ([a0, a1], [b0, b1]) = (S::pair(a[i]), f32x2_from_bf16x2(b[i]));
        sum = fused(a1, b1, fused(a0, b0, sum));
        i += 1;
    }
    sum
}

/// `a * b + c` with one rounding: `fma.rn.f32`.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let sum: f32;
    // SAFETY: computes in registers.
    unsafe {
        core::arch::asm!(
            "fma.rn.f32 {sum}, {a}, {b}, {c};",
            sum = out(reg32) sum,
            a = in(reg32) a,
            b = in(reg32) b,
            c = in(reg32) c,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
