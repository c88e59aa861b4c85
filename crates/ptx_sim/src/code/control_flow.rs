//! Where lanes that part at a branch meet again: immediate post-dominators.
//!
//! The graph has a node per instruction that matters (leaders of basic blocks) and one for the function's
//! end. A node's immediate post-dominator is the nearest node that every path from it to the end goes
//! through. They are found by the iteration of Cooper, Harvey and Kennedy ("A Simple, Fast Dominance
//! Algorithm") on the reversed graph.

/// What follows an instruction, as far as the graph is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// The next instruction.
    Next,
    /// The target; also the next instruction if it depends on a predicate.
    Branch { target: u32, conditional: bool },
    /// Any of these targets; also the next instruction if it depends on a predicate. Without targets, a dead
    /// end: lanes that trap do not keep others from meeting.
    Switch { targets: Vec<u32>, conditional: bool },
    /// The function's end; also the next instruction if it depends on a predicate.
    End { conditional: bool },
}

/// For every instruction that can part lanes, the instruction where they meet; `None` at the function's end.
/// Instructions are numbered from zero within the function.
pub(crate) fn meeting_points(edges: &[Edge]) -> Vec<(usize, Option<u32>)> {
    let len = edges.len();
    let mut leader = vec![false; len + 1];
    leader[0] = true;
    for (at, edge) in edges.iter().enumerate() {
        match edge {
            Edge::Next => continue,
            Edge::Branch { target, .. } => leader[*target as usize] = true,
            Edge::Switch { targets, .. } => targets.iter().for_each(|t| leader[*t as usize] = true),
            Edge::End { .. } => {}
        }
        leader[at + 1] = true;
    }
    let starts: Vec<usize> = (0..len).filter(|&at| leader[at]).collect();
    let mut block_of = vec![0; len];
    for (block, &start) in starts.iter().enumerate() {
        let end = starts.get(block + 1).copied().unwrap_or(len);
        block_of[start..end].fill(block);
    }
    let end = starts.len();
    let last = |block: usize| starts.get(block + 1).copied().unwrap_or(len) - 1;
    let successors: Vec<Vec<usize>> = (0..end)
        .map(|block| {
            let at = last(block);
            let next = if at + 1 < len { block_of[at + 1] } else { end };
            let (mut list, conditional) = match &edges[at] {
                Edge::Next => (vec![], true),
                Edge::Branch { target, conditional } => (vec![block_of[*target as usize]], *conditional),
                Edge::Switch { targets, conditional } => {
                    (targets.iter().map(|t| block_of[*t as usize]).collect(), *conditional)
                }
                Edge::End { conditional } => (vec![end], *conditional),
            };
            if conditional {
                list.push(next);
            }
            list
        })
        .collect();
    let post = post_dominators(&successors);
    let parts = |at: &usize| match &edges[*at] {
        Edge::Branch { conditional, .. } => *conditional,
        Edge::Switch { .. } => true,
        _ => false,
    };
    (0..len)
        .filter(parts)
        .map(|at| (at, post[block_of[at]].filter(|&block| block != end).map(|block| starts[block] as u32)))
        .collect()
}

/// Immediate post-dominator of each block; the end is numbered after the last block.
fn post_dominators(successors: &[Vec<usize>]) -> Vec<Option<usize>> {
    let end = successors.len();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (block, list) in successors.iter().enumerate() {
        for &next in list {
            predecessors[next].push(block);
        }
    }
    // Blocks in reverse post-order of a walk from the end against the edges.
    let mut order = Vec::with_capacity(end + 1);
    let mut seen = vec![false; end + 1];
    let walk = |from: usize, seen: &mut Vec<bool>, order: &mut Vec<usize>, predecessors: &[Vec<usize>]| {
        let mut stack = vec![(from, 0)];
        seen[from] = true;
        while let Some((node, next)) = stack.pop() {
            if let Some(&before) = predecessors[node].get(next) {
                stack.push((node, next + 1));
                if !seen[before] {
                    seen[before] = true;
                    stack.push((before, 0));
                }
            } else {
                order.push(node);
            }
        }
    };
    walk(end, &mut seen, &mut order, &predecessors);
    // Blocks that never reach the end (endless loops) are left without a meeting point.
    order.reverse();
    let mut number = vec![usize::MAX; end + 1];
    for (i, &node) in order.iter().enumerate() {
        number[node] = i;
    }
    let mut post: Vec<Option<usize>> = vec![None; end + 1];
    post[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for &node in order.iter().skip(1) {
            let mut common: Option<usize> = None;
            for &next in &successors[node] {
                if post[next].is_none() {
                    continue;
                }
                common = Some(match common {
                    None => next,
                    Some(other) => intersect(next, other, &post, &number),
                });
            }
            if common.is_some() && post[node] != common {
                post[node] = common;
                changed = true;
            }
        }
    }
    post.truncate(end);
    post
}

fn intersect(mut a: usize, mut b: usize, post: &[Option<usize>], number: &[usize]) -> usize {
    while a != b {
        while number[a] > number[b] {
            a = post[a].expect("processed nodes have one");
        }
        while number[b] > number[a] {
            b = post[b].expect("processed nodes have one");
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(target: u32) -> Edge {
        Edge::Branch { target, conditional: true }
    }

    fn jump(target: u32) -> Edge {
        Edge::Branch { target, conditional: false }
    }

    const RETURN: Edge = Edge::End { conditional: false };

    #[test]
    fn diamond_meets_after_both_arms() {
        let edges = [branch(3), Edge::Next, jump(4), Edge::Next, RETURN];
        assert_eq!(meeting_points(&edges), [(0, Some(4))]);
    }

    #[test]
    fn loop_meets_at_its_exit() {
        let edges = [Edge::Next, branch(0), RETURN];
        assert_eq!(meeting_points(&edges), [(1, Some(2))]);
    }

    #[test]
    fn early_return_never_meets() {
        let edges = [branch(2), RETURN, Edge::Next, RETURN];
        assert_eq!(meeting_points(&edges), [(0, None)]);
    }

    #[test]
    fn endless_loops_do_not_hide_the_meeting_point() {
        // An arm that never ends does not count: lanes that leave meet at 3.
        let edges = [branch(2), jump(3), jump(2), RETURN];
        assert_eq!(meeting_points(&edges), [(0, Some(1))]);
    }
}
