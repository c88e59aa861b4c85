//! The permutation of a forward's rows, as the operations hand it on: opaque, so that no safe call can name
//! rows that do not exist.
//!
//! ```text
//!   permute(ids) ------------------.
//!   from_lists(lists), checked -----+--> Permutation --> permute_rows, quantise, gated_gemm, grouped_gemm,
//!   from_lists_unchecked, unsafe --'                   activation, unpermute
//! ```
//!
//! # What holds
//! While a [`Permutation`] lives, the lists behind it have these properties once the work before it in the
//! stream is done, or they have no element that an operation reads:
//!
//! 1. `expert_offsets [E_loc + 1]` ascends from 0 to at most P.
//! 2. No two elements of `inverse [R]` that are at least 0 and below `expert_offsets[E_loc]` are equal.
//! 3. The tile schedule is what the kernels build from these offsets for its height: its tiles are inside the
//!    rows of their experts, and its counters are 0 between two operations.
//!
//! They hold because the one who makes it has them (`permute` by its algorithm, whatever the ids and the map
//! are; the checked constructor by a scan; the unsafe one by contract), and because nobody else can write the
//! memory: the permutation borrows it exclusively, and lends shared slices alone. `sorted_rows` may hold
//! anything: kernels take an element at or over R, which every negative one is as u32, for a row of no token.
//!
//! Graphs alone write what they do not borrow. A permutation notes how many launches of graphs there had been
//! before its lists were written or read. An operation that is given it is refused if a later launch writes
//! their memory, with a last look under the lock that launches take (`Unchanged`).
//!
//! # Order
//! Every operation that is given a permutation checks each list that it touches as it checks every other
//! buffer, and so orders its stream behind the one that wrote the list. A permutation that was made while its
//! stream was being captured has not been computed: it is refused outside that capture. One that was made
//! outside is refused in captures: at a replay its lists may be gone.

use super::problem_sizes::{TileScheduleOut, write_tile_schedule};
use crate::error::{Error, Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::enqueue::overwritten;
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::{Allocation, Unchanged, replays};
use crate::gpu::stream::Stream;
use crate::plan::checked_i32;

/// Where rows go: made by [`permute`](super::permute::permute), or from lists of one's own.
///
/// It is for arrays of `rows` (P) permuted rows of `local_experts` (E_loc) experts, and T tokens with k slots
/// each.
#[derive(Debug)]
pub struct Permutation<'a> {
    pub(super) sizes: Sizes,
    pub(super) expert_offsets: SliceMut<'a, i64>,
    pub(super) sorted_rows: Option<SliceMut<'a, i32>>,
    pub(super) inverse: Option<SliceMut<'a, i32>>,
    pub(super) row_experts: Option<SliceMut<'a, i32>>,
    pub(super) problem_sizes: Option<[SliceMut<'a, i32>; 2]>,
    pub(super) tile_schedule: Option<TileScheduleOut<'a>>,
    /// The capture in which it was made, if it was made in one.
    pub(super) capture: Option<u64>,
    /// Launches of graphs before its lists were written, or read and found right.
    pub(super) since: u64,
}

/// The sizes of a permutation; all counts of rows are below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// T.
    pub tokens: usize,
    /// k, at least 1.
    pub top_k: usize,
    /// E_loc.
    pub local_experts: usize,
    /// P.
    pub rows: usize,
}

/// Lists of one's own, for [`Permutation::from_lists`]. The permutation borrows their memory.
#[derive(Debug)]
pub struct PermutationLists<'a> {
    /// T.
    pub tokens: usize,
    /// k.
    pub top_k: usize,
    /// P, rows of the permuted arrays.
    pub rows: usize,
    /// i64 `[E_loc + 1]`, from 0, ascending to at most P: expert e owns permuted rows `expert_offsets[e] ..
    /// expert_offsets[e + 1]`.
    pub expert_offsets: SliceMut<'a, i64>,
    /// i32 `[P]`, permuted row -> r = t * k + slot; R = T * k or more where no row goes. For operations that
    /// gather rows or sums, copy rows, or fill padding.
    pub sorted_rows: Option<SliceMut<'a, i32>>,
    /// i32 `[R]`, r -> permuted row; below 0, or at or over `expert_offsets[E_loc]`, for invalid rows. For
    /// operations that scatter rows or sum them.
    pub inverse: Option<SliceMut<'a, i32>>,
    /// Where to build the tile schedule, for the GEMMs.
    pub tile_schedule: Option<TileScheduleOut<'a>>,
}

const OP: &str = "Permutation";

impl<'a> Permutation<'a> {
    /// A permutation from lists of one's own. They are copied to the host after the work already in `stream`,
    /// and scanned.
    ///
    /// # Errors
    /// Lists that are too short or on another device; offsets that do not ascend from 0 to at most P; two
    /// rows at one place; `sorted_rows` and `inverse` that contradict each other. A stream that is being
    /// captured.
    pub fn from_lists(stream: &Stream, lists: PermutationLists<'a>) -> Result<Permutation<'a>> {
        let since = replays();
        lists.check(stream)?;
        lists.scan(stream)?;
        // SAFETY: the lists have been scanned, and are borrowed exclusively from before the scan on. If a
        // graph overwrites them, the number of launches tells.
        unsafe { Self::of_lists(stream, lists, since) }
    }

    /// As [`Permutation::from_lists`], without the scan: nothing is copied to the host, and it can be
    /// captured.
    ///
    /// # Safety
    /// When the work before it in `stream` is done, `expert_offsets` ascends from 0 to at most `rows`, and no
    /// two elements of `inverse` that are at least 0 and below the last offset are equal. Where `sorted_rows`
    /// has no row for a place, `inverse` leads nowhere near it. If it is captured, this holds at every launch
    /// of the graph.
    ///
    /// # Errors
    /// Lists that are too short or on another device.
    pub unsafe fn from_lists_unchecked(
        stream: &Stream,
        lists: PermutationLists<'a>,
    ) -> Result<Permutation<'a>> {
        let since = replays();
        // SAFETY: the caller's contract.
        unsafe { Self::of_lists(stream, lists, since) }
    }

    /// # Safety
    /// As for [`from_lists_unchecked`](Self::from_lists_unchecked), unless a graph has been launched since
    /// there were `since` launches that writes the lists.
    unsafe fn of_lists(stream: &Stream, lists: PermutationLists<'a>, since: u64) -> Result<Permutation<'a>> {
        let sizes = lists.check(stream)?;
        let PermutationLists { expert_offsets, sorted_rows, inverse, tile_schedule, .. } = lists;
        if let Some(out) = &tile_schedule {
            let offsets = expert_offsets.as_slice();
            let unchanged = Unchanged { since, memory: [offsets.memory(), None, None, None] };
            // SAFETY: the offsets have their length and ascend from 0 to at most `rows`, by the caller's
            // contract, if they are unchanged.
            unsafe {
                write_tile_schedule(stream, offsets, sizes.local_experts, sizes.rows, out, &unchanged)?;
            }
        }
        Ok(Permutation {
            sizes,
            expert_offsets,
            sorted_rows: sorted_rows.map(|list| list.into_slice_mut(..sizes.rows)),
            inverse: inverse.map(|list| list.into_slice_mut(..sizes.expanded_rows())),
            row_experts: None,
            problem_sizes: None,
            tile_schedule,
            capture: stream.capture_id(),
            since,
        })
    }

    /// The same, for a call that takes a `Permutation` by value: the GEMMs, which count in its schedule.
    pub fn reborrow(&mut self) -> Permutation<'_> {
        fn list<'b, T: bytemuck::Pod>(list: &'b mut Option<SliceMut<'_, T>>) -> Option<SliceMut<'b, T>> {
            list.as_mut().map(SliceMut::reborrow)
        }
        Permutation {
            sizes: self.sizes,
            expert_offsets: self.expert_offsets.reborrow(),
            sorted_rows: list(&mut self.sorted_rows),
            inverse: list(&mut self.inverse),
            row_experts: list(&mut self.row_experts),
            problem_sizes: self.problem_sizes.as_mut().map(|sizes| sizes.each_mut().map(SliceMut::reborrow)),
            tile_schedule: self.tile_schedule.as_mut().map(TileScheduleOut::reborrow),
            capture: self.capture,
            since: self.since,
        }
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.sizes.tokens
    }

    /// k.
    pub fn top_k(&self) -> usize {
        self.sizes.top_k
    }

    /// E_loc.
    pub fn local_experts(&self) -> usize {
        self.sizes.local_experts
    }

    /// P, rows of the permuted arrays.
    pub fn rows(&self) -> usize {
        self.sizes.rows
    }

    /// Most rows of a tile of its schedule, if it has one.
    pub fn block_m(&self) -> Option<usize> {
        self.tile_schedule.as_ref().map(|schedule| schedule.block_m)
    }

    /// i64 `[E_loc + 1]`. Of no tokens it is what was there before.
    pub fn expert_offsets(&self) -> Slice<'_, i64> {
        self.expert_offsets.as_slice()
    }

    /// i32 `[P]`, permuted row -> r.
    pub fn sorted_rows(&self) -> Option<Slice<'_, i32>> {
        self.sorted_rows.as_ref().map(SliceMut::as_slice)
    }

    /// i32 `[R]`, r -> permuted row.
    pub fn inverse(&self) -> Option<Slice<'_, i32>> {
        self.inverse.as_ref().map(SliceMut::as_slice)
    }

    /// i32 `[P]`, permuted row -> local expert, if [`permute`](super::permute::permute) was asked for it.
    pub fn row_experts(&self) -> Option<Slice<'_, i32>> {
        self.row_experts.as_ref().map(SliceMut::as_slice)
    }

    /// i32 `[E_loc, 3]` each, of GEMM 1 and of GEMM 2, if [`permute`](super::permute::permute) was asked for
    /// them.
    pub fn problem_sizes(&self) -> Option<[Slice<'_, i32>; 2]> {
        self.problem_sizes.as_ref().map(|sizes| sizes.each_ref().map(SliceMut::as_slice))
    }

    /// The tile schedule, as [`TileScheduleOut`] draws it.
    pub fn tile_schedule(&self) -> Option<Slice<'_, [u32; 4]>> {
        self.tile_schedule.as_ref().map(|schedule| schedule.entries.as_slice())
    }

    /// Refuses `stream` if the lists are not, not yet, or no longer, in the memory that it sees. What is
    /// launched relies on the [`unchanged`](Self::unchanged) lists.
    pub(super) fn check(&self, op: &'static str, stream: &Stream) -> Result<()> {
        self.expert_offsets.as_slice().check(op, "permutation", self.sizes.local_experts + 1, stream)?;
        if stream.is_rehearsal() {
            return Ok(());
        }
        match (self.capture, stream.capture_id()) {
            (None, None) if !self.unchanged().holds() => Err(overwritten(op)),
            (own, its) if own == its => Ok(()),
            (Some(_), _) => {
                let rule =
                    "must be used in the capture that it was made in: outside it has not been computed";
                Err(Error::argument(op, "permutation", "one that was captured", rule))
            }
            (None, _) => {
                let rule = "must be made in the capture that it is used in: a replay may find other lists";
                Err(Error::argument(op, "permutation", "one that was not captured", rule))
            }
        }
    }

    /// The lists' memory, which must hold what it held when it was sorted or scanned: for the launch of an
    /// operation that relies on it.
    pub(super) fn unchanged(&self) -> Unchanged<'_> {
        fn memory<'m, T: bytemuck::Pod>(
            list: Option<Slice<'m, T>>,
        ) -> Option<&'m std::sync::Arc<Allocation>> {
            list.and_then(|list| list.memory())
        }
        let offsets = self.expert_offsets.as_slice().memory();
        let lists = [memory(self.sorted_rows()), memory(self.inverse()), memory(self.tile_schedule())];
        let [sorted_rows, inverse, schedule] = lists;
        Unchanged { since: self.since, memory: [offsets, sorted_rows, inverse, schedule] }
    }

    /// Refuses other sizes than these.
    pub(super) fn check_size(
        &self,
        op: &'static str,
        name: &str,
        value: usize,
        (own, what): (usize, &str),
    ) -> Result<()> {
        require(value == own, op, name, value, || format!("must be {own}, the {what} of the permutation"))
    }

    /// The address of `expert_offsets[E_loc]`, the number of valid rows. The offsets have been checked.
    pub(super) fn valid_rows(&self) -> DevicePtr<i64> {
        self.expert_offsets.ptr().offset(self.sizes.local_experts)
    }

    /// `sorted_rows` for `stream`; an error if the permutation has none.
    pub(super) fn checked_sorted_rows(&self, op: &'static str, stream: &Stream) -> Result<DevicePtr<i32>> {
        checked_list(op, "sorted_rows", self.sorted_rows(), self.sizes.rows, stream)
    }

    /// `inverse` for `stream`; an error if the permutation has none.
    pub(super) fn checked_inverse(&self, op: &'static str, stream: &Stream) -> Result<DevicePtr<i32>> {
        checked_list(op, "inverse", self.inverse(), self.sizes.expanded_rows(), stream)
    }

    /// The tile schedule for a GEMM on `stream`, which counts in it; an error unless its tiles have `block_m`
    /// rows.
    pub(super) fn checked_schedule(
        &self,
        op: &'static str,
        block_m: usize,
        stream: &Stream,
    ) -> Result<DevicePtr<[u32; 4]>> {
        let Some(schedule) = &self.tile_schedule else {
            let rule = format!("must have one with tiles of {block_m} rows");
            return Err(Error::argument(op, "permutation", "without a tile schedule", rule));
        };
        self.check_size(op, "block_m", block_m, (schedule.block_m, "tiles' height"))?;
        let Sizes { rows, local_experts, .. } = self.sizes;
        schedule.check(op, rows, local_experts, stream)?;
        Ok(schedule.entries.ptr())
    }
}

fn checked_list(
    op: &'static str,
    name: &str,
    list: Option<Slice<'_, i32>>,
    len: usize,
    stream: &Stream,
) -> Result<DevicePtr<i32>> {
    let Some(list) = list else {
        let rule = format!("must have `{name}` for this");
        return Err(Error::argument(op, "permutation", format!("without `{name}`"), rule));
    };
    list.check(op, name, len, stream)?;
    Ok(list.ptr())
}

impl Sizes {
    /// R = T * k.
    pub fn expanded_rows(&self) -> usize {
        self.tokens * self.top_k
    }
}

impl PermutationLists<'_> {
    /// Refuses lists of the wrong length or device.
    fn check(&self, stream: &Stream) -> Result<Sizes> {
        let PermutationLists { tokens, top_k, rows, .. } = *self;
        let offsets = self.expert_offsets.len();
        require(offsets >= 1, OP, "expert_offsets", "0 elements", || {
            "must have an element more than there are experts".into()
        })?;
        let local_experts = offsets - 1;
        checked_i32(OP, "local_experts", local_experts)?;
        checked_i32(OP, "rows", rows)?;
        require(top_k >= 1, OP, "top_k", top_k, || "must be at least 1".into())?;
        let most = i32::MAX as usize / top_k;
        require((rows.min(1)..=most).contains(&tokens), OP, "tokens", tokens, || {
            format!("must be in 1..={most} with top_k {top_k}: expanded rows are counted in i32")
        })?;
        let sizes = Sizes { tokens, top_k, local_experts, rows };
        self.expert_offsets.as_slice().check(OP, "expert_offsets", offsets, stream)?;
        if let Some(list) = &self.sorted_rows {
            list.as_slice().check(OP, "sorted_rows", rows, stream)?;
        }
        if let Some(list) = &self.inverse {
            list.as_slice().check(OP, "inverse", sizes.expanded_rows(), stream)?;
        }
        if let Some(schedule) = &self.tile_schedule {
            schedule.check(OP, rows, local_experts, stream)?;
        }
        Ok(sizes)
    }

    /// Refuses values that are no permutation, after [`PermutationLists::check`].
    fn scan(&self, stream: &Stream) -> Result<()> {
        let refuse = |name: &str, at: usize, value: &dyn std::fmt::Display, rule: String| {
            Err(Error::argument(OP, format!("{name}[{at}]"), value, rule))
        };
        let (rows, expanded) = (self.rows, self.tokens * self.top_k);
        let offsets = self.expert_offsets.to_vec(stream)?;
        let mut least = 0;
        for (expert, &offset) in offsets.iter().enumerate() {
            let most = if expert == 0 { 0 } else { rows as i64 };
            if !(least..=most).contains(&offset) {
                let rule = format!("must be in {least}..={most}: offsets ascend from 0 to at most the rows");
                return refuse("expert_offsets", expert, &offset, rule);
            }
            least = offset;
        }
        let valid = least as usize;
        let read = |list: &Option<SliceMut<'_, i32>>, len: usize| {
            list.as_ref().map(|list| list.as_slice().slice(..len).to_vec(stream)).transpose()
        };
        let sorted_rows = read(&self.sorted_rows, rows)?;
        let inverse = read(&self.inverse, expanded)?;
        // Which expanded row each valid permuted row has, by either list.
        let mut owners = vec![None; valid];
        if let Some(inverse) = &inverse {
            for (r, &row) in inverse.iter().enumerate() {
                let Some(owner) = usize::try_from(row).ok().and_then(|row| owners.get_mut(row)) else {
                    continue;
                };
                if let Some(other) = owner.replace(r) {
                    let rule = format!("must not be the place of expanded row {other}, too");
                    return refuse("inverse", r, &row, rule);
                }
            }
        }
        if let Some(sorted_rows) = &sorted_rows {
            let mut seen = vec![false; expanded];
            for (row, &r) in sorted_rows[..valid].iter().enumerate() {
                let owner = usize::try_from(r).ok().filter(|&r| r < expanded);
                if let Some(r) = owner
                    && std::mem::replace(&mut seen[r], true)
                {
                    return refuse("sorted_rows", row, &r, "must not stand at two rows".into());
                }
                if inverse.is_some() && owner != owners[row] {
                    let rule = match owners[row] {
                        Some(r) => format!("must be {r}, as `inverse` has it"),
                        None => format!("must be {expanded} or more: `inverse` leads to no such row"),
                    };
                    return refuse("sorted_rows", row, &r, rule);
                }
            }
        }
        Ok(())
    }
}
