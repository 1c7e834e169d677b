//! The sum of squares of numbers, in f64: for losses and for norms of gradients.
//!
//! A square of an f32 is exact in f64. Lane j of 16 takes the numbers j, j + 16, ... in ascending order; the lanes are
//! folded i + 8, i + 4, i + 2, i + 1. The loop is written without vectors: each lane's operations are plain, the compiler
//! neither reorders nor fuses them, so the bits are those of every instruction set.

use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// The sum of the squares of `x`.
pub struct SumOfSquares<'a, T> {
    /// The numbers.
    pub x: &'a [T],
}

impl<T: Float> Kernel<T> for SumOfSquares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> f64 {
        let mut lanes = [0.0; VIRTUAL_LANES];
        let blocks = self.x.chunks_exact(VIRTUAL_LANES);
        let rest = blocks.remainder();
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane += x.to_f64() * x.to_f64();
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x.to_f64() * x.to_f64();
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{for_each_isa, lengths, normals};
    use crate::simd::Isa;

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            let x = normals::<T>(n, 1, 3.0);
            let exact: f64 = x.iter().map(|x| x.to_f64() * x.to_f64()).sum();
            let got = T::dispatch(isa, SumOfSquares { x: &x });
            assert!((got - exact).abs() <= bound * exact, "{n} numbers: {got}, {exact}");
            assert_eq!(got.to_bits(), T::dispatch(Isa::Scalar, SumOfSquares { x: &x }).to_bits());
        }
    }

    for_each_isa! {
        squares_agree_with_the_formula: agrees, 1e-14, 1e-14;
    }
}
