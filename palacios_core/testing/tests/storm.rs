// SPDX-License-Identifier: MIT OR Apache-2.0
//! Storms of interrupts between the vCPUs of a VM: nothing is lost, and nothing comes twice.

use palacios_core::stats::Counter;
use palacios_core::vm::{State, StopReason, Vm};
use palacios_testing::storm::{Storm, StormBackend};
use palacios_testing::vm::{Hypervisor, Spec, TestVm};
use palacios_testing::{guests, Config, TestHost};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a storm may stand still on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(600);

fn storm(cpus: u32, vcpus: usize, kinds: usize, interrupts: u64) {
    let config = Config {
        cpus,
        ..Config::default()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<StormBackend>::new(host);
        let storm = Storm::new(vcpus, kinds, interrupts);
        hypervisor.backend().set(&storm);
        let vm = hypervisor.launch(&Spec {
            pins: vec![None; vcpus],
            ..Spec::new(guests::spin(&[]))
        });
        wait(&vm, &storm);
        assert_eq!(vm.wait(), StopReason::Exit(1));
        assert!(storm.received() >= interrupts, "{}", storm.received());
        let kicks = vm.count(Counter::Kicks);
        assert!(
            kicks < vm.count(Counter::Entries),
            "{kicks} kicks are more than one for each entry"
        );
        let parks: u64 = (0..vcpus as u32)
            .map(|n| vm.thread(n).unwrap().parks())
            .sum();
        println!(
            "{} interrupts, {kicks} kicks, {parks} sleeps",
            storm.received()
        );
        assert!(parks > 0, "not much of a storm: nobody slept");
        let beside = cpus > 1;
        // At the end, the vCPU that stops the VM calls each of the others, and kicks it if it is in the guest just then.
        assert_eq!(
            kicks >= vcpus as u64,
            beside,
            "{kicks} kicks, where senders run beside guests: {beside}"
        );
    });
}

/// Waits for the end, as long as it comes nearer.
fn wait(vm: &TestVm, storm: &Arc<Storm>) {
    let (mut seen, mut since) = (0, Instant::now());
    while !matches!(vm.state(), State::Stopped(_)) {
        std::thread::sleep(Duration::from_millis(10));
        let received = storm.received();
        if received != seen {
            (seen, since) = (received, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            // So that what its threads have to say comes out.
            let _ = Vm::stop(vm);
            vm.wait();
            panic!("lost: after {seen} interrupts no more came");
        }
    }
}

/// As many vectors as there are.
const ALL: usize = usize::MAX;

/// Nobody is in the guest while another sends: no kick is needed, but for the stop.
#[test]
fn on_one_cpu() {
    storm(1, 4, ALL, 100_000);
}

#[test]
fn with_more_vcpus_than_cpus() {
    storm(3, 16, ALL, 400_000);
}

#[test]
fn of_light_sleepers() {
    storm(3, 5, 3, 1_000_000);
}

/// Ten million where tests may take long.
#[test]
fn of_millions() {
    let millions = if palacios_testing::soaks() { 10 } else { 1 };
    storm(2, 8, ALL, millions * 1_000_000);
}
