//! Attempts to reach undefined behaviour on the device by safe calls. Each must be refused with an argument
//! error, or do no harm: the emulated device reports every access outside an allocation, and every read of
//! what nobody has written.
//!
//! | file | attempts |
//! |---|---|
//! | `lists` | forged lists, lists of another shape, memory that is too short |
//! | `graphs` | permutations that were never computed, or that a replay has overwritten |
//! | `arguments` | layouts that overlap, plans of other tiles, addresses that are none |
//! | `slices` | every operation with a slice of another context, too short, misaligned; a wrong number |
//!
//! `calls` has the calls of every operation. Races of streams, and memory that goes while it is in use, are
//! `tests/two_streams`.

#[path = "../common/mod.rs"]
mod common;

mod arguments;
mod calls;
mod graphs;
mod lists;
mod slices;

use fp8_moe::ops::activation::{Activation, ActivationFunction, ActivationShape, Requantization, activation};
use fp8_moe::ops::grouped_gemm::{
    AScale, BScale, GemmOptions, GemmOut, GemmPlan, GemmShape, GroupedGemm, grouped_gemm,
};
use fp8_moe::ops::permutation::Permutation;
use fp8_moe::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, PermuteShape, ScaleLayout, permute, permute_rows,
};
use fp8_moe::ops::problem_sizes::{TileScheduleOut, tile_schedule_entries};
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::ops::unpermute::{Unpermute, unpermute};
use fp8_moe::{Buffer, Device, E4m3, Error, Result, Stream};
use half::bf16;
use proptest::prelude::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// H, columns of the hidden states, and I.
const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 16;
/// Rows of a tile that both families of kernels have.
const BLOCK_M: usize = 16;

/// The sizes that buffers are made for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sizes {
    tokens: usize,
    rows: usize,
    experts: usize,
}

/// Every operation that takes a permutation, one after the other, on buffers for `sizes`. Each element is
/// written before.
fn operations(
    device: &Device,
    stream: &Stream,
    permutation: &mut Permutation<'_>,
    sizes: Sizes,
) -> [Result<()>; 6] {
    let Sizes { tokens, rows, experts } = sizes;
    let zeros = |len: usize| device.zeros::<f32>(len).unwrap();
    let (x, given): (Buffer<bf16>, _) = (device.zeros(tokens * HIDDEN).unwrap(), zeros(1));
    let mut copied: Buffer<bf16> = device.zeros(rows * HIDDEN).unwrap();
    let (scales, mut copied_scales) = (zeros(tokens), zeros(rows));
    let copy = permute_rows(
        stream,
        PermuteRows {
            activations: x.as_slice(),
            columns: HIDDEN,
            scales: Some(PermuteScales {
                groups: 1,
                scales: scales.as_slice(),
                layout: ScaleLayout::row_major(1),
                permuted: copied_scales.as_mut_slice(),
                permuted_layout: ScaleLayout::row_major(1),
            }),
            permutation,
            permuted: copied.as_mut_slice(),
        },
    );
    let (mut q, mut q_scales): (Buffer<E4m3>, _) = (device.zeros(rows * HIDDEN).unwrap(), zeros(rows));
    let quantised = |fill_padding, q: &mut Buffer<E4m3>, q_scales: &mut Buffer<f32>| {
        let args = Quantize {
            x: (&x).into(),
            row_weight: None,
            destinations: Destinations::Scatter { permutation, fill_padding },
            scheme: Scheme::Token { scales: q_scales.as_mut_slice(), absmax_limit: None },
            q: q.as_mut_slice(),
            cleared: None,
        };
        quantize(stream, QuantizeShape { rows: tokens, columns: HIDDEN }, args)
    };
    let scatter = quantised(false, &mut q, &mut q_scales);
    let padded = quantised(true, &mut q, &mut q_scales);
    let (w, w_scale): (Buffer<E4m3>, _) =
        (device.zeros(experts * 2 * INTERMEDIATE * HIDDEN).unwrap(), zeros(experts));
    let mut products = zeros(rows * 2 * INTERMEDIATE);
    let shape = GemmShape { rows, n: 2 * INTERMEDIATE, k: HIDDEN, experts };
    let multiplied = GemmPlan::new(device, shape, BLOCK_M, GemmOptions::default()).and_then(|plan| {
        let mut workspace = device.zeros(plan.workspace_bytes()).unwrap();
        let args = GroupedGemm {
            a: q.as_slice(),
            a_scale: AScale::Row(q_scales.as_slice()),
            b: w.as_slice(),
            b_scale: BScale::Expert(w_scale.as_slice()),
            bias: None,
            permutation: permutation.reborrow(),
            out: GemmOut::F32(products.as_mut_slice()),
            workspace: workspace.as_mut_slice(),
            plan: &plan,
        };
        grouped_gemm(stream, args)
    });
    let mut activated: Buffer<E4m3> = device.zeros(rows * INTERMEDIATE).unwrap();
    let args = Activation {
        x: (&products).into(),
        permutation: Some(permutation),
        gating: ActivationFunction::Silu.into(),
        requantization: Requantization::TensorStatic { scale: given.as_slice() },
        q: activated.as_mut_slice(),
    };
    let activated = activation(stream, ActivationShape { rows, intermediate: INTERMEDIATE }, args);
    let mut out: Buffer<bf16> = device.zeros(tokens * HIDDEN).unwrap();
    let args = Unpermute {
        y: (&copied).into(),
        permutation,
        topk_weights: None,
        addend: None,
        hidden: HIDDEN,
        out: (&mut out).into(),
        adds: false,
    };
    let summed = unpermute(stream, args);
    stream.synchronize().unwrap_or_else(|e| panic!("{e}"));
    [copy, scatter, padded, multiplied, activated, summed]
}

/// Nothing, or a refusal of an argument: never a fault.
#[track_caller]
fn assert_harmless(results: &[Result<()>]) {
    for (index, result) in results.iter().enumerate() {
        let harmless = matches!(result, Ok(()) | Err(Error::Argument { .. }));
        assert!(harmless, "operation {index}: {}", result.as_ref().unwrap_err());
    }
}

/// Memory of a permutation that `permute` writes, of which nothing is initialised.
struct Memory {
    shape: PermuteShape,
    offsets: Buffer<i64>,
    sorted_rows: Buffer<i32>,
    inverse: Buffer<i32>,
    entries: Buffer<[u32; 4]>,
}

impl Memory {
    fn new(device: &Device, shape: PermuteShape) -> Memory {
        let entries = tile_schedule_entries(shape.capacity(), shape.local_experts, BLOCK_M);
        Memory {
            shape,
            offsets: device.uninit(shape.local_experts + 1).unwrap(),
            sorted_rows: device.uninit(shape.capacity()).unwrap(),
            inverse: device.uninit(shape.rows()).unwrap(),
            entries: device.uninit(entries).unwrap(),
        }
    }

    fn permute<'a>(
        &'a mut self,
        stream: &Stream,
        ids: &'a Buffer<i32>,
        map: Option<&'a Buffer<i32>>,
    ) -> Result<Permutation<'a>> {
        let args = Permute {
            topk_ids: ids.as_slice(),
            expert_map: map.map(|map| map.as_slice()),
            expert_offsets: self.offsets.as_mut_slice(),
            sorted_rows: self.sorted_rows.as_mut_slice(),
            inverse: self.inverse.as_mut_slice(),
            row_experts: None,
            problem_sizes: None,
            tile_schedule: Some(TileScheduleOut { block_m: BLOCK_M, entries: self.entries.as_mut_slice() }),
            path: PermutePath::Auto,
        };
        permute(stream, self.shape, args)
    }

    fn sizes(&self) -> Sizes {
        let PermuteShape { tokens, local_experts: experts, .. } = self.shape;
        Sizes { tokens, rows: self.shape.capacity(), experts }
    }
}

/// Any number at all, extremes and small ones more often.
fn any_number(rng: &mut ChaCha8Rng) -> i32 {
    match rng.random_range(0..6) {
        0 => rng.random(),
        1 => [i32::MIN, i32::MAX, -1, 0][rng.random_range(0..4)],
        _ => rng.random_range(-2..20),
    }
}

fn shapes() -> impl Strategy<Value = PermuteShape> {
    (0usize..40, 1usize..6, 1usize..9, 0usize..9, prop::sample::select(&[1usize, 4, 16][..])).prop_map(
        |(tokens, top_k, experts, local_experts, alignment)| {
            let experts = experts.max(top_k);
            PermuteShape { tokens, top_k, experts, local_experts, alignment }
        },
    )
}
