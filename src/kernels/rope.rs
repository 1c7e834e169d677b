//! Rotary embedding of rows: pairs of numbers turned by an angle that grows with the position.
//!
//! ```text
//! (a, b) -> (a cos - b sin, b cos + a sin)
//! ```
//!
//! The pairs are (i, i + R/2) as in GPT-NeoX and Hugging Face's models, or (2i, 2i + 1) as in the paper (`interleaved`);
//! numbers beyond the rotated width R pass through. Cosines and sines come from tables whose angles were computed in f64.
//!
//! Plain products and sums, each rounded: the compiler makes vectors of them in both layouts, and they mean the same
//! on every instruction set.

use crate::simd::{Float, Kernel, Simd};

/// Turns each row of `width` numbers.
pub struct Rotate<'a, T> {
    /// Rows, one after the other.
    pub x: &'a [T],
    /// Output, as long as the input.
    pub out: &'a mut [T],
    /// Numbers in a row.
    pub width: usize,
    /// R / 2 cosines for each row.
    pub cos: &'a [T],
    /// R / 2 sines for each row.
    pub sin: &'a [T],
    /// R / 2.
    pub pairs: usize,
    /// Whether pairs are neighbours.
    pub interleaved: bool,
}

impl<T: Float> Kernel<T> for Rotate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let Self { x, out, width, cos, sin, pairs, interleaved } = self;
        assert!(x.len() == out.len() && 2 * pairs <= width, "rotary embedding: rows");
        if pairs == 0 {
            return out.copy_from_slice(x);
        }
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
        assert!(angles.len() >= rows.len(), "rotary embedding: one row of the table for each row");
        for ((x, out), (cos, sin)) in rows.zip(angles) {
            out[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
            if interleaved {
                let neighbours = x[..2 * pairs].chunks_exact(2).zip(out[..2 * pairs].chunks_exact_mut(2));
                for ((x, out), (&c, &s)) in neighbours.zip(cos.iter().zip(sin)) {
                    out[0] = x[0] * c - x[1] * s;
                    out[1] = x[1] * c + x[0] * s;
                }
            } else {
                let (a, b) = x[..2 * pairs].split_at(pairs);
                let (out_a, out_b) = out[..2 * pairs].split_at_mut(pairs);
                for i in 0..pairs {
                    out_a[i] = a[i] * cos[i] - b[i] * sin[i];
                    out_b[i] = b[i] * cos[i] + a[i] * sin[i];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, normals, rms_relative};
    use crate::simd::Isa;

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for (width, rotary) in [(2, 2), (3, 2), (32, 32), (34, 34), (64, 16), (80, 80), (5, 0)] {
            for interleaved in [false, true] {
                let (rows, theta) = (7, 10000.0);
                let x: Vec<T> = normals(rows * width, 1, 1.0);
                let angle = |i: usize| {
                    let (row, pair) = (i / (rotary / 2), i % (rotary / 2));
                    row as f64 * 11.0 * libm::pow(theta, -2.0 * pair as f64 / rotary as f64)
                };
                let table = |f: fn(f64) -> f64| -> Vec<T> {
                    (0..rows * (rotary / 2)).map(|i| T::from_f64(f(angle(i)))).collect()
                };
                let (cos, sin) = (table(libm::cos), table(libm::sin));
                let rotate = |isa| {
                    let mut out = vec![T::NAN; x.len()];
                    let (cos, sin, pairs) = (&cos[..], &sin[..], rotary / 2);
                    T::dispatch(isa, Rotate { x: &x, out: &mut out, width, cos, sin, pairs, interleaved });
                    out
                };
                let out = rotate(isa);
                let exact: Vec<f64> = x
                    .chunks(width)
                    .enumerate()
                    .flat_map(|(row, x)| {
                        let x: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
                        naive::rotate(&x, row as f64 * 11.0, theta, interleaved, rotary)
                    })
                    .collect();
                let error = rms_relative(&out, &exact);
                assert!(error <= bound, "width {width}, rotary {rotary}, interleaved {interleaved}: {error}");
                assert_same_bits(&out, &rotate(Isa::Scalar));
                assert_same_bits(&out[..width], &x[..width]);
            }
        }
    }

    for_each_isa! {
        rotation_agrees_with_the_formula: agrees, 1e-7, 2e-16;
    }
}
