//! A batch as rows without padding.
//!
//! Sequences stand back to back. What a mask blocks for a whole sequence is not there at all, so no kernel spends time
//! on it and none can be influenced by it; each token remembers its place in the sequence it came from, by which masks,
//! causality and windows know it.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::Result;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// Which rows of a padded batch are tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Extent of each sequence with its padding.
    pub full: Vec<usize>,
    /// The place of each token within its sequence, where any padding was left out.
    pub places: Option<Vec<Vec<u32>>>,
}

impl Layout {
    /// Sequences without padding.
    pub fn dense(lengths: Vec<usize>) -> Self {
        Self { full: lengths.clone(), lengths, places: None }
    }

    /// A batch (B, L) of which `keep` names the tokens.
    pub fn padded(b: usize, l: usize, keep: Option<&[bool]>) -> Self {
        let Some(keep) = keep.filter(|k| k.contains(&false)) else {
            return Self::dense(vec![l; b]);
        };
        let places: Vec<Vec<u32>> =
            keep.chunks_exact(l).map(|row| (0..l as u32).filter(|&i| row[i as usize]).collect()).collect();
        Self { lengths: places.iter().map(Vec::len).collect(), full: vec![l; b], places: Some(places) }
    }

    /// Tokens of the whole batch.
    pub fn total(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Cuts between sequences: as many ranges of them as `rows` goes into the tokens, rounded up, about equal each, since a
    /// small last one would cost more than its share. A range has more than `rows` tokens by one sequence at most.
    pub fn groups(&self, rows: usize) -> Vec<Range<usize>> {
        let total = self.total().max(1);
        let ranges = total.div_ceil(rows);
        let mut groups: Vec<Range<usize>> = Vec::new();
        let (mut before, mut last) = (0, 0);
        for (b, &length) in self.lengths.iter().enumerate() {
            // A sequence belongs where its middle lies.
            let range = ((before + length / 2) as u128 * ranges as u128 / total as u128) as usize;
            match groups.last_mut() {
                Some(group) if range == last => group.end = b + 1,
                _ => groups.push(b..b + 1),
            }
            (before, last) = (before + length, range);
        }
        groups
    }

    /// Some of the sequences.
    pub fn part(&self, sequences: Range<usize>) -> Self {
        Self {
            lengths: self.lengths[sequences.clone()].to_vec(),
            full: self.full[sequences.clone()].to_vec(),
            places: self.places.as_ref().map(|p| p[sequences].to_vec()),
        }
    }

    /// Some of the tokens: of each sequence those among the rows, with their places.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let mut places = Vec::with_capacity(self.lengths.len());
        let mut at = 0;
        for (b, &length) in self.lengths.iter().enumerate() {
            let part = rows.start.clamp(at, at + length) - at..rows.end.clamp(at, at + length) - at;
            places.push(match self.places_of(b) {
                Some(all) => all[part].to_vec(),
                None => part.map(|i| i as u32).collect(),
            });
            at += length;
        }
        Self { lengths: places.iter().map(Vec::len).collect(), full: self.full.clone(), places: Some(places) }
    }

    /// Places of the tokens of sequence `b`, if padding was left out.
    pub fn places_of(&self, b: usize) -> Option<&Vec<u32>> {
        self.places.as_ref().map(|p| &p[b])
    }

    /// Takes the tokens' rows out of a padded batch.
    pub fn gather<'a, T: Copy>(&self, x: &'a [T], width: usize) -> Cow<'a, [T]> {
        let Some(places) = &self.places else { return Cow::Borrowed(x) };
        let mut rows = Vec::with_capacity(self.total() * width);
        let mut start = 0;
        for (places, full) in places.iter().zip(&self.full) {
            for &p in places {
                rows.extend_from_slice(&x[(start + p as usize) * width..][..width]);
            }
            start += full;
        }
        Cow::Owned(rows)
    }

    /// Puts the tokens' rows back among rows of zeros.
    pub fn scatter<T: Float>(&self, rows: Vec<T>, width: usize) -> Vec<T> {
        let Some(places) = &self.places else { return rows };
        let mut x = vec![T::ZERO; self.full.iter().sum::<usize>() * width];
        let (mut start, mut at) = (0, 0);
        for (places, full) in places.iter().zip(&self.full) {
            for &p in places {
                x[(start + p as usize) * width..][..width].copy_from_slice(&rows[at..at + width]);
                at += width;
            }
            start += full;
        }
        x
    }

    /// Puts weights (heads, tokens of `self`, tokens of `keys`) of each sequence back among zeros (heads, L, S).
    pub fn scatter_weights<T: Float>(&self, keys: &Layout, weights: Vec<T>, heads: usize) -> Vec<T> {
        if self.places.is_none() && keys.places.is_none() {
            return weights;
        }
        let pairs = self.full.iter().zip(&keys.full);
        let mut x = vec![T::ZERO; pairs.map(|(l, s)| heads * l * s).sum()];
        let (mut start, mut at) = (0, 0);
        for b in 0..self.lengths.len() {
            let (l, s) = (self.full[b], keys.full[b]);
            for h in 0..heads {
                for i in 0..self.lengths[b] {
                    let row = self.places_of(b).map_or(i, |p| p[i] as usize);
                    let to = &mut x[start + (h * l + row) * s..][..s];
                    let from = &weights[at..at + keys.lengths[b]];
                    match keys.places_of(b) {
                        None => to.copy_from_slice(from),
                        Some(places) => places.iter().zip(from).for_each(|(&p, &w)| to[p as usize] = w),
                    }
                    at += keys.lengths[b];
                }
            }
            start += heads * l * s;
        }
        x
    }
}

/// Rows of a batch and where they stand.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, T> {
    /// (T, width), dense.
    pub rows: &'a [T],
    /// The sequences.
    pub layout: &'a Layout,
}

/// Rows that a layer writes and the next reads; made once for all layers of a call.
pub(crate) fn buffer<T: Float>(rows: usize, width: usize) -> Result<Reused<T>> {
    Reused::new(rows.saturating_mul(width))
}

/// A copy in such a buffer.
pub(crate) fn copied<T: Float>(x: &[T]) -> Result<Reused<T>> {
    let mut copy = buffer(x.len(), 1)?;
    copy.copy_from_slice(x);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_weights_go_out_and_back() {
        let keep = [true, false, true, false, true, true];
        let layout = Layout::padded(2, 3, Some(&keep));
        assert_eq!(layout.lengths, [2, 2]);
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let rows = layout.gather(&x, 2);
        assert_eq!(&*rows, [0., 1., 4., 5., 8., 9., 10., 11.]);
        let back = layout.scatter(rows.into_owned(), 2);
        assert_eq!(back, [0., 1., 0., 0., 4., 5., 0., 0., 8., 9., 10., 11.]);
        let weights: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let back = layout.scatter_weights(&layout, weights, 1);
        assert_eq!(back, [1., 0., 2., 0., 0., 0., 3., 0., 4., 0., 0., 0., 0., 5., 6., 0., 7., 8.]);
    }

    #[test]
    fn groups_hold_whole_sequences_in_order() {
        let layout = Layout::dense(vec![3, 4, 9, 0, 1, 8, 2]);
        assert_eq!(layout.groups(9), [0..2, 2..5, 5..7]);
        assert_eq!(layout.groups(14), [0..3, 3..7]);
        assert_eq!(layout.groups(100), std::iter::once(0..7).collect::<Vec<_>>());
        assert_eq!(layout.groups(usize::MAX), layout.groups(27));
        assert_eq!(layout.groups(1), [0..1, 1..2, 2..3, 3..5, 5..6, 6..7]);
        // No small last group, and no range without sequences.
        assert_eq!(Layout::dense(vec![70; 29]).groups(1024), [0..14, 14..29]);
        assert_eq!(Layout::dense(vec![5000, 1]).groups(1024), [0..1, 1..2]);
        assert!(Layout::dense(Vec::new()).groups(8).is_empty());
        assert_eq!(layout.part(1..3), Layout::dense(vec![4, 9]));
        let padded = Layout::padded(2, 3, Some(&[true, false, true, false, true, true]));
        assert_eq!(padded.part(1..2), Layout::padded(1, 3, Some(&[false, true, true])));
    }

    #[test]
    fn rows_keep_the_places_of_their_tokens() {
        let padded = Layout::padded(2, 3, Some(&[true, false, true, false, true, true]));
        let part = padded.rows(1..3);
        assert_eq!(part.places, Some(vec![vec![2], vec![1]]));
        assert_eq!((part.lengths, part.full), (vec![1, 1], vec![3, 3]));
        let dense = Layout::dense(vec![3, 4]).rows(4..6);
        assert_eq!((dense.lengths, dense.places), (vec![0, 2], Some(vec![vec![], vec![1, 2]])));
    }

    #[test]
    fn a_mask_that_keeps_all_moves_nothing() {
        assert_eq!(Layout::padded(2, 3, Some(&[true; 6])), Layout::dense(vec![3, 3]));
    }
}
