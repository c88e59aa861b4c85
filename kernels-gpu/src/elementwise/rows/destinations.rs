//! Where a quantised row goes: to its own place, or to the places that the permutation gave its token.
//!
//! ```text
//!   identity    row 3 -> 3                                                   skipped from valid_rows on
//!   scatter     token 3, top_k = 4:  inverse[12..16] = 7, 90, 41, 2          90 >= valid_rows: an expert of another rank, skipped
//!                                    row 3 -> 7, 41, 2
//! ```
//!
//! Where the rows stay, those are the places of the row's scales, and its values go to its own place, once.
//!
//! A warp reads up to 32 slots of a token at once, one per lane, and visits the valid ones. A token without a
//! valid slot is not read at all. In aligned mode the rows between an expert's last row and the next expert's
//! first belong to no token: `sorted_rows` marks them with a row number past the end, and [`Padding`] finds
//! them, 32 at a time.

use cuda_std::code::Flag;
use cuda_std::{arguments, memory, thread, warp};

/// Where rows go, as the permutation says. All null where each goes to its own place.
#[arguments]
pub struct RowTargets {
    /// i32 `[rows, top_k]`; null where each row goes to its own place.
    pub inverse: *const i32,
    /// i64: destinations from it on are skipped; null for no limit.
    pub valid_rows: *const i64,
    /// i32 `[capacity]`, which marks padding rows; null where there is nothing to write to them.
    pub sorted_rows: *const i32,
    /// Destinations of a row.
    pub top_k: u32,
    /// Destinations that there are.
    pub capacity: u32,
    /// Whether row i of `q` is that of row i, and only its scales go to the destinations and to padding rows.
    pub rows_stay: Flag,
}

/// The destinations of every row of a call.
#[derive(Clone, Copy)]
pub struct Destinations {
    inverse: *const i32,
    top_k: u32,
    rows: u32,
    valid_rows: u32,
    rows_stay: bool,
}

impl Destinations {
    /// Rows `0..rows`, each to its own place, up to `*valid_rows` where that is not null.
    ///
    /// # Safety
    /// `valid_rows` is null or readable.
    #[inline(always)]
    pub unsafe fn identity(rows: u32, valid_rows: *const i64) -> Self {
        // SAFETY: the caller's contract.
        unsafe { Self::scatter(rows, core::ptr::null(), 1, valid_rows) }
    }

    /// Rows `0..rows` to their targets.
    ///
    /// # Safety
    /// The lists are null or have their stated sizes; nobody writes them while the grid runs.
    #[inline(always)]
    pub unsafe fn new(rows: u32, targets: &RowTargets) -> Self {
        let RowTargets { inverse, valid_rows, top_k, rows_stay, .. } = *targets;
        // SAFETY: the caller's contract.
        Destinations {
            rows_stay: rows_stay.is_set(),
            ..unsafe { Self::scatter(rows, inverse, top_k, valid_rows) }
        }
    }

    /// Rows `0..rows`, each to the `top_k` places `inverse[row * top_k ..]` below `*valid_rows`; to its own
    /// place where `inverse` is null. A null `valid_rows` is no limit.
    ///
    /// # Safety
    /// `inverse` is null or `rows * top_k` readable elements, `valid_rows` null or readable; nobody writes
    /// them while the grid runs.
    #[inline(always)]
    unsafe fn scatter(rows: u32, inverse: *const i32, top_k: u32, valid_rows: *const i64) -> Self {
        // Destinations are i32: this limit keeps every non-negative one and skips every negative one.
        let mut limit = i32::MAX as u32 + 1;
        if !valid_rows.is_null() {
            // SAFETY: the caller's contract.
            limit = unsafe { memory::load_nc(valid_rows) }.clamp(0, limit as i64) as u32;
        }
        let rows = if inverse.is_null() { rows.min(limit) } else { rows };
        Destinations { inverse, top_k, rows, valid_rows: limit, rows_stay: false }
    }

    /// Whether the values of a row go to its own place, and only its scales to its destinations.
    #[inline(always)]
    pub fn rows_stay(&self) -> bool {
        self.rows_stay
    }

    /// Rows to read.
    #[inline(always)]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// This lane's destination among slots `first..first + 32` of `row`; past all rows where there is none.
    #[inline(always)]
    fn slot(&self, row: u32, first: u32) -> u32 {
        let slot = first + thread::lane_id();
        if slot >= self.top_k {
            return u32::MAX;
        }
        let r = row as usize * self.top_k as usize + slot as usize;
        // SAFETY: `inverse` has `rows * top_k` elements.
        unsafe { memory::load_nc(self.inverse.add(r)) as u32 }
    }

    /// As [`slot`](Self::slot), and the lanes that have a valid one.
    #[inline(always)]
    fn slots(&self, row: u32, first: u32) -> (u32, u32) {
        let destination = self.slot(row, first);
        (destination, warp::ballot(warp::FULL_MASK, destination < self.valid_rows))
    }

    /// Whether `row` goes anywhere. The whole warp calls it with the same row.
    #[inline(always)]
    pub fn any(&self, row: u32) -> bool {
        if self.inverse.is_null() {
            return true;
        }
        let mut first = 0;
        while first < self.top_k {
            if self.slots(row, first).1 != 0 {
                return true;
            }
            first += 32;
        }
        false
    }

    /// Calls `visit` with each destination of `row`. The whole warp calls it with the same row.
    #[inline(always)]
    pub fn for_each(&self, row: u32, mut visit: impl FnMut(usize)) {
        let mut first = 0;
        while first < self.top_k {
            let (destination, mut valid) =
                if self.inverse.is_null() { (row, 1) } else { self.slots(row, first) };
            while valid != 0 {
                visit(warp::shfl_idx(warp::FULL_MASK, destination, valid.trailing_zeros()) as usize);
                valid &= valid - 1;
            }
            first += 32;
        }
    }

    /// Shares the destinations of `row` out among every `lanes` lanes, a power of two: each visits those that
    /// it has. The whole warp calls it with the same row.
    ///
    /// ```text
    ///   top_k = 8, 16 lanes:  destination     0 1 2 .. 7  - ..    0 1 2 .. 7  - ..
    ///                         lane            0 1 2 .. 7  8 ..   16 17 18 .. 23 24 ..
    /// ```
    #[inline(always)]
    pub fn share_out(&self, row: u32, lanes: u32, mut visit: impl FnMut(usize)) {
        if self.inverse.is_null() {
            if thread::lane_id().is_multiple_of(lanes) {
                visit(row as usize);
            }
            return;
        }
        let mut first = 0;
        while first < self.top_k {
            let destination = self.slot(row, first);
            let mut taken = 0;
            while taken < u32::min(self.top_k - first, 32) {
                let lane = taken + thread::lane_id() % lanes;
                let destination = warp::shfl_idx(warp::FULL_MASK, destination, lane);
                if destination < self.valid_rows {
                    visit(destination as usize);
                }
                taken += lanes;
            }
            first += 32;
        }
    }

    /// The padding rows among the `capacity` destinations, which `sorted_rows` marks with a row number past
    /// the end. None where `sorted_rows` is null.
    #[inline(always)]
    pub fn padding(&self, sorted_rows: *const i32, capacity: u32) -> Padding {
        let limit = if sorted_rows.is_null() { 0 } else { capacity.min(self.valid_rows) };
        Padding { sorted_rows, limit, sentinel: self.rows * self.top_k }
    }
}

/// The destinations that belong to no token.
pub struct Padding {
    sorted_rows: *const i32,
    limit: u32,
    sentinel: u32,
}

impl Padding {
    /// Calls `visit` with each padding row in the share of warp `warp_index` of `warps`. The whole warp calls
    /// it.
    #[inline(always)]
    pub fn for_each(&self, warp_index: u32, warps: u32, mut visit: impl FnMut(usize)) {
        let mut first = warp_index * 32;
        while first < self.limit {
            let row = first + thread::lane_id();
            let mut padding = false;
            if row < self.limit {
                // SAFETY: `sorted_rows` has `capacity` elements, and `limit` is at most that.
                padding =
                    unsafe { memory::load_nc(self.sorted_rows.add(row as usize)) } as u32 >= self.sentinel;
            }
            let mut found = warp::ballot(warp::FULL_MASK, padding);
            while found != 0 {
                visit((first + found.trailing_zeros()) as usize);
                found &= found - 1;
            }
            first += warps * 32;
        }
    }
}
