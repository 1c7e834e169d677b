//! Derivatives of the activations, times the gradient of their result: `d_i *= act'(x_i)`, x before the activation.
//!
//! ```text
//! relu'(x)      = x > 0 ? 1 : 0, so 0 at 0
//! gelu'(x)      = Phi(x) + x phi(x), phi(x) = e^(-x^2/2) / sqrt(2 pi)
//! gelu_tanh'(x) = s(v) + x s(v) s(-v) v', s the sigmoid, v = 2 sqrt(2/pi) (x + 0.044715 x^3)
//! silu'(x)      = s(x) + x s(x) s(-x)
//! ```
//!
//! The smooth ones are exactly 0 and 1 far from zero; x is held within ±1000 first, so that no power of it overflows and an
//! infinite x has the limit's gradient. A gradient where relu is flat is dropped whatever it is: NaN does not come back
//! from there. Where x is NaN, it passes relu and is NaN after the others.

use super::activation::Activation;
use crate::account::at;
use crate::simd::math::{exp, normal_cdf};
use crate::simd::{Float, Kernel, Simd};

/// Beyond this the derivatives are constant, in f64 too.
const FLAT: f64 = 1000.0;

/// `d[i] *= activation'(x[i])`.
pub struct ActivateBackward<'a, T> {
    /// What the activation was applied to.
    pub x: &'a [T],
    /// The gradient of its result, and then of x.
    pub d: &'a mut [T],
    /// The function.
    pub activation: Activation,
}

impl<T: Float> Kernel<T> for ActivateBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        assert_eq!(self.x.len(), self.d.len(), "activation: input and gradient");
        // One loop for each function, so that none asks which it is.
        match self.activation {
            Activation::Identity => {}
            Activation::Relu => each(s, Activation::Relu, self.x, self.d),
            Activation::Gelu => each(s, Activation::Gelu, self.x, self.d),
            Activation::GeluTanh => each(s, Activation::GeluTanh, self.x, self.d),
            Activation::Silu => each(s, Activation::Silu, self.x, self.d),
        }
    }
}

#[inline(always)]
fn each<T: Float, S: Simd<T>>(s: S, activation: Activation, x: &[T], d: &mut [T]) {
    let whole = x.len() / S::LANES * S::LANES;
    for (x, d) in x[..whole].chunks_exact(S::LANES).zip(d[..whole].chunks_exact_mut(S::LANES)) {
        s.store(back(s, activation, s.load(x), s.load(d)), d);
    }
    if whole < x.len() {
        let rest = &mut d[whole..];
        let v = back(s, activation, s.load_partial(&x[whole..]), s.load_partial(rest));
        s.store_partial(v, rest);
    }
}

/// d act'(x) of each lane.
#[inline(always)]
fn back<T: Float, S: Simd<T>>(s: S, activation: Activation, x: S::V, d: S::V) -> S::V {
    if activation == Activation::Relu {
        return s.select(s.le(x, s.splat(T::ZERO)), s.splat(T::ZERO), d);
    }
    // The second operand comes back where one is NaN.
    let x = s.min(s.splat(T::from_f64(FLAT)), s.max(s.splat(T::from_f64(-FLAT)), x));
    let slope = match activation {
        Activation::Identity | Activation::Relu => return d,
        Activation::Gelu => {
            let half = s.mul(x, s.splat(T::from_f64(-0.5)));
            // 1 / sqrt(2 pi)
            let density = s.mul(exp(s, s.mul(half, x)), s.splat(T::from_f64(0.398_942_280_401_432_7)));
            s.fma(x, density, normal_cdf(s, x))
        }
        Activation::GeluTanh => {
            // 2 sqrt(2/pi), its product with 0.044715, and three times that.
            let (one, three, rise) = (
                s.splat(T::from_f64(1.595_769_121_605_730_8)),
                s.splat(T::from_f64(0.071_354_816_272_600_25)),
                s.splat(T::from_f64(0.214_064_448_817_800_76)),
            );
            let square = s.mul(x, x);
            let v = s.mul(x, s.fma(square, three, one));
            let (up, both) = sigmoids(s, v);
            s.fma(s.mul(x, both), s.fma(square, rise, one), up)
        }
        Activation::Silu => {
            let (up, both) = sigmoids(s, x);
            s.fma(x, both, up)
        }
    };
    s.mul(d, slope)
}

/// s(v) and s(v) s(-v), each as accurate in its tail as elsewhere: both from e^-|v|.
#[inline(always)]
fn sigmoids<T: Float, S: Simd<T>>(s: S, v: S::V) -> (S::V, S::V) {
    let one = s.splat(T::ONE);
    let e = exp(s, s.neg(s.abs(v)));
    let large = s.div(one, s.add(one, e));
    let small = s.mul(e, large);
    (s.select(s.lt(v, s.splat(T::ZERO)), small, large), s.mul(small, large))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    const ALL: [Activation; 5] =
        [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

    fn back<T: Float>(isa: Isa, activation: Activation, x: &[T], d: &[T]) -> Vec<T> {
        let mut out = d.to_vec();
        T::dispatch(isa, ActivateBackward { x, d: &mut out, activation });
        out
    }

    /// Within `bound` of the slope, which is about 1 where it is not flat.
    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            let (x, d): (Vec<T>, Vec<T>) = (normals(n, 7, 3.0), normals(n, 8, 1.0));
            for activation in ALL {
                let out = back(isa, activation, &x, &d);
                assert_same_bits(&out, &back(Isa::Scalar, activation, &x, &d));
                for ((x, d), y) in x.iter().zip(&d).zip(out) {
                    let exact = d.to_f64() * naive::activation_slope(activation, x.to_f64());
                    let error = (y.to_f64() - exact).abs();
                    assert!(error <= bound * d.to_f64().abs(), "{activation}'({x}): {y}, {exact}");
                }
            }
        }
    }

    fn meets_the_ends<T: Float>(isa: Isa, (): ()) {
        let t = T::from_f64;
        for activation in &ALL[1..] {
            let high = back(isa, *activation, &[T::INFINITY, T::MAX, t(999.0)], &[T::ONE; 3]);
            assert_same_bits(&high, &[T::ONE; 3]);
            let low = back(isa, *activation, &[T::NEG_INFINITY, -T::MAX, t(-999.0)], &[T::ONE; 3]);
            assert_eq!(low, [T::ZERO; 3], "{activation}");
            let here = back(isa, *activation, &[T::NAN, T::ONE], &[T::ONE, T::NAN]);
            assert!(
                here[1].is_nan() && (*activation == Activation::Relu || here[0].is_nan()),
                "{activation}"
            );
        }
        let relu = back(isa, Activation::Relu, &[T::ZERO, t(-0.0), t(-1.0)], &[T::ONE, T::NAN, T::NAN]);
        assert_same_bits(&relu, &[T::ZERO; 3]);
    }

    for_each_isa! {
        slopes_agree_with_the_formula: agrees, 4e-7, 8e-16;
        slopes_meet_the_ends: meets_the_ends, (), ();
    }
}
