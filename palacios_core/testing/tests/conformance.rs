// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test host keeps the host contract, and the checks of the contract find hosts that do not.

use palacios_core::conformance::Method::*;
use palacios_core::conformance::{
    self, kicks, ram, Check, Method, Outcome, Report, Suite, Verdict,
};
use palacios_core::host::CpuId;
use palacios_testing::host::{Broken, LargePages};
use palacios_testing::{Config, TestHost};
use std::sync::Mutex;

fn guest_mode(host: &TestHost, _: CpuId) {
    while !host.interrupted() {
        std::thread::yield_now();
    }
}

/// The whole suite.
fn run_all(host: &TestHost) -> Vec<Report> {
    let reports = Mutex::new(Vec::new());
    let mut suite = Suite::new(host, |report| reports.lock().unwrap().push(report));
    suite.contract();
    suite.guest_ram(|| Some(host.ram(LargePages::Always)));
    suite.kicks(guest_mode);
    let counted = suite.summary();
    let reports = reports.into_inner().unwrap();
    let count = |wanted: fn(&Verdict) -> bool| {
        let verdicts = reports.iter().map(|report| report.verdict);
        verdicts.filter(wanted).count() as u32
    };
    assert_eq!(counted.kept, count(|v| *v == Verdict::Kept));
    assert_eq!(counted.broken, count(|v| matches!(v, Verdict::Broken(_))));
    assert_eq!(counted.not_run, count(|v| matches!(v, Verdict::NotRun(_))));
    reports
}

/// The name of each check of the whole suite, with what it needs and what it proves.
fn all_checks() -> Vec<(&'static str, &'static [Method], Option<Method>)> {
    fn of<S>(check: &Check<S>) -> (&'static str, &'static [Method], Option<Method>) {
        (check.name, check.needs, check.proves)
    }
    let contract = conformance::checks::<TestHost>();
    let ram = ram::checks::<TestHost, fn() -> Option<_>>();
    let kicks = kicks::checks::<TestHost, fn(&TestHost, CpuId)>();
    let contract = contract.iter().map(of);
    contract
        .chain(ram.iter().map(of))
        .chain(kicks.iter().map(of))
        .collect()
}

/// One check alone, by its name.
fn run_one(host: &TestHost, name: &str) -> Outcome {
    fn run<S>(checks: &[Check<S>], name: &str, subject: &S) -> Option<Outcome> {
        let check = checks.iter().find(|check| check.name == name);
        check.map(|check| (check.run)(subject))
    }
    let ram = || Some(host.ram(LargePages::Always));
    run(&conformance::checks(), name, host)
        .or_else(|| run(&ram::checks(), name, &ram::Subject { host, ram }))
        .or_else(|| run(&kicks::checks(), name, &kicks::Subject { host, guest_mode }))
        .expect(name)
}

/// Time is slow where no check may lose its patience, however slow the machine is.
const PATIENT: f64 = 0.05;

fn config(cpus: u32) -> Config {
    Config {
        cpus,
        hurry: PATIENT,
        ..Config::default()
    }
}

#[test]
fn the_test_host_conforms() {
    for cpus in [1, 2, 5] {
        let reports = TestHost::run(config(cpus), run_all);
        let bad: Vec<_> = reports
            .iter()
            .filter(|report| report.verdict != Verdict::Kept)
            .map(Report::to_string)
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

#[test]
fn providers_that_have_few_large_pages_conform() {
    for large in [LargePages::Sometimes, LargePages::Never] {
        TestHost::run(config(2), |host| {
            let mut suite = Suite::new(host, |report| println!("{report}"));
            suite.guest_ram(|| Some(host.ram(large)));
            assert!(suite.summary().is_good());
        });
    }
}

/// What a check needs is proved by one before it, so that no check is run that would wait in vain.
#[test]
fn what_a_check_needs_was_proved() {
    let mut proved = Vec::new();
    for (name, needs, proves) in all_checks() {
        for need in needs {
            assert!(proved.contains(need), "{name} needs {need}");
        }
        proved.extend(proves);
    }
}

/// A host that breaks its promise is found, by the check that is meant for it, which names the method. On a loaded machine a
/// broken timer may look good for once, so there are several attempts.
fn finds((broken, hurry, name, method, promise): Case) {
    let mut outcomes = Vec::new();
    for seed in 1..=30 {
        let config = Config {
            broken: Some(broken),
            hurry,
            seed,
            ..Config::default()
        };
        let outcome = TestHost::run(config, |host| run_one(host, name));
        if outcome.is_err_and(|f| f.method == method && f.promise.contains(promise)) {
            return;
        }
        outcomes.push(outcome);
    }
    panic!("{broken:?} was not found by {name}: {outcomes:?}");
}

#[test]
fn broken_hosts_do_not_conform() {
    for case in CASES {
        finds(case);
    }
}

/// Each check but these is seen to fail.
#[test]
fn every_check_finds_a_broken_host() {
    // `Host::window` cannot make up the value that it returns.
    let cannot_fail = ["window: returns the value"];
    for (name, ..) in all_checks() {
        let tested = CASES.iter().any(|case| case.2 == name);
        assert!(tested != cannot_fail.contains(&name), "{name}");
    }
}

/// On any broken host the suite comes to its end: it tells of each check once, in order, and leaves out only those that need
/// what was broken.
#[test]
fn the_suite_goes_on_after_a_failure() {
    let mut hosts: Vec<Broken> = CASES.iter().map(|case| case.0).collect();
    hosts.dedup();
    for broken in hosts {
        let config = Config {
            broken: Some(broken),
            hurry: RASH,
            ..Config::default()
        };
        let reports = TestHost::run(config, run_all);
        let told: Vec<_> = reports.iter().map(|report| report.name).collect();
        let names: Vec<_> = all_checks().iter().map(|check| check.0).collect();
        assert_eq!(told, names, "{broken:?}");
        check_gaps(broken, &reports);
    }
}

/// A check is left out if and only if it needs what an earlier one should have proved, or threads when some are left.
fn check_gaps(broken: Broken, reports: &[Report]) {
    let mut lost = Vec::new();
    for (report, (name, needs, proves)) in reports.iter().zip(all_checks()) {
        let missing = needs.iter().find(|need| lost.contains(*need));
        match (report.verdict, missing) {
            (Verdict::NotRun(method), Some(missing)) => {
                assert_eq!(method, *missing, "{broken:?}: {name}")
            }
            (Verdict::Kept | Verdict::Broken(_), None) => {}
            (verdict, _) => panic!("{broken:?}: {name}: {verdict:?} for want of {missing:?}"),
        }
        if report.verdict != Verdict::Kept {
            lost.extend(proves);
        }
        if matches!(report.verdict, Verdict::Broken(failure) if failure.threads_left) {
            lost.push(Start);
        }
    }
}

/// The report on a host has these lines. On a slow machine another check may have lost its patience: each attempt has more.
#[track_caller]
fn says(broken: Broken, lines: &[&str]) {
    let mut reports = Vec::new();
    for seed in 1..=30 {
        let config = Config {
            broken: Some(broken),
            hurry: IMPATIENT / seed as f64,
            seed,
            ..Config::default()
        };
        let told = TestHost::run(config, run_all);
        let report: Vec<_> = told.iter().map(Report::to_string).collect();
        if lines
            .iter()
            .all(|line| report.iter().any(|told| told == line))
        {
            return;
        }
        reports.push(report);
    }
    panic!("{broken:?}: {lines:#?}: {reports:#?}");
}

#[test]
fn a_report_says_what_is_at_fault_and_what_was_not_run() {
    says(
        Broken::UnparkLostBeforePark,
        &[
            "ok threads: join waits for the end",
            "not ok threads: early wake-up not lost: Thread::park broke its promise: it returns at once if the thread was unparked before",
            "not ok threads: ping-pong: not run: it would wait in vain, as Thread::park failed before",
            "ok guest RAM: kept when revoked",
        ],
    );
    says(
        Broken::ClockStandsStill,
        &[
            "not ok time: passes: Host::now_ns broke its promise: it goes on by itself",
            "ok pages: below 4 GiB",
            "not ok kicks: a storm: not run: it would wait in vain, as Host::now_ns failed before",
        ],
    );
}

/// A thread that sleeps for ever in a lock is left alone, and no other is started beside it.
#[test]
fn threads_that_do_not_end_end_the_checks_that_need_threads() {
    says(
        Broken::LockOftenStuck,
        &[
            "not ok locks: a mutex excludes: Host::mutex broke its promise: a mutex that is free is had; the threads of this check do not end",
            "not ok locks: a spin lock excludes: not run: it would wait in vain, as Thread::start failed before",
            "ok guest RAM: large pages",
        ],
    );
}

/// Time is in a hurry where a check has to lose its patience.
const IMPATIENT: f64 = 40.0;
/// And more so where it does not matter whether it does.
const RASH: f64 = 100.0;

/// A broken host, how many times as fast its time passes, the check that finds it, and what that says.
type Case = (Broken, f64, &'static str, Method, &'static str);

#[rustfmt::skip]
const CASES: [Case; 53] = [
    (Broken::ClockStandsStill, 1.0, "time: passes", NowNs, "goes on"),
    (Broken::WallClockInMicroseconds, 1.0, "time: the wall clock and TSC rate are sane", WallNs, "nanoseconds"),
    (Broken::TscRateInMhz, 1.0, "time: the wall clock and TSC rate are sane", TscHz, "in Hz"),
    (Broken::TscStableWithoutRate, 1.0, "time: the wall clock and TSC rate are sane", TscStable, "known rate"),
    (Broken::PagesNotZeroed, 1.0, "pages: aligned, zeroed, contiguous", AllocPages, "pages are zeroed"),
    (Broken::PagesNotAligned, 1.0, "pages: aligned, zeroed, contiguous", AllocPages, "aligned as asked"),
    (Broken::OffsetsIgnored, 1.0, "pages: aligned, zeroed, contiguous", PhysToVirt, "without a gap"),
    (Broken::PagesAbove4g, 1.0, "pages: below 4 GiB", AllocPages, "below 4 GiB"),
    (Broken::PagesGivenTwice, 1.0, "pages: apart from each other", AllocPages, "do not overlap"),
    (Broken::PagesRemember, 1.0, "pages: zeroed again after reuse", AllocPages, "used before"),
    (Broken::PagesNotFreed, 1.0, "pages: freed ones come back", FreePages, "freed pages"),
    (Broken::PagesFewer, 1.0, "pages: too many is an error", AllocPages, "larger than any memory"),
    (Broken::CpuLimitTooSmall, 1.0, "cpus: each called once", CpuLimit, "below it"),
    (Broken::CpuCalledTwice, 1.0, "cpus: each called once", OnEachCpu, "called twice"),
    (Broken::CurrentCpuWrong, 1.0, "cpus: each called there", CurrentCpu, "current_cpu"),
    (Broken::NeverStarts, IMPATIENT, "threads: start, run once, end", Start, "runs its body"),
    (Broken::JoinNeverReturns, IMPATIENT, "threads: start, run once, end", Join, "returns when"),
    (Broken::JoinTooEarly, 1.0, "threads: join waits for the end", Join, "not before"),
    (Broken::JoinWaitsForStart, IMPATIENT, "threads: join without start", Join, "never started"),
    (Broken::StartsOnce, 1.0, "threads: start again after join", Start, "started again"),
    (Broken::DropSleeps, IMPATIENT, "threads: the last handle dropped by itself", Start, "goes on to its end"),
    (Broken::YieldsToNobody, 1.0, "threads: late calls are harmless", YieldTo, "nobody yields to"),
    (Broken::UnparkLostBeforePark, IMPATIENT, "threads: early wake-up not lost", Park, "unparked before"),
    (Broken::ParkReturns, 1.0, "threads: park sleeps", Park, "it sleeps until"),
    (Broken::UnparkOftenLost, IMPATIENT, "threads: ping-pong", Unpark, "between two threads"),
    (Broken::UnparkOftenLost, IMPATIENT, "threads: a storm of wake-ups", Unpark, "storm is lost"),
    (Broken::TimerNeverComes, IMPATIENT, "timers: an armed time comes", Arm, "ends a park"),
    (Broken::TimerEarly, 1.0, "timers: not early, once, again", Arm, "never early"),
    (Broken::TimerTwice, 1.0, "timers: not early, once, again", Arm, "fires once"),
    (Broken::TimerNotReplaced, 1.0, "timers: re-arm, disarm, past", Arm, "replaced or disarmed"),
    (Broken::TimersOutOfOrder, IMPATIENT, "timers: in order", Arm, "in the order"),
    (Broken::ClockOftenGoesBack, 1.0, "time: monotonic across CPUs", NowNs, "never goes back"),
    (Broken::PinIgnored, 1.0, "window: one CPU, and the pinned one", Window, "pinned thread"),
    (Broken::WindowShared, 1.0, "window: alone on its CPU", Window, "alone on its CPU"),
    (Broken::MoveIgnored, IMPATIENT, "threads: move", MoveTo, "new CPU"),
    (Broken::MoveToNowhere, 1.0, "threads: move", MoveTo, "no CPU"),
    (Broken::PinForgotten, 1.0, "threads: move", Pin, "is pinned"),
    (Broken::WaitNotCounted, IMPATIENT, "threads: waiting for a CPU counts", WaitedNs, "another thread has the CPU"),
    (Broken::SleepIsWaiting, IMPATIENT, "threads: waiting for a CPU counts", WaitedNs, "does not count a sleep"),
    (Broken::LockOftenStuck, IMPATIENT, "locks: a mutex excludes", Mutex, "free is had"),
    (Broken::LockOftenStuck, IMPATIENT, "locks: a spin lock excludes", SpinLock, "free is had"),
    (Broken::RamNotZeroed, 1.0, "guest RAM: zeroed, apart, forgotten at the end", Page, "zeroed at first touch"),
    (Broken::RamRemembers, 1.0, "guest RAM: zeroed, apart, forgotten at the end", Release, "ended guest"),
    (Broken::RamRemembers, 1.0, "guest RAM: zeroed behind a discard", Release, "discarded is zeroed"),
    (Broken::RamForgets, 1.0, "guest RAM: kept when revoked", Release, "keeps its contents"),
    (Broken::RamForgets, 1.0, "guest RAM: large pages", Release, "keeps its contents"),
    (Broken::RamForgets, 1.0, "guest RAM: a large page comes back as small ones", Release, "for small ones"),
    (Broken::RamHoldsNothing, 1.0, "guest RAM: says what it holds", Holds, "revoked holds something"),
    (Broken::RamRemembers, 1.0, "guest RAM: says what it holds", Holds, "discarded holds nothing"),
    (Broken::KickOftenLost, IMPATIENT, "kicks: one ends guest mode", Kick, "ends guest mode"),
    (Broken::KickOftenLost, IMPATIENT, "kicks: a storm", Kick, "storm is lost"),
    (Broken::KickOftenLost, IMPATIENT, "kicks: before the entry", Kick, "and the entry"),
    (Broken::TimerDoesNotKick, IMPATIENT, "kicks: an armed time ends guest mode", Arm, "ends guest mode"),
];
