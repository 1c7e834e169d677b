//! The scores and weights of attention, for those who want to look at them.
//!
//! They are computed a second time, after the output: asking for them cannot change its bits. Every element has the
//! bits that the output was made from, since neither a product nor an exponential depends on the tile it stands in.

use super::keys::{Keys, row_bits};
use super::scoring::{Unit, add_biases, scale_and_cap, times};
use super::softmax::{Powers, power_of_large};
use super::tile::Tile;
use super::{KEY_TILE, LARGE_SCORE, Row, Scoring};
use crate::kernels::gemm::OutRows;
use crate::simd::{Float, Kernel, Simd};

/// Which stage of attention to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreKind {
    /// Scaled products.
    Raw,
    /// After the soft cap.
    Capped,
    /// After masks and bias: -inf where blocked.
    Masked,
    /// Softmax weights, before dropout.
    Weights,
}

/// Scores or weights of some rows over all keys, blocked ones too.
pub struct Scores<'a, T> {
    /// What to write.
    pub kind: ScoreKind,
    /// Queries (R, E), rows at stride `ldq`.
    pub q: &'a [T],
    /// Distance between queries.
    pub ldq: usize,
    /// Head width of queries and keys.
    pub e: usize,
    /// All keys, none removed.
    pub keys: Keys<'a, T>,
    /// The keys to take now.
    pub segment: std::ops::Range<usize>,
    /// The R rows; `out` is where the row of scores starts.
    pub rows: &'a [Row],
    /// Scores.
    pub scoring: Scoring<'a, T>,
    /// Maximum of each row, as attention left it.
    pub row_max: &'a [T],
    /// Sum of each row, as attention left it.
    pub row_sum: &'a [T],
    /// Room for a tile: [`super::tile_len`] numbers.
    pub scratch: &'a mut [T],
    /// Rows of S numbers each.
    pub out: OutRows<'a, T>,
}

impl<T: Float> Kernel<T> for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let unit = Unit::new(self.scoring.scale);
        let mut tile = Tile::new(self.scratch, self.e, self.keys.ev);
        for first in self.segment.step_by(KEY_TILE) {
            let count = KEY_TILE.min(self.keys.count - first);
            tile.load_keys(s, &self.keys, first, count);
            for at in (0..self.rows.len()).step_by(S::ATTEND_MR) {
                let rows = S::ATTEND_MR.min(self.rows.len() - at);
                tile.products(s, &self.q[at * self.ldq..], self.ldq, rows, count);
                for (i, row) in self.rows[at..at + rows].iter().enumerate() {
                    if row.out == Row::NOWHERE {
                        continue;
                    }
                    // SAFETY: each row of scores has its own place, each tile its own part of it.
                    let out = unsafe { self.out.slice(row.out + first, count) };
                    let bits = row_bits(row, &self.keys, &self.scoring.mask, first, count);
                    if self.kind == ScoreKind::Weights {
                        tile.score_row(s, i, row, &self.keys, (&self.scoring, &unit), count);
                        write_weights(
                            s,
                            tile.row(i),
                            unit.factor,
                            bits,
                            (self.row_max[at + i], self.row_sum[at + i]),
                            out,
                        );
                        continue;
                    }
                    let capped = self.kind != ScoreKind::Raw;
                    let scoring =
                        Scoring { softcap: self.scoring.softcap.filter(|_| capped), ..self.scoring };
                    scale_and_cap(s, tile.row(i), &scoring, count);
                    out.copy_from_slice(&tile.row(i)[..count]);
                    if self.kind == ScoreKind::Masked {
                        add_biases(out, row, &self.keys, &scoring, first);
                        for (_, x) in out.iter_mut().enumerate().filter(|(c, _)| bits >> c & 1 == 0) {
                            *x = T::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// Writes the weights p / l of one row of a tile.
#[inline(always)]
fn write_weights<T: Float, S: Simd<T>>(
    s: S,
    x: &[T],
    factor: T,
    bits: u64,
    (max, sum): (T, T),
    out: &mut [T],
) {
    // Allowed keys whose scores are all -inf: softmax of them is NaN, as is the output.
    let lost = max == T::NEG_INFINITY;
    if lost || max.to_f64().abs() > LARGE_SCORE {
        for (c, (out, &x)) in out.iter_mut().zip(x.iter()).enumerate() {
            *out = match bits >> c & 1 != 0 {
                false => T::ZERO,
                true if lost => T::NAN,
                true => power_of_large(times(x, factor), max) / sum,
            };
        }
        return;
    }
    let (sum, powers) = (s.splat(sum), Powers::new(s, factor, max));
    for at in (0..out.len()).step_by(S::LANES) {
        let p = powers.of(s, s.load(&x[at..]));
        let w = s.select(s.mask_from_bits(bits >> at), s.div(p, sum), s.splat(T::ZERO));
        if at + S::LANES <= out.len() {
            s.store(w, &mut out[at..]);
        } else {
            s.store_partial(w, &mut out[at..]);
        }
    }
}
