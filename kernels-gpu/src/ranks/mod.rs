//! What several ranks of a layer need beside the layer: routings on their way out and in, and the sum of what
//! comes back.
//!
//! | file | kernels |
//! |---|---|
//! | `routing` | `stage_routing` before the rows travel; `choose_replicas`, `count_rows` where they arrive |
//! | `sum` | `sum_ranks_*` where results come back |

mod routing;
mod sum;
