//! Gradients on every instruction set and however they are cut: near the naive f64 form, the same bits, blocked pairs
//! without a trace.

use super::super::{Attention, Kept, Operand, Sequence, Strides, Wanted};
use super::{Gradients, MaskGradient, Plan, Saved};
use crate::kernels::attend::Mask;
use crate::kernels::testing::{assert_same_bits, for_each_isa, normals, rms_relative};
use crate::philox::keep;
use crate::simd::{Float, Isa};

/// Operands (B, H, L, E), (B, Hk, S, E), (B, Hk, S, Ev), all dense, and what says which pairs are allowed.
#[derive(Clone)]
struct Case<T> {
    b: usize,
    heads: [usize; 2],
    l: usize,
    s: usize,
    e: usize,
    ev: usize,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    d_out: Vec<T>,
    causal: bool,
    window: (Option<usize>, Option<usize>),
    offset: i64,
    key_mask: Option<Vec<bool>>,
    allowed: Option<Vec<bool>>,
    added: Option<Vec<T>>,
    places: Option<[Vec<u32>; 2]>,
    softcap: Option<f64>,
    alibi: Option<Vec<T>>,
    dropout: Option<(f64, u64)>,
}

/// dq, dk, dv and, where there is a float mask, its gradient.
type Grads<T> = [Vec<T>; 4];

impl<T: Float> Case<T> {
    fn new(b: usize, heads: [usize; 2], (l, s): (usize, usize), (e, ev): (usize, usize)) -> Self {
        let [h, hk] = heads;
        Self {
            b,
            heads,
            l,
            s,
            e,
            ev,
            q: normals(b * h * l * e, 1, 1.0),
            k: normals(b * hk * s * e, 2, 1.0),
            v: normals(b * hk * s * ev, 3, 1.0),
            d_out: normals(b * h * l * ev, 4, 1.0),
            causal: false,
            window: (None, None),
            offset: 0,
            key_mask: None,
            allowed: None,
            added: None,
            places: None,
            softcap: None,
            alibi: None,
            dropout: None,
        }
    }

    /// Places by which masks and dropout count: those given, or numbers up to twice the length.
    fn mask_len(&self) -> [usize; 2] {
        let last = |places: &Vec<u32>| places.last().map_or(0, |&p| p as usize + 1);
        match &self.places {
            Some([queries, keys]) => [last(queries), last(keys)],
            None => [self.l, self.s],
        }
    }

    fn attention(&self) -> Attention<'_, T> {
        let Self { l, s, e, ev, heads: [h, hk], .. } = *self;
        let [ml, ms] = self.mask_len();
        // The mask is shared by the batch.
        let strides = [ml * ms, ms, 1];
        let mask = match (&self.allowed, &self.added) {
            (Some(data), _) => Mask::Bool(data, strides),
            (_, Some(data)) => Mask::Float(data, strides),
            _ => Mask::None,
        };
        let sequence = |n: usize| Sequence {
            starts: [n * h * l * e, n * hk * s * e, n * hk * s * ev, n * h * l * ev],
            q_len: l,
            k_len: s,
            past: 0,
            offset: self.offset,
            key_mask: self.key_mask.clone(),
            query_places: self.places.as_ref().map(|p| p[0].clone()),
            key_places: self.places.as_ref().map(|p| p[1].clone()),
            mask,
            lse_start: n * h * l,
            scores_start: 0,
            score_strides: Strides::default(),
            dropout_base: (n * h * ml * ms) as u64,
            dropout_shape: (ml, ms),
        };
        Attention {
            q: Operand { data: &self.q, strides: Strides { head: l * e, row: e } },
            k: Operand { data: &self.k, strides: Strides { head: s * e, row: e } },
            v: Operand { data: &self.v, strides: Strides { head: s * ev, row: ev } },
            out: Strides { head: l * ev, row: ev },
            heads: h,
            kv_heads: hk,
            e,
            ev,
            scale: T::from_f64(1.0 / (e as f64).sqrt()),
            softcap: self.softcap.map(T::from_f64),
            alibi: self.alibi.as_deref(),
            causal: self.causal,
            window: self.window,
            dropout: self.dropout,
            sequences: (0..self.b).map(sequence).collect(),
        }
    }

    fn gradients(&self, isa: Isa, plan: Option<Plan>) -> Grads<T> {
        let attention = self.attention();
        let (rows, [h, _]) = (self.b * self.heads[0] * self.l, self.heads);
        let (mut out, mut lse) = (vec![T::NAN; rows * self.ev], vec![T::NAN; rows]);
        let lse_strides = Strides { head: self.l, row: 1 };
        let wanted = Wanted { lse: Some((&mut lse, lse_strides)), scores: None };
        attention.run(&mut out, wanted).unwrap();
        let [ml, ms] = self.mask_len();
        let mut grads = [&self.q, &self.k, &self.v].map(|x| vec![T::NAN; x.len()]);
        let starts = vec![0; self.b];
        let mut mask = vec![T::ZERO; if self.added.is_some() { h * ml * ms } else { 0 }];
        let [dq, dk, dv] = &mut grads;
        let gradients = Gradients {
            dq: (dq, attention.q.strides),
            dk: (dk, attention.k.strides),
            dv: (dv, attention.v.strides),
            mask: self.added.is_some().then_some(MaskGradient {
                data: &mut mask,
                strides: [ml * ms, ms, 1],
                starts: &starts,
            }),
            starts: None,
        };
        let kept: Vec<Kept> = attention.sequences.iter().map(|s| Kept::of(s).unwrap()).collect();
        let plan = plan.unwrap_or_else(|| Plan::new(&attention, &kept, 1));
        let saved = Saved { out: &out, lse: (&lse, lse_strides) };
        attention.backward_by(isa, &plan, &kept, saved, &self.d_out, gradients).unwrap();
        let [dq, dk, dv] = grads;
        [dq, dk, dv, mask]
    }

    /// Whether query i may attend to key j.
    fn may(&self, head: usize, i: usize, j: usize) -> bool {
        let [ml, ms] = self.mask_len();
        let (qp, kp) = self.places.as_ref().map_or((i, j), |[q, k]| (q[i] as usize, k[j] as usize));
        let (at, key) = (qp as i64 + self.offset, kp as i64);
        let pair = (head * ml + qp) * ms + kp;
        (!self.causal || key <= at)
            && self.window.0.is_none_or(|left| key >= at - left as i64)
            && self.window.1.is_none_or(|right| key <= at + right as i64)
            && self.key_mask.as_ref().is_none_or(|m| m[j])
            && self.allowed.as_ref().is_none_or(|m| m[pair])
            && self.added.as_ref().is_none_or(|m| m[pair] != T::NEG_INFINITY)
    }

    /// The formulas in f64, a query at a time.
    fn naive(&self) -> Grads<f64> {
        let Self { l, s, e, ev, heads: [h, hk], .. } = *self;
        let [ml, ms] = self.mask_len();
        let mut grads: Grads<f64> = [
            vec![0.0; self.q.len()],
            vec![0.0; self.k.len()],
            vec![0.0; self.v.len()],
            vec![0.0; if self.added.is_some() { h * ml * ms } else { 0 }],
        ];
        let [dq, dk, dv, dm] = &mut grads;
        let scale = T::from_f64(1.0 / (e as f64).sqrt()).to_f64();
        let dot = |x: &[T], y: &[T]| -> f64 { x.iter().zip(y).map(|(x, y)| x.to_f64() * y.to_f64()).sum() };
        for (n, head, i) in (0..self.b * h * l).map(|r| (r / l / h, r / l % h, r % l)) {
            let kv = n * hk + head / (h / hk);
            let row = (n * h + head) * l + i;
            let (q, d_out) = (&self.q[row * e..][..e], &self.d_out[row * ev..][..ev]);
            let pair = |j: usize| {
                let (qp, kp) = self.places.as_ref().map_or((i, j), |[q, k]| (q[i] as usize, k[j] as usize));
                (head * ml + qp) * ms + kp
            };
            let kept: Vec<usize> = self
                .key_mask
                .as_ref()
                .map_or_else(|| (0..s).collect(), |m| (0..s).filter(|&j| m[j]).collect());
            let mut pairs = Vec::new();
            for (among, &j) in kept.iter().enumerate().filter(|(_, j)| self.may(head, i, **j)) {
                let raw = scale * dot(q, &self.k[(kv * s + j) * e..][..e]);
                let t = self.softcap.map_or(0.0, |c| (raw / c).tanh());
                let mut x = self.softcap.map_or(raw, |c| c * t);
                // Distances are counted among the keys that are left.
                x -= self.alibi.as_ref().map_or(0.0, |a| a[head].to_f64() * i.abs_diff(among) as f64);
                x += self.added.as_ref().map_or(0.0, |m| m[pair(j)].to_f64());
                let factor = self.dropout.map_or(1.0, |(p, key)| {
                    let element = (n * h * ml * ms + pair(j)) as u64;
                    if keep(key, element, p) { 1.0 / (1.0 - p) } else { 0.0 }
                });
                let dp = factor * dot(d_out, &self.v[(kv * s + j) * ev..][..ev]);
                pairs.push((j, x, 1.0 - t * t, factor, dp));
            }
            let max = pairs.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = pairs.iter().map(|p| (p.1 - max).exp()).sum();
            let weight = |x: f64| (x - max).exp() / sum;
            let delta: f64 = pairs.iter().map(|p| weight(p.1) * p.4).sum();
            for &(j, x, slope, factor, dp) in &pairs {
                let ds = weight(x) * (dp - delta);
                if !dm.is_empty() {
                    dm[pair(j)] += ds;
                }
                for c in 0..e {
                    dq[row * e + c] += ds * slope * scale * self.k[(kv * s + j) * e + c].to_f64();
                    dk[(kv * s + j) * e + c] += ds * slope * scale * q[c].to_f64();
                }
                for c in 0..ev {
                    dv[(kv * s + j) * ev + c] += weight(x) * factor * d_out[c].to_f64();
                }
            }
        }
        grads
    }

    /// Near the naive form; returns the gradients.
    #[track_caller]
    fn check(&self, isa: Isa, bar: f64) -> Grads<T> {
        let (got, exact) = (self.gradients(isa, None), self.naive());
        let shape = (self.heads, self.l, self.s, self.e, self.ev);
        // What is next to nothing (dq of a single key) is held to the size of all gradients.
        let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let floor = exact[..3].iter().map(|x| size(x)).fold(0.0, f64::max);
        for (name, (got, exact)) in ["dq", "dk", "dv", "mask"].iter().zip(got.iter().zip(&exact)) {
            let error = rms_relative(got, exact) * size(exact);
            let error = if size(exact) == 0.0 {
                size(&got.iter().map(|x| x.to_f64()).collect::<Vec<_>>())
            } else {
                error
            };
            let held = if size(exact) <= 1e-3 * floor { floor } else { size(exact).max(0.1 * floor) };
            assert!(error <= bar * held, "{isa} {shape:?} {name}: {error:e} of {:e}", size(exact));
        }
        got
    }

    /// The bits do not depend on the instruction set or on how tasks are cut.
    #[track_caller]
    fn same_however_cut(&self, isa: Isa) {
        let one = self.gradients(Isa::Scalar, None);
        for (one_sweep, heads, queries, keys) in [
            (true, 1, 64, 64),
            (true, 8, 64, 64),
            (false, 1, 64, 64),
            (false, 2, 128, 64),
            (false, 1, 64, 128),
        ] {
            let plan = Plan { one_sweep, alone: false, heads, queries, keys };
            for (x, y) in self.gradients(isa, Some(plan)).iter().zip(&one) {
                assert_same_bits(x, y);
            }
        }
    }
}

fn shapes<T: Float>(isa: Isa, bar: f64) {
    let widths = [(1, 1), (3, 5), (32, 32), (64, 24), (80, 80)];
    let lengths = [1, 15, 16, 17, 63, 64, 65, 129];
    for (i, &l) in lengths.iter().enumerate() {
        for (j, &s) in lengths.iter().enumerate() {
            let case = Case::<T>::new(1, [2, 1], (l, s), widths[(i + 2 * j) % widths.len()]);
            case.check(isa, bar);
            case.same_however_cut(isa);
        }
    }
    // Longer than a chain of the products.
    Case::<T>::new(1, [1, 1], (20, 70), (200, 250)).check(isa, bar);
}

/// One of every kind of mask.
fn kinds<T: Float>() -> Vec<Case<T>> {
    let new = || Case::<T>::new(2, [4, 2], (130, 150), (32, 40));
    let some = |n: usize, seed: u32| -> Vec<bool> {
        normals::<f64>(n, seed, 1.0).into_iter().map(|x| x > -0.3).collect()
    };
    let mut added: Vec<T> = normals(4 * 130 * 150, 7, 1.0);
    for (x, &allowed) in added.iter_mut().zip(&some(4 * 130 * 150, 8)) {
        if !allowed {
            *x = T::NEG_INFINITY;
        }
    }
    added[150..300].fill(T::NEG_INFINITY);
    let mut kinds = vec![
        Case { causal: true, ..new() },
        Case { causal: true, offset: -40, ..new() },
        Case { window: (Some(20), Some(3)), offset: 10, ..new() },
        Case { key_mask: Some(some(150, 5)), causal: true, ..new() },
        Case { key_mask: Some(vec![false; 150]), ..new() },
        Case { allowed: Some(some(4 * 130 * 150, 6)), ..new() },
        Case { added: Some(added.clone()), softcap: Some(1.5), ..new() },
        Case { added: Some(added), dropout: Some((0.3, 11)), ..new() },
        Case { softcap: Some(1.5), ..new() },
        Case {
            alibi: Some([0.5, 0.25, 0.1, 0.0].map(T::from_f64).to_vec()),
            key_mask: Some(some(150, 5)),
            ..new()
        },
        Case { dropout: Some((0.3, 11)), causal: true, ..new() },
        Case { dropout: Some((1.0, 11)), ..new() },
    ];
    // Tokens of longer sequences: 3 of every 4.
    let places = [130, 150].map(|n| (0..n).map(|i| i + i / 3).collect::<Vec<u32>>());
    let len = places.each_ref().map(|p| p[p.len() - 1] as usize + 1);
    let allowed = some(4 * len[0] * len[1], 9);
    kinds.push(Case {
        places: Some(places),
        allowed: Some(allowed),
        causal: true,
        dropout: Some((0.1, 3)),
        ..new()
    });
    kinds
}

fn masks<T: Float>(isa: Isa, bar: f64) {
    for case in kinds::<T>() {
        case.check(isa, bar);
        case.same_however_cut(isa);
    }
}

/// The rows of (B * H, rows, width) for which `chosen` holds, of each head.
fn chosen_rows<T: Float>(x: &[T], rows: usize, width: usize, chosen: impl Fn(usize) -> bool) -> Vec<T> {
    let picked = x.chunks_exact(width).enumerate().filter(|(i, _)| chosen(i % rows));
    picked.flat_map(|(_, row)| row.to_vec()).collect()
}

fn blocked<T: Float>(isa: Isa, _: f64) {
    // Keys that nobody sees, and queries that see nobody: whatever they hold, their gradients are 0 and others as without.
    let mut clean = Case::<T>::new(1, [4, 2], (100, 140), (32, 24));
    clean.causal = true;
    let dead = |i: usize| i % 7 == 3;
    clean.allowed = Some((0..4 * 100 * 140).map(|at| !dead(at / 140 % 100) && !dead(at % 140)).collect());
    let mut dirty = clean.clone();
    for i in 0..4 * 100 {
        if dead(i % 100) {
            dirty.q[i * 32] = T::NAN;
            dirty.d_out[i * 24 + 5] = T::INFINITY;
        }
    }
    for j in 0..2 * 140 {
        if dead(j % 140) {
            dirty.k[j * 32 + 7] = T::INFINITY;
            dirty.v[j * 24] = T::NAN;
        }
    }
    let (a, b) = (clean.gradients(isa, None), dirty.gradients(isa, None));
    for (a, b) in a.iter().zip(&b) {
        assert_same_bits(a, b);
    }
    let zeros = |x: &[T]| !x.is_empty() && x.iter().all(|x| x.to_f64().to_bits() == 0);
    assert!(zeros(&chosen_rows(&b[0], 100, 32, dead)));
    assert!(zeros(&chosen_rows(&b[1], 140, 32, |j| dead(j) || j >= 100)));
    assert!(zeros(&chosen_rows(&b[2], 140, 24, |j| dead(j) || j >= 100)));
    // A key that some queries see: the NaN is in their gradients and, by them, in those of what they see.
    dirty.k[20 * 32] = T::NAN;
    let got = dirty.gradients(isa, None);
    let nan = |x: &[T]| x.iter().any(|x| x.is_nan());
    assert!(!nan(&chosen_rows(&got[0][..2 * 100 * 32], 100, 32, |i| i < 20 || dead(i))));
    assert!(
        chosen_rows(&got[0][..2 * 100 * 32], 100, 32, |i| i >= 20 && !dead(i)).iter().all(|x| x.is_nan())
    );
    assert!(zeros(&chosen_rows(&got[1], 140, 32, |j| dead(j) || j >= 100)));
    for (x, y) in got[0][2 * 100 * 32..].iter().zip(&a[0][2 * 100 * 32..]) {
        assert_eq!(x.to_f64().to_bits(), y.to_f64().to_bits());
    }
    dirty.same_however_cut(isa);
}

fn removed<T: Float>(isa: Isa, _: f64) {
    // Keys removed by the mask equal keys that never were, and those have gradients of 0.
    let mut holes = Case::<T>::new(1, [2, 1], (20, 150), (32, 24));
    let kept = |j: usize| j % 3 != 1;
    let mut dense = Case::<T>::new(1, [2, 1], (20, 100), (32, 24));
    (dense.k, dense.v) = (chosen_rows(&holes.k, 150, 32, kept), chosen_rows(&holes.v, 150, 24, kept));
    holes.key_mask = Some((0..150).map(kept).collect());
    for j in (1..150).step_by(3) {
        (holes.k[j * 32], holes.v[j * 24]) = (T::NAN, T::INFINITY);
    }
    let (a, b) = (holes.gradients(isa, None), dense.gradients(isa, None));
    assert_same_bits(&a[0], &b[0]);
    for (width, x, y) in [(32, &a[1], &b[1]), (24, &a[2], &b[2])] {
        assert_same_bits(&chosen_rows(x, 150, width, kept), y);
        assert!(chosen_rows(x, 150, width, |j| !kept(j)).iter().all(|x| x.to_f64().to_bits() == 0));
    }
    // Nobody asks; nothing is asked of.
    let case = Case::<T>::new(1, [2, 1], (0, 5), (4, 4));
    assert!(case.gradients(isa, None)[1..3].iter().all(|x| x.iter().all(|&x| x == T::ZERO)));
    let case = Case::<T>::new(1, [2, 1], (5, 0), (4, 4));
    assert!(case.gradients(isa, None)[0].iter().all(|&x| x == T::ZERO));
}

fn extremes<T: Float>(isa: Isa, _: f64) {
    // One key takes all of a row whose scores are beyond 2^20: nothing but d_out to its value.
    let mut case = Case::<T>::new(1, [1, 1], (1, 2), (1, 1));
    (case.q, case.k) = (vec![T::ONE], [1e7, -1e7].map(T::from_f64).to_vec());
    let got = case.gradients(isa, None);
    assert!(got[2][0] == case.d_out[0] && got[2][1] == T::ZERO);
    assert!(got[0][0].is_finite() && got[0][0].to_f64().abs() <= 1.0);
    // NaN in an allowed place.
    case.k[0] = T::NAN;
    assert!(case.gradients(isa, None)[..3].iter().flatten().all(|x| x.is_nan()));
}

for_each_isa! {
    near_the_naive_form_and_equal_everywhere: shapes, 1e-6, 2e-15;
    every_kind_of_mask: masks, 1e-6, 2e-15;
    blocked_pairs_leave_no_trace: blocked, 0.0, 0.0;
    removed_keys_equal_deletion: removed, 0.0, 0.0;
    large_scores_and_nan: extremes, 0.0, 0.0;
}
