//! The tensor maps that have been encoded in a context.
//!
//! A map is a function of what it describes: the same matrix has the same map, whatever its memory holds. A
//! forward needs up to six, of weights and of its workspace, which are those of the forward before as a rule.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use cust::Context;
use cust::tensor_map::Matrix;

use crate::error::Result;
use crate::gpu::launch::TensorMap;

/// Maps that are kept, 200 bytes each. To forget one costs encoding it.
const MANY_MAPS: usize = 4096;

/// The maps of matrices in one context.
#[derive(Default)]
pub(crate) struct MapCache {
    maps: Mutex<HashMap<Key, TensorMap>>,
}

/// A matrix, by its address and rows first: few have both in common.
#[derive(PartialEq, Eq)]
struct Key(Matrix);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.address ^ self.0.dimensions[1].rotate_left(48));
    }
}

impl MapCache {
    /// The map of `matrix`, in `context`, which is always the same for one cache.
    pub fn get(&self, matrix: Matrix, context: &Context) -> Result<TensorMap> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = maps.get(&Key(matrix)) {
            return Ok(*map);
        }
        let map = TensorMap(matrix.encode(context)?.opaque);
        if maps.len() >= MANY_MAPS {
            maps.clear();
        }
        maps.insert(Key(matrix), map);
        Ok(map)
    }
}
