// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backend without its hardware: all but VMRUN itself, which is for the emulators and for processors.

mod events;
mod exits;
mod model;
mod state;

use super::super::fake_host::FakeHost;
use super::super::fpu::Layout;
use super::caps::{Caps, Paging};
use super::events::ExitOutcome;
use super::vmcb::Vmcb;
use super::{Svm, Vcpu};
use crate::features::testing::all_but;

/// CPUID of a processor with `svm` in Fn8000_000A_EDX and `asids` tags.
fn cpuid_of(svm: u32, asids: u32) -> impl Fn(u32, u32) -> [u32; 4] {
    move |leaf, _| match leaf {
        0 => [7, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        0x8000_0000 => [0x8000_0021, 0, 0, 0],
        0x8000_0001 => [0, 0, 1 << 2, 1 << 27],
        0x8000_0008 => [48, 1 << 12, 0, 0],
        0x8000_000a => [1, asids, 0, svm],
        _ => [0; 4],
    }
}

const NPT: u32 = 1 << 0;
const NRIP: u32 = 1 << 3;
const FLUSH_BY_ASID: u32 = 1 << 6;
const DECODE_ASSISTS: u32 = 1 << 7;

fn svm_with(svm: u32, asids: u32) -> Svm<FakeHost> {
    let caps = Caps::new(cpuid_of(svm | NPT, asids), Paging::default()).unwrap();
    let svm = Svm::new(&FakeHost::default(), caps, Layout::probe()).unwrap();
    svm.cpus.iter().for_each(|cpu| cpu.tags.restart());
    svm
}

fn vcpu_of(svm: &Svm<FakeHost>) -> Vcpu<FakeHost> {
    Vcpu::new(&FakeHost::default(), svm, &all_but(&[])).unwrap()
}

/// One entry that ends as `exit` says.
fn enter(vcpu: &mut Vcpu<FakeHost>, exit: impl Fn(&mut Vmcb)) -> ExitOutcome {
    vcpu.before_entry();
    exit(vcpu.vmcb.uncached());
    vcpu.after_exit()
}

fn exits(code: u64) -> impl Fn(&mut Vmcb) {
    move |vmcb| vmcb.control.exit_code = code
}
