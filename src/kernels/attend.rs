//! Attention of some query rows over one key/value head, without ever building the L x S matrix.
//!
//! ```text
//! x = scale * (q · k);  x = cap * tanh(x / cap);  x = x + bias               for each allowed key
//! n = rint(x log2 e),  M = max n,  p = 2^(x log2 e - n) 2^(n - M)            = e^x 2^-M, up to rounding
//! out = sum(p v) / sum(p),  lse = M ln 2 + ln(sum(p))
//! ```
//!
//! Keys are taken in tiles of [`KEY_TILE`]. A tile's sums (of p, and of p v for every column) start at zero and are
//! added to the running ones in order. Since the running maximum M is an integer, the running sums are rescaled by
//! powers of two, which is exact: no tile can tell how many came before it. (The usual maximum of x itself would
//! round at every rescale.) A tile with no allowed key changes nothing at all, so causal and windowed tiles are
//! skipped, and keys blocked for the whole sequence are removed by the caller before tiles are cut.
//!
//! K is turned and packed tile by tile into panels, as the weights of a matrix product are; both products run the
//! register tile of [`super::gemm::block`]. A block of rows goes through scores, softmax and P·V while its 64 columns
//! of scores are in the first-level cache.

mod backward;
mod keys;
mod scores;
mod scoring;
mod softmax;
mod tile;

pub use backward::{Backward, Place, Prepare, QUERY_BLOCK, Wanted as WantedGradients, backward_len};
pub use keys::Keys;
pub use scores::{ScoreKind, Scores};

use super::gemm::OutRows;
use crate::account::at;
use crate::simd::{Float, Kernel, Simd};
use keys::row_bits;
use scoring::Unit;
use tile::{Block, How, Tile};

/// Keys that go through softmax together; part of the law of bits.
pub const KEY_TILE: usize = 64;

/// Maxima beyond this many powers of two take the slow way: the exponent's arithmetic has no room for them; see [`softmax`].
pub(crate) const LARGE_SCORE: f64 = 1_048_576.0;

/// One query row of a task.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Query head, for masks and dropout.
    pub head: usize,
    /// Number of the query among those given.
    pub index: usize,
    /// Number that a bias by distance counts the query with, where the keys given begin with 0.
    pub rank: usize,
    /// Place of the query within the sequence.
    pub query: usize,
    /// First key that causality and window allow, counted among the keys given.
    pub first: usize,
    /// One past the last such key.
    pub end: usize,
    /// Where the output row starts.
    pub out: usize,
}

impl Row {
    /// The `out` of a row whose scores nobody wants.
    pub const NOWHERE: usize = usize::MAX;
}

/// A mask for each query and key: element (head, place of the query, place of the key) is at
/// `head * strides[0] + query * strides[1] + key * strides[2]`.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a, T> {
    /// Every key that the row allows.
    None,
    /// True may be attended.
    Bool(&'a [bool], [usize; 3]),
    /// Added to the score; exactly -inf blocks.
    Float(&'a [T], [usize; 3]),
}

/// Dropout of weights: kept ones grow by 1 / (1 - p).
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that a weight is dropped.
    pub p: f64,
    /// Key of the counter-based generator.
    pub key: u64,
    /// Number of (head, query, key) elements of the batch elements before this one.
    pub base: u64,
    /// Queries and keys of this batch element, by which elements are counted.
    pub shape: (usize, usize),
}

/// What turns a product q · k into a score.
#[derive(Clone, Copy, Debug)]
pub struct Scoring<'a, T> {
    /// Factor of the product.
    pub scale: T,
    /// Soft cap.
    pub softcap: Option<T>,
    /// Slope of each head: - slope * |rank of the query - key| is added, keys counted from 0 among those given.
    pub alibi: Option<&'a [T]>,
    /// Mask and bias.
    pub mask: Mask<'a, T>,
}

/// Attention of `rows` over `keys`.
pub struct Attend<'a, T> {
    /// Queries (R, E), rows at stride `ldq`.
    pub q: &'a [T],
    /// Distance between queries.
    pub ldq: usize,
    /// Head width of queries and keys.
    pub e: usize,
    /// Keys and values.
    pub keys: Keys<'a, T>,
    /// The keys to take now; from 0 the sums begin anew, at the end of the keys the output is written.
    pub segment: std::ops::Range<usize>,
    /// The R rows.
    pub rows: &'a [Row],
    /// Scores.
    pub scoring: Scoring<'a, T>,
    /// Dropout of weights.
    pub dropout: Option<Dropout>,
    /// Running sums (R, Ev rounded up to vectors of 16).
    pub acc: &'a mut [T],
    /// Running maximum M of each row; -inf where no key is allowed.
    pub row_max: &'a mut [T],
    /// Running sum of p of each row.
    pub row_sum: &'a mut [T],
    /// Room for a tile: [`tile_len`] numbers.
    pub scratch: &'a mut [T],
    /// Whether the first tile has been asked for already.
    pub asked: bool,
    /// Distances from these queries, keys and values to those of the head that comes next.
    pub ahead: Option<[usize; 3]>,
    /// Output, shared with the other tasks.
    pub out: OutRows<'a, T>,
}

/// Columns of values, rounded up to whole vectors on every instruction set.
pub fn padded(ev: usize) -> usize {
    ev.div_ceil(16) * 16
}

/// Numbers that the scratch of a tile holds: packed keys, gathered keys, values and scores.
pub fn tile_len(e: usize, ev: usize) -> usize {
    KEY_TILE * (2 * e.div_ceil(16) * 16 + padded(ev)) + 3 * 8 * KEY_TILE
}

impl<T: Float> Kernel<T> for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Attention);
        let Self { q, ldq, e, keys, segment, rows, scoring, dropout, .. } = self;
        let Self { acc, row_max, row_sum, scratch, asked, ahead, out, .. } = self;
        let open = keys.allowed.is_none()
            && matches!(scoring.mask, Mask::None)
            && rows.iter().all(|r| r.first == 0 && r.end == keys.count);
        let how = How { scoring, unit: Unit::new(scoring.scale), dropout, open };
        let ld = padded(keys.ev);
        if segment.start == 0 {
            acc[..rows.len() * ld].fill(T::ZERO);
            row_max.fill(T::NEG_INFINITY);
            row_sum.fill(T::ZERO);
        }
        let mut tile = Tile::new(scratch, e, keys.ev);
        for first in segment.clone().step_by(KEY_TILE) {
            let count = KEY_TILE.min(keys.count - first);
            if rows.iter().all(|r| r.end <= first || r.first >= first + count) {
                continue;
            }
            let begins = first == segment.start && !asked;
            let alone = rows.len() == 1;
            if alone {
                tile.load_for_one(s, &keys, first, count);
            } else {
                if begins {
                    prefetch_keys(s, &keys, e, first..first + count);
                }
                tile.load(s, &keys, first, count);
            }
            // What is read next is asked for meanwhile: another tile, or another head.
            let end = first + count;
            let (next_keys, next) = match ahead {
                Some([_, k, v]) if end == keys.count => {
                    // Rows without numbers may lie anywhere, even behind the end.
                    let (k, v) = (&keys.k[k.min(keys.k.len())..], &keys.v[v.min(keys.v.len())..]);
                    (Keys { k, v, ..keys }, 0..KEY_TILE.min(keys.count))
                }
                _ => (keys, end..(end + KEY_TILE).min(keys.count)),
            };
            let next_queries =
                ahead.filter(|&[q, ..]| q > 0 && end == keys.count).map(|[distance, ..]| &q[distance..]);
            let blocks = rows.len().div_ceil(S::ATTEND_MR);
            let mut at = 0;
            for b in 0..blocks {
                if !alone {
                    let part = |b: usize| next.start + next.len() * b / blocks;
                    prefetch_keys(s, &next_keys, e, part(b)..part(b + 1));
                }
                if begins {
                    let following = at + S::ATTEND_MR..(at + 2 * S::ATTEND_MR).min(rows.len());
                    prefetch_queries(s, q, ldq, e, following);
                }
                let n = (rows.len() - at).div_ceil(blocks - b);
                let some = at..at + n;
                if let Some(q) = next_queries {
                    prefetch_queries(s, q, ldq, e, some.clone());
                }
                let block = Block {
                    q: &q[at * ldq..],
                    ldq,
                    rows: &rows[some.clone()],
                    acc: &mut acc[at * ld..],
                    row_max: &mut row_max[some.clone()],
                    row_sum: &mut row_sum[some],
                };
                tile.attend(s, block, &keys, &how);
                at += n;
            }
        }
        if segment.end < keys.count {
            return;
        }
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: rows of different tasks, and of this one, have different places.
            let out = unsafe { out.slice(row.out, keys.ev) };
            finish_row(s, &acc[i * ld..], row_max[i], row_sum[i], has_allowed(row, &keys, &scoring), out);
        }
    }
}

/// Asks for some rows of K and V ahead of their use. A task takes its few kilobytes in runs too short for the hardware to
/// foresee, and batches of short sequences would spend a seventh of their time waiting: while a block of rows attends
/// to one tile, its share of the next one is on its way.
#[inline(always)]
fn prefetch_keys<T: Float, S: Simd<T>>(s: S, keys: &Keys<'_, T>, e: usize, ahead: std::ops::Range<usize>) {
    for j in ahead {
        let row = keys.row(j);
        prefetch_row(s, keys.k, row * keys.k_stride, e);
        prefetch_row(s, keys.v, row * keys.v_stride, keys.ev);
    }
}

/// The same for queries, whose first use is the first tile.
#[inline(always)]
fn prefetch_queries<T: Float, S: Simd<T>>(
    s: S,
    q: &[T],
    ldq: usize,
    e: usize,
    ahead: std::ops::Range<usize>,
) {
    for i in ahead {
        prefetch_row(s, q, i * ldq, e);
    }
}

#[inline(always)]
fn prefetch_row<T: Float, S: Simd<T>>(s: S, x: &[T], start: usize, width: usize) {
    for at in (start..start + width).step_by(64 / size_of::<T>()) {
        s.prefetch(x, at);
    }
}

/// Writes acc / l. A row without an allowed key is exactly 0; one whose allowed scores are all -inf is NaN, as
/// softmax of them is.
#[inline(always)]
fn finish_row<T: Float, S: Simd<T>>(
    s: S,
    acc: &[T],
    row_max: T,
    row_sum: T,
    has_allowed: impl FnOnce() -> bool,
    out: &mut [T],
) {
    if row_max == T::NEG_INFINITY && !row_sum.is_nan() {
        out.fill(if has_allowed() { T::NAN } else { T::ZERO });
        return;
    }
    let (sum, zero) = (s.splat(row_sum), s.splat(T::ZERO));
    for at in (0..out.len()).step_by(S::LANES) {
        // + 0: a sum that underflowed to -0 must not tell whether a blocked tile was added to it or skipped.
        let v = s.add(s.div(s.load(&acc[at..]), sum), zero);
        if at + S::LANES <= out.len() {
            s.store(v, &mut out[at..]);
        } else {
            s.store_partial(v, &mut out[at..]);
        }
    }
}

/// Whether any key is allowed for a row.
#[inline(always)]
fn has_allowed<'a, T: Float>(
    row: &'a Row,
    keys: &'a Keys<'_, T>,
    scoring: &'a Scoring<'_, T>,
) -> impl FnOnce() -> bool {
    move || {
        (0..keys.count)
            .step_by(KEY_TILE)
            .any(|first| row_bits(row, keys, &scoring.mask, first, KEY_TILE.min(keys.count - first)) != 0)
    }
}

#[cfg(test)]
mod tests;
