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

/// The check finds hosts that break a promise, and names it.
#[track_caller]
fn finds(check: fn(&TestHost) -> Outcome, broken: &[(Broken, u64, &str)]) {
    for &(broken, hurry, promise) in broken {
        let config = Config {
            broken: Some(broken),
            hurry,
            ..Config::default()
        };
        match TestHost::run(config, check) {
            Ok(()) => panic!("{broken:?} was not found"),
            Err(Failure(found)) => assert!(found.contains(promise), "{broken:?}: {found}"),
        }
    }
}

#[test]
fn broken_hosts_do_not_conform() {
    finds(contract, &CONTRACT);
    finds(ram, &RAM);
    // Time is in a hurry where a check has to lose its patience.
    finds(kicks, &[(Broken::KickOftenLost, 200, "ends guest mode")]);
}

const CONTRACT: [(Broken, u64, &str); 20] = [
    (Broken::PagesNotZeroed, 1, "pages are zeroed"),
    (Broken::PagesNotAligned, 1, "aligned as asked"),
    (Broken::PagesAbove4g, 1, "below 4 GiB"),
    (Broken::PagesNotFreed, 1, "freed pages"),
    (Broken::CpuCalledTwice, 1, "called twice"),
    (Broken::CurrentCpuWrong, 1, "current_cpu is the argument"),
    (Broken::PinIgnored, 1, "that of a pinned thread"),
    (Broken::WindowShared, 1, "alone on its CPU"),
    (Broken::ClockOftenGoesBack, 1, "never goes back"),
    (Broken::ClockStandsStill, 1, "now_ns goes on"),
    (Broken::JoinTooEarly, 1, "join returns when"),
    (Broken::ParkReturns, 1, "park sleeps until"),
    (Broken::UnparkLostBeforePark, 200, "before the park"),
    (Broken::UnparkOftenLost, 200, "not lost"),
    (Broken::MoveIgnored, 200, "new CPU"),
    (Broken::MoveToNowhere, 1, "no CPU"),
    (Broken::TimerEarly, 1, "never early"),
    (Broken::TimerTwice, 1, "fires once"),
    (Broken::TimerNotReplaced, 1, "replaced or disarmed"),
    (Broken::TimersOutOfOrder, 1, "in the order"),
];

const RAM: [(Broken, u64, &str); 3] = [
    (Broken::RamNotZeroed, 1, "zeroed at first touch"),
    (Broken::RamForgets, 1, "keeps its contents"),
    (Broken::RamRemembers, 1, "ended guest"),
];
