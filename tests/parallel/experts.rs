//! R ranks in process give, bit for bit, what R layers give on the tokens of all ranks, added in rank order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fp8_moe::parallel::{Batch, Communicator, Partials, Placement};
use fp8_moe::{Checkpoint, IntermediateScales, MoeConfig, Progress, Quantization, Routing, Stream};
use half::bf16;
use proptest::prelude::*;

use crate::common::checks::out_of_bounds;
use crate::common::layers::{Poison, Skew, any_skew, config, on_device, run_own, run_routed};
use crate::common::oracle;
use crate::common::{cases, device, timing};
use crate::group::{Case, Tokens, limits, on_ranks};

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };

fn block(experts: usize, top_k: usize) -> MoeConfig {
    config(Quantization::Block128, SOFTMAX, [experts, top_k, 128, 128])
}

#[test]
fn one_to_eight_ranks() {
    for ranks in 1..=8 {
        let tokens: Vec<_> = (0..ranks).map(|rank| (rank * 3 + 2) % 5).collect();
        Case::new(block(8, 3), &tokens, Skew::Invalid, ranks as u64).check(Poison::Byte(0xff));
    }
}

/// Every scheme, and the routing that weighs the input, whose rows are weighed before they travel.
#[test]
fn schemes() {
    let mut token = config(Quantization::ChannelToken, SOFTMAX, [6, 2, 144, 112]);
    token.intermediate_scales = IntermediateScales::Token;
    let layers = [
        config(Quantization::TensorStatic, SOFTMAX, [6, 2, 144, 112]),
        config(Quantization::ChannelToken, SOFTMAX, [6, 2, 144, 112]),
        token,
        config(Quantization::Block128, SOFTMAX, [6, 2, 144, 112]),
        config(Quantization::ChannelToken, Routing::SigmoidInput, [6, 1, 144, 112]),
        config(Quantization::Block128, Routing::SigmoidInput, [6, 1, 144, 112]),
    ];
    for (index, config) in layers.into_iter().enumerate() {
        Case::new(config, &[3, 0, 5], Skew::Uniform, index as u64).check(Poison::Random(7));
    }
}

/// Ranks without tokens, without experts, with all the tokens; no tokens at all.
#[test]
fn empty_ranks() {
    for tokens in [&[0, 0][..], &[0, 4], &[7, 0, 0], &[1, 1, 1, 1]] {
        Case::new(block(2, 2), tokens, Skew::Uniform, 3).check(Poison::Fresh);
    }
}

#[test]
fn placements() {
    let tokens = &[4, 1, 3];
    let case = || Case::new(block(7, 3), tokens, Skew::Steep, 11);
    case().placed(Placement::round_robin(7, 3).expect("three ranks")).check(Poison::Fresh);
    let lists = vec![vec![6, 0], vec![], vec![1, 2, 3, 4, 5]];
    case().placed(Placement::from_lists(7, lists).expect("all experts")).check(Poison::Fresh);
}

/// Expert 0 on all three ranks, 1 on two: each row goes to one of its holders.
#[test]
fn replicas() {
    let lists = vec![vec![0, 1, 2], vec![0, 3, 4], vec![0, 1, 5, 6]];
    let placement = Placement::from_lists(7, lists).expect("all experts");
    let case = Case::new(block(7, 3), &[5, 0, 3], Skew::Steep, 12).placed(placement);
    case.check(Poison::Byte(0xff));
    assert_near_the_exact_layer(&case);
}

/// What the ranks' parts add up to is the exact layer on each rank's tokens, within derived bounds.
fn assert_near_the_exact_layer(case: &Case) {
    for (rank, (ours, exact)) in case.expected().iter().zip(case.exact()).enumerate() {
        assert_eq!(ours.len(), exact.len());
        for (i, (ours, (exact, bound))) in ours.iter().zip(exact).enumerate() {
            let difference = (f64::from(ours.to_f32()) - exact).abs();
            assert!(difference <= bound, "rank {rank}, element {i}: {ours} is not {exact} within {bound}");
        }
    }
}

/// Forwards that are larger than the workspace, with a last chunk that is short.
#[test]
fn chunks() {
    for chunk in [1, 3, 4] {
        let mut case = Case::new(block(6, 2), &[7, 0, 10], Skew::Invalid, 5);
        case.options.chunk = Some(chunk);
        case.check(Poison::Byte(0xff));
    }
}

/// A capacity below the most, in memory that a larger forward has used.
#[test]
fn capacities() {
    let mut case = Case::new(block(6, 2), &[2, 1], Skew::Uniform, 6);
    case.options.max_tokens = 9;
    case.check(Poison::Byte(0xff));
}

/// The sum over ranks is the layer with all experts, within the bounds of the exact one and the roundings of
/// the parts. On tensor cores that cut sums, groups, whole layers and parts may each round other elements of
/// an intermediate, since their kernels cut K otherwise: each is compared with the exact layer alone.
#[test]
fn against_the_whole_layer() {
    for seed in 21..25 {
        let case = Case::new(block(8, 3), &[2, 3], Skew::Uniform, seed);
        assert_near_the_exact_layer(&case);
        let stream = device().default_stream();
        let whole = on_device(&device(), &case.layer);
        let layers: Vec<_> = (0..2).map(|rank| case.part(&device(), rank)).collect();
        for Tokens { hidden, ids, weights } in &case.tokens {
            let run = |layer| {
                run_routed::<f32>(&stream, layer, hidden, ids, weights, Poison::Fresh).expect("a forward")
            };
            let exact = case.layer.forward(hidden, ids, weights);
            assert_eq!(out_of_bounds(&run(&whole), &exact), None, "all experts");
            let parts: Vec<_> = layers.iter().map(run).collect();
            let sum: Vec<f32> = (0..hidden.len()).map(|i| parts.iter().map(|part| part[i]).sum()).collect();
            assert_eq!(out_of_bounds(&sum, &exact), None, "the ranks' parts");
        }
    }
}

/// Parts that travel in f32 are rounded once, in the sum.
#[test]
fn parts_in_f32() {
    let mut case = Case::new(block(8, 3), &[2, 3], Skew::Uniform, 22);
    case.options.partials = Partials::F32;
    let outputs =
        on_ranks(2, limits(), |rank, group| case.run(rank, group, Poison::Byte(0xff)).expect("a forward"));
    let stream = device().default_stream();
    let layers: Vec<_> = (0..2).map(|rank| case.part(&device(), rank)).collect();
    // Both ranks' tokens, three places each.
    let mut all = Tokens { hidden: Vec::new(), ids: Vec::new(), weights: Vec::new() };
    for tokens in &case.tokens {
        let missing = 3 - tokens.len(case.config());
        all.hidden.extend(tokens.hidden.iter().copied().chain(vec![bf16::ZERO; missing * 128]));
        all.ids.extend(tokens.ids.iter().copied().chain(vec![-1; missing * 3]));
        all.weights.extend(tokens.weights.iter().copied().chain(vec![0.0; missing * 3]));
    }
    let run = |layer| run_routed::<f32>(&stream, layer, &all.hidden, &all.ids, &all.weights, Poison::Fresh);
    let parts: Vec<_> = layers.iter().map(|layer| run(layer).expect("a forward")).collect();
    for (rank, output) in outputs.iter().enumerate() {
        for (i, output) in output.iter().enumerate() {
            let index = rank * 3 * 128 + i;
            assert_eq!(
                *output,
                bf16::from_f32(parts[0][index] + parts[1][index]),
                "rank {rank}, element {i}"
            );
        }
    }
}

/// The layer's own router, on each rank for its own tokens.
#[test]
fn own_routing() {
    let case = Case::new(block(8, 3), &[3, 0, 4], Skew::Uniform, 31);
    let whole = on_device(&device(), &case.layer);
    let mut routed = Case::new(block(8, 3), &[3, 0, 4], Skew::Uniform, 31);
    for tokens in routed.tokens.iter_mut().filter(|tokens| !tokens.hidden.is_empty()) {
        let (_, ids, weights) =
            run_own(&device().default_stream(), &whole, &tokens.hidden).expect("a forward");
        (tokens.ids, tokens.weights) = (ids, weights);
    }
    let outputs = on_ranks(3, limits(), |rank, communicator| {
        let mut experts = case.expert_parallel(rank, communicator).expect("a rank");
        let stream = Stream::new(&device()).expect("a stream");
        let mut workspace = experts.workspace().expect("memory");
        let hidden = device().upload(&case.tokens[rank].hidden).expect("memory");
        let mut out = device().uninit::<bf16>(hidden.len()).expect("memory");
        experts.forward(&stream, Batch::new(&hidden), &mut workspace, &mut out).expect("a forward");
        out.to_vec(&stream).expect("a copy")
    });
    assert_eq!(outputs, routed.expected());
}

/// In three calls, with other work on another stream meanwhile; then once more, in one.
#[test]
fn three_calls() {
    let case = Case::new(block(6, 2), &[3, 2], Skew::Uniform, 41);
    let outputs = on_ranks(2, limits(), |rank, communicator| {
        let mut experts = case.expert_parallel(rank, communicator).expect("a rank");
        let [stream, other] = [(); 2].map(|()| Stream::new(&device()).expect("a stream"));
        let mut workspace = experts.workspace().expect("memory");
        let Tokens { hidden, ids, weights } = &case.tokens[rank];
        let hidden = device().upload(hidden).expect("memory");
        let (ids, weights) =
            (device().upload(ids).expect("memory"), device().upload(weights).expect("memory"));
        let mut outs = [(); 2].map(|()| device().uninit::<bf16>(hidden.len()).expect("memory"));
        let batch = Batch::new(&hidden).routed(&ids, &weights);
        let mut dispatched = experts.dispatch(&stream, batch, &mut workspace).expect("a dispatch");
        let mut shared = device().uninit::<u8>(64).expect("memory");
        shared.fill_bytes(1, &other).expect("other work");
        dispatched.experts(&stream).expect("the experts");
        dispatched.combine(&stream, &mut outs[0]).expect("the results");
        experts.forward(&stream, batch, &mut workspace, &mut outs[1]).expect("a forward");
        outs.map(|out| out.to_vec(&stream).expect("a copy"))
    });
    let expected = case.expected();
    for (rank, [apart, whole]) in outputs.into_iter().enumerate() {
        assert_eq!(apart, expected[rank], "in three calls");
        assert_eq!(whole, expected[rank], "in one");
    }
}

/// Rows are counted per expert, each where it was computed; and a placement made of the counts gives the same
/// tokens from the next forward on.
#[test]
fn statistics_and_a_new_placement() {
    let mut case = Case::new(block(6, 2), &[5, 4], Skew::Steep, 51);
    case.options.statistics = true;
    let ids: Vec<i32> = case.tokens.iter().flat_map(|tokens| tokens.ids.clone()).collect();
    let loads: Vec<u64> = (0..6).map(|e| ids.iter().filter(|&&id| id == e).count() as u64).collect();
    let placement = Placement::balanced(&loads, 2, 4).expect("eight places");
    assert!(placement.has_replicas());
    let balanced = Case::new(block(6, 2), &[5, 4], Skew::Steep, 51).placed(placement.clone());
    let outputs = on_ranks(2, limits(), |rank, communicator| {
        let mut experts = case.expert_parallel(rank, communicator).expect("a rank");
        let stream = Stream::new(&device()).expect("a stream");
        let mut workspace = experts.workspace().expect("memory");
        let Tokens { hidden, ids, weights } = &case.tokens[rank];
        let hidden = device().upload(hidden).expect("memory");
        let (ids, weights) =
            (device().upload(ids).expect("memory"), device().upload(weights).expect("memory"));
        let mut outs = [(); 2].map(|()| device().uninit::<bf16>(hidden.len()).expect("memory"));
        let batch = Batch::new(&hidden).routed(&ids, &weights);
        experts.forward(&stream, batch, &mut workspace, &mut outs[0]).expect("a forward");
        experts.forward(&stream, batch, &mut workspace, &mut outs[0]).expect("a forward");
        let counts = experts.counts().expect("counts");
        experts.replace(balanced.part(&device(), rank), placement.clone()).expect("a new placement");
        let mut workspace = experts.workspace().expect("memory");
        experts.forward(&stream, batch, &mut workspace, &mut outs[1]).expect("a forward");
        let of_new = experts.counts().expect("counts");
        (outs.map(|out| out.to_vec(&stream).expect("a copy")), counts, of_new)
    });
    let sum = |counts: &dyn Fn(usize) -> Vec<(usize, u64)>| {
        let mut sums = vec![0; 6];
        (0..2).flat_map(counts).for_each(|(expert, rows)| sums[expert] += rows);
        sums
    };
    let twice: Vec<u64> = loads.iter().map(|load| 2 * load).collect();
    assert_eq!(sum(&|rank| outputs[rank].1.clone()), twice, "two forwards");
    assert_eq!(sum(&|rank| outputs[rank].2.clone()), loads, "one, over replicas");
    for (rank, ([before, after], ..)) in outputs.into_iter().enumerate() {
        assert_eq!(before, case.expected()[rank]);
        assert_eq!(after, balanced.expected()[rank]);
    }
}

/// The sums of all ranks, in every type and at lengths that accesses of 16 bytes do not divide.
#[test]
fn all_reduce() {
    for len in [1, 7, 8, 129, 1024] {
        let sums = on_ranks(3, limits(), |rank, communicator: Arc<dyn Communicator>| {
            let stream = Stream::new(&device()).expect("a stream");
            let values: Vec<bf16> = oracle::hidden_states(len, rank as u64);
            let wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
            let mut narrow = device().upload(&values).expect("memory");
            let mut x = device().upload(&wide).expect("memory");
            communicator.all_reduce(&stream, (&mut narrow).into()).expect("a sum");
            communicator.all_reduce(&stream, (&mut x).into()).expect("a sum");
            (wide, narrow.to_vec(&stream).expect("a copy"), x.to_vec(&stream).expect("a copy"))
        });
        let expected: Vec<f32> =
            (0..len).map(|i| sums.iter().fold(0.0, |sum, rank| sum + rank.0[i])).collect();
        for (_, narrow, wide) in &sums {
            assert_eq!(*wide, expected);
            assert_eq!(*narrow, expected.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        }
    }
}

/// A rank reads its own experts of a checkpoint, and no bytes of others'.
#[test]
fn a_rank_reads_its_own_experts() {
    // Beside the tests, or where the bundle's script says.
    let folder = std::env::var_os("FP8_MOE_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), PathBuf::from);
    let file = folder.join("qwen3_moe_block.safetensors");
    let checkpoint = Checkpoint::open(file, None).expect("a checkpoint");
    let prefix = checkpoint.find_layer(None).expect("a layer");
    let whole = checkpoint.layer_config(&prefix).expect("a config");
    let each = 3 * whole.hidden_size * whole.intermediate_size;
    let placement = Placement::round_robin(whole.experts, 3).expect("three ranks");
    for rank in 0..3 {
        let total = AtomicU64::new(0);
        let config = placement.config(&whole, rank);
        let progress = |progress: Progress| total.store(progress.total, Ordering::Relaxed);
        checkpoint.load_layer_with(&device(), &prefix, &config, &progress).expect("a layer");
        assert_eq!(total.into_inner(), (placement.of_rank(rank).len() * each) as u64, "rank {rank}");
    }
}

proptest! {
    #![proptest_config(cases(6))]

    /// Any number of ranks and tokens, any scheme, placement and chunk, in poisoned memory.
    #[test]
    fn any_ranks(
        tokens in prop::collection::vec(0usize..6, 1..5),
        experts in 1usize..10, k in 1usize..5, hidden in 1usize..12,
        quantization in crate::common::layers::any_quantization(),
        skew in any_skew(), chunk in prop::option::of(1usize..5),
        holders in prop::collection::vec(1u32..16, 10), seed: u64,
    ) {
        timing(seed);
        let config = config(quantization, SOFTMAX, [experts, k.min(experts), hidden * 16, 64]);
        let ranks = tokens.len();
        // Expert e is on the ranks of the bits of `holders[e]`, and on one at least.
        let lists: Vec<Vec<usize>> = (0..ranks)
            .map(|rank| {
                let has = |&e: &usize| holders[e] >> rank & 1 == 1 || (e % ranks == rank && holders[e] & ((1 << ranks) - 1) == 0);
                (0..experts).filter(has).collect()
            })
            .collect();
        let placement = Placement::from_lists(experts, lists).expect("all experts");
        let mut case = Case::new(config, &tokens, skew, seed).placed(placement);
        case.options.chunk = chunk;
        case.check(Poison::Random(seed));
    }
}
