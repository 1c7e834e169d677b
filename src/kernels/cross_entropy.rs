//! Cross-entropy of rows of logits, and its gradient, in one pass over each row.
//!
//! ```text
//! t_c  = w_c ((1 - e) p_c + e / C)              p the target (one class, or probabilities), e the smoothing, w weights
//! loss = sum_c t_c (log sum_j e^(x_j) - x_c)
//!      = sum_c t_c (m - x_c) + W log(sum_j e^(x_j - m)),  W = sum_c t_c, m = max x
//! d x_c = (softmax(x)_c W - t_c) / denominator
//! ```
//!
//! Both terms of the second form are at least 0, so the loss of a sure and correct row is small, never negative. The softmax
//! is [`softmax_row`]'s, to the bit. Sums go over the 16 virtual lanes in the row's own type; the logarithm and the
//! row's loss are f64. A class with `t_c = 0` costs nothing, even where its logit is -inf. A row that does not count is
//! not looked at: loss and gradient 0.

use super::rows::{for_each_vector, keep_first, load_up_to, store_up_to, zero_lanes};
use super::softmax::softmax_row;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// What the rows should be.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a, T> {
    /// The number of its class, for each row.
    Classes(&'a [i64]),
    /// A probability for each class, row after row.
    Probabilities(&'a [T]),
}

/// What is the same for all rows.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a, T> {
    /// A factor for each class.
    pub class_weight: Option<&'a [T]>,
    /// Their mean; 1 without.
    pub mean_weight: T,
    /// The part of the target that is spread over all classes.
    pub smoothing: T,
    /// What gradients are divided by.
    pub denominator: T,
}

/// Losses and gradients of rows of `width` logits.
pub struct CrossEntropy<'a, T> {
    /// Rows, one after the other.
    pub logits: &'a [T],
    /// Output, as long as the logits.
    pub gradient: &'a mut [T],
    /// The loss of each row, before any division.
    pub losses: &'a mut [f64],
    /// Classes; more than 0.
    pub width: usize,
    /// The targets of these rows; classes of rows that count are below `width`.
    pub targets: Targets<'a, T>,
    /// Which rows count; all without.
    pub counted: Option<&'a [bool]>,
    /// What is the same for all rows.
    pub rule: Rule<'a, T>,
}

impl<T: Float> Kernel<T> for CrossEntropy<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = self.width;
        assert_eq!(self.logits.len(), self.gradient.len(), "cross-entropy: logits and gradient");
        assert_eq!(self.logits.len(), self.losses.len() * width, "cross-entropy: a loss for each row");
        let rows = self.logits.chunks_exact(width).zip(self.gradient.chunks_exact_mut(width));
        for (i, ((x, out), loss)) in rows.zip(self.losses).enumerate() {
            *loss = 0.0;
            if self.counted.is_some_and(|counted| !counted[i]) {
                out.fill(T::ZERO);
                continue;
            }
            *loss = match self.targets {
                Targets::Classes(classes) => class_row(s, x, out, classes[i] as usize, &self.rule),
                Targets::Probabilities(p) => {
                    probability_row(s, x, out, &p[i * width..(i + 1) * width], &self.rule)
                }
            };
        }
    }
}

#[inline(always)]
fn class_row<T: Float, S: Simd<T>>(s: S, x: &[T], out: &mut [T], class: usize, rule: &Rule<'_, T>) -> f64 {
    let Rule { smoothing, class_weight, mean_weight, denominator } = *rule;
    let row = softmax_row(s, x, out);
    let weight = class_weight.map_or(T::ONE, |w| w[class]);
    let own = (T::ONE - smoothing) * weight;
    let total = own + smoothing * mean_weight;
    let below = row.max.to_f64() - x[class].to_f64();
    let mut loss = if own == T::ZERO { 0.0 } else { own.to_f64() * below };
    if smoothing != T::ZERO {
        loss += sums(s, x, None, row.max, rule).0.to_f64();
    }
    let softmax = out[class];
    gradient(s, out, None, total, rule);
    let spread = smoothing / T::from_f64(x.len() as f64) * weight;
    out[class] = (softmax * total - (spread + own)) / denominator;
    loss + total.to_f64() * libm::log(row.sum.to_f64() / row.largest.to_f64())
}

#[inline(always)]
fn probability_row<T: Float, S: Simd<T>>(s: S, x: &[T], out: &mut [T], p: &[T], rule: &Rule<'_, T>) -> f64 {
    let row = softmax_row(s, x, out);
    let (loss, total) = sums(s, x, Some(p), row.max, rule);
    gradient(s, out, Some(p), total, rule);
    loss.to_f64() + total.to_f64() * libm::log(row.sum.to_f64() / row.largest.to_f64())
}

/// t of the `n` classes at `from`, without the share of a single class.
#[inline(always)]
fn target<T: Float, S: Simd<T>>(
    s: S,
    p: Option<&[T]>,
    rule: &Rule<'_, T>,
    width: usize,
    from: usize,
    n: usize,
) -> S::V {
    let spread = s.splat(rule.smoothing / T::from_f64(width as f64));
    let t = match p {
        Some(p) => s.add(s.mul(s.splat(T::ONE - rule.smoothing), load_up_to(s, p, from, n)), spread),
        None => spread,
    };
    match rule.class_weight {
        Some(w) => s.mul(t, load_up_to(s, w, from, n)),
        None => t,
    }
}

/// The sums of t (max - x) and of t.
#[inline(always)]
fn sums<T: Float, S: Simd<T>>(s: S, x: &[T], p: Option<&[T]>, max: T, rule: &Rule<'_, T>) -> (T, T) {
    let (mut losses, mut total) = (zero_lanes(s), zero_lanes(s));
    let (max, zero) = (s.splat(max), s.splat(T::ZERO));
    for_each_vector!(S, x.len(), |lane, from, n| {
        let t = keep_first(s, target(s, p, rule, x.len(), from, n), n);
        let cost = s.mul(t, s.sub(max, load_up_to(s, x, from, n)));
        losses[lane] = s.add(losses[lane], s.select(s.eq(t, zero), zero, cost));
        total[lane] = s.add(total[lane], t);
    });
    let parts = VIRTUAL_LANES / S::LANES;
    (s.fold_add(&losses[..parts]), s.fold_add(&total[..parts]))
}

/// From the softmax in `out` to the gradient.
#[inline(always)]
fn gradient<T: Float, S: Simd<T>>(s: S, out: &mut [T], p: Option<&[T]>, total: T, rule: &Rule<'_, T>) {
    let width = out.len();
    let (total, denominator) = (s.splat(total), s.splat(rule.denominator));
    for_each_vector!(S, width, |_lane, from, n| {
        let y = s.mul(load_up_to(s, out, from, n), total);
        let d = s.sub(y, target(s, p, rule, width, from, n));
        store_up_to(s, s.div(d, denominator), out, from, n);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    /// Loss and gradient as the formula has them, in f64.
    fn exact<T: Float>(x: &[T], p: &[f64], w: &[T], smoothing: T, denominator: T) -> (f64, Vec<f64>) {
        let x: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let (e, n) = (smoothing.to_f64(), x.len() as f64);
        let t: Vec<f64> = p.iter().zip(w).map(|(p, w)| w.to_f64() * ((1.0 - e) * p + e / n)).collect();
        let (y, total) = (naive::softmax(&x), naive::sum(t.iter().copied()));
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = libm::log(naive::sum(x.iter().map(|x| libm::exp(x - max))));
        let loss = naive::sum(t.iter().zip(&x).map(|(t, x)| t * (max - x + log)));
        (loss, y.iter().zip(&t).map(|(y, t)| (y * total - t) / denominator.to_f64()).collect())
    }

    fn run<T: Float>(isa: Isa, x: &[T], targets: Targets<'_, T>, rule: Rule<'_, T>) -> (Vec<f64>, Vec<T>) {
        let width = x.len().max(1);
        let (mut gradient, mut losses) = (vec![T::NAN; x.len()], vec![f64::NAN; x.len() / width]);
        let (losses_of, gradient_of) = (&mut losses[..], &mut gradient[..]);
        T::dispatch(
            isa,
            CrossEntropy {
                logits: x,
                gradient: gradient_of,
                losses: losses_of,
                width,
                targets,
                counted: None,
                rule,
            },
        );
        (losses, gradient)
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths().into_iter().filter(|&n| n > 1) {
            let (x, w) = (normals::<T>(n, 1, 3.0), normals::<T>(n, 2, 1.0));
            let w: Vec<T> = w.iter().map(|w| *w * *w).collect();
            let p: Vec<f64> = naive::softmax(&normals::<f64>(n, 3, 1.0));
            // The kernel sees them in its own type.
            let p: Vec<T> = p.into_iter().map(T::from_f64).collect();
            let pd: Vec<f64> = p.iter().map(|p| p.to_f64()).collect();
            let class = n / 3;
            let one: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i == class))).collect();
            let ones = vec![T::ONE; n];
            for smoothing in [0.0, 0.1, 1.0].map(T::from_f64) {
                for (class_weight, w) in [(None, &ones), (Some(&w[..]), &w)] {
                    let mean: f64 = w.iter().map(|w| w.to_f64()).sum::<f64>() / n as f64;
                    let (mean_weight, denominator) = (T::from_f64(mean), T::from_f64(7.0));
                    let rule = Rule { class_weight, mean_weight, smoothing, denominator };
                    let classes = [class as i64];
                    for (targets, p) in
                        [(Targets::Classes(&classes), &one), (Targets::Probabilities(&p), &pd)]
                    {
                        let (loss, gradient) = run(isa, &x, targets, rule);
                        let (exact_loss, exact_gradient) = exact(&x, p, w, smoothing, denominator);
                        let error = (loss[0] - exact_loss).abs() / exact_loss;
                        assert!(error <= bound, "{n} classes, loss: {error}");
                        let error = rms_relative(&gradient, &exact_gradient);
                        assert!(error <= 4.0 * bound, "{n} classes, gradient: {error}");
                        let (same, scalar) = run(Isa::Scalar, &x, targets, rule);
                        assert_eq!(loss[0].to_bits(), same[0].to_bits());
                        assert_same_bits(&gradient, &scalar);
                    }
                }
            }
        }
    }

    fn meets_the_ends<T: Float>(isa: Isa, _: f64) {
        let (zero, one) = (T::ZERO, T::ONE);
        let rule = Rule { class_weight: None, mean_weight: one, smoothing: zero, denominator: one };
        let inf = T::NEG_INFINITY;
        // Sure and right: a loss of about e^-40, not below 0. A class that cannot be and should not costs nothing.
        let (loss, _) = run(isa, &[T::from_f64(40.0), zero], Targets::Classes(&[0]), rule);
        assert!((0.0..1e-6).contains(&loss[0]), "{}", loss[0]);
        let (loss, gradient) = run(isa, &[zero, inf], Targets::Probabilities(&[one, zero]), rule);
        assert_eq!((loss[0], &gradient[..]), (0.0, &[zero, zero][..]));
        let (loss, gradient) = run(isa, &[zero, inf], Targets::Classes(&[1]), rule);
        assert_eq!((loss[0], &gradient[..]), (f64::INFINITY, &[one, -one][..]));
        let (loss, gradient) = run(isa, &[T::NAN, zero], Targets::Classes(&[1]), rule);
        assert!(loss[0].is_nan() && gradient.iter().all(|g| g.is_nan()));
    }

    fn rows_that_do_not_count<T: Float>(isa: Isa, _: f64) {
        let mut x = normals::<T>(30, 4, 1.0);
        x[13] = T::NAN;
        let (mut gradient, mut losses) = (vec![T::NAN; 30], vec![f64::NAN; 3]);
        let rule = Rule { class_weight: None, mean_weight: T::ONE, smoothing: T::ZERO, denominator: T::ONE };
        let kernel = CrossEntropy {
            logits: &x,
            gradient: &mut gradient,
            losses: &mut losses,
            width: 10,
            targets: Targets::Classes(&[2, -100, 9]),
            counted: Some(&[true, false, true]),
            rule,
        };
        T::dispatch(isa, kernel);
        assert_eq!(losses[1], 0.0);
        assert_same_bits(&gradient[10..20], &[T::ZERO; 10]);
        for (row, class) in [(0, 2), (2, 9)] {
            let (loss, alone) = run(isa, &x[row * 10..][..10], Targets::Classes(&[class]), rule);
            assert_eq!(losses[row].to_bits(), loss[0].to_bits());
            assert_same_bits(&gradient[row * 10..][..10], &alone);
        }
    }

    for_each_isa! {
        cross_entropy_agrees_with_the_formula: agrees, 3e-7, 2e-15;
        cross_entropy_meets_the_ends: meets_the_ends, 0.0, 0.0;
        rows_that_do_not_count_are_zero: rows_that_do_not_count, 0.0, 0.0;
    }
}
