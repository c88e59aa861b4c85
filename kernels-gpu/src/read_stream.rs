//! The kernel `read_stream`: reads memory and does nothing with it. Its rate is the floor of what streams
//! weights.
//!
//! ```text
//!   bytes    | block 0            | block 1            | block 2 ..        a contiguous range for each
//!              run, run, run ..                                          32 KiB, one linear bulk copy
//!                |    |    |
//!   ring       stage 0, 1 .. 5, 0, 1 ..                                  asked for again as soon as it has arrived
//! ```

use cuda_std::{arguments, bulk, host, kernel, mbarrier, shared, thread};

/// Bytes of a copy.
#[host]
pub const READ_STREAM_RUN: u32 = 32 << 10;

/// Copies on their way at a time.
const STAGES: u32 = 6;

/// Arguments of [`read_stream`].
#[arguments]
pub struct ReadStream {
    /// What is read, 16-byte aligned.
    pub from: *const u8,
    /// Runs of [`READ_STREAM_RUN`] bytes.
    pub runs: u32,
}

/// Reads all runs. One warp a block, of which one lane asks and waits.
///
/// # Safety
/// The runs are readable.
#[kernel(threads = 32, shared = STAGES * (READ_STREAM_RUN + mbarrier::BYTES))]
pub unsafe fn read_stream(arguments: ReadStream) {
    let ReadStream { from, runs } = arguments;
    if thread::thread_idx_x() != 0 {
        return;
    }
    let base = shared::dynamic::<u8>().address();
    let barrier = |stage: u32| base + STAGES * READ_STREAM_RUN + stage * mbarrier::BYTES;
    let (block, blocks) = (thread::block_idx_x() as u64, thread::grid_dim_x() as u64);
    let start = |block: u64| (runs as u64 * block / blocks) as u32;
    let (first, end) = (start(block), start(block + 1));
    // SAFETY: this thread alone uses the barriers and the stages. A stage is asked for once it has arrived,
    // with its bytes to expect; the block's runs are among those that are readable.
    unsafe {
        let mut stage = 0;
        while stage < STAGES {
            mbarrier::init(barrier(stage), 1);
            stage += 1;
        }
        mbarrier::fence_init();
        let ask = #[inline(always)]
        |run: u32, stage: u32| {
            mbarrier::arrive_expect_tx(barrier(stage), READ_STREAM_RUN);
            let run = from.add(run as usize * READ_STREAM_RUN as usize);
            bulk::load(base + stage * READ_STREAM_RUN, run, READ_STREAM_RUN, barrier(stage));
        };
        let mut asked = first;
        while asked < end && asked - first < STAGES {
            ask(asked, asked - first);
            asked += 1;
        }
        let (mut run, mut stage, mut parity) = (first, 0, 0);
        while run < end {
            mbarrier::wait(barrier(stage), parity);
            if asked < end {
                ask(asked, stage);
                asked += 1;
            }
            run += 1;
            stage += 1;
            if stage == STAGES {
                (stage, parity) = (0, parity ^ 1);
            }
        }
    }
}
