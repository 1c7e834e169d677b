//! Choices of a few of a row's scores: the greatest one, the k greatest, and sparsemax.
//!
//! Sparsemax (Martins and Astudillo 2016) is the point of the probability simplex that is nearest to z:
//!
//! ```text
//! p_j = max(z_j - tau, 0),   tau = (sum of z_j over the support - 1) / size of the support
//! ```
//!
//! The support is the longest run of the greatest scores, z_(1) >= z_(2) >= ..., with 1 + m z_(m) > z_(1) + ... + z_(m).
//! The greatest is subtracted first, which changes nothing but the size of the sums; these are f64, in that order. Equal
//! scores may stand in any order there: their sums are the same.
//!
//! Of equal scores the smaller index is chosen. A NaN cannot be put in order: it makes the whole row NaN.

use std::cmp::Ordering;

use crate::simd::Float;

/// Where the greatest number is, the first of equal ones; no NaN among them, and at least one number.
pub(super) fn argmax<T: Float>(x: &[T]) -> usize {
    let mut best = 0;
    for (j, &x_j) in x.iter().enumerate() {
        if x_j > x[best] {
            best = j;
        }
    }
    best
}

/// Places of the `k` greatest numbers in `order[..k]`, ascending; no NaN among them.
pub(super) fn top_k<T: Float>(x: &[T], k: usize, order: &mut [u32]) {
    sort(x, order);
    order[..k].sort_unstable();
}

/// Sparsemax in place; no NaN among the numbers, and at least one number.
pub(super) fn sparsemax<T: Float>(x: &mut [T], order: &mut [u32]) {
    sort(x, order);
    let top = x[order[0] as usize].to_f64();
    if !top.is_finite() {
        // inf - inf, or nothing that is greater than -inf.
        return x.fill(T::NAN);
    }
    let (mut sum, mut tau) = (0.0, 0.0);
    for (m, &j) in order.iter().enumerate() {
        let z = x[j as usize].to_f64() - top;
        let size = (m + 1) as f64;
        if 1.0 + size * z <= sum + z {
            break;
        }
        sum += z;
        tau = (sum - 1.0) / size;
    }
    for x in x.iter_mut() {
        let p = x.to_f64() - top - tau;
        *x = if p > 0.0 { T::from_f64(p) } else { T::ZERO };
    }
}

/// Writes the places of the numbers, the greatest first, equal ones by place.
fn sort<T: Float>(x: &[T], order: &mut [u32]) {
    for (j, place) in order.iter_mut().enumerate() {
        *place = j as u32;
    }
    order.sort_unstable_by(|&a, &b| {
        let by_size = x[b as usize].partial_cmp(&x[a as usize]).unwrap_or(Ordering::Equal);
        by_size.then(a.cmp(&b))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::normals;

    fn sparse(x: &[f64]) -> Vec<f64> {
        let mut p = x.to_vec();
        sparsemax(&mut p, &mut vec![0; x.len()]);
        p
    }

    #[test]
    fn sparsemax_is_the_nearest_point_of_the_simplex() {
        // The projection's conditions: on the simplex, and x - p is one number on the support, no greater beside it.
        for n in [1, 2, 3, 17, 300] {
            for scale in [0.01, 1.0, 30.0] {
                let x = normals::<f64>(n, n as u32, scale);
                let p = sparse(&x);
                assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                let tau = x.iter().zip(&p).find(|(_, p)| **p > 0.0).map(|(x, p)| x - p).unwrap();
                for (x, p) in x.iter().zip(&p) {
                    assert!(
                        *p >= 0.0 && (if *p > 0.0 { (x - p - tau).abs() < 1e-12 } else { *x <= tau + 1e-12 })
                    );
                }
            }
        }
        assert_eq!(sparse(&[0.0; 4]), [0.25; 4]);
        assert_eq!(sparse(&[1.0, 0.0, 0.5]), [0.75, 0.0, 0.25]);
        assert_eq!(sparse(&[1e300, -1e300, f64::NEG_INFINITY]), [1.0, 0.0, 0.0]);
        assert!(sparse(&[f64::INFINITY, 0.0]).iter().all(|p| p.is_nan()));
    }

    #[test]
    fn ties_go_to_the_smaller_index() {
        let x = [1.0_f32, 3.0, 2.0, 3.0, 2.0];
        assert_eq!(argmax(&x), 1);
        let mut order = [0; 5];
        top_k(&x, 3, &mut order);
        assert_eq!(order[..3], [1, 2, 3]);
    }
}
