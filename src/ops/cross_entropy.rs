//! Cross-entropy of logits (..., C): the loss, a number, and its gradient.
//!
//! The loss is the sum over the rows that count, divided by their number (or by the sum of their classes' weights) where
//! the mean is asked for. Rows are added in ascending order in blocks of 256, and the blocks in order, in f64; rows that do
//! not count add 0. A mean over nothing is 0, with gradients of exactly 0.

use std::sync::Mutex;

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::zeros;
use super::rows::{dense, shaped};
use crate::error::{Error, Result};
use crate::kernels::cross_entropy::{CrossEntropy, Rule, Targets};
use crate::simd::{Float, active};
use crate::threads::parallel;

/// Rows of a block of a sum.
const BLOCK: usize = 256;

/// Numbers of a task: some 30 microseconds.
const TASK: usize = 1 << 14;

/// What belongs to a loss beside logits and targets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a, T> {
    /// (C,), a factor for each class.
    pub class_weight: Option<&'a [T]>,
    /// Which rows count.
    pub counted: Option<&'a [bool]>,
    /// The part of the target that is spread over all classes.
    pub smoothing: f64,
    /// Whether the sum is divided.
    pub mean: bool,
}

/// Loss and gradient of logits (..., C); targets, weights and the rows that count have been brought to its shape.
///
/// # Errors
/// `Shape` for an argument that does not fit, `Value` for a class or a smoothing out of range; `Memory`, `Interrupted`.
pub fn cross_entropy<T: Float>(
    logits: &ArrayViewD<'_, T>,
    targets: Targets<'_, T>,
    options: Options<'_, T>,
) -> Result<(f64, ArrayD<T>)> {
    let Some((&width, outer)) = logits.shape().split_last() else {
        return Err(Error::Shape("logits: expected (..., C), got a number".into()));
    };
    if width == 0 {
        return Err(Error::Shape(format!("logits: expected (..., C) with C > 0, got {:?}", logits.shape())));
    }
    let rows: usize = outer.iter().product();
    check(targets, &options, rows, width)?;
    let numbers = dense(logits)?;
    let mut gradient = zeros(numbers.len())?;
    let loss = cross_entropy_rows(&numbers, width, targets, options, &mut gradient)?;
    Ok((loss, shaped(logits.shape(), gradient)?))
}

/// [`cross_entropy`] of dense rows that have been checked.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub(crate) fn cross_entropy_rows<T: Float>(
    logits: &[T],
    width: usize,
    targets: Targets<'_, T>,
    options: Options<'_, T>,
    gradient: &mut [T],
) -> Result<f64> {
    let rows = logits.len() / width;
    let Options { class_weight, counted, smoothing, mean } = options;
    let denominator = if mean { weight_of_rows(rows, targets, &options) } else { 1.0 };
    if rows == 0 || denominator == 0.0 {
        gradient.fill(T::ZERO);
        return Ok(0.0);
    }
    let mean_weight = class_weight.map_or(1.0, |w| w.iter().map(|w| w.to_f64()).sum::<f64>() / width as f64);
    let rule = Rule {
        class_weight,
        mean_weight: T::from_f64(mean_weight),
        smoothing: T::from_f64(smoothing),
        denominator: T::from_f64(denominator),
    };
    let mut losses = zeros::<f64>(rows)?;
    let isa = active()?;
    let run = TASK.div_ceil(width);
    let tasks: Vec<_> = gradient
        .chunks_mut(run * width)
        .zip(losses.chunks_mut(run))
        .enumerate()
        .map(|(i, (gradient, losses))| {
            let (from, to) = (i * run, i * run + losses.len());
            Mutex::new(Some(CrossEntropy {
                logits: &logits[from * width..to * width],
                gradient,
                losses,
                width,
                targets: match targets {
                    Targets::Classes(classes) => Targets::Classes(&classes[from..to]),
                    Targets::Probabilities(p) => Targets::Probabilities(&p[from * width..to * width]),
                },
                counted: counted.map(|counted| &counted[from..to]),
                rule,
            }))
        })
        .collect();
    parallel(tasks.len(), |i| {
        if let Some(task) = tasks[i].lock().ok().and_then(|mut task| task.take()) {
            T::dispatch(isa, task);
        }
    })?;
    drop(tasks);
    Ok(in_blocks(losses.iter().copied()) / denominator)
}

/// A sum in ascending order, in blocks that are added in order.
fn in_blocks(numbers: impl ExactSizeIterator<Item = f64>) -> f64 {
    let (mut total, mut block) = (0.0, 0.0);
    let last = numbers.len();
    for (i, x) in numbers.enumerate() {
        block += x;
        if (i + 1).is_multiple_of(BLOCK) || i + 1 == last {
            total += block;
            block = 0.0;
        }
    }
    total
}

/// What a mean divides by: the rows that count, each with the weight of its class.
fn weight_of_rows<T: Float>(rows: usize, targets: Targets<'_, T>, options: &Options<'_, T>) -> f64 {
    in_blocks((0..rows).map(|row| match (options.counted, options.class_weight, targets) {
        (Some(counted), ..) if !counted[row] => 0.0,
        (_, Some(weight), Targets::Classes(classes)) => weight[classes[row] as usize].to_f64(),
        _ => 1.0,
    }))
}

fn check<T: Float>(
    targets: Targets<'_, T>,
    options: &Options<'_, T>,
    rows: usize,
    width: usize,
) -> Result<()> {
    if !(0.0..=1.0).contains(&options.smoothing) {
        let came = options.smoothing;
        return Err(Error::Value(format!("label_smoothing: expected a number from 0 to 1, got {came}")));
    }
    if let Some(weight) = options.class_weight.filter(|w| w.len() != width) {
        return Err(Error::Shape(format!(
            "class_weight: expected (C,) = ({width},), a number for each class, got ({},)",
            weight.len()
        )));
    }
    assert!(options.counted.is_none_or(|c| c.len() == rows), "a flag for each row");
    match targets {
        Targets::Probabilities(p) => assert_eq!(p.len(), rows * width, "a probability for each logit"),
        Targets::Classes(classes) => {
            assert_eq!(classes.len(), rows, "a class for each row");
            let counts = |row: usize| options.counted.is_none_or(|c| c[row]);
            let outside = |&(row, &class): &(usize, &i64)| {
                counts(row) && usize::try_from(class).ok().is_none_or(|class| class >= width)
            };
            if let Some((row, class)) = classes.iter().enumerate().find(outside) {
                return Err(Error::Value(format!(
                    "targets: expected classes from 0 to C - 1 = {}, got {class} in row {row}; rows that do not count \
                     are named by mask or ignore_index",
                    width - 1
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn means_are_sums_divided() {
        let (rows, width) = (700, 11);
        let x = shaped(&[rows, width], normals::<f64>(rows * width, 1, 2.0)).unwrap();
        let classes: Vec<i64> =
            (0..rows as i64).map(|i| if i % 7 == 3 { -100 } else { i * i % 11 }).collect();
        let counted: Vec<bool> = classes.iter().map(|&c| c >= 0).collect();
        let weight: Vec<f64> = normals::<f64>(width, 2, 1.0).iter().map(|w| w * w).collect();
        for class_weight in [None, Some(&weight[..])] {
            let options = Options { class_weight, counted: Some(&counted), smoothing: 0.1, mean: false };
            let targets = Targets::Classes(&classes);
            let (sum, all) = cross_entropy(&x.view(), targets, options).unwrap();
            let (mean, each) = cross_entropy(&x.view(), targets, Options { mean: true, ..options }).unwrap();
            let n: f64 = (0..rows)
                .filter(|&i| counted[i])
                .map(|i| class_weight.map_or(1.0, |w| w[classes[i] as usize]))
                .sum();
            assert!((sum / n - mean).abs() <= 1e-14 * mean);
            for (a, b) in all.iter().zip(&each) {
                // The two sums of weights are added in different orders.
                assert!((a / n - b).abs() <= 1e-13 * b.abs());
            }
        }
    }

    #[test]
    fn nothing_counts() {
        let x = shaped(&[2, 3], vec![f32::NAN; 6]).unwrap();
        let options = Options { counted: Some(&[false; 2]), mean: true, ..Options::default() };
        let (loss, gradient) = cross_entropy(&x.view(), Targets::Classes(&[-1, 99]), options).unwrap();
        assert_eq!(loss, 0.0);
        assert_same_bits(gradient.as_slice().unwrap(), &[0.0; 6]);
    }

    #[test]
    fn classes_out_of_range_are_named() {
        let x = shaped(&[2, 3], vec![0.0f32; 6]).unwrap();
        for class in [3, -1, i64::MIN] {
            let result = cross_entropy(&x.view(), Targets::Classes(&[0, class]), Options::default());
            assert!(
                matches!(result, Err(Error::Value(text)) if text.contains("row 1") && text.contains("= 2"))
            );
        }
    }
}
