//! How many threads: the process's count and the override behind `headwise.num_threads`.

use pyo3::prelude::*;

use super::arrays::type_name;
use super::boundary::entry;
use super::rng::is_index;
use crate::error::Error;
use crate::threads;

/// Set how many threads a call may use, for the whole process.
///
/// The default is the first that is given of the environment variables ``HEADWISE_NUM_THREADS``,
/// ``OMP_NUM_THREADS`` and ``RAYON_NUM_THREADS``, else the smaller of the CPU affinity and the cgroup's quota; the
/// environment is read at the first call. The results are the same bits whatever the count.
///
/// Parameters
/// ----------
/// n : int
///     How many threads, the calling one included; 1 to 4096.
///
/// Raises
/// ------
/// ValueError
///     If `n` is out of range.
///
/// See Also
/// --------
/// num_threads : Set the count for a block and this thread only.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> before = hw.get_num_threads()
/// >>> hw.set_num_threads(2)
/// >>> hw.get_num_threads()
/// 2
/// >>> hw.set_num_threads(before)
#[pyfunction]
pub fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    entry(|| Ok(threads::set_num_threads(count(n)?)?))
}

/// Return how many threads a call may use.
///
/// Returns
/// -------
/// int
///     The count of the innermost ``num_threads`` block of this thread, else that of `set_num_threads`, else
///     the default.
///
/// Raises
/// ------
/// ValueError
///     If a variable of the environment that names the default holds no thread count.
///
/// See Also
/// --------
/// set_num_threads : Set the count, and where the default comes from.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.get_num_threads() >= 1
/// True
#[pyfunction]
pub fn get_num_threads() -> PyResult<usize> {
    entry(|| Ok(threads::num_threads()?))
}

/// Sets or, with None, removes this thread's override; returns the one before.
#[pyfunction]
pub fn _override_num_threads(n: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    entry(|| Ok(threads::override_num_threads(n.map(count).transpose()?)?))
}

/// Called in a forked child, by `os.register_at_fork`.
#[pyfunction]
pub fn _after_fork() {
    threads::note_fork();
}

/// A thread count: 0 stands for all that cannot be one, and is refused with the rest.
fn count(n: &Bound<'_, PyAny>) -> PyResult<usize> {
    if !is_index(n)? {
        return Err(Error::Type(format!("n: expected an int, got {}", type_name(n))).into());
    }
    let refused = || Error::Value(format!("n: expected 1 to 4096 threads, got {n}"));
    Ok(n.call_method0("__index__")?.extract().map_err(|_| refused())?)
}
