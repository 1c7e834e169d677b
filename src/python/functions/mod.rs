//! The public functions, one family a file.

pub mod activation;
pub mod allowed_mask;
pub mod attention;
pub mod linear;
pub mod pooling;
pub mod positions;
pub mod rows;
pub mod vjp;

use pyo3::prelude::*;

use super::arrays::type_name;
use super::rng::is_index;
use crate::error::Error;

/// The body of a function of one array: `f` on its view, in the type that its dtype is computed in, for about `work`
/// operations a number.
macro_rules! one_input {
    ($py:expr, $x:expr, $work:expr, $f:expr) => {
        $crate::python::boundary::entry(|| {
            let operand = $crate::python::arrays::Operand::new("x", $x)?;
            let target = $crate::python::outputs::Target::of(&[&operand]);
            macro_rules! run {
                ($t:ty) => {{
                    let input = operand.read::<$t>()?;
                    let view = input.view();
                    let result =
                        $crate::python::boundary::compute($py, view.len().saturating_mul($work), || {
                            ($f)(&view)
                        })?;
                    target.give($py, result, None)
                }};
            }
            if target.is_f64() { run!(f64) } else { run!(f32) }
        })
    };
}
use one_input;

/// A length from 0 on.
pub(super) fn length(name: &str, n: &Bound<'_, PyAny>) -> PyResult<usize> {
    if !is_index(n)? {
        return Err(Error::Type(format!("{name}: expected an int, got {}", type_name(n))).into());
    }
    let refused = || Error::Value(format!("{name}: expected a length from 0 on, got {n}"));
    Ok(n.call_method0("__index__")?.extract().map_err(|_| refused())?)
}
