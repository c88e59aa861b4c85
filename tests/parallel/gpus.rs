//! On two GPUs, over NCCL itself. Ignored where they are not asked for; `FP8_MOE_DEVICE=cuda:0` and two GPUs.
//!
//! ```text
//! FP8_MOE_DEVICE=cuda:0 cargo test --release --test parallel -- --ignored gpus --test-threads 1
//! ```

use std::ffi::c_int;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cust::{Context, Driver};
use fp8_moe::parallel::nccl::sys::{ncclComm_t, ncclResult_t, ncclSuccess, ncclUniqueId};
use fp8_moe::parallel::nccl::{Library, Nccl};
use fp8_moe::parallel::{
    Batch, Communicator, InProcess, Limits, ParallelGraph, Peers, Placement, Rendezvous, TensorParallel,
};
use fp8_moe::{Device, Error, MoeConfig, Quantization, Result, Routing, Stream};
use half::bf16;

use crate::common::layers::{Poison, Skew, config, random_routing};
use crate::common::oracle;
use crate::group::{Case, Tokens, limits};
use crate::shares::assert_shares_inside_experts_across;
use crate::start::meeting;

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };

/// Whether there are two GPUs, which the tests say where there are not.
fn are_there() -> bool {
    let are = Driver::cuda().is_ok_and(|driver| driver.device_count().is_ok_and(|count| count >= 2));
    if !are {
        eprintln!("skipped: there are no two GPUs");
    }
    are
}

/// GPU number `rank`.
fn gpu(rank: usize) -> Device {
    Device::open(format!("cuda:{rank}").parse().expect("a GPU")).expect("a GPU for each rank")
}

/// Runs `work` on every rank over NCCL, a thread and a GPU to a rank.
fn on_gpus<T: Send>(
    ranks: usize,
    limits: Limits,
    work: impl Fn(usize, Arc<dyn Communicator>) -> T + Sync,
) -> Vec<T> {
    let places = meeting(ranks, limits);
    std::thread::scope(|scope| {
        let work = &work;
        let start = |(rank, place)| {
            scope.spawn(move || {
                let peers = Peers::join(&place).expect("peers");
                let communicator = Nccl::connect(&gpu(rank), peers).unwrap_or_else(|error| panic!("{error}"));
                work(rank, Arc::new(communicator))
            })
        };
        let threads: Vec<_> = places.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// What NCCL carries is what device copies carry: every scheme, placements with replicas, empty ranks,
/// chunks.
#[test]
#[ignore = "takes two GPUs"]
fn nccl_equals_in_process() {
    if !are_there() {
        return;
    }
    println!("{:?}", Library::load().expect("NCCL"));
    let sizes = |quantization| config(quantization, SOFTMAX, [16, 4, 1024, 512]);
    let mut cases = Vec::new();
    for quantization in [Quantization::TensorStatic, Quantization::ChannelToken, Quantization::Block128] {
        cases.push(Case::new(sizes(quantization), &[70, 200], Skew::Invalid, 1));
        cases.push(Case::new(sizes(quantization), &[0, 5], Skew::Steep, 2));
        cases.push(Case::new(sizes(quantization), &[1, 1], Skew::Uniform, 3));
    }
    let weighs = config(Quantization::ChannelToken, Routing::SigmoidInput, [16, 1, 1024, 512]);
    cases.push(Case::new(weighs, &[30, 33], Skew::Uniform, 4));
    let lists = vec![(0..10).collect(), (4..16).collect()];
    let replicas = Placement::from_lists(16, lists).expect("all experts");
    cases.push(Case::new(sizes(Quantization::Block128), &[64, 17], Skew::Uniform, 5).placed(replicas));
    let mut chunks = Case::new(sizes(Quantization::Block128), &[100, 37], Skew::Uniform, 6);
    chunks.options.chunk = Some(32);
    cases.push(chunks);
    for (index, case) in cases.iter().enumerate() {
        let poison = Poison::Byte(0xff);
        let outputs = on_gpus(2, limits(), |rank, communicator| case.run(rank, communicator, poison));
        for (rank, (output, expected)) in outputs.into_iter().zip(case.expected()).enumerate() {
            let output = output.unwrap_or_else(|error| panic!("case {index}, rank {rank}: {error}"));
            let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&output) == bits(&expected), "case {index}, rank {rank}: other bits");
        }
    }
}

/// Sums of shares: in f32, NCCL's order on two ranks is the only one there is.
#[test]
#[ignore = "takes two GPUs"]
fn sums_over_nccl() {
    if !are_there() {
        return;
    }
    let config = config(Quantization::Block128, SOFTMAX, [8, 2, 512, 256]);
    let case = Case::new(config, &[33, 33], Skew::Uniform, 9);
    let Tokens { hidden, ids, weights } = &case.tokens[0];
    let outputs = on_gpus(2, limits(), |rank, communicator| {
        let device = communicator.device().clone();
        let share = fp8_moe::parallel::TensorShare::new(case.config(), rank, 2).expect("a share");
        let of_share = share.weights(&case.layer.weights(case.config())).expect("weights");
        let layer =
            fp8_moe::MoeLayer::new(&device, &share.config(case.config()), &of_share).expect("a layer");
        let stream = Stream::new(&device).expect("a stream");
        let mut workspace = layer.workspace(33).expect("memory");
        let hidden = device.upload(hidden).expect("memory");
        let (ids, weights) = (device.upload(ids).expect("memory"), device.upload(weights).expect("memory"));
        let mut own = device.uninit::<f32>(33 * 512).expect("memory");
        layer.forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut own).expect("a forward");
        let own = own.to_vec(&stream).expect("a copy");
        let parallel = TensorParallel::new(layer, communicator).expect("a rank");
        let mut out = device.uninit::<f32>(33 * 512).expect("memory");
        let routed = parallel.forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut out);
        routed.expect("a forward");
        (own, out.to_vec(&stream).expect("a copy"))
    });
    let sum: Vec<f32> = outputs[0].0.iter().zip(&outputs[1].0).map(|(a, b)| a + b).collect();
    assert!(outputs[0].1 == sum && outputs[1].1 == sum, "other bits");
}

/// The program's own id, and its own communicator, which it has made by NCCL and destroys itself: the same
/// bits as in process, twice over one communicator.
#[test]
#[ignore = "takes two GPUs"]
fn the_programs_own_communicators() {
    if !are_there() {
        return;
    }
    let nccl = Library::load().expect("NCCL");
    // SAFETY: the library is loaded already.
    let own = unsafe { libloading::Library::new(nccl.path()) }.expect("NCCL");
    // SAFETY: the types are those of `nccl.h`.
    let (init, destroy) = unsafe {
        type Init = unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ncclResult_t;
        type Destroy = unsafe extern "C" fn(ncclComm_t) -> ncclResult_t;
        (
            *own.get::<Init>(b"ncclCommInitRank").expect("a function"),
            *own.get::<Destroy>(b"ncclCommDestroy").expect("a function"),
        )
    };
    let sizes = config(Quantization::Block128, SOFTMAX, [16, 4, 1024, 512]);
    let case = Case::new(sizes, &[33, 20], Skew::Invalid, 10);
    let poison = Poison::Byte(0xff);
    let on_threads = |work: &(dyn Fn(usize) -> Vec<Vec<bf16>> + Sync)| -> Vec<Vec<Vec<bf16>>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|rank| scope.spawn(move || work(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
        })
    };
    let id = Nccl::draw_id(nccl).expect("an id");
    let by_id = on_threads(&|rank| {
        // SAFETY: both ranks run this case, and nothing else.
        let own = unsafe { Nccl::with_id(nccl, &gpu(rank), id, rank, 2, limits()) }.expect("a rank");
        let own: Arc<dyn Communicator> = Arc::new(own);
        (0..2).map(|_| case.run(rank, own.clone(), poison).expect("a forward")).collect()
    });
    let internal = Nccl::draw_id(nccl).expect("an id");
    let by_communicator = on_threads(&|rank| {
        let device = gpu(rank);
        let mut comm: ncclComm_t = std::ptr::null_mut();
        {
            let driver = Driver::cuda().expect("a driver");
            let number = cust::Device::get(driver, rank as u32).expect("a GPU");
            let context = Context::primary(number).expect("a context");
            let _current = context.enter().expect("a context");
            // SAFETY: `comm` is a valid place, and the device's context is current.
            let result = unsafe { init(&mut comm, 2, ncclUniqueId { internal }, rank as c_int) };
            assert_eq!(result, ncclSuccess, "ncclCommInitRank");
        }
        // SAFETY: it is alive until the ranks are dropped, and both run this case alone.
        let own = unsafe { Nccl::from_raw(nccl, &device, comm, limits()) }.expect("a rank");
        let own: Arc<dyn Communicator> = Arc::new(own);
        let outputs = (0..2).map(|_| case.run(rank, own.clone(), poison).expect("a forward")).collect();
        drop(own);
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { destroy(comm) }, ncclSuccess, "ncclCommDestroy");
        outputs
    });
    let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (rank, expected) in case.expected().into_iter().enumerate() {
        for (how, outputs) in [("id", &by_id[rank]), ("communicator", &by_communicator[rank])] {
            for output in outputs {
                assert!(bits(output) == bits(&expected), "rank {rank}, by its own {how}: other bits");
            }
        }
    }
}

/// Shares inside a GPU, experts across two: four ranks, of which NCCL sees two at a time, since it refuses
/// two ranks of a communicator on one GPU.
#[test]
#[ignore = "takes two GPUs"]
fn shares_inside_experts_across_gpus() {
    if !are_there() {
        return;
    }
    let inside: Vec<Vec<Arc<dyn Communicator>>> = (0..2)
        .map(|expert| {
            let ranks = InProcess::group(&gpu(expert), 2, limits()).expect("a group").into_iter();
            ranks.map(|rank| Arc::new(rank) as _).collect()
        })
        .collect();
    let across: Vec<_> = (0..2).map(|_| meeting(2, limits())).collect();
    assert_shares_inside_experts_across([1024, 512], |expert, slice| {
        let inside = inside[expert][slice].clone();
        let peers = Peers::join(&across[slice][expert]).expect("peers");
        (inside.clone(), Arc::new(Nccl::connect(inside.device(), peers).expect("a rank")))
    });
}

/// A thousand replays under changing routings and numbers of tokens; every fiftieth is compared with an eager
/// forward, so that both are mixed.
#[test]
#[ignore = "takes two GPUs"]
fn a_thousand_replays() {
    if !are_there() {
        return;
    }
    let mut case =
        Case::new(config(Quantization::Block128, SOFTMAX, [16, 4, 1024, 512]), &[64, 64], Skew::Uniform, 7);
    case.options.statistics = true;
    on_gpus(2, limits(), |rank, communicator| {
        let device = communicator.device().clone();
        let mut experts = case.expert_parallel(rank, communicator.clone()).expect("a rank");
        let stream = Stream::new(&device).expect("a stream");
        let mut workspace = experts.workspace().expect("memory");
        let Tokens { hidden, ids, weights } = &case.tokens[rank];
        let hidden = device.upload(hidden).expect("memory");
        let (mut ids, mut weights) =
            (device.upload(ids).expect("memory"), device.upload(weights).expect("memory"));
        let mut out = device.uninit::<bf16>(hidden.len()).expect("memory");
        let graph = ParallelGraph::capture(&communicator, &stream, "decode", |stream| {
            experts.forward(stream, Batch::new(&hidden).routed(&ids, &weights), &mut workspace, &mut out)
        })
        .expect("a graph");
        for step in 0..1000u64 {
            let seed = step * 2 + rank as u64;
            let (mut new_ids, new_weights) = random_routing(case.config(), 64, Skew::Steep, seed);
            let tokens = (seed as usize * 37) % 65;
            new_ids[tokens * 4..].fill(-1);
            ids.copy_from(&new_ids, &stream).expect("a copy");
            weights.copy_from(&new_weights, &stream).expect("a copy");
            graph.launch(&stream).expect("a launch");
            if step % 50 == 0 {
                let replayed = out.to_vec(&stream).expect("a copy");
                let batch = Batch::new(&hidden).routed(&ids, &weights);
                experts.forward(&stream, batch, &mut workspace, &mut out).expect("a forward");
                assert!(replayed == out.to_vec(&stream).expect("a copy"), "step {step}, rank {rank}");
            }
        }
        communicator.wait(&stream, limits().call).expect("the last");
        let rows: u64 = experts.counts().expect("counts").iter().map(|(_, rows)| rows).sum();
        assert!(rows > 0);
    });
}

/// The rank that a process of `two_processes` is, where it is one.
const WORKER: &str = "FP8_MOE_TEST_WORKER";

/// Not a test of its own: rank 1, in a process that `two_processes` starts. It makes forwards until it is
/// stopped.
#[test]
#[ignore = "a part of two_processes"]
fn worker() {
    let Ok(port) = std::env::var(WORKER) else { return };
    let (case, communicator) = process(1, port.parse().expect("a port")).expect("rank 1");
    let error = forwards(&case, 1, &communicator, usize::MAX, |_| ()).expect_err("no end");
    println!("rank 1 ends: {error}");
}

fn process(rank: usize, port: u16) -> Result<(Case, Arc<dyn Communicator>)> {
    let case =
        Case::new(config(Quantization::Block128, SOFTMAX, [16, 4, 1024, 512]), &[8, 8], Skew::Uniform, 8);
    let mut place = Rendezvous::new(rank, 2, "127.0.0.1", port);
    place.limits = Limits::new(Duration::from_secs(20), Duration::from_secs(60));
    place.silence = Duration::from_secs(3);
    let nccl = Nccl::connect(&gpu(rank), Peers::join(&place)?)?;
    Ok((case, Arc::new(nccl)))
}

/// `count` forwards, each waited for.
fn forwards(
    case: &Case,
    rank: usize,
    communicator: &Arc<dyn Communicator>,
    count: usize,
    mut between: impl FnMut(usize),
) -> Result<()> {
    let device = communicator.device().clone();
    let mut experts = case.expert_parallel(rank, communicator.clone())?;
    let stream = Stream::new(&device)?;
    let mut workspace = experts.workspace()?;
    let MoeConfig { hidden_size, .. } = *case.config();
    let hidden = device.upload(&oracle::hidden_states(8 * hidden_size, 3))?;
    let Tokens { ids, weights, .. } = &case.tokens[rank];
    let (ids, weights) = (device.upload(ids)?, device.upload(weights)?);
    let mut out = device.uninit::<bf16>(hidden.len())?;
    for number in 0..count {
        let batch = Batch::new(&hidden).routed(&ids, &weights);
        experts.forward(&stream, batch, &mut workspace, &mut out)?;
        communicator.wait(&stream, Duration::from_secs(20))?;
        between(number);
    }
    Ok(())
}

/// Rank 1, in a process of its own.
fn start_worker(port: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "gpus::worker", "--ignored", "--nocapture"]).env(WORKER, port.to_string());
    command.stdout(Stdio::inherit()).spawn().expect("a process")
}

/// Two processes; then one is killed, or stopped: the other returns an error that names it, in time.
#[test]
#[ignore = "takes two GPUs"]
fn two_processes() {
    if !are_there() {
        return;
    }
    for stop in ["KILL", "STOP"] {
        let port = meeting(2, limits())[0].port;
        let mut child = start_worker(port);
        let (case, communicator) = process(0, port).expect("rank 0");
        let mut stopped_at = None;
        let result = forwards(&case, 0, &communicator, 1_000_000, |number| {
            if number == 200 {
                let pid = child.id().to_string();
                let done = Command::new("kill").args([format!("-{stop}"), pid]).status();
                assert!(done.expect("kill").success());
                stopped_at = Some(Instant::now());
            }
        });
        let elapsed = stopped_at.expect("200 forwards").elapsed();
        println!("after {stop}: {:.2} s: {:?}", elapsed.as_secs_f64(), result);
        let _ = child.kill();
        let _ = child.wait();
        match result {
            Err(Error::Rank { rank: 1, .. }) => {}
            other => panic!("after {stop}: {other:?}"),
        }
        assert!(elapsed < Duration::from_secs(5), "after {stop}: {elapsed:?}");
    }
}
