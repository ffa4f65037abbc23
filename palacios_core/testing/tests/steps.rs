// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are stepped from one thread, held by several, and asked while they run.

use palacios_core::stats::Counter;
use palacios_core::vm::{HoldReason, LifeError, State, Step, StopReason};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, on_all_backends, Config, TestHost};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The status of `exit 0`.
const GOOD: StopReason = StopReason::Exit(1);

/// No thread of the host's is started: guests that wait for timers, for each other, and that reset their machine.
fn one_thread_steps_a_whole_vm<B: TestBackend>() {
    let few = 100 / B::SLOWNESS;
    let all = [
        Spec::new(guests::halt_for_ticks(&[20, 1_000_000])).with_vcpus(1),
        Spec::new(guests::ping_pong(&[few])).with_vcpus(2),
        Spec::new(guests::workers(&[3, few, 4, 4096])).with_vcpus(3),
        Spec::new(guests::resets(&[5])).with_vcpus(2),
    ];
    let config = Config {
        virtual_time: true,
        entry_ns: 1_000,
        tick_looks: 200,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        for spec in &all {
            let vm = hypervisor.create(spec).expect("a VM");
            vm.begin().expect("a new VM begins");
            assert_eq!(vm.step_rounds(host, usize::MAX), State::Stopped(GOOD));
            assert_eq!(vm.thread(0).unwrap().played(|| vm.step(0)), Step::Ended);
            assert_eq!(vm.step(64), Step::Ended, "there is no such vCPU");
        }
    });
}

/// Entries go on, sooner or later.
fn goes_on(vm: &TestVm) {
    let entries = vm.count(Counter::Entries);
    vm.wait_until(|| vm.count(Counter::Entries) > entries);
}

fn it_stands_still_as_long_as_anybody_holds_it<B: TestBackend>() {
    use HoldReason::{Debugger, HostSleep, Saving, User};
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let ticks = guests::spin_for_ticks(&[u32::MAX, 500]);
        let vm = hypervisor.create(&Spec::new(ticks).with_vcpus(2)).unwrap();
        let created = Err(LifeError::WrongState(State::Created));
        assert_eq!((vm.pause(), vm.resume()), (created, created));
        vm.hold(HostSleep).unwrap();
        vm.launch();
        assert_eq!(
            vm.state(),
            State::Paused,
            "it was held when it was launched"
        );
        assert_eq!(vm.count(Counter::Entries), 0);
        vm.release(HostSleep).unwrap();
        goes_on(&vm);
        for why in [User, Debugger, Saving, Debugger, User] {
            vm.hold(why).unwrap();
            assert_eq!(vm.state(), State::Paused);
        }
        let entries = vm.count(Counter::Entries);
        for why in [Debugger, User, Saving] {
            vm.release(why).unwrap();
            assert_eq!(vm.state(), State::Paused);
        }
        let paused = Err(LifeError::WrongState(State::Paused));
        assert_eq!((vm.resume(), vm.release(Saving)), (paused, paused));
        assert_eq!(vm.count(Counter::Entries), entries);
        vm.release(Debugger).unwrap();
        assert_eq!(vm.state(), State::Running);
        goes_on(&vm);
        for _ in 0..255 {
            vm.hold(Debugger).unwrap();
        }
        assert_eq!(vm.hold(Debugger), Err(LifeError::TooManyHolds));
        let _ = vm.stop();
        assert_eq!(vm.wait(), StopReason::Requested);
    });
}

/// Each holds and releases again and again, for a reason of its own, while the guest resets its machine. Nobody's hold is lost: it never runs
/// under one; and none is left: at the end it runs.
fn holds_and_resets_in_a_storm<B: TestBackend>() {
    const ROUNDS: usize = 100;
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&Spec::new(guests::resets(&[u32::MAX])).with_vcpus(2));
        let reasons = [
            HoldReason::User,
            HoldReason::HostSleep,
            HoldReason::Debugger,
            HoldReason::Saving,
        ];
        std::thread::scope(|scope| {
            for why in reasons {
                let vm = &vm;
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        vm.hold(why).expect("it does not stop");
                        assert_eq!(vm.state(), State::Paused);
                        let entries = vm.count(Counter::Entries);
                        std::thread::yield_now();
                        assert_eq!(vm.count(Counter::Entries), entries, "{why:?}");
                        vm.release(why).expect("it is held");
                    }
                });
            }
        });
        assert_eq!(vm.state(), State::Running);
        goes_on(&vm);
        let _ = vm.stop();
        assert_eq!(vm.wait(), StopReason::Requested);
    });
}

/// Two ask all vCPUs, which wake each other and are paused meanwhile: each answer is given, and the guest comes to its end.
fn vcpus_are_asked_while_they_run<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm =
            hypervisor.launch(&Spec::new(guests::ping_pong(&[2000 / B::SLOWNESS])).with_vcpus(2));
        let ended = AtomicBool::new(false);
        let asked = std::thread::scope(|scope| {
            let ask = |pauses: bool| {
                let (vm, ended) = (&vm, &ended);
                scope.spawn(move || {
                    let mut asked = 0;
                    while !ended.load(SeqCst) || asked < 20 {
                        let held = pauses && vm.hold(HoldReason::Debugger).is_ok();
                        for index in 0..2 {
                            let report = vm.report(index).expect("there is such a vCPU");
                            assert!(report.state.rflags & 2 != 0);
                        }
                        if held {
                            vm.release(HoldReason::Debugger).expect("it is held");
                        }
                        asked += 1;
                        // A guest that is always called comes to nothing.
                        let entries = vm.count(Counter::Entries);
                        vm.wait_until(|| {
                            vm.count(Counter::Entries) > entries + 3 || vm.state() != State::Running
                        });
                    }
                    asked
                })
            };
            let askers = [ask(false), ask(true)];
            let reason = vm.wait_for(|state| matches!(state, State::Stopped(_)));
            ended.store(true, SeqCst);
            assert_eq!(reason, State::Stopped(GOOD));
            askers.map(|asker| asker.join().expect("nobody panics"))
        });
        assert!(asked.iter().all(|asked| *asked >= 20));
        assert_eq!(vm.wait(), GOOD);
    });
}

on_all_backends! {
    one_thread_steps_a_whole_vm,
    it_stands_still_as_long_as_anybody_holds_it,
    holds_and_resets_in_a_storm,
    vcpus_are_asked_while_they_run,
}
