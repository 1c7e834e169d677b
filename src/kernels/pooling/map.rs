//! tanh, sigmoid and exp of arrays: the soft cap of scores, the place that a predicted window has, and its Gaussian.

use crate::kernels::rows::{for_each_vector, load_up_to, store_up_to};
use crate::simd::math::{exp, sigmoid, tanh};
use crate::simd::{Float, Kernel, Simd};

/// The function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// tanh x
    Tanh,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// e^x
    Exp,
}

/// `x[i] = f(x[i])`.
pub struct Map<'a, T> {
    /// The function.
    pub function: Function,
    /// Arguments, and then values.
    pub x: &'a mut [T],
}

impl<T: Float> Kernel<T> for Map<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for_each_vector!(S, self.x.len(), |_lane, from, n| {
            let x = load_up_to(s, self.x, from, n);
            let y = match self.function {
                Function::Tanh => tanh(s, x),
                Function::Sigmoid => sigmoid(s, x),
                Function::Exp => exp(s, x),
            };
            store_up_to(s, y, self.x, from, n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            let x = normals::<T>(n, 1, 4.0);
            for function in [Function::Tanh, Function::Sigmoid, Function::Exp] {
                let run = |isa| {
                    let mut y = x.clone();
                    T::dispatch(isa, Map { function, x: &mut y });
                    y
                };
                let y = run(isa);
                for (x, y) in x.iter().zip(&y) {
                    let exact = match function {
                        Function::Tanh => libm::tanh(x.to_f64()),
                        Function::Sigmoid => 1.0 / (1.0 + libm::exp(-x.to_f64())),
                        Function::Exp => libm::exp(x.to_f64()),
                    };
                    assert!((y.to_f64() - exact).abs() <= bound * exact.abs(), "{function:?} of {x}: {y}");
                }
                assert_same_bits(&y, &run(Isa::Scalar));
            }
        }
    }

    for_each_isa! {
        functions_agree_with_libm: agrees, 4e-7, 1e-15;
    }
}
