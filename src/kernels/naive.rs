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

/// Sums of the columns of rows of `columns` numbers.
pub fn column_sums(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).map(|j| sum(x.iter().skip(j).step_by(columns).copied())).collect()
}

/// Gradients (dx, dweight, dbias) of [`layer_norm`] of one row.
pub fn layer_norm_backward(
    x: &[f64],
    dy: &[f64],
    weight: Option<&[f64]>,
    eps: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n = x.len() as f64;
    let mean = sum(x.iter().copied()) / n;
    let deviation = (sum(x.iter().map(|x| (x - mean) * (x - mean))) / n + eps).sqrt();
    let unit: Vec<f64> = x.iter().map(|x| (x - mean) / deviation).collect();
    let g: Vec<f64> = dy.iter().enumerate().map(|(i, d)| d * weight.map_or(1.0, |w| w[i])).collect();
    let (flat, along) = (sum(g.iter().copied()) / n, dot(&g, &unit) / n);
    let dx = g.iter().zip(&unit).map(|(g, u)| (g - flat - u * along) / deviation).collect();
    (dx, dy.iter().zip(&unit).map(|(d, u)| d * u).collect(), dy.to_vec())
}

/// Gradients (dx, dweight) of [`rms_norm`] of one row.
pub fn rms_norm_backward(x: &[f64], dy: &[f64], weight: Option<&[f64]>, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let n = x.len() as f64;
    let root = (dot(x, x) / n + eps).sqrt();
    let unit: Vec<f64> = x.iter().map(|x| x / root).collect();
    let g: Vec<f64> = dy.iter().enumerate().map(|(i, d)| d * weight.map_or(1.0, |w| w[i])).collect();
    let along = dot(&g, &unit) / n;
    let dx = g.iter().zip(&unit).map(|(g, u)| (g - u * along) / root).collect();
    (dx, dy.iter().zip(&unit).map(|(d, u)| d * u).collect())
}

/// Gradient of a softmax whose result is `p`.
pub fn softmax_backward(p: &[f64], d: &[f64]) -> Vec<f64> {
    let along = dot(p, d);
    p.iter().zip(d).map(|(p, d)| p * (d - along)).collect()
}

/// Sum of products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// The derivative of [`activation`]; that of relu at 0 is 0.
pub fn activation_slope(activation: Activation, x: f64) -> f64 {
    let sigmoid = |v: f64| 1.0 / (1.0 + libm::exp(-v));
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => f64::from(u8::from(x > 0.0)),
        Activation::Gelu => {
            let density = libm::exp(-0.5 * x * x) / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2) + x * density
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let v = 2.0 * root * (x + 0.044_715 * x * x * x);
            let rise = 2.0 * root * (1.0 + 3.0 * 0.044_715 * x * x);
            sigmoid(v) + x * sigmoid(v) * sigmoid(-v) * rise
        }
        Activation::Silu => sigmoid(x) + x * sigmoid(x) * sigmoid(-x),
    }
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
