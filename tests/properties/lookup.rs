//! Layers whose experts are looked up by token id (DeepSeek-V4): a forward with token ids gives the bits of
//! one with the routing that the table and the scores say, however the ids come; without ids it is refused.

use crate::common::layers::{any_quantization, config, drawn_device, run_own};
use crate::common::oracle::{Layer, hidden_states};
use crate::common::routing::{finite_or_zero, sqrt_softplus};
use crate::common::{cases, device};
use fp8_moe::{
    Buffer, Device, Error, Forward, MoeConfig, MoeDeviceWeights, MoeLayer, OutputType, Quantization,
    RawForward, RawHidden, RawOutput, RawRouting, Result, Routing, SharedExpert, SharedKind, SharedMatrices,
    SharedWeights, Stream, TokenIds,
};
use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn routing(vocabulary: Option<usize>) -> Routing {
    Routing::SqrtSoftplus { renormalize: true, scaling_factor: 1.5, vocabulary }
}

/// A table `[V, k]` of experts, an expert at most once for a token id.
fn table(vocabulary: usize, experts: usize, k: usize, seed: u64) -> Vec<i32> {
    let mut source = StdRng::seed_from_u64(seed);
    let row = |_| rand::seq::index::sample(&mut source, experts, k).into_iter().map(|e| e as i32).collect();
    (0..vocabulary).map(row).collect::<Vec<Vec<i32>>>().concat()
}

/// The layer on a device; with `shared` its first expert is a shared one too.
fn layer(device: &Device, of: &Layer, table: &[i32], shared: bool) -> MoeLayer {
    let mut config = of.config.clone();
    let mut weights = of.weights(&config).token_experts(table);
    if shared {
        let expert = weights.experts[0].clone();
        let kind = SharedKind::Quantised(config.quantization);
        config.shared = Some(SharedExpert::new(config.intermediate_size, kind));
        weights =
            weights.shared(SharedWeights::new(SharedMatrices::Quantised { expert, input_scales: None }));
    }
    MoeLayer::new(device, &config, &weights).unwrap()
}

/// Output in f32, ids and weights of all slots.
type Ran = (Vec<f32>, Vec<i32>, Vec<f32>);

fn run(stream: &Stream, layer: &MoeLayer, hidden: &Buffer<bf16>, ids: TokenIds<'_>) -> Result<Ran> {
    let tokens = hidden.len() / layer.config().hidden_size;
    let mut workspace = layer.workspace(tokens)?;
    let mut out = stream.device().uninit::<f32>(hidden.len())?;
    layer.forward_with(stream, Forward::new(hidden, &mut workspace, &mut out).token_ids(ids))?;
    let (ids, weights) = workspace.routing(tokens)?;
    Ok((out.to_vec(stream)?, ids.to_vec(stream)?, weights.to_vec(stream)?))
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn is_the_routing_that_the_table_says(
        quantization in any_quantization(),
        tokens in 1usize..40,
        (experts, k) in (1usize..12).prop_flat_map(|experts| (Just(experts), 1..=experts)),
        vocabulary in 1usize..30,
        shared: bool,
        seed: u64,
    ) {
        let shared = shared && !quantization.is_static();
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let of = Layer::random(config(quantization, routing(Some(vocabulary)), [experts, k, 64, 48]), seed);
        let table = table(vocabulary, experts, k, seed);
        let layer = layer(&device, &of, &table, shared);
        let states = hidden_states(tokens * 64, seed ^ 1);
        let hidden = device.upload(&states).unwrap();
        let mut source = StdRng::seed_from_u64(seed ^ 2);
        // Some are no tokens of the vocabulary.
        let token_ids: Vec<i32> =
            (0..tokens).map(|_| source.random_range(-1..=vocabulary as i32)).collect();
        let on_device = device.upload(&token_ids).unwrap();
        let (out, ids, weights) = run(&stream, &layer, &hidden, (&on_device).into()).unwrap();

        let slots = layer.config().slots();
        let logits = of.logits(&states);
        for (t, logits) in logits.chunks(experts).enumerate() {
            let row = usize::try_from(token_ids[t]).ok().filter(|&id| id < vocabulary);
            let expected = row.map_or(vec![-1; k], |id| table[id * k..(id + 1) * k].to_vec());
            prop_assert_eq!(&ids[t * slots..][..k], &expected[..]);
            let of = |e: i32| finite_or_zero(sqrt_softplus(logits[e as usize] as f32));
            let score = |&e: &i32| if e < 0 { 0.0 } else { of(e) };
            let sum: f64 = expected.iter().map(score).sum();
            for (slot, expert) in expected.iter().enumerate() {
                let ours = f64::from(weights[t * slots + slot]);
                let weight = 1.5 * score(expert) / (sum + 1e-20);
                prop_assert!((ours - weight).abs() <= 1e-5 * weight, "{ours} instead of {weight}");
            }
        }
        // The same routing, given.
        let picked = |t: usize| t * slots..t * slots + k;
        let given_ids: Vec<i32> = (0..tokens).flat_map(|t| ids[picked(t)].to_vec()).collect();
        let given_weights: Vec<f32> = (0..tokens).flat_map(|t| weights[picked(t)].to_vec()).collect();
        let of_caller = (device.upload(&given_ids).unwrap(), device.upload(&given_weights).unwrap());
        let mut workspace = layer.workspace(tokens).unwrap();
        let mut given = device.uninit::<f32>(hidden.len()).unwrap();
        let (ids_of, weights_of) = (&of_caller.0, &of_caller.1);
        layer.forward_routed(&stream, &hidden, ids_of, weights_of, &mut workspace, &mut given).unwrap();
        prop_assert!(given.to_vec(&stream).unwrap() == out, "not the bits of the given routing");
        if let Some(t) = (0..tokens).find(|&t| !shared && ids[picked(t)].iter().all(|&id| id < 0)) {
            prop_assert!(out[t * 64..(t + 1) * 64].iter().all(|&y| y == 0.0), "no expert, no output");
        }
    }
}

/// Signed, unsigned and by address; and with a layer that chooses by score the ids change nothing.
#[test]
fn ids_of_all_kinds() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let of = Layer::random(config(Quantization::Block128, routing(Some(20)), [6, 2, 64, 48]), 3);
    let on_device = layer(&device, &of, &table(20, 6, 2, 4), false);
    let states = hidden_states(7 * 64, 5);
    let hidden = device.upload(&states).unwrap();
    let signed = device.upload(&[0_i32, 19, 3, 20, -1, 7, 7]).unwrap();
    let unsigned = device.upload(&[0_u32, 19, 3, 20, u32::MAX, 7, 7]).unwrap();
    let expected = run(&stream, &on_device, &hidden, (&signed).into()).unwrap();
    assert_eq!(run(&stream, &on_device, &hidden, (&unsigned).into()).unwrap(), expected);
    let bytes = on_device.workspace_bytes(7).unwrap();
    let workspace = device.uninit::<u8>(bytes).unwrap();
    let out = device.uninit::<f32>(7 * 64).unwrap();
    stream.synchronize().unwrap();
    let forward = RawForward {
        stream: stream.raw(),
        tokens: 7,
        hidden: RawHidden::Bf16(hidden.ptr().raw()),
        routing: RawRouting::ByToken { token_ids: unsigned.ptr().raw() },
        workspace: workspace.ptr().raw(),
        workspace_bytes: bytes,
        out: RawOutput { address: out.ptr().raw(), element: OutputType::F32, add: false },
    };
    // SAFETY: the buffers are as long as the call says, alive until `to_vec` has waited, and used by nothing
    // else.
    unsafe { on_device.forward_raw(forward) }.unwrap();
    assert_eq!(out.to_vec(&stream).unwrap(), expected.0);
    let odd = RawForward { routing: RawRouting::ByToken { token_ids: unsigned.ptr().raw() + 2 }, ..forward };
    // SAFETY: as above; it is refused before anything is enqueued.
    let refused = unsafe { on_device.forward_raw(odd) }.unwrap_err().to_string();
    assert!(refused.contains("token_ids") && refused.contains("must be a multiple of 4"), "{refused}");

    let by_score = of.config.to_builder().routing(routing(None)).build().unwrap();
    let by_score = MoeLayer::new(&device, &by_score, &of.weights(&by_score)).unwrap();
    let own = run_own(&stream, &by_score, &states).unwrap();
    assert_eq!(run(&stream, &by_score, &hidden, (&signed).into()).unwrap(), own);
}

fn refusal<T>(result: Result<T>) -> String {
    match result.err().expect("a refusal") {
        error @ Error::Argument { .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn refusals() {
    let device = device();
    let stream = device.default_stream();
    let of = Layer::random(config(Quantization::Block128, routing(Some(5)), [6, 2, 64, 48]), 3);
    let table = table(5, 6, 2, 4);
    let on_device = layer(&device, &of, &table, false);
    let hidden = device.upload(&hidden_states(3 * 64, 5)).unwrap();
    let (mut workspace, mut out) =
        (on_device.workspace(3).unwrap(), device.zeros::<f32>(hidden.len()).unwrap());
    assert_eq!(
        refusal(on_device.forward(&stream, &hidden, &mut workspace, &mut out)),
        "MoeLayer::forward: token_ids = None: must be given: this layer's router looks experts up by token id; or give a \
         routing"
    );
    let few = device.zeros::<i32>(2).unwrap();
    assert_eq!(
        refusal(run(&stream, &on_device, &hidden, (&few).into())),
        "MoeLayer::forward: token_ids = 2 elements: must have at least 3 elements"
    );
    let new = |config: &MoeConfig, table: Option<&[i32]>| {
        let weights = of.weights(config);
        let weights = match table {
            Some(table) => weights.token_experts(table),
            None => weights,
        };
        refusal(MoeLayer::new(&device, config, &weights))
    };
    assert_eq!(
        new(&of.config, None),
        "MoeLayer::new: token_experts = None: must be given: the config's routing looks experts up by token id"
    );
    assert_eq!(new(&of.config, Some(&table[1..])), "MoeLayer::new: token_experts = 9 elements: must have 10");
    let mut wrong = table.clone();
    wrong[7] = 6;
    assert_eq!(new(&of.config, Some(&wrong)), "MoeLayer::new: token_experts = 6: must be in 0..6");
    let softmax = of.config.to_builder().routing(Routing::Softmax { renormalize: true }).build().unwrap();
    assert_eq!(
        new(&softmax, Some(&table)),
        "MoeLayer::new: token_experts = Some: must be None for Softmax { renormalize: true }, which ignores it"
    );
    let refused = refusal(of.config.to_builder().routing(routing(Some(0))).build());
    assert_eq!(refused, format!("MoeConfig: vocabulary = 0: must be in 1..={}", i32::MAX / 2));
    let endless =
        Routing::SqrtSoftplus { renormalize: true, scaling_factor: f32::INFINITY, vocabulary: None };
    let refused = refusal(of.config.to_builder().routing(endless).build());
    assert_eq!(refused, "MoeConfig: scaling_factor = inf: must be finite");

    // On device memory that is there already, a table of any entries is taken, and read no further than it
    // is.
    let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&of.config);
    let zeros = |len| device.zeros(len).unwrap();
    let weights = || {
        let [w13, w2] = [w13, w2].map(|len| device.zeros(len).unwrap());
        MoeDeviceWeights::new(w13, zeros(w13_scale), w2, zeros(w2_scale))
            .router(device.zeros(6 * 64).unwrap())
    };
    assert!(refusal(MoeLayer::from_device(&device, &of.config, weights())).contains("token_experts = None"));
    let short = weights().token_experts(device.upload(&table[..9]).unwrap());
    assert!(refusal(MoeLayer::from_device(&device, &of.config, short)).contains("9 elements: must have 10"));
    let wild = weights().token_experts(device.upload(&[i32::MIN; 10]).unwrap());
    let wild = MoeLayer::from_device(&device, &of.config, wild).unwrap();
    let token_ids = device.upload(&[0_i32, 4, i32::MAX]).unwrap();
    let (out, ids, _) = run(&stream, &wild, &hidden, (&token_ids).into()).unwrap();
    assert!(out.iter().all(|&y| y == 0.0) && ids == [-1; 6], "{ids:?}");
}
