// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about CPUs and windows.

use super::check::{ensure, Outcome};
use super::crew::{calls, online, pins, with_crew, Crew};
use super::method::Method::{CpuLimit, CurrentCpu, OnEachCpu, Window};
use crate::alloc_ext::TryPush;
use crate::host::{CpuId, Host};
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const ROUNDS: u32 = 200;
/// How long windows are opened side by side.
const ALONE_NS: u64 = 10_000_000;

pub fn each_once<H: Host>(host: &H) -> Outcome {
    let calls = calls(host, |_| {})?;
    ensure(
        calls.len() == host.cpu_limit() as usize,
        CpuLimit,
        "CPU ids are below it",
    )?;
    ensure(
        calls.iter().all(|n| *n <= 1),
        OnEachCpu,
        "no CPU is called twice",
    )?;
    ensure(
        calls.contains(&1),
        OnEachCpu,
        "at least one CPU is called, as it is online",
    )
}

pub fn each_there<H: Host>(host: &H) -> Outcome {
    let wrong_cpu = AtomicBool::new(false);
    calls(host, |cpu| {
        wrong_cpu.fetch_or(host.current_cpu() != cpu, SeqCst);
    })?;
    ensure(
        !wrong_cpu.load(SeqCst),
        CurrentCpu,
        "on_each_cpu calls the function on the CPU that it names, and current_cpu says so",
    )
}

pub fn window_value<H: Host>(host: &H) -> Outcome {
    let local = [1u64, 2, 3];
    let sum = host.window(|_| local.iter().sum::<u64>());
    ensure(sum == 6, Window, "it returns what the closure returned")
}

pub fn window_cpu<H: Host>(host: &H) -> Outcome {
    let wrong = AtomicBool::new(false);
    let run = |crew: &Crew<H, AtomicBool>, me| {
        let pin = online(&crew.host)
            .ok()
            .and_then(|cpus| cpus.get(me).copied());
        for _ in 0..ROUNDS {
            let steady = crew
                .host
                .window(|cpu| (0..20).all(|_| crew.host.current_cpu() == cpu) && Some(cpu) == pin);
            crew.state.fetch_or(!steady, SeqCst);
        }
    };
    with_crew(host, &pins(host, 1)?, wrong, run, |crew| {
        ensure(crew.finished(), Window, "each thread gets its windows")?;
        ensure(
            !crew.state.load(SeqCst),
            Window,
            "a window stays on its CPU, and on that of a pinned thread",
        )
    })
}

/// Two threads on each CPU open windows, and the last thread makes cross-calls meanwhile: never two at once on one CPU.
pub fn window_alone<H: Host>(host: &H) -> Outcome {
    struct Alone {
        inside: Vec<AtomicU32>,
        broken: AtomicBool,
    }
    impl Alone {
        fn note(&self, alone: bool) {
            self.broken.fetch_or(!alone, SeqCst);
        }
    }
    let mut inside = Vec::new();
    for _ in 0..host.cpu_limit() {
        inside.try_push(AtomicU32::new(0))?;
    }
    let state = Alone {
        inside,
        broken: AtomicBool::new(false),
    };
    let mut pins = pins(host, 2)?;
    pins.try_push(None)?;
    let run = |crew: &Crew<H, Alone>, me| {
        let (host, state) = (&crew.host, &crew.state);
        let inside = |cpu: CpuId| state.inside.get(cpu.0 as usize);
        crew.meet();
        let end_ns = host.now_ns() + ALONE_NS;
        while host.now_ns() < end_ns && !crew.stopped() {
            if crew.is_last(me) {
                host.yield_now();
                host.on_each_cpu(&|cpu| {
                    state.note(inside(cpu).is_some_and(|inside| inside.load(SeqCst) == 0));
                });
                continue;
            }
            host.window(|cpu| {
                let Some(inside) = inside(cpu) else {
                    return state.note(false);
                };
                let before = inside.fetch_add(1, SeqCst);
                (0..200).for_each(|_| spin_loop());
                let after = inside.fetch_sub(1, SeqCst);
                state.note(before == 0 && after == 1);
            });
        }
    };
    with_crew(host, &pins, state, run, |crew| {
        ensure(
            crew.finished(),
            Window,
            "threads that share a CPU all get windows",
        )?;
        ensure(
            !crew.state.broken.load(SeqCst),
            Window,
            "a window is alone on its CPU, with interrupts off",
        )
    })
}
