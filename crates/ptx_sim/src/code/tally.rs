//! How often each instruction ran.

use super::Code;
use crate::counters::Counters;

/// Counters of one worker.
pub(crate) struct Tally {
    /// Executions of each instruction.
    pub executed: Vec<u64>,
    pub counters: Counters,
}

impl Tally {
    pub fn new<R>(code: &Code<R>) -> Tally {
        Tally { executed: vec![0; code.insts.len()], counters: Counters::default() }
    }

    /// The counters, with instructions counted by class.
    pub fn finish<R>(mut self, code: &Code<R>) -> Counters {
        for (count, origin) in self.executed.iter().zip(&code.origins) {
            if let Some(class) = origin.class {
                self.counters.instructions[class as usize] += count;
            }
        }
        self.counters
    }
}
