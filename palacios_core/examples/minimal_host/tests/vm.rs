// SPDX-License-Identifier: MIT OR Apache-2.0
//! The minimal host runs a guest. Its CPUs have AMD SVM, in memory: what the backend asks of the processor is refused by the
//! machine on which the test runs, and done by a simulated one.

use minimal_host::vm::{self, Console};
use minimal_host::MinimalHost;
use palacios_core::addr::Hpa;
use palacios_core::backend::any::Hardware;
use palacios_core::backend::svm::Svm;
use palacios_core::host::{CpuId, Host};
use palacios_core::vm::StopReason;
use palacios_testing::processor::{self, Config, HostMachine, Processors};
use palacios_testing::vm::Spec;
use palacios_testing::{guest, guests};
use std::hash::{BuildHasher, RandomState};
use std::ptr::NonNull;
use std::sync::Arc;

/// The minimal host with processors.
struct Machine {
    host: MinimalHost,
    processors: Processors,
}

impl HostMachine for Machine {
    fn processors(&self) -> &Processors {
        &self.processors
    }
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        self.host.phys_to_virt(at)
    }
    fn window_cpu(&self) -> Option<CpuId> {
        minimal_host::current_cpu()
    }
    fn interrupted(&self) -> bool {
        self.host.interrupted()
    }
    fn random(&self) -> u64 {
        RandomState::new().hash_one(())
    }
}

guest! {
    /// Prints a line to its serial port, then ends with status 0.
    pub fn hello =
    "mov dx, 0x3f8"
    "addr esi, 3f"
    "2: mov al, [esi]"
    "inc esi"
    "test al, al"
    "jz 4f"
    "out dx, al"
    "jmp 2b"
    "3: .asciz \"Hello from the guest\\n\""
    "4: exit 0"
}

/// Between two interrupts of a guest's timer: long beside what the slowest machine takes to deliver one.
const TICK: u32 = 20_000_000;
/// What `exit 0` comes to.
const GOOD: StopReason = StopReason::Exit(1);

/// A machine with two CPUs, on which virtualization is on.
fn machine() -> (Arc<Machine>, Hardware<MinimalHost>) {
    let host = MinimalHost::new(2, 8192);
    let processors = Processors::new(Config::default(), host.cpu_limit());
    let machine = Arc::new(Machine { host, processors });
    processor::install_for(machine.clone());
    let svm = Svm::probe_with_cpuid(&machine.host, processor::cpuid(&*machine));
    let hardware = Hardware::Svm(Arc::new(svm.expect("SVM")));
    vm::enable(&machine.host, &hardware).expect("CPUs with virtualization");
    (machine, hardware)
}

/// A guest with vCPUs pinned to these CPUs.
fn guest(kernel: Vec<u8>, pins: &[u32]) -> Vec<u8> {
    let pins = pins.iter().map(|cpu| Some(*cpu)).collect();
    let serial = true;
    let spec = Spec {
        pins,
        serial,
        ..Spec::new(kernel)
    };
    spec.image()
}

#[test]
fn guests_run() {
    let (machine, hardware) = machine();
    // ANCHOR: run
    let host = &machine.host;
    let console = Console::default();
    let ends = |image| vm::run(host, &hardware, image, &console).expect("a VM");

    assert_eq!(ends(guest(hello(&[]), &[0])), GOOD);
    assert_eq!(console.text(), "Hello from the guest\n");
    // ANCHOR_END: run
    // Armed times end sleeps and guest mode.
    assert_eq!(ends(guest(guests::halt_for_ticks(&[3, TICK]), &[1])), GOOD);
    assert_eq!(ends(guest(guests::spin_for_ticks(&[3, TICK]), &[1])), GOOD);
    // Two vCPUs call each other, also when they share a CPU.
    for pins in [[0, 1], [0, 0]] {
        assert_eq!(ends(guest(guests::ping_pong(&[20]), &pins)), GOOD);
        assert_eq!(ends(guest(guests::workers(&[2, 50, 3, 4096]), &pins)), GOOD);
    }
    vm::disable(host, &hardware);
    assert_eq!(machine.processors.violations(), []);
}
