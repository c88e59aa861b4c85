//! How processes find each other, and what becomes known of one that is missing, different, silent, or dead.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fp8_moe::parallel::{Limits, Peers, Rendezvous};
use fp8_moe::{Error, Result};

use crate::group::limits;

/// A place for `ranks` ranks of this process to meet, one for each.
pub fn meeting(ranks: usize, limits: Limits) -> Vec<Rendezvous> {
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let place = |rank| {
        let mut place = Rendezvous::new(rank, ranks, "127.0.0.1", port);
        place.limits = limits;
        place
    };
    (0..ranks).map(place).collect()
}

fn join_all(places: &[Rendezvous]) -> Vec<Result<Peers>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = places.iter().map(|place| scope.spawn(|| Peers::join(place))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// A connection to rank 0 that says hello as `rank`, of this version or another.
fn hello(place: &Rendezvous, rank: usize, version: &str) -> TcpStream {
    let started = Instant::now();
    let mut line = loop {
        match TcpStream::connect((place.address.as_str(), place.port)) {
            Ok(line) => break line,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    let size = place.size;
    let text = format!(r#"{{"hello":["{version}",{rank},{size}]}}"#);
    line.write_all(&(text.len() as u32).to_le_bytes()).expect("a write");
    line.write_all(text.as_bytes()).expect("a write");
    line
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[track_caller]
fn named<T>(result: Result<T>, rank: usize, text: &str) {
    match result {
        Err(Error::Rank { rank: at_fault, what }) => {
            assert_eq!(at_fault, rank, "rank {at_fault} {what}");
            assert!(what.contains(text), "{what}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("nothing failed"),
    }
}

#[test]
fn variables_of_torchrun() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<_, _> = pairs.iter().copied().collect();
        Rendezvous::from_variables(|name| pairs.get(name).map(|value| value.to_string()))
    };
    let plain = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
    ];
    let place = of(&plain).expect("all of them");
    assert_eq!((place.rank, place.size, place.local_rank), (3, 4, 1));
    assert_eq!((place.address.as_str(), place.port), ("node0", 29500));
    let agent = [&plain[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
    assert_eq!(of(&agent).expect("all of them").port, 29501, "the agent has the other");
    let own = [&agent[..], &[("FP8_MOE_PORT", "1234")]].concat();
    assert_eq!(of(&own).expect("all of them").port, 1234);
    let text = of(&plain[1..]).expect_err("no rank").to_string();
    assert_eq!(text, "Rendezvous: RANK = unset: must be set, as torchrun or `fp8-moe run --ranks` does");
    let far = [&[("RANK", "4")][..], &plain[1..]].concat();
    assert!(of(&far).expect_err("four ranks").to_string().contains("must be below 4, WORLD_SIZE"));
    let word = [&plain[..4], &[("MASTER_PORT", "http")]].concat();
    assert!(of(&word).expect_err("no number").to_string().contains("MASTER_PORT = http: must be a number"));
}

#[test]
fn ranks_meet_agree_and_share() {
    let peers = join_all(&meeting(4, limits()));
    let peers: Vec<_> = peers.into_iter().map(|peers| peers.expect("a rank")).collect();
    std::thread::scope(|scope| {
        for (rank, peers) in peers.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..3 {
                    peers.agree(&[("round", round.to_string())]).expect("agreement");
                }
                let bytes = peers.share((rank == 0).then(|| vec![1, 2, 3])).expect("bytes");
                assert_eq!(bytes, [1, 2, 3]);
                peers.agree(&[]).expect("a barrier");
            });
        }
    });
}

#[test]
fn who_differs_is_named() {
    let peers = join_all(&meeting(3, limits()));
    let peers: Vec<_> = peers.into_iter().map(|peers| peers.expect("a rank")).collect();
    std::thread::scope(|scope| {
        for (rank, peers) in peers.iter().enumerate() {
            scope.spawn(move || {
                let value = if rank == 2 { "7" } else { "5" };
                named(peers.agree(&[("tokens", value.into())]), 2, "has tokens = 7; rank 0 has 5");
            });
        }
    });
}

/// Of four ranks two come: both say who is missing.
#[test]
fn who_is_missing_is_named() {
    let places = meeting(4, Limits::new(Duration::from_secs(1), Duration::from_millis(700)));
    let results = join_all(&[places[0].clone(), places[2].clone()]);
    for result in results {
        named(result, 1, "within 0.7 s (nor have [3])");
    }
    // Without rank 0 there is nobody to say so.
    named(Peers::join(&meeting(2, places[0].limits)[1]), 0, "cannot be reached at 127.0.0.1:");
}

#[test]
fn another_version_is_named() {
    let places = meeting(2, limits());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Peers::join(&places[0]));
        let mut line = hello(&places[0], 1, "0.0.1");
        named(first.join().expect("rank 0"), 1, &format!("is version 0.0.1; rank 0 is {VERSION}"));
        let mut answer = String::new();
        let _ = line.read_to_string(&mut answer);
        assert!(answer.contains("is version 0.0.1"), "{answer}");
    });
}

/// A process that dies closes its connection: everybody knows at once.
#[test]
fn a_dead_rank_is_named() {
    let places = meeting(3, limits());
    std::thread::scope(|scope| {
        let waiting: Vec<_> = places[..2]
            .iter()
            .map(|place| {
                scope.spawn(|| {
                    let peers = Peers::join(place).expect("a rank");
                    let started = Instant::now();
                    (peers.agree(&[]), started.elapsed())
                })
            })
            .collect();
        let mut line = hello(&places[0], 2, VERSION);
        let mut welcome = [0; 4 + 16];
        line.read_exact(&mut welcome).expect("a welcome");
        assert_eq!(&welcome[4..], br#"{"welcome":null}"#);
        drop(line);
        for thread in waiting {
            let (result, elapsed) = thread.join().expect("a rank");
            named(result, 2, "has ended: its connection was closed");
            assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
        }
    });
}

/// A process that is stopped keeps its connection, and is silent.
#[test]
fn a_silent_rank_is_named() {
    let mut places = meeting(2, limits());
    places[0].silence = Duration::from_millis(1500);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Peers::join(&places[0]).expect("rank 0").agree(&[]));
        let _line = hello(&places[0], 1, VERSION);
        named(waiting.join().expect("rank 0"), 1, "has not been heard for 1.5 s");
    });
}

/// A rank that returns while others wait for it has left; one that panics has failed.
#[test]
fn who_leaves_is_named() {
    for panics in [false, true] {
        let peers = join_all(&meeting(3, limits()));
        let mut peers: Vec<_> = peers.into_iter().map(|peers| peers.expect("a rank")).collect();
        let last = peers.pop().expect("rank 2");
        let ending = std::thread::spawn(move || {
            let _last = last;
            assert!(!panics, "on purpose");
        });
        assert_eq!(ending.join().is_err(), panics);
        std::thread::scope(|scope| {
            for peers in &peers {
                let text = if panics { "has panicked" } else { "has left the group; agree waits for it" };
                scope.spawn(move || named(peers.agree(&[]), 2, text));
            }
        });
    }
}

/// The guide shows the example, as it is compiled.
#[test]
fn the_guide_has_the_example() {
    let example = include_str!("../../examples/two_gpus.rs");
    let (_, program) = example.split_once("\n\n").expect("a head and a program");
    assert!(include_str!("../../docs/TWO_GPUS.md").contains(program));
}
