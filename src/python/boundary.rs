//! The way from Python into the crate and back: [`entry`] around the body of every exposed function, so that no
//! panic leaves it, and [`compute`] around the work inside, which releases the interpreter's lock, looks for
//! Ctrl-C and sets the floating-point environment.

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::Result;
use crate::threads::{catching, with_default_fp, with_interrupt};

/// Operations (multiply-adds, or numbers read) below which a call keeps the interpreter's lock: some ten
/// microseconds. Releasing it is quick, but getting it back from a busy thread may take 5 ms.
pub const WORTH_RELEASING: usize = 1 << 16;

/// Runs the body of an exposed function; a panic becomes `InternalError`.
pub fn entry<R>(body: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catching(body)?
}

/// Runs `f`, which knows nothing of Python, for about `work` operations.
///
/// Above [`WORTH_RELEASING`] the interpreter's lock is released meanwhile, and on Python's main thread signals
/// are looked for: what a signal handler raises (`KeyboardInterrupt`) ends the work and is raised from here.
pub fn compute<R: Send>(py: Python<'_>, work: usize, f: impl FnOnce() -> Result<R> + Send) -> PyResult<R> {
    #[cfg(feature = "account")]
    let f = || {
        let _call = crate::account::call();
        f()
    };
    if work < WORTH_RELEASING {
        return Ok(catching(|| with_default_fp(f))??);
    }
    let handles_signals = on_main_thread(py)?;
    let (result, raised) = py.detach(|| {
        let raised = RefCell::new(None);
        let check = || {
            Python::attach(|py| match py.check_signals() {
                Ok(()) => false,
                Err(error) => {
                    *raised.borrow_mut() = Some(error);
                    true
                }
            })
        };
        let work = || with_default_fp(f);
        let result = catching(|| if handles_signals { with_interrupt(&check, work) } else { work() });
        (result.flatten(), raised.into_inner())
    });
    // What the handler raised must not get lost, even if the work came to its end or to another error.
    match raised {
        Some(error) => Err(error),
        None => Ok(result?),
    }
}

/// Whether this is the thread on which Python runs signal handlers.
fn on_main_thread(py: Python<'_>) -> PyResult<bool> {
    static MAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let main = MAIN.import(py, "threading", "main_thread")?.call0()?.getattr(pyo3::intern!(py, "ident"))?;
    IDENT.import(py, "threading", "get_ident")?.call0()?.eq(main)
}
