// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about threads.

use super::crew::{online, Team};
use super::{ensure, eventually, Outcome};
use crate::host::{CpuId, Host, NoSuchCpu, Thread};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const ROUNDS: u32 = 500;

/// A counter that a started body may refer to.
fn counter<H: Host>(host: &H) -> Result<H::Shared<AtomicU32>, super::Failure> {
    Ok(host.share(AtomicU32::new(0))?)
}

pub fn start_and_join<H: Host>(host: &H) -> Outcome {
    let runs = counter(host)?;
    for round in 1..=20 {
        let thread = host.thread(format_args!("check"), None)?;
        let (body_runs, body_host) = (runs.clone(), host.clone());
        ensure(runs.load(SeqCst) == round - 1, "a thread waits for start")?;
        thread.start(move || {
            (0..round).for_each(|_| body_host.yield_now());
            body_runs.fetch_add(1, SeqCst);
        })?;
        thread.join();
        ensure(
            runs.load(SeqCst) == round,
            "join returns when the body has returned, which ran once",
        )?;
        thread.join();
    }
    Ok(())
}

pub fn join_unstarted<H: Host>(host: &H) -> Outcome {
    let thread = host.thread(format_args!("check"), None)?;
    thread.join();
    thread.unpark();
    thread.kick();
    thread.join();
    Ok(())
}

pub fn start_again<H: Host>(host: &H) -> Outcome {
    let runs = counter(host)?;
    let thread = host.thread(format_args!("check"), None)?;
    for round in 1..=10 {
        let body_runs = runs.clone();
        thread.start(move || {
            body_runs.fetch_add(1, SeqCst);
        })?;
        thread.join();
        ensure(
            runs.load(SeqCst) == round,
            "a joined thread can be started again",
        )?;
    }
    Ok(())
}

pub fn drops_itself<H: Host>(host: &H) -> Outcome {
    let (alone, ended) = (counter(host)?, counter(host)?);
    let thread = host.share(host.thread(format_args!("check"), None)?)?;
    let (body_host, own) = (host.clone(), thread.clone());
    let (body_alone, body_ended) = (alone.clone(), ended.clone());
    thread.start(move || {
        while body_alone.load(SeqCst) == 0 {
            body_host.yield_now();
        }
        drop(own);
        body_host.yield_now();
        body_ended.fetch_add(1, SeqCst);
    })?;
    drop(thread);
    alone.store(1, SeqCst);
    ensure(
        eventually(host, || ended.load(SeqCst) == 1),
        "a thread that drops its own handle goes on to its end",
    )
}

pub fn early_unpark<H: Host>(host: &H) -> Outcome {
    for _ in 0..50 {
        let team = Team::<H, _>::start(host, &[None], AtomicBool::new(false), |crew, me| {
            while !crew.state.load(SeqCst) {
                crew.host.yield_now();
            }
            if let Some(thread) = crew.threads.get(me) {
                thread.park();
            }
        })?;
        team.unpark(0);
        team.state.store(true, SeqCst);
        ensure(team.finished(), "an unpark before the park is not lost")?;
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
    let team = Team::<H, _>::start(host, &[None], State::default(), |crew, me| {
        let Some(thread) = crew.threads.get(me) else {
            return;
        };
        while crew.state.parks.load(SeqCst) == 0 {
            crew.host.yield_now();
        }
        thread.park();
        crew.state.parks.fetch_add(1, SeqCst);
        thread.park();
        crew.state
            .early
            .fetch_or(!crew.state.third.load(SeqCst), SeqCst);
    })?;
    team.unpark(0);
    team.unpark(0);
    team.state.parks.store(1, SeqCst);
    ensure(
        eventually(host, || team.state.parks.load(SeqCst) == 2),
        "an unpark ends a park",
    )?;
    let settle_ns = host.now_ns() + 2_000_000;
    while host.now_ns() < settle_ns {
        host.yield_now();
    }
    team.state.third.store(true, SeqCst);
    team.unpark(0);
    ensure(team.finished(), "an unpark ends a sleep")?;
    ensure(
        !team.state.early.load(SeqCst),
        "park sleeps until an unpark that came after the last return",
    )
}

pub fn ping_pong<H: Host>(host: &H) -> Outcome {
    let team = Team::<H, _>::start(host, &[None; 2], AtomicU32::new(0), |crew, me| {
        crew.meet();
        for round in (me as u32..2 * ROUNDS).step_by(2) {
            crew.park_until(me, || crew.state.load(SeqCst) == round);
            crew.state.fetch_add(1, SeqCst);
            crew.unpark(1 - me);
        }
    })?;
    ensure(team.finished(), "no wake-up between two threads is lost")
}

/// Bursts of wake-ups from three threads at a time to a fourth. Only the last of a burst shows a loss, so there are many.
pub fn storm<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct Work {
        posted: AtomicU32,
        taken: AtomicU32,
    }
    const BURSTS: u32 = 60;
    const POSTS: u32 = 5;
    let team = Team::<H, _>::start(host, &[None; 4], Work::default(), |crew, me| {
        let work = &crew.state;
        for burst in 1..=BURSTS {
            let end = 3 * POSTS * burst;
            let taken = || work.taken.load(SeqCst);
            if me == 0 {
                while taken() < end && !crew.stopped() {
                    crew.park_until(me, || work.posted.load(SeqCst) != taken());
                    work.taken.store(work.posted.load(SeqCst), SeqCst);
                }
                continue;
            }
            for _ in 0..POSTS {
                work.posted.fetch_add(1, SeqCst);
                crew.unpark(0);
            }
            while taken() < end && !crew.stopped() {
                crew.host.yield_now();
            }
        }
    })?;
    ensure(team.finished(), "no wake-up of a storm is lost")
}

pub fn late_calls<H: Host>(host: &H) -> Outcome {
    let thread = host.thread(format_args!("check"), None)?;
    thread.start(|| {})?;
    for _ in 0..ROUNDS {
        thread.unpark();
        thread.kick();
    }
    thread.join();
    thread.unpark();
    thread.kick();
    ensure(!thread.yield_to(), "nobody yields to a thread that sleeps")
}

/// A thread is moved to each CPU: before it starts, while it runs, and while it sleeps.
pub fn moves<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct State {
        /// The CPU of the last window, plus one.
        at: AtomicU32,
        sleep: AtomicBool,
    }
    let seen = |state: &State, cpu: CpuId| state.at.load(SeqCst) == cpu.0 + 1;
    let cpus = online(host)?;
    let first = cpus.first().copied();
    let team = Team::<H, _>::start(host, &[first], State::default(), |crew, me| {
        while !crew.stopped() {
            let at = crew.host.window(|cpu| cpu.0 + 1);
            crew.state.at.store(at, SeqCst);
            crew.park_until(me, || !crew.state.sleep.load(SeqCst));
        }
    })?;
    let thread = team.threads.first().ok_or(super::Failure("a thread"))?;
    for (i, cpu) in cpus.iter().cycle().take(2 * cpus.len() + 1).enumerate() {
        team.state.sleep.store(i % 2 == 1, SeqCst);
        ensure(thread.move_to(Some(*cpu)).is_ok(), "a thread can be moved")?;
        team.state.sleep.store(false, SeqCst);
        thread.unpark();
        ensure(
            eventually(host, || seen(&team.state, *cpu)),
            "a moved thread runs on its new CPU",
        )?;
        ensure(thread.pin() == Some(*cpu), "a moved thread is pinned")?;
    }
    let nowhere = CpuId(u32::MAX);
    let pin = thread.pin();
    ensure(
        thread.move_to(Some(nowhere)) == Err(NoSuchCpu(nowhere)),
        "a move to no CPU is an error",
    )?;
    ensure(thread.pin() == pin, "a move to no CPU changes nothing")?;
    ensure(thread.move_to(None).is_ok(), "a thread can be let go")?;
    ensure(thread.pin().is_none(), "a thread let go is not pinned")
}

/// Two threads that want one CPU each wait while the other has it; a thread that sleeps does not.
pub fn waiting<H: Host>(host: &H) -> Outcome {
    const ENOUGH_NS: u64 = 2_000_000;
    const SLEEP_NS: u64 = 20_000_000;
    let first = online(host)?.first().copied();
    let begin_ns = host.now_ns();
    let team = Team::<H, _>::start(host, &[first; 2], AtomicU32::new(0), |crew, me| {
        crew.meet();
        let enough = || {
            crew.threads
                .get(me)
                .is_none_or(|t| t.waited_ns() > ENOUGH_NS)
        };
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
    })?;
    ensure(team.finished(), "threads that want one CPU wait for it")?;
    let passed_ns = host.now_ns() - begin_ns;
    let most = |thread: &H::Thread| thread.waited_ns() <= passed_ns;
    ensure(
        team.threads.iter().all(most),
        "nobody waits longer than time passes",
    )?;
    let slept = AtomicU32::new(0);
    let team = Team::<H, _>::start(host, &[first], slept, |crew, _| {
        let Some(thread) = crew.threads.first() else {
            return;
        };
        // The best of several: another thread may come first.
        for _ in 0..20 {
            let (begin_ns, waited_ns) = (crew.host.now_ns(), thread.waited_ns());
            thread.arm(Some(begin_ns + SLEEP_NS));
            thread.park();
            if thread.waited_ns() - waited_ns < SLEEP_NS / 2 {
                crew.state.store(1, SeqCst);
                break;
            }
        }
    })?;
    ensure(team.finished(), "threads run")?;
    ensure(team.state.load(SeqCst) == 1, "a sleep is not waiting")
}
