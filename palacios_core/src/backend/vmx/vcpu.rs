// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU under VT-x.
//!
//! The VMCS holds its registers, but for the general ones other than RSP, CR2, DR0–DR3, DR6, floating-point state, and the
//! model-specific registers that are switched with the window. CR8 is in the virtual-APIC page, where the guest reads and
//! writes it without an exit.
//!
//! Against speculation across guests: when another vCPU ran on the CPU last, an indirect branch prediction barrier is issued
//! where there is one, whatever mitigations the host was told to use; where the first-level data cache may leak (L1TF), it
//! is flushed when a window opens. A guest runs under the host's SPEC_CTRL. See also [`super::enter`].

use super::super::cpu::{self, MSR_PRED_CMD, MSR_TSC_AUX, PRED_CMD_IBPB};
use super::super::debug::{self, Breakpoints};
use super::super::fpu::Fpu;
use super::super::pages::Pages;
use super::super::paging;
use super::super::switched::Switched;
use super::super::tags::Flush;
use super::super::{BackendVcpu, Event, Exit, Intercepts};
use super::caps::{msr, Caps};
use super::controls::{self, blocking, event, primary, secondary};
use super::cpus::{CpuSlot, PerCpu, Vmx};
use super::events::{set_blocking, Events, ExitOutcome};
use super::exit::{reason, Exited};
use super::field::*;
use super::instructions as vmx;
use super::operation::{Operation, Refused};
use super::permission::{IN_WINDOWS, SWITCHED};
use super::registers;
use super::samples::Samples;
use super::split_locks::SplitLocks;
use super::vmcs::Vmcs;
use super::{check, enter};
use crate::addr::Hpa;
use crate::features::GuestFeatures;
use crate::host::{CpuId, Host, NoMemory};
use crate::state::{
    rflags, Control, CpuState, DescriptorTable, Gprs, Reg, Seg, Segment, TableRegister,
};
use crate::xsave::XsaveArea;
use core::sync::atomic::Ordering::Relaxed;

/// Where the task priority stands in the virtual-APIC page; CR8 is its upper half (SDM 3C: 29.1.1).
const VIRTUAL_TPR: usize = 0x80;
/// IA32_FLUSH_CMD: the first-level data cache.
const FLUSH_L1D: u64 = 1;
/// What a #DB says in DR6: breakpoints, general detect, a single step.
const DR6_HITS: u64 = 0xf;
const DR6_DETECTS: u64 = 1 << 13 | 1 << 14;
/// DR7: general detect; a #DB clears it (SDM 3B: 17.2.4).
const DR7_GD: u64 = 1 << 13;

/// A virtual CPU.
pub struct Vcpu<H: Host> {
    caps: Caps,
    /// Unlike any other's of this backend, and not 0.
    id: u64,
    vmcs: Vmcs<H>,
    virtual_apic: Pages<H>,
    operation: Operation,
    gprs: Gprs,
    events: Events,
    exit: Exited,
    fpu: Fpu<H>,
    breakpoints: Breakpoints,
    switched: [Switched; IN_WINDOWS.len()],
    /// What RDTSCP gives, if guests have it.
    tsc_aux: Option<Switched>,
    split_locks: SplitLocks,
    /// If the processor has them.
    samples: Option<Samples<H>>,
    slot: CpuSlot,
    cr2: u64,
    /// DR6 while the guest does not have the debug registers.
    dr6: u64,
}

impl<H: Host> Vcpu<H> {
    pub(super) fn new(host: &H, vmx: &Vmx<H>, features: &GuestFeatures) -> Result<Self, NoMemory> {
        let caps = vmx.caps.of_guest(features);
        let mut vmcs = Vmcs::new(host, caps.revision)?;
        let samples = match caps.samples {
            true => Some(Samples::new(host, &mut vmcs)?),
            false => None,
        };
        let mut vcpu = Self {
            caps,
            id: vmx.vcpus.fetch_add(1, Relaxed).wrapping_add(1),
            vmcs,
            virtual_apic: Pages::new(host, 1)?,
            operation: Operation::default(),
            gprs: Gprs::default(),
            events: Events::default(),
            exit: Exited::default(),
            fpu: Fpu::new(host, vmx.fpu)?,
            breakpoints: Breakpoints::default(),
            switched: IN_WINDOWS.map(Switched::open),
            tsc_aux: caps.tsc_aux.then_some(Switched::guarded(MSR_TSC_AUX)),
            split_locks: SplitLocks::default(),
            samples,
            slot: CpuSlot::default(),
            cr2: 0,
            dr6: 0,
        };
        vcpu.fill_controls(vmx.msr_maps.of(features).at());
        vcpu.power_on();
        vcpu.set_state(&CpuState::reset());
        Ok(vcpu)
    }

    /// What never changes (SDM 3C: 24.6 to 24.8).
    fn fill_controls(&mut self, msr_map: Hpa) {
        let (vmcs, caps) = (&mut self.vmcs, &self.caps);
        vmcs.set(PIN_CONTROLS, caps.pin);
        vmcs.set(PRIMARY_CONTROLS, caps.primary);
        vmcs.set(SECONDARY_CONTROLS, caps.secondary);
        vmcs.set(EXIT_CONTROLS, caps.exit);
        vmcs.set(ENTRY_CONTROLS, caps.entry);
        if caps.secondary & secondary::XSAVES == 0 {
            vmcs.leave_out(XSS_EXITS);
        }
        vmcs.set(EXCEPTIONS, controls::EXCEPTIONS);
        vmcs.set(SPIN_GAP, controls::SPIN_GAP);
        vmcs.set(SPIN_WINDOW, controls::SPIN_WINDOW);
        vmcs.set(PREEMPTION_TIMER, caps.stay);
        vmcs.set(MSR_MAP, msr_map.0);
        vmcs.set(VIRTUAL_APIC, self.virtual_apic.at().0);
        vmcs.set(LINK, u64::MAX);
        vmcs.set(CR0_MASK, Natural(caps.cr0_guarded));
        vmcs.set(CR4_MASK, Natural(caps.cr4_guarded));
    }

    /// Enters VMX operation with this VMCS.
    ///
    /// # Safety
    /// As [`BackendVcpu::load`].
    unsafe fn open(&mut self, per_cpu: &PerCpu<H>) -> Result<(), Exit> {
        // SAFETY: in a window; the region is this CPU's, the VMCS this vCPU's, which is on no other CPU.
        unsafe {
            match self.operation.enter(per_cpu.region.at().0) {
                Ok(()) => {}
                Err(Refused::Busy) => return Err(Exit::Busy),
                Err(Refused::Failed) => return Err(Exit::Gone),
            }
            if self.vmcs.load(self.vmcs.at().0).is_err() {
                self.operation.leave();
                return Err(Exit::Gone);
            }
            self.operation.fill_host(&mut self.vmcs);
        }
        Ok(())
    }

    /// Fills in the VMCS for the next entry.
    fn before_entry(&mut self) {
        if debug::armed(self.vmcs.get(DR7).0) {
            self.lend();
        }
        self.vmcs.set(RSP, Natural(self.gprs[Reg::Rsp]));
        let cr8 = self.cr8();
        self.events.before(&mut self.vmcs, &mut self.cr2, cr8);
        let exits = primary::DEBUG_REGISTERS.0;
        let controls = self.vmcs.get(PRIMARY_CONTROLS);
        let controls = match self.breakpoints.live() {
            true => controls & !exits,
            false => controls | exits,
        };
        self.vmcs.set(PRIMARY_CONTROLS, controls);
    }

    /// Takes in what the exit left in the VMCS.
    fn after_exit(&mut self) -> Result<ExitOutcome, vmx::Error> {
        self.exit = Exited::read(&self.vmcs);
        if self.exit.entry_failed {
            self.events.not_entered();
            return Ok(ExitOutcome::Untouched);
        }
        let dr7 = self.vmcs.get(DR7);
        self.vmcs.guest_ran();
        if !self.breakpoints.live() {
            // The guest cannot have written it.
            self.vmcs.assume(DR7, dr7);
        }
        self.gprs[Reg::Rsp] = self.vmcs.learn(RSP).0;
        self.vmcs.learn(RIP);
        self.vmcs.learn(INTERRUPTIBILITY);
        // Bit 1 of a guest's RFLAGS is set (SDM 3C: 26.3.1.4). If it reads as zero, VMREAD failed: after the exit, an NMI of a host
        // in panic has switched VMX off.
        if self.vmcs.learn(RFLAGS).0 & rflags::FIXED == 0 {
            return Err(vmx::Error::Gone);
        }
        Ok(self.events.after(&mut self.vmcs, &self.exit, self.cr2))
    }

    /// One entry and exit.
    fn run(&mut self, host: &H) -> Result<ExitOutcome, vmx::Error> {
        self.before_entry();
        // SAFETY: in the window of the last `load`, which entered VMX operation and filled in the host's state. The controls
        // have exit what a guest must not do alone, and its nested tables reach the guest's frames only. CR2 is the guest's
        // as long as nothing of the host can fault: what the host does in `guest_enter` and `guest_exit` may.
        let ran = unsafe {
            self.slot.flush(self.vmcs.get(EPT_POINTER));
            self.fpu.enter();
            if let Some(samples) = &mut self.samples {
                samples.before_entry();
            }
            host.guest_enter();
            if cpu::read_cr2() != self.cr2 {
                cpu::write_cr2(self.cr2);
            }
            let ran = enter::run(
                &mut self.gprs,
                self.vmcs.is_launched(),
                self.caps.clear_buffers,
            );
            self.cr2 = cpu::read_cr2();
            host.guest_exit();
            if let (Err(_), Some(samples)) = (ran, &mut self.samples) {
                samples.not_entered();
            }
            ran
        };
        match ran {
            Ok(()) => self.after_exit(),
            Err(vmx::Error::Failed) => {
                self.exit = Exited::failed(self.vmcs.info(INSTRUCTION_ERROR));
                self.events.not_entered();
                Ok(ExitOutcome::Untouched)
            }
            Err(vmx::Error::Gone) => Err(vmx::Error::Gone),
        }
    }

    /// Gives the guest the debug registers until the window closes.
    fn lend(&mut self) {
        if !self.breakpoints.live() {
            self.breakpoints.lend();
            // SAFETY: in a window; `unload` puts back what the host expects.
            unsafe { cpu::write_dr6(self.dr6) };
        }
    }
    fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
        if self.breakpoints.live() {
            // SAFETY: as in `lend`.
            unsafe { cpu::write_dr6(value) };
        }
    }
    fn dr6(&self) -> u64 {
        match self.breakpoints.live() {
            true => cpu::read_dr6(),
            false => self.dr6,
        }
    }

    /// A #DB exited: an exit leaves to the VMM what the processor does before it delivers one (SDM 3C: 27.1).
    fn note_debug(&mut self) {
        if self.exit.event & event::TYPE == event::PRIVILEGED_SOFTWARE {
            return;
        }
        let says = self.exit.qualification & (DR6_HITS | DR6_DETECTS);
        self.set_dr6(self.dr6() & !DR6_HITS | says);
        let dr7 = self.vmcs.get(DR7).0;
        self.vmcs.set(DR7, Natural(dr7 & !DR7_GD));
    }

    /// Whether the exit is an alignment check (#AC) that only the host's split-lock detection asked for: the guest did not switch
    /// alignment checks on. Then detection is off for a while, and the guest runs the instruction again.
    fn was_split_lock(&mut self) -> bool {
        self.exit.is_alignment()
            && !registers::checks_alignment(&self.vmcs, &self.caps)
            // SAFETY: in a window; `unload` ends it.
            && unsafe { self.split_locks.allow() }
    }

    fn tpr(&self) -> *mut u8 {
        // SAFETY: inside of the page.
        unsafe { self.virtual_apic.as_ptr().as_ptr().add(VIRTUAL_TPR) }
    }

    fn switched(&self, index: u32) -> Option<&Switched> {
        self.switched
            .iter()
            .chain(&self.tsc_aux)
            .find(|register| register.index() == index)
    }
}

impl<H: Host> BackendVcpu<H, Vmx<H>> for Vcpu<H> {
    fn load(&mut self, _: &H, vmx: &Vmx<H>, cpu: CpuId) {
        self.slot.refused = Some(Exit::Gone);
        let Some(per_cpu) = vmx.cpu(cpu).filter(|per_cpu| per_cpu.enabled.load(Relaxed)) else {
            return;
        };
        self.breakpoints.open();
        // SAFETY: in a window, on `cpu`. The barrier and the flush take nothing from the host but time, the switched registers
        // get their values back in `unload`, and floating-point state was put away by the host.
        unsafe {
            if let Err(why) = self.open(per_cpu) {
                self.slot.refused = Some(why);
                return;
            }
            if per_cpu.last_vcpu.swap(self.id, Relaxed) != self.id && self.caps.ibpb {
                let _ = cpu::write_msr(MSR_PRED_CMD, PRED_CMD_IBPB);
            }
            if self.caps.flush_l1d {
                let _ = cpu::write_msr(msr::FLUSH_CMD, FLUSH_L1D);
            }
            for register in self.switched.iter_mut().chain(&mut self.tsc_aux) {
                register.load();
            }
            self.fpu.load();
        }
        if let Some(samples) = &mut self.samples {
            samples.open(&mut self.vmcs);
        }
        if let Some(tag) = self.slot.take(cpu, per_cpu, vmx.tags) {
            self.vmcs.set(VPID, tag.number as u16);
        }
        self.slot.loaded = true;
        self.slot.refused = None;
    }

    fn enter(&mut self, host: &H) -> Exit {
        // Once more at most for each: debug registers, the task priority and split locks exit no more until they are asked
        // to again.
        loop {
            if let Some(why) = self.slot.refused {
                return why;
            }
            match self.run(host) {
                Ok(ExitOutcome::Untouched) => {}
                Ok(ExitOutcome::EnterAgain) => continue,
                Ok(ExitOutcome::InterruptWindow) => return Exit::InterruptWindow,
                Ok(ExitOutcome::NmiWindow) => return Exit::NmiWindow,
                Err(_) => {
                    self.slot.refused = Some(Exit::Gone);
                    continue;
                }
            }
            // What exits here keeps the host's handler from running, so it is run by hand.
            if self.exit.is_nmi() {
                cpu::raise_nmi();
                return Exit::HostInterrupt;
            }
            if self.exit.is_machine_check() {
                return cpu::machine_check(host);
            }
            if self.exit.entry_failed {
                return Exit::BadState(check::fault(&self.vmcs, &self.caps, &self.exit));
            }
            if self.exit.is_debug() {
                self.note_debug();
            }
            if self.was_split_lock() {
                self.events.go_on();
                continue;
            }
            match self.exit.reason {
                reason::DEBUG_REGISTER => self.lend(),
                _ => return self.exit.translate(),
            }
        }
    }

    fn unload(&mut self, host: &H, vmx: &Vmx<H>) {
        if !core::mem::take(&mut self.slot.loaded) {
            return;
        }
        self.slot.leave(vmx);
        if self.breakpoints.live() {
            self.dr6 = cpu::read_dr6();
            self.breakpoints.close(self.dr6);
        } else {
            self.breakpoints.close(debug::DR6_INITIAL);
        }
        // SAFETY: in the window of `load`; all that was the host's is so again.
        unsafe {
            self.fpu.unload();
            for register in self.switched.iter_mut().chain(&mut self.tsc_aux) {
                register.unload();
            }
            self.split_locks.unload();
            self.vmcs.unload(self.vmcs.at().0);
            self.operation.leave();
        }
        host.task_segment_cut();
    }

    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.vmcs.get(RIP).0
    }
    fn set_rip(&mut self, rip: u64) {
        self.vmcs.set(RIP, Natural(rip));
        set_blocking(&mut self.vmcs, blocking::SHADOW, false);
    }
    fn next_rip(&self) -> Option<u64> {
        self.exit
            .next_rip(self.rip(), registers::in_64_bit_code(&self.vmcs))
    }
    fn rflags(&self) -> u64 {
        self.vmcs.get(RFLAGS).0
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcs.set(RFLAGS, Natural(rflags));
    }

    fn control(&self) -> Control {
        Control {
            cr0: registers::cr0(&self.vmcs, &self.caps),
            cr2: self.cr2,
            cr3: self.vmcs.get(CR3).0,
            cr4: registers::cr4(&self.vmcs, &self.caps),
            efer: self.vmcs.get(EFER),
        }
    }
    fn set_control(&mut self, new: Control) {
        if paging::changes_translation(&self.control(), &new) {
            self.slot.flush = self.slot.flush.max(Flush::Tag);
        }
        registers::set_cr0(&mut self.vmcs, &self.caps, new.cr0);
        self.cr2 = new.cr2;
        self.vmcs.set(CR3, Natural(new.cr3));
        registers::set_cr4(&mut self.vmcs, &self.caps, new.cr4);
        registers::set_efer(&mut self.vmcs, new.efer);
    }
    fn set_page_directories(&mut self, entries: [u64; 4]) {
        for (field, entry) in [PDPTE_0, PDPTE_1, PDPTE_2, PDPTE_3]
            .into_iter()
            .zip(entries)
        {
            self.vmcs.set(field, entry);
        }
    }

    fn segment(&self, seg: Seg) -> Segment {
        registers::segment(&self.vmcs, seg)
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        registers::set_segment(&mut self.vmcs, seg, segment);
    }
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister) {
        registers::set_table(&mut self.vmcs, table, value);
    }
    fn cpl(&self) -> u8 {
        registers::cpl(&self.vmcs)
    }

    fn power_on(&mut self) {
        self.fpu.power_on();
        for index in SWITCHED.iter().chain(&IN_WINDOWS).chain(&[MSR_TSC_AUX]) {
            self.set_msr(*index, 0);
        }
        self.set_msr(msr::PAT, msr::INITIAL_PAT);
    }
    fn state(&self) -> CpuState {
        let mut state = CpuState {
            gprs: self.gprs,
            control: self.control(),
            dr: [0, 1, 2, 3].map(|n| self.breakpoints.get(n)),
            dr6: self.dr6(),
            xcr0: self.fpu.xcr0(),
            ..CpuState::reset()
        };
        registers::state(&self.vmcs, &mut state);
        state
    }
    fn set_state(&mut self, state: &CpuState) {
        self.flush_tlb();
        self.events = Events::default();
        self.gprs = state.gprs;
        self.cr2 = state.control.cr2;
        self.fpu.set_xcr0(state.xcr0);
        for (n, value) in (0..4).zip(state.dr) {
            self.breakpoints.set(n, value);
        }
        self.set_dr6(state.dr6);
        registers::fill(&mut self.vmcs, &self.caps, state);
    }

    fn msr(&self, index: u32) -> Option<u64> {
        match self.switched(index) {
            Some(register) => Some(register.get()),
            None => registers::msr(&self.vmcs, index),
        }
    }
    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        let good = match index {
            msr::LSTAR | msr::CSTAR | msr::KERNEL_GS_BASE => {
                registers::is_canonical(value, &self.caps)
            }
            // It has 32 bits.
            MSR_TSC_AUX => value >> 32 == 0,
            _ => true,
        };
        let mut registers = self.switched.iter_mut().chain(&mut self.tsc_aux);
        match registers.find(|register| register.index() == index) {
            Some(register) => good && register.set(value),
            None => registers::set_msr(&mut self.vmcs, &self.caps, index, value) == Some(true),
        }
    }

    fn debug_register(&self, n: u8) -> u64 {
        match n {
            6 => self.dr6(),
            7 => self.vmcs.get(DR7).0,
            n => self.breakpoints.get(n),
        }
    }
    fn set_debug_register(&mut self, n: u8, value: u64) {
        match n {
            6 => self.set_dr6(value),
            7 => self.vmcs.set(DR7, Natural(value)),
            n => self.breakpoints.set(n, value),
        }
    }
    fn xcr0(&self) -> u64 {
        self.fpu.xcr0()
    }
    fn set_xcr0(&mut self, value: u64) {
        self.fpu.set_xcr0(value);
    }
    fn fpu(&mut self) -> XsaveArea<'_> {
        self.fpu.area()
    }
    fn pkru(&self) -> u32 {
        self.fpu.pkru(self.slot.loaded)
    }

    fn inject(&mut self, event: Event) {
        self.events.pending = Some(event);
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.events.interrupted.take()
    }
    fn interruptible(&self) -> bool {
        self.events.interruptible(&self.vmcs)
    }
    fn nmi_allowed(&self) -> bool {
        self.events.nmi_allowed(&self.vmcs)
    }
    fn nmi_blocked(&self) -> bool {
        self.vmcs.get(INTERRUPTIBILITY) & blocking::NMI != 0
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        set_blocking(&mut self.vmcs, blocking::NMI, blocked);
    }
    fn pending_event(&self) -> Option<Event> {
        self.events.pending
    }
    fn interrupt_shadow(&self) -> bool {
        self.vmcs.get(INTERRUPTIBILITY) & blocking::SHADOW != 0
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        set_blocking(&mut self.vmcs, blocking::SHADOW, false);
        set_blocking(&mut self.vmcs, blocking::STI, on);
    }
    fn request_interrupt_window(&mut self, priority: Option<u8>) {
        self.events.interrupt_window = priority;
    }
    fn set_intercepts(&mut self, more: Intercepts) {
        let exceptions = match more.contains(Intercepts::EXCEPTIONS) {
            true => u32::MAX,
            false => controls::EXCEPTIONS,
        };
        self.vmcs.set(EXCEPTIONS, exceptions);
    }
    fn request_nmi_window(&mut self, on: bool) {
        self.events.nmi_window = on;
    }
    fn cr8(&self) -> u8 {
        // SAFETY: of the page, which the processor writes in guest mode only.
        unsafe { self.tpr().read_volatile() >> 4 }
    }
    fn set_cr8(&mut self, cr8: u8) {
        // SAFETY: as above.
        unsafe { self.tpr().write_volatile(cr8 << 4) };
    }

    fn set_table_root(&mut self, root: Hpa) {
        let pointer = self.caps.ept_pointer(root.0);
        self.vmcs.set(EPT_POINTER, pointer);
        self.flush_tlb();
    }
    fn flush_tlb(&mut self) {
        self.slot.flush = self.slot.flush.max(Flush::Tag);
        self.slot.nested_stale = true;
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.set(TSC_OFFSET, offset);
    }
}
