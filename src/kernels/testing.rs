//! What the tests of kernels share: one macro that runs a check on every instruction set, lengths around the width
//! of every vector, and numbers that are the same on every machine.

use crate::philox::philox4x32;
use crate::simd::Float;

/// Writes tests that run `check::<f32>(isa, a)` and `check::<f64>(isa, b)` on every instruction set of this CPU;
/// a and b are the error bounds of the two types.
macro_rules! for_each_isa {
    ($($test:ident: $check:ident, $f32:expr, $f64:expr;)*) => {$(
        #[test]
        fn $test() {
            for isa in $crate::simd::available() {
                $check::<f32>(isa, $f32);
                $check::<f64>(isa, $f64);
            }
        }
    )*};
}
pub(crate) use for_each_isa;

/// 0, 1, and lanes-1, lanes, lanes+1, 2*lanes+3 for the lanes of every instruction set; some usual widths.
pub fn lengths() -> Vec<usize> {
    let around = |lanes: usize| [lanes - 1, lanes, lanes + 1, 2 * lanes + 3];
    let mut all: Vec<usize> = [1, 2, 4, 8, 16].into_iter().flat_map(around).chain([100, 384, 1000]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// `n` normally distributed numbers (Box and Muller, by the counter-based generator), times `scale`.
pub fn normals<T: Float>(n: usize, seed: u32, scale: f64) -> Vec<T> {
    (0..n)
        .map(|i| {
            let [a, b, ..] = philox4x32([i as u32, 0, 0, 0], [seed, 0]);
            let (a, b) = ((f64::from(a) + 0.5) / 4_294_967_296.0, f64::from(b) / 4_294_967_296.0);
            let radius = (-2.0 * libm::log(a)).sqrt();
            T::from_f64(scale * radius * libm::cos(std::f64::consts::TAU * b))
        })
        .collect()
}

/// Equal to the bit; a NaN equals a NaN.
#[track_caller]
pub fn assert_same_bits<T: Float>(got: &[T], expected: &[T]) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let equal = a.to_f64().to_bits() == b.to_f64().to_bits() || (a.is_nan() && b.is_nan());
        assert!(equal, "element {i}: got {a}, expected {b}");
    }
}

/// Root mean square of the difference, relative to that of the reference.
pub fn rms_relative<T: Float>(got: &[T], exact: &[f64]) -> f64 {
    assert_eq!(got.len(), exact.len());
    let error: f64 = got.iter().zip(exact).map(|(a, b)| (a.to_f64() - b) * (a.to_f64() - b)).sum();
    let size: f64 = exact.iter().map(|b| b * b).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}
