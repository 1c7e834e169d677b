//! The gradients of what follows the transformer, back from the embeddings to its rows.
//!
//! ```text
//! mean, mean_sqrt_len_tokens, weightedmean   dx[t] = w_t dout / divisor
//! cls, lasttoken                             dx[that row] = dout
//! max                                        dx[first row that holds the maximum, by column] = dout; a NaN counts as one
//! normalize  y = x / n, n = max(|x|, 1e-12)  dx = (dout - y (y . dout)) / n;  dout / n where n is 1e-12
//! dense      y = f(x wᵀ + b)                 du = dout f'(u),  dx = du w,  dw = duᵀ x
//! ```

use super::{Head, Loaded};
use crate::error::Result;
use crate::models::pooling::{MIN_NORM, Pooling, normalize_rows, pool};
use crate::nn::state::{State, prefixed};
use crate::ops::buffer::zeros;
use crate::simd::{Float, active};

/// What [`Head::embed_saved`] keeps: the rows before each step, and after the last.
pub struct SavedHead<T> {
    steps: Vec<Vec<T>>,
    starts: Vec<usize>,
    left_out: usize,
}

impl<T: Float> Head<T> {
    /// [`Head::embed`], the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn embed_saved(&self, x: &[T], starts: &[usize], left_out: usize) -> Result<(Vec<T>, SavedHead<T>)> {
        let mut width = self.poolings.len() * self.d;
        let mut rows = zeros((starts.len() - 1) * width)?;
        pool(&self.poolings, x, starts, left_out, self.d, &mut rows);
        let mut steps = Vec::with_capacity(self.steps.len() + 1);
        for step in &self.steps {
            steps.push(rows.clone());
            match step {
                Loaded::Normalize => normalize_rows(active()?, &mut rows, width),
                Loaded::Dense(dense) => {
                    rows = dense.forward(&rows)?;
                    width = dense.n();
                }
            }
        }
        steps.push(rows.clone());
        Ok((rows, SavedHead { steps, starts: starts.to_vec(), left_out }))
    }

    /// From the transformer's rows `x` (T, D), what was kept and the gradient `d` (B, width) of the embeddings: that of the
    /// rows, and those of the Dense modules, which are numbered from 0.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(&self, x: &[T], saved: &SavedHead<T>, d: &[T]) -> Result<(Vec<T>, State<T>)> {
        let mut d = d.to_vec();
        let mut dense_left = self.steps.iter().filter(|s| matches!(s, Loaded::Dense(_))).count();
        let mut of_dense = Vec::new();
        for (step, ends) in self.steps.iter().zip(saved.steps.windows(2)).rev() {
            match step {
                Loaded::Normalize => {
                    let width = d.len() / (saved.starts.len() - 1).max(1);
                    let rows = ends[0].chunks_exact(width.max(1)).zip(ends[1].chunks_exact(width.max(1)));
                    d.chunks_exact_mut(width.max(1))
                        .zip(rows)
                        .for_each(|(d, (x, y))| back_to_length(d, x, y));
                }
                Loaded::Dense(dense) => {
                    dense_left -= 1;
                    let (dx, grads) = dense.backward(&ends[0], &ends[1], &d)?;
                    let name = format!("dense.{dense_left}.linear.");
                    of_dense.push(prefixed(&name, grads).collect::<State<T>>());
                    d = dx;
                }
            }
        }
        let mut dx = zeros(x.len())?;
        let width = self.poolings.len() * self.d;
        for (d, bounds) in d.chunks_exact(width).zip(saved.starts.windows(2)) {
            let first = bounds[1].min(bounds[0] + saved.left_out);
            let at = first * self.d..bounds[1] * self.d;
            for (&kind, d) in self.poolings.iter().zip(d.chunks_exact(self.d)) {
                spread(kind, &x[at.clone()], saved.left_out, d, &mut dx[at.clone()]);
            }
        }
        Ok((dx, of_dense.into_iter().rev().flatten().collect()))
    }
}

/// d becomes the gradient of x, where y = x / max(|x|, least).
fn back_to_length<T: Float>(d: &mut [T], x: &[T], y: &[T]) {
    let squares = x.iter().fold(0.0, |sum, x| sum + x.to_f64() * x.to_f64());
    let (norm, least) = (squares.sqrt(), MIN_NORM);
    let along = d.iter().zip(y).fold(0.0, |sum, (d, y)| sum + d.to_f64() * y.to_f64());
    // A length that was not reached did not depend on x.
    let (norm, along) = if norm < least { (least, 0.0) } else { (norm, along) };
    for (d, y) in d.iter_mut().zip(y) {
        *d = T::from_f64((d.to_f64() - along * y.to_f64()) / norm);
    }
}

/// Adds to dx (L, D) what the gradient d (D) of a pooled row makes of its tokens x.
fn spread<T: Float>(kind: Pooling, x: &[T], left_out: usize, d: &[T], dx: &mut [T]) {
    let width = d.len();
    let count = x.len() / width.max(1);
    if count == 0 {
        return;
    }
    let mut add = |row: usize, weight: f64| {
        for (dx, d) in dx[row * width..(row + 1) * width].iter_mut().zip(d) {
            *dx += T::from_f64(d.to_f64() * weight);
        }
    };
    let n = count as f64;
    match kind {
        Pooling::Cls => add(0, 1.0),
        Pooling::LastToken => add(count - 1, 1.0),
        Pooling::Mean => (0..count).for_each(|row| add(row, 1.0 / n)),
        Pooling::MeanSqrtLen => (0..count).for_each(|row| add(row, 1.0 / n.sqrt())),
        Pooling::WeightedMean => {
            let place = |row: usize| (left_out + row + 1) as f64;
            let total: f64 = (0..count).map(place).sum();
            (0..count).for_each(|row| add(row, place(row) / total));
        }
        Pooling::Max => {
            for (column, &d) in d.iter().enumerate() {
                let mut best = 0;
                for row in 1..count {
                    let (v, greatest) = (x[row * width + column], x[best * width + column]);
                    if !greatest.is_nan() && (v > greatest || v.is_nan()) {
                        best = row;
                    }
                }
                dx[best * width + column] += d;
            }
        }
    }
}
