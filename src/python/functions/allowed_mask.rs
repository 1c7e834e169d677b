//! `allowed_mask`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::length;
use crate::ops::allowed_mask::allowed_mask as mask_of;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::masks::{HeldMasks, MaskArguments};
use crate::python::outputs::array;

/// Return the boolean array that masks mean: True where a query may attend a key.
///
/// All constraints are ANDed. Query i stands at place i + offset: causal allows key j <= i + offset, a window keys
/// i + offset - left to i + offset + right.
///
/// Parameters
/// ----------
/// L : int
///     Number of queries.
/// S : int
///     Number of keys.
/// attn_mask : array_like, optional
///     Rank 1 to n, broadcast to (B, H, L, S). Boolean: True may be attended. Floating: exactly ``-inf`` blocks, as
///     does a float64 below the range of float32. Integers are refused.
/// key_mask : array_like, optional
///     (B, S), boolean or 0 and 1: True may be attended.
/// key_lengths : array_like of int, optional
///     (B,): keys from this place on are blocked.
/// is_causal : bool, default False
///     Whether keys after a query's place are blocked.
/// causal_offset : int, array_like of int or "bottom_right", default 0
///     The place of query 0, one or (B,). "bottom_right" puts the last query at the last key: `key_lengths` - L
///     where given, else S - L.
/// window : tuple of (int or None, int or None), optional
///     Keys allowed to the left and to the right of a query's place; None is open.
///
/// Returns
/// -------
/// ndarray of bool
///     (B, H, L, S), H = 1 where no mask has heads; (L, S) where none has a batch or heads.
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit, a length is not in 0 to S, or a side of the window is negative.
/// TypeError
///     If a mask is of the wrong kind.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.allowed_mask(2, 4, is_causal=True, causal_offset="bottom_right").astype(int)
/// array([[1, 1, 1, 0],
///        [1, 1, 1, 1]])
#[pyfunction]
#[pyo3(signature = (L, S, *, attn_mask = None, key_mask = None, key_lengths = None, is_causal = false,
    causal_offset = None, window = None, **unknown),
    text_signature = "(L, S, *, attn_mask=None, key_mask=None, key_lengths=None, is_causal=False, causal_offset=0, window=None)")]
#[allow(non_snake_case, reason = "L and S are the letters of the contract")]
#[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
pub fn allowed_mask<'py>(
    py: Python<'py>,
    L: &Bound<'py, PyAny>,
    S: &Bound<'py, PyAny>,
    attn_mask: Option<&Bound<'py, PyAny>>,
    key_mask: Option<&Bound<'py, PyAny>>,
    key_lengths: Option<&Bound<'py, PyAny>>,
    is_causal: bool,
    causal_offset: Option<&Bound<'py, PyAny>>,
    window: Option<&Bound<'py, PyAny>>,
    unknown: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        no_more("allowed_mask", unknown)?;
        let (l, s) = (length("L", L)?, length("S", S)?);
        let given = MaskArguments { attn_mask, key_mask, key_lengths, is_causal, causal_offset, window };
        // float32: there an f64 mask's lows are -inf.
        let held = HeldMasks::<f32>::read(&given)?;
        let masks = held.masks();
        let mask = compute(py, l.saturating_mul(s), || mask_of(l, s, &masks))?;
        Ok(array(py, mask))
    })
}
