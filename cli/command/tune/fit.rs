//! From times beside each other to the limits of a table: those that lose least.
//!
//! ```text
//!   x            1     2     3     4     6     8    12        what a limit compares, e.g. mean rows of an expert
//!   us, choice 0 10    11    14    19    ..                   a case has a time for each choice
//!       choice 1 11    12    13    14    15    17    24
//!       choice 2 ..                      17    17    21
//!                          |                 |
//!                       limit 0           limit 1             choice n up to limit n, the last one beyond all
//! ```
//!
//! What a choice of limits loses in a case is the logarithm of its time by the least; the limits with the
//! least mean win, but those that stand stay where that gains no more than [`MARGIN`]: so noise moves none.

/// What other limits must gain, as a fraction of the time, on average over the cases.
pub const MARGIN: f64 = 0.002;

/// The choices at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What the limits compare.
    pub x: f64,
    /// Microseconds of each choice.
    pub us: Vec<f64>,
}

impl Case {
    /// What `choice` loses against the best.
    pub fn loss(&self, choice: usize) -> f64 {
        (self.us[choice] / self.us.iter().copied().fold(f64::INFINITY, f64::min)).ln()
    }
}

/// The mean loss of some limits, ascending, with one choice more than there are limits.
pub fn loss(cases: &[Case], limits: &[f64]) -> f64 {
    let of_case = |case: &Case| case.loss(limits.iter().filter(|&&limit| case.x > limit).count());
    cases.iter().map(of_case).sum::<f64>() / cases.len().max(1) as f64
}

/// The limits for one choice more than `present` has, which it returns where others gain little. A limit
/// between two sizes is their geometric mean, and one past all of them the last.
pub fn limits(cases: &[Case], present: &[f64]) -> Vec<f64> {
    let places = places(cases.iter().map(|case| case.x));
    let mut best = search(present, &vec![places; present.len()], |limits| loss(cases, limits));
    best.sort_unstable_by(f64::total_cmp);
    best
}

/// Where a limit may be among sizes: below all, between two, at the last.
pub fn places(sizes: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sizes: Vec<f64> = sizes.collect();
    sizes.sort_unstable_by(f64::total_cmp);
    sizes.dedup();
    let mut places = vec![0.0];
    places.extend(sizes.windows(2).map(|pair| (pair[0] * pair[1]).sqrt()));
    places.extend(sizes.last());
    places
}

/// Of all limits, each at one of its places, those with the least loss; `present` where others gain little,
/// and single ones of it where others gain nothing.
pub fn search(present: &[f64], places: &[Vec<f64>], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut best = (loss(present) - MARGIN, present.to_vec());
    let mut indices = vec![0; places.len()];
    loop {
        let limits: Vec<f64> = indices.iter().zip(places).map(|(&index, places)| places[index]).collect();
        let found = loss(&limits);
        if found < best.0 {
            best = (found, limits);
        }
        let Some(next) = (0..indices.len()).find(|&i| indices[i] + 1 < places[i].len()) else { break };
        indices[next] += 1;
        indices[..next].fill(0);
    }
    let (least, mut limits) = best;
    for (index, &present) in present.iter().enumerate() {
        let other = std::mem::replace(&mut limits[index], present);
        if loss(&limits) > least {
            limits[index] = other;
        }
    }
    limits
}

/// Of several settings, each with its time in every case, the one that loses least; the first, where others
/// gain little.
pub fn setting(cases: &[Vec<f64>]) -> usize {
    let count = cases.first().map_or(0, Vec::len);
    let mean = |setting: usize| {
        let losses = cases.iter().map(|us| Case { x: 0.0, us: us.clone() }.loss(setting));
        losses.sum::<f64>() / cases.len() as f64
    };
    let mut best = 0;
    let mut least = if count == 0 { 0.0 } else { mean(0) - MARGIN };
    for setting in 1..count {
        let loss = mean(setting);
        if loss < least {
            (best, least) = (setting, loss);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases whose best choice changes at the limits.
    fn cases(xs: &[f64], limits: &[f64]) -> Vec<Case> {
        let case = |&x: &f64| {
            let best = limits.iter().filter(|&&limit| x > limit).count();
            let us = (0..=limits.len()).map(|choice| 100.0 + 5.0 * best.abs_diff(choice) as f64).collect();
            Case { x, us }
        };
        xs.iter().map(case).collect()
    }

    #[test]
    fn limits_are_found_wherever_they_are() {
        let xs = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
        for first in 0..=xs.len() {
            for second in first..=xs.len() {
                let place = |count: usize| if count == 0 { 0.5 } else { xs[count - 1] };
                let truth = [place(first), place(second)];
                let cases = cases(&xs, &truth);
                for present in [[0.0, 0.0], [3.0, 11.0], [100.0, 100.0]] {
                    let found = limits(&cases, &present);
                    assert!(found.is_sorted() && loss(&cases, &found) == 0.0, "{truth:?}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn one_case_that_disagrees_moves_nothing_and_a_small_gain_neither() {
        let mut cases = cases(&[1.0, 2.0, 4.0, 8.0, 16.0], &[3.0]);
        cases[4].us.swap(0, 1);
        let found = limits(&cases, &[0.0]);
        assert!((2.0..4.0).contains(&found[0]), "{found:?}");
        cases.iter_mut().for_each(|case| case.us = case.us.iter().map(|us| 1000.0 + us / 100.0).collect());
        assert_eq!(limits(&cases, &[7.0]), [7.0]);
    }

    #[test]
    fn nothing_measured_changes_nothing() {
        assert_eq!(limits(&[], &[3.0, 11.0]), [3.0, 11.0]);
        assert_eq!(setting(&[]), 0);
    }

    #[test]
    fn the_setting_that_loses_least_wins() {
        assert_eq!(setting(&[vec![10.0, 9.0, 11.0], vec![10.0, 9.5, 8.0]]), 1);
        assert_eq!(setting(&[vec![10.0, 9.99], vec![10.0, 10.0]]), 0);
    }
}
