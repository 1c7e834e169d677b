//! A step of an optimizer on one array, over threads. Each number is updated by itself, so the cut does not show.

use std::sync::Mutex;

use crate::error::Result;
use crate::kernels::update::{Adam, AdamRule, Sgd, SgdRule};
use crate::simd::{Float, Kernel, active};
use crate::threads::parallel;

/// Numbers of a task: a quarter of a megabyte of f32 and its moments.
const TASK: usize = 1 << 14;

/// [`Sgd`] of a whole array.
///
/// # Errors
/// `Interrupted`, when part of the array is updated already; `Internal`.
pub fn sgd<T: Float>(
    parameter: &mut [T],
    gradient: &[T],
    velocity: Option<&mut [T]>,
    rule: SgdRule<T>,
) -> Result<()> {
    let mut velocities = velocity.map(|v| v.chunks_mut(TASK));
    each(
        parameter
            .chunks_mut(TASK)
            .zip(gradient.chunks(TASK))
            .map(|(parameter, gradient)| {
                let velocity = velocities.as_mut().and_then(Iterator::next);
                Sgd { parameter, gradient, velocity, rule }
            })
            .collect(),
    )
}

/// [`Adam`] of a whole array.
///
/// # Errors
/// As [`sgd`].
pub fn adam<T: Float>(
    parameter: &mut [T],
    gradient: &[T],
    mean: &mut [T],
    square: &mut [T],
    rule: AdamRule<T>,
) -> Result<()> {
    let moments = mean.chunks_mut(TASK).zip(square.chunks_mut(TASK));
    each(
        parameter
            .chunks_mut(TASK)
            .zip(gradient.chunks(TASK))
            .zip(moments)
            .map(|((parameter, gradient), (mean, square))| Adam { parameter, gradient, mean, square, rule })
            .collect(),
    )
}

/// The numbers of Adam's step `t`, from 1 on: powers by `libm`, so that they are the same everywhere.
pub fn adam_rule<T: Float>(
    step: u64,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
) -> AdamRule<T> {
    let t = T::from_f64;
    let correction = |beta: f64| 1.0 - libm::pow(beta, step as f64);
    AdamRule {
        keep: t(if decoupled { 1.0 - lr * weight_decay } else { 1.0 }),
        weight_decay: t(if decoupled { 0.0 } else { weight_decay }),
        mean_rate: t(1.0 - betas.0),
        square_keep: t(betas.1),
        square_rate: t(1.0 - betas.1),
        root_correction: t(correction(betas.1).sqrt()),
        eps: t(eps),
        step_size: t(lr / correction(betas.0)),
    }
}

fn each<T: Float, K: Kernel<T, Output = ()> + Send>(kernels: Vec<K>) -> Result<()> {
    let isa = active()?;
    let tasks: Vec<_> = kernels.into_iter().map(|kernel| Mutex::new(Some(kernel))).collect();
    parallel(tasks.len(), |i| {
        if let Some(kernel) = tasks[i].lock().ok().and_then(|mut kernel| kernel.take()) {
            T::dispatch(isa, kernel);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn the_cut_does_not_show() {
        let n = 3 * TASK + 5;
        let rule = adam_rule::<f32>(3, 1e-2, (0.9, 0.999), 1e-8, 0.1, true);
        let (gradient, start) = (normals::<f32>(n, 1, 1.0), normals::<f32>(n, 2, 1.0));
        let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
        adam(&mut p, &gradient, &mut m, &mut v, rule).unwrap();
        for at in [0, TASK - 1, TASK, n - 1] {
            let (mut one, mut m, mut v) = ([start[at]], [0.0], [0.0]);
            adam(&mut one, &gradient[at..=at], &mut m, &mut v, rule).unwrap();
            assert_same_bits(&one, &p[at..=at]);
        }
        let rule = SgdRule { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.1 };
        let (mut p, mut v) = (start.clone(), start.clone());
        sgd(&mut p, &gradient, Some(&mut v), rule).unwrap();
        let (mut one, mut w) = ([start[n - 1]], [start[n - 1]]);
        sgd(&mut one, &gradient[n - 1..], Some(&mut w), rule).unwrap();
        assert_same_bits(&[one[0], w[0]], &[p[n - 1], v[n - 1]]);
    }
}
