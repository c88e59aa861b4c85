//! Measuring on request, so that several programs take turns on one GPU.
//!
//! ```text
//!   us                                           them, on our stdin
//!   {"ready": {row}, "emulated": false}    -->
//!                                          <--   go
//!   {"us": [412.7]}                        -->      one round: the mean time of a replay, in a chain
//!                                          <--   go | next | quit
//! ```
//!
//! On the emulated device the times are the emulator's own.
//!
//! `next` goes on to the next case, which says that it is ready; `quit`, or the end of the input, ends the
//! program, as does `next` after the last case.

use std::io::{self, BufRead, Write};
use std::ops::ControlFlow;

use fp8_moe::{Error, Result};
use fp8_moe_cli::{Replays, Timer};

use crate::record::Row;

/// The other side.
#[derive(Default)]
pub struct Lockstep {
    line: String,
}

impl Lockstep {
    /// Serves the case of `row` until the other side has enough of it, or of us.
    pub fn serve(&mut self, row: &Row, replays: Replays<'_>, timer: &mut Timer) -> Result<ControlFlow<()>> {
        let chain = timer.warm_up(replays)?;
        let emulated = timer.stream().device().is_emulated();
        say(&serde_json::json!({ "ready": row, "emulated": emulated }))?;
        loop {
            self.line.clear();
            if io::stdin().lock().read_line(&mut self.line).map_err(|e| Error::io("stdin", e))? == 0 {
                return Ok(ControlFlow::Break(()));
            }
            match self.line.trim() {
                "go" => say(&serde_json::json!({ "us": [timer.sample(replays, &chain)?] }))?,
                "next" => return Ok(ControlFlow::Continue(())),
                "quit" => return Ok(ControlFlow::Break(())),
                other => {
                    return Err(Error::argument("bench", "stdin", other, "must be go, next or quit"));
                }
            }
        }
    }
}

/// Writes a line at once, whoever reads it.
fn say(value: &serde_json::Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|e| Error::io("stdout", e))
}
