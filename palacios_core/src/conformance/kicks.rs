// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about kicks: they end guest mode, and none is lost on the way there.

use super::check::{ensure, eventually, Check, Outcome};
use super::crew::{online, with_crew, Crew};
use super::method::Method::{Arm, Kick, NowNs, OnEachCpu, Start, Window};
use crate::host::{CpuId, Host, Thread};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

const ROUNDS: u32 = 100;

/// A host, and what stands for its guest mode.
pub struct Subject<'a, H, G> {
    /// The host.
    pub host: &'a H,
    /// Is called in a window, on one thread at a time: runs a guest that never exits by itself until a host interrupt makes
    /// it, or does what comes closest.
    pub guest_mode: G,
}

/// All checks of kicks. What a check needs comes before it.
pub fn checks<'a, H: Host, G: Fn(&H, CpuId) + Copy + Send + Sync + 'static>(
) -> [Check<Subject<'a, H, G>>; 4] {
    [
        Check::new("kicks: one ends guest mode", one_by_one)
            .needs(&[NowNs, Start])
            .proves(Kick),
        Check::new("kicks: a storm", storm).needs(&[NowNs, Start, Kick]),
        Check::new("kicks: before the entry", before_entry).needs(&[NowNs, Start, OnEachCpu, Kick]),
        Check::new("kicks: an armed time ends guest mode", timer).needs(&[NowNs, Start, Arm, Kick]),
    ]
}

#[derive(Default)]
struct Work {
    posted: AtomicU32,
    taken: AtomicU32,
}

impl Work {
    /// On the thread that is kicked, once: enters guest mode if there is no work, as a vCPU does.
    fn turn<H: Host>(&self, crew: &Crew<H, Self>, guest_mode: impl Fn(&H, CpuId)) {
        crew.host.window(|cpu| {
            if self.posted.load(SeqCst) == self.taken.load(SeqCst) && !crew.stopped() {
                guest_mode(&crew.host, cpu);
            }
        });
        self.taken.store(self.posted.load(SeqCst), SeqCst);
    }
}

fn one_by_one<H: Host>(
    subject: &Subject<'_, H, impl Fn(&H, CpuId) + Copy + Send + Sync + 'static>,
) -> Outcome {
    let guest_mode = subject.guest_mode;
    let run = move |crew: &Crew<H, Work>, _| {
        while !crew.stopped() {
            crew.state.turn(crew, guest_mode);
        }
    };
    with_crew(subject.host, &[None], Work::default(), run, |crew| {
        for round in 1..=ROUNDS {
            crew.state.posted.store(round, SeqCst);
            crew.threads.iter().for_each(Thread::kick);
            let taken = eventually(&crew.host, || crew.state.taken.load(SeqCst) == round);
            ensure(taken, Kick, "a kick ends guest mode")?;
        }
        Ok(())
    })
}

/// Kicks from two threads at a time to a third, over and over. If both are lost, or the later one, nothing ends guest mode.
fn storm<H: Host>(
    subject: &Subject<'_, H, impl Fn(&H, CpuId) + Copy + Send + Sync + 'static>,
) -> Outcome {
    const KICKERS: u32 = 2;
    let guest_mode = subject.guest_mode;
    let run = move |crew: &Crew<H, Work>, me| {
        let work = &crew.state;
        for round in 1..=ROUNDS {
            let end = KICKERS * round;
            let goes_on = || work.taken.load(SeqCst) < end && !crew.stopped();
            if me == 0 {
                while goes_on() {
                    work.turn(crew, guest_mode);
                }
                continue;
            }
            // Before guest mode is entered, as it is, and after.
            (0..50 * round).for_each(|_| spin_loop());
            work.posted.fetch_add(1, SeqCst);
            crew.threads.first().into_iter().for_each(Thread::kick);
            while goes_on() {
                crew.host.yield_now();
            }
        }
    };
    with_crew(subject.host, &[None; 3], Work::default(), run, |crew| {
        ensure(crew.finished(), Kick, "no kick of a storm is lost")
    })
}

/// A kick that comes when the window is open and the guest is not entered yet. It takes a second CPU to send it.
fn before_entry<H: Host>(
    subject: &Subject<'_, H, impl Fn(&H, CpuId) + Copy + Send + Sync + 'static>,
) -> Outcome {
    const ROUNDS: u32 = 20;
    #[derive(Default)]
    struct Steps {
        open: AtomicU32,
        kicked: AtomicU32,
        left: AtomicU32,
    }
    if online(subject.host)?.len() < 2 {
        return Ok(());
    }
    let guest_mode = subject.guest_mode;
    let run = move |crew: &Crew<H, Steps>, _| {
        let steps = &crew.state;
        for round in (1..=ROUNDS).take_while(|_| !crew.stopped()) {
            crew.host.window(|cpu| {
                steps.open.store(round, SeqCst);
                while steps.kicked.load(SeqCst) < round && !crew.stopped() {
                    spin_loop();
                }
                guest_mode(&crew.host, cpu);
            });
            steps.left.store(round, SeqCst);
        }
    };
    with_crew(subject.host, &[None], Steps::default(), run, |crew| {
        let (host, steps) = (&crew.host, &crew.state);
        for round in 1..=ROUNDS {
            let open = eventually(host, || steps.open.load(SeqCst) == round);
            ensure(open, Window, "a thread gets its window")?;
            crew.threads.iter().for_each(Thread::kick);
            steps.kicked.store(round, SeqCst);
            ensure(
                eventually(host, || steps.left.load(SeqCst) == round),
                Kick,
                "a kick between the window's opening and the entry is not lost",
            )?;
        }
        ensure(crew.finished(), Start, "a thread ends")
    })
}

/// An armed time ends guest mode as well as a park.
fn timer<H: Host>(
    subject: &Subject<'_, H, impl Fn(&H, CpuId) + Copy + Send + Sync + 'static>,
) -> Outcome {
    let guest_mode = subject.guest_mode;
    let run = move |crew: &Crew<H, AtomicU64>, _| {
        let Some(thread) = crew.threads.first() else {
            return;
        };
        for _ in 0..5 {
            let at_ns = crew.host.now_ns() + 1_000_000;
            thread.arm(Some(at_ns));
            while crew.host.now_ns() < at_ns && !crew.stopped() {
                crew.host.window(|cpu| {
                    if crew.host.now_ns() < at_ns {
                        guest_mode(&crew.host, cpu);
                    }
                });
            }
            crew.state.fetch_add(1, SeqCst);
        }
    };
    with_crew(subject.host, &[None], AtomicU64::new(0), run, |crew| {
        ensure(crew.finished(), Arm, "an armed time ends guest mode")
    })
}
