//! `_account`: where the time of the last calls went, for `make account`. Not public, and only with feature `account`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::boundary::entry;
use crate::account::{Stage, take};

/// Say where the time went since this was last asked.
///
/// Returns
/// -------
/// dict of str to dict of str to float, or to float
///     ``"seconds"`` and ``"spans"`` by stage, over all threads. ``"calls"``: seconds from the beginning to the end of
///     calls, on the threads that made them. ``"mark"``: seconds of one mark of the clock, which every span holds.
#[pyfunction]
pub fn _account(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    entry(|| {
        let totals = take();
        let (seconds, spans) = (PyDict::new(py), PyDict::new(py));
        for (stage, name) in Stage::ALL {
            seconds.set_item(name, totals.seconds[stage as usize])?;
            spans.set_item(name, totals.spans[stage as usize])?;
        }
        let account = PyDict::new(py);
        account.set_item("seconds", seconds)?;
        account.set_item("spans", spans)?;
        account.set_item("calls", totals.calls)?;
        account.set_item("mark", totals.mark)?;
        Ok(account)
    })
}
