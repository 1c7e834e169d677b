//! Each function against a reference in higher precision, within the bound its documentation states, and
//! bit for bit the same on every instruction set.

use super::super::{Float, Isa, Kernel, Simd, available};

/// A kernel that applies one function of this module to a slice.
macro_rules! elementwise {
    ($($kernel:ident = $f:expr;)*) => {$(
        struct $kernel<'a, T>(&'a [T], &'a mut [T]);
        impl<T: Float> Kernel<T> for $kernel<'_, T> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd<T>>(self, s: S) {
                for (x, out) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                    s.store_partial($f(s, s.load_partial(x)), out);
                }
            }
        }
        impl<T: Float> $kernel<'_, T> {
            fn apply(isa: Isa, x: &[T]) -> Vec<T> {
                let mut out = vec![T::ZERO; x.len()];
                T::dispatch(isa, $kernel(x, &mut out));
                out
            }
        }
    )*};
}
elementwise! {
    Exp = super::exp;
    Pow2 = super::pow2;
    ExpCount = |s, x| super::exp_parts(s, x).0;
    ExpFactor = |s, x| super::exp_parts(s, x).1;
    ExpAgain = |s, x| {
        let (n, p) = super::exp_parts(s, x);
        super::mul_pow2(s, p, n)
    };
    Exp2Count = |s, x| exp2(s, x).0;
    Exp2Factor = |s, x| exp2(s, x).1;
    Sigmoid = super::sigmoid;
    Tanh = super::tanh;
    Erf = super::erf;
    NormalCdf = super::normal_cdf;
    Log = super::log;
    Sin = super::sin;
    Cos = super::cos;
}

/// A factor that is no power of two, as a scale by log2 e is not.
const FACTOR: f64 = 0.255_034_86;

#[inline(always)]
fn exp2<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    super::exp2_parts(s, x, s.splat(T::from_f64(FACTOR)), s.splat(T::from_f64(-FACTOR)))
}

/// f32 numbers of every exponent and both signs: each `step`-th bit pattern, infinities and NaNs left out.
fn sweep(step: usize) -> Vec<f32> {
    (0..=u32::MAX).step_by(step).map(f32::from_bits).filter(|x| x.is_finite()).collect()
}

/// Evenly spaced f32 numbers.
fn line(low: f32, high: f32, n: usize) -> Vec<f32> {
    (0..=n).map(|i| low + (high - low) * (i as f32 / n as f32)).collect()
}

/// Numbers at which functions break: specials, extremes, and the neighbours of every breakpoint in use.
fn awkward<T: Float>() -> Vec<T> {
    let breakpoints = [
        0.25,
        0.346_573_59,
        0.5,
        0.625,
        1.0,
        2.0,
        3.9,
        4.0,
        9.01,
        20.0,
        87.336_54,
        88.722_84,
        90.0,
        103.97,
        708.396_4,
        709.782_7,
        712.0,
        745.13,
        1e5,
        1_048_576.0,
    ];
    let ends = [0.0, 1e-45, 1e-40, 1.2e-38, 1e-310, 5e-324, 2.3e-308, 1e-20, 3e38, 1.7e308, f64::INFINITY];
    let mut all = vec![T::NAN, T::MAX, -T::MAX];
    for x in breakpoints {
        for d in [0.0, 1e-16, -1e-16, 6e-8, -6e-8, 1e-3, -1e-3] {
            all.extend([T::from_f64(x * (1.0 + d)), T::from_f64(-x * (1.0 + d))]);
        }
    }
    all.extend(ends.into_iter().flat_map(|x| [T::from_f64(x), T::from_f64(-x)]));
    all
}

fn same_bits<T: Float>(name: &str, x: &[T], a: &[T], b: &[T]) {
    for ((x, a), b) in x.iter().zip(a).zip(b) {
        let equal = a.to_f64().to_bits() == b.to_f64().to_bits() || (a.is_nan() && b.is_nan());
        assert!(equal, "{name}({x}): {a} and {b}");
    }
}

/// The largest error in ulp of f32, and where; infinities and NaNs must be met exactly.
fn ulp_f32(x: &[f32], got: &[f32], reference: impl Fn(f64) -> f64) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(got) {
        let exact = reference(f64::from(x));
        let rounded = exact as f32;
        if !rounded.is_finite() || !y.is_finite() {
            assert!(
                y.to_bits() == rounded.to_bits() || (y.is_nan() && rounded.is_nan()),
                "{x}: {y}, {exact}"
            );
            continue;
        }
        let exponent = i32::from(((rounded.to_bits() >> 23) & 0xff) as u8).max(1);
        let error = (f64::from(y) - exact).abs() / 2f64.powi(exponent - 127 - 23);
        if error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

macro_rules! bits_agree {
    ($($test:ident: $($kernel:ident),*;)*) => {$(
        #[test]
        fn $test() {
            for isa in available() {
                $({
                    let x = awkward::<f32>();
                    same_bits(stringify!($kernel), &x, &$kernel::apply(isa, &x), &$kernel::apply(Isa::Scalar, &x));
                    let x = sweep(100_003);
                    same_bits(stringify!($kernel), &x, &$kernel::apply(isa, &x), &$kernel::apply(Isa::Scalar, &x));
                    let x = awkward::<f64>();
                    same_bits(stringify!($kernel), &x, &$kernel::apply(isa, &x), &$kernel::apply(Isa::Scalar, &x));
                })*
            }
        }
    )*};
}
bits_agree! {
    exp_has_the_same_bits: Exp, Pow2, ExpCount, ExpFactor, ExpAgain;
    bounded_functions_have_the_same_bits: Sigmoid, Tanh, Erf, NormalCdf;
    libm_functions_have_the_same_bits: Log, Sin, Cos;
}

#[track_caller]
fn within(name: &str, (error, at): (f64, f32), bound: f64) {
    println!("{name}: {error:.4} ulp at {at}");
    assert!(error <= bound, "{name}: {error} ulp at {at}, bound {bound}");
}

#[test]
fn exp_f32_is_within_its_bound() {
    let flushed = |x: f64| {
        let y = libm::exp(x);
        if y < f64::from(f32::MIN_POSITIVE) { 0.0 } else { y }
    };
    for x in [sweep(1021), line(-88.0, 88.8, 1 << 20), line(-1.0, 1.0, 1 << 20)] {
        // At the very edge of the subnormals rounding decides, not the function: leave out one unit there.
        let x: Vec<f32> = x.into_iter().filter(|x| (x + 87.336_54).abs() > 1e-5).collect();
        within("exp", ulp_f32(&x, &Exp::apply(Isa::Scalar, &x), flushed), 1.0);
    }
}

#[test]
fn exp_parts_f32_are_within_their_bound() {
    for (high, bound) in [(30.0, 1e-7), (726_000.0, 1e-7)] {
        let x = line(-high, high, 1 << 20);
        let (n, p) = (ExpCount::apply(Isa::Scalar, &x), ExpFactor::apply(Isa::Scalar, &x));
        let mut worst = 0f64;
        for i in 0..x.len() {
            // 2^n cancels in f64, split so that it does not lose the low digits of n ln 2.
            let n = f64::from(n[i]);
            let r = (f64::from(x[i]) - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
            worst = worst.max((f64::from(p[i]) / libm::exp(r) - 1.0).abs());
        }
        println!("p up to {high}: {worst:.3e}");
        assert!(worst < bound, "{worst} up to {high}");
    }
}

#[test]
fn exp2_parts_are_within_their_bound() {
    for high in [2.0, 100.0, 4_000_000.0] {
        let x = line(-high, high, 1 << 20);
        let (n, p) = (Exp2Count::apply(Isa::Scalar, &x), Exp2Factor::apply(Isa::Scalar, &x));
        for i in 0..x.len() {
            // A product of two f32 is exact in f64.
            let fraction = f64::from(x[i]) * f64::from(FACTOR as f32) - f64::from(n[i]);
            let worst = (f64::from(p[i]) / libm::exp2(fraction) - 1.0).abs();
            assert!(fraction.abs() <= 0.6 && worst < 1.2e-7, "{}: {worst}", x[i]);
        }
        let x: Vec<f64> = x.into_iter().map(f64::from).collect();
        let (n, p) = (Exp2Count::apply(Isa::Scalar, &x), Exp2Factor::apply(Isa::Scalar, &x));
        for i in 0..x.len() {
            let worst = (p[i] / libm::exp2(libm::fma(x[i], FACTOR, -n[i])) - 1.0).abs();
            assert!(worst < 4.5e-16, "{}: {worst}", x[i]);
        }
        for isa in available() {
            assert!(
                Exp2Factor::apply(isa, &x).iter().zip(&p).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{isa}"
            );
        }
    }
}

#[test]
fn exp_f64_is_within_its_bound() {
    let x: Vec<f64> = super::reference::EXP.iter().map(|e| e.0).collect();
    let mut worst = 0f64;
    for (y, &(x, high, low)) in Exp::apply(Isa::Scalar, &x).into_iter().zip(super::reference::EXP) {
        let ulp = f64::from_bits(high.to_bits() + 1) - high;
        let error = ((y - high) - low).abs() / ulp;
        assert!(error <= 1.0, "exp({x}): {error} ulp");
        worst = worst.max(error);
    }
    println!("exp f64: {worst:.4} ulp");
    let x: Vec<f64> = (0..=1_000_000).map(|i| -708.0 + 1417.7 * f64::from(i) / 1e6).collect();
    for (y, x) in Exp::apply(Isa::Scalar, &x).into_iter().zip(x) {
        let other = libm::exp(x);
        assert!((y - other).abs() <= 3e-16 * other, "exp({x}): {y} and {other}");
    }
}

fn exp_ends<T: Float>(isa: Isa, under: f64, over: f64) {
    let t = T::from_f64;
    let x = [t(0.0), t(-0.0), t(under), t(over), T::INFINITY, T::NEG_INFINITY, T::NAN, T::MAX, -T::MAX];
    let expected = [T::ONE, T::ONE, T::ZERO, T::INFINITY, T::INFINITY, T::ZERO, T::NAN, T::INFINITY, T::ZERO];
    same_bits("exp", &x, &Exp::apply(isa, &x), &expected);
    let again = ExpAgain::apply(isa, &[T::NEG_INFINITY, T::INFINITY, T::NAN, t(under - 1.0), t(-3e5)]);
    same_bits("p 2^n", &x, &again, &[T::ZERO, T::NAN, T::NAN, T::ZERO, T::ZERO]);
    for k in [T::NAN, -T::NAN, T::NEG_INFINITY, -T::MAX, t(-1e6), T::MIN_EXPONENT - T::ONE] {
        let expected = if k.is_nan() { k } else { T::ZERO };
        same_bits("pow2", &[k], &Pow2::apply(isa, &[k]), &[expected]);
    }
    let k: Vec<T> = (T::MIN_EXPONENT.to_f64() as i32..=T::MAX_EXPONENT.to_f64() as i32)
        .map(|k| t(f64::from(k)))
        .collect();
    let exact: Vec<T> = k.iter().map(|k| t(2f64.powi(k.to_f64() as i32))).collect();
    same_bits("pow2", &k, &Pow2::apply(isa, &k), &exact);
}

#[test]
fn exp_meets_the_ends() {
    for isa in available() {
        exp_ends::<f32>(isa, -87.4, 88.73);
        exp_ends::<f64>(isa, -708.4, 709.79);
        // The last numbers whose results are normal and finite.
        assert!(Exp::apply(isa, &[88.722_83_f32])[0].is_finite());
        assert!(Exp::apply(isa, &[-87.336_53_f32])[0] >= f32::MIN_POSITIVE);
        assert!(Exp::apply(isa, &[709.782_712_893_384_f64])[0].is_finite());
    }
}

fn flush(y: f64) -> f64 {
    if y < f64::from(f32::MIN_POSITIVE) { 0.0 } else { y }
}

#[test]
fn bounded_functions_f32_are_within_their_bounds() {
    for x in [sweep(2039), line(-20.0, 20.0, 1 << 20), line(-1.0, 1.0, 1 << 19)] {
        within("tanh", ulp_f32(&x, &Tanh::apply(Isa::Scalar, &x), libm::tanh), 2.0);
        within("erf", ulp_f32(&x, &Erf::apply(Isa::Scalar, &x), libm::erf), 2.0);
        let x: Vec<f32> = x.into_iter().filter(|&x| !(-87.7..-87.3).contains(&x)).collect();
        let sigmoid = |x: f64| flush(1.0 / (1.0 + libm::exp(-x)));
        within("sigmoid", ulp_f32(&x, &Sigmoid::apply(Isa::Scalar, &x), sigmoid), 2.5);
    }
}

#[test]
fn normal_cdf_f32_is_within_its_bound() {
    let mut x = line(-13.0, 13.0, 1 << 20);
    x.extend(sweep(20_011));
    // The largest error of the result, relatively, by the lower end of x; and the largest error for x < 0.
    let bounds = [(0.0, 1.3e-7), (-1.0, 4e-7), (-4.0, 2e-4), (-12.0, 3e-3)];
    let (mut worst, mut absolute) = ([0f64; 4], 0f64);
    for (&x, y) in x.iter().zip(NormalCdf::apply(Isa::Scalar, &x)) {
        let exact = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
        let error = (f64::from(y) - exact).abs();
        if let Some(i) = bounds.iter().position(|b| x >= b.0 && exact > 1e-30) {
            worst[i] = worst[i].max(error / exact);
        }
        absolute = if x < 0.0 { absolute.max(error) } else { absolute };
    }
    println!("normal_cdf: {worst:?}, below 0 {absolute}");
    assert!(worst.iter().zip(bounds).all(|(w, b)| *w <= b.1) && absolute <= 6e-8);
}

#[test]
fn libm_functions_f32_are_within_their_bounds() {
    for x in [sweep(8191), line(-20.0, 20.0, 1 << 16)] {
        within("log", ulp_f32(&x, &Log::apply(Isa::Scalar, &x), libm::log), 0.51);
        within("sin", ulp_f32(&x, &Sin::apply(Isa::Scalar, &x), libm::sin), 0.51);
        within("cos", ulp_f32(&x, &Cos::apply(Isa::Scalar, &x), libm::cos), 0.51);
    }
}

fn bounded_ends<T: Float>(isa: Isa) {
    let t = T::from_f64;
    let x = [T::INFINITY, T::NEG_INFINITY, T::NAN, T::MAX, -T::MAX, t(0.0), t(-0.0), t(1e-40), t(-1e-40)];
    let odd = [t(1.0), t(-1.0), T::NAN, t(1.0), t(-1.0), t(0.0), t(-0.0), t(1e-40), t(-1e-40)];
    let half = [t(1.0), t(0.0), T::NAN, t(1.0), t(0.0), t(0.5), t(0.5), t(0.5), t(0.5)];
    same_bits("tanh", &x, &Tanh::apply(isa, &x), &odd);
    same_bits("erf", &x[..7], &Erf::apply(isa, &x[..7]), &odd[..7]);
    same_bits("sigmoid", &x, &Sigmoid::apply(isa, &x), &half);
    same_bits("normal_cdf", &x, &NormalCdf::apply(isa, &x), &half);
}

#[test]
fn bounded_functions_meet_the_ends() {
    for isa in available() {
        bounded_ends::<f32>(isa);
        bounded_ends::<f64>(isa);
    }
}

#[test]
fn sigmoid_f64_is_within_its_bound() {
    for &(x, high, low) in super::reference::EXP {
        // sigma(x) = e^x / (1 + e^x), e^x known to 32 digits: the quotient's own error is all that is compared.
        let exact = if x > 0.0 { 1.0 / (1.0 + libm::exp(-x)) } else { (high + low) / (1.0 + high) };
        let y = Sigmoid::apply(Isa::Scalar, &[x])[0];
        assert!((y - exact).abs() <= 6e-16 * exact, "sigmoid({x}): {y} and {exact}");
    }
}
