//! Weights of rows of S scores, their gradients, and draws of one key a row.

use crate::error::Result;
use crate::kernels::pooling::backward::NormalizeRowBackward;
use crate::kernels::pooling::normalize::{Normalize, NormalizeRow};
use crate::ops::aligned::with_scratch;
use crate::ops::buffer::zeros;
use crate::ops::rows::over_rows;
use crate::ops::try_parallel;
use crate::philox::uniform;
use crate::simd::{Float, active};

/// Weights of each row of `s` scores over the keys that `keep` names; exactly 0 elsewhere.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn weights<T: Float>(normalize: Normalize, scores: &[T], keep: &[bool], s: usize) -> Result<Vec<T>> {
    let mut out = zeros(scores.len())?;
    let isa = active()?;
    in_rooms(&mut out, s, |first, rows| {
        with_scratch(2 * s, |room: &mut [T]| {
            with_scratch(s, |order: &mut [u32]| {
                for (row, out) in (first..).zip(rows.chunks_exact_mut(s)) {
                    let (scores, keep) = (&scores[row * s..][..s], &keep[row * s..][..s]);
                    let room = (&mut *room, &mut *order);
                    T::dispatch(isa, NormalizeRow { normalize, scores, keep, out, room });
                }
                Ok(())
            })
        })
    })?;
    Ok(out)
}

/// From the gradient `d` of what [`weights`] made to that of the scores.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn weights_backward<T: Float>(
    normalize: Normalize,
    weights: &[T],
    keep: &[bool],
    d: &[T],
    s: usize,
) -> Result<Vec<T>> {
    let mut out = zeros(d.len())?;
    out.copy_from_slice(d);
    let isa = active()?;
    in_rooms(&mut out, s, |first, rows| {
        with_scratch(2 * s, |room: &mut [T]| {
            for (row, d) in (first..).zip(rows.chunks_exact_mut(s)) {
                let (weights, keep) = (&weights[row * s..][..s], &keep[row * s..][..s]);
                T::dispatch(isa, NormalizeRowBackward { normalize, weights, keep, d, room: &mut *room });
            }
            Ok(())
        })
    })?;
    Ok(out)
}

/// One key of each row with weight 1, drawn with its probability in `p`; the others 0. A row is drawn by the number that
/// the key of the call and the row's index give. Probabilities are added in f64, ascending; a row with NaN is NaN.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn draw<T: Float>(p: &[T], keep: &[bool], s: usize, key: u64) -> Result<Vec<T>> {
    let mut out = zeros(p.len())?;
    over_rows(&mut out, s, 2 * s, |first, rows| {
        for (row, out) in (first..).zip(rows.chunks_exact_mut(s)) {
            draw_row(&p[row * s..][..s], &keep[row * s..][..s], uniform(key, row as u64), out);
        }
    })?;
    Ok(out)
}

fn draw_row<T: Float>(p: &[T], keep: &[bool], u: f64, out: &mut [T]) {
    let kept = || (0..p.len()).filter(|&j| keep[j]);
    let total: f64 = kept().map(|j| p[j].to_f64()).sum();
    if total.is_nan() {
        kept().for_each(|j| out[j] = T::NAN);
        return;
    }
    let (mut sum, mut chosen) = (0.0, None);
    for j in kept().filter(|&j| p[j] > T::ZERO) {
        chosen = Some(j);
        sum += p[j].to_f64();
        if sum > u * total {
            break;
        }
    }
    if let Some(j) = chosen {
        out[j] = T::ONE;
    }
}

/// [`over_rows`] for what may fail for want of room.
fn in_rooms<T: Float>(
    out: &mut [T],
    s: usize,
    f: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let rows = 1 + 20_000 / (16 * s);
    let runs: Vec<_> = out.chunks_mut(rows * s).map(|run| std::sync::Mutex::new(Some(run))).collect();
    try_parallel(runs.len(), |i| {
        let run = runs[i].lock().ok().and_then(|mut run| run.take());
        run.map_or(Ok(()), |run| f(i * rows, run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn rows_are_alone_and_gradients_sum_to_nothing() {
        let (rows, s) = (500, 37);
        let (scores, d) = (normals::<f64>(rows * s, 1, 2.0), normals::<f64>(rows * s, 2, 1.0));
        let keep: Vec<bool> = (0..rows * s).map(|i| i % 5 != 2).collect();
        for normalize in [Normalize::Softmax, Normalize::Sparsemax, Normalize::TopK(4)] {
            let p = weights(normalize, &scores, &keep, s).unwrap();
            let back = weights_backward(normalize, &p, &keep, &d, s).unwrap();
            for row in [0, 77, 499] {
                let at = row * s..(row + 1) * s;
                let alone = weights(normalize, &scores[at.clone()], &keep[at.clone()], s).unwrap();
                assert_same_bits(&p[at.clone()], &alone);
                assert!((alone.iter().sum::<f64>() - 1.0).abs() < 1e-14);
                assert!(back[at].iter().sum::<f64>().abs() < 1e-13);
            }
        }
        assert!(weights::<f32>(Normalize::Softmax, &[], &[], 0).unwrap().is_empty());
    }

    #[test]
    fn draws_meet_their_probabilities() {
        let (n, p, keep) = (100_000, [0.1_f32, 0.0, 0.6, 0.9, 0.3], [true, true, true, false, true]);
        let drawn = draw(&p.repeat(n), &keep.repeat(n), 5, 3).unwrap();
        for j in 0..5 {
            let share = if keep[j] { f64::from(p[j]) } else { 0.0 };
            let count = drawn.iter().skip(j).step_by(5).filter(|x| **x == 1.0).count() as f64;
            let deviation = (n as f64 * share * (1.0 - share)).sqrt();
            assert!((count - n as f64 * share).abs() <= 5.0 * deviation, "{j}: {count}");
        }
        assert!(drawn.chunks(5).all(|row| row.iter().sum::<f32>() == 1.0));
        assert_same_bits(&draw(&[0.5, 0.5], &[false; 2], 2, 0).unwrap(), &[0.0_f64; 2]);
    }
}
