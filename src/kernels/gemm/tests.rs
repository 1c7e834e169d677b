//! The product on every instruction set: near the naive f64 sum, and bit for bit the chain of the formula.

use super::super::pack::{PackRows, Panels, packed_len};
use super::{Epilogue, K_BLOCK, OutRows, Product};
use crate::kernels::activation::Activation;
use crate::simd::{Float, Isa, Kernel, Simd, available};

fn numbers<T: Float>(n: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            T::from_f64((state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0)
        })
        .collect()
}

/// Packs and multiplies on one instruction set.
struct Whole<'a, T> {
    x: &'a [T],
    w: &'a [T],
    shape: (usize, usize, usize),
    epilogue: Epilogue<'a, T>,
}

impl<T: Float> Kernel<T> for Whole<'_, T> {
    type Output = Vec<T>;
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) -> Vec<T> {
        let (m, n, k) = self.shape;
        let nv = S::GEMM_NV;
        let mut data = vec![T::NAN; packed_len(n, k, S::LANES)];
        PackRows { w: self.w, ldw: k, n, k, out: &mut data, nv }.run(s);
        let mut out = vec![T::NAN; m * n];
        let panels = 0..n.div_ceil(nv * S::LANES);
        let weights = Panels { data: &data, n, k };
        let out_rows = OutRows::new(&mut out);
        Product {
            x: self.x,
            ldx: k,
            m,
            weights,
            panels,
            ldo: n,
            first_row: 0,
            first_column: 0,
            out: out_rows,
            then: if m > 8 { self.x } else { &[] },
            next: self.x,
            onto: false,
            epilogue: self.epilogue,
        }
        .run(s);
        out
    }
}

/// The formula at the top of the module, one number at a time.
fn chain<T: Float>(x: &[T], w: &[T], bias: Option<T>, residual: Option<T>, relu: bool) -> T {
    struct Fma<T>(T, T, T);
    impl<T: Float> Kernel<T> for Fma<T> {
        type Output = T;
        #[inline(always)]
        fn run<S: Simd<T>>(self, s: S) -> T {
            let mut x = [T::ZERO; 16];
            s.store(s.fma(s.splat(self.0), s.splat(self.1), s.splat(self.2)), &mut x);
            x[0]
        }
    }
    let mut sum = T::ZERO;
    for (i, (x, w)) in x.chunks(K_BLOCK).zip(w.chunks(K_BLOCK)).enumerate() {
        let mut acc = T::ZERO;
        for (&x, &w) in x.iter().zip(w) {
            acc = T::dispatch(Isa::Scalar, Fma(x, w, acc));
        }
        sum = if i == 0 { acc } else { sum + acc };
    }
    let sum = bias.map_or(sum, |b| sum + b);
    let sum = if relu && sum < T::ZERO { T::ZERO } else { sum };
    residual.map_or(sum, |r| sum + r)
}

fn check<T: Float>(m: usize, n: usize, k: usize, full: bool) {
    let (x, w) = (numbers::<T>(m * k, 1), numbers::<T>(n * k, 2));
    let (bias, residual) = (numbers::<T>(n, 3), numbers::<T>(m * n, 4));
    let epilogue = if full {
        Epilogue { bias: Some(&bias), activation: Activation::Relu, residual: Some(&residual) }
    } else {
        Epilogue { bias: None, activation: Activation::Identity, residual: None }
    };
    for isa in available() {
        let out = T::dispatch(isa, Whole { x: &x, w: &w, shape: (m, n, k), epilogue });
        for i in 0..m {
            for j in 0..n {
                let (row, column) = (&x[i * k..][..k], &w[j * k..][..k]);
                let expected =
                    chain(row, column, full.then(|| bias[j]), full.then(|| residual[i * n + j]), full);
                assert_eq!(out[i * n + j], expected, "{isa} {m} x {n} x {k} at {i}, {j}");
                let mut exact: f64 = row.iter().zip(column).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
                if full {
                    exact = (exact + bias[j].to_f64()).max(0.0) + residual[i * n + j].to_f64();
                }
                let size: f64 =
                    row.iter().zip(column).map(|(a, b)| (a.to_f64() * b.to_f64()).abs()).sum::<f64>() + 4.0;
                let unit = if T::NAME == "float32" { 6e-8 } else { 1.2e-16 };
                assert!((out[i * n + j].to_f64() - exact).abs() <= unit * size * 12.0);
            }
        }
    }
}

#[test]
fn every_tile_is_the_chain_of_the_formula() {
    for m in [1, 2, 3, 5, 7, 8, 9, 17] {
        for n in [1, 7, 8, 16, 17, 48, 49, 100] {
            check::<f32>(m, n, 33, true);
            check::<f64>(m, n, 33, true);
        }
    }
}

#[test]
fn blocks_of_k() {
    for k in [0, 1, K_BLOCK - 1, K_BLOCK, K_BLOCK + 1, 2 * K_BLOCK, 2 * K_BLOCK + 1, 1000] {
        check::<f32>(3, 20, k, false);
        check::<f64>(3, 20, k, true);
    }
}
