//! The plans of the forwards that a layer has run, by their numbers of tokens: an engine decodes the same
//! numbers again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::plan::Plan;

/// Plans that are kept, 1 KB each. To forget one costs making it: some microseconds.
const MANY_PLANS: usize = 512;

/// A layer's plans.
#[derive(Default)]
pub(super) struct Plans {
    plans: Mutex<HashMap<usize, Arc<Plan>>>,
}

impl Plans {
    /// The plan of `tokens` tokens, from `make` where it is not known.
    pub fn get(&self, tokens: usize, make: impl FnOnce() -> Result<Plan>) -> Result<Arc<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&tokens) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(make()?);
        if plans.len() >= MANY_PLANS {
            plans.clear();
        }
        plans.insert(tokens, plan.clone());
        Ok(plan)
    }
}
