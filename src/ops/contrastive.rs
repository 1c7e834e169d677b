//! The contrastive loss of pairs within a batch (InfoNCE), and its gradients.
//!
//! ```text
//! u = q / |q|,  w = d / |d|                      queries (B, D), documents (N, D), N >= B
//! s = u wᵀ / temperature                         (B, N): query i belongs to document i, the others are its negatives
//! loss = mean_i cross-entropy(s_i, i)            symmetric: the mean of this and of the same with rows and columns changed
//! d u = ds w / temperature,  d w = dsᵀ u / temperature, then through the division by the lengths
//! ```
//!
//! The products, the softmax and the sums of rows are those of `linear`, `softmax` and the cross-entropy. A. van den Oord,
//! Y. Li, O. Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018.

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::{elements, zeros};
use super::cross_entropy::{Options, cross_entropy_rows};
use super::linear::product_once;
use super::rows::{dense, over_rows, shaped};
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::kernels::cross_entropy::Targets;
use crate::kernels::unit::{UnitRows, UnitRowsBackward};
use crate::simd::{Float, active};

/// The loss and the gradients of queries (B, D) and documents (N, D).
///
/// # Errors
/// `Shape` where they do not fit, `Value` for a temperature that is not above 0; `Memory`, `Interrupted`, `Internal`.
pub fn contrastive<T: Float>(
    queries: &ArrayViewD<'_, T>,
    documents: &ArrayViewD<'_, T>,
    temperature: f64,
    symmetric: bool,
) -> Result<(f64, ArrayD<T>, ArrayD<T>)> {
    let (b, n, d) = sizes(queries.shape(), documents.shape(), symmetric)?;
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Value(format!("temperature: expected a number above 0, got {temperature}")));
    }
    let temperature = T::from_f64(temperature);
    let (u, u_lengths) = unit(&dense(queries)?, b, d)?;
    let (w, w_lengths) = unit(&dense(documents)?, n, d)?;

    let mut scores = zeros(elements("documents", &[b, n])?)?; // (B, N)
    product_once(&u, b, (&w, n, d), None, Activation::Identity, &mut scores)?;
    scale(&mut scores, temperature)?;
    let (mut loss, mut ds) = pairs(&scores, b, n)?;
    if symmetric {
        let (other, turned) = pairs(&transposed(&scores, b, n)?, n, b)?;
        loss = 0.5 * (loss + other);
        let half = T::from_f64(0.5);
        for (x, y) in ds.iter_mut().zip(&transposed(&turned, n, b)?) {
            *x = (*x + *y) * half;
        }
    }
    scale(&mut ds, temperature)?;
    let (mut du, mut dw) = (zeros(u.len())?, zeros(w.len())?);
    product_once(&ds, b, (&transposed(&w, n, d)?, d, n), None, Activation::Identity, &mut du)?;
    let ds = transposed(&ds, b, n)?;
    product_once(&ds, n, (&transposed(&u, b, d)?, d, b), None, Activation::Identity, &mut dw)?;
    unit_backward(&u, &u_lengths, &mut du, d)?;
    unit_backward(&w, &w_lengths, &mut dw, d)?;
    Ok((loss, shaped(&[b, d], du)?, shaped(&[n, d], dw)?))
}

fn sizes(queries: &[usize], documents: &[usize], symmetric: bool) -> Result<(usize, usize, usize)> {
    let &[b, d] = queries else {
        return Err(Error::Shape(format!("queries: expected (B, D), got {queries:?}")));
    };
    match *documents {
        [n, width] if width == d && (n == b || (n > b && !symmetric)) => Ok((b, n, d)),
        _ => {
            let expected = if symmetric { "(B, D) with B =" } else { "(N, D) with N at least B =" };
            Err(Error::Shape(format!(
                "documents: expected {expected} {b} and D = {d}, as queries have them, got {documents:?}"
            )))
        }
    }
}

/// Each of `rows` rows belongs to the column of its number: the mean loss and the gradient.
fn pairs<T: Float>(scores: &[T], rows: usize, width: usize) -> Result<(f64, Vec<T>)> {
    let mut gradient = zeros(scores.len())?;
    if rows == 0 {
        return Ok((0.0, gradient));
    }
    let classes: Vec<i64> = (0..rows as i64).collect();
    let options = Options { mean: true, ..Options::default() };
    let loss = cross_entropy_rows(scores, width, Targets::Classes(&classes), options, &mut gradient)?;
    Ok((loss, gradient))
}

fn unit<T: Float>(x: &[T], rows: usize, width: usize) -> Result<(Vec<T>, Vec<T>)> {
    let (mut unit, mut lengths) = (x.to_vec(), zeros(rows)?);
    if width > 0 {
        T::dispatch(active()?, UnitRows { x: &mut unit, lengths: &mut lengths, width });
    }
    Ok((unit, lengths))
}

fn unit_backward<T: Float>(unit: &[T], lengths: &[T], d: &mut [T], width: usize) -> Result<()> {
    let isa = active()?;
    over_rows(d, width, width, |first, d| {
        let unit = &unit[first * width..][..d.len()];
        let lengths = &lengths[first..][..d.len() / width];
        T::dispatch(isa, UnitRowsBackward { unit, lengths, d, width });
    })
}

/// x / divisor, in place.
fn scale<T: Float>(x: &mut [T], divisor: T) -> Result<()> {
    over_rows(x, 1, 1, |_, x| {
        for x in x {
            *x = *x / divisor;
        }
    })
}

/// (N, M) from (M, N).
fn transposed<T: Float>(x: &[T], m: usize, n: usize) -> Result<Vec<T>> {
    let mut out = zeros(x.len())?;
    for (i, row) in x.chunks_exact(n.max(1)).enumerate().take(m) {
        for (j, &x) in row.iter().enumerate() {
            out[j * m + i] = x;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::normals;

    /// The formula, one number after the other.
    fn naive(q: &[f64], w: &[f64], d: usize, temperature: f64, symmetric: bool) -> f64 {
        let unit = |x: &[f64]| {
            let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            x.iter().map(|x| x / length).collect::<Vec<_>>()
        };
        let q: Vec<_> = q.chunks(d).map(unit).collect();
        let w: Vec<_> = w.chunks(d).map(unit).collect();
        let score =
            |i: usize, j: usize| q[i].iter().zip(&w[j]).map(|(a, b)| a * b).sum::<f64>() / temperature;
        let (b, n) = (q.len(), w.len());
        let rows: f64 =
            (0..b).map(|i| libm::log((0..n).map(|j| libm::exp(score(i, j) - score(i, i))).sum())).sum();
        let columns: f64 =
            (0..b).map(|j| libm::log((0..b).map(|i| libm::exp(score(i, j) - score(j, j))).sum())).sum();
        if symmetric { (rows + columns) / (2.0 * b as f64) } else { rows / b as f64 }
    }

    #[test]
    fn gradients_are_central_differences() {
        let (b, d) = (5, 7);
        for (n, symmetric) in [(5, false), (9, false), (5, true)] {
            let (q, w) = (normals::<f64>(b * d, 1, 2.0), normals::<f64>(n * d, 2, 0.5));
            let arrays = (shaped(&[b, d], q.clone()).unwrap(), shaped(&[n, d], w.clone()).unwrap());
            let (loss, dq, dw) = contrastive(&arrays.0.view(), &arrays.1.view(), 0.3, symmetric).unwrap();
            assert!((loss - naive(&q, &w, d, 0.3, symmetric)).abs() <= 1e-13);
            let h = 1e-5;
            for i in 0..q.len() {
                let at = |h: f64| {
                    let mut q = q.clone();
                    q[i] += h;
                    naive(&q, &w, d, 0.3, symmetric)
                };
                let want = (at(h) - at(-h)) / (2.0 * h);
                assert!((dq.as_slice().unwrap()[i] - want).abs() <= 1e-9, "query {i}");
            }
            for i in 0..w.len() {
                let at = |h: f64| {
                    let mut w = w.clone();
                    w[i] += h;
                    naive(&q, &w, d, 0.3, symmetric)
                };
                let want = (at(h) - at(-h)) / (2.0 * h);
                assert!((dw.as_slice().unwrap()[i] - want).abs() <= 1e-9, "document {i}");
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit() {
        let x = |shape: &[usize]| ArrayD::<f32>::zeros(ndarray::IxDyn(shape));
        for (q, w, symmetric) in [
            (&[3, 4][..], &[2, 4][..], false),
            (&[3, 4], &[3, 5], false),
            (&[3, 4], &[5, 4], true),
            (&[3], &[3], false),
        ] {
            let result = contrastive(&x(q).view(), &x(w).view(), 0.1, symmetric);
            assert!(matches!(result, Err(Error::Shape(_))), "{q:?} {w:?}");
        }
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let result = contrastive(&x(&[2, 2]).view(), &x(&[2, 2]).view(), temperature, false);
            assert!(matches!(result, Err(Error::Value(_))));
        }
        let (loss, dq, _) = contrastive(&x(&[0, 4]).view(), &x(&[0, 4]).view(), 0.1, true).unwrap();
        assert_eq!((loss, dq.shape()), (0.0, &[0, 4][..]));
    }
}
