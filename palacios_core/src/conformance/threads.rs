// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about threads.

use super::check::{broken, ensure, eventually, healthy, Failure, Outcome};
use super::crew::{online, with_crew, Crew};
use super::method::Method::{
    Arm, Join, MoveTo, NewThread, Park, Pin, Share, Start, Unpark, WaitedNs, YieldTo,
};
use crate::host::{CpuId, Host, NoSuchCpu, Thread};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const ROUNDS: u32 = 500;

/// A counter that a started body may refer to.
fn counter<H: Host>(host: &H) -> Result<H::Shared<AtomicU32>, Failure> {
    healthy(Share, host.share(AtomicU32::new(0)))
}

fn new_thread<H: Host>(host: &H) -> Result<H::Thread, Failure> {
    healthy(NewThread, host.thread(format_args!("check"), None))
}

/// What was seen of a thread, and of another one that joined it.
#[derive(Default)]
struct Joined {
    runs: AtomicU32,
    joined: AtomicBool,
    /// How often it had run by then.
    runs_at_join: AtomicU32,
}

/// Runs a thread that gives way `yields` times, and joins it: on another thread, as the join may never return.
fn run_and_join<H: Host>(host: &H, yields: u32) -> Result<H::Shared<Joined>, Failure> {
    let seen = healthy(Share, host.share(Joined::default()))?;
    let runner = healthy(Share, host.share(new_thread(host)?))?;
    let joiner = new_thread(host)?;
    let (body_host, body_seen) = (host.clone(), seen.clone());
    let started = runner.start(move || {
        (0..yields).for_each(|_| body_host.yield_now());
        body_seen.runs.fetch_add(1, SeqCst);
    });
    healthy(Start, started)?;
    let (joined_runner, joiner_seen) = (runner.clone(), seen.clone());
    let started = joiner.start(move || {
        joined_runner.join();
        let runs = joiner_seen.runs.load(SeqCst);
        joiner_seen.runs_at_join.store(runs, SeqCst);
        joiner_seen.joined.store(true, SeqCst);
    });
    let started = healthy(Start, started);
    if started.is_ok() && eventually(host, || seen.joined.load(SeqCst)) {
        joiner.join();
        return Ok(seen);
    }
    let fault = match seen.runs.load(SeqCst) {
        0 => broken(Start, "a started thread runs its body"),
        _ => broken(Join, "it returns when the body has returned"),
    };
    // Whoever still runs keeps what it refers to.
    core::mem::forget((runner, joiner));
    Err(Failure {
        threads_left: true,
        ..started.err().unwrap_or(fault)
    })
}

pub fn start<H: Host>(host: &H) -> Outcome {
    let seen = run_and_join(host, 0)?;
    ensure(
        eventually(host, || seen.runs.load(SeqCst) == 1),
        Start,
        "a started thread runs its body",
    )
}

pub fn join<H: Host>(host: &H) -> Outcome {
    for yields in 0..20 {
        let seen = run_and_join(host, yields)?;
        ensure(
            seen.runs_at_join.load(SeqCst) == 1,
            Join,
            "it returns when the body has returned, and not before",
        )?;
    }
    Ok(())
}

pub fn join_unstarted<H: Host>(host: &H) -> Outcome {
    let run = |crew: &Crew<H, ()>, _| {
        if let Ok(thread) = new_thread(&crew.host) {
            thread.join();
            thread.unpark();
            thread.kick();
            thread.join();
        }
    };
    with_crew(host, &[None], (), run, |crew| {
        ensure(
            crew.finished(),
            Join,
            "it returns at once if the thread was never started",
        )
    })
}

pub fn start_again<H: Host>(host: &H) -> Outcome {
    let runs = counter(host)?;
    let thread = new_thread(host)?;
    for round in 1..=10 {
        let body_runs = runs.clone();
        let started = thread.start(move || {
            body_runs.fetch_add(1, SeqCst);
        });
        healthy(Start, started)?;
        thread.join();
        ensure(
            runs.load(SeqCst) == round,
            Start,
            "a joined thread can be started again",
        )?;
    }
    Ok(())
}

pub fn drops_itself<H: Host>(host: &H) -> Outcome {
    let (alone, ended) = (counter(host)?, counter(host)?);
    let thread = healthy(Share, host.share(new_thread(host)?))?;
    let (body_host, own) = (host.clone(), thread.clone());
    let (body_alone, body_ended) = (alone.clone(), ended.clone());
    let started = thread.start(move || {
        while body_alone.load(SeqCst) == 0 {
            body_host.yield_now();
        }
        drop(own);
        body_host.yield_now();
        body_ended.fetch_add(1, SeqCst);
    });
    healthy(Start, started)?;
    drop(thread);
    alone.store(1, SeqCst);
    match eventually(host, || ended.load(SeqCst) == 1) {
        true => Ok(()),
        false => Err(Failure {
            threads_left: true,
            ..broken(
                Start,
                "a thread that drops its own handle goes on to its end",
            )
        }),
    }
}

pub fn late_calls<H: Host>(host: &H) -> Outcome {
    let thread = new_thread(host)?;
    healthy(Start, thread.start(|| {}))?;
    for _ in 0..ROUNDS {
        thread.unpark();
        thread.kick();
    }
    thread.join();
    thread.unpark();
    thread.kick();
    ensure(
        !thread.yield_to(),
        YieldTo,
        "nobody yields to a thread that has ended",
    )
}

pub fn early_unpark<H: Host>(host: &H) -> Outcome {
    let run = |crew: &Crew<H, AtomicBool>, me: usize| {
        while !crew.state.load(SeqCst) && !crew.stopped() {
            crew.host.yield_now();
        }
        if let Some(thread) = crew.threads.get(me) {
            thread.park();
        }
    };
    for _ in 0..50 {
        with_crew(host, &[None], AtomicBool::new(false), run, |crew| {
            crew.unpark(0);
            crew.state.store(true, SeqCst);
            ensure(
                crew.finished(),
                Park,
                "it returns at once if the thread was unparked before",
            )
        })?;
    }
    Ok(())
}

/// Several unparks before a park are one: the second park sleeps, until the third unpark.
pub fn park_sleeps<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct State {
        parks: AtomicU32,
        third: AtomicBool,
        early: AtomicBool,
    }
    let run = |crew: &Crew<H, State>, me: usize| {
        let Some(thread) = crew.threads.get(me) else {
            return;
        };
        while crew.state.parks.load(SeqCst) == 0 && !crew.stopped() {
            crew.host.yield_now();
        }
        thread.park();
        crew.state.parks.fetch_add(1, SeqCst);
        thread.park();
        let third = crew.state.third.load(SeqCst);
        crew.state.early.fetch_or(!third, SeqCst);
    };
    with_crew(host, &[None], State::default(), run, |crew| {
        crew.unpark(0);
        crew.unpark(0);
        crew.state.parks.store(1, SeqCst);
        ensure(
            eventually(host, || crew.state.parks.load(SeqCst) == 2),
            Unpark,
            "it ends a park",
        )?;
        let settle_ns = host.now_ns() + 2_000_000;
        while host.now_ns() < settle_ns {
            host.yield_now();
        }
        crew.state.third.store(true, SeqCst);
        crew.unpark(0);
        ensure(crew.finished(), Unpark, "it ends a sleep")?;
        ensure(
            !crew.state.early.load(SeqCst),
            Park,
            "it sleeps until an unpark that came after its last return",
        )
    })
}

pub fn ping_pong<H: Host>(host: &H) -> Outcome {
    let run = |crew: &Crew<H, AtomicU32>, me: usize| {
        crew.meet();
        for round in (me as u32..2 * ROUNDS).step_by(2) {
            crew.park_until(me, || crew.state.load(SeqCst) == round);
            crew.state.fetch_add(1, SeqCst);
            crew.unpark(1 - me);
        }
    };
    with_crew(host, &[None; 2], AtomicU32::new(0), run, |crew| {
        ensure(
            crew.finished(),
            Unpark,
            "no wake-up between two threads is lost",
        )
    })
}

/// Bursts of wake-ups from three threads at a time to a fourth. Only the last of a burst shows a loss, so there are many.
pub fn storm<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct Work {
        posted: AtomicU32,
        taken: AtomicU32,
        /// It has found nothing, and sleeps unless it is woken.
        sleeps: AtomicBool,
    }
    const BURSTS: u32 = 60;
    const POSTS: u32 = 5;
    let run = |crew: &Crew<H, Work>, me| {
        let work = &crew.state;
        for burst in 1..=BURSTS {
            // Those of all posters, and one that surely finds it asleep.
            let end = (3 * POSTS + 1) * burst;
            let taken = || work.taken.load(SeqCst);
            if me == 0 {
                while taken() < end && !crew.stopped() {
                    crew.park_until(me, || {
                        let nothing = work.posted.load(SeqCst) == taken();
                        work.sleeps.store(nothing, SeqCst);
                        !nothing
                    });
                    work.taken.store(work.posted.load(SeqCst), SeqCst);
                }
                continue;
            }
            let post = || {
                work.posted.fetch_add(1, SeqCst);
                crew.unpark(0);
            };
            (0..POSTS).for_each(|_| post());
            if me == 1 {
                let all_taken = || taken() == end - 1 && work.sleeps.load(SeqCst);
                while !all_taken() && !crew.stopped() {
                    crew.host.yield_now();
                }
                post();
            }
            while taken() < end && !crew.stopped() {
                crew.host.yield_now();
            }
        }
    };
    with_crew(host, &[None; 4], Work::default(), run, |crew| {
        ensure(crew.finished(), Unpark, "no wake-up of a storm is lost")
    })
}

/// A thread is moved to each CPU: before it starts, while it runs, and while it sleeps.
pub fn moves<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct State {
        /// The CPU of the last window, plus one.
        at: AtomicU32,
        sleep: AtomicBool,
    }
    let run = |crew: &Crew<H, State>, me: usize| {
        while !crew.stopped() {
            let at = crew.host.window(|cpu| cpu.0 + 1);
            crew.state.at.store(at, SeqCst);
            crew.park_until(me, || !crew.state.sleep.load(SeqCst));
        }
    };
    let cpus = online(host)?;
    let first = cpus.first().copied();
    with_crew(host, &[first], State::default(), run, |crew| {
        for thread in &crew.threads {
            for (i, cpu) in cpus.iter().cycle().take(2 * cpus.len() + 1).enumerate() {
                crew.state.sleep.store(i % 2 == 1, SeqCst);
                let moved = thread.move_to(Some(*cpu)).is_ok();
                ensure(moved, MoveTo, "a thread can be moved")?;
                crew.state.sleep.store(false, SeqCst);
                thread.unpark();
                ensure(
                    eventually(host, || crew.state.at.load(SeqCst) == cpu.0 + 1),
                    MoveTo,
                    "a moved thread runs on its new CPU",
                )?;
                ensure(thread.pin() == Some(*cpu), Pin, "a moved thread is pinned")?;
            }
            moves_nowhere(thread)?;
        }
        Ok(())
    })
}

/// Moves that are refused, and the end of being pinned.
fn moves_nowhere(thread: &impl Thread) -> Outcome {
    let nowhere = CpuId(u32::MAX);
    let pin = thread.pin();
    ensure(
        thread.move_to(Some(nowhere)) == Err(NoSuchCpu(nowhere)),
        MoveTo,
        "a move to no CPU is an error",
    )?;
    ensure(
        thread.pin() == pin,
        MoveTo,
        "a move to no CPU changes nothing",
    )?;
    let let_go = thread.move_to(None).is_ok();
    ensure(let_go, MoveTo, "a thread can be let go")?;
    ensure(thread.pin().is_none(), Pin, "a thread let go is not pinned")
}

/// A host that counts how long a thread waits for a CPU counts that, and nothing else.
pub fn waiting<H: Host>(host: &H) -> Outcome {
    if new_thread(host)?.waited_ns().is_none() {
        return Ok(());
    }
    let first = online(host)?.first().copied();
    waiting_counts(host, first)?;
    sleep_does_not_count(host, first)
}

fn waited_ns(thread: &impl Thread) -> u64 {
    thread.waited_ns().unwrap_or(0)
}

/// Two threads that want one CPU each wait while the other has it.
fn waiting_counts<H: Host>(host: &H, cpu: Option<CpuId>) -> Outcome {
    const ENOUGH_NS: u64 = 2_000_000;
    let run = |crew: &Crew<H, AtomicU32>, me: usize| {
        crew.meet();
        let enough = || (crew.threads.get(me)).is_none_or(|own| waited_ns(own) > ENOUGH_NS);
        while !enough() && !crew.stopped() {
            crew.host.window(|_| (0..2_000).for_each(|_| spin_loop()));
        }
        // The other may have nobody to wait for any more: until both have.
        crew.state.fetch_add(1, SeqCst);
        while crew.state.load(SeqCst) < 2 && !crew.stopped() {
            if let Some(other) = crew.threads.get(1 - me) {
                other.yield_to();
            }
            crew.host.window(|_| (0..2_000).for_each(|_| spin_loop()));
        }
    };
    let begin_ns = host.now_ns();
    with_crew(host, &[cpu; 2], AtomicU32::new(0), run, |crew| {
        ensure(
            crew.finished(),
            WaitedNs,
            "it counts while another thread has the CPU",
        )?;
        let passed_ns = host.now_ns() - begin_ns;
        ensure(
            crew.threads.iter().all(|own| waited_ns(own) <= passed_ns),
            WaitedNs,
            "nobody waits longer than time passes",
        )
    })
}

fn sleep_does_not_count<H: Host>(host: &H, cpu: Option<CpuId>) -> Outcome {
    const SLEEP_NS: u64 = 20_000_000;
    let run = |crew: &Crew<H, AtomicBool>, _| {
        let Some(thread) = crew.threads.first() else {
            return;
        };
        // Another thread may have the CPU when it wakes; so the sleeps are longer and longer, and one good one is enough.
        for sleep_ns in (0..8).map(|round| SLEEP_NS << round) {
            let before_ns = waited_ns(thread);
            thread.arm(Some(crew.host.now_ns() + sleep_ns));
            thread.park();
            if waited_ns(thread) - before_ns < sleep_ns / 2 {
                crew.state.store(true, SeqCst);
                break;
            }
        }
    };
    with_crew(host, &[cpu], AtomicBool::new(false), run, |crew| {
        ensure(crew.finished(), Arm, "an armed time ends a park")?;
        ensure(
            crew.state.load(SeqCst),
            WaitedNs,
            "it does not count a sleep",
        )
    })
}
