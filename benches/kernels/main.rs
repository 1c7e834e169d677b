//! The hot kernels, each in fixed shapes and on the calling thread: what `make bench-check` counts and times.
//!
//! ```text
//! kernels count    runs each once inside `measured`, where callgrind counts; prints a name a line
//! kernels share    prints the names of products and attention, each with its best share of the peak loop
//! kernels isa      prints the instruction set in use
//! ```
//!
//! benchmarks/check.py starts it, reads it and compares. The shapes are small, since callgrind computes each lane of a
//! multiply-add by itself, a thousand times slower than the processor.

mod attention;
mod layers;
mod products;
mod rows;

use std::hint::black_box;
use std::time::Instant;

use headwise::kernels::peak::Peak;
use headwise::nn::init::Init;
use headwise::ops::aligned::with_scratch;
use headwise::simd::{Float, active};
use headwise::threads::set_num_threads;
use ndarray::{ArrayD, IxDyn};

/// Is given each case: its name, its operations (two for a multiply-add; 0 where the arithmetic units are not what it waits
/// for) and the call.
type Visit<'a> = dyn FnMut(&str, usize, &mut dyn FnMut()) + 'a;

/// Rounds of the peak loop in a turn: about 0.2 ms, as long as most of the calls.
const PEAK_ROUNDS: usize = 100_000;

/// Turns of a case and of the peak loop, of which the best counts: a shared machine only ever makes a turn longer.
const TURNS: usize = 300;

fn main() {
    set_num_threads(1).expect("one thread");
    match std::env::args().nth(1).as_deref() {
        Some("count") => each(&mut |name, _, run| count(name, run)),
        Some("share") => each(&mut |name, operations, run| share(name, operations, run)),
        Some("isa") => println!("{}", active().expect("HEADWISE_ISA")),
        other => panic!("expected count, share or isa, got {other:?}"),
    }
}

fn each(visit: &mut Visit<'_>) {
    for cases in [products::cases, attention::cases, rows::cases, layers::cases] {
        cases(visit);
    }
}

fn count(name: &str, run: &mut dyn FnMut()) {
    // What a thread keeps from its first call on is no part of a call.
    with_scratch(1 << 20, |_: &mut [f32]| Ok(())).expect("memory");
    measured(run);
    println!("{name}");
}

/// Where callgrind counts: it is told this name.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
    // Something to do after the call, or it would become a jump, and callgrind would not see its end.
    black_box(());
}

fn share(name: &str, operations: usize, run: &mut dyn FnMut()) {
    if operations == 0 {
        return;
    }
    let isa = active().expect("HEADWISE_ISA");
    let (mut peak, mut rate) = (0.0_f64, 0.0_f64);
    for _ in 0..TURNS {
        let start = Instant::now();
        let (done, sum) = f32::dispatch(isa, Peak { rounds: PEAK_ROUNDS });
        peak = peak.max(2.0 * done as f64 / start.elapsed().as_secs_f64());
        black_box(sum);
        let start = Instant::now();
        run();
        rate = rate.max(operations as f64 / start.elapsed().as_secs_f64());
    }
    println!("{name}\t{:.4}", rate / peak);
}

/// Numbers in (-1, 1), the same in each run.
fn numbers<T: Float>(shape: &[usize], seed: u64) -> ArrayD<T> {
    let numbers = Init::new(seed).uniform(shape, 1.0).and_then(|draws| draws.vector()).expect("memory");
    ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("a shape of these numbers")
}

/// As [`numbers`], without a shape.
fn flat(len: usize, seed: u64) -> Vec<f32> {
    numbers(&[len], seed).into_raw_vec_and_offset().0
}
