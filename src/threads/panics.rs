//! Panics become errors: none may cross into Python, and one in a task must not take the pool with it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

thread_local! {
    /// Panics on this thread are caught and turned into errors: nothing needs printing.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// Where the last caught panic arose; written by the panic hook.
    static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `f` and turns a panic into `Error::Internal`. Whatever `f` was changing is not used afterwards: callers
/// return the error and drop the output.
///
/// # Errors
/// `Internal`, with the panic's text and place.
pub fn catching<R>(f: impl FnOnce() -> R) -> Result<R> {
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|payload| {
        let place = PANIC_PLACE.take().map_or(String::new(), |p| format!(" at {p}"));
        Error::Internal(format!("{}{place}", panic_text(&*payload)))
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
}

/// Lets the panic hook be silent about panics that [`catching`] turns into errors, and remember their place.
/// Other panics go to the hook that was there. For the Python module; a Rust program keeps its own hook.
pub fn quiet_caught_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if CATCHING.get() {
            PANIC_PLACE.set(info.location().map(|l| format!("{}:{}", l.file(), l.line())));
        } else {
            before(info);
        }
    }));
}
