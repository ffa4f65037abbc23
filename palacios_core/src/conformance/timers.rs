// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about a thread's timer.

use super::check::{ensure, eventually, Outcome};
use super::crew::{with_crew, Crew};
use super::method::Method::{Arm, Unpark};
use crate::host::{Host, Thread};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

const MS: u64 = 1_000_000;
/// Later than any check waits for.
const FAR_NS: u64 = 3_600_000 * MS;

/// On thread 0: arms, sleeps, and says whether it woke neither before `at_ns` nor for another reason.
fn sleeps_until<H: Host, S>(crew: &Crew<H, S>, at_ns: u64) -> bool {
    let Some(thread) = crew.threads.first() else {
        return false;
    };
    thread.arm(Some(at_ns));
    thread.park();
    crew.host.now_ns() >= at_ns
}

/// The time that is armed ends a sleep, sooner or later.
pub fn comes<H: Host>(host: &H) -> Outcome {
    let run = |crew: &Crew<H, ()>, _| {
        sleeps_until(crew, crew.host.now_ns() + MS);
    };
    with_crew(host, &[None], (), run, |crew| {
        ensure(crew.finished(), Arm, "an armed time ends a park")
    })
}

/// The timer wakes its thread no earlier than asked and once; armed again, again.
pub fn fires_once<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct State {
        early: AtomicBool,
        again: AtomicBool,
        sleeping: AtomicBool,
        woken: AtomicBool,
    }
    let run = |crew: &Crew<H, State>, _| {
        let state = &crew.state;
        for ms in [1, 3, 2] {
            let on_time = sleeps_until(crew, crew.host.now_ns() + ms * MS);
            state.early.fetch_or(!on_time, SeqCst);
        }
        // Nothing is armed now: only the check's own unpark may end this sleep.
        state.sleeping.store(true, SeqCst);
        crew.threads.iter().for_each(Thread::park);
        state.again.store(!state.woken.load(SeqCst), SeqCst);
    };
    with_crew(host, &[None], State::default(), run, |crew| {
        let woke = eventually(host, || crew.state.sleeping.load(SeqCst));
        ensure(woke, Arm, "an armed time ends a park")?;
        let end_ns = host.now_ns() + 6 * MS;
        while host.now_ns() < end_ns {
            host.yield_now();
        }
        crew.state.woken.store(true, SeqCst);
        crew.unpark(0);
        ensure(crew.finished(), Unpark, "it ends a park")?;
        ensure(
            !crew.state.early.load(SeqCst),
            Arm,
            "a timer is never early",
        )?;
        ensure(!crew.state.again.load(SeqCst), Arm, "a timer fires once")
    })
}

#[derive(Default)]
struct Steps {
    early: AtomicBool,
    /// A time that was to be replaced came first, so that of its successor may be just coming when it is disarmed: that may
    /// wake the thread once more.
    came: AtomicBool,
    steps: AtomicU32,
}

pub fn rearm_and_disarm<H: Host>(host: &H) -> Outcome {
    let run = |crew: &Crew<H, Steps>, _| {
        let Some(thread) = crew.threads.first() else {
            return;
        };
        let step = |from_ns: Option<u64>, to_ns: u64| {
            forget_times(thread);
            thread.arm(from_ns);
            thread.arm(Some(to_ns));
            // The thread may have been held up for so long that the first time came.
            let came = from_ns.is_some_and(|from_ns| crew.host.now_ns() >= from_ns);
            thread.park();
            let excused = crew.state.came.swap(came, SeqCst) || came;
            let early = crew.host.now_ns() < to_ns && !excused;
            crew.state.early.fetch_or(early, SeqCst);
            crew.state.steps.fetch_add(1, SeqCst);
        };
        let now = || crew.host.now_ns();
        // Sooner to later, later to sooner, never, disarmed, and times that are past.
        step(Some(now() + 2 * MS), now() + 5 * MS);
        step(Some(now() + FAR_NS), now() + MS);
        step(Some(u64::MAX), now() + MS);
        thread.arm(Some(now() + FAR_NS));
        step(None, now() + MS);
        step(None, now());
        step(Some(now() + FAR_NS), 0);
        disarmed(crew);
        thread.arm(Some(now() + FAR_NS));
    };
    with_crew(host, &[None], Steps::default(), run, |crew| {
        ensure(
            crew.finished() && crew.state.steps.load(SeqCst) == 6,
            Arm,
            "a time armed anew replaces the one before, and one that is past is now",
        )?;
        ensure(
            !crew.state.early.load(SeqCst),
            Arm,
            "a replaced or disarmed time does not fire",
        )
    })
}

/// Nothing is armed any more, and nothing is left over of a time that came.
fn forget_times(thread: &impl Thread) {
    thread.arm(None);
    thread.unpark();
    thread.park();
}

/// On thread 0: a time that is disarmed before it came does not end the park after it.
fn disarmed<H: Host>(crew: &Crew<H, Steps>) {
    let Some(thread) = crew.threads.first() else {
        return;
    };
    forget_times(thread);
    let now = || crew.host.now_ns();
    let first_ns = now() + 2 * MS;
    thread.arm(Some(first_ns));
    thread.arm(None);
    let came = now() >= first_ns;
    while now() < first_ns + MS {
        crew.host.yield_now();
    }
    let end_ns = now() + MS;
    thread.arm(Some(end_ns));
    thread.park();
    crew.state.early.fetch_or(now() < end_ns && !came, SeqCst);
}

/// Threads wake in the order of their times. A loaded host may run them late; so those times are farther and farther apart,
/// and one good round is enough.
pub fn in_order<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct State {
        gap_ns: u64,
        start_ns: AtomicU64,
        next: AtomicU32,
        early: AtomicBool,
        disorder: AtomicBool,
    }
    let run = |crew: &Crew<H, State>, me: usize| {
        let (Some(thread), state) = (crew.threads.get(me), &crew.state) else {
            return;
        };
        // From when all are there: on a slow host it takes long to make them.
        crew.meet();
        let now_ns = crew.host.now_ns();
        let _ = (state.start_ns).compare_exchange(0, now_ns, SeqCst, SeqCst);
        let start_ns = state.start_ns.load(SeqCst) + 2 * MS;
        // Started in another order than that of their times.
        let place = (me as u32 * 3 + 2) % 4;
        let at_ns = start_ns + u64::from(place) * state.gap_ns;
        thread.arm(Some(at_ns));
        thread.park();
        state.early.fetch_or(crew.host.now_ns() < at_ns, SeqCst);
        let turn = state.next.fetch_add(1, SeqCst);
        state.disorder.fetch_or(turn != place, SeqCst);
    };
    for round in 0..8 {
        let state = State {
            gap_ns: MS << (round + 2),
            ..State::default()
        };
        let mut disorder = false;
        with_crew(host, &[None; 4], state, run, |crew| {
            ensure(crew.finished(), Arm, "every armed time comes")?;
            let early = crew.state.early.load(SeqCst);
            ensure(!early, Arm, "a timer is never early")?;
            disorder = crew.state.disorder.load(SeqCst);
            Ok(())
        })?;
        if !disorder {
            return Ok(());
        }
    }
    ensure(false, Arm, "timers fire in the order of their times")
}
