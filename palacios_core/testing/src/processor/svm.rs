// SPDX-License-Identifier: MIT OR Apache-2.0
//! SVM, as a processor has it that forgives nothing.
//!
//! It keeps each group of a VMCB's fields whose clean bit is set, from the last exit on that CPU on; it keeps translations
//! until TLB_CONTROL says otherwise; state that VMRUN does not switch stays the guest's until VMLOAD. What no manual allows
//! is noted. What the intercepts of the VMCB do not ask for does not exit.

use super::bus::Bus;
use super::execute::{Guest, Policy};
use super::tlb::Space;
use super::vmcb::{at, Vmcb, GROUPS, HIDDEN};
use super::{HostMachine, Violation};
use palacios_core::addr::Hpa;
use palacios_core::backend::{Event, Exit, NestedFault, PortAccess};
use palacios_core::host::CpuId;
use palacios_core::state::{cr4, efer, Exception, Gprs, Reg};
use std::collections::HashMap;

const EFER: u32 = 0xc000_0080;
const DEBUGCTL: u32 = 0x1d9;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// The host has each CPU's number in it.
pub const TSC_AUX: u32 = 0xc000_0103;
/// The registers of a CPU that VMLOAD and VMSAVE move.
type Hidden = [u64; HIDDEN.len()];

/// What SVM adds to a CPU.
#[derive(Debug, Default)]
pub struct Svm {
    pub msrs: HashMap<u32, u64>,
    pub debug_registers: [u64; 8],
    pub xcr0: u64,
    /// Host interrupts are on.
    pub interrupts: bool,
    /// Global interrupts are off (CLGI).
    pub global_off: bool,
    /// What VMLOAD put in, if not the host's own.
    hidden: Option<Hidden>,
    /// Whose VMCB that came from.
    hidden_of: Option<u64>,
    /// What is kept of each VMCB, by its address.
    kept: HashMap<u64, Vec<Vec<u64>>>,
}

impl Svm {
    /// The host's own values of what VMLOAD moves: recognizable, and different on each CPU.
    fn own(cpu: CpuId) -> Hidden {
        std::array::from_fn(|i| 0x4057_0000_0000_0000 | u64::from(cpu.0) << 32 | i as u64)
    }
    pub fn is_on(&self) -> bool {
        self.msrs.get(&EFER).is_some_and(|v| v & efer::SVME != 0)
    }

    pub fn save_area(&self) -> u64 {
        self.msr(VM_HSAVE_PA)
    }
    /// Somebody else on the host has a save area of his own, or wants none to be there; EFER.SVME he leaves alone.
    pub fn take_save_area(&mut self, to: u64) {
        self.msrs.insert(VM_HSAVE_PA, to);
    }

    /// The host goes down: EFER.SVME is cleared, whoever had set it.
    pub fn switch_off(&mut self) {
        self.msrs.insert(EFER, 0);
    }

    pub fn vmsave(&self, cpu: CpuId, to: Vmcb) {
        let hidden = self.hidden.unwrap_or(Self::own(cpu));
        HIDDEN
            .iter()
            .zip(hidden)
            .for_each(|(at, v)| to.set_u64(*at, v));
    }
    pub fn vmload(&mut self, from: Vmcb, address: u64) {
        self.hidden = Some(HIDDEN.map(|at| from.u64(at)));
        self.hidden_of = Some(address);
    }

    /// What the host must find as it was, when a window closes.
    pub fn window_closes(&mut self, cpu: CpuId) -> Option<Violation> {
        let own = Self::own(cpu);
        let (xcr0, xss, debugctl) = (self.xcr0, self.msr(0xda0), self.msr(DEBUGCTL));
        let tsc_aux = self.msrs.get(&TSC_AUX).copied();
        let checks = [
            (
                self.hidden.is_some_and(|h| h != own),
                "FS, GS, TR or the like are not the host's",
            ),
            (
                self.interrupts || self.global_off,
                "interrupts are not as the window had them",
            ),
            (xcr0 != 0 && xcr0 != host_xcr0(), "XCR0 is not the host's"),
            (xss != HOST_XSS, "XSS is not the host's"),
            (debugctl != HOST_DEBUGCTL, "DEBUGCTL is not the host's"),
            (
                tsc_aux.is_some_and(|v| v != u64::from(cpu.0)),
                "TSC_AUX is not the host's",
            ),
        ];
        let broken = checks.into_iter().find(|(broken, _)| *broken);
        (self.hidden, self.xcr0) = (None, 0);
        broken.map(|(_, what)| Violation::Svm(what))
    }

    /// A register; the host's own value where nobody has written it. (Not for TSC_AUX.)
    pub fn msr(&self, index: u32) -> u64 {
        let initial = match index {
            0xda0 => HOST_XSS,
            DEBUGCTL => HOST_DEBUGCTL,
            _ => 0,
        };
        self.msrs.get(&index).copied().unwrap_or(initial)
    }
}

/// The host has supervisor state switched on, so that it matters.
pub const HOST_XSS: u64 = 1 << 11;
/// The host traps bus locks.
const HOST_DEBUGCTL: u64 = 1 << 2;

pub fn tsc() -> u64 {
    // SAFETY: every processor that this runs on has a time stamp counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

pub fn host_xcr0() -> u64 {
    // SAFETY: every 64-bit host of these tests has XSAVE on, or else this traps and the test fails.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

/// VMRUN, until the exit.
pub struct Run<'a> {
    pub host: &'a dyn HostMachine,
    pub cpu: CpuId,
    pub at: u64,
    pub gprs: &'a mut Gprs,
}

impl Run<'_> {
    pub fn vmrun(mut self) {
        let vmcb = Vmcb::new(self.host, self.at);
        if let Err(what) = self.check(vmcb) {
            self.note(Violation::Svm(what));
            return vmcb.set_u64(at::EXIT_CODE, u64::MAX);
        }
        if vmcb.u64(at::CR0) >> 32 != 0 {
            // Undefined since a shutdown; refused (APM 2: 15.5.1).
            return vmcb.set_u64(at::EXIT_CODE, u64::MAX);
        }
        self.check_clean(vmcb);
        let mut guest = self.guest(vmcb);
        let exit = self.run(vmcb, &mut guest);
        self.check_permission(vmcb, &guest, exit);
        self.leave(vmcb, &guest, exit);
        let mut core = self.host.processors().cpu(self.cpu);
        let kept = GROUPS.iter().map(|(_, words)| vmcb.words(words)).collect();
        core.svm.kept.insert(self.at, kept);
        core.svm.global_off = true;
    }

    fn note(&self, violation: Violation) {
        self.host.processors().note(violation);
    }

    /// What this VMM has to see to before each entry.
    fn check(&self, vmcb: Vmcb) -> Result<(), &'static str> {
        const INTR_TO_INIT: u32 = 0b1111;
        const CPUID_HLT_IO_MSR_SHUTDOWN: u32 = 1 << 18 | 1 << 24 | 1 << 27 | 1 << 28 | 1 << 31;
        const ALL_SVM: u32 = 0x7f;
        let core = self.host.processors().cpu(self.cpu);
        let svm = &core.svm;
        let asid = vmcb.u32(at::ASID);
        let must = INTR_TO_INIT | CPUID_HLT_IO_MSR_SHUTDOWN;
        let checks = [
            (svm.global_off, "VMRUN without CLGI"),
            (
                svm.interrupts,
                "VMRUN with host interrupts off: none would end the guest",
            ),
            (svm.msr(VM_HSAVE_PA) != 0, "VM_HSAVE_PA is not set"),
            (
                self.at % (2 << 20) != 0 && svm.msr(VM_HSAVE_PA) % (2 << 20) != 0,
                "a VMCB or save area at the beginning of a large page",
            ),
            (
                svm.msr(DEBUGCTL) == 0,
                "a guest runs under the host's DEBUGCTL",
            ),
            (
                svm.hidden_of == Some(self.at),
                "another guest's VMLOAD state",
            ),
            (
                vmcb.u64(at::EFER) & efer::SVME != 0,
                "guest EFER.SVME is clear",
            ),
            (
                asid != 0 && asid < self.host.processors().config.tags,
                "no such ASID",
            ),
            (
                vmcb.u64(at::CR4) & cr4::MCE != 0 && vmcb.u16(at::CR_WRITES) & 1 << 4 != 0,
                "CR4.MCE is not the host's, or need not stay so",
            ),
            (vmcb.u64(at::NP_ENABLE) & 1 != 0, "nested paging is off"),
            (
                vmcb.u32(at::INTERCEPTS_3) & must == must,
                "an intercept is missing",
            ),
            (
                vmcb.u32(at::INTERCEPTS_4) & ALL_SVM == ALL_SVM,
                "SVM instructions are not intercepted",
            ),
            (
                vmcb.u64(at::V_INTR) & 1 << 24 != 0,
                "V_INTR_MASKING is clear",
            ),
            (
                vmcb.u32(at::EXCEPTIONS) & 0x60002 == 0x60002,
                "#DB, #AC or #MC is not intercepted",
            ),
        ];
        match checks.into_iter().find(|(good, _)| !good) {
            Some((_, what)) => Err(what),
            None => Ok(()),
        }
    }

    /// Groups that are called clean must be as this CPU left them, and this CPU the last that used the VMCB.
    fn check_clean(&mut self, vmcb: Vmcb) {
        let clean = vmcb.u32(at::CLEAN);
        let last = self.host.processors().moved(self.at, self.cpu);
        if clean != 0 && last != Some(self.cpu) {
            self.note(Violation::StaleField("something is clean on a new CPU"));
        }
        let core = self.host.processors().cpu(self.cpu);
        let Some(kept) = core.svm.kept.get(&self.at) else {
            return;
        };
        for (bit, ((name, words), kept)) in GROUPS.iter().zip(kept).enumerate() {
            if clean & 1 << bit != 0 && *kept != vmcb.words(words) {
                self.note(Violation::StaleField(name));
            }
        }
    }

    fn guest(&self, vmcb: Vmcb) -> Guest {
        let control = vmcb.u64(at::V_INTR);
        let (v_irq, ignore_tpr) = (control & 1 << 8 != 0, control & 1 << 20 != 0);
        let priority = (control >> 16 & 15) as u8;
        let intercepts = vmcb.u32(at::INTERCEPTS_3);
        let vintr = v_irq && intercepts & 1 << 4 != 0;
        let mut guest = Guest {
            policy: Policy {
                cr_reads: vmcb.u16(at::CR_READS),
                cr_writes: vmcb.u16(at::CR_WRITES),
                exceptions: vmcb.u32(at::EXCEPTIONS),
                iret: intercepts & 1 << 20 != 0,
                invlpg: intercepts & 1 << 25 != 0,
                split_locks_fault: false,
                masks: None,
            },
            shadow: vmcb.u64(at::SHADOW) & 1 != 0,
            cr8: (control & 15) as u8,
            injected: decode(vmcb),
            interrupt_window: vintr.then_some(if ignore_tpr { 16 } else { priority }),
            tsc: tsc().wrapping_add(vmcb.u64(at::TSC_OFFSET)),
            ..Guest::default()
        };
        vmcb.load(&mut guest.state);
        guest.state.gprs = *self.gprs;
        guest.state.gprs[Reg::Rax] = vmcb.u64(at::RAX);
        guest.state.gprs[Reg::Rsp] = vmcb.u64(at::RSP);
        guest
    }

    fn run(&self, vmcb: Vmcb, guest: &mut Guest) -> Exit {
        let processors = self.host.processors();
        let mut core = processors.cpu(self.cpu);
        let asid = vmcb.u32(at::ASID);
        match vmcb.u8(at::TLB_CONTROL) {
            0 => {}
            1 => core.tlb.flush(),
            3 => core.tlb.flush_tag(asid),
            _ => processors.note(Violation::Svm("TLB_CONTROL has a reserved value")),
        }
        let cut = processors.config.cut_short_one_in;
        let cuts = cut > 0 && self.host.random() % cut == 0;
        if cuts && self.host.interrupted() && guest.injected.is_some() {
            guest.interrupted = guest.injected.take();
            return Exit::HostInterrupt;
        }
        let mut bus = Bus {
            host: self.host,
            processors,
            tlb: &mut core.tlb,
            space: Space {
                root: Hpa(vmcb.u64(at::N_CR3)),
                format: processors.config.format,
                tag: asid,
                owner: Default::default(),
            },
        };
        guest.run(&mut bus, || self.host.interrupted())
    }

    /// Guests here reach no port and no register without an exit; the permission maps must say so.
    fn check_permission(&self, vmcb: Vmcb, guest: &Guest, exit: Exit) {
        let (map, bit) = match exit {
            Exit::Port(access) => (at::IOPM, u64::from(access.port)),
            Exit::ReadMsr | Exit::WriteMsr => match msr_bit(guest.state.gprs[Reg::Rcx] as u32) {
                Some(bit) => (at::MSRPM, bit + u64::from(exit == Exit::WriteMsr)),
                None => return,
            },
            _ => return,
        };
        let map = Hpa(vmcb.u64(map) + bit / 8);
        // SAFETY: a byte of a map that lives as long as the backend.
        let byte = unsafe { self.host.phys_to_virt(map).read_volatile() };
        if byte & 1 << (bit % 8) == 0 {
            self.note(Violation::Svm(
                "a permission map lets through what the VMM wants to see",
            ));
        }
    }

    /// #VMEXIT.
    fn leave(&mut self, vmcb: Vmcb, guest: &Guest, exit: Exit) {
        let (code, info_1, info_2) = encode_exit(guest, exit);
        vmcb.set_u64(at::EXIT_CODE, code);
        vmcb.set_u64(at::EXIT_INFO_1, info_1);
        vmcb.set_u64(at::EXIT_INFO_2, info_2);
        let cut_short = guest.interrupted.map_or(0, encode);
        vmcb.set_u64(at::EXIT_INT_INFO, cut_short);
        vmcb.set_u64(at::SHADOW, guest.shadow.into());
        let next_rip = guest
            .next_rip
            .filter(|_| self.host.processors().config.next_rip);
        vmcb.set_u64(at::NEXT_RIP, next_rip.unwrap_or(0));
        let v_irq = u64::from(guest.interrupt_window.is_some()) << 8;
        let control = vmcb.u64(at::V_INTR) & !0x10f;
        vmcb.set_u64(at::V_INTR, control | v_irq | u64::from(guest.cr8));
        vmcb.store(&guest.state);
        vmcb.set_u64(at::RAX, guest.state.gprs[Reg::Rax]);
        vmcb.set_u64(at::RSP, guest.state.gprs[Reg::Rsp]);
        if exit == Exit::TripleFault {
            // Undefined after a shutdown (APM 2: 15.14.3).
            vmcb.set_u64(at::CR0, u64::MAX);
            vmcb.set_u64(at::RFLAGS, 0xdead);
        }
        *self.gprs = guest.state.gprs;
        let flushed = vmcb.u8(at::TLB_CONTROL) != 0;
        self.host.processors().note_life(self.at, guest, flushed);
    }
}

/// The first of a register's two bits in the permission map (APM 2: 15.11).
fn msr_bit(index: u32) -> Option<u64> {
    let vector = match index {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 1,
        0xc001_0000..=0xc001_1fff => 2,
        _ => return None,
    };
    Some(vector * 0x4000 + u64::from(index & 0x1fff) * 2)
}

/// EVENTINJ (APM 2: 15.20).
fn decode(vmcb: Vmcb) -> Option<Event> {
    let field = vmcb.u64(at::EVENT_INJ);
    let vector = field as u8;
    let error_code = (field & 1 << 11 != 0).then_some((field >> 32) as u32);
    (field & 1 << 31 != 0).then(|| match field >> 8 & 7 {
        0 => Event::Interrupt(vector),
        2 => Event::Nmi,
        3 => Event::Exception(Exception {
            vector,
            error_code,
            cr2: None,
        }),
        4 => Event::Software {
            vector,
            next_rip: vmcb.u64(at::NEXT_RIP),
        },
        other => panic!("EVENTINJ of type {other}"),
    })
}

/// EXITINTINFO (APM 2: 15.7.2).
fn encode(event: Event) -> u64 {
    let field = match event {
        Event::Interrupt(vector) => u64::from(vector),
        Event::Nmi => 2 << 8 | 2,
        Event::Exception(e) => {
            let code = e.error_code.map_or(0, |c| 1 << 11 | u64::from(c) << 32);
            3 << 8 | u64::from(e.vector) | code
        }
        Event::Software { vector, .. } => 4 << 8 | u64::from(vector),
    };
    1 << 31 | field
}

/// The selector of a task, in tests.
pub const TASK: u64 = 8;

/// EXITCODE, EXITINFO1 and EXITINFO2 (APM 2: appendix C).
fn encode_exit(guest: &Guest, exit: Exit) -> (u64, u64, u64) {
    match exit {
        Exit::HostInterrupt => (0x60, 0, 0),
        Exit::InterruptWindow => (0x64, 0, 0),
        Exit::ReadPmc => (0x6f, 0, 0),
        Exit::Cpuid => (0x72, 0, 0),
        Exit::Emulate if guest.returning => (0x74, 0, 0),
        Exit::Emulate => (guest.moved, 0, 0),
        Exit::Pause => (0x77, 0, 0),
        Exit::Halt => (0x78, 0, 0),
        Exit::Port(access) => (0x7b, encode_port(access), guest.next_rip.unwrap_or(0)),
        Exit::ReadMsr => (0x7c, 0, 0),
        Exit::WriteMsr => (0x7c, 1, 0),
        // With the selector of the other task (APM 2: 15.14.1).
        Exit::TaskSwitch => (0x7d, TASK, 0),
        Exit::TripleFault => (0x7f, 0, 0),
        Exit::Hypercall => (0x81, 0, 0),
        Exit::CacheControl => (0x89, 0, 0),
        Exit::Monitor => (0x8a, 0, 0),
        Exit::SetXcr => (0x8d, 0, 0),
        Exit::Exception(e) => {
            let info_1 = e.error_code.unwrap_or(0).into();
            (0x40 + u64::from(e.vector), info_1, e.cr2.unwrap_or(0))
        }
        Exit::NestedFault(fault) => (0x400, encode_fault(fault), fault.gpa.0),
        other => panic!("{other:?} under SVM"),
    }
}

fn encode_port(access: PortAccess) -> u64 {
    let size = u64::from(access.size) << 4;
    u64::from(access.port) << 16 | size | u64::from(access.string) << 2 | u64::from(!access.write)
}

/// Of a page that is not present, in the final translation, by a user access as all are (APM 2: 15.25.6).
fn encode_fault(fault: NestedFault) -> u64 {
    1 << 32 | 1 << 2 | u64::from(fault.write) << 1 | u64::from(fault.fetch) << 4
}

/// SSE3, PCID, MOVBE, RDRAND.
pub const ECX_1: u32 = 1 << 0 | 1 << 17 | 1 << 22 | 1 << 30;
/// All that 64-bit processors have.
pub const EDX_1: u32 = 0x078b_fbff;
/// FSGSBASE, SMEP, INVPCID, SMAP.
pub const EBX_7: u32 = 1 << 0 | 1 << 7 | 1 << 10 | 1 << 20;
/// UMIP, LA57, RDPID.
pub const ECX_7: u32 = 1 << 2 | 1 << 16 | 1 << 22;

/// CPUID of a processor with SVM: nested paging, and what the test's processor has.
pub fn cpuid(leaf: u32, next_rip: bool, flush_by_asid: bool, asids: u32) -> [u32; 4] {
    let svm = 1 | u32::from(next_rip) << 3 | u32::from(flush_by_asid) << 6;
    match leaf {
        0 => [7, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        1 => [0, 0, ECX_1, EDX_1],
        7 => [0, EBX_7, ECX_7, 0],
        0x8000_0000 => [0x8000_000a, 0, 0, 0],
        // SVM, CR8 by LOCK MOV; what leaf 1 says, SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
        0x8000_0001 => [
            0,
            0,
            1 << 2 | 1 << 4,
            EDX_1 & 0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29,
        ],
        0x8000_0008 => [48, 0, 0, 0],
        0x8000_000a => [1, asids, 0, svm],
        _ => [0; 4],
    }
}
