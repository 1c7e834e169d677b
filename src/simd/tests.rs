//! Every operation on every instruction set against the same operation on plain numbers.

use super::{Float, Kernel, Simd, VIRTUAL_LANES, available};

/// Numbers that tell instruction sets apart: both zeros, infinities, NaN, subnormals, ties of rounding.
fn awkward<T: Float>() -> Vec<T> {
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -0.5, -2.5, 1e-40, -1e-310, 3e38, 1e300]
        .into_iter()
        .chain([f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1.0 / 3.0, -7.25, 4_503_599_627_370_497.0])
        .map(T::from_f64)
        .collect()
}

/// The bits of all operations over all pairs of awkward numbers.
struct AllOperations<T>(Vec<T>);

impl<T: Float> Kernel<T> for AllOperations<T> {
    type Output = Vec<T>;
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) -> Vec<T> {
        let mut out = Vec::new();
        let mut lane = vec![T::ZERO; S::LANES];
        for &x in &self.0 {
            for &y in &self.0 {
                let (a, b) = (s.splat(x), s.splat(y));
                let m = s.select(
                    s.lt(a, b),
                    a,
                    s.select(s.le(a, b), b, s.select(s.eq(a, b), a, s.splat(T::ONE))),
                );
                let all = [
                    s.add(a, b),
                    s.sub(a, b),
                    s.mul(a, b),
                    s.div(a, b),
                    s.fma(a, b, a),
                    s.sqrt(a),
                    s.max(a, b),
                    s.min(a, b),
                    s.round(a),
                    s.abs(a),
                    s.neg(a),
                    s.copysign(a, b),
                    s.shift_to_exponent(a),
                    m,
                ];
                for v in all {
                    s.store(v, &mut lane);
                    out.extend_from_slice(&lane[..1]);
                    assert!(
                        lane.iter().all(|l| l.to_f64().to_bits() == lane[0].to_f64().to_bits() || l.is_nan())
                    );
                }
            }
        }
        out
    }
}

fn same<T: Float>(a: &[T], b: &[T]) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let equal = x.to_f64().to_bits() == y.to_f64().to_bits() || (x.is_nan() && y.is_nan());
        assert!(equal, "element {i}: {x} and {y}");
    }
}

#[test]
fn operations_agree_bit_for_bit() {
    for isa in available() {
        same(
            &f32::dispatch(isa, AllOperations(awkward())),
            &f32::dispatch(super::Isa::Scalar, AllOperations(awkward())),
        );
        same(
            &f64::dispatch(isa, AllOperations(awkward())),
            &f64::dispatch(super::Isa::Scalar, AllOperations(awkward())),
        );
    }
}

/// Partial loads and stores of every length, masks from bits and back, folds and the transpose.
struct Structure;

impl<T: Float> Kernel<T> for Structure {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let x: Vec<T> = (1..=VIRTUAL_LANES).map(|i| T::from_f64(i as f64 + 0.1)).collect();
        for n in 0..=S::LANES {
            let mut out = vec![T::NAN; S::LANES];
            s.store(s.load_partial(&x[..n]), &mut out);
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, if i < n { x[i] } else { T::ZERO });
            }
            let mut out = vec![T::NAN; S::LANES];
            s.store_partial(s.load(&x), &mut out[..n]);
            assert_eq!(&out[..n], &x[..n]);
            assert!(out[n..].iter().all(|v| v.is_nan()));
        }
        for bits in [0u64, 1, 0b1010_1010_1010_1010, 0xffff, 0x8001] {
            assert_eq!(s.mask_to_bits(s.mask_from_bits(bits)), bits & ((1 << S::LANES) - 1));
        }
        let parts: Vec<S::V> = x.chunks(S::LANES).map(|c| s.load(c)).collect();
        let mut tree = x.clone();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                tree[i] = tree[i] + tree[i + half];
            }
        }
        assert_eq!(s.fold_add(&parts), tree[0]);
        assert_eq!(s.fold_max(&parts), x[VIRTUAL_LANES - 1]);
        let nan = vec![s.splat(T::NAN); VIRTUAL_LANES / S::LANES];
        assert_eq!(s.fold_max(&nan), T::NEG_INFINITY);

        let (stride, out_stride) = (S::LANES + 3, S::LANES + 1);
        let block: Vec<T> = (0..S::LANES * stride).map(|i| T::from_f64(i as f64)).collect();
        let mut turned = vec![T::ZERO; S::LANES * out_stride];
        s.transpose(&block, stride, &mut turned, out_stride);
        for r in 0..S::LANES {
            for c in 0..S::LANES {
                assert_eq!(turned[c * out_stride + r], block[r * stride + c]);
            }
        }
    }
}

#[test]
fn loads_masks_folds_and_transpose() {
    for isa in available() {
        f32::dispatch(isa, Structure);
        f64::dispatch(isa, Structure);
    }
}
