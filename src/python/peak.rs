//! `_peak_gflops`: what the machine's arithmetic can give at most, for `make bench`. Not public.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use pyo3::prelude::*;

use super::boundary::entry;
use crate::error::Error;
use crate::kernels::peak::Peak;
use crate::simd::{self, Float, Isa};

/// About 6 ms on a core that does two vector multiply-adds in a cycle: long against the start of a thread, short
/// against changes of the clock.
const ROUNDS: usize = 4_000_000;

/// Run independent fused multiply-adds in registers and say how fast they went.
///
/// Parameters
/// ----------
/// dtype : {"float32", "float64"}
///     The type of the numbers.
/// threads : int
///     How many threads run the loop at once.
///
/// Returns
/// -------
/// float
///     10^9 operations per second over all threads; a multiply-add counts as two.
#[pyfunction]
#[pyo3(signature = (dtype, threads))]
pub fn _peak_gflops(py: Python<'_>, dtype: &str, threads: usize) -> PyResult<f64> {
    entry(|| {
        let isa = simd::active()?;
        match dtype {
            "float32" => Ok(py.detach(|| gflops::<f32>(isa, threads))),
            "float64" => Ok(py.detach(|| gflops::<f64>(isa, threads))),
            _ => Err(Error::Value(format!("dtype: expected 'float32' or 'float64', got '{dtype}'")).into()),
        }
    })
}

/// The loop on each of `threads` threads, the caller's among them, all at once: the sum of their rates.
fn gflops<T: Float>(isa: Isa, threads: usize) -> f64 {
    let together = Barrier::new(threads.max(1));
    let rate = || {
        together.wait();
        let start = Instant::now();
        let done = run::<T>(isa);
        2e-9 * done as f64 / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(rate)).collect();
        rate() + others.into_iter().map(|other| other.join().unwrap_or(0.0)).sum::<f64>()
    })
}

/// Runs the loop once; returns the multiply-adds done.
fn run<T: Float>(isa: Isa) -> usize {
    let (done, sum) = T::dispatch(isa, Peak { rounds: ROUNDS });
    black_box(sum);
    done
}
