//! What the layer is measured with: `fp8-moe bench` and `benches/` are made of it.
//!
//! ```text
//!   Shape, Scheme, tp, ep --> MoeConfig --Layers--> layers of random weights, larger than the L2 cache
//!   RoutingKind, tokens --> Routed --> Load: tokens, rows and experts that matter here
//!                                       |
//!                     Run: a layer's inputs, workspace and output, shared by the layers
//!                      |                                   |
//!            count: what the emulated device counted   capture: a graph per layer, or per layer and part
//!                                                          |
//!                                       Timer: replays in turn, between two events --> Timing
//! ```
//!
//! [`Work`] says what a part must at least do: the floor that a time is compared with.

mod dump;
mod layers;
mod memory;
mod models;
mod part;
mod pool;
mod rates;
mod routing;
mod run;
mod timing;
mod work;

pub use dump::dump;
pub use layers::Layers;
pub use memory::{Memory, sets_to_outgrow_cache};
pub use models::{MODELS, Model, Scheme, Shape};
pub use part::Part;
pub use rates::{MATRIX_SIZE, matrix_flops_per_second, read_bytes_per_second};
pub use routing::{Routed, RoutingKind};
pub use run::{Captured, Replays, Run};
pub use timing::{Chain, Timer, Timing};
pub use work::{Fusion, Load, Rates, Work};

/// The name of the command, in its errors.
const OP: &str = "bench";
