//! Gradients of layer norm and RMS norm of rows.
//!
//! With u = (x - mean) / deviation (RMS norm: x / root), y = u * weight + bias and g = dy * weight:
//!
//! ```text
//! layer: dx = (g - mean of g - u * mean of g u) / deviation
//! rms:   dx = (g - u * mean of g u) / root
//! dweight = sum over rows of dy * u,  dbias = sum over rows of dy
//! ```
//!
//! Mean and deviation are computed again, by the forward pass's own sums, instead of being kept. Means over a row are sums
//! over the 16 virtual lanes; the sums over rows are one chain a column, rows ascending from zero: whoever calls hands
//! over at most [`ROW_BLOCK`](super::columns::ROW_BLOCK) rows at a time and adds the blocks in order.

use super::norm::{layer_moments, rms_root};
use super::rows::{Lanes, for_each_vector, load_up_to, store_up_to, zero_lanes};
use crate::account::at;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// Gradients of rows of `width` numbers.
pub struct NormBackward<'a, T> {
    /// The forward pass's input rows, one after the other.
    pub x: &'a [T],
    /// Gradients of the results, as long as `x`.
    pub dy: &'a [T],
    /// Gradients of the rows, as long as `x`.
    pub dx: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
    /// The forward pass's weight; `width` numbers.
    pub weight: Option<&'a [T]>,
    /// The forward pass's eps.
    pub eps: T,
    /// Whether the mean is subtracted: layer norm, not RMS norm.
    pub centered: bool,
    /// Gradient of the weight; `width` numbers.
    pub dweight: Option<&'a mut [T]>,
    /// Gradient of the bias; `width` numbers.
    pub dbias: Option<&'a mut [T]>,
}

impl<T: Float> Kernel<T> for NormBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        at!(Norm);
        let width = self.width;
        assert!(self.x.len() == self.dy.len() && self.x.len() == self.dx.len(), "norm: rows");
        for sums in [&mut self.dweight, &mut self.dbias].into_iter().flatten() {
            assert_eq!(sums.len(), width, "norm: gradients of weight and bias");
            sums.fill(T::ZERO);
        }
        assert!(self.weight.is_none_or(|w| w.len() == width), "norm: weight");
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            let (mean, deviation) = if self.centered {
                layer_moments(s, x, self.eps)
            } else {
                (T::ZERO, rms_root(s, x, self.eps))
            };
            unit_row(s, x, dx, mean, deviation);
            if let Some(sums) = &mut self.dweight {
                add_products(s, dy, dx, sums);
            }
            if let Some(sums) = &mut self.dbias {
                add_row(s, dy, sums);
            }
            back_row(s, dy, dx, self.weight, deviation, self.centered);
        }
    }
}

/// (x - mean) / deviation, with the roundings of the forward pass.
#[inline(always)]
fn unit_row<T: Float, S: Simd<T>>(s: S, x: &[T], unit: &mut [T], mean: T, deviation: T) {
    let (mean, deviation) = (s.splat(mean), s.splat(deviation));
    for_each_vector!(S, x.len(), |_lane, from, n| {
        let u = s.div(s.sub(load_up_to(s, x, from, n), mean), deviation);
        store_up_to(s, u, unit, from, n);
    });
}

/// sums += dy * unit, by fused multiply-adds.
#[inline(always)]
fn add_products<T: Float, S: Simd<T>>(s: S, dy: &[T], unit: &[T], sums: &mut [T]) {
    for_each_vector!(S, dy.len(), |_lane, from, n| {
        let sum = load_up_to(s, sums, from, n);
        let sum = s.fma(load_up_to(s, dy, from, n), load_up_to(s, unit, from, n), sum);
        store_up_to(s, sum, sums, from, n);
    });
}

/// sums += dy.
#[inline(always)]
fn add_row<T: Float, S: Simd<T>>(s: S, dy: &[T], sums: &mut [T]) {
    for_each_vector!(S, dy.len(), |_lane, from, n| {
        let sum = s.add(load_up_to(s, sums, from, n), load_up_to(s, dy, from, n));
        store_up_to(s, sum, sums, from, n);
    });
}

/// (g - mean of g - unit * mean of g unit) / deviation, in the place of `unit`.
#[inline(always)]
fn back_row<T: Float, S: Simd<T>>(
    s: S,
    dy: &[T],
    unit: &mut [T],
    weight: Option<&[T]>,
    deviation: T,
    centered: bool,
) {
    let (mut flat, mut along): (Lanes<T, S>, Lanes<T, S>) = (zero_lanes(s), zero_lanes(s));
    for_each_vector!(S, dy.len(), |lane, from, n| {
        // Absent lanes are zeros.
        let g = gradient(s, dy, weight, from, n);
        flat[lane] = s.add(flat[lane], g);
        along[lane] = s.fma(g, load_up_to(s, unit, from, n), along[lane]);
    });
    let n = T::from_f64(dy.len() as f64);
    let mean = |sums: &Lanes<T, S>| s.splat(s.fold_add(&sums[..VIRTUAL_LANES / S::LANES]) / n);
    let (flat, along) = (if centered { mean(&flat) } else { s.splat(T::ZERO) }, s.neg(mean(&along)));
    let deviation = s.splat(deviation);
    for_each_vector!(S, dy.len(), |_lane, from, n| {
        let g = s.sub(gradient(s, dy, weight, from, n), flat);
        let dx = s.div(s.fma(load_up_to(s, unit, from, n), along, g), deviation);
        store_up_to(s, dx, unit, from, n);
    });
}

/// dy * weight.
#[inline(always)]
fn gradient<T: Float, S: Simd<T>>(s: S, dy: &[T], weight: Option<&[T]>, from: usize, n: usize) -> S::V {
    let dy = load_up_to(s, dy, from, n);
    match weight {
        Some(w) => s.mul(dy, load_up_to(s, w, from, n)),
        None => dy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    /// dx, dweight and dbias.
    type Gradients<T> = [Vec<T>; 3];

    fn back<T: Float>(
        isa: Isa,
        x: &[T],
        dy: &[T],
        weight: Option<&[T]>,
        width: usize,
        centered: bool,
    ) -> Gradients<T> {
        let mut all = [x, &x[..width], &x[..width]].map(|like| vec![T::NAN; like.len()]);
        let [dx, dweight, dbias] = &mut all;
        let (dweight, dbias, eps) = (Some(&mut dweight[..]), Some(&mut dbias[..]), T::from_f64(1e-3));
        T::dispatch(isa, NormBackward { x, dy, dx, width, weight, eps, centered, dweight, dbias });
        all
    }

    fn agree<T: Float>(isa: Isa, bound: f64) {
        let wide = |x: &[T]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
        let eps = T::from_f64(1e-3).to_f64();
        // A norm of one or two numbers is nearly constant: its gradient is what rounding leaves.
        for n in lengths().into_iter().filter(|&n| n > 2) {
            let rows = 5;
            let (x, dy) = (normals::<T>(rows * n, 1, 2.0), normals::<T>(rows * n, 2, 1.0));
            let w = normals::<T>(n, 3, 1.0);
            for weight in [None, Some(&w[..])] {
                for centered in [true, false] {
                    let got = back(isa, &x, &dy, weight, n, centered);
                    let want = back(Isa::Scalar, &x, &dy, weight, n, centered);
                    for (got, want) in got.iter().zip(&want) {
                        assert_same_bits(got, want);
                    }
                    let mut exact = [Vec::new(), vec![0.0; n], vec![0.0; n]];
                    for (x, dy) in wide(&x).chunks(n).zip(wide(&dy).chunks(n)) {
                        let weight = weight.map(wide);
                        let (dx, dweight, dbias) = if centered {
                            naive::layer_norm_backward(x, dy, weight.as_deref(), eps)
                        } else {
                            let (dx, dweight) = naive::rms_norm_backward(x, dy, weight.as_deref(), eps);
                            (dx, dweight, dy.to_vec())
                        };
                        exact[0].extend(dx);
                        exact[1].iter_mut().zip(dweight).for_each(|(sum, d)| *sum += d);
                        exact[2].iter_mut().zip(dbias).for_each(|(sum, d)| *sum += d);
                    }
                    for (i, (got, exact)) in got.iter().zip(&exact).enumerate() {
                        let error = rms_relative(got, exact);
                        assert!(error <= bound, "{n} numbers, centered {centered}, gradient {i}: {error}");
                    }
                }
            }
        }
    }

    fn poison_stays_in_its_row<T: Float>(isa: Isa, (): ()) {
        let (mut x, dy) = (normals::<T>(60, 9, 1.0), normals::<T>(60, 8, 1.0));
        x[25] = T::NAN;
        let [dx, ..] = back(isa, &x, &dy, None, 20, true);
        assert!(dx[20..40].iter().all(|d| d.is_nan()));
        assert_same_bits(&dx[40..], &back(isa, &x[40..], &dy[40..], None, 20, true)[0]);
    }

    for_each_isa! {
        gradients_agree_with_the_formula: agree, 6e-7, 1.2e-15;
        a_nan_stays_in_its_row: poison_stays_in_its_row, (), ();
    }
}
