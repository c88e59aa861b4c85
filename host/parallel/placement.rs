//! Which rank holds which experts.
//!
//! ```text
//!   8 experts, 3 ranks     rank 0      rank 1     rank 2
//!   linear                 0 1 2       3 4 5      6 7           the first ranks have one more
//!   round robin            0 3 6       1 4 7      2 5
//!   balanced, 3 each       0 1 2       0 3 4      0 5 6 7 ..    hot expert 0 three times
//! ```
//!
//! An expert with several holders is a *replica* on each. Which of them takes a row is decided on the device,
//! by the row's number, so that all ranks know it without a word: holder number `(source + token + expert) mod
//! n`, where source is the rank that the token comes from and token its number there.

use std::fmt;

use crate::config::MoeConfig;
use crate::error::{Error, Result, require};

const OP: &str = "Placement";

/// Which rank holds which experts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Placement {
    experts: usize,
    /// By rank, ascending.
    of_rank: Vec<Vec<usize>>,
}

impl Placement {
    /// Consecutive experts on each rank; the first `experts mod ranks` ranks have one more.
    ///
    /// # Errors
    /// If there are no ranks.
    pub fn linear(experts: usize, ranks: usize) -> Result<Placement> {
        require(ranks > 0, OP, "ranks", ranks, || "must be at least 1".into())?;
        let (each, more) = (experts / ranks, experts % ranks);
        let first = |rank: usize| rank * each + rank.min(more);
        Self::from_lists(experts, (0..ranks).map(|rank| (first(rank)..first(rank + 1)).collect()).collect())
    }

    /// Expert e on rank `e mod ranks`.
    ///
    /// # Errors
    /// If there are no ranks.
    pub fn round_robin(experts: usize, ranks: usize) -> Result<Placement> {
        require(ranks > 0, OP, "ranks", ranks, || "must be at least 1".into())?;
        Self::from_lists(experts, (0..ranks).map(|rank| (rank..experts).step_by(ranks).collect()).collect())
    }

    /// Any placement: for each rank the experts that it holds, in any order.
    ///
    /// # Errors
    /// If there are no ranks; if an expert does not exist, is on no rank, or twice on one.
    pub fn from_lists(experts: usize, mut of_rank: Vec<Vec<usize>>) -> Result<Placement> {
        require(!of_rank.is_empty(), OP, "ranks", 0, || "must be at least 1".into())?;
        let mut is_held = vec![false; experts];
        for (rank, list) in of_rank.iter_mut().enumerate() {
            list.sort_unstable();
            let name = format!("ranks[{rank}]");
            let twice = list.windows(2).find(|pair| pair[0] == pair[1]);
            if let Some(pair) = twice {
                return Err(Error::argument(OP, name, pair[0], "must be there once"));
            }
            for &expert in list.iter() {
                require(expert < experts, OP, &name, expert, || {
                    format!("must be below {experts}, the number of experts")
                })?;
                is_held[expert] = true;
            }
        }
        let missing = is_held.iter().position(|held| !held);
        require(missing.is_none(), OP, "ranks", format_args!("no expert {}", missing.unwrap_or(0)), || {
            "must hold every expert".into()
        })?;
        Ok(Placement { experts, of_rank })
    }

    /// A placement for measured loads, e.g. [`ExpertParallel::counts`](super::ExpertParallel::counts) of all
    /// ranks added up: each rank has `slots` experts, and what is left over beyond one place for each goes to
    /// replicas of those with the largest load per replica. Then the replicas go to the ranks, the heaviest
    /// first, each to the rank with the least load that has room and does not hold the expert.
    ///
    /// # Errors
    /// If the slots of all ranks are fewer than the experts.
    pub fn balanced(loads: &[u64], ranks: usize, slots: usize) -> Result<Placement> {
        let experts = loads.len();
        let most = slots.min(experts);
        require(ranks.saturating_mul(most) >= experts && ranks > 0, OP, "slots", slots, || {
            format!(
                "must be at least {}, for {experts} experts on {ranks} ranks",
                experts.div_ceil(ranks.max(1))
            )
        })?;
        let mut copies = vec![1u64; experts];
        for _ in experts..ranks * most {
            // A rank holds an expert once. Compared as fractions: load / copies.
            let room = (0..experts).filter(|&expert| copies[expert] < ranks as u64);
            let heavier = |&a: &usize, &b: &usize| {
                let left = u128::from(loads[a]) * u128::from(copies[b]);
                left.cmp(&(u128::from(loads[b]) * u128::from(copies[a]))).then(b.cmp(&a))
            };
            match room.max_by(heavier).filter(|&expert| loads[expert] > 0) {
                Some(expert) => copies[expert] += 1,
                None => break,
            }
        }
        let mut order: Vec<usize> = (0..experts).collect();
        // Experts with many replicas first: they need as many ranks with room.
        order.sort_by(|&a, &b| {
            let load = |expert: usize| loads[expert] as f64 / copies[expert] as f64;
            copies[b].cmp(&copies[a]).then(load(b).total_cmp(&load(a))).then(a.cmp(&b))
        });
        let (mut of_rank, mut load_of) = (vec![Vec::new(); ranks], vec![0.0f64; ranks]);
        for expert in order {
            let load = loads[expert] as f64 / copies[expert] as f64;
            let mut placed = 0;
            for _ in 0..copies[expert] {
                let free = (0..ranks)
                    .filter(|&rank| of_rank[rank].len() < slots && !of_rank[rank].contains(&expert));
                let lightest = free.min_by(|&a, &b| load_of[a].total_cmp(&load_of[b]).then(a.cmp(&b)));
                // A replica for which no rank has room is left out; the first has one by the count above.
                let Some(rank) = lightest else { break };
                of_rank[rank].push(expert);
                load_of[rank] += load;
                placed += 1;
            }
            require(placed > 0, OP, "slots", slots, || format!("must leave room for expert {expert}"))?;
        }
        Self::from_lists(experts, of_rank)
    }

    /// E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// R.
    pub fn ranks(&self) -> usize {
        self.of_rank.len()
    }

    /// The experts of a rank, ascending: what [`MoeConfig::local_experts`] takes. None of a rank that there is
    /// not.
    pub fn of_rank(&self, rank: usize) -> &[usize] {
        self.of_rank.get(rank).map_or(&[], Vec::as_slice)
    }

    /// The layer as rank `rank` has it.
    pub fn config(&self, config: &MoeConfig, rank: usize) -> MoeConfig {
        MoeConfig { local_experts: Some(self.of_rank(rank).to_vec()), ..config.clone() }
    }

    /// The ranks that hold an expert, ascending.
    pub fn holders(&self, expert: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.ranks()).filter(move |&rank| self.of_rank[rank].binary_search(&expert).is_ok())
    }

    /// Whether an expert has several holders.
    pub fn has_replicas(&self) -> bool {
        self.of_rank.iter().map(Vec::len).sum::<usize>() > self.experts
    }

    /// The holders of all experts, one behind the other, and where those of each begin: `[E + 1]`.
    pub(super) fn tables(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut first, mut holders) = (vec![0], Vec::new());
        for expert in 0..self.experts {
            holders.extend(self.holders(expert).map(|rank| rank as u32));
            first.push(holders.len() as u32);
        }
        (first, holders)
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} experts as {:?}", self.experts, self.of_rank)
    }
}

#[cfg(test)]
mod tests {
    use super::Placement;

    fn lists(placement: &Placement) -> Vec<&[usize]> {
        (0..placement.ranks()).map(|rank| placement.of_rank(rank)).collect()
    }

    #[test]
    fn plain_placements() {
        let linear = Placement::linear(8, 3).expect("three ranks");
        assert_eq!(lists(&linear), [&[0, 1, 2][..], &[3, 4, 5], &[6, 7]]);
        let round = Placement::round_robin(8, 3).expect("three ranks");
        assert_eq!(lists(&round), [&[0, 3, 6][..], &[1, 4, 7], &[2, 5]]);
        assert!(!linear.has_replicas() && !round.has_replicas());
        let few = Placement::linear(2, 4).expect("four ranks");
        assert_eq!(lists(&few), [&[0][..], &[1], &[], &[]]);
    }

    #[test]
    fn bad_lists_are_refused() {
        let refusal = |lists: &[&[usize]]| {
            let lists = lists.iter().map(|list| list.to_vec()).collect();
            Placement::from_lists(3, lists).expect_err("a bad list").to_string()
        };
        assert_eq!(
            refusal(&[&[0, 1], &[1, 3, 2]]),
            "Placement: ranks[1] = 3: must be below 3, the number of experts"
        );
        assert_eq!(refusal(&[&[0, 1, 0], &[2]]), "Placement: ranks[0] = 0: must be there once");
        assert_eq!(refusal(&[&[0], &[2]]), "Placement: ranks = no expert 1: must hold every expert");
        assert!(refusal(&[]).contains("must be at least 1"));
    }

    #[test]
    fn hot_experts_get_replicas_and_ranks_even_loads() {
        let placement = Placement::balanced(&[600, 100, 100, 100, 100, 100], 4, 2).expect("eight slots");
        assert_eq!(placement.holders(0).count(), 3);
        assert!((0..4).all(|rank| placement.of_rank(rank).len() <= 2));
        let load = |rank: usize| {
            let of = |&expert: &usize| if expert == 0 { 200 } else { 100 };
            placement.of_rank(rank).iter().map(of).sum::<i32>()
        };
        assert_eq!((0..4).map(load).max(), Some(300));
        assert!(Placement::balanced(&[1, 1, 1], 1, 2).is_err());
        let idle = Placement::balanced(&[0; 4], 2, 4).expect("eight slots");
        assert!(!idle.has_replicas(), "what nobody asks for needs no replica");
    }
}
