//! Rotary position embedding (Su et al. 2021): pair i of a row at position p is turned by `p * theta^(-2i/R)`.

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::zeros;
use super::rows::{dense, over_rows, shaped};
use crate::error::{Error, Result};
use crate::kernels::rope::Rotate;
use crate::simd::{Float, active};

/// How rows are turned.
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    /// The base of the angles.
    pub theta: f64,
    /// Pairs (2i, 2i + 1) as in the paper, instead of (i, i + R/2) as in GPT-NeoX and Hugging Face's models.
    pub interleaved: bool,
    /// R, the numbers of a row that are turned; all where not given.
    pub rotary_dim: Option<usize>,
}

impl Default for Rotary {
    fn default() -> Self {
        Self { theta: 10000.0, interleaved: false, rotary_dim: None }
    }
}

impl Rotary {
    /// R / 2 for rows of `e` numbers.
    ///
    /// # Errors
    /// `Value` where R is odd or larger than E, or theta is not positive.
    pub fn pairs(&self, e: usize) -> Result<usize> {
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            return Err(Error::Value(format!("theta: expected a positive number, got {}", self.theta)));
        }
        match self.rotary_dim {
            Some(r) if r > e || r % 2 == 1 => {
                Err(Error::Value(format!("rotary_dim: expected an even number up to E = {e}, got {r}")))
            }
            None if e % 2 == 1 => Err(Error::Shape(format!(
                "x: expected (..., L, E) with an even E, or an even rotary_dim, got E = {e}"
            ))),
            r => Ok(r.unwrap_or(e) / 2),
        }
    }
}

/// Cosines and sines of some positions, R / 2 of each for every position; angles are computed in f64.
pub struct Angles<T> {
    /// Cosines.
    pub cos: Vec<T>,
    /// Sines.
    pub sin: Vec<T>,
    /// R / 2.
    pub pairs: usize,
}

impl<T: Float> Angles<T> {
    /// The angles of `positions` for rows of `e` numbers.
    ///
    /// # Errors
    /// Those of [`Rotary::pairs`]; `Memory`, `Interrupted`.
    pub fn new(positions: &[f64], e: usize, rotary: &Rotary) -> Result<Self> {
        let pairs = rotary.pairs(e)?;
        let mut steps = zeros::<f64>(pairs)?;
        for (i, step) in steps.iter_mut().enumerate() {
            *step = libm::pow(rotary.theta, -(i as f64 / pairs as f64));
        }
        let count = positions.len().checked_mul(pairs);
        let count = count.ok_or_else(|| Error::Memory("positions: too many angles".into()))?;
        let table = |f: fn(f64) -> f64| {
            let mut out = zeros::<T>(count)?;
            over_rows(&mut out, pairs.max(1), 20 * pairs, |first, rows| {
                for (row, p) in rows.chunks_exact_mut(pairs).zip(&positions[first..]) {
                    for (x, step) in row.iter_mut().zip(&steps) {
                        *x = T::from_f64(f(p * step));
                    }
                }
            })?;
            Ok::<_, Error>(out)
        };
        Ok(Self { cos: table(libm::cos)?, sin: table(libm::sin)?, pairs })
    }

    /// The same angles the other way.
    fn reverse(&mut self) {
        for sin in &mut self.sin {
            *sin = -*sin;
        }
    }
}

/// Turns the rows of x (..., L, E). Positions are 0, 1, 2... where not given, else (L,), or (B, L) where x is
/// (B, ..., L, E).
///
/// # Errors
/// `Shape` and `Value` for what does not fit; `Memory`, `Interrupted`, `Internal`.
pub fn rotary_embedding<T: Float>(
    x: &ArrayViewD<'_, T>,
    positions: Option<&ArrayViewD<'_, f64>>,
    rotary: &Rotary,
) -> Result<ArrayD<T>> {
    turn(x, positions, rotary, false)
}

/// Turns rows back: the gradient of x, with the arguments of [`rotary_embedding`], from that of its result.
///
/// # Errors
/// As [`rotary_embedding`].
pub fn rotary_embedding_backward<T: Float>(
    d: &ArrayViewD<'_, T>,
    positions: Option<&ArrayViewD<'_, f64>>,
    rotary: &Rotary,
) -> Result<ArrayD<T>> {
    turn(d, positions, rotary, true)
}

fn turn<T: Float>(
    x: &ArrayViewD<'_, T>,
    positions: Option<&ArrayViewD<'_, f64>>,
    rotary: &Rotary,
    back: bool,
) -> Result<ArrayD<T>> {
    let &[.., l, e] = x.shape() else {
        return Err(Error::Shape(format!("x: expected (..., L, E), got {:?}", x.shape())));
    };
    rotary.pairs(e)?;
    let by_batch = check_positions(x.shape(), l, positions)?;
    if x.is_empty() {
        return shaped(x.shape(), Vec::new());
    }
    let positions = if let Some(p) = positions {
        dense(p)?.into_owned()
    } else {
        let mut count = zeros(l)?;
        for (i, p) in count.iter_mut().enumerate() {
            *p = i as f64;
        }
        count
    };
    let mut angles = Angles::<T>::new(&positions, e, rotary)?;
    if back {
        angles.reverse();
    }
    let pairs = angles.pairs;

    let numbers = dense(x)?;
    let mut out = zeros(numbers.len())?;
    let isa = active()?;
    // Sequences, rows (L, E), that share a row of positions: all of them, or those of one batch element.
    let sharing = if by_batch { numbers.len() / (l * e) / x.shape()[0] } else { usize::MAX };
    over_rows(&mut out, e, 1 + e / 2, |first, out| {
        let mut done = 0;
        let rows = out.len() / e;
        // A run of rows may cross from one sequence to the next, whose positions begin anew.
        while done < rows {
            let (sequence, place) = ((first + done) / l, (first + done) % l);
            let n = (l - place).min(rows - done);
            let angle = (sequence / sharing * l + place) * pairs;
            let start = (first + done) * e;
            let rotate = Rotate {
                x: &numbers[start..start + n * e],
                out: &mut out[done * e..(done + n) * e],
                width: e,
                cos: &angles.cos[angle..angle + n * pairs],
                sin: &angles.sin[angle..angle + n * pairs],
                pairs,
                interleaved: rotary.interleaved,
            };
            T::dispatch(isa, rotate);
            done += n;
        }
    })?;
    shaped(x.shape(), out)
}

/// Turns, in place, every head of the rows (H E) of sequences that stand back to back; positions count from 0 in each.
///
/// # Errors
/// `Value` for an odd E, `Memory`, `Interrupted`, `Internal`.
pub fn rotate_rows<T: Float>(
    x: &mut [T],
    heads: usize,
    e: usize,
    lengths: &[usize],
    theta: f64,
) -> Result<()> {
    turn_rows(x, (heads, e), lengths, theta, false)
}

/// Turns rows back, by the same angles the other way: the gradient of [`rotate_rows`], since turning keeps lengths.
///
/// # Errors
/// As [`rotate_rows`].
pub fn rotate_rows_back<T: Float>(
    x: &mut [T],
    heads: usize,
    e: usize,
    lengths: &[usize],
    theta: f64,
) -> Result<()> {
    turn_rows(x, (heads, e), lengths, theta, true)
}

/// [`rotate_rows`] for rows whose places are given one by one, which costs the angles of each.
///
/// # Errors
/// As [`rotate_rows`].
pub fn rotate_rows_at<T: Float>(
    x: &mut [T],
    heads: usize,
    e: usize,
    places: &[usize],
    theta: f64,
) -> Result<()> {
    let positions: Vec<f64> = places.iter().map(|&p| p as f64).collect();
    let angles = Angles::new(&positions, e, &Rotary { theta, ..Rotary::default() })?;
    let rows: Vec<usize> = (0..places.len()).collect();
    turn_by(x, (heads, e), &angles, &rows)
}

fn turn_rows<T: Float>(
    x: &mut [T],
    widths: (usize, usize),
    lengths: &[usize],
    theta: f64,
    back: bool,
) -> Result<()> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let positions: Vec<f64> = (0..longest).map(|p| p as f64).collect();
    let mut angles = Angles::<T>::new(&positions, widths.1, &Rotary { theta, ..Rotary::default() })?;
    if back {
        angles.reverse();
    }
    let places: Vec<usize> = lengths.iter().flat_map(|&n| 0..n).collect();
    turn_by(x, widths, &angles, &places)
}

/// Turns the heads of row i by the angles of `places[i]`.
fn turn_by<T: Float>(
    x: &mut [T],
    (heads, e): (usize, usize),
    Angles { cos, sin, pairs }: &Angles<T>,
    places: &[usize],
) -> Result<()> {
    let isa = active()?;
    let (width, pairs) = (heads * e, *pairs);
    over_rows(&mut x[..places.len() * width], width, 1 + width / 2, |first, rows| {
        let mut turned = vec![T::ZERO; e];
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let angle = places[first + i] * pairs..(places[first + i] + 1) * pairs;
            for head in row.chunks_exact_mut(e) {
                let (cos, sin) = (&cos[angle.clone()], &sin[angle.clone()]);
                T::dispatch(
                    isa,
                    Rotate { x: head, out: &mut turned, width: e, cos, sin, pairs, interleaved: false },
                );
                head.copy_from_slice(&turned);
            }
        }
    })
}

/// Whether positions differ between batch elements.
fn check_positions(shape: &[usize], l: usize, positions: Option<&ArrayViewD<'_, f64>>) -> Result<bool> {
    let Some(p) = positions else { return Ok(false) };
    if let Some(bad) = p.iter().find(|p| !p.is_finite()) {
        return Err(Error::Value(format!("positions: expected finite numbers, got {bad}")));
    }
    match p.shape() {
        [n] if *n == l => Ok(false),
        [b, n] if *n == l && shape.len() >= 3 && *b == shape[0] => Ok(true),
        other => Err(Error::Shape(format!(
            "positions: expected (L,) = ({l},) or (B, L) with x (B, ..., L, E) of shape {shape:?}, got {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};

    #[test]
    fn rows_of_heads_are_as_heads_alone() {
        let (lengths, heads, e) = ([3, 0, 5], 2, 6);
        let x = normals::<f32>(8 * heads * e, 4, 1.0);
        let mut rows = x.clone();
        rotate_rows(&mut rows, heads, e, &lengths, 10000.0).unwrap();
        let mut start = 0;
        for n in lengths {
            for h in 0..heads {
                let of = |x: &[f32]| -> Vec<f32> {
                    (start..start + n).flat_map(|i| x[(i * heads + h) * e..][..e].to_vec()).collect()
                };
                let alone = shaped(&[n, e], of(&x)).unwrap();
                let alone = rotary_embedding(&alone.view(), None, &Rotary::default()).unwrap();
                assert_same_bits(&of(&rows), alone.as_slice().unwrap());
            }
            start += n;
        }
    }

    #[test]
    fn turned_back_they_are_where_they_were() {
        let (lengths, heads, e) = ([3, 0, 500], 2, 6);
        let x = normals::<f64>(503 * heads * e, 4, 1.0);
        let mut rows = x.clone();
        rotate_rows(&mut rows, heads, e, &lengths, 10000.0).unwrap();
        rotate_rows_back(&mut rows, heads, e, &lengths, 10000.0).unwrap();
        assert!(rms_relative(&rows, &x) < 2e-16);
        let x = shaped(&[503, 12], x).unwrap();
        for rotary in
            [Rotary::default(), Rotary { interleaved: true, rotary_dim: Some(8), ..Rotary::default() }]
        {
            let out = rotary_embedding(&x.view(), None, &rotary).unwrap();
            let back = rotary_embedding_backward(&out.view(), None, &rotary).unwrap();
            assert!(rms_relative(back.as_slice().unwrap(), x.as_slice().unwrap()) < 2e-16);
        }
    }

    #[test]
    fn positions_shared_and_by_batch() {
        let (b, h, l, e) = (3, 2, 50, 12);
        let x = shaped(&[b, h, l, e], normals::<f64>(b * h * l * e, 1, 1.0)).unwrap();
        for interleaved in [false, true] {
            for (theta, rotary_dim) in [(10000.0, None), (500.0, Some(6)), (1e6, Some(0))] {
                let rotary = Rotary { theta, interleaved, rotary_dim };
                let own = shaped(&[b, l], (0..b * l).map(|i| (i * i % 97) as f64).collect()).unwrap();
                let shared = shaped(&[l], (0..l).map(|i| 3.0 * i as f64 + 5.0).collect()).unwrap();
                for positions in [None, Some(&shared), Some(&own)] {
                    let view = positions.map(|p| p.view());
                    let out = rotary_embedding(&x.view(), view.as_ref(), &rotary).unwrap();
                    let rows = x.as_slice().unwrap().chunks(e).enumerate();
                    let exact: Vec<f64> = rows
                        .flat_map(|(row, x)| {
                            let (batch, place) = (row / (h * l), row % l);
                            let p = match positions {
                                None => place as f64,
                                Some(p) if p.ndim() == 1 => p[place],
                                Some(p) => p[[batch, place]],
                            };
                            naive::rotate(x, p, theta, interleaved, rotary_dim.unwrap_or(e))
                        })
                        .collect();
                    // The angle's own rounding shows: some hundred radians.
                    assert!(rms_relative(out.as_slice().unwrap(), &exact) < 3e-14);
                }
            }
        }
    }

    #[test]
    fn runs_over_sequences_and_threads_do_not_matter() {
        let (b, l, e) = (40, 37, 64);
        let x = shaped(&[b, l, e], normals::<f32>(b * l * e, 1, 1.0)).unwrap();
        let all = rotary_embedding(&x.view(), None, &Rotary::default()).unwrap();
        for (x, y) in x.outer_iter().zip(all.outer_iter()) {
            let alone = rotary_embedding(&x.into_dyn(), None, &Rotary::default()).unwrap();
            assert_same_bits(alone.as_slice().unwrap(), y.to_slice().unwrap());
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let x = |shape: &[usize]| shaped(shape, vec![1f32; shape.iter().product()]).unwrap();
        let refused = |shape: &[usize], positions: Option<&[usize]>, rotary: Rotary, name: &str| {
            let positions = positions.map(|p| shaped(p, vec![0f64; p.iter().product()]).unwrap());
            let view = positions.as_ref().map(|p| p.view());
            let error = rotary_embedding(&x(shape).view(), view.as_ref(), &rotary).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        };
        let with = |rotary_dim| Rotary { rotary_dim, ..Rotary::default() };
        refused(&[5, 7], None, with(None), "x");
        refused(&[5], None, with(None), "x");
        refused(&[5, 8], None, with(Some(3)), "rotary_dim");
        refused(&[5, 8], None, with(Some(10)), "rotary_dim");
        refused(&[5, 8], Some(&[4]), with(None), "positions");
        refused(&[5, 8], Some(&[1, 5]), with(None), "positions");
        refused(&[2, 5, 8], Some(&[3, 5]), with(None), "positions");
        refused(&[5, 8], None, Rotary { theta: -1.0, ..Rotary::default() }, "theta");
        assert_eq!(
            rotary_embedding(&x(&[2, 0, 8]).view(), None, &Rotary::default()).unwrap().shape(),
            [2, 0, 8]
        );
    }
}
