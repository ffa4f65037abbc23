// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backend against a processor that keeps all it is allowed to keep: a TLB that forgets only what it is told to, and
//! every group of VMCB fields whose clean bit was left set.

use super::super::vmcb::VmcbSegment;
use super::*;
use crate::addr::Hpa;
use crate::backend::fake_host::CPUS;
use crate::backend::svm::exit::code;
use crate::backend::svm::vmcb::{tlb_control, Clean, Intercepts3};
use crate::backend::{BackendVcpu, Event};
use crate::host::CpuId;
use crate::state::{CpuState, Exception};
use proptest::prelude::*;
use std::collections::HashMap;

/// The groups of fields that a processor may keep, as APM 2: 15.15.3 lists them.
fn groups(vmcb: &Vmcb) -> Vec<(Clean, Vec<u64>)> {
    let (c, s) = (&vmcb.control, &vmcb.save);
    let seg = |s: &VmcbSegment| {
        [
            s.selector.into(),
            s.attributes.into(),
            s.limit.into(),
            s.base,
        ]
    };
    let vectors = [
        c.cr_reads.into(),
        c.cr_writes.into(),
        c.dr_reads.into(),
        c.dr_writes.into(),
        c.exceptions.bits().into(),
        c.intercepts3.bits().into(),
        c.intercepts4.bits().into(),
        c.tsc_offset,
        c.pause_count.into(),
        c.pause_threshold.into(),
    ];
    vec![
        (Clean::I, vectors.to_vec()),
        (Clean::IOPM, vec![c.iopm, c.msrpm]),
        (Clean::ASID, vec![c.asid.into()]),
        (Clean::TPR, vec![c.virtual_interrupt.bits()]),
        (Clean::NP, vec![c.n_cr3, s.g_pat]),
        (Clean::CRX, vec![s.cr0, s.cr3, s.cr4, s.efer]),
        (Clean::DRX, vec![s.dr6, s.dr7]),
        (Clean::DT, [seg(&s.gdtr), seg(&s.idtr)].concat()),
        (
            Clean::SEG,
            [
                seg(&s.cs),
                seg(&s.ss),
                seg(&s.ds),
                seg(&s.es),
                [s.cpl.into(), 0, 0, 0],
            ]
            .concat(),
        ),
        (Clean::CR2, vec![s.cr2]),
    ]
}

/// A translation in a TLB: whose it is, and how often that vCPU had been flushed when it was made.
type Translation = (usize, u64);

/// One processor.
#[derive(Default)]
struct Processor {
    kept: HashMap<Hpa, Vec<(Clean, Vec<u64>)>>,
    tlb: HashMap<u32, Vec<Translation>>,
    full_flushes: u32,
}

impl Processor {
    /// VMRUN and #VMEXIT of a guest that changes `guest` fields meanwhile.
    fn vmrun(&mut self, vcpu: &mut Vcpu<FakeHost>, me: Translation, guest: impl Fn(&mut Vmcb)) {
        let at = vcpu.vmcb.at();
        let vmcb = vcpu.vmcb.get();
        if let Some(kept) = self.kept.get(&at) {
            for ((group, kept), (_, now)) in kept.iter().zip(groups(vmcb)) {
                if vmcb.control.clean.contains(*group) {
                    assert_eq!(*kept, now, "{group:?} is stale");
                }
            }
        }
        let asid = vmcb.control.asid;
        assert_ne!(asid, 0);
        match vmcb.control.tlb_control {
            tlb_control::NOTHING => {}
            tlb_control::ALL => {
                self.tlb.clear();
                self.full_flushes += 1;
            }
            tlb_control::THIS_ASID => drop(self.tlb.remove(&asid)),
            other => panic!("TLB_CONTROL {other}"),
        }
        let tlb = self.tlb.entry(asid).or_default();
        assert!(
            tlb.iter().all(|t| *t == me),
            "stale translations {tlb:?} for {me:?}"
        );
        tlb.push(me);
        // What the guest does, the processor knows; the clean bits it leaves alone.
        let clean = vmcb.control.clean;
        guest(vcpu.vmcb.change(Clean::empty()));
        assert_eq!(vcpu.vmcb.get().control.clean, clean);
        self.kept.insert(at, groups(vcpu.vmcb.get()));
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A window on a CPU, with some entries.
    Window {
        vcpu: usize,
        cpu: u32,
        entries: u8,
    },
    Flush {
        vcpu: usize,
    },
    Change {
        vcpu: usize,
        what: u8,
        value: u64,
    },
    /// A CPU goes and comes back; another hypervisor may have run there.
    Restart {
        cpu: u32,
    },
}

const VCPUS: usize = 3;

fn op() -> impl Strategy<Value = Op> {
    let vcpu = 0..VCPUS;
    prop_oneof![
        6 => (vcpu.clone(), 0..CPUS, 0..4u8)
            .prop_map(|(vcpu, cpu, entries)| Op::Window { vcpu, cpu, entries }),
        1 => vcpu.clone().prop_map(|vcpu| Op::Flush { vcpu }),
        4 => (vcpu, 0..16u8, any::<u64>())
            .prop_map(|(vcpu, what, value)| Op::Change { vcpu, what, value }),
        1 => (0..CPUS).prop_map(|cpu| Op::Restart { cpu }),
    ]
}

/// Changes a vCPU through the contract. Whether what it translates may have changed.
fn change(vcpu: &mut Vcpu<FakeHost>, what: u8, value: u64) -> bool {
    let mut control = vcpu.control();
    match what {
        0 => control.cr0 = value,
        1 => control.cr2 = value,
        2 => control.cr3 = value,
        3 => control.cr4 = value,
        4 => control.efer = value,
        5 => vcpu.set_debug_register(6, value),
        6 => vcpu.set_debug_register(7, value & !0xff),
        7 => vcpu.set_cr8(value as u8),
        8 => vcpu.request_interrupt_window(Some(value as u8 & 31)),
        9 => vcpu.set_tsc_offset(value),
        10 => vcpu.inject(Event::Nmi),
        11 => vcpu.inject(Event::Exception(Exception::page_fault(0, value))),
        12 => assert!(vcpu.set_msr(0x277, value & 1)),
        13 => vcpu.set_state(&CpuState {
            rip: value,
            ..CpuState::reset()
        }),
        14 => vcpu.set_table_root(Hpa(value & !0xfff)),
        _ => vcpu.request_interrupt_window(None),
    }
    if what < 5 {
        vcpu.set_control(control);
    }
    matches!(what, 13 | 14)
}

/// A guest that lives: its own doings change what the processor keeps.
fn live(vmcb: &mut Vmcb) {
    vmcb.save.cr2 = vmcb.save.cr2.wrapping_add(1);
    vmcb.save.cs.base ^= 0x1000;
    vmcb.save.dr6 ^= 1;
    vmcb.save.cr0 ^= 8;
    vmcb.save.gdtr.limit ^= 1;
    vmcb.control.exit_code = if vmcb.control.intercepts3.contains(Intercepts3::IRET) {
        code::IRET
    } else {
        code::CPUID
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_stale_is_ever_used(
        ops in proptest::collection::vec(op(), 1..120),
        asids in 2..6u32,
        svm in prop_oneof![Just(0), Just(FLUSH_BY_ASID)],
    ) {
        let svm = svm_with(svm, asids);
        let mut processors = [Processor::default(), Processor::default()];
        let mut vcpus: Vec<_> = (0..VCPUS).map(|_| vcpu_of(&svm)).collect();
        let mut flushed = [0u64; VCPUS];
        // Somebody was here before us.
        for processor in &mut processors {
            (0..asids).for_each(|asid| processor.tlb.entry(asid).or_default().push((99, 0)));
        }
        for op in ops {
            match op {
                Op::Window { vcpu: v, cpu, entries } => {
                    let vcpu = &mut vcpus[v];
                    vcpu.take_slot(CpuId(cpu), svm.cpu(CpuId(cpu)).unwrap());
                    for _ in 0..entries {
                        vcpu.before_entry();
                        processors[cpu as usize].vmrun(vcpu, (v, flushed[v]), live);
                        vcpu.after_exit();
                    }
                    vcpu.leave_slot(&svm);
                }
                Op::Flush { vcpu } => {
                    vcpus[vcpu].flush_tlb();
                    flushed[vcpu] += 1;
                }
                Op::Change { vcpu, what, value } => {
                    flushed[vcpu] += u64::from(change(&mut vcpus[vcpu], what, value));
                }
                Op::Restart { cpu } => {
                    svm.cpus[cpu as usize].tags.restart();
                    let processor = &mut processors[cpu as usize];
                    (0..asids).for_each(|asid| processor.tlb.entry(asid).or_default().push((99, 0)));
                    // It may also have put its own VMCB where ours is, and left other fields kept.
                    for kept in processor.kept.values_mut() {
                        kept.iter_mut().for_each(|(_, fields)| fields.iter_mut().for_each(|f| *f ^= 1));
                    }
                }
            }
        }
    }
}

#[test]
fn a_vcpu_that_stays_flushes_once_and_keeps_all_clean() {
    let svm = svm_with(FLUSH_BY_ASID, 16);
    let mut processor = Processor::default();
    let mut vcpu = vcpu_of(&svm);
    for _ in 0..100 {
        vcpu.take_slot(CpuId(0), &svm.cpus[0]);
        for _ in 0..10 {
            vcpu.before_entry();
            processor.vmrun(&mut vcpu, (0, 0), live);
            vcpu.after_exit();
        }
        vcpu.leave_slot(&svm);
    }
    assert_eq!(processor.full_flushes, 1);
    vcpu.before_entry();
    assert_eq!(vcpu.vmcb.get().control.clean, Clean::all());
    // A second vCPU gets a fresh tag, and nothing more is flushed.
    let mut other = vcpu_of(&svm);
    other.take_slot(CpuId(0), &svm.cpus[0]);
    other.before_entry();
    assert_eq!(other.vmcb.get().control.tlb_control, tlb_control::NOTHING);
    assert_eq!(other.vmcb.get().control.clean, Clean::empty());
    assert_ne!(other.vmcb.get().control.asid, vcpu.vmcb.get().control.asid);
}
