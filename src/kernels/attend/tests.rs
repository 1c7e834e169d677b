//! Attention on every instruction set: near the naive f64 form, the same bits on all, blocked keys without a trace.

use super::{Attend, KEY_TILE, Keys, Mask, Row, ScoreKind, Scores, Scoring, padded, tile_len};
use crate::kernels::gemm::OutRows;
use crate::simd::{Float, Isa, available};

fn numbers<T: Float>(n: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..n).map(|_| T::from_f64((0..12).map(|_| next()).sum())).collect()
}

/// One head: (L, E), (S, E), (S, Ev), and the first and end key of each row.
struct Case<T> {
    l: usize,
    s: usize,
    e: usize,
    ev: usize,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    kept: Option<Vec<u32>>,
    range: Vec<(usize, usize)>,
    softcap: Option<T>,
    mask: Vec<T>,
}

impl<T: Float> Case<T> {
    fn new(l: usize, s: usize, e: usize, ev: usize) -> Self {
        Case {
            l,
            s,
            e,
            ev,
            q: numbers(l * e, 1),
            k: numbers(s * e, 2),
            v: numbers(s * ev, 3),
            kept: None,
            range: vec![(0, s); l],
            softcap: None,
            mask: Vec::new(),
        }
    }

    fn scoring(&self) -> Scoring<'_, T> {
        let mask = if self.mask.is_empty() { Mask::None } else { Mask::Float(&self.mask, [0, self.s, 1]) };
        Scoring { scale: T::from_f64(1.0 / (self.e as f64).sqrt()), softcap: self.softcap, alibi: None, mask }
    }

    /// Output, maxima, sums and weights.
    fn run(&self, isa: Isa) -> [Vec<T>; 4] {
        let count = self.kept.as_ref().map_or(self.s, Vec::len);
        let keys = Keys {
            k: &self.k,
            k_stride: self.e,
            v: &self.v,
            v_stride: self.ev,
            ev: self.ev,
            rows: self.kept.as_deref(),
            places: self.kept.as_deref(),
            count,
            allowed: None,
        };
        let row = |(i, &(first, end)): (usize, &(usize, usize))| Row {
            head: 0,
            index: 0,
            rank: i,
            query: i,
            first,
            end: end.min(count),
            out: i * self.ev,
        };
        let rows: Vec<Row> = self.range.iter().enumerate().map(row).collect();
        let mut out = vec![T::NAN; self.l * self.ev];
        let mut acc = vec![T::NAN; self.l * padded(self.ev)];
        let (mut row_max, mut row_sum) = (vec![T::NAN; self.l], vec![T::NAN; self.l]);
        let mut scratch = vec![T::NAN; tile_len(self.e, self.ev)];
        T::dispatch(
            isa,
            Attend {
                q: &self.q,
                ldq: self.e,
                e: self.e,
                keys,
                segment: 0..count,
                rows: &rows,
                scoring: self.scoring(),
                dropout: None,
                acc: &mut acc,
                row_max: &mut row_max,
                row_sum: &mut row_sum,
                scratch: &mut scratch,
                asked: false,
                ahead: None,
                out: OutRows::new(&mut out),
            },
        );
        let mut weights = vec![T::NAN; self.l * self.s];
        let allowed: Option<Vec<bool>> =
            self.kept.as_ref().map(|kept| (0..self.s).map(|j| kept.contains(&(j as u32))).collect());
        let rows: Vec<Row> = rows
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let end = if self.kept.is_some() { self.s } else { r.end };
                Row { end, out: i * self.s, ..*r }
            })
            .collect();
        T::dispatch(
            isa,
            Scores {
                kind: ScoreKind::Weights,
                q: &self.q,
                ldq: self.e,
                e: self.e,
                keys: Keys { rows: None, places: None, count: self.s, allowed: allowed.as_deref(), ..keys },
                segment: 0..self.s,
                rows: &rows,
                scoring: self.scoring(),
                row_max: &row_max,
                row_sum: &row_sum,
                scratch: &mut scratch,
                out: OutRows::new(&mut weights),
            },
        );
        [out, row_max, row_sum, weights]
    }

    /// The formula in f64, a row at a time, and the same with |v| in the place of v.
    fn naive(&self) -> (Vec<f64>, Vec<f64>) {
        let mut out = vec![0.0; self.l * self.ev];
        let mut size = out.clone();
        let kept: Vec<usize> =
            self.kept.as_ref().map_or((0..self.s).collect(), |k| k.iter().map(|&j| j as usize).collect());
        for i in 0..self.l {
            let (first, end) = self.range[i];
            let scores: Vec<(usize, f64)> = kept[first.min(kept.len())..end.min(kept.len())]
                .iter()
                .map(|&j| {
                    let dot: f64 = (0..self.e)
                        .map(|x| self.q[i * self.e + x].to_f64() * self.k[j * self.e + x].to_f64())
                        .sum();
                    let x = dot / (self.e as f64).sqrt();
                    let x = self.softcap.map_or(x, |c| c.to_f64() * (x / c.to_f64()).tanh());
                    (j, x + self.mask.get(i * self.s + j).map_or(0.0, |m| m.to_f64()))
                })
                .filter(|(_, x)| *x != f64::NEG_INFINITY)
                .collect();
            let max = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
            for (j, x) in scores {
                for c in 0..self.ev {
                    let (w, v) = ((x - max).exp() / sum, self.v[j * self.ev + c].to_f64());
                    out[i * self.ev + c] += w * v;
                    size[i * self.ev + c] += w * v.abs();
                }
            }
        }
        (out, size)
    }

    fn check(&self) {
        let (naive, size) = self.naive();
        let reference = self.run(Isa::Scalar);
        let size = (size.iter().map(|x| x * x).sum::<f64>() / naive.len().max(1) as f64).sqrt();
        for isa in available() {
            let got = self.run(isa);
            for (name, (a, b)) in ["out", "max", "sum", "weights"].iter().zip(got.iter().zip(&reference)) {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    assert!(a.to_f64().to_bits() == b.to_f64().to_bits(), "{isa} {name}[{i}]: {a} and {b}");
                }
            }
            let error = got[0].iter().zip(&naive).map(|(a, b)| (a.to_f64() - b).powi(2)).sum::<f64>();
            let error = (error / naive.len().max(1) as f64).sqrt();
            // The error of a score grows as the root of the number of its terms.
            let bar =
                if T::NAME == "float32" { 2e-7 } else { 1e-15 } * (self.e as f64 / 64.0).sqrt().max(1.0);
            let shape = (self.l, self.s, self.e, self.ev);
            assert!(error <= bar * size, "{isa} {shape:?}: rms error {error:e} of {size}");
        }
    }
}

fn over_shapes<T: Float>() {
    for (l, s) in [(1, 1), (1, 64), (3, 65), (15, 129), (17, 63), (16, 16), (65, 200), (5, 0)] {
        for (e, ev) in [(1, 1), (3, 5), (32, 32), (64, 80), (300, 17)] {
            Case::<T>::new(l, s, e, ev).check();
        }
    }
}

#[test]
fn near_the_naive_form_and_equal_everywhere() {
    over_shapes::<f32>();
    over_shapes::<f64>();
}

fn masked<T: Float>() {
    let mut case = Case::<T>::new(130, 130, 32, 24);
    case.range = (0..130).map(|i| (0, i + 1)).collect();
    case.check();
    case.range = (0..130usize).map(|i| (i.saturating_sub(20), (i + 3).min(130))).collect();
    case.check();
    case.range[7] = (5, 5);
    case.softcap = Some(T::from_f64(2.5));
    case.check();
    case.mask = numbers(130 * 130, 9);
    for (i, m) in case.mask.iter_mut().enumerate() {
        if i % 7 == 0 || i / 130 == 40 {
            *m = T::NEG_INFINITY;
        }
    }
    case.check();
    assert!(case.run(Isa::Scalar)[0][40 * 24..41 * 24].iter().all(|x| x.to_f64().to_bits() == 0));
}

#[test]
fn ranges_caps_and_masks() {
    masked::<f32>();
    masked::<f64>();
}

/// Same bits, where NaN is equal to NaN.
fn same<T: Float>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits())
}

fn removal<T: Float>() {
    // Keys removed by index equal keys that never were.
    let mut holes = Case::<T>::new(20, 150, 32, 32);
    let kept: Vec<u32> = (0..150).filter(|j| j % 3 != 1).collect();
    let mut dense = Case::<T>::new(20, kept.len(), 32, 32);
    let pick =
        |x: &[T]| -> Vec<T> { kept.iter().flat_map(|&j| x[j as usize * 32..][..32].to_vec()).collect() };
    (dense.q, dense.k, dense.v) = (holes.q.clone(), pick(&holes.k), pick(&holes.v));
    for j in (1..150).step_by(3) {
        holes.k[j * 32] = T::NAN;
        holes.v[j * 32 + 5] = T::INFINITY;
    }
    holes.range = vec![(0, kept.len()); 20];
    holes.kept = Some(kept.clone());
    // A NaN in a value that causality blocks for some rows leaves no trace in them.
    let mut causal = Case::<T>::new(100, 100, 16, 16);
    causal.range = (0..100).map(|i| (0, i + 1)).collect();
    let clean = causal.run(Isa::Scalar)[0].clone();
    causal.v[70 * 16 + 3] = T::NAN;
    causal.k[90 * 16] = T::NAN;
    for isa in available() {
        assert!(same(&holes.run(isa)[0], &dense.run(isa)[0]), "{isa}");
        let weights = &holes.run(isa)[3];
        assert!(weights.iter().enumerate().all(|(i, w)| (i % 150 % 3 != 1) || *w == T::ZERO));
        let out = &causal.run(isa)[0];
        assert!(same(&out[..70 * 16], &clean[..70 * 16]), "{isa}");
        assert!(out[70 * 16 + 3].is_nan() && out[99 * 16..].iter().all(|x| x.is_nan()));
    }
}

#[test]
fn removed_and_blocked_keys_leave_no_trace() {
    removal::<f32>();
    removal::<f64>();
}

fn extremes<T: Float>() {
    // Scores of 1e10 and beyond: the greatest takes all; equal ones share; +inf and NaN give NaN; -inf in an allowed
    // place is no blocked key.
    let mut case = Case::<T>::new(1, 3, 1, 1);
    case.v = [1.0, 2.0, 4.0].map(T::from_f64).to_vec();
    case.q = vec![T::ONE];
    let mut out = |k: [f64; 3]| {
        case.k = k.map(T::from_f64).to_vec();
        let all: Vec<T> = available().into_iter().map(|isa| case.run(isa)[0][0]).collect();
        assert!(all.iter().all(|x| x.to_f64().to_bits() == all[0].to_f64().to_bits() || (x.is_nan() && all[0].is_nan())));
        all[0].to_f64()
    };
    assert_eq!(out([1e10, 1e10, -1e10]), 1.5);
    assert_eq!(out([1e10, 2e10, 3e10]), 4.0);
    assert_eq!(out([-1e10, -2e10, -3e10]), 1.0);
    assert_eq!(out([3e38, 1e38, 3e38]), 2.5);
    assert_eq!(out([T::MAX.to_f64(), -T::MAX.to_f64(), 0.0]), 1.0);
    assert_eq!(out([-T::MAX.to_f64(), -T::MAX.to_f64(), f64::NEG_INFINITY]), 1.5);
    assert_eq!(out([f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY]), 2.0);
    assert!(out([f64::NEG_INFINITY; 3]).is_nan());
    assert!(out([f64::INFINITY, 0.0, 0.0]).is_nan());
    assert!(out([f64::NAN, f64::NEG_INFINITY, f64::NEG_INFINITY]).is_nan());
    // A tile of nothing but -inf before one with numbers, and one of NaN.
    let mut long = Case::<T>::new(1, KEY_TILE + 1, 1, 1);
    long.q = vec![T::ONE];
    long.k = vec![T::NEG_INFINITY; KEY_TILE + 1];
    long.k[KEY_TILE] = T::ONE;
    for isa in available() {
        assert_eq!(long.run(isa)[0][0], long.v[KEY_TILE]);
    }
    long.k[3] = T::NAN;
    for isa in available() {
        assert!(long.run(isa)[0][0].is_nan());
    }
}

#[test]
fn extreme_scores() {
    extremes::<f32>();
    extremes::<f64>();
}
