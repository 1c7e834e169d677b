//! The formulas as they stand in a book, in f64, one number after the other: what the kernels are compared with.

use super::activation::Activation;

/// A sum with the rounding errors collected and added at the end (Neumaier), so that f64 kernels are measured too.
pub fn sum(x: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0, 0.0);
    for x in x {
        let next: f64 = total + x;
        lost += if total.abs() >= x.abs() { (total - next) + x } else { (x - next) + total };
        total = next;
    }
    total + lost
}

/// e^(x - max) / sum of the same.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| libm::exp(x - max)).collect();
    let total = sum(e.iter().copied());
    e.iter().map(|e| e / total).collect()
}

/// (x - mean) / sqrt(var + eps) * weight + bias.
pub fn layer_norm(x: &[f64], weight: Option<&[f64]>, bias: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = sum(x.iter().copied()) / n;
    let var = sum(x.iter().map(|x| (x - mean) * (x - mean))) / n;
    let y = x.iter().map(|x| (x - mean) / (var + eps).sqrt());
    y.enumerate().map(|(i, y)| y * weight.map_or(1.0, |w| w[i]) + bias.map_or(0.0, |b| b[i])).collect()
}

/// x / sqrt(mean of squares + eps) * weight.
pub fn rms_norm(x: &[f64], weight: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let mean = sum(x.iter().map(|x| x * x)) / x.len() as f64;
    x.iter().enumerate().map(|(i, x)| x / (mean + eps).sqrt() * weight.map_or(1.0, |w| w[i])).collect()
}

/// The function that a name stands for.
pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            x / (1.0 + libm::exp(-2.0 * u))
        }
        Activation::Silu => x / (1.0 + libm::exp(-x)),
    }
}

/// Pairs (i, i + R/2), or (2 i, 2 i + 1) if interleaved, of the first R numbers turned by position * theta^(-2i/R).
pub fn rotate(x: &[f64], position: f64, theta: f64, interleaved: bool, width: usize) -> Vec<f64> {
    let mut y = x.to_vec();
    for i in 0..width / 2 {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + width / 2) };
        let (sin, cos) = libm::sincos(position * libm::pow(theta, -2.0 * i as f64 / width as f64));
        (y[a], y[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
    }
    y
}
