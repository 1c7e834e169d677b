//! Counts, panics, interruption, nesting, fork, the control word.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

use super::*;

/// Runs `f` with an override of the thread count on this thread.
fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let before = override_num_threads(Some(n)).unwrap();
    let result = f();
    override_num_threads(before).unwrap();
    result
}

#[test]
fn each_task_runs_once() {
    for threads in [1, 2, 3, 8] {
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            let ran: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            with_threads(threads, || parallel(tasks, |i| _ = ran[i].fetch_add(1, Ordering::Relaxed)))
                .unwrap();
            assert!(ran.iter().all(|r| r.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
        }
    }
}

#[test]
fn workers_take_part() {
    let names = Mutex::new(HashMap::new());
    with_threads(3, || {
        parallel(30, |_| {
            thread::sleep(Duration::from_millis(2));
            *names.lock().unwrap().entry(thread::current().id()).or_insert(0) += 1;
        })
    })
    .unwrap();
    let names = names.into_inner().unwrap();
    assert_eq!(names.values().sum::<i32>(), 30);
    assert_eq!(names.len(), 3, "the caller and two workers");
}

#[test]
fn one_task_or_one_thread_stays_on_the_caller() {
    let me = thread::current().id();
    with_threads(4, || parallel(1, |_| assert_eq!(thread::current().id(), me))).unwrap();
    with_threads(1, || parallel(50, |_| assert_eq!(thread::current().id(), me))).unwrap();
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives() {
    for threads in [1, 4] {
        let ran = AtomicUsize::new(0);
        let result = with_threads(threads, || {
            parallel(100_000, |i| {
                ran.fetch_add(1, Ordering::Relaxed);
                assert!(i != 5, "task five");
                thread::sleep(Duration::from_micros(10));
            })
        });
        let Err(Error::Internal(text)) = result else { panic!("expected an internal error, got {result:?}") };
        assert!(text.contains("task five"), "{text}");
        assert!(ran.load(Ordering::Relaxed) < 50_000, "the others were stopped");
        each_task_runs_once();
    }
}

#[test]
fn an_interrupt_stops_the_tasks() {
    for threads in [1, 3] {
        let ran = AtomicUsize::new(0);
        let asked = Cell::new(0);
        let check = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let start = Instant::now();
        let (first, later, point) = with_threads(threads, || {
            with_interrupt(&check, || {
                let first = parallel(100_000, |_| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                });
                (first, parallel(10, |_| panic!("must not run")), checkpoint())
            })
        });
        assert!(matches!(first, Err(Error::Interrupted)), "{first:?}");
        assert!(matches!(later, Err(Error::Interrupted)), "{later:?}");
        assert!(matches!(point, Err(Error::Interrupted)));
        assert_eq!(asked.get(), 3, "not asked again once it has said true");
        assert!(start.elapsed() >= 3 * CHECK_EVERY, "asked at most every 20 ms");
        assert!(ran.load(Ordering::Relaxed) < 50_000);
        // Outside the scope all is as before.
        checkpoint().unwrap();
        with_threads(threads, || parallel(10, |_| ())).unwrap();
    }
}

#[test]
fn an_interrupt_reaches_a_caller_that_waits() {
    // The caller's task is short and the worker's long, so the check is called while waiting; the long one sees
    // the stop at its checkpoint.
    let me = thread::current().id();
    let start = Instant::now();
    let result = with_threads(2, || {
        with_interrupt(&|| start.elapsed() > Duration::from_millis(100), || {
            parallel(2, |_| {
                if thread::current().id() == me {
                    // Leaves the second task to the worker.
                    thread::sleep(Duration::from_millis(50));
                    return;
                }
                while checkpoint().is_ok() {
                    thread::sleep(Duration::from_millis(1));
                    assert!(start.elapsed() < Duration::from_secs(20), "the stop never came");
                }
            })
        })
    });
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
}

#[test]
fn nested_calls_run_inline() {
    let total = AtomicUsize::new(0);
    with_threads(3, || {
        parallel(10, |_| {
            let me = thread::current().id();
            parallel(10, |_| {
                assert_eq!(thread::current().id(), me);
                total.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        })
    })
    .unwrap();
    assert_eq!(total.load(Ordering::Relaxed), 100);
}

#[test]
fn many_callers_share_the_pool() {
    thread::scope(|s| {
        for _ in 0..16 {
            s.spawn(|| {
                for _ in 0..50 {
                    let sum = AtomicUsize::new(0);
                    with_threads(4, || parallel(37, |i| _ = sum.fetch_add(i, Ordering::Relaxed))).unwrap();
                    assert_eq!(sum.load(Ordering::Relaxed), 36 * 37 / 2);
                }
            });
        }
    });
}

#[test]
fn counts_are_checked() {
    assert!(set_num_threads(0).is_err());
    assert!(set_num_threads(MAX_THREADS + 1).is_err());
    assert!(override_num_threads(Some(0)).is_err());
    assert_eq!(with_threads(7, get_num_threads), 7);
    assert_eq!(override_num_threads(None).unwrap(), None);
}

#[test]
fn the_environment_is_read_in_order() {
    let read = |pairs: &[(&str, &str)]| {
        from_environment(&|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_owned()))
    };
    assert_eq!(read(&[]).unwrap(), None);
    assert_eq!(read(&[("HEADWISE_NUM_THREADS", "3"), ("OMP_NUM_THREADS", "5")]).unwrap(), Some(3));
    assert_eq!(read(&[("HEADWISE_NUM_THREADS", ""), ("OMP_NUM_THREADS", "5")]).unwrap(), Some(5));
    assert_eq!(read(&[("OMP_NUM_THREADS", " 4 , 2"), ("RAYON_NUM_THREADS", "6")]).unwrap(), Some(4));
    assert_eq!(read(&[("RAYON_NUM_THREADS", "6")]).unwrap(), Some(6));
    assert_eq!(read(&[("RAYON_NUM_THREADS", "0")]).unwrap(), None);
    for bad in ["0", "-1", "two", "1.5", "99999999"] {
        let error = read(&[("HEADWISE_NUM_THREADS", bad)]).unwrap_err().to_string();
        assert!(error.contains("HEADWISE_NUM_THREADS") && error.contains(bad), "{error}");
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn tasks_see_the_default_control_word() {
    // Flush to zero on: a product of normal numbers that is denormal vanishes outside tasks only.
    let strange = if cfg!(target_arch = "x86_64") { 0x1f80 | 0x8040 } else { 1 << 24 };
    let product = || {
        use std::hint::black_box;
        // The outer one keeps the product on this side of the next change of the control word.
        black_box(black_box(1e-30_f32) * black_box(1e-10_f32))
    };
    for threads in [1, 3] {
        let before = fp::get();
        fp::set(strange);
        let flushed = product();
        let result = with_threads(threads, || {
            parallel(30, |_| {
                assert_eq!(fp::get() & !0x3f, fp::DEFAULT);
                assert!(product() > 0.0);
            })
        });
        let after = fp::get();
        fp::set(before);
        result.unwrap();
        assert_eq!(flushed.to_bits(), 0);
        assert_eq!(after & !0x3f, strange & !0x3f, "restored");
    }
}

/// Forks 20 times while other threads compute and start pools; each child computes on a pool of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_forked_child_computes() {
    let over = AtomicBool::new(false);
    thread::scope(|s| {
        for k in 0..2 {
            let over = &over;
            s.spawn(move || {
                let mut n = 2;
                while !over.load(Ordering::Relaxed) {
                    // Growing counts start new pools.
                    n = if n > 12 { 2 } else { n + 1 };
                    with_threads(n + k, || parallel(50, |_| thread::sleep(Duration::from_micros(20))))
                        .unwrap();
                }
            });
        }
        for round in 0..20 {
            thread::sleep(Duration::from_millis(3));
            // SAFETY: the child computes, and leaves by `_exit` without unwinding into the test harness.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: kills a child that hangs.
                unsafe { libc::alarm(20) };
                let sum = AtomicUsize::new(0);
                let result = with_threads(3, || {
                    parallel(100, |i| {
                        thread::sleep(Duration::from_micros(50));
                        sum.fetch_add(i, Ordering::Relaxed);
                    })
                });
                let good = result.is_ok() && sum.load(Ordering::Relaxed) == 4950;
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(i32::from(!good)) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if waited != pid || status != 0 {
                over.store(true, Ordering::Relaxed);
                panic!("round {round}: the child ended with {status:#x}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}
