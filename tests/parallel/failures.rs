//! What a rank does wrong becomes, within the limit, an error on every other rank that names it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fp8_moe::parallel::{Batch, Communicator, ExpertOptions, ExpertParallel, Limits, Placement};
use fp8_moe::{Error, MoeConfig, MoeLayer, Quantization, Result, Routing, Stream};
use half::bf16;

use crate::common::device;
use crate::common::layers::{Poison, Skew, config};
use crate::group::{Case, Tokens, limits, on_ranks};

fn case(tokens: &[usize]) -> Case {
    let config = config(Quantization::Block128, Routing::Softmax { renormalize: true }, [4, 2, 128, 128]);
    Case::new(config, tokens, Skew::Uniform, 1)
}

/// The error of a rank, which must be the failure of `rank`.
#[track_caller]
fn failure_of<T>(result: Result<T>, rank: usize) -> String {
    match result {
        Err(Error::Rank { rank: at_fault, what }) => {
            assert_eq!(at_fault, rank, "rank {at_fault} {what}");
            what
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("nothing failed"),
    }
}

/// One rank's own mistake: its error is that of the argument, everybody else's names it.
#[track_caller]
fn mistake<T: Send>(
    ranks: usize,
    at_fault: usize,
    text: &str,
    work: impl Fn(usize, Arc<dyn Communicator>) -> Result<T> + Sync,
) {
    let results = on_ranks(ranks, limits(), work);
    for (rank, result) in results.into_iter().enumerate() {
        let what = match result {
            Err(error @ Error::Argument { .. }) if rank == at_fault => error.to_string(),
            other => failure_of(other, at_fault),
        };
        assert!(what.contains(text), "rank {rank}: {what}");
    }
}

#[test]
fn another_config() {
    let case = case(&[1, 1, 1]);
    mistake(3, 1, "has config = ", |rank, communicator| {
        let mut config: MoeConfig = case.config().clone();
        config.top_k = if rank == 1 { 3 } else { 2 };
        let placement = Placement::linear(4, 3)?;
        let config = placement.config(&config, rank);
        let layer = MoeLayer::new(&device(), &config, &case.layer.weights(&config))?;
        ExpertParallel::new(layer, communicator, ExpertOptions::new(4))
    });
}

#[test]
fn another_placement() {
    let case = case(&[1, 1]);
    mistake(2, 1, "has placement = ", |rank, communicator| {
        let placement = match rank {
            0 => Placement::linear(4, 2)?,
            _ => Placement::from_lists(4, vec![vec![0, 1], vec![1, 2, 3]])?,
        };
        let config = placement.config(case.config(), rank);
        let layer = MoeLayer::new(&device(), &config, &case.layer.weights(&config))?;
        let options = ExpertOptions::new(4).placement(placement);
        ExpertParallel::new(layer, communicator, options)
    });
}

#[test]
fn experts_of_another_rank() {
    let case = case(&[1, 1]);
    mistake(2, 0, "must have the experts of rank 0, [0, 1]", |rank, communicator| {
        let layer = case.part(&device(), if rank == 0 { 1 } else { rank });
        ExpertParallel::new(layer, communicator, ExpertOptions::new(4))
    });
}

/// A rank that makes its mistake, and leaves with it, while all others wait for it; and one that has left
/// with it before they come.
#[test]
fn a_mistake_while_others_wait() {
    let case = case(&[1, 1, 1]);
    for early in [[0, 1, 2], [1, 0, 2], [2, 0, 1]] {
        mistake(3, 0, "max_tokens = 0: must be at least 1", |rank, communicator| {
            let layer = case.part(&device(), rank);
            std::thread::sleep(Duration::from_millis(150 * early[rank]));
            ExpertParallel::new(layer, communicator, ExpertOptions::new(if rank == 0 { 0 } else { 4 }))
        });
    }
}

#[test]
fn another_capacity() {
    let case = case(&[1, 1, 1]);
    mistake(3, 2, "has capacity = 3; rank 0 has 2", |rank, communicator| {
        let options = ExpertOptions::new(8);
        let layer = case.part(&device(), rank);
        let mut experts = ExpertParallel::new(layer, communicator, options)?;
        forward(&case, rank, &mut experts, if rank == 2 { 3 } else { 2 })
    });
}

/// A forward of the rank's tokens.
fn forward(case: &Case, rank: usize, experts: &mut ExpertParallel, capacity: usize) -> Result<Vec<bf16>> {
    let stream = Stream::new(&device())?;
    let mut workspace = experts.workspace()?;
    let Tokens { hidden, ids, weights } = &case.tokens[rank];
    let (hidden, ids, weights) = (device().upload(hidden)?, device().upload(ids)?, device().upload(weights)?);
    let mut out = device().uninit::<bf16>(hidden.len())?;
    let batch = Batch::new(&hidden).routed(&ids, &weights).capacity(capacity);
    experts.forward(&stream, batch, &mut workspace, &mut out)?;
    out.to_vec(&stream)
}

/// More tokens than were announced: nothing is cut off, and nobody waits for ever.
#[test]
fn too_many_tokens() {
    let mut case = case(&[2, 5]);
    case.capacity = 4;
    case.options = ExpertOptions::new(4);
    mistake(
        2,
        1,
        "hidden = 5 tokens: must be at most 4 tokens, the capacity that was announced",
        |rank, group| case.run(rank, group, Poison::Fresh),
    );
    let mut case = self::case(&[2, 2]);
    case.options = ExpertOptions::new(4);
    mistake(2, 0, "capacity = 5: must be at most 4, max_tokens", |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        forward(&case, rank, &mut experts, if rank == 0 { 5 } else { 4 })
    });
}

/// A rank that has no tokens and makes no call: the others name it, in time.
#[test]
fn a_rank_that_skips_the_forward() {
    let case = case(&[1, 0]);
    let limits = Limits::new(Duration::from_millis(300), Duration::from_millis(1500));
    let results = on_ranks(2, limits, |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        if rank == 1 {
            // It is there, and does something else.
            std::thread::sleep(Duration::from_millis(2500));
            return experts.communicator().agree(&[]).map(|()| (Vec::new(), Duration::ZERO));
        }
        let started = Instant::now();
        let error = forward(&case, rank, &mut experts, 1);
        error.map(|out| (out, started.elapsed()))
    });
    for result in results {
        assert!(failure_of(result, 1).contains("has not called agree within 1.5 s"));
    }
}

/// A rank that ends while others need it.
#[test]
fn a_rank_that_leaves() {
    let case = case(&[1, 1, 1]);
    let results = on_ranks(3, limits(), |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        if rank == 2 { Ok(Vec::new()) } else { forward(&case, rank, &mut experts, 1) }
    });
    for result in results.into_iter().take(2) {
        assert!(failure_of(result, 2).contains("has left the group"));
    }
}

/// A forward that is dispatched and never combined.
#[test]
fn a_forward_that_is_left_half_done() {
    let case = case(&[1, 1]);
    let results = on_ranks(2, limits(), |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        if rank == 0 {
            return forward(&case, rank, &mut experts, 1).map(|_| ());
        }
        let stream = Stream::new(&device())?;
        let mut workspace = experts.workspace()?;
        let Tokens { hidden, ids, weights } = &case.tokens[rank];
        let (hidden, ids, weights) =
            (device().upload(hidden)?, device().upload(ids)?, device().upload(weights)?);
        let batch = Batch::new(&hidden).routed(&ids, &weights);
        drop(experts.dispatch(&stream, batch, &mut workspace)?);
        experts.communicator().agree(&[])
    });
    for result in results {
        assert_eq!(failure_of(result, 1), "has dispatched a forward and not combined it");
    }
}

/// Two forwards of other layers, in another order on one rank.
#[test]
fn another_order() {
    let (small, large) = (case(&[1, 1]), {
        let config = config(Quantization::Block128, Routing::Softmax { renormalize: true }, [4, 2, 256, 128]);
        Case::new(config, &[1, 1], Skew::Uniform, 2)
    });
    mistake(2, 1, "has the layer's sizes = ", |rank, group| {
        let mut layers = [small.expert_parallel(rank, group.clone())?, large.expert_parallel(rank, group)?];
        let [first, second] = &mut layers;
        match rank {
            0 => forward(&small, rank, first, 1).and_then(|_| forward(&large, rank, second, 1)),
            _ => forward(&large, rank, second, 1).and_then(|_| forward(&small, rank, first, 1)),
        }
    });
}

/// Forwards that one rank makes and another does not show at the next thing that they settle.
#[test]
fn another_number_of_forwards() {
    let mut case = case(&[1, 1]);
    case.options = ExpertOptions::new(4);
    let limits = Limits::new(Duration::from_secs(2), Duration::from_secs(60));
    let results = on_ranks(2, limits, |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        forward(&case, rank, &mut experts, 1)?;
        if rank == 0 {
            forward(&case, rank, &mut experts, 1)?;
        }
        forward(&case, rank, &mut experts, 2)
    });
    let failures: Vec<_> = results.into_iter().map(|result| failure_of(result, 1)).collect();
    assert_eq!(failures[0], failures[1]);
    assert!(failures[0].contains("the call = agree") || failures[0].contains("asks about"), "{failures:?}");
}

/// Aborts from another thread, twice; work of a group that has failed is refused.
#[test]
fn aborts() {
    let case = case(&[1, 1]);
    let results = on_ranks(2, limits(), |rank, group| {
        let mut experts = case.expert_parallel(rank, group)?;
        let abort = experts.communicator().abort_handle();
        if rank == 0 {
            let other = abort.clone();
            std::thread::spawn(move || other.abort("was told to stop")).join().expect("a thread");
            abort.abort("changed its mind");
        }
        let first = forward(&case, rank, &mut experts, 1).map(|_| ());
        assert_eq!(abort.failure().expect("a failure").what, "was told to stop");
        first.and(forward(&case, rank, &mut experts, 1).map(|_| ()))
    });
    for result in results {
        assert_eq!(failure_of(result, 0), "was told to stop");
    }
}

/// Groups of several ranks in one process meet on the host, and are no part of a graph.
#[test]
fn captures_are_refused() {
    let case = case(&[1, 1]);
    let results = on_ranks(2, limits(), |rank, group| {
        let experts = case.expert_parallel(rank, group)?;
        let communicator = experts.communicator();
        assert!(!communicator.can_be_captured());
        let mut memory = device().zeros::<u8>(4)?;
        let stream = Stream::new(&device())?;
        stream.capture(|stream| communicator.all_gather(stream, &mut [memory.as_mut_slice()])).map(|_| ())
    });
    for result in results {
        let text = result.expect_err("a refusal").to_string();
        assert!(text.contains("must not be one that is being captured"), "{text}");
    }
}
