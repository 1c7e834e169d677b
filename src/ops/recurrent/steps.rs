//! Which rows of a batch run at which time.

use std::cmp::Reverse;
use std::ops::Range;

use crate::error::Result;
use crate::ops::rows::over_rows;
use crate::simd::Float;

/// Sequences whose rows stand time by time: first all rows of time 0, then those of time 1, and so on. Within a time they
/// stand in the order of the sequences' lengths, the longest first, equal ones as they came. So those that run at a time are
/// the first of those that ran before, and padding has no rows: order and number of all rows depend on the lengths only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The sequence of the batch that each place has.
    order: Vec<usize>,
    /// Lengths by place, descending.
    lengths: Vec<usize>,
    /// The first row of each time, and the end of the last.
    starts: Vec<usize>,
    /// The batch's row that each row is.
    from: Vec<usize>,
    /// Rows of the batch, padding included.
    full: usize,
}

impl Steps {
    /// Sequences of some lengths, each the first rows of `full` rows of the batch (its padding behind it).
    pub fn new(lengths: &[usize], full: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| Reverse(lengths[b]));
        let mut first = Vec::with_capacity(full.len());
        let mut end = 0;
        for rows in full {
            first.push(end);
            end += rows;
        }
        let lengths: Vec<usize> = order.iter().map(|&b| lengths[b]).collect();
        let (mut starts, mut from) = (vec![0], Vec::with_capacity(lengths.iter().sum()));
        for time in 0..lengths.first().copied().unwrap_or(0) {
            let running = lengths.partition_point(|&length| length > time);
            from.extend(order[..running].iter().map(|&b| first[b] + time));
            starts.push(from.len());
        }
        Self { order, lengths, starts, from, full: end }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.order.len()
    }

    /// Rows of all sequences, without padding.
    pub fn rows(&self) -> usize {
        self.from.len()
    }

    /// Rows of the batch, with padding.
    pub fn full(&self) -> usize {
        self.full
    }

    /// The longest length.
    pub(super) fn times(&self) -> usize {
        self.starts.len() - 1
    }

    /// The time of a step.
    pub(super) fn time(&self, step: usize, reverse: bool) -> usize {
        if reverse { self.times() - 1 - step } else { step }
    }

    /// Rows of those among some places that run at a time.
    pub(super) fn running(&self, time: usize, places: &Range<usize>) -> Range<usize> {
        let (start, end) = (self.starts[time], self.starts[time + 1]);
        let first = (start + places.start).min(end);
        first..(start + places.end).min(end).max(first)
    }

    /// Cuts the places into at most `n` runs with about equally many rows.
    pub(super) fn groups(&self, n: usize) -> Vec<Range<usize>> {
        let total = self.rows();
        let (mut groups, mut start, mut rows) = (Vec::with_capacity(n), 0, 0);
        for place in 0..self.sequences() {
            rows += self.lengths[place];
            if rows * n >= total * (groups.len() + 1) && groups.len() + 1 < n {
                groups.push(start..place + 1);
                start = place + 1;
            }
        }
        groups.push(start..self.sequences());
        groups
    }

    /// Rows of the batch into rows time by time, `width` numbers each.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn gather<T: Float>(&self, batch: &[T], width: usize, rows: &mut [T]) -> Result<()> {
        let rows = &mut rows[..self.rows() * width];
        over_rows(rows, width, 1 + width / 16, |first, run| {
            for (row, &from) in run.chunks_exact_mut(width).zip(&self.from[first..]) {
                row.copy_from_slice(&batch[from * width..][..width]);
            }
        })
    }

    /// The way back; rows of padding are left as they are.
    pub fn scatter<T: Float>(&self, rows: &[T], width: usize, batch: &mut [T]) {
        for (row, &to) in rows.chunks_exact(width).zip(&self.from) {
            batch[to * width..][..width].copy_from_slice(row);
        }
    }

    /// States (B, H) of the batch into the order of places, or back where `back`.
    pub fn sort<T: Float>(&self, from: &[T], width: usize, to: &mut [T], back: bool) {
        for (place, &sequence) in self.order.iter().enumerate() {
            let (a, b) = if back { (place, sequence) } else { (sequence, place) };
            to[b * width..][..width].copy_from_slice(&from[a * width..][..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_time_by_time_and_go_back() {
        let steps = Steps::new(&[2, 0, 3, 2], &[3, 3, 3, 3]);
        assert_eq!((steps.rows(), steps.full(), steps.times()), (7, 12, 3));
        assert_eq!(steps.from, [6, 0, 9, 7, 1, 10, 8]);
        assert_eq!(steps.running(1, &(0..4)), 3..6);
        assert_eq!(steps.running(1, &(2..4)), 5..6);
        assert!(steps.running(2, &(2..4)).is_empty());
        let batch: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut rows = vec![0.0; 14];
        steps.gather(&batch, 2, &mut rows).unwrap();
        assert_eq!(rows[..4], [12.0, 13.0, 0.0, 1.0]);
        let mut back = vec![-1.0; 24];
        steps.scatter(&rows, 2, &mut back);
        for (i, (&was, &is)) in batch.iter().zip(&back).enumerate() {
            let token = [0, 1, 6, 7, 8, 9, 10].contains(&(i / 2));
            assert_eq!(is, if token { was } else { -1.0 });
        }
        let (mut sorted, mut again) = ([0.0; 4], [0.0; 4]);
        steps.sort(&[1.0, 2.0, 3.0, 4.0], 1, &mut sorted, false);
        assert_eq!(sorted, [3.0, 1.0, 4.0, 2.0]);
        steps.sort(&sorted, 1, &mut again, true);
        assert_eq!(again, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn groups_share_the_rows() {
        assert_eq!(Steps::new(&[5; 8], &[5; 8]).groups(2), [0..4, 4..8]);
        assert_eq!(Steps::new(&[9, 1, 1, 1], &[9; 4]).groups(2), [0..1, 1..4]);
        assert_eq!(Steps::new(&[], &[]).groups(3), std::iter::once(0..0).collect::<Vec<_>>());
        for n in 1..6 {
            let groups = Steps::new(&[7, 7, 5, 4, 2, 0, 0], &[7; 7]).groups(n);
            assert!(groups.len() <= n && groups[0].start == 0 && groups.last().unwrap().end == 7);
            assert!(groups.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
