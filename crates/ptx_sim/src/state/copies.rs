//! Copies that a warp has issued and not waited for.

use super::operations::SmallCopy;

/// Asynchronous copies of a warp.
pub(crate) struct Copies {
    pub list: Vec<SmallCopy>,
    /// Groups each lane has committed.
    pub committed: [u32; 32],
}

impl Default for Copies {
    fn default() -> Self {
        Copies { list: Vec::new(), committed: [0; 32] }
    }
}

impl Copies {
    /// As a warp starts.
    pub fn clear(&mut self) {
        self.list.clear();
        self.committed = [0; 32];
    }
}

/// Bulk stores of a warp.
#[derive(Default)]
pub(crate) struct BulkGroups {
    /// Groups each lane has committed.
    pub committed: [u32; 32],
    /// Stores issued.
    pub issued: u32,
    /// Lane, group and number of those not waited for.
    pub open: Vec<(u8, u32, u32)>,
}

impl BulkGroups {
    /// As a warp starts.
    pub fn clear(&mut self) {
        *self = BulkGroups::default();
    }
}
