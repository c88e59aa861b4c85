//! What the arguments ask for: cases of a model and a scheme, with their batches.

use std::fmt;

use fp8_moe::ops::grouped_gemm::Path;
use fp8_moe::{Accumulation, Device, Error, Gather, MoeConfig, Reduction, Result};
use fp8_moe_cli::{
    Load, MODELS, Memory, Model, Part, Routed, RoutingKind, Scheme, Shape, Work, sets_to_outgrow_cache,
};

use super::Arguments;
use crate::{ranks, tune};

/// A model with a scheme: what shares its weights.
pub struct Case {
    /// Its name, or `custom`.
    pub model: String,
    pub shape: Shape,
    pub scheme: Scheme,
    pub routing: RoutingKind,
    /// The rank that is measured.
    pub config: MoeConfig,
    pub batches: Vec<Batch>,
    /// Ranks that the intermediate size is divided among.
    pub tp: usize,
    /// Ranks that the experts are divided among.
    pub ep: usize,
}

/// A number of tokens with their routing.
pub struct Batch {
    pub tokens: usize,
    pub routed: Routed,
    pub load: Load,
}

/// Batch sizes where the arguments name none.
const BATCHES: &[usize] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
/// The same on the emulated device.
const EMULATED_BATCHES: &[usize] = &[1, 8];

/// The cases that the arguments ask for.
pub fn cases(arguments: &Arguments, emulated: bool) -> Result<Vec<Case>> {
    let batches = match &arguments.tokens[..] {
        [] if emulated => EMULATED_BATCHES,
        [] => BATCHES,
        given => given,
    };
    let models = match &arguments.shape {
        Some(shape) => vec![Model { name: "custom", shape: shape.parse()?, tp: 1, ep: 1 }],
        None if arguments.model.iter().any(|name| name == "all") => MODELS.to_vec(),
        None => arguments.model.iter().map(|name| Model::named(name)).collect::<Result<Vec<_>>>()?,
    };
    let schemes = arguments.scheme.iter().map(|name| name.parse()).collect::<Result<Vec<Scheme>>>()?;
    let routing: RoutingKind = arguments.routing.parse()?;
    if let Some(&tokens) = batches.iter().find(|tokens| !(1..1 << 24).contains(*tokens)) {
        return Err(Error::argument("bench", "tokens", tokens, "must be in 1..2^24"));
    }
    let accumulation = accumulation(&arguments.accumulation)?;
    if accumulation == Some(Accumulation::Fast) && schemes.contains(&Scheme::Block) {
        let rule = "must not go with scheme block, whose scales are applied every 128 of K";
        return Err(Error::argument("bench", "accumulation", "fast", rule));
    }
    let reduction: Reduction = arguments.reduction.parse()?;
    let gather = gather(&arguments.gather)?;
    let path = path(&arguments.path)?;
    let tuning = tune::read(arguments.tuning.as_deref())?;
    let mut cases = Vec::new();
    for &Model { name, shape, tp, ep } in &models {
        let (tp, ep) = (tp.saturating_mul(arguments.tp), ep.saturating_mul(arguments.ep));
        for &scheme in &schemes {
            let config = shape.config(scheme, tp, ep)?;
            let accumulation = accumulation.unwrap_or(config.accumulation);
            let config = config.to_builder().accumulation(accumulation).reduction(reduction);
            let config = config.gather(gather).path(path).tuning(tuning.clone()).build()?;
            let batches = batches
                .iter()
                .map(|&tokens| {
                    let routed = routing.draw(tokens, shape.experts, shape.top_k, arguments.seed)?;
                    let load = Load::new(&config, &routed);
                    Ok(Batch { tokens, routed, load })
                })
                .collect::<Result<Vec<_>>>()?;
            let (model, routing) = (name.to_owned(), routing.clone());
            cases.push(Case { model, shape, scheme, routing, config, batches, tp, ep });
        }
    }
    Ok(cases)
}

/// The cases of `--ranks`: every model with every scheme, at all batch sizes.
pub fn cases_over_ranks(arguments: &Arguments) -> Result<Vec<ranks::bench::Case>> {
    let whole = cases(arguments, false)?;
    let of_case = |case: Case| {
        let Case { model, shape, scheme, routing, config, batches, .. } = case;
        let tokens = batches.iter().map(|batch| batch.tokens).collect();
        ranks::bench::Case { model, shape, scheme, routing, config, tokens, seed: arguments.seed }
    };
    Ok(whole.into_iter().map(of_case).collect())
}

/// The accumulation that an argument asks for; none where the layer's default is wanted.
fn accumulation(name: &str) -> Result<Option<Accumulation>> {
    match name {
        "auto" => Ok(None),
        "fast" => Ok(Some(Accumulation::Fast)),
        "promoted" => Ok(Some(Accumulation::Promoted)),
        _ => Err(Error::argument("bench", "accumulation", name, "must be auto, fast or promoted")),
    }
}

/// When to gather, by the names that the command line has.
fn gather(name: &str) -> Result<Gather> {
    match name {
        "auto" => Ok(Gather::Auto),
        "always" => Ok(Gather::Always),
        "never" => Ok(Gather::Never),
        _ => Err(Error::argument("bench", "gather", name, "must be auto, always or never")),
    }
}

/// Kernels, by the names that the command line has.
fn path(name: &str) -> Result<Path> {
    match name {
        "auto" => Ok(Path::Auto),
        "one-launch" => Ok(Path::OneLaunch),
        "hopper" => Ok(Path::Hopper { blocks: None }),
        "portable" => Ok(Path::Portable { blocks: None }),
        _ => Err(Error::argument("bench", "path", name, "must be auto, one-launch, hopper or portable")),
    }
}

/// The name of an accumulation.
pub fn accumulation_name(accumulation: Accumulation) -> &'static str {
    if accumulation == Accumulation::Fast { "fast" } else { "promoted" }
}

/// The parts that the arguments ask for, the layer first.
pub fn parts(names: &[String]) -> Result<Vec<Part>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Part::ALL.to_vec());
    }
    let mut parts = names.iter().map(|name| name.parse()).collect::<Result<Vec<Part>>>()?;
    parts.sort_unstable();
    parts.dedup();
    Ok(parts)
}

impl Case {
    /// E, k, H, I.
    pub fn shape_array(&self) -> [usize; 4] {
        let Shape { experts, top_k, hidden, intermediate } = self.shape;
        [experts, top_k, hidden, intermediate]
    }

    /// By local expert, whether a batch touches it.
    pub fn active(&self) -> Vec<bool> {
        let mut active = vec![false; self.config.local_count()];
        for batch in &self.batches {
            active.iter_mut().zip(&batch.load.active).for_each(|(any, this)| *any |= this);
        }
        active
    }

    /// Layers that must take turns in a batch so that its weights are not found in the L2 cache; the emulated
    /// device has none.
    pub fn turns(&self, batch: &Batch, device: &Device) -> usize {
        if device.is_emulated() {
            return 1;
        }
        sets_to_outgrow_cache(device.l2_bytes(), Work::weight_bytes(&self.config, &batch.load))
    }

    /// How many layers are wanted, and how many of them fit into `free` bytes besides the largest batch; an
    /// error if not one does.
    pub fn sets(&self, device: &Device, free: u64) -> Result<(usize, usize)> {
        let wanted = self.batches.iter().map(|batch| self.turns(batch, device)).max().unwrap_or(1);
        let tokens = self.batches.iter().map(|batch| batch.tokens).max().unwrap_or(0);
        let memory = Memory::new(device, &self.config, tokens)?;
        Ok((wanted, memory.sets(device, free, tokens, wanted)?))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { experts, top_k, hidden, intermediate } = self.shape;
        let is_order_free = self.config.reduction == Reduction::OrderFree;
        let reduction = if is_order_free { ", order-free reduction" } else { "" };
        write!(
            f,
            "{} [{experts}, {top_k}, {hidden}, {intermediate}], tp {}, ep {}, {}, {} sums{}, {} routing",
            self.model,
            self.tp,
            self.ep,
            self.scheme,
            accumulation_name(self.config.accumulation),
            reduction,
            self.routing
        )
    }
}
