// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about kicks.

use super::crew::{online, Crew, Team};
use super::{ensure, eventually, Outcome};
use crate::host::{CpuId, Host, Thread};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

const ROUNDS: u32 = 100;

/// Kicks end guest mode, and none is lost on the way there.
///
/// `guest_mode` is called in a window, on one thread at a time: it is to run a guest that never exits by itself until a
/// host interrupt makes it, or to do what comes closest.
pub fn kicks<H: Host>(
    host: &H,
    guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static,
) -> Outcome {
    one_by_one(host, guest_mode)?;
    storm(host, guest_mode)?;
    if online(host)?.len() > 1 {
        before_entry(host, guest_mode)?;
    }
    timer(host, guest_mode)
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
    host: &H,
    guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static,
) -> Outcome {
    let team = Team::<H, _>::start(host, &[None], Work::default(), move |crew, _| {
        while !crew.stopped() {
            crew.state.turn(crew, guest_mode);
        }
    })?;
    for round in 1..=ROUNDS {
        team.state.posted.store(round, SeqCst);
        team.threads.iter().for_each(Thread::kick);
        ensure(
            eventually(host, || team.state.taken.load(SeqCst) == round),
            "a kick ends guest mode",
        )?;
    }
    Ok(())
}

fn storm<H: Host>(
    host: &H,
    guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static,
) -> Outcome {
    let team = Team::<H, _>::start(host, &[None; 3], Work::default(), move |crew, me| {
        crew.meet();
        if me > 0 {
            for round in 0..ROUNDS {
                crew.state.posted.fetch_add(1, SeqCst);
                crew.threads.first().into_iter().for_each(Thread::kick);
                (0..round % 128).for_each(|_| spin_loop());
            }
            return;
        }
        while crew.state.taken.load(SeqCst) < 2 * ROUNDS && !crew.stopped() {
            crew.state.turn(crew, guest_mode);
        }
    })?;
    ensure(team.finished(), "no kick of a storm is lost")
}

/// A kick that comes when the window is open and the guest is not entered yet.
fn before_entry<H: Host>(
    host: &H,
    guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static,
) -> Outcome {
    #[derive(Default)]
    struct Steps {
        open: AtomicU32,
        kicked: AtomicU32,
        left: AtomicU32,
    }
    let team = Team::<H, _>::start(host, &[None], Steps::default(), move |crew, _| {
        let steps = &crew.state;
        for round in 1..=ROUNDS {
            crew.host.window(|cpu| {
                steps.open.store(round, SeqCst);
                while steps.kicked.load(SeqCst) < round && !crew.stopped() {
                    spin_loop();
                }
                guest_mode(&crew.host, cpu);
            });
            steps.left.store(round, SeqCst);
        }
    })?;
    for round in 1..=ROUNDS {
        let open = eventually(host, || team.state.open.load(SeqCst) == round);
        ensure(open, "a thread gets its window")?;
        team.threads.iter().for_each(Thread::kick);
        team.state.kicked.store(round, SeqCst);
        ensure(
            eventually(host, || team.state.left.load(SeqCst) == round),
            "a kick between the window's opening and the entry is not lost",
        )?;
    }
    ensure(team.finished(), "a thread ends")
}

/// An armed time ends guest mode as well as a park.
fn timer<H: Host>(
    host: &H,
    guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static,
) -> Outcome {
    let team = Team::<H, _>::start(host, &[None], AtomicU64::new(0), move |crew, _| {
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
    })?;
    ensure(team.finished(), "an armed time ends guest mode")
}
