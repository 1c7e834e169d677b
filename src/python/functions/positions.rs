//! Where tokens are: `sinusoidal_positions`, `rotary_embedding`, `alibi_slopes`, `relative_position_buckets`.

use ndarray::Array1;
use numpy::Element;
use pyo3::prelude::*;

use super::length;
use crate::ops;
use crate::ops::buckets::Buckets;
use crate::ops::rotary::Rotary;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::{Target, array};
use crate::simd::Float;

/// Return the table of sines and cosines that Transformers add to their inputs.
///
/// Position p and pair i give sin(p / 10000**(2i / d)) and cos(p / 10000**(2i / d)).
///
/// Parameters
/// ----------
/// n : int
///     Number of positions, which count from 0.
/// d : int
///     Width; an odd one lacks the last cosine.
/// layout : {"interleaved", "concat"}, default "interleaved"
///     Whether a sine and its cosine are neighbours, or all sines come before all cosines.
///
/// Returns
/// -------
/// ndarray of float32
///     (n, d), computed in float64 and rounded once.
///
/// Raises
/// ------
/// ValueError
///     If `n` or `d` is negative, or `layout` another.
///
/// References
/// ----------
/// .. [1] A. Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.sinusoidal_positions(1, 4)
/// array([[0., 1., 0., 1.]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (n, d, *, layout = "interleaved"))]
pub fn sinusoidal_positions<'py>(
    py: Python<'py>,
    n: &Bound<'py, PyAny>,
    d: &Bound<'py, PyAny>,
    layout: &str,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let (n, d, layout) = (length("n", n)?, length("d", d)?, layout.parse()?);
        let work = n.saturating_mul(d).saturating_mul(20);
        let table = compute(py, work, || ops::positions::sinusoidal_positions::<f32>(n, d, layout))?;
        Ok(array(py, table))
    })
}

/// Turn pairs of numbers by angles that grow with the position.
///
/// Pair i of a row at position p is turned by p * theta**(-2i / R), R the numbers of a row that are turned. A product of
/// two turned rows then depends on the distance of their positions only.
///
/// Parameters
/// ----------
/// x : array_like
///     (..., L, E), E even unless `rotary_dim` is given. bool and integers count as float64; float16 and bfloat16 are
///     computed in float32 and rounded once.
/// positions : array_like, optional
///     (L,), or (B, L) where `x` is (B, ..., L, E); 0, 1, 2... if absent.
/// theta : float, default 10000.0
///     Base of the angles.
/// interleaved : bool, default False
///     Whether pairs are neighbours, as in the paper, or i and i + R / 2, as in most checkpoints.
/// rotary_dim : int, optional
///     R, even: only the first R numbers of a row are turned.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit (`ShapeError`), or `rotary_dim` or `theta` is out of its range.
/// TypeError
///     If an array is of a dtype that is not computed with (`DTypeError`).
///
/// References
/// ----------
/// .. [1] J. Su et al., "RoFormer", 2021. https://arxiv.org/abs/2104.09864
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.rotary_embedding([[1.0, 0.0]], positions=[0])
/// array([[1., 0.]])
#[pyfunction]
#[pyo3(signature = (x, positions = None, *, theta = 10000.0, interleaved = false, rotary_dim = None))]
pub fn rotary_embedding<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    positions: Option<&Bound<'py, PyAny>>,
    theta: f64,
    interleaved: bool,
    rotary_dim: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let rotary_dim = rotary_dim.map(|r| length("rotary_dim", r)).transpose()?;
        let rotary = Rotary { theta, interleaved, rotary_dim };
        let x = Operand::new("x", x)?;
        let positions = positions.map(|p| Operand::new("positions", p)).transpose()?;
        if Target::of(&[&x]).is_f64() {
            rotate::<f64>(py, &x, positions.as_ref(), &rotary)
        } else {
            rotate::<f32>(py, &x, positions.as_ref(), &rotary)
        }
    })
}

fn rotate<'py, T: Float + Element>(
    py: Python<'py>,
    x: &Operand<'py>,
    positions: Option<&Operand<'py>>,
    rotary: &Rotary,
) -> PyResult<Bound<'py, PyAny>> {
    let target = Target::of(&[x]);
    let (x, positions) = (x.read::<T>()?, positions.map(Operand::read::<f64>).transpose()?);
    let (x, positions) = (x.view(), positions.as_ref().map(|p| p.view()));
    let result = compute(py, x.len().saturating_mul(4), || {
        ops::rotary::rotary_embedding(&x, positions.as_ref(), rotary)
    })?;
    target.give(py, result, None)
}

/// Return the slopes by which attention with linear biases punishes distance.
///
/// For a power of two head h has 2**(-8 * (h + 1) / num_heads); other numbers are filled up from the next power.
///
/// Parameters
/// ----------
/// num_heads : int
///     Number of heads, at least 1.
///
/// Returns
/// -------
/// ndarray of float32
///     (num_heads,), each slope > 0: slope * distance is subtracted from a score.
///
/// Raises
/// ------
/// ValueError
///     If `num_heads` is less than 1.
///
/// References
/// ----------
/// .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long", 2021. https://arxiv.org/abs/2108.12409
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.alibi_slopes(4)
/// array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)
#[pyfunction]
pub fn alibi_slopes<'py>(py: Python<'py>, num_heads: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let heads = length("num_heads", num_heads)?;
        let slopes = compute(py, heads.saturating_mul(20), || ops::alibi::alibi_slopes::<f32>(heads))?;
        Ok(array(py, Array1::from(slopes).into_dyn()))
    })
}

/// Return T5's buckets: for each query and key the index of the bias that their distance has.
///
/// The smaller half of the distances have a bucket each, larger ones share buckets that grow by a factor, and all from
/// `max_distance` on share the last.
///
/// Parameters
/// ----------
/// L : int
///     Number of queries.
/// S : int
///     Number of keys.
/// bidirectional : bool, default True
///     Whether keys to the right have buckets of their own (an encoder); else they count as distance 0.
/// num_buckets : int, default 32
///     Number of buckets; even if bidirectional.
/// max_distance : int, default 128
///     Distance from which on all share one bucket.
///
/// Returns
/// -------
/// ndarray of int64
///     (L, S), each from 0 to `num_buckets` - 1.
///
/// Raises
/// ------
/// ValueError
///     If the counts make no buckets.
///
/// References
/// ----------
/// .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning", 2019. https://arxiv.org/abs/1910.10683
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.relative_position_buckets(2, 3)
/// array([[ 0, 17, 18],
///        [ 1,  0, 17]])
#[pyfunction]
#[pyo3(signature = (L, S, *, bidirectional = true, num_buckets = None, max_distance = None),
    text_signature = "(L, S, *, bidirectional=True, num_buckets=32, max_distance=128)")]
#[allow(non_snake_case, reason = "L and S are the letters of the contract")]
pub fn relative_position_buckets<'py>(
    py: Python<'py>,
    L: &Bound<'py, PyAny>,
    S: &Bound<'py, PyAny>,
    bidirectional: bool,
    num_buckets: Option<&Bound<'py, PyAny>>,
    max_distance: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let (l, s) = (length("L", L)?, length("S", S)?);
        let usual = Buckets::default();
        let or = |name: &str, given: Option<&Bound<'py, PyAny>>, usual: usize| {
            given.map_or(Ok(usual), |n| length(name, n))
        };
        let buckets = Buckets {
            bidirectional,
            num_buckets: or("num_buckets", num_buckets, usual.num_buckets)?,
            max_distance: or("max_distance", max_distance, usual.max_distance)?,
        };
        let table =
            compute(py, l.saturating_mul(s), || ops::buckets::relative_position_buckets(l, s, buckets))?;
        Ok(array(py, table))
    })
}
