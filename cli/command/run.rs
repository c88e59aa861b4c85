//! `fp8-moe run`: one MoE layer on given or random hidden states.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fp8_moe::checkpoint::Values;
use fp8_moe::parallel::{Communicator, Placement};
use fp8_moe::{
    Checkpoint, Device, Error, Forward, IntermediateScales, MoeConfig, MoeLayer, Reduction, Result, Tuning,
};
use half::bf16;
use rand::{Rng, SeedableRng};
use safetensors::{Dtype, tensor::TensorView};

use crate::LayerArguments;
use crate::ranks;
use crate::{terminal, tune};

/// Arguments of `fp8-moe run`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A safetensors file, or a folder of them
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    #[command(flatten)]
    layer: LayerArguments,
    /// The hidden states [T, H]: a tensor of the checkpoint, or a safetensors file with a tensor
    /// `hidden_states`, and `token_ids` [T] where the layer looks experts up by them [default: the tensor
    /// io.hidden_states if there is one, else random]
    #[arg(long, value_name = "TENSOR|FILE", conflicts_with_all = ["tokens", "seed"])]
    input: Option<String>,
    /// Draw this many tokens at random, from the standard normal distribution
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Seed of the random tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What is fastest at which shape, as `fp8-moe tune` has written it [default: on an H200]
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// How expert outputs are added up: deterministic, or order-free (by GEMM 2, in any order; on Hopper)
    #[arg(long, value_name = "HOW", default_value = "deterministic")]
    reduction: String,
    /// Spread the experts over so many ranks: a process and a GPU each, or threads over the device that
    /// --device names. Tokens are dealt out to them
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Write hidden_states f32 [T, H], topk_ids i64 [T, k] and topk_weights f32 [T, k] here
    #[arg(long, value_name = "OUT.safetensors")]
    output: Option<PathBuf>,
}

/// What a layer made of some tokens.
pub struct Output {
    /// f32 `[T, H]`.
    pub hidden_states: Vec<f32>,
    /// `[T, k]`.
    pub topk_ids: Vec<i64>,
    /// `[T, k]`.
    pub topk_weights: Vec<f32>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let reduction: Reduction = arguments.reduction.parse()?;
    let tuning = tune::read(arguments.tuning.as_deref())?;
    let checkpoint = arguments.layer.open(&arguments.checkpoint)?;
    let input = input(arguments, &checkpoint)?;
    terminal::try_output(arguments.output.as_deref())?;
    if let Some(count) = arguments.ranks {
        return ranks::start(count, arguments.layer.device, |communicator| {
            on_a_rank(arguments, &checkpoint, &input, (reduction, tuning.clone()), communicator)
        });
    }
    let device = terminal::open_device(arguments.layer.device)?;
    let (_, layer) = terminal::load_layer(
        &checkpoint,
        &device,
        arguments.layer.layer.as_deref(),
        IntermediateScales::default(),
        reduction,
    )?;
    let layer = layer.tuned(tuning)?;
    let width = layer.config().hidden_size;
    if let Input::Random { tokens } = input {
        require_memory(&layer, &device, tokens)?;
    }
    let token_ids = token_ids(arguments, &checkpoint, layer.config().vocabulary(), &input)?;
    let hidden = match input {
        Input::States(states) => states,
        Input::Random { tokens } => random(tokens * width, arguments.seed),
    };
    let started = Instant::now();
    let output = forward(&layer, &device, &hidden, token_ids.as_deref())?;
    let (tokens, seconds) = (hidden.len() / width, started.elapsed().as_secs_f64());
    eprintln!("done     {tokens} tokens in {seconds:.3} s");
    show(arguments, layer.config(), &output)
}

/// Runs a rank's part of the layer; rank 0 shows the result of all.
fn on_a_rank(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    input: &Input,
    (reduction, tuning): (Reduction, Tuning),
    communicator: Arc<dyn Communicator>,
) -> Result<()> {
    let (rank, size) = (communicator.rank(), communicator.size());
    let prefix = checkpoint.find_layer(arguments.layer.layer.as_deref())?;
    let whole = checkpoint.layer_config(&prefix)?.to_builder().reduction(reduction).tuning(tuning).build()?;
    if whole.vocabulary().is_some() {
        let rule = "must be left out: ranks do not look experts up by token id";
        return Err(Error::argument("run", "--ranks", size, rule));
    }
    let placement = Placement::linear(whole.experts, size)?;
    if rank == 0 {
        let model_type = &checkpoint.config().model_type;
        eprintln!("layer    {}", terminal::describe_layer(&prefix, model_type, &whole));
    }
    // The bytes of its own experts alone.
    let config = placement.config(&whole, rank);
    let abort = communicator.abort_handle();
    let layer = checkpoint
        .load_layer_with(communicator.device(), &prefix, &config, &|_| {})
        .inspect_err(|error| abort.abort(format!("could not load its part of the layer: {error}")))?;
    let drawn;
    let hidden = match input {
        Input::States(states) => states,
        Input::Random { tokens } => {
            drawn = random(tokens * whole.hidden_size, arguments.seed);
            &drawn
        }
    };
    let started = Instant::now();
    let Some(output) = ranks::run::forward(layer, placement, communicator, hidden)? else { return Ok(()) };
    let (tokens, seconds) = (hidden.len() / whole.hidden_size, started.elapsed().as_secs_f64());
    eprintln!("done     {tokens} tokens on {size} ranks in {seconds:.3} s");
    show(arguments, &whole, &output)
}

/// Writes an output to the file that the arguments name, or shows some of it.
fn show(arguments: &Arguments, config: &MoeConfig, output: &Output) -> Result<()> {
    match &arguments.output {
        Some(path) => {
            write(path, config, output)?;
            eprintln!("wrote    {}", path.display());
        }
        None => summarize(config, output),
    }
    Ok(())
}

/// Runs a layer on hidden states `[T, H]`, with token ids `[T]` where it looks experts up by them, and reads
/// everything back.
pub fn forward(
    layer: &MoeLayer,
    device: &Device,
    hidden: &[bf16],
    token_ids: Option<&[i32]>,
) -> Result<Output> {
    let config = layer.config();
    let tokens = hidden.len() / config.hidden_size;
    let stream = device.default_stream();
    let hidden = device.upload(hidden)?;
    let token_ids = token_ids.map(|ids| device.upload(ids)).transpose()?;
    let mut workspace = layer.workspace(tokens)?;
    let mut out = device.uninit::<f32>(tokens * config.hidden_size)?;
    terminal::watch(device, tokens, |observe| {
        let forward = Forward::new(&hidden, &mut workspace, &mut out).observed(observe);
        let forward = match &token_ids {
            Some(ids) => forward.token_ids(ids),
            None => forward,
        };
        layer.forward_with(&stream, forward)?;
        stream.synchronize()
    })?;
    let (topk_ids, topk_weights) = workspace.routing(tokens)?;
    let (topk_ids, topk_weights) = (topk_ids.to_vec(&stream)?, topk_weights.to_vec(&stream)?);
    let (slots, top_k) = (config.slots(), config.top_k);
    Ok(Output {
        topk_ids: picked(&topk_ids, slots, top_k).map(i64::from).collect(),
        topk_weights: picked(&topk_weights, slots, top_k).collect(),
        hidden_states: out.to_vec(&stream)?,
    })
}

/// The slots of every token that the router picked, without those of a shared expert behind them.
fn picked<T: Copy>(all: &[T], slots: usize, top_k: usize) -> impl Iterator<Item = T> {
    all.chunks(slots).flat_map(move |token| token[..top_k].iter().copied())
}

/// The hidden states that the arguments ask for.
enum Input {
    /// `[T, H]`, read from a file.
    States(Vec<bf16>),
    /// To be drawn.
    Random { tokens: usize },
}

const STATES_IN_CHECKPOINT: &str = "io.hidden_states";
const IDS_IN_CHECKPOINT: &str = "io.token_ids";

/// The token ids of the input, for a layer of a vocabulary: from where the hidden states are, or drawn.
fn token_ids(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    vocabulary: Option<usize>,
    input: &Input,
) -> Result<Option<Vec<i32>>> {
    let Some(vocabulary) = vocabulary else { return Ok(None) };
    let tokens = match input {
        Input::States(states) => states.len() / checkpoint.config().moe.hidden_size,
        Input::Random { tokens } => {
            let mut source = rand_chacha::ChaCha8Rng::seed_from_u64(arguments.seed);
            return Ok(Some((0..*tokens).map(|_| source.random_range(0..vocabulary as i32)).collect()));
        }
    };
    match &arguments.input {
        Some(file) if !checkpoint.has(file) => {
            let (file, name) = (Path::new(file), "token_ids");
            let ids = fp8_moe::checkpoint::read_integers(file, name)?;
            to_token_ids(file, name, ids, tokens, vocabulary).map(Some)
        }
        _ => token_ids_in(checkpoint, vocabulary, tokens).map(Some),
    }
}

/// The token ids `[T]` that a fixture has.
pub fn token_ids_in(checkpoint: &Checkpoint, vocabulary: usize, tokens: usize) -> Result<Vec<i32>> {
    let ids = checkpoint.integers(IDS_IN_CHECKPOINT)?;
    to_token_ids(checkpoint.path(), IDS_IN_CHECKPOINT, ids, tokens, vocabulary)
}

fn to_token_ids(
    file: &Path,
    name: &str,
    ids: Values<i64>,
    tokens: usize,
    vocabulary: usize,
) -> Result<Vec<i32>> {
    let refuse = |what: String| Err(Error::checkpoint(file, format!("{name}: {what}")));
    if ids.shape != [tokens] {
        return refuse(format!("has shape {:?}; [{tokens}] is expected", ids.shape));
    }
    if let Some(id) = ids.data.iter().find(|id| !(0..vocabulary as i64).contains(id)) {
        return refuse(format!("has the token id {id}; it must be in 0..{vocabulary}"));
    }
    Ok(ids.data.into_iter().map(|id| id as i32).collect())
}

/// Reads the hidden states, or checks how many are to be drawn: `T * k` rows must be countable in i32.
fn input(arguments: &Arguments, checkpoint: &Checkpoint) -> Result<Input> {
    match &arguments.input {
        Some(name) if checkpoint.has(name) => hidden_states(checkpoint, name).map(Input::States),
        Some(file) if Path::new(file).exists() => {
            let width = checkpoint.config().moe.hidden_size;
            let (shape, data) = fp8_moe::checkpoint::read_floats(Path::new(file), "hidden_states")?;
            to_bf16(Path::new(file), "hidden_states", &shape, data, width).map(Input::States)
        }
        Some(neither) => Err(Error::checkpoint(
            checkpoint.path(),
            format!("--input {neither}: neither a tensor of the checkpoint nor a file"),
        )),
        None if arguments.tokens.is_none() && checkpoint.has(STATES_IN_CHECKPOINT) => {
            hidden_states(checkpoint, STATES_IN_CHECKPOINT).map(Input::States)
        }
        None => {
            let (tokens, top_k) = (arguments.tokens.unwrap_or(16), checkpoint.config().moe.top_k);
            let most = i32::MAX as usize / top_k.max(1);
            if tokens > most {
                let rule = format!("must be at most {most} with top_k {top_k}: rows are counted in i32");
                return Err(Error::argument("run", "--tokens", tokens, rule));
            }
            Ok(Input::Random { tokens })
        }
    }
}

/// Refuses more tokens than the device has memory for: hidden states in bf16, the workspace, the output in
/// f32.
fn require_memory(layer: &MoeLayer, device: &Device, tokens: usize) -> Result<()> {
    let needed = layer.workspace_bytes(tokens)? as u64 + (tokens * layer.config().hidden_size * 6) as u64;
    let free = device.free_memory_bytes()?;
    if needed > free {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let rule = format!("takes {:.1} GiB; {device} has {:.1} GiB free", gib(needed), gib(free));
        return Err(Error::argument("run", "--tokens", tokens, rule));
    }
    Ok(())
}

/// The tensor `name` of a checkpoint as hidden states.
pub fn hidden_states(checkpoint: &Checkpoint, name: &str) -> Result<Vec<bf16>> {
    let values = checkpoint.floats(name)?;
    to_bf16(checkpoint.path(), name, &values.shape, values.data, checkpoint.config().moe.hidden_size)
}

fn to_bf16(file: &Path, name: &str, shape: &[usize], data: Vec<f32>, width: usize) -> Result<Vec<bf16>> {
    if shape.len() != 2 || shape[1] != width {
        return Err(Error::checkpoint(
            file,
            format!("{name}: has shape {shape:?}; [T, {width}] is expected"),
        ));
    }
    Ok(data.into_iter().map(bf16::from_f32).collect())
}

/// Standard normal numbers, by the Box-Muller transform.
fn random(len: usize, seed: u64) -> Vec<bf16> {
    let mut source = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut normal = || {
        let (u, v): (f32, f32) = (source.random(), source.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    };
    (0..len).map(|_| bf16::from_f32(normal())).collect()
}

/// Writes the output as safetensors.
fn write(path: &Path, config: &MoeConfig, output: &Output) -> Result<()> {
    let tokens = output.hidden_states.len() / config.hidden_size;
    let view = |dtype, columns, bytes| {
        TensorView::new(dtype, vec![tokens, columns], bytes)
            .map_err(|e| Error::checkpoint(path, e.to_string()))
    };
    let tensors = [
        ("hidden_states", view(Dtype::F32, config.hidden_size, bytemuck::cast_slice(&output.hidden_states))?),
        ("topk_ids", view(Dtype::I64, config.top_k, bytemuck::cast_slice(&output.topk_ids))?),
        ("topk_weights", view(Dtype::F32, config.top_k, bytemuck::cast_slice(&output.topk_weights))?),
    ];
    let bytes = safetensors::serialize(tensors, None).map_err(|e| Error::checkpoint(path, e.to_string()))?;
    std::fs::write(path, bytes).map_err(|e| Error::io(path, e))
}

/// Shows the first tokens' routing and outputs.
fn summarize(config: &MoeConfig, output: &Output) {
    let rows = output.hidden_states.chunks(config.hidden_size);
    let routing = output.topk_ids.chunks(config.top_k).zip(output.topk_weights.chunks(config.top_k));
    for (token, (row, (ids, weights))) in rows.zip(routing).enumerate().take(4) {
        let routing: Vec<_> =
            ids.iter().zip(weights).map(|(id, weight)| format!("{id} ({weight:.3})")).collect();
        let first: Vec<_> = row.iter().take(4).map(|x| format!("{x:+.4}")).collect();
        println!("token {token}: experts {}; hidden states {} ...", routing.join(", "), first.join(" "));
    }
    println!("nothing written; --output OUT.safetensors writes all of it");
}
