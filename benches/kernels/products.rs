//! The matrix product with packed weights, with what follows it, and packing.

use std::hint::black_box;

use headwise::kernels::activation::Activation;
use headwise::ops::linear::{After, PackedLinear, product_once};
use headwise::simd::Float;
use ndarray::Ix2;

use crate::{Visit, flat, numbers};

/// Widths of small models, edges of every tile, few rows, a single row, and float64.
pub fn cases(visit: &mut Visit<'_>) {
    let gelu = Activation::Gelu;
    product::<f32>(visit, "product", (144, 384, 384), Activation::Identity, false);
    product::<f32>(visit, "product, gelu", (72, 384, 768), gelu, false);
    product::<f32>(visit, "product, residual", (72, 1536, 192), Activation::Identity, true);
    product::<f32>(visit, "product, edges", (35, 83, 101), Activation::Identity, false);
    product::<f32>(visit, "product, few rows", (5, 384, 768), Activation::Identity, false);
    product::<f32>(visit, "product, one row", (1, 384, 1536), Activation::Identity, false);
    product::<f64>(visit, "product, float64", (36, 384, 384), Activation::Identity, false);
    once(visit, (144, 384, 384));
    pack(visit, (1536, 384));
}

fn product<T: Float>(
    visit: &mut Visit<'_>,
    name: &str,
    (m, k, n): (usize, usize, usize),
    activation: Activation,
    residual: bool,
) {
    let x = numbers::<T>(&[m, k], 1);
    let weight = numbers::<T>(&[n, k], 2).into_dimensionality::<Ix2>().expect("two axes");
    let bias = numbers::<T>(&[n], 3);
    let residual = residual.then(|| numbers::<T>(&[m, n], 4));
    let packed = PackedLinear::new(weight.view(), bias.as_slice()).expect("weights");
    let mut out = vec![T::ZERO; m * n];
    // The peak loop is of float32, and few rows wait for the weights rather than for the arithmetic.
    let operations = if m >= 72 && T::NAME == "float32" { 2 * m * k * n } else { 0 };
    visit(&format!("{name}, {m} x {k} -> {n}"), operations, &mut || {
        let residual = residual.as_ref().and_then(|r| r.as_slice());
        let after = After { activation, residual, ..After::default() };
        packed.forward(x.as_slice().expect("dense"), m, &mut out, after).expect("a product");
        black_box(&out);
    });
}

fn once(visit: &mut Visit<'_>, (m, k, n): (usize, usize, usize)) {
    let (x, weight, bias) = (flat(m * k, 1), flat(n * k, 2), flat(n, 3));
    let mut out = vec![0.0; m * n];
    visit(&format!("product, packed for it, {m} x {k} -> {n}"), 2 * m * k * n, &mut || {
        product_once(&x, m, (&weight, n, k), Some(&bias), Activation::Identity, &mut out).expect("a product");
        black_box(&out);
    });
}

fn pack(visit: &mut Visit<'_>, (n, k): (usize, usize)) {
    let weight = numbers::<f32>(&[n, k], 2).into_dimensionality::<Ix2>().expect("two axes");
    visit(&format!("packing, {n} x {k}"), 0, &mut || {
        black_box(PackedLinear::new(weight.view(), None).expect("weights"));
    });
}
