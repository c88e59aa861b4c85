//! Work that is shared among threads of this call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::Result;

/// What `work` makes of the numbers below `count`, in their order; on as many threads as there are cores,
/// this one included. They take the numbers in order, and after an error no more: that of the least number is
/// returned.
pub(crate) fn each<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            // Relaxed: the number alone is shared.
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            let result = work(number);
            if result.is_err() {
                next.store(count, Ordering::Relaxed);
            }
            done.push((number, result));
        }
    };
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut done = thread::scope(|scope| {
        // Where the system has no thread to give, the work remains to the others.
        let helpers: Vec<_> = (1..cores.min(count))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, run).ok())
            .collect();
        let mut done = run();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn in_order_and_to_the_first_error() {
        for count in [0, 1, 2, 1000] {
            let squares: Vec<_> = (0..count).map(|n| n * n).collect();
            assert_eq!(each(count, |n| Ok(n * n)).expect("no error"), squares);
        }
        let calls = AtomicUsize::new(0);
        let error = each(1_000_000, |n| {
            calls.fetch_add(1, Ordering::Relaxed);
            if n >= 10 { Err(Error::Fault(n.to_string())) } else { Ok(()) }
        });
        assert_eq!(error.expect_err("an error").to_string(), "10");
        assert!(calls.into_inner() < 1_000_000, "it stops after an error");
    }
}
