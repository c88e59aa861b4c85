//! `--ranks N`: a layer whose experts are spread over N ranks.
//!
//! ```text
//!   fp8-moe run --ranks 2         --> two processes of this program, a GPU each, over NCCL
//!   torchrun .. fp8-moe run --ranks 2    each process is a rank already: RANK, WORLD_SIZE, ..
//!   .. --device sim, cuda:0       --> two threads over that device
//! ```

pub mod bench;
pub mod run;

use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::Arc;

use fp8_moe::internals::require;
use fp8_moe::parallel::{Communicator, InProcess, Limits, Nccl, Peers, Rendezvous};
use fp8_moe::{Device, DeviceSpec, Error, Result};

use crate::terminal;

/// Runs `work` as every rank: in this process if it is a rank, in processes that it starts, or in threads.
pub fn start(
    ranks: usize,
    device: DeviceSpec,
    work: impl Fn(Arc<dyn Communicator>) -> Result<()> + Sync,
) -> Result<()> {
    require(ranks > 0, "ranks", "--ranks", ranks, || "must be at least 1".into())?;
    if std::env::var_os("RANK").is_some() {
        return be_a_rank(ranks, work);
    }
    if device == DeviceSpec::Auto {
        let device = terminal::open_device(device)?;
        if !device.is_emulated() {
            drop(device);
            return start_processes(ranks);
        }
        return start_threads(ranks, &device, work);
    }
    start_threads(ranks, &terminal::open_device(device)?, work)
}

/// A process to a rank: this one is started already.
fn be_a_rank(ranks: usize, work: impl Fn(Arc<dyn Communicator>) -> Result<()>) -> Result<()> {
    let place = Rendezvous::from_env()?;
    require(place.size == ranks, "ranks", "--ranks", ranks, || {
        format!("must be WORLD_SIZE, {}", place.size)
    })?;
    let device = Device::open(DeviceSpec::Cuda(place.local_rank as u32))?;
    let communicator = Nccl::connect(&device, Peers::join(&place)?)?;
    if place.rank == 0 {
        eprintln!("ranks    {ranks} over {}, from {}", communicator.library(), terminal::describe(&device));
    }
    work(Arc::new(communicator))
}

/// Starts this program once for each rank, and waits for all.
fn start_processes(ranks: usize) -> Result<()> {
    let gpus = cust::Driver::cuda().ok().and_then(|driver| driver.device_count().ok()).unwrap_or(0);
    require(ranks <= gpus as usize, "ranks", "--ranks", ranks, || {
        format!("must be at most {gpus}, the GPUs; --device cuda:0 has all ranks on one")
    })?;
    let failed = |error: std::io::Error| Error::argument("ranks", "process", error, "must start");
    let program = std::env::current_exe().map_err(failed)?;
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    drop(listener);
    let start = |rank: usize| -> Result<Child> {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", ranks.to_string()).env("MASTER_ADDR", "127.0.0.1");
        command.env("FP8_MOE_PORT", port.to_string());
        command.spawn().map_err(failed)
    };
    // A rank that is not there is named by the others, within their limits.
    let children: Vec<_> = (0..ranks).map(start).collect();
    let mut outcome = Ok(());
    for (rank, child) in children.into_iter().enumerate() {
        let ended = child.and_then(|mut child| child.wait().map_err(failed));
        let ended = ended.and_then(|status| match status.success() {
            true => Ok(()),
            false => Err(Error::Rank { rank, what: format!("ended with {status}") }),
        });
        outcome = outcome.and(ended);
    }
    outcome
}

/// A thread to a rank, over one device.
fn start_threads(
    ranks: usize,
    device: &Device,
    work: impl Fn(Arc<dyn Communicator>) -> Result<()> + Sync,
) -> Result<()> {
    eprintln!("ranks    {ranks} threads over one device");
    let group = InProcess::group(device, ranks, Limits::default())?;
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let work = &work;
        let start = |rank: InProcess| scope.spawn(move || work(Arc::new(rank)));
        let threads: Vec<_> = group.into_iter().map(start).collect();
        let panicked = |rank| Error::Rank { rank, what: "has panicked".into() };
        let join = |(rank, thread): (usize, std::thread::ScopedJoinHandle<'_, Result<()>>)| {
            thread.join().unwrap_or_else(|_| Err(panicked(rank)))
        };
        threads.into_iter().enumerate().map(join).collect()
    });
    // A rank's own error says more than what the others were told of it.
    let (told, own): (Vec<_>, Vec<_>) =
        results.into_iter().filter_map(Result::err).partition(|error| matches!(error, Error::Rank { .. }));
    own.into_iter().chain(told).next().map_or(Ok(()), Err)
}
