// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events whose frame goes to a device's memory, where the processor cannot write it: the core delivers them by hand.

use palacios_core::backend::{svm::Svm, vmx::Vmx};
use palacios_core::stats::Counter;
use palacios_core::vm::StopReason;
use palacios_testing::vm::{Hypervisor, Spec, TestBackend};
use palacios_testing::{guest, AdversarialBackend, Config, TestHost};

guest! {
    /// Takes an event with its stack in the local APIC, whose register at 0x380 gets what lies lowest in the frame: EIP.
    /// `p0` is INT (0), #UD (1) or an interrupt (2). Status 0 if the handler finds there where it came from.
    pub fn takes_an_event =
    "gate 0x30, handler_fd"
    "gate 0x31, handler_fd"
    "gate 6, handler_fd"
    "lapic_write 0x320, 0x10000"
    "mov ebx, [0x100020]"
    "cmp ebx, 1"
    "je 2f"
    "ja 3f"
    "addr eax, behind_fd"
    "mov edi, eax"
    "mov esp, 0xfee0038c"
    "int 0x30"
    "behind_fd:"
    "2: addr eax, ud_fd"
    "mov edi, eax"
    "mov esp, 0xfee0038c"
    "ud_fd: ud2"
    "3: addr eax, spin_fd"
    "mov edi, eax"
    "lapic_write 0x300, 0x40031"
    "mov esp, 0xfee0038c"
    "sti"
    "spin_fd: jmp spin_fd"
    "handler_fd:"
    "mov ecx, esp"
    "mov esp, 0x90000"
    "pushfd"
    "pop edx"
    "and edx, 0x200"
    "jnz 5f"
    "cmp ecx, 0xfee00380"
    "jne 5f"
    "lapic_read 0x380"
    "cmp eax, edi"
    "jne 5f"
    "exit 0"
    "5: exit 1"
}

guest! {
    /// The same of an NMI. In its handler another is sent, which must wait for the IRET. Status 0.
    pub fn takes_two_nmis =
    "gate 2, handler_fe"
    "lapic_write 0x320, 0x10000"
    "lapic_write 0x310, 0"
    "addr eax, spin_fe"
    "mov edi, eax"
    "mov esp, 0xfee0038c"
    "lapic_write 0x300, 0x4400"
    "spin_fe: jmp spin_fe"
    "handler_fe:"
    "inc dword ptr [0x7000]"
    "cmp dword ptr [0x7000], 2"
    "je 4f"
    "mov esp, 0x90000"
    "lapic_read 0x380"
    "cmp eax, edi"
    "jne 5f"
    "lapic_write 0x300, 0x4400"
    "mov ecx, 100"
    "2: mov eax, 1"
    "mov esi, ecx"
    "cpuid"
    "mov ecx, esi"
    "loop 2b"
    "cmp dword ptr [0x7000], 1"
    "jne 5f"
    "mov edx, cs"
    "addr eax, after_fe"
    "pushfd"
    "push edx"
    "push eax"
    "iretd"
    "after_fe:"
    "3: cmp dword ptr [0x7000], 2"
    "jne 3b"
    "exit 0"
    "4: iretd"
    "5: exit 1"
}

const GOOD: StopReason = StopReason::Exit(1);

fn frames_reach_a_device<B: TestBackend>() {
    let config = Config {
        processor: B::adapt(Default::default()),
        ..Config::default()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let events = (0..3).map(|how| takes_an_event(&[how]));
        for (how, kernel) in events.chain([takes_two_nmis(&[])]).enumerate() {
            let vm = hypervisor.launch(&Spec::new(kernel));
            assert_eq!(vm.wait(), GOOD, "event {how}");
            assert!(vm.count(Counter::Mmio) > 0);
        }
    });
}

#[test]
fn of_the_adversarial_backend() {
    frames_reach_a_device::<AdversarialBackend>();
}

#[test]
fn of_svm() {
    frames_reach_a_device::<Svm<TestHost>>();
}

#[test]
fn of_vmx() {
    frames_reach_a_device::<Vmx<TestHost>>();
}
