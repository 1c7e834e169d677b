//! One step of an optimizer: each parameter with its gradient and its moments, in place and in one pass.
//!
//! ```text
//! SGD    g += l p;  v = momentum v + g;  p -= lr v            (nesterov: p -= lr (g + momentum v))
//! Adam   p *= k;  g += l p;  m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g g
//!        p -= lr / (1 - b1^t) * m / (sqrt v / sqrt(1 - b2^t) + eps)
//! ```
//!
//! k = 1 - lr * decay is AdamW's decoupled decay and 1 otherwise; l is the decay of SGD and Adam. The order of the
//! operations is torch's. The loops are written without vectors: every operation is rounded by itself, the compiler fuses
//! none, so the bits are those of every instruction set; a step is bound by memory, not by its arithmetic.

use crate::simd::{Float, Kernel, Simd};

/// Numbers of one step of SGD.
#[derive(Clone, Copy, Debug)]
pub struct SgdRule<T> {
    /// The learning rate.
    pub lr: T,
    /// The part of the velocity that is kept.
    pub momentum: T,
    /// Whether to look ahead along the velocity.
    pub nesterov: bool,
    /// l above.
    pub weight_decay: T,
}

/// One step of SGD.
pub struct Sgd<'a, T> {
    /// Parameters, changed.
    pub parameter: &'a mut [T],
    /// Their gradients.
    pub gradient: &'a [T],
    /// v above, changed; without it there is no momentum.
    pub velocity: Option<&'a mut [T]>,
    /// The numbers of the step.
    pub rule: SgdRule<T>,
}

impl<T: Float> Kernel<T> for Sgd<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let SgdRule { lr, momentum, nesterov, weight_decay } = self.rule;
        let n = self.parameter.len();
        let (p, g) = (&mut self.parameter[..n], &self.gradient[..n]);
        if let Some(velocity) = self.velocity {
            for ((p, &g), v) in p.iter_mut().zip(g).zip(&mut velocity[..n]) {
                let g = decayed(g, weight_decay, *p);
                *v = momentum * *v + g;
                let direction = if nesterov { g + momentum * *v } else { *v };
                *p = *p - lr * direction;
            }
        } else {
            for (p, &g) in p.iter_mut().zip(g) {
                *p = *p - lr * decayed(g, weight_decay, *p);
            }
        }
    }
}

/// `g + decay * p`; without decay a parameter that is infinite leaves its gradient alone.
#[inline(always)]
fn decayed<T: Float>(g: T, decay: T, p: T) -> T {
    if decay == T::ZERO { g } else { g + decay * p }
}

/// Numbers of one step of Adam.
#[derive(Clone, Copy, Debug)]
pub struct AdamRule<T> {
    /// k above: what parameters are multiplied by first.
    pub keep: T,
    /// l above: what of the parameter is added to its gradient.
    pub weight_decay: T,
    /// 1 - b1.
    pub mean_rate: T,
    /// b2.
    pub square_keep: T,
    /// 1 - b2.
    pub square_rate: T,
    /// sqrt(1 - b2^t).
    pub root_correction: T,
    /// Added to the root.
    pub eps: T,
    /// lr / (1 - b1^t).
    pub step_size: T,
}

/// One step of Adam or AdamW.
pub struct Adam<'a, T> {
    /// Parameters, changed.
    pub parameter: &'a mut [T],
    /// Their gradients.
    pub gradient: &'a [T],
    /// m above, changed.
    pub mean: &'a mut [T],
    /// v above, changed.
    pub square: &'a mut [T],
    /// The numbers of the step.
    pub rule: AdamRule<T>,
}

impl<T: Float> Kernel<T> for Adam<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) {
        let rule = self.rule;
        let n = self.parameter.len();
        let (p, g) = (&mut self.parameter[..n], &self.gradient[..n]);
        let (m, v) = (&mut self.mean[..n], &mut self.square[..n]);
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let kept = *p * rule.keep;
            let g = decayed(g, rule.weight_decay, kept);
            *m += rule.mean_rate * (g - *m);
            *v = rule.square_keep * *v + rule.square_rate * (g * g);
            let root = v.sqrt() / rule.root_correction + rule.eps;
            *p = kept - rule.step_size * (*m / root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    fn wide<T: Float>(x: &[T]) -> Vec<f64> {
        x.iter().map(|x| x.to_f64()).collect()
    }

    fn sgd<T: Float>(isa: Isa, n: usize, momentum: bool, nesterov: bool, decay: f64) -> [Vec<T>; 2] {
        let t = T::from_f64;
        let (mut p, mut v) = (normals::<T>(n, 1, 1.0), normals::<T>(n, 2, 1.0));
        let rule = SgdRule { lr: t(0.25), momentum: t(0.75), nesterov, weight_decay: t(decay) };
        let velocity = momentum.then_some(&mut v[..]);
        T::dispatch(isa, Sgd { parameter: &mut p, gradient: &normals(n, 3, 1.0), velocity, rule });
        [p, v]
    }

    fn sgd_agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            for (momentum, nesterov) in [(false, false), (true, false), (true, true)] {
                for decay in [0.0, 0.125] {
                    let [p, v] = sgd::<T>(isa, n, momentum, nesterov, decay);
                    let (mut exact, mut velocity) =
                        (wide(&normals::<T>(n, 1, 1.0)), wide(&normals::<T>(n, 2, 1.0)));
                    for ((p, v), g) in exact.iter_mut().zip(&mut velocity).zip(wide(&normals::<T>(n, 3, 1.0)))
                    {
                        let g = g + decay * *p;
                        if momentum {
                            *v = 0.75 * *v + g;
                        }
                        let direction = match (momentum, nesterov) {
                            (false, _) => g,
                            (true, false) => *v,
                            (true, true) => g + 0.75 * *v,
                        };
                        *p -= 0.25 * direction;
                    }
                    assert!(rms_relative(&p, &exact) <= bound && rms_relative(&v, &velocity) <= bound);
                    let scalar = sgd::<T>(Isa::Scalar, n, momentum, nesterov, decay);
                    assert_same_bits(&p, &scalar[0]);
                    assert_same_bits(&v, &scalar[1]);
                }
            }
        }
    }

    fn adam<T: Float>(isa: Isa, n: usize, rule: AdamRule<T>) -> [Vec<T>; 3] {
        let (mut p, mut m) = (normals::<T>(n, 1, 1.0), normals::<T>(n, 2, 1.0));
        let mut v: Vec<T> = normals::<T>(n, 4, 1.0).iter().map(|v| *v * *v).collect();
        let gradient = &normals(n, 3, 1.0);
        T::dispatch(isa, Adam { parameter: &mut p, gradient, mean: &mut m, square: &mut v, rule });
        [p, m, v]
    }

    fn adam_agrees<T: Float>(isa: Isa, bound: f64) {
        let t = T::from_f64;
        for n in lengths() {
            for (keep, decay) in [(1.0, 0.0), (1.0, 0.125), (0.9375, 0.0)] {
                let rule = AdamRule {
                    keep: t(keep),
                    weight_decay: t(decay),
                    mean_rate: t(0.125),
                    square_keep: t(0.96875),
                    square_rate: t(0.03125),
                    root_correction: t(0.5),
                    eps: t(0.001_953_125),
                    step_size: t(0.25),
                };
                let [p, m, v] = adam(isa, n, rule);
                let [mut ep, mut em, ev] = [1, 2, 4].map(|seed| wide(&normals::<T>(n, seed, 1.0)));
                // The squares that the kernel began with were rounded to its type.
                let mut ev: Vec<f64> = ev.iter().map(|v| (t(*v) * t(*v)).to_f64()).collect();
                for (i, g) in wide(&normals::<T>(n, 3, 1.0)).into_iter().enumerate() {
                    ep[i] *= keep;
                    let g = g + decay * ep[i];
                    em[i] += 0.125 * (g - em[i]);
                    ev[i] = 0.96875 * ev[i] + 0.03125 * g * g;
                    ep[i] -= 0.25 * em[i] / (ev[i].sqrt() / 0.5 + 0.001_953_125);
                }
                for (got, exact) in [(&p, &ep), (&m, &em), (&v, &ev)] {
                    assert!(rms_relative(got, exact) <= bound, "{n}: {}", rms_relative(got, exact));
                }
                for (got, scalar) in [p, m, v].iter().zip(adam(Isa::Scalar, n, rule)) {
                    assert_same_bits(got, &scalar);
                }
            }
        }
    }

    for_each_isa! {
        sgd_agrees_with_the_formula: sgd_agrees, 3e-7, 6e-16;
        adam_agrees_with_the_formula: adam_agrees, 3e-7, 6e-16;
    }
}
