//! Ranks over a recording of NCCL: the order of calls, errors at every call, aborts, graphs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fp8_moe::parallel::nccl::sys::{ncclRemoteError, ncclResult_t};
use fp8_moe::parallel::nccl::{Library, Nccl};
use fp8_moe::parallel::{Batch, Communicator, ExpertOptions, Limits, ParallelGraph, Peers, TensorParallel};
use fp8_moe::{Error, Quantization, Result, Routing, Stream};
use half::bf16;

use crate::common::device;
use crate::common::layers::{Poison, Skew, config};
use crate::group::{Case, Tokens, limits};
use crate::start::meeting;
use crate::stub::{self, Plan, Record, library, record};

/// Runs `work` on every rank of a group over the recording, a thread to a rank.
fn on_ranks<T: Send>(ranks: usize, limits: Limits, work: impl Fn(usize, Peers) -> T + Sync) -> Vec<T> {
    let places = meeting(ranks, limits);
    std::thread::scope(|scope| {
        let work = &work;
        let start = |(rank, place)| scope.spawn(move || work(rank, Peers::join(&place).expect("peers")));
        let threads: Vec<_> = places.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

fn connect(peers: Peers) -> Result<Arc<dyn Communicator>> {
    Ok(Arc::new(Nccl::connect_by(library(), &device(), peers)?))
}

fn case(tokens: &[usize]) -> Case {
    let routing = Routing::Softmax { renormalize: true };
    Case::new(config(Quantization::Block128, routing, [4, 2, 128, 128]), tokens, Skew::Uniform, 1)
}

/// Every rank makes the same calls, also one without tokens: a group for the rows, one for the results, for
/// each chunk.
#[test]
fn calls_are_the_same_on_all_ranks() {
    let mut case = case(&[2, 0, 3]);
    case.options.chunk = Some(2);
    let records = on_ranks(3, limits(), |rank, peers| {
        // Nothing comes from other ranks: ids that no expert has.
        case.run(rank, connect(peers).expect("a rank"), Poison::Byte(0xff)).expect("a forward");
        record()
    });
    let chunk = |tokens: usize| {
        let gathers = [128, 2 * 4, 2 * 4, 4].map(|bytes| format!("AllGather({})", tokens * bytes));
        let exchanges = (0..3).flat_map(|rank| {
            let bytes = tokens * 128 * 2;
            [format!("Send({bytes} to {rank})"), format!("Recv({bytes} from {rank})")]
        });
        let group =
            |calls: Vec<String>| [vec!["GroupStart()".into()], calls, vec!["GroupEnd()".into()]].concat();
        [group(gathers.into()), group(exchanges.collect())].concat()
    };
    let expected = [chunk(2), chunk(1)].concat();
    for (rank, record) in records.iter().enumerate() {
        assert_eq!(record.work(), expected, "rank {rank}");
        let ends = ["CommFinalize", "CommDestroy", "CommAbort"].map(|name| record.count(name));
        assert_eq!(ends, [1, 1, 0], "rank {rank} ends in order");
    }
}

/// One rank's call fails: it says which, the others name the rank, and all abort, once.
#[test]
fn errors_at_every_call() {
    let case = case(&[1, 1]);
    let bad = ncclResult_t(3);
    let failures = [
        ("GetUniqueId", 0, bad),
        ("CommInitRankConfig", 0, bad),
        ("GroupStart", 0, bad),
        ("AllGather", 0, bad),
        ("AllGather", 3, bad),
        ("GroupEnd", 0, bad),
        ("GroupStart", 1, bad),
        ("Send", 0, bad),
        ("Recv", 1, bad),
        ("GroupEnd", 1, bad),
        ("CommGetAsyncError", 0, ncclRemoteError),
    ];
    for failure in failures {
        let outcomes = on_ranks(2, limits(), |rank, peers| {
            stub::plan(Plan { failure: (rank == 0).then_some(failure), asked: 0 });
            let result = connect(peers).and_then(|communicator| {
                let agree = communicator.clone();
                case.run(rank, communicator, Poison::Byte(0xff))?;
                agree.agree(&[])
            });
            stub::plan(Plan::default());
            result
        });
        let name = format!("nccl{}", failure.0);
        match &outcomes[0] {
            Err(error @ Error::Nccl { meaning, .. }) => {
                assert!(meaning.contains("a planned failure"), "{failure:?}: {error}");
                let groups = ["all_gather", "all_to_all"];
                let text = error.to_string();
                assert!(text.contains(&name) || groups.iter().any(|group| text.contains(group)), "{text}");
            }
            other => panic!("{failure:?}: {other:?}"),
        }
        match &outcomes[1] {
            Err(Error::Rank { rank: 0, what }) => assert!(what.contains("a planned failure"), "{what}"),
            other => panic!("{failure:?}: {other:?}"),
        }
    }
}

fn ends(record: &Record) -> [usize; 3] {
    ["CommFinalize", "CommDestroy", "CommAbort"].map(|name| record.count(name))
}

/// Whoever aborts, however often and on however many threads at once: NCCL is told once, and nothing is
/// called afterwards.
#[test]
fn aborts_once() {
    let records = on_ranks(2, limits(), |rank, peers| {
        let communicator = connect(peers).expect("a rank");
        // Rank 0 may abort while the other is still on its way out of this.
        if let Err(error) = communicator.agree(&[]) {
            assert!(error.to_string().starts_with("rank 0 was stopped by thread "), "{error}");
        }
        let abort = communicator.abort_handle();
        if rank == 0 {
            std::thread::scope(|scope| {
                for number in 0..4 {
                    let abort = abort.clone();
                    scope.spawn(move || abort.abort(format!("was stopped by thread {number}")));
                }
            });
        }
        let started = Instant::now();
        while abort.failure().is_none() {
            assert!(started.elapsed() < Duration::from_secs(20), "nobody said so");
            std::thread::sleep(Duration::from_millis(5));
        }
        let stream = Stream::new(&device()).expect("a stream");
        let mut memory = device().zeros::<u8>(4).expect("memory");
        let refusals = [
            communicator.all_gather(&stream, &mut [memory.as_mut_slice()]),
            communicator.wait(&stream, Duration::from_secs(1)),
            communicator.agree(&[]),
        ];
        for refusal in refusals {
            let text = refusal.expect_err("a group that has failed").to_string();
            assert!(text.starts_with("rank 0 was stopped by thread "), "{text}");
        }
        drop(communicator);
        record()
    });
    for record in records {
        assert_eq!(ends(&record), [0, 0, 1]);
        assert!(record.work().is_empty(), "{:?}", record.work());
    }
}

/// Calls that go on are asked after until they are done; one that does not end has a limit.
#[test]
fn calls_that_go_on() {
    let case = case(&[1, 1]);
    on_ranks(2, limits(), |rank, peers| {
        stub::plan(Plan { failure: None, asked: 5 });
        case.run(rank, connect(peers).expect("a rank"), Poison::Byte(0xff)).expect("a forward");
        assert!(record().count("CommGetAsyncError") >= 10, "two groups");
    });
    let limits = Limits::new(Duration::from_millis(200), Duration::from_secs(60));
    let started = Instant::now();
    let outcomes = on_ranks(2, limits, |rank, peers| {
        stub::plan(Plan { failure: None, asked: if rank == 0 { usize::MAX } else { 0 } });
        let communicator = connect(peers).expect("a rank");
        let result = case.run(rank, communicator.clone(), Poison::Byte(0xff)).and(communicator.agree(&[]));
        (result, record())
    });
    assert!(started.elapsed() < Duration::from_secs(40));
    let text = outcomes[0].0.as_ref().expect_err("no end").to_string();
    assert_eq!(text, "NCCL: all_gather: not done within 0.2 s");
    let text = outcomes[1].0.as_ref().expect_err("rank 0 has failed").to_string();
    assert_eq!(text, "rank 0 NCCL: all_gather: not done within 0.2 s");
    assert!(outcomes.iter().all(|(_, record)| ends(record) == [0, 0, 1]));
}

/// A rank on its own over the recording, whose exchange with itself is whole: graphs that are replayed under
/// changing routings and numbers of tokens, mixed with eager forwards, give the bits of a layer.
#[test]
fn graphs_are_replayed_under_changing_routings() {
    let mut case = case(&[6]);
    case.options = ExpertOptions::new(6);
    let outputs = on_ranks(1, limits(), |rank, peers| {
        let communicator = connect(peers).expect("a rank");
        let mut experts = case.expert_parallel(rank, communicator.clone()).expect("a rank");
        let stream = Stream::new(&device()).expect("a stream");
        let mut workspace = experts.workspace().expect("memory");
        let Tokens { hidden, ids, weights } = &case.tokens[0];
        let mut hidden = device().upload(hidden).expect("memory");
        let (mut ids, mut weights) =
            (device().upload(ids).expect("memory"), device().upload(weights).expect("memory"));
        let mut out = device().uninit::<bf16>(hidden.len()).expect("memory");
        let free = device().free_memory_bytes().expect("a number");
        let graph = ParallelGraph::capture(&communicator, &stream, "six tokens", |stream| {
            let batch = Batch::new(&hidden).routed(&ids, &weights);
            experts.forward(stream, batch, &mut workspace, &mut out)
        })
        .expect("a graph");
        assert_eq!(graph.calls(), 2);
        assert_eq!(
            device().free_memory_bytes().expect("a number"),
            free,
            "nothing is allocated in a capture"
        );
        let mut outputs = Vec::new();
        for seed in 0..6 {
            let mut tokens = Tokens::random(case.config(), 6, Skew::Invalid, 100 + seed);
            // Fewer tokens: the others have no expert.
            let count = (seed as usize * 5) % 7;
            tokens.ids[count * 2..].fill(-1);
            hidden.copy_from(&tokens.hidden, &stream).expect("a copy");
            ids.copy_from(&tokens.ids, &stream).expect("a copy");
            weights.copy_from(&tokens.weights, &stream).expect("a copy");
            out.fill_bytes(0xff, &stream).expect("a fill");
            graph.launch(&stream).expect("a launch");
            let replayed = out.to_vec(&stream).expect("a copy");
            out.fill_bytes(0xff, &stream).expect("a fill");
            let batch = Batch::new(&hidden).routed(&ids, &weights);
            experts.forward(&stream, batch, &mut workspace, &mut out).expect("a forward");
            let eager = out.to_vec(&stream).expect("a copy");
            outputs.push((tokens, replayed, eager));
        }
        assert_eq!(communicator.calls().enqueued(), 24, "six replays and six forwards");
        outputs
    });
    for (tokens, replayed, eager) in outputs.into_iter().flatten() {
        let mut case = self::case(&[6]);
        case.tokens[0] = tokens;
        let expected = case.expected().remove(0);
        assert_eq!(replayed, expected, "replayed");
        assert_eq!(eager, expected, "eager");
    }
}

/// Ranks that capture other graphs, or launch other ones of those they have in common.
#[test]
fn other_graphs_are_refused() {
    let case = case(&[1, 1]);
    let capture = |rank: usize, communicator: &Arc<dyn Communicator>, name: &str, capacity: usize| {
        let mut case = self::case(&[1, 1]);
        case.options = ExpertOptions::new(2);
        let mut experts = case.expert_parallel(rank, communicator.clone())?;
        let stream = Stream::new(&device())?;
        let mut workspace = experts.workspace()?;
        let Tokens { hidden, ids, weights } = &case.tokens[rank];
        let (hidden, ids, weights) =
            (device().upload(hidden)?, device().upload(ids)?, device().upload(weights)?);
        let mut out = device().uninit::<bf16>(hidden.len())?;
        workspace.memory().into_iter().try_for_each(|memory| Poison::Byte(0xff).fill(memory, &stream))?;
        ParallelGraph::capture(communicator, &stream, name, |stream| {
            let batch = Batch::new(&hidden).routed(&ids, &weights).capacity(capacity);
            experts.forward(stream, batch, &mut workspace, &mut out)
        })
    };
    let name_rank_1 = |outcomes: Vec<Result<()>>, text: &str| {
        for outcome in outcomes {
            match outcome {
                Err(Error::Rank { rank: 1, what }) => assert!(what.contains(text), "{what}"),
                other => panic!("{other:?}"),
            }
        }
    };
    // Another capacity is found out while it is captured.
    let outcomes = on_ranks(2, limits(), |rank, peers| {
        let communicator = connect(peers)?;
        capture(rank, &communicator, "one", 1 + rank).map(|_| ())
    });
    name_rank_1(outcomes, "has capacity = 2; rank 0 has 1");
    let outcomes = on_ranks(2, limits(), |rank, peers| {
        let communicator = connect(peers)?;
        capture(rank, &communicator, ["one", "two"][rank], 1).map(|_| ())
    });
    name_rank_1(outcomes, "has the graph = two; rank 0 has one");
    let outcomes = on_ranks(2, limits(), |rank, peers| {
        let communicator = connect(peers)?;
        let graphs = ["one", "two"].map(|name| capture(rank, &communicator, name, 1));
        let [one, two] = graphs;
        let (one, two, stream) = (one?, two?, Stream::new(&device())?);
        one.launch(&stream)?;
        if rank == 0 {
            one.launch(&stream)?;
        }
        two.launch(&stream)
    });
    name_rank_1(outcomes, "has collective calls so far = 2; rank 0 has 4");
    drop(case);
}

/// A graph that does not settle when it is launched is not made.
#[test]
fn other_captures_are_refused() {
    on_ranks(1, limits(), |_, peers| {
        let communicator = connect(peers).expect("a rank");
        let (stream, mut memory) =
            (Stream::new(&device()).expect("a stream"), device().zeros::<u8>(4).expect("memory"));
        let gather = |stream: &Stream| communicator.all_gather(stream, &mut [memory.as_mut_slice()]);
        let text = stream.capture(gather).expect_err("a refusal").to_string();
        assert!(text.ends_with("which is being captured: must be captured by ParallelGraph"), "{text}");
    });
}

/// The sum over ranks goes in the type of the output.
#[test]
fn sums_of_shares() {
    let case = case(&[2, 2]);
    let records = on_ranks(2, limits(), |_, peers| {
        let communicator = connect(peers).expect("a rank");
        let layer = crate::common::layers::on_device(&device(), &case.layer);
        let stream = Stream::new(&device()).expect("a stream");
        let mut workspace = layer.workspace(2).expect("memory");
        let parallel = TensorParallel::new(layer, communicator).expect("a rank");
        let hidden = device().upload(&case.tokens[0].hidden).expect("memory");
        let mut wide = device().uninit::<f32>(256).expect("memory");
        let mut narrow = device().uninit::<bf16>(256).expect("memory");
        parallel.forward(&stream, &hidden, &mut workspace, &mut wide).expect("a forward");
        parallel.forward(&stream, &hidden, &mut workspace, &mut narrow).expect("a forward");
        record()
    });
    for record in records {
        let groups = ["AllReduce(256 of type 7)", "AllReduce(256 of type 9)"];
        let expected: Vec<_> = groups.iter().flat_map(|call| ["GroupStart()", call, "GroupEnd()"]).collect();
        assert_eq!(record.work(), expected);
    }
}

/// Ids and communicators of the caller's; a library that is too old.
#[test]
fn ranks_without_connections() {
    // SAFETY: there is one rank.
    let own = unsafe { Nccl::with_id(library(), &device(), [7; 128], 0, 1, limits()) }.expect("a rank");
    own.agree(&[("a number", "5".into())]).expect("agreement with itself");
    let made = record();
    drop(own);
    assert_eq!(ends(&made), [1, 1, 0]);
    let number = std::ptr::without_provenance_mut(1);
    // SAFETY: it outlives the rank, which is alone; that it has been destroyed is nothing to a recording.
    let foreign = unsafe { Nccl::from_raw(library(), &device(), number, limits()) };
    if device().is_emulated() {
        assert!(foreign.expect("a rank").size() >= 1);
    }
    // SAFETY: the functions touch no memory but what they are given.
    let old = unsafe { Library::from_table(stub::table(21705), Path::new("libnccl.so.2")) };
    let text = old.expect_err("too old").to_string();
    assert_eq!(text, "NCCL: load: libnccl.so.2 is NCCL 2.17.5; 2.18 or newer is needed");
}
