// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test host keeps the host contract, and the checks of the contract find hosts that do not.

use palacios_core::conformance::{self, Failure, Outcome};
use palacios_core::host::CpuId;
use palacios_testing::host::{Broken, LargePages};
use palacios_testing::{Config, TestHost};

fn contract(host: &TestHost) -> Outcome {
    conformance::run(host, |_, _| ())
}

fn ram(host: &TestHost) -> Outcome {
    for large in [LargePages::Always, LargePages::Sometimes, LargePages::Never] {
        conformance::guest_ram(host, || Some(host.ram(large)))?;
    }
    Ok(())
}

fn kicks(host: &TestHost) -> Outcome {
    conformance::kicks(host, guest_mode)
}

fn guest_mode(host: &TestHost, _: CpuId) {
    while !host.interrupted() {
        std::hint::spin_loop();
    }
}

#[test]
fn the_test_host_conforms() {
    for cpus in [1, 2, 5] {
        let config = Config {
            cpus,
            ..Config::default()
        };
        for check in [contract, ram, kicks] {
            assert_eq!(TestHost::run(config.clone(), check), Ok(()));
        }
    }
}

/// A host that breaks its promise is found, by the check that is meant for it. On a loaded machine a broken timer may look
/// good for once, so there are several attempts.
#[track_caller]
fn finds(broken: Broken, hurry: u64, promise: &str, check: impl Fn(&TestHost) -> Outcome) {
    let config = Config {
        broken: Some(broken),
        hurry,
        ..Config::default()
    };
    let mut outcomes = (0..30).map(|_| TestHost::run(config.clone(), &check));
    let finds = |outcome| matches!(outcome, Err(Failure(found)) if found.contains(promise));
    assert!(outcomes.any(finds), "{broken:?} was not found");
}

#[test]
fn broken_hosts_do_not_conform() {
    for (broken, hurry, name, promise) in CONTRACT {
        finds(broken, hurry, promise, |host| {
            let checks = conformance::checks::<TestHost>();
            let check = checks.iter().find(|check| check.name == name);
            (check.expect(name).run)(host)
        });
    }
    finds(Broken::RamNotZeroed, 1, "zeroed at first touch", ram);
    finds(Broken::RamForgets, 1, "keeps its contents", ram);
    finds(Broken::RamRemembers, 1, "ended guest", ram);
    finds(Broken::KickOftenLost, IMPATIENT, "ends guest mode", kicks);
}

/// Time is in a hurry where a check has to lose its patience.
const IMPATIENT: u64 = 40;

#[rustfmt::skip]
const CONTRACT: [(Broken, u64, &str, &str); 23] = [
    (Broken::PagesNotZeroed, 1, "pages: aligned, zeroed, contiguous", "pages are zeroed"),
    (Broken::PagesNotAligned, 1, "pages: aligned, zeroed, contiguous", "aligned as asked"),
    (Broken::PagesAbove4g, 1, "pages: below 4 GiB", "below 4 GiB"),
    (Broken::PagesNotFreed, 1, "pages: freed ones come back", "freed pages"),
    (Broken::CpuCalledTwice, 1, "cpus: each called once, there", "called twice"),
    (Broken::CurrentCpuWrong, 1, "cpus: each called once, there", "current_cpu"),
    (Broken::PinIgnored, 1, "window: one CPU, and the pinned one", "pinned thread"),
    (Broken::WindowShared, 1, "window: alone on its CPU", "alone on its CPU"),
    (Broken::ClockOftenGoesBack, 1, "time: monotonic across CPUs", "never goes back"),
    (Broken::ClockStandsStill, 1, "time: passes", "now_ns goes on"),
    (Broken::JoinTooEarly, 1, "threads: start, run once, join", "join returns when"),
    (Broken::ParkReturns, 1, "threads: park sleeps", "park sleeps until"),
    (Broken::UnparkLostBeforePark, IMPATIENT, "threads: early wake-up not lost", "not lost"),
    (Broken::UnparkOftenLost, IMPATIENT, "threads: a storm of wake-ups", "storm is lost"),
    (Broken::MoveIgnored, IMPATIENT, "threads: move", "new CPU"),
    (Broken::MoveToNowhere, 1, "threads: move", "no CPU"),
    (Broken::TimerEarly, 1, "timers: not early, once, again", "never early"),
    (Broken::TimerTwice, 1, "timers: not early, once, again", "fires once"),
    (Broken::TimerNotReplaced, 1, "timers: re-arm, disarm, past", "replaced or disarmed"),
    (Broken::WaitNotCounted, IMPATIENT, "threads: waiting for a CPU counts", "wait for it"),
    (Broken::YieldsToNobody, 1, "threads: late calls are harmless", "nobody yields to"),
    (Broken::SleepIsWaiting, 1, "threads: waiting for a CPU counts", "is not waiting"),
    (Broken::TimersOutOfOrder, 1, "timers: in order", "in the order"),
];
