//! The kernels of a forward: loaded together before the first that needs them.
//!
//! ```text
//!   first forward of a class:   rehearsal (which kernels?) ─▶ [ load | load | load | load ] ─▶ the forward
//!   later ones:                                                                                the forward
//! ```
//!
//! A rehearsal is the forward itself, on a stream that notes kernels and runs nothing. So the list cannot
//! miss one.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::Result;
use super::call::{Output, Request};
use crate::config::MoeConfig;
use crate::gpu::device::Device;
use crate::gpu::launch::KernelText;
use crate::gpu::stream::Stream;
use crate::plan::router::RouterLogitsPath;
use crate::plan::{Plan, SharedPlan};

/// What decides, beside the layer itself, which kernels a forward takes. Should it miss something, the
/// kernels that differ are loaded one by one, at their first launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// Rows of the GEMMs' tiles; none where the layer is one launch.
    block_m: Option<usize>,
    /// The router's kernel; none where the routing is given.
    router: Option<RouterLogitsPath>,
    /// The types of hidden states and output.
    types: [&'static str; 2],
    /// Whether the output is added to.
    adds: bool,
    /// Of a shared expert: the router's kernels, which multiply for it, and the rows of its tiles where it
    /// is a layer of its own.
    shared: Option<([RouterLogitsPath; 3], Option<usize>)>,
}

impl Class {
    /// Of a forward by `plan`.
    pub fn of(request: &Request<'_>, plan: &Plan, config: &MoeConfig) -> Class {
        let router = request.routed.is_none().then_some(plan.router);
        let (Output::Write(out) | Output::Add(out)) = &request.out;
        let adds = matches!(request.out, Output::Add(_));
        let types = [request.hidden.type_name(), out.as_activations().type_name()];
        let beside = match &plan.shared {
            SharedPlan::Layer(plan) => Some(plan.block_m),
            SharedPlan::None | SharedPlan::Bf16 => None,
        };
        let shared = config.shared.map(|shared| {
            let columns = [config.halves() * shared.intermediate_size, 1, config.hidden_size];
            let of = |columns| RouterLogitsPath::Auto.resolve(plan.tokens(), columns, &config.tuning);
            (columns.map(of), beside)
        });
        let is_one_launch = plan.few_tokens.is_some() && request.is_aligned();
        let block_m = (!is_one_launch).then_some(plan.block_m);
        Class { block_m, router, types, adds, shared }
    }
}

/// The classes of forwards whose kernels have been loaded.
#[derive(Default)]
pub(super) struct Loaded {
    classes: Mutex<HashSet<Class>>,
}

impl Loaded {
    /// Loads what forwards of `class` need, where that has not been done; `forward` enqueues one. The lock is
    /// not held meanwhile: two threads may do it at the same time, and the second finds all kernels loaded.
    pub fn ensure(
        &self,
        device: &Device,
        class: Class,
        forward: impl FnOnce(&Stream) -> Result<()>,
    ) -> Result<()> {
        if self.classes.lock().unwrap_or_else(PoisonError::into_inner).contains(&class) {
            return Ok(());
        }
        device.load(&rehearse(device, forward)?)?;
        self.classes.lock().unwrap_or_else(PoisonError::into_inner).insert(class);
        Ok(())
    }
}

/// The kernels that `forward` launches.
fn rehearse(device: &Device, forward: impl FnOnce(&Stream) -> Result<()>) -> Result<Vec<KernelText>> {
    let stream = Stream::rehearsal(device);
    forward(&stream)?;
    Ok(stream.rehearsed())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use half::{bf16, f16};

    use super::super::step::Call;
    use super::super::{MoeDeviceWeights, MoeLayer, Quantization, Routing, WeightLayout};
    use super::{Class, MoeConfig, Output, Request, rehearse};
    use crate::layer::call::Routed;
    use crate::layer::{Forward, IntermediateScales, OutputElement};
    use crate::{Device, Family};

    /// Device handles of every family, which have loaded nothing.
    fn devices() -> Vec<Device> {
        let best = Device::for_test(None);
        let older = Family::ALL.into_iter().filter(|&family| family < best.family());
        let older: Vec<_> = older.map(|family| Device::for_test(Some(family))).collect();
        [vec![best], older].concat()
    }

    /// A layer of zeros for each way to quantise.
    fn layers(device: &Device, layout: WeightLayout) -> Vec<MoeLayer> {
        let schemes = [
            (Quantization::TensorStatic, IntermediateScales::Group128),
            (Quantization::ChannelToken, IntermediateScales::Group128),
            (Quantization::ChannelToken, IntermediateScales::Token),
            (Quantization::Block128, IntermediateScales::Group128),
        ];
        let layer = |(quantization, intermediate_scales)| {
            let routing = Routing::Softmax { renormalize: true };
            let sizes = MoeConfig {
                hidden_size: 128,
                intermediate_size: 128,
                experts: 2,
                top_k: 1,
                ..Default::default()
            };
            let config = MoeConfig { routing, quantization, intermediate_scales, ..sizes };
            let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&config);
            let [w13_scale, w2_scale] = [w13_scale, w2_scale].map(|len| device.zeros(len).expect("memory"));
            let [w13, w2] = [w13, w2].map(|len| device.zeros(len).expect("memory"));
            let weights = MoeDeviceWeights::new(w13, w13_scale, w2, w2_scale);
            let mut weights = weights.router(device.zeros(2 * 128).expect("memory")).layout(layout);
            weights.input_scales = quantization.is_static().then_some([1.0, 1.0]);
            MoeLayer::from_device(device, &config, weights).expect("a layer")
        };
        schemes.map(layer).into()
    }

    /// The class of a forward and the kernels that it launches, in order.
    fn rehearsed<O: OutputElement>(
        layer: &MoeLayer,
        tokens: usize,
        is_routed: bool,
    ) -> (Class, Vec<&'static str>) {
        let (device, config) = (layer.device(), layer.config());
        let hidden = device.uninit::<bf16>(tokens * config.hidden_size).expect("memory");
        let mut out = device.uninit::<O>(tokens * config.hidden_size).expect("memory");
        let bytes = layer.workspace_bytes(tokens).expect("few tokens");
        let mut workspace = device.uninit(bytes).expect("memory");
        let (ids, weights) = (device.uninit(tokens).expect("memory"), device.uninit(tokens).expect("memory"));
        let routed = Routed { topk_ids: ids.as_slice(), topk_weights: weights.as_slice() };
        let plan = layer.plan(tokens).expect("a plan");
        let call = Call { config, weights: layer.weights(), plan: &plan, observe: None };
        let mut request = Request {
            hidden: hidden.as_slice().into(),
            routed: is_routed.then_some(routed),
            token_ids: None,
            workspace: workspace.as_mut_slice(),
            control: None,
            out: Output::Write(O::erase(out.as_mut_slice())),
            observe: None,
            is_weighed: false,
        };
        let kernels = rehearse(device, |stream| call.enqueue(stream, request.reborrow()));
        let kernels = kernels.expect("a rehearsal").into_iter().map(|kernel| kernel.name).collect();
        (Class::of(&request, &plan, config), kernels)
    }

    #[test]
    fn forwards_of_a_class_take_the_same_kernels() {
        for layer in devices().iter().flat_map(|device| layers(device, WeightLayout::Checkpoint)) {
            let mut known = HashMap::new();
            for tokens in (1..=130).chain([200, 512, 513, 1000, 4096, 5000]) {
                for is_routed in [false, true] {
                    let forwards = [
                        rehearsed::<bf16>(&layer, tokens, is_routed),
                        rehearsed::<f16>(&layer, tokens, is_routed),
                        rehearsed::<f32>(&layer, tokens, is_routed),
                    ];
                    for (class, kernels) in forwards {
                        let first = known.entry(class).or_insert_with(|| kernels.clone());
                        assert_eq!(*first, kernels, "{:?}, {tokens} tokens: {class:?}", layer.config());
                    }
                }
            }
            assert!(known.len() > 12, "{known:?}");
            assert!(layer.device().loaded_kernels().is_empty(), "a rehearsal loads nothing");
        }
    }

    /// Layers as most models have them take the entry that has the least to compile.
    #[test]
    fn usual_forwards_have_an_entry_of_their_own() {
        let device = Device::for_test(None);
        if device.family() != Family::Sm90a {
            return;
        }
        for layer in layers(&device, WeightLayout::Packed) {
            let usual = match layer.config() {
                // Packed as the kernels do not read it.
                MoeConfig { intermediate_scales: IntermediateScales::Token, .. } => continue,
                MoeConfig { quantization: Quantization::Block128, .. } => "few_tokens_packed_block",
                MoeConfig { quantization: Quantization::ChannelToken, .. } => "few_tokens_packed_token",
                _ => "few_tokens_packed",
            };
            assert_eq!(rehearsed::<bf16>(&layer, 1, true).1, [usual], "{:?}", layer.config());
            assert_eq!(rehearsed::<f32>(&layer, 1, true).1, ["few_tokens_packed"], "{:?}", layer.config());
        }
    }

    /// What a forward launches is what its rehearsal said: it is there before the first operation, and no
    /// launch loads another.
    #[test]
    fn forwards_load_what_was_rehearsed_and_nothing_else() {
        for device in devices() {
            for layer in layers(&device, WeightLayout::Checkpoint) {
                for tokens in [1, 150] {
                    let (_, mut kernels) = rehearsed::<f32>(&layer, tokens, false);
                    kernels.extend(device.loaded_kernels());
                    kernels.sort_unstable();
                    kernels.dedup();
                    let stream = device.default_stream();
                    let hidden = device.zeros::<bf16>(tokens * 128).expect("memory");
                    let mut out = device.zeros::<f32>(tokens * 128).expect("memory");
                    let mut workspace = layer.workspace(tokens).expect("memory");
                    let check = || {
                        assert_eq!(device.loaded_kernels(), kernels, "{:?}, {tokens} tokens", layer.config())
                    };
                    let observe = |_| check();
                    let forward = Forward::new(&hidden, &mut workspace, &mut out).observed(&observe);
                    layer.forward_with(&stream, forward).expect("a forward");
                    check();
                }
            }
        }
    }
}
