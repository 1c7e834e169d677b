//! relu, gelu, silu: one formula for each, used on whole arrays and inside the epilogue of the matrix product.
//!
//! ```text
//! relu(x)      = max(x, 0)
//! gelu(x)      = x Phi(x), Phi the standard normal distribution
//! gelu_tanh(x) = x (1 + tanh u) / 2 = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
//! silu(x)      = x sigmoid(x)
//! ```
//!
//! A NaN stays a NaN everywhere. gelu and silu of -inf are NaN (-inf * 0), as in torch.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::simd::math::{normal_cdf, sigmoid};
use crate::simd::{Float, Kernel, Simd};

/// The function after a product; `Identity` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// max(x, 0); relu(-0) = -0 and relu(NaN) = NaN.
    Relu,
    /// x Phi(x), by the error function.
    Gelu,
    /// The approximation of gelu by tanh.
    GeluTanh,
    /// x sigmoid(x), also known as swish.
    Silu,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
        })
    }
}

impl FromStr for Activation {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "relu" => Ok(Activation::Relu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_tanh" => Ok(Activation::GeluTanh),
            "silu" => Ok(Activation::Silu),
            _ => Err(Error::Value(format!(
                "activation: expected one of relu, gelu, gelu_tanh, silu, got {name:?}"
            ))),
        }
    }
}

impl Activation {
    /// The function of each lane.
    #[inline(always)]
    pub fn apply<T: Float, S: Simd<T>>(self, s: S, x: S::V) -> S::V {
        match self {
            Activation::Identity => x,
            // The second operand comes back where either is NaN or both are zero: x itself.
            Activation::Relu => s.max(s.splat(T::ZERO), x),
            Activation::Gelu => s.mul(x, normal_cdf(s, x)),
            Activation::GeluTanh => {
                // 2 sqrt(2/pi) and its product with 0.044715; x^3 may overflow, the sigmoid then is 0 or 1.
                let (one, three) =
                    (T::from_f64(1.595_769_121_605_730_8), T::from_f64(0.071_354_816_272_600_25));
                let u = s.mul(x, s.fma(s.mul(x, x), s.splat(three), s.splat(one)));
                s.mul(x, sigmoid(s, u))
            }
            Activation::Silu => s.mul(x, sigmoid(s, x)),
        }
    }
}

/// `out[i] = activation(x[i])`.
pub struct Activate<'a, T> {
    /// Input.
    pub x: &'a [T],
    /// Output, as long as the input.
    pub out: &'a mut [T],
    /// The function.
    pub activation: Activation,
}

impl<T: Float> Kernel<T> for Activate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        assert_eq!(self.x.len(), self.out.len(), "activation: input and output");
        // One loop for each function, so that none asks which it is.
        match self.activation {
            Activation::Identity => self.out.copy_from_slice(self.x),
            Activation::Relu => each(s, Activation::Relu, self.x, self.out),
            Activation::Gelu => each(s, Activation::Gelu, self.x, self.out),
            Activation::GeluTanh => each(s, Activation::GeluTanh, self.x, self.out),
            Activation::Silu => each(s, Activation::Silu, self.x, self.out),
        }
    }
}

#[inline(always)]
fn each<T: Float, S: Simd<T>>(s: S, activation: Activation, x: &[T], out: &mut [T]) {
    let whole = x.len() / S::LANES * S::LANES;
    for (x, out) in x[..whole].chunks_exact(S::LANES).zip(out[..whole].chunks_exact_mut(S::LANES)) {
        s.store(activation.apply(s, s.load(x)), out);
    }
    if whole < x.len() {
        s.store_partial(activation.apply(s, s.load_partial(&x[whole..])), &mut out[whole..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    const ALL: [Activation; 5] =
        [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

    fn activate<T: Float>(isa: Isa, x: &[T], activation: Activation) -> Vec<T> {
        let mut out = vec![T::NAN; x.len()];
        T::dispatch(isa, Activate { x, out: &mut out, activation });
        out
    }

    fn agrees<T: Float>(isa: Isa, epsilon: f64) {
        for n in lengths() {
            let x: Vec<T> = normals(n, 7, 3.0);
            for activation in ALL {
                let out = activate(isa, &x, activation);
                assert_same_bits(&out, &activate(Isa::Scalar, &x, activation));
                for (x, y) in x.iter().zip(out) {
                    let exact = naive::activation(activation, x.to_f64());
                    let error = (y.to_f64() - exact).abs();
                    assert!(error <= epsilon * x.to_f64().abs(), "{activation}({x}): {y}, {exact}");
                }
            }
        }
    }

    fn meets_the_ends<T: Float>(isa: Isa, _: f64) {
        let t = T::from_f64;
        let x = [T::NAN, T::INFINITY, T::MAX, t(100.0), t(0.0), t(-0.0)];
        for activation in ALL {
            assert_same_bits(&activate(isa, &x, activation), &x);
            let low = activate(isa, &[-T::MAX, t(-1000.0)], activation);
            let expected =
                if activation == Activation::Identity { [-T::MAX, t(-1000.0)] } else { [t(0.0); 2] };
            assert_eq!(low, expected, "{activation}");
        }
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            assert!(activate(isa, &[T::NEG_INFINITY], activation)[0].is_nan());
        }
        assert_same_bits(&activate(isa, &[T::NEG_INFINITY], Activation::Relu), &[t(0.0)]);
    }

    for_each_isa! {
        activations_agree_with_the_formula: agrees, 2.4e-7, 4.5e-16;
        activations_meet_the_ends: meets_the_ends, 0.0, 0.0;
    }

    #[test]
    fn names_go_both_ways() {
        for activation in &ALL[1..] {
            assert_eq!(activation.to_string().parse::<Activation>().unwrap(), *activation);
        }
        assert!("swish".parse::<Activation>().unwrap_err().to_string().contains("gelu_tanh"));
    }
}
