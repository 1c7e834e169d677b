//! The pool: `parallel(tasks, f)` runs `f(0)`, ..., `f(tasks - 1)`, each once, on the calling thread and up to
//! `get_num_threads() - 1` workers. Everybody takes the next index from one shared counter, so uneven tasks even
//! out; which thread runs a task never shows in a result, since tasks write disjoint outputs.
//!
//! Why not rayon's own `scope` or parallel iterators, although the workers are a rayon pool:
//! - A call waits only for workers that have *entered* it. A job still queued behind other callers' work finds
//!   the call closed and leaves; with a scope, 32 Python threads would wait for each other's queues.
//! - The calling thread looks for Ctrl-C between tasks and while it waits.
//! - A panic stops the call and becomes an error; the pool lives on.
//!
//! **Fork.** A child has no workers and may inherit locks that nobody will ever release. So the cell that holds
//! the pool is reached through an atomic pointer and carries the generation (bumped by `pthread_atfork`) and the
//! process id it belongs to. A child finds a stranger's cell, leaks it with its locks, and makes its own. The
//! one thing that must not be cut in half by a fork is the start of a pool (rayon's queues initialise a global
//! on first use): the `prepare` handler waits until that is over.
//!
//! **Floating point.** Other libraries leave flush-to-zero switched on in a thread; each task runs with the
//! default control word and restores what it found.

mod fp;
mod panics;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::account::at;
use crate::error::{Error, Result};
pub use fp::with_default_fp;
pub use panics::{catching, quiet_caught_panics};

/// How often a call asks whether it was interrupted: well under the 0.1 s that a user may wait after Ctrl-C.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// Turns of waiting awake before the caller sleeps; tasks end nearly together, and waking costs microseconds.
const SPINS: usize = 2000;
/// More threads than this are taken for a mistake.
const MAX_THREADS: usize = 4096;
/// Set in `Job::state` once the caller lets nobody in any more; the bits below count those inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// What `set_num_threads` chose; 0 = nothing.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);
/// The number that the environment and the machine give; 0 = not yet asked. Not a `OnceLock`: a fork in the
/// middle of its initialisation would leave the child waiting for it.
static DEFAULT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's override (the context manager `num_threads`); 0 = none.
    static OVERRIDE: Cell<usize> = const { Cell::new(0) };
    /// The job whose task this thread is running.
    static INSIDE: Cell<*const Job> = const { Cell::new(std::ptr::null()) };
    /// The interrupt check of this thread: points to the `&dyn Fn() -> bool` on the stack of `with_interrupt`.
    static CHECK: Cell<*const ()> = const { Cell::new(std::ptr::null()) };
    /// When the check was last called.
    static CHECKED: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The check of the current `with_interrupt` has said true.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

// ---------------------------------------------------------------------------------------------------------------
// How many threads

/// Sets how many threads a call may use, the calling thread included, for the whole process.
///
/// # Errors
/// `n` is 0 or above 4096.
pub fn set_num_threads(n: usize) -> Result<()> {
    check_count("n", n)?;
    CHOSEN.store(n, Ordering::Relaxed);
    Ok(())
}

/// How many threads a call of this thread may use: `override_num_threads`, else [`set_num_threads`], else
/// [`default_num_threads`]. 1 where the environment holds a bad value, which [`parallel`] reports.
pub fn get_num_threads() -> usize {
    num_threads().unwrap_or(1)
}

/// How many threads a [`parallel`] from here would use: one inside of a task, else [`get_num_threads`].
pub fn team_size() -> usize {
    if INSIDE.get().is_null() { get_num_threads() } else { 1 }
}

/// As [`get_num_threads`], with the error.
///
/// # Errors
/// A variable of the environment that holds no thread count.
pub fn num_threads() -> Result<usize> {
    match (OVERRIDE.get(), CHOSEN.load(Ordering::Relaxed)) {
        (0, 0) => default_num_threads(),
        (0, n) | (n, _) => Ok(n),
    }
}

/// Overrides the number for calls of this thread; `None` takes the override away. Returns the one before.
///
/// # Errors
/// `n` is 0 or above 4096.
pub fn override_num_threads(n: Option<usize>) -> Result<Option<usize>> {
    if let Some(n) = n {
        check_count("n", n)?;
    }
    let before = OVERRIDE.replace(n.unwrap_or(0));
    Ok((before != 0).then_some(before))
}

/// `HEADWISE_NUM_THREADS`, else `OMP_NUM_THREADS` (the first of its list), else `RAYON_NUM_THREADS` (where 0
/// means no choice), else what the CPU affinity and the cgroup's quota allow. Read once per process.
///
/// # Errors
/// A variable that holds no thread count.
pub fn default_num_threads() -> Result<usize> {
    let known = DEFAULT.load(Ordering::Relaxed);
    if known != 0 {
        return Ok(known);
    }
    let n = from_environment(&|name| {
        #[allow(clippy::disallowed_methods, reason = "one of the two places that read the environment")]
        std::env::var_os(name).map(|v| v.to_string_lossy().into_owned())
    })?
    // The standard library takes the smaller of the affinity and the quota of cgroup v1 or v2.
    .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    DEFAULT.store(n, Ordering::Relaxed);
    Ok(n)
}

fn from_environment(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<usize>> {
    for name in ["HEADWISE_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
        let Some(text) = get(name).filter(|t| !t.trim().is_empty()) else { continue };
        // OpenMP allows a list, one number for each level of nesting.
        let first = if name.starts_with("OMP") { text.split(',').next().unwrap_or("") } else { &text };
        match first.trim().parse::<usize>() {
            Ok(0) if name.starts_with("RAYON") => {}
            Ok(n) => return check_count(name, n).map(|()| Some(n)),
            Err(_) => {
                return Err(Error::Value(format!("{name}: expected a number of threads, got {text:?}")));
            }
        }
    }
    Ok(None)
}

fn check_count(name: &str, n: usize) -> Result<()> {
    if n == 0 || n > MAX_THREADS {
        return Err(Error::Value(format!("{name}: expected 1 to {MAX_THREADS} threads, got {n}")));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// The pool's cell

/// A pool and the process it belongs to.
struct Cellar {
    generation: u64,
    pid: u32,
    pool: Mutex<Option<Arc<rayon::ThreadPool>>>,
}

static CELLAR: AtomicPtr<Cellar> = AtomicPtr::new(std::ptr::null_mut());
/// Counts the forks between this process and the one that loaded the library.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// Held while a pool is started, and over a fork.
static STARTING: AtomicBool = AtomicBool::new(false);

/// Which process this is: the generation, and its id for forks that bypass `pthread_atfork`.
fn process() -> (u64, u32) {
    (GENERATION.load(Ordering::Relaxed), std::process::id())
}

fn lock_starting() {
    while STARTING.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        thread::yield_now();
    }
}

extern "C" fn before_fork() {
    lock_starting();
}

extern "C" fn after_fork_in_parent() {
    STARTING.store(false, Ordering::Release);
}

extern "C" fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    // The child may have been given other CPUs.
    DEFAULT.store(0, Ordering::Relaxed);
    STARTING.store(false, Ordering::Release);
}

/// Registers the handlers that keep a forked child working. Called when the Python module is loaded, and before
/// the first pool; more calls do nothing.
pub fn watch_forks() {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    #[cfg(unix)]
    // SAFETY: the handlers are plain functions that live as long as the library and touch atomics only. A failure
    // (no memory) leaves the check of the process id.
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child));
    }
}

/// Tells that this may be a forked child, for callers that learn of a fork in another way (Python's
/// `os.register_at_fork`). Nothing happens where the cell is this process's own.
pub fn note_fork() {
    // SAFETY: the pointer is null or came from `Box::into_raw` below; a published cell is never freed.
    let known = unsafe { CELLAR.load(Ordering::Acquire).as_ref() };
    if known.is_some_and(|cell| cell.pid != process().1) {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        DEFAULT.store(0, Ordering::Relaxed);
    }
}

/// The cell of this process. A cell inherited over a fork is left alone for ever: its lock may be held and its
/// pool has no threads.
fn cellar() -> &'static Cellar {
    watch_forks();
    loop {
        let found = CELLAR.load(Ordering::Acquire);
        let (generation, pid) = process();
        // SAFETY: the pointer is null or came from `Box::into_raw` below; a published cell is never freed.
        if let Some(cell) = unsafe { found.as_ref() }
            && (cell.generation, cell.pid) == (generation, pid)
        {
            return cell;
        }
        let fresh = Box::into_raw(Box::new(Cellar { generation, pid, pool: Mutex::new(None) }));
        if CELLAR.compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: `fresh` was not published, so this thread alone has it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// A pool of at least `workers` threads, or `None` where the system gives no more threads: the call then runs on
/// the calling thread, with the same result. A smaller pool is replaced, and ends when the last call leaves it.
fn pool(workers: usize) -> Option<Arc<rayon::ThreadPool>> {
    let mut held = cellar().pool.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = held.as_ref().filter(|p| p.current_num_threads() >= workers) {
        return Some(Arc::clone(pool));
    }
    lock_starting();
    let started =
        rayon::ThreadPoolBuilder::new().num_threads(workers).thread_name(|i| format!("headwise-{i}")).build();
    if let Ok(pool) = &started {
        // Every worker has been through its queues, hence through their initialisation, before a fork may come.
        pool.broadcast(|_| ());
    }
    STARTING.store(false, Ordering::Release);
    let pool = Arc::new(started.ok()?);
    *held = Some(Arc::clone(&pool));
    Some(pool)
}

// ---------------------------------------------------------------------------------------------------------------
// A call

/// One call of `parallel`, shared by its threads. It outlives the call where a worker comes too late.
struct Job {
    tasks: usize,
    next: AtomicUsize,
    /// `CLOSED` and the number of workers inside.
    state: AtomicUsize,
    stop: AtomicBool,
    fault: Mutex<Option<Error>>,
    /// The closure, on the stack of the caller: to be touched between `enter` and `leave` only.
    f: *const (),
    run: unsafe fn(*const (), usize),
    caller: Thread,
}

// SAFETY: `f` points to a closure that is `Sync`; `enter` and `leave` keep it alive while it is used.
unsafe impl Send for Job {}
// SAFETY: as above; all else is atomic or locked.
unsafe impl Sync for Job {}

/// # Safety
/// `f` points to a live `F`.
unsafe fn run_one<F: Fn(usize) + Sync>(f: *const (), index: usize) {
    // SAFETY: the caller's promise.
    unsafe { (*f.cast::<F>())(index) }
}

impl Job {
    /// Counts a worker in, unless the call is over.
    fn enter(&self) -> bool {
        let open = |s: usize| (s & CLOSED == 0).then_some(s + 1);
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, open).is_ok()
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.caller.unpark();
        }
    }

    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes tasks until none is left or the call is stopped. `between` is asked after each task.
    fn take_tasks(&self, between: impl Fn()) {
        while !self.stop.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.tasks {
                return;
            }
            at!(Other);
            let outer = INSIDE.replace(self);
            // SAFETY: this thread is the caller itself, or a worker between `enter` and `leave`: `f` is alive.
            let result = catching(|| with_default_fp(|| unsafe { (self.run)(self.f, index) }));
            INSIDE.set(outer);
            if let Err(error) = result {
                self.fail(error);
            }
            between();
        }
    }

    /// Asks the interrupt check of this thread, if it is time.
    fn ask(&self) {
        match catching(interrupted) {
            Ok(false) => {}
            Ok(true) => self.fail(Error::Interrupted),
            Err(error) => self.fail(error),
        }
    }
}

/// Runs `f(0)`, ..., `f(tasks - 1)`, each once, on the calling thread and the workers, in any order.
///
/// With one task or one thread no pool is touched. Called from inside a task it runs on that thread alone.
///
/// # Errors
/// `Internal` if a task panicked (the others are stopped, the pool stays usable), `Interrupted` if the check of
/// [`with_interrupt`] said so, `Value` if the environment holds a bad thread count. In each case some tasks have
/// not run.
pub fn parallel<F: Fn(usize) + Sync>(tasks: usize, f: F) -> Result<()> {
    if tasks == 0 {
        return Ok(());
    }
    at!(Threads);
    let outer = INSIDE.get();
    let helpers = if outer.is_null() { num_threads()?.min(tasks) - 1 } else { 0 };
    let pool = if helpers == 0 { None } else { pool(helpers) };
    let job = Job {
        tasks,
        next: AtomicUsize::new(0),
        state: AtomicUsize::new(0),
        stop: AtomicBool::new(stopped()),
        fault: Mutex::new(None),
        f: (&raw const f).cast(),
        run: run_one::<F>,
        caller: thread::current(),
    };
    let Some(pool) = pool else {
        // Alone: the job stays on this stack. A stop of the call around it stops this one too.
        job.take_tasks(|| {
            job.ask();
            // SAFETY: `outer` is null or the job whose task this thread is inside, which that task keeps alive.
            if unsafe { outer.as_ref() }.is_some_and(|o| o.stop.load(Ordering::Relaxed)) {
                job.fail(Error::Interrupted);
            }
        });
        return finish(&job);
    };
    let job = Arc::new(job);
    let started_in = process();
    for _ in 0..helpers {
        let job = Arc::clone(&job);
        pool.spawn(move || {
            if job.enter() {
                job.take_tasks(|| {});
                job.leave();
            }
        });
    }
    job.take_tasks(|| job.ask());
    // From here on nobody enters; those inside hold `f`, so this frame must stay until they have left.
    job.state.fetch_or(CLOSED, Ordering::Relaxed);
    let mut turns = 0;
    while job.state.load(Ordering::Acquire) != CLOSED {
        if GENERATION.load(Ordering::Relaxed) != started_in.0 {
            // A signal handler forked inside `ask`, and this is the child: the workers are not here to finish.
            std::mem::forget(pool);
            return Err(Error::Internal(
                "the process was forked by a signal handler inside this call".into(),
            ));
        }
        turns += 1;
        if turns < SPINS {
            std::hint::spin_loop();
        } else {
            thread::park_timeout(CHECK_EVERY);
            job.ask();
        }
    }
    finish(&job)
}

/// The result of a job that nobody is inside any more.
fn finish(job: &Job) -> Result<()> {
    match job.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None if job.stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
        None => Ok(()),
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Interruption

/// Runs `f`; inside, on this thread, [`parallel`] and [`checkpoint`] call `check` at most every 20 ms, and when
/// it says true they stop and return `Error::Interrupted`, as do all later ones until `f` returns.
pub fn with_interrupt<R>(check: &dyn Fn() -> bool, f: impl FnOnce() -> R) -> R {
    /// Puts back the check of the call around, after a panic too.
    struct Restore(*const (), bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHECK.set(self.0);
            INTERRUPTED.set(self.1);
        }
    }
    let _restore = Restore(CHECK.replace((&raw const check).cast()), INTERRUPTED.replace(false));
    CHECKED.set(Some(Instant::now()));
    f()
}

/// For long work on one thread: whether to go on.
///
/// # Errors
/// `Interrupted`, if the check of [`with_interrupt`] says so or the [`parallel`] call around has been stopped.
pub fn checkpoint() -> Result<()> {
    // SAFETY: `INSIDE` is null or the job whose task this thread is running, which outlives the task.
    let outer = unsafe { INSIDE.get().as_ref() };
    if outer.is_some_and(|job| job.stop.load(Ordering::Relaxed)) {
        return Err(Error::Interrupted);
    }
    if interrupted() {
        if let Some(job) = outer {
            job.fail(Error::Interrupted);
        }
        return Err(Error::Interrupted);
    }
    Ok(())
}

/// Whether an interruption is known already.
fn stopped() -> bool {
    !CHECK.get().is_null() && INTERRUPTED.get()
}

/// Calls the check of this thread if there is one and it is time.
fn interrupted() -> bool {
    let check = CHECK.get();
    if check.is_null() {
        return false;
    }
    if INTERRUPTED.get() {
        return true;
    }
    let now = Instant::now();
    if CHECKED.get().is_some_and(|last| now.duration_since(last) < CHECK_EVERY) {
        return false;
    }
    // SAFETY: `CHECK` is not null only inside `with_interrupt`, on whose stack the reference lives.
    let yes = unsafe { *check.cast::<&dyn Fn() -> bool>() }();
    // The check itself may have taken long (it waits for Python's lock): count from its end.
    CHECKED.set(Some(Instant::now()));
    INTERRUPTED.set(yes);
    yes
}

#[cfg(test)]
mod tests;
