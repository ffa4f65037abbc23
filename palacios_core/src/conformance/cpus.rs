// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about CPUs and windows.

use super::crew::{calls, online, pins, Team};
use super::{ensure, Failure, Outcome};
use crate::alloc_ext::TryPush;
use crate::host::Host;
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const ROUNDS: u32 = 200;
/// How long windows are opened side by side.
const ALONE_NS: u64 = 10_000_000;

pub fn each_once<H: Host>(host: &H) -> Outcome {
    let wrong_cpu = AtomicBool::new(false);
    let first = calls(host, |cpu| {
        wrong_cpu.fetch_or(host.current_cpu() != cpu, SeqCst);
    })?;
    ensure(
        !wrong_cpu.load(SeqCst),
        "on_each_cpu: current_cpu is the argument",
    )?;
    ensure(
        first.len() == host.cpu_limit() as usize,
        "CPU ids are below cpu_limit",
    )?;
    ensure(
        first.iter().all(|n| *n <= 1),
        "on_each_cpu: no CPU is called twice",
    )?;
    ensure(
        first.contains(&1),
        "on_each_cpu: at least one CPU is online",
    )
}

pub fn window_value<H: Host>(host: &H) -> Outcome {
    let local = [1u64, 2, 3];
    let sum = host.window(|_| local.iter().sum::<u64>());
    ensure(sum == 6, "window returns what the closure returned")
}

pub fn window_cpu<H: Host>(host: &H) -> Outcome {
    let wrong = AtomicBool::new(false);
    let team = Team::<H, _>::start(host, &pins(host, 1)?, wrong, |crew, me| {
        let pin = online(&crew.host)
            .ok()
            .and_then(|cpus| cpus.get(me).copied());
        for _ in 0..ROUNDS {
            let steady = crew
                .host
                .window(|cpu| (0..20).all(|_| crew.host.current_cpu() == cpu) && Some(cpu) == pin);
            crew.state.fetch_or(!steady, SeqCst);
        }
    })?;
    ensure(team.finished(), "threads run")?;
    ensure(
        !team.state.load(SeqCst),
        "a window stays on its CPU, and on that of a pinned thread",
    )
}

/// Two threads on each CPU open windows, and cross-calls run meanwhile: never two at once on one CPU.
pub fn window_alone<H: Host>(host: &H) -> Outcome {
    struct Alone {
        inside: Vec<AtomicU32>,
        broken: AtomicBool,
    }
    let mut inside = Vec::new();
    for _ in 0..host.cpu_limit() {
        inside.try_push(AtomicU32::new(0))?;
    }
    let state = Alone {
        inside,
        broken: AtomicBool::new(false),
    };
    let team = Team::<H, _>::start(host, &pins(host, 2)?, state, |crew, _| {
        crew.meet();
        let end_ns = crew.host.now_ns() + ALONE_NS;
        while crew.host.now_ns() < end_ns && !crew.stopped() {
            crew.host.window(|cpu| {
                if let Some(inside) = crew.state.inside.get(cpu.0 as usize) {
                    let before = inside.fetch_add(1, SeqCst);
                    (0..200).for_each(|_| spin_loop());
                    let after = inside.fetch_sub(1, SeqCst);
                    let alone = before == 0 && after == 1;
                    crew.state.broken.fetch_or(!alone, SeqCst);
                }
            });
        }
    })?;
    for _ in 0..ROUNDS / 4 {
        host.yield_now();
        host.on_each_cpu(&|cpu| {
            let inside = team.state.inside.get(cpu.0 as usize);
            let alone = inside.is_some_and(|n| n.load(SeqCst) == 0);
            team.state.broken.fetch_or(!alone, SeqCst);
        });
    }
    ensure(team.finished(), "threads that share a CPU all run")?;
    match team.state.broken.load(SeqCst) {
        true => Err(Failure("a window is alone on its CPU, with interrupts off")),
        false => Ok(()),
    }
}
