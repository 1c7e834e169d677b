//! Scores (N, L, S) of queries (N, L, W) and keys (N, S, W), and the sums over pairs that gradients and mixtures are.

use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::pooling::pairs::{Pair, PairSum};
use crate::kernels::pooling::scores::{Score, ScoreRow};
use crate::ops::buffer::{elements, zeros};
use crate::ops::linear::product_once;
use crate::ops::rows::over_rows;
use crate::simd::{Float, active};

/// The numbers of pairs.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// N, batch elements times heads.
    pub n: usize,
    /// L, queries.
    pub l: usize,
    /// S, keys.
    pub s: usize,
}

/// What a sum over pairs runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A row for each query.
    Keys,
    /// A row for each key.
    Queries,
}

/// Products q . k by the packed kernels.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn product_scores<T: Float>(at: Pairs, q: &[T], k: &[T], width: usize) -> Result<Vec<T>> {
    let Pairs { n, l, s } = at;
    let mut out = zeros(elements("scores", &[n, l, s])?)?;
    if out.is_empty() || width == 0 {
        return Ok(out);
    }
    for (b, out) in out.chunks_exact_mut(l * s).enumerate() {
        let (q, k) = (&q[b * l * width..][..l * width], &k[b * s * width..][..s * width]);
        product_once(q, l, (k, s, width), None, Activation::Identity, out)?;
    }
    Ok(out)
}

/// Scores that are no product; `v` (W) is read by the additive one.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn scores<T: Float>(score: Score, at: Pairs, q: &[T], k: &[T], width: usize, v: &[T]) -> Result<Vec<T>> {
    let Pairs { n, l, s } = at;
    let mut out = zeros(elements("scores", &[n, l, s])?)?;
    let isa = active()?;
    over_rows(&mut out, s, s * width, |first, rows| {
        for (row, out) in (first..).zip(rows.chunks_exact_mut(s)) {
            let (q, k) = (&q[row * width..][..width], &k[row / l * s * width..][..s * width]);
            T::dispatch(isa, ScoreRow { score, q, k, v, out });
        }
    })?;
    Ok(out)
}

/// `sum of a f(own, other)` over the pairs that `keep` names, a and keep (N, L, S): rows (N, L, W) of queries, or
/// (N, S, W) of keys; `own` has the shape of the result and may be empty where f does not read it.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
#[allow(clippy::too_many_arguments, reason = "the operands of the formula")]
pub fn pair_sums<T: Float>(
    (pair, over): (Pair, Over),
    at: Pairs,
    a: &[T],
    keep: &[bool],
    own: &[T],
    others: &[T],
    width: usize,
    v: &[T],
) -> Result<Vec<T>> {
    let Pairs { n, l, s } = at;
    let (rows, count, step) = if over == Over::Keys { (l, s, 1) } else { (s, l, s) };
    let mut out = zeros(elements("sums", &[n, rows, width])?)?;
    if count == 0 || out.is_empty() {
        return Ok(out);
    }
    let isa = active()?;
    over_rows(&mut out, width, count * width, |first, sums| {
        for (row, out) in (first..).zip(sums.chunks_exact_mut(width)) {
            let (b, i) = (row / rows, row % rows);
            let start = b * l * s + if over == Over::Keys { i * s } else { i };
            let reach = (count - 1) * step + 1;
            let sum = PairSum {
                pair,
                a: &a[start..][..reach],
                keep: &keep[start..][..reach],
                step,
                own: if pair == Pair::Other { &[] } else { &own[row * width..][..width] },
                others: &others[b * count * width..][..count * width],
                v,
                out,
            };
            T::dispatch(isa, sum);
        }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    const AT: Pairs = Pairs { n: 3, l: 50, s: 70 };
    const WIDTH: usize = 9;

    #[test]
    fn a_mixture_and_its_transpose() {
        let (n, l, s) = (AT.n, AT.l, AT.s);
        let a = normals::<f64>(n * l * s, 1, 1.0);
        let keep: Vec<bool> = (0..a.len()).map(|i| i % 7 != 3).collect();
        let others = normals::<f64>(n * s * WIDTH, 2, 1.0);
        let sums = |over, others: &[f64]| {
            pair_sums((Pair::Other, over), AT, &a, &keep, &[], others, WIDTH, &[]).unwrap()
        };
        let mixed = sums(Over::Keys, &others);
        let queries = normals::<f64>(n * l * WIDTH, 3, 1.0);
        let back = sums(Over::Queries, &queries);
        for (b, i, c) in [(0, 0, 0), (1, 49, 8), (2, 17, 4)] {
            let term = |j: usize| {
                let at = (b * l + i) * s + j;
                if keep[at] { a[at] * others[(b * s + j) * WIDTH + c] } else { 0.0 }
            };
            let exact: f64 = (0..s).map(term).sum();
            assert!((mixed[(b * l + i) * WIDTH + c] - exact).abs() < 1e-13);
            let term = |q: usize| {
                let at = (b * l + q) * s + i;
                if keep[at] { a[at] * queries[(b * l + q) * WIDTH + c] } else { 0.0 }
            };
            let exact: f64 = (0..l).map(term).sum();
            assert!((back[(b * s + i) * WIDTH + c] - exact).abs() < 1e-13);
        }
    }

    #[test]
    fn elements_of_a_batch_are_alone() {
        let (q, k) =
            (normals::<f32>(AT.n * AT.l * WIDTH, 1, 1.0), normals::<f32>(AT.n * AT.s * WIDTH, 2, 1.0));
        let v = normals::<f32>(WIDTH, 3, 1.0);
        let one = Pairs { n: 1, ..AT };
        let (q1, k1) = (&q[AT.l * WIDTH..][..AT.l * WIDTH], &k[AT.s * WIDTH..][..AT.s * WIDTH]);
        let here = AT.l * AT.s..2 * AT.l * AT.s;
        for score in [Score::Distance, Score::Additive] {
            let all = scores(score, AT, &q, &k, WIDTH, &v).unwrap();
            assert_same_bits(&all[here.clone()], &scores(score, one, q1, k1, WIDTH, &v).unwrap());
        }
        let all = product_scores(AT, &q, &k, WIDTH).unwrap();
        assert_same_bits(&all[here], &product_scores(one, q1, k1, WIDTH).unwrap());
    }

    #[test]
    fn nothing_to_sum() {
        for (l, s) in [(0, 5), (5, 0), (0, 0)] {
            let at = Pairs { n: 2, l, s };
            let rows = vec![1.0_f32; 2 * 5 * WIDTH];
            let of = |over| pair_sums((Pair::Other, over), at, &[], &[], &[], &rows, WIDTH, &[]).unwrap();
            assert_same_bits(&of(Over::Keys), &vec![0.0; 2 * l * WIDTH]);
            assert_same_bits(&of(Over::Queries), &vec![0.0; 2 * s * WIDTH]);
            assert!(scores(Score::Distance, at, &rows, &rows, WIDTH, &[]).unwrap().is_empty());
        }
    }
}
