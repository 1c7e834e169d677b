//! A batch cut into groups of whole sequences, each taken from the first layer to the last.
//!
//! Sequences do not see each other, so the cut is invisible; it decides what stays in caches and whether threads meet.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Encoder, StackCall, StackOutput};
use crate::error::Result;
use crate::nn::tokens::Layout;
use crate::ops::try_parallel;
use crate::simd::Float;

/// Rows that go through all layers together, on one thread: what a layer writes between its input and its output, nine
/// times (rows, D), then stays in the caches' reach and costs few fresh pages, while products have rows enough.
const GROUP_ROWS: usize = 1024;

/// The share of a call's time that threads with groups of their own may idle at its end. Beyond it all threads work on the
/// same rows, and wait for each other after every step of a layer.
const IDLE: f64 = 0.05;

/// Rows of a group below which the weights that stream by cost more than they give.
const LEAST_ROWS: usize = 64;

/// Some sequences of a batch and their rows.
pub(super) struct Group<'a, T> {
    /// Which they are.
    pub sequences: Range<usize>,
    /// Their tokens.
    pub layout: Layout,
    /// (tokens, D)
    pub rows: &'a mut [T],
}

/// Cuts a batch into groups of whole sequences: for several threads, groups small enough that each thread has equal work
/// with a group at a time; where no cut does that, larger ones for all threads together.
pub(super) fn groups_for(layout: &Layout, team: usize) -> Vec<Range<usize>> {
    if team == 1 {
        return layout.groups(GROUP_ROWS);
    }
    let total = layout.total();
    // Half as large as for one thread, since the last groups do not end at the same time.
    let sizes = std::iter::successors(Some(GROUP_ROWS / 2), |&rows| (rows > LEAST_ROWS).then_some(rows / 2));
    sizes
        .map(|rows| layout.groups(rows))
        .find(|groups| {
            let mut ends = vec![0_usize; team];
            for group in groups {
                // Who is free first takes the next.
                if let Some(first_free) = ends.iter_mut().min() {
                    *first_free += layout.lengths[group.clone()].iter().sum::<usize>();
                }
            }
            let time = team * ends.into_iter().max().unwrap_or(0);
            (time - total) as f64 <= IDLE * time as f64
        })
        .unwrap_or_else(|| layout.groups(GROUP_ROWS * team))
}

/// Each group on all threads, one group after the other.
pub(super) fn in_turn<T: Float>(
    stack: &Encoder<T>,
    groups: Vec<Group<'_, T>>,
    call: &StackCall<'_, T>,
    output: &mut StackOutput<T>,
) -> Result<()> {
    let largest = groups.iter().map(|g| &g.layout).max_by_key(|layout| layout.total()).cloned();
    let Some(largest) = largest else { return Ok(()) };
    let mut buffers = None;
    for Group { sequences, layout, rows } in groups {
        stack.layers_of_group(rows, (&layout, &largest), &call.of(sequences), &mut buffers, output)?;
    }
    Ok(())
}

/// Each group on one thread, from the first layer to the last: no thread waits for another in between.
pub(super) fn side_by_side<T: Float>(
    stack: &Encoder<T>,
    groups: Vec<Group<'_, T>>,
    call: &StackCall<'_, T>,
    output: &mut StackOutput<T>,
) -> Result<()> {
    let layers = stack.layers.len();
    let nothing =
        || StackOutput { rows: Vec::new(), hidden_states: Vec::new(), weights: vec![Vec::new(); layers] };
    let tasks: Vec<_> = groups.into_iter().map(|group| Mutex::new((group, nothing()))).collect();
    try_parallel(tasks.len(), |i| {
        let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (Group { sequences, layout, rows }, output) = &mut *task;
        stack.layers_of_group(rows, (layout, layout), &call.of(sequences.clone()), &mut None, output)
    })?;
    for task in tasks {
        let (_, of_group) = task.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (all, of_group) in output.weights.iter_mut().zip(of_group.weights) {
            if all.is_empty() {
                *all = of_group;
            } else {
                all.extend(of_group);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_small_enough_for_all_threads() {
        let cut = |lengths: &[usize], team| groups_for(&Layout::dense(lengths.to_vec()), team);
        // One thread cares for its caches only; two have one half each, and more groups where these are uneven.
        assert_eq!(cut(&[32; 64], 1), [0..32, 32..64]);
        assert_eq!(cut(&[32; 32], 2), [0..16, 16..32]);
        assert_eq!(cut(&[128; 24], 2), (0..6).map(|i| 4 * i..4 * i + 4).collect::<Vec<_>>());
        // Nothing that one thread would finish long after the other: all threads share every operation.
        for lengths in [&[500][..], &[100, 100, 100]] {
            let groups = cut(lengths, 2);
            assert_eq!((groups.len(), groups[0].clone()), (1, 0..lengths.len()));
        }
        assert!(cut(&[], 2).is_empty());
    }
}
