//! Attempts to reach undefined behaviour on the device by safe calls: forged lists, lists of another shape,
//! memory that is too short, permutations that were never computed. Each must be refused with an argument
//! error, or do no harm: the emulated device reports every access outside an allocation, and every read of
//! what nobody has written.

mod common;

use common::gemm::{Lists, devices};
use fp8_moe::ops::activation::{Activation, ActivationFunction, ActivationShape, Requantization, activation};
use fp8_moe::ops::grouped_gemm::{
    AScale, Accumulation, BScale, GemmOptions, GemmOut, GemmPlan, GemmShape, GroupedGemm, grouped_gemm,
};
use fp8_moe::ops::permutation::Permutation;
use fp8_moe::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, PermuteShape, ScaleLayout, permute, permute_rows,
};
use fp8_moe::ops::problem_sizes::{TILE_SCHEDULE_HEADER, TileScheduleOut, tile_schedule_entries};
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::ops::unpermute::{Unpermute, unpermute};
use fp8_moe::{Buffer, Device, E4m3, Error, Result, Step, Stream};
use half::bf16;
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
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

/// Lists of a permutation as a program of its own might make them, and whether they are still right.
struct Forged {
    tokens: usize,
    top_k: usize,
    offsets: Vec<i64>,
    sorted_rows: Vec<i32>,
    inverse: Vec<i32>,
}

impl Forged {
    /// Right ones, with padding and invalid rows.
    fn right(tokens: usize, top_k: usize, experts: usize, padding: usize, rng: &mut ChaCha8Rng) -> Forged {
        let expanded = tokens * top_k;
        let valid = rng.random_range(0..=expanded + padding);
        let mut sorted_rows: Vec<i32> = (0..(expanded + padding) as i32).collect();
        sorted_rows.shuffle(rng);
        let mut inverse = vec![-1; expanded];
        for (row, &r) in sorted_rows.iter().enumerate() {
            if let Some(place) = inverse.get_mut(r as usize) {
                *place = row as i32;
            }
        }
        let mut offsets: Vec<i64> = (1..experts).map(|_| rng.random_range(0..=valid as i64)).collect();
        offsets.extend([0, valid as i64]);
        offsets.sort_unstable();
        Forged { tokens, top_k, offsets, sorted_rows, inverse }
    }

    /// Changes an element to any number.
    fn forge(&mut self, rng: &mut ChaCha8Rng) {
        let value = any_number(rng);
        match rng.random_range(0..3) {
            0 => {
                let at = rng.random_range(0..self.offsets.len());
                self.offsets[at] = if rng.random_bool(0.5) { rng.random() } else { value.into() };
            }
            1 if !self.sorted_rows.is_empty() => {
                let at = rng.random_range(0..self.sorted_rows.len());
                self.sorted_rows[at] = value;
            }
            _ if !self.inverse.is_empty() => {
                let at = rng.random_range(0..self.inverse.len());
                self.inverse[at] = value;
            }
            _ => {}
        }
    }

    /// The definition: offsets ascend from 0 to at most the rows, and the two lists are each other's inverse
    /// on the valid rows.
    fn is_right(&self) -> bool {
        let (rows, expanded) = (self.sorted_rows.len() as i64, self.inverse.len() as i64);
        let ascends = self.offsets[0] == 0 && self.offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let valid = self.offsets[self.offsets.len() - 1];
        let inside = |value: i32, end: i64| (0..end).contains(&i64::from(value));
        ascends
            && valid <= rows
            && self.sorted_rows[..valid as usize]
                .iter()
                .enumerate()
                .all(|(row, &r)| !inside(r, expanded) || self.inverse[r as usize] as usize == row)
            && self
                .inverse
                .iter()
                .enumerate()
                .all(|(r, &row)| !inside(row, valid) || self.sorted_rows[row as usize] as usize == r)
    }

    fn upload(&self, device: &Device) -> Lists {
        Lists {
            tokens: self.tokens,
            top_k: self.top_k,
            sorted_rows: Some(device.upload(&self.sorted_rows).unwrap()),
            inverse: Some(device.upload(&self.inverse).unwrap()),
            ..Lists::of_offsets(device, &self.offsets, self.sorted_rows.len()).with_schedule(BLOCK_M)
        }
    }
}

proptest! {
    #![proptest_config(common::cases(24))]

    /// Ids and maps may hold anything: no operation behind the sort leaves its memory.
    #[test]
    fn any_ids_and_any_map(shape in shapes(), has_map: bool, seed: u64) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let local_experts = if has_map { shape.local_experts } else { shape.experts };
        let shape = PermuteShape { local_experts, ..shape };
        let ids: Vec<i32> = (0..shape.rows()).map(|_| any_number(rng)).collect();
        let map: Vec<i32> = (0..shape.experts).map(|_| any_number(rng)).collect();
        for device in devices() {
            let stream = device.default_stream();
            let (ids, map) = (device.upload(&ids).unwrap(), device.upload(&map).unwrap());
            let mut memory = Memory::new(&device, shape);
            let sizes = memory.sizes();
            let mut permutation = memory.permute(&stream, &ids, has_map.then_some(&map)).unwrap();
            for result in operations(&device, &stream, &mut permutation, sizes) {
                result.unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            }
        }
    }

    /// A permutation of other sizes than the buffers and the plan is refused, or suffices.
    #[test]
    fn another_shape(shape in shapes(), other in shapes(), seed: u64) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let shape = PermuteShape { local_experts: shape.experts, ..shape };
        let ids: Vec<i32> = (0..shape.rows()).map(|_| any_number(rng)).collect();
        for device in devices() {
            let stream = device.default_stream();
            let ids = device.upload(&ids).unwrap();
            let mut memory = Memory::new(&device, shape);
            let own = memory.sizes();
            let others = Memory::new(&device, other).sizes();
            let mut permutation = memory.permute(&stream, &ids, None).unwrap();
            let results = operations(&device, &stream, &mut permutation, others);
            assert_harmless(&results);
            let [_, scatter, _, multiplied, activated, _] = results;
            prop_assert_eq!(scatter.is_ok(), own.tokens == others.tokens && own.rows <= others.rows);
            let same = own.rows == others.rows;
            prop_assert_eq!(multiplied.is_ok(), same && own.experts == others.experts);
            prop_assert_eq!(activated.is_ok(), same);
        }
    }

    /// The checked constructor takes right lists and refuses all others; with those that it takes nothing
    /// goes wrong.
    #[test]
    fn forged_lists(
        tokens in 0usize..12,
        top_k in 1usize..5,
        experts in 1usize..6,
        padding in 0usize..6,
        forgeries in 0usize..3,
        seed: u64,
    ) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let padding = if tokens == 0 { 0 } else { padding };
        let mut forged = Forged::right(tokens, top_k, experts, padding, rng);
        for _ in 0..forgeries {
            forged.forge(rng);
        }
        let sizes = Sizes { tokens, rows: forged.sorted_rows.len(), experts };
        for device in devices() {
            let stream = device.default_stream();
            let mut lists = forged.upload(&device);
            match Permutation::from_lists(&stream, lists.borrow()) {
                Ok(mut permutation) => {
                    prop_assert!(forged.is_right(), "accepted");
                    for result in operations(&device, &stream, &mut permutation, sizes) {
                        result.unwrap_or_else(|e| panic!("{e}"));
                    }
                }
                Err(error) => {
                    prop_assert!(matches!(error, Error::Argument { .. }), "{}", error);
                    prop_assert!(!forged.is_right(), "{}", error);
                }
            }
        }
    }

    /// Lists and schedules of one's own that are an element too short are refused.
    #[test]
    fn short_lists(tokens in 1usize..12, top_k in 1usize..5, which in 0usize..4, seed: u64) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let forged = Forged::right(tokens, top_k, 3, 2, rng);
        let (device, stream) = (common::device(), common::device().default_stream());
        let mut owned = forged.upload(&device);
        let mut lists = owned.borrow();
        match which {
            0 => lists.sorted_rows = lists.sorted_rows.map(|list| list.into_slice_mut(1..)),
            1 => lists.inverse = lists.inverse.map(|list| list.into_slice_mut(1..)),
            2 => lists.expert_offsets = lists.expert_offsets.into_slice_mut(..0),
            _ => {
                lists.tile_schedule = lists.tile_schedule.map(|schedule| TileScheduleOut {
                    entries: schedule.entries.into_slice_mut(1..),
                    ..schedule
                });
            }
        }
        let error = Permutation::from_lists(&stream, lists).unwrap_err();
        prop_assert!(matches!(error, Error::Argument { .. }), "{}", error);
    }
}

/// A permutation serves any number of GEMMs: each leaves the counters of the schedule at 0, and gives the
/// same.
#[test]
fn a_permutation_is_used_again_and_again() {
    let shape = PermuteShape { tokens: 20, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    for device in devices() {
        let stream = device.default_stream();
        let ids = device.upload(&(0..40).map(|r| r * 7 % 5).collect::<Vec<i32>>()).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let mut permutation = memory.permute(&stream, &ids, None).unwrap();
        let schedule = |permutation: &Permutation<'_>| {
            permutation
                .tile_schedule()
                .expect("a schedule")
                .slice(..TILE_SCHEDULE_HEADER)
                .to_vec(&stream)
                .unwrap()
        };
        let before = schedule(&permutation);
        for _ in 0..3 {
            for result in operations(&device, &stream, &mut permutation, sizes) {
                result.unwrap();
            }
            assert_eq!(schedule(&permutation), before);
        }
    }
}

/// Of no tokens nothing is computed, and nothing is read: the lists are uninitialised, which the emulated
/// device would report.
#[test]
fn no_tokens() {
    let shape = PermuteShape { tokens: 0, top_k: 2, experts: 4, local_experts: 4, alignment: 16 };
    for device in devices() {
        let stream = device.default_stream();
        let ids = device.uninit::<i32>(0).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let mut permutation = memory.permute(&stream, &ids, None).unwrap();
        for result in operations(&device, &stream, &mut permutation, sizes) {
            result.unwrap();
        }
    }
}

/// What was captured has not run: its permutation is refused outside, and in another capture.
#[test]
fn a_captured_permutation_stays_in_its_capture() {
    let shape = PermuteShape { tokens: 8, top_k: 1, experts: 2, local_experts: 2, alignment: 1 };
    let device = common::device();
    let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let ids = device.zeros::<i32>(8).unwrap();
    let (y, mut out): (Buffer<bf16>, Buffer<bf16>) = (device.zeros(64).unwrap(), device.zeros(64).unwrap());
    device.default_stream().synchronize().unwrap();
    let mut sum = |stream: &Stream, permutation: &Permutation<'_>| {
        let (y, out) = ((&y).into(), (&mut out).into());
        unpermute(
            stream,
            Unpermute { y, permutation, topk_weights: None, addend: None, hidden: 8, out, adds: false },
        )
    };
    let mut memory = Memory::new(&device, shape);
    let mut escaped = None;
    stream
        .capture(|stream| {
            let permutation = memory.permute(stream, &ids, None)?;
            sum(stream, &permutation)?;
            let refused = sum(&other, &permutation).unwrap_err().to_string();
            assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
            escaped = Some(permutation);
            Ok(())
        })
        .unwrap();
    let permutation = escaped.expect("a permutation");
    for stream in [&stream, &other] {
        let refused = sum(stream, &permutation).unwrap_err().to_string();
        assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
    }
    let again = stream.capture(|stream| {
        let refused = sum(stream, &permutation).unwrap_err().to_string();
        assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
        Ok(())
    });
    assert_eq!(again.unwrap().kernels(), 0);
}

/// At a replay the lists of a permutation from outside may be gone: captures refuse it.
#[test]
fn a_permutation_from_outside_stays_out_of_captures() {
    let shape = PermuteShape { tokens: 8, top_k: 1, experts: 2, local_experts: 2, alignment: 1 };
    for device in devices() {
        let stream = Stream::new(&device).unwrap();
        let ids = device.zeros::<i32>(8).unwrap();
        let (y, mut out): (Buffer<bf16>, Buffer<bf16>) =
            (device.zeros(64).unwrap(), device.zeros(64).unwrap());
        let (mut q, mut q_scales) = (device.zeros::<E4m3>(64).unwrap(), device.zeros::<f32>(8).unwrap());
        let mut memory = Memory::new(&device, shape);
        let permutation = memory.permute(&stream, &ids, None).unwrap();
        let mut both = |stream: &Stream| {
            let args = Unpermute {
                y: (&y).into(),
                permutation: &permutation,
                topk_weights: None,
                addend: None,
                hidden: 8,
                out: (&mut out).into(),
                adds: false,
            };
            let summed = unpermute(stream, args);
            let args = Quantize {
                x: (&y).into(),
                row_weight: None,
                destinations: Destinations::Scatter { permutation: &permutation, fill_padding: true },
                scheme: Scheme::Token { scales: q_scales.as_mut_slice(), absmax_limit: None },
                q: q.as_mut_slice(),
                cleared: None,
            };
            [summed, quantize(stream, QuantizeShape { rows: 8, columns: 8 }, args)]
        };
        let graph = stream.capture(|capturing| {
            for result in both(capturing) {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains("must be made in the capture that it is used in"), "{refused}");
            }
            Ok(())
        });
        assert_eq!(graph.unwrap().kernels(), 0);
        both(&stream).into_iter().for_each(|result| result.unwrap());
        stream.synchronize().unwrap();
    }
}

/// A replay writes memory that somebody has borrowed meanwhile. The lists that lay there are refused, whichever
/// operation is given them, until they are made again.
#[test]
fn a_replay_ends_the_permutations_that_it_overwrites() {
    let shape = PermuteShape { tokens: 24, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    // As many rows, in the memory of the same lists, of which no token has more than half of the other's.
    let other = PermuteShape { tokens: 12, top_k: 4, ..shape };
    for device in devices() {
        let streams = [Stream::new(&device).unwrap(), Stream::new(&device).unwrap()];
        let all = device.upload(&[1i32; 48]).unwrap();
        let few = device.upload(&(0..48).map(|r| if r < 4 { r } else { -1 }).collect::<Vec<i32>>()).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let graph = {
            memory.shape = other;
            streams[0].capture(|stream| memory.permute(stream, &all, None).map(drop)).unwrap()
        };
        memory.shape = shape;
        for (stream, replays_on) in [(0, 0), (0, 1), (1, 0)].map(|(a, b)| (&streams[a], &streams[b])) {
            let mut permutation = memory.permute(stream, &few, None).unwrap();
            operations(&device, stream, &mut permutation, sizes).into_iter().for_each(|r| r.unwrap());
            graph.launch(replays_on).unwrap();
            for result in operations(&device, stream, &mut permutation, sizes) {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains("must be made again"), "{refused}");
            }
        }
        let mut permutation = memory.permute(&streams[0], &few, None).unwrap();
        drop(graph);
        operations(&device, &streams[0], &mut permutation, sizes).into_iter().for_each(|r| r.unwrap());
    }
}

/// A scan of lists is worth nothing once a replay has written them.
#[test]
fn a_replay_ends_scanned_lists() {
    let device = common::device();
    let stream = Stream::new(&device).unwrap();
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let mut lists = Forged::right(6, 2, 3, 0, rng).upload(&device);
    let graph = {
        let lists = lists.borrow();
        let mut offsets = lists.expert_offsets;
        stream.capture(|stream| offsets.fill_bytes(0x7f, stream)).unwrap()
    };
    let mut permutation = Permutation::from_lists(&stream, lists.borrow()).unwrap();
    let sizes = Sizes { tokens: 6, rows: 12, experts: 3 };
    operations(&device, &stream, &mut permutation, sizes).into_iter().for_each(|result| result.unwrap());
    graph.launch(&stream).unwrap();
    for result in operations(&device, &stream, &mut permutation, sizes) {
        let refused = result.unwrap_err().to_string();
        assert!(refused.contains("must be made again"), "{refused}");
    }
    assert!(Permutation::from_lists(&stream, lists.borrow()).is_err());
}

/// A graph of a forward, launched while another forward is being enqueued in the same workspace, before any of
/// its operations: that one ends with an error, or is not touched. Layers take turns in one workspace.
#[test]
fn a_replay_within_a_forward() {
    use common::layers::{config, on_device};
    use common::oracle::{Layer, hidden_states};
    use fp8_moe::{Forward, Quantization, Routing};
    let sizes = [8, 2, 64, 32];
    for quantization in [Quantization::ChannelToken, Quantization::TensorStatic] {
        let config = config(quantization, Routing::Softmax { renormalize: true }, sizes);
        let device = common::device();
        let layers = [1, 2].map(|seed| on_device(&device, &Layer::random(config.clone(), seed)));
        let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
        let mut workspace = layers[0].workspace(40).unwrap();
        let hidden = [40, 3].map(|tokens| device.upload(&hidden_states(tokens * 64, 5)).unwrap());
        let mut outs = [40, 3].map(|tokens| device.zeros::<f32>(tokens * 64).unwrap());
        let [wide, out] = &mut outs;
        let graph = stream
            .capture(|stream| layers[1].forward(stream, &hidden[0], &mut workspace, &mut *wide))
            .unwrap();
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        let alone = out.to_vec(&stream).unwrap();
        for at in 0..Step::NAMES.len() {
            for replays_on in [&stream, &other] {
                let observe = |step: Step| {
                    if step.index == at {
                        graph.launch(replays_on).unwrap();
                    }
                };
                let forward = Forward::new(&hidden[1], &mut workspace, &mut *out).observed(&observe);
                match layers[0].forward_with(&stream, forward) {
                    // Before the routing, or the sort of it, a launch does no harm to the lists.
                    // This layer is not one launch.
                    Ok(()) => {
                        let is_absent = Step::NAMES[at] == "one launch";
                        assert!(is_absent || at < 3 || at == 5 || at == 8, "{}", Step::NAMES[at]);
                    }
                    Err(error) => {
                        assert!(at >= 3, "{}: {error}", Step::NAMES[at]);
                        assert!(error.to_string().contains("must be made again"), "{error}");
                    }
                }
                stream.synchronize().unwrap();
            }
        }
        // Weights take turns with no trace of each other.
        graph.launch(&other).unwrap();
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        assert_eq!(out.to_vec(&stream).unwrap(), alone);
    }
}

/// The same where the layer is one launch, whose blocks wait for each other by words of the workspace: launches in
/// one workspace take turns, and each finds the words as it needs them.
#[test]
fn a_replay_beside_one_launch() {
    use common::layers::{config, on_device};
    use common::oracle::{Layer, hidden_states};
    use fp8_moe::ops::grouped_gemm::Path;
    use fp8_moe::{Family, Forward, Quantization, Routing};
    let device = common::device();
    if device.family() != Family::Sm90a {
        return;
    }
    let routing = Routing::Softmax { renormalize: true };
    let mut config = config(Quantization::ChannelToken, routing, [8, 2, 128, 64]);
    config.path = Path::OneLaunch;
    let layers = [1, 2].map(|seed| on_device(&device, &Layer::random(config.clone(), seed)));
    let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut workspace = layers[0].workspace(8).unwrap();
    let hidden = [8, 3].map(|tokens| device.upload(&hidden_states(tokens * 128, 5)).unwrap());
    let mut outs = [8, 3].map(|tokens| device.zeros::<f32>(tokens * 128).unwrap());
    let [wide, out] = &mut outs;
    let graph =
        stream.capture(|stream| layers[1].forward(stream, &hidden[0], &mut workspace, &mut *wide)).unwrap();
    layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
    let alone = out.to_vec(&stream).unwrap();
    for replays_on in [&stream, &other] {
        let seen = std::cell::Cell::new(false);
        let observe = |step: Step| {
            seen.set(seen.get() || step.name == "one launch");
            graph.launch(replays_on).unwrap();
        };
        let forward = Forward::new(&hidden[1], &mut workspace, &mut *out).observed(&observe);
        // Its routing may be the other's, but nothing waits for ever.
        layers[0].forward_with(&stream, forward).unwrap();
        graph.launch(&other).unwrap();
        assert!(seen.get());
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        assert_eq!(out.to_vec(&stream).unwrap(), alone);
    }
}

/// Two threads, one memory: one launches a graph that writes it, the other sorts and uses what it has sorted.
/// Each operation runs on its own lists, or is refused.
#[test]
fn a_replay_on_another_thread() {
    let shape = PermuteShape { tokens: 24, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    let device = common::device();
    let stream = Stream::new(&device).unwrap();
    let all = device.upload(&[1i32; 48]).unwrap();
    let few = device.upload(&(0..48).map(|r| if r < 4 { r } else { -1 }).collect::<Vec<i32>>()).unwrap();
    let mut memory = Memory::new(&device, shape);
    let sizes = memory.sizes();
    let graph = stream.capture(|stream| memory.permute(stream, &all, None).map(drop)).unwrap();
    std::thread::scope(|scope| {
        let launches = scope.spawn(|| {
            let stream = Stream::new(&device).unwrap();
            for _ in 0..20 {
                graph.launch(&stream).unwrap();
                std::thread::yield_now();
            }
            stream.synchronize().unwrap();
        });
        while !launches.is_finished() {
            let mut permutation = memory.permute(&stream, &few, None).unwrap();
            let results = operations(&device, &stream, &mut permutation, sizes);
            assert_harmless(&results);
        }
    });
}

/// Two scales at one place would be a race of two threads.
#[test]
fn layouts_that_overlap_are_refused() {
    let (device, stream) = (common::device(), common::device().default_stream());
    let x: Buffer<bf16> = device.zeros(4 * 256).unwrap();
    let mut q: Buffer<E4m3> = device.zeros(4 * 256).unwrap();
    let mut scales: Buffer<f32> = device.zeros(64).unwrap();
    let mut quantised = |row_stride, group_stride| {
        let layout = ScaleLayout { row_stride, group_stride };
        let args = Quantize {
            x: (&x).into(),
            row_weight: None,
            destinations: Destinations::Identity,
            scheme: Scheme::Group { group_size: 128, scales: scales.as_mut_slice(), layout },
            q: q.as_mut_slice(),
            cleared: None,
        };
        quantize(&stream, QuantizeShape { rows: 4, columns: 256 }, args)
    };
    for (row_stride, group_stride) in [(2, 1), (3, 1), (1, 4), (1, 5), (5, 2)] {
        quantised(row_stride, group_stride).unwrap();
    }
    for (row_stride, group_stride) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 3), (2, 2)] {
        let refused = quantised(row_stride, group_stride).unwrap_err().to_string();
        let rule = "must give each of 4 rows and 2 groups a place of its own";
        assert_eq!(refused, format!("quantize: layout = strides {row_stride}, {group_stride}: {rule}"));
    }
}

/// A plan promises sizes, a height and scales; what it does not promise is refused.
#[test]
fn plans_of_other_heights_are_refused() {
    let device = common::device();
    let stream = device.default_stream();
    let mut lists = Lists::of_offsets(&device, &[0, 16], 16).with_schedule(64);
    let permutation = lists.permutation(&stream);
    let shape = GemmShape { rows: 16, n: 16, k: 16, experts: 1 };
    let options = GemmOptions { accumulation: Accumulation::Promoted, ..GemmOptions::default() };
    let plan = GemmPlan::new(&device, shape, 16, options).unwrap();
    let (a, b): (Buffer<E4m3>, Buffer<E4m3>) = (device.zeros(256).unwrap(), device.zeros(256).unwrap());
    let (scale, mut out) = (device.zeros::<f32>(1).unwrap(), device.zeros::<f32>(256).unwrap());
    let mut workspace = device.zeros(plan.workspace_bytes()).unwrap();
    let args = GroupedGemm {
        a: a.as_slice(),
        a_scale: AScale::Call(scale.as_slice()),
        b: b.as_slice(),
        b_scale: BScale::Expert(scale.as_slice()),
        bias: None,
        permutation,
        out: GemmOut::F32(out.as_mut_slice()),
        workspace: workspace.as_mut_slice(),
        plan: &plan,
    };
    let refused = grouped_gemm(&stream, args).unwrap_err().to_string();
    assert_eq!(refused, "grouped_gemm: block_m = 16: must be 64, the tiles' height of the permutation");
}
