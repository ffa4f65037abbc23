// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU under SVM.
//!
//! The VMCB holds its registers, but for the general ones other than RAX and RSP, CR4.MCE, DR0–DR3, and floating-point state.
//! What the VMM changes there goes through [`VmcbPage::change`], which keeps the clean bits true.
//!
//! Against speculation across guests: when another vCPU ran on the CPU last, an indirect branch prediction barrier is
//! issued where there is one, whatever mitigations the host was told to use. A guest has its own SPEC_CTRL if the processor
//! keeps two (APM 2: 15.37.1), else none, and runs under the host's. A barrier that it asks for itself is issued when it is entered. See also [`super::enter`].

use super::super::cpu::{self, MSR_PRED_CMD, MSR_TSC_AUX, PRED_CMD_IBPB};
use super::super::debug::{self, Breakpoints};
use super::super::fpu::Fpu;
use super::super::paging;
use super::super::switched::Switched;
use super::super::tags::Flush;
use super::super::{BackendVcpu, Event, Exit, Intercepts};
use super::caps::Caps;
use super::cpus::{CpuSlot, PerCpu, Svm};
use super::events::{Events, ExitOutcome};
use super::exit::{self, code};
use super::permission::{msr, SWITCHED};
use super::vmcb::{tlb_control, Clean, Exceptions, VirtualInterrupt, VmcbPage};
use super::{check, enter, intercepts, registers};
use crate::addr::Hpa;
use crate::features::GuestFeatures;
use crate::host::{CpuId, Host, NoMemory};
use crate::state::{
    cr4, efer, Control, CpuState, DescriptorTable, Gprs, Reg, Seg, Segment, TableRegister,
};
use crate::xsave::XsaveArea;
use core::sync::atomic::Ordering::Relaxed;

/// A virtual CPU.
pub struct Vcpu<H: Host> {
    caps: Caps,
    /// Unlike any other's of this backend, and not 0.
    id: u64,
    pub(super) vmcb: VmcbPage<H>,
    /// CR4.MCE as the guest set it.
    mce: u64,
    gprs: Gprs,
    pub(super) events: Events,
    fpu: Fpu<H>,
    breakpoints: Breakpoints,
    pub(super) slot: CpuSlot,
    /// What RDTSCP gives, if there is such a register.
    tsc_aux: Option<Switched>,
    /// Zero in a guest. With the host's a bus lock would trap, and a trap flag count branches; VMRUN does not switch it, since
    /// guests have no branch records of their own (APM 2: 13.1.1.6, 15.23).
    debugctl: Switched,
    /// The guest asked for a barrier of its own against indirect branch prediction: before the next entry.
    barrier_due: bool,
}

impl<H: Host> Vcpu<H> {
    pub(super) fn new(host: &H, svm: &Svm<H>, features: &GuestFeatures) -> Result<Self, NoMemory> {
        let caps = svm.caps;
        let mut vmcb = VmcbPage::new(host)?;
        let control = &mut vmcb.change(Clean::all()).control;
        intercepts::always_intercept(control, &caps, features);
        control.iopm = caps.address(svm.io_map.at());
        control.msrpm = caps.address(svm.msr_maps.of(features).at());
        control.nested_paging = 1;
        control.virtual_interrupt = VirtualInterrupt::V_INTR_MASKING;
        let mut vcpu = Self {
            caps,
            id: svm.vcpus.fetch_add(1, Relaxed).wrapping_add(1),
            vmcb,
            mce: 0,
            gprs: Gprs::default(),
            events: Events::default(),
            fpu: Fpu::new(host, svm.fpu)?,
            breakpoints: Breakpoints::default(),
            slot: CpuSlot::default(),
            tsc_aux: caps.tsc_aux.then_some(Switched::guarded(MSR_TSC_AUX)),
            debugctl: Switched::guarded(msr::DEBUGCTL),
            barrier_due: false,
        };
        vcpu.power_on();
        vcpu.set_state(&CpuState::reset());
        Ok(vcpu)
    }

    /// Takes a slot on `cpu`: a tag that is valid there, and nothing that the processor may have cached on another CPU
    /// (APM 2: 15.15.2). What it kept of other vCPUs on the same CPU it tells apart by the VMCB's address.
    pub(super) fn take_slot(&mut self, cpu: CpuId, per_cpu: &PerCpu<H>) {
        let slot = &mut self.slot;
        if slot.cpu != Some(cpu) || !per_cpu.tags.is_current(slot.tag) {
            slot.cpu = Some(cpu);
            slot.tag = per_cpu.tags.assign(self.caps.asids);
            // What the old tag had to have flushed, the new one has not.
            slot.flush = per_cpu.tags.owed();
            self.vmcb.change(Clean::all()).control.asid = self.slot.tag.number;
        }
        self.slot.host_vmcb = self.caps.address(per_cpu.host_vmcb.at());
        self.slot.all_flushed = false;
    }

    /// Leaves the slot, and tells the CPU what was flushed there.
    pub(super) fn leave_slot(&self, svm: &Svm<H>) {
        if let Some(per_cpu) = self.slot.cpu.and_then(|cpu| svm.cpu(cpu)) {
            if self.slot.all_flushed {
                per_cpu.tags.all_flushed();
            }
        }
    }

    /// Fills in the VMCB for the next entry.
    pub(super) fn before_entry(&mut self) {
        let (rax, rsp) = (self.gprs[Reg::Rax], self.gprs[Reg::Rsp]);
        let flush = match self.slot.flush {
            Flush::Nothing => tlb_control::NOTHING,
            Flush::Tag if self.caps.flush_by_asid => tlb_control::THIS_ASID,
            Flush::Tag | Flush::All => tlb_control::ALL,
        };
        let vmcb = self.vmcb.uncached();
        (vmcb.save.rax, vmcb.save.rsp) = (rax, rsp);
        vmcb.control.tlb_control = flush;
        self.events.before(&mut self.vmcb, &self.caps);
        // The VMCB holds the guest's DR6 and DR7. DR0 to DR3 are the host's until they are loaded, so the guest must not reach them.
        let intercept = if self.breakpoints.live() { 0 } else { u16::MAX };
        if self.vmcb.get().control.dr_reads != intercept {
            let control = &mut self.vmcb.change(Clean::I).control;
            (control.dr_reads, control.dr_writes) = (intercept, intercept);
        }
    }

    /// Takes in what the exit left in the VMCB.
    pub(super) fn after_exit(&mut self) -> ExitOutcome {
        let vmcb = self.vmcb.uncached();
        // Of −1 some emulators write 32 bits only.
        if vmcb.control.exit_code == 0xffff_ffff {
            vmcb.control.exit_code = code::INVALID;
        }
        let code = vmcb.control.exit_code;
        (self.gprs[Reg::Rax], self.gprs[Reg::Rsp]) = (vmcb.save.rax, vmcb.save.rsp);
        if code == code::INVALID {
            vmcb.control.clean = Clean::empty();
            return ExitOutcome::Untouched;
        }
        // After a shutdown the saved state is undefined (APM 2: 15.14.3).
        vmcb.control.clean = if code == code::SHUTDOWN {
            Clean::empty()
        } else {
            Clean::all()
        };
        self.slot.all_flushed |= vmcb.control.tlb_control == tlb_control::ALL;
        self.slot.flush = Flush::Nothing;
        self.events.after(&mut self.vmcb)
    }

    /// Sets CR4. MCE stays as the host has it, whatever the guest sets: where the bit is clear, an error of the machine shuts
    /// the processor down instead of reaching the host (APM 2: 3.1.3). The guest reads what it wrote.
    fn set_cr4(&mut self, value: u64) {
        self.mce = value & cr4::MCE;
        let real = value & !cr4::MCE | self.caps.mce;
        self.vmcb.change(Clean::CRX).save.cr4 = real;
        let reads = if real == value { 0 } else { intercepts::CR4 };
        if self.vmcb.get().control.cr_reads != reads {
            self.vmcb.change(Clean::I).control.cr_reads = reads;
        }
    }

    /// One entry and exit.
    fn run(&mut self, host: &H) -> Result<ExitOutcome, enter::Gone> {
        if debug::armed(self.vmcb.get().save.dr7) {
            self.breakpoints.lend();
        }
        self.before_entry();
        let guest = self.caps.address(self.vmcb.at());
        // SAFETY: in the window of the last `load`, which put the guest's floating-point state in and saved the host's
        // rest on this CPU. The VMCB intercepts what a guest must not have, and its nested tables reach the guest's frames
        // only. No reference to it is alive. A barrier takes nothing from the host but time.
        unsafe {
            self.fpu.enter();
            if core::mem::take(&mut self.barrier_due) {
                let _ = cpu::write_msr(MSR_PRED_CMD, PRED_CMD_IBPB);
            }
            host.guest_enter();
            let ran = enter::run(
                guest,
                &mut self.gprs,
                self.slot.host_vmcb,
                self.caps.clear_buffers,
            );
            host.guest_exit();
            ran?;
        }
        Ok(self.after_exit())
    }
}

impl<H: Host> BackendVcpu<H, Svm<H>> for Vcpu<H> {
    fn load(&mut self, _: &H, svm: &Svm<H>, cpu: CpuId) {
        self.slot.refused = Some(Exit::Gone);
        let Some(per_cpu) = svm.cpu(cpu).filter(|per_cpu| per_cpu.enabled.load(Relaxed)) else {
            return;
        };
        self.take_slot(cpu, per_cpu);
        // SAFETY: in a window, on `cpu`; the page is that CPU's. The barrier takes nothing from the host but time, the switched
        // registers get their values back in `unload`, and floating-point state was put away by the host.
        unsafe {
            if enter::save_host(self.slot.host_vmcb).is_err() {
                return;
            }
            // An exit would load the host's state from there.
            if !svm.save_area_is_ours(per_cpu) {
                self.slot.refused = Some(Exit::Busy);
                return;
            }
            if per_cpu.last_vcpu.swap(self.id, Relaxed) != self.id && self.caps.ibpb {
                let _ = cpu::write_msr(MSR_PRED_CMD, PRED_CMD_IBPB);
            }
            for register in self.tsc_aux.iter_mut().chain([&mut self.debugctl]) {
                register.load();
            }
            self.breakpoints.open();
            self.fpu.load();
        }
        self.slot.loaded = true;
        self.slot.refused = None;
    }

    fn enter(&mut self, host: &H) -> Exit {
        if let Some(why) = self.slot.refused {
            return why;
        }
        if self.events.nmi_window && self.events.nmi_allowed(self.vmcb.get()) {
            self.events.nmi_window = false;
            return Exit::NmiWindow;
        }
        // Once more at most for each: IRET and debug registers exit no more until they are asked to again.
        loop {
            match self.run(host) {
                Ok(ExitOutcome::Untouched) => {}
                Ok(ExitOutcome::EnterAgain) => continue,
                Ok(ExitOutcome::NmiWindow) => return Exit::NmiWindow,
                Err(enter::Gone) => {
                    self.slot.refused = Some(Exit::Gone);
                    return Exit::Gone;
                }
            }
            match self.vmcb.get().control.exit_code {
                code::DR_FIRST..=code::DR_LAST => self.breakpoints.lend(),
                // APM 2: 15.12.18.
                code::MC => return cpu::machine_check(host),
                _ => return exit::translate(self.vmcb.get(), &self.caps),
            }
        }
    }

    fn unload(&mut self, _: &H, svm: &Svm<H>) {
        if !self.slot.loaded {
            return;
        }
        self.slot.loaded = false;
        self.leave_slot(svm);
        self.breakpoints.close(self.vmcb.get().save.dr6);
        // SAFETY: in the window of `load`; the switched registers get what they had.
        unsafe {
            self.fpu.unload();
            for register in self.tsc_aux.iter_mut().chain([&mut self.debugctl]) {
                register.unload();
            }
        }
    }

    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.vmcb.get().save.rip
    }
    fn set_rip(&mut self, rip: u64) {
        let vmcb = self.vmcb.uncached();
        vmcb.save.rip = rip;
        vmcb.control.interrupt_shadow = 0;
    }
    fn next_rip(&self) -> Option<u64> {
        exit::next_rip(&self.vmcb.get().control, &self.caps)
    }
    fn fetched(&self) -> &[u8] {
        exit::fetched(&self.vmcb.get().control, &self.caps)
    }
    fn rflags(&self) -> u64 {
        self.vmcb.get().save.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.uncached().save.rflags = rflags;
    }

    fn control(&self) -> Control {
        let save = &self.vmcb.get().save;
        Control {
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4 & !cr4::MCE | self.mce,
            efer: save.efer & !efer::SVME,
        }
    }
    fn set_control(&mut self, new: Control) {
        let old = self.control();
        if paging::changes_translation(&old, &new) {
            self.flush_tlb();
        }
        let changed = if old.cr2 != new.cr2 {
            Clean::CR2 | Clean::CRX
        } else {
            Clean::CRX
        };
        let save = &mut self.vmcb.change(changed).save;
        save.cr0 = new.cr0;
        save.cr2 = new.cr2;
        save.cr3 = new.cr3;
        save.efer = new.efer | efer::SVME;
        self.set_cr4(new.cr4);
    }

    fn segment(&self, seg: Seg) -> Segment {
        registers::segment(&self.vmcb.get().save, seg)
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        registers::set_segment(&mut self.vmcb.change(Clean::SEG).save, seg, segment);
    }
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister) {
        let save = &mut self.vmcb.change(Clean::DT).save;
        match table {
            DescriptorTable::Global => save.gdtr = value.into(),
            DescriptorTable::Interrupt => save.idtr = value.into(),
        }
    }
    fn cpl(&self) -> u8 {
        self.vmcb.get().save.cpl & 3
    }

    fn power_on(&mut self) {
        self.fpu.power_on();
        for index in SWITCHED.iter().chain(&[msr::SPEC_CTRL, MSR_TSC_AUX]) {
            self.set_msr(*index, 0);
        }
        self.set_msr(msr::PAT, msr::INITIAL_PAT);
    }
    fn state(&self) -> CpuState {
        let save = &self.vmcb.get().save;
        let segment = |seg| self.segment(seg);
        CpuState {
            gprs: self.gprs,
            rip: save.rip,
            rflags: save.rflags,
            control: self.control(),
            segments: [
                segment(Seg::Es),
                segment(Seg::Cs),
                segment(Seg::Ss),
                segment(Seg::Ds),
                segment(Seg::Fs),
                segment(Seg::Gs),
                segment(Seg::Ldtr),
                segment(Seg::Tr),
            ],
            gdtr: save.gdtr.into(),
            idtr: save.idtr.into(),
            dr: [0, 1, 2, 3].map(|n| self.breakpoints.get(n)),
            dr6: save.dr6,
            dr7: save.dr7,
            xcr0: self.fpu.xcr0(),
        }
    }

    fn set_state(&mut self, state: &CpuState) {
        self.flush_tlb();
        self.events = Events::default();
        self.gprs = state.gprs;
        self.fpu.set_xcr0(state.xcr0);
        for (n, value) in (0..4).zip(state.dr) {
            self.breakpoints.set(n, value);
        }
        let vmcb = self.vmcb.change(Clean::all());
        registers::fill(vmcb, state);
        self.set_cr4(state.control.cr4);
    }

    fn msr(&self, index: u32) -> Option<u64> {
        match index {
            msr::SPEC_CTRL if !self.caps.spec_ctrl => None,
            MSR_TSC_AUX => self.tsc_aux.as_ref().map(Switched::get),
            _ => registers::msr(&self.vmcb.get().save, index).copied(),
        }
    }
    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        let group = if index == msr::PAT {
            Clean::NP
        } else {
            Clean::empty()
        };
        match index {
            msr::SPEC_CTRL if !self.caps.spec_ctrl => false,
            // It has 32 bits.
            MSR_TSC_AUX if value >> 32 != 0 => false,
            MSR_TSC_AUX => self.tsc_aux.as_mut().is_some_and(|own| own.set(value)),
            msr::PAT if check::bad_pat(value) => false,
            MSR_PRED_CMD if value & !PRED_CMD_IBPB != 0 => false,
            MSR_PRED_CMD => {
                self.barrier_due |= value != 0;
                true
            }
            _ => registers::msr_mut(&mut self.vmcb.change(group).save, index)
                .map(|register| *register = value)
                .is_some(),
        }
    }

    fn debug_register(&self, n: u8) -> u64 {
        match n {
            6 => self.vmcb.get().save.dr6,
            7 => self.vmcb.get().save.dr7,
            n => self.breakpoints.get(n),
        }
    }
    fn set_debug_register(&mut self, n: u8, value: u64) {
        match n {
            6 => self.vmcb.change(Clean::DRX).save.dr6 = value,
            7 => self.vmcb.change(Clean::DRX).save.dr7 = value,
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
        self.events.interruptible(self.vmcb.get())
    }
    fn nmi_allowed(&self) -> bool {
        self.events.nmi_allowed(self.vmcb.get())
    }
    fn nmi_blocked(&self) -> bool {
        self.events.nmi_blocked()
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.events.set_nmi_blocked(blocked);
    }
    fn pending_event(&self) -> Option<Event> {
        self.events.pending
    }
    fn interrupt_shadow(&self) -> bool {
        self.vmcb.get().control.interrupt_shadow & 1 != 0
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        self.vmcb.uncached().control.interrupt_shadow = on.into();
    }
    fn request_interrupt_window(&mut self, priority: Option<u8>) {
        self.events.interrupt_window = priority;
    }
    fn set_intercepts(&mut self, more: Intercepts) {
        self.vmcb.change(Clean::I).control.exceptions = match more.contains(Intercepts::EXCEPTIONS)
        {
            true => Exceptions::all(),
            false => intercepts::EXCEPTIONS,
        };
    }
    fn request_nmi_window(&mut self, on: bool) {
        self.events.nmi_window = on;
    }
    fn cr8(&self) -> u8 {
        let interrupt = self.vmcb.get().control.virtual_interrupt;
        (interrupt & VirtualInterrupt::V_TPR).bits() as u8
    }
    fn set_cr8(&mut self, cr8: u8) {
        let control = &mut self.vmcb.change(Clean::TPR).control;
        let tpr = VirtualInterrupt::from_bits_retain((cr8 & 15).into());
        control.virtual_interrupt = control
            .virtual_interrupt
            .difference(VirtualInterrupt::V_TPR)
            | tpr;
    }

    fn set_table_root(&mut self, root: Hpa) {
        self.vmcb.change(Clean::NP).control.n_cr3 = self.caps.address(root);
        self.flush_tlb();
    }
    fn flush_tlb(&mut self) {
        self.slot.flush = self.slot.flush.max(Flush::Tag);
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.change(Clean::I).control.tsc_offset = offset;
    }
}
