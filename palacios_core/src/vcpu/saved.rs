// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing a vCPU down, and going on from what was written.
#![forbid(unsafe_code)]

use super::context::RunContext;
use super::cpuid::valid_xcr0;
use super::msr_values::{MCG_STATUS, MCG_STATUS_BITS};
use super::owned::{new_apic, Vcpu, WaitsFor};
use super::record::{CpuRecord, EventRecord};
use super::tsc::Tsc;
use crate::addr::Gpa;
use crate::alloc_ext::{NoMemory, TryPush};
use crate::backend::{Backend, BackendVcpu};
use crate::host::Host;
use crate::memory::walk::GuestTables;
use crate::state::{cr0, cr4, efer, rflags, Control, CpuState};
use crate::state_io::{StateError, StateReader};
use crate::xsave::ComponentPlaces;
use alloc::vec::Vec;

/// The model-specific registers that backends hold for a guest, but for those that are parts of segments, as SDM 4: table 2-2 numbers them:
/// SPEC_CTRL, SYSENTER, PAT, STAR to SFMASK, KERNEL_GS_BASE, TSC_AUX.
const BACKEND_MSRS: [u32; 11] = [
    0x48,
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
];

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Writes it down. It does not run, and has caught up.
    pub(crate) fn record(&mut self, context: &RunContext<'_, H, B>) -> Result<CpuRecord, NoMemory> {
        let places = self.component_places(context);
        let mut state = self.arch.state();
        let mut interrupted = self.arch.pending_event().or(self.interrupted);
        if let Some(replay) = &self.replay {
            // What was executed again to learn about a triple fault is none of the guest's.
            (state.rip, state.rflags, interrupted) = (replay.rip, replay.rflags, replay.event);
        }
        Ok(CpuRecord {
            state,
            activity: self.activity,
            events: EventRecord {
                fault: self.fault,
                interrupted,
                held: self.held,
                waiting_nmis: self.waiting_nmis,
                nmi_blocked: self.arch.nmi_blocked(),
                interrupt_shadow: self.arch.interrupt_shadow(),
                pic_waits: self.waits_for.contains(WaitsFor::PIC),
            },
            msrs: self.record_msrs()?,
            fpu: self.arch.fpu().record(&places)?,
            apic: self.apic.clone(),
            tsc_ahead: self.tsc.ahead,
            pvclock: self.pvclock.clone(),
        })
    }

    fn record_msrs(&self) -> Result<Vec<(u32, u64)>, NoMemory> {
        let mut all = Vec::new();
        for index in BACKEND_MSRS {
            if let Some(value) = self.arch.msr(index) {
                all.try_push((index, value))?;
            }
        }
        for kept in self.msrs.kept::<H, B>() {
            all.try_push(kept)?;
        }
        Ok(all)
    }

    fn component_places(&self, context: &RunContext<'_, H, B>) -> ComponentPlaces {
        let cpuid = |leaf, subleaf| context.backend.cpuid(leaf, subleaf);
        ComponentPlaces::new(self.msrs.guest().xcr0(), cpuid)
    }

    /// Reads a record of a vCPU of this number. Nothing is changed.
    pub(crate) fn read_record(
        &self,
        context: &RunContext<'_, H, B>,
        bytes: &[u8],
    ) -> Result<CpuRecord, StateError> {
        let apic = new_apic(self.index, context.backend);
        let record = CpuRecord::read(&mut StateReader::new(bytes), apic)?;
        self.check(context, &record)?;
        Ok(record)
    }

    /// Whether a guest of these features could have come to this.
    fn check(&self, context: &RunContext<'_, H, B>, record: &CpuRecord) -> Result<(), StateError> {
        let (guest, state) = (self.msrs.guest(), &record.state);
        check_control(&state.control, guest.cr4(), guest.efer())?;
        let allowed = guest.xcr0().max(1);
        let checks = [
            (valid_xcr0(state.xcr0, allowed), "cpu.xcr0"),
            ((state.dr6 | state.dr7) >> 32 == 0, "cpu.dr"),
            (state.rflags >> 22 == 0, "cpu.rflags"),
            (
                record.pvclock.fits(context.board.memory().layout()),
                "cpu.pvclock",
            ),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, what)) => Err(StateError::Value(what)),
            None => Ok(()),
        }
    }

    /// Goes on from a record that was checked. Its RAM is there already.
    ///
    /// # Errors
    /// What the backend refuses. The vCPU is to be reset then.
    pub(crate) fn restore(
        &mut self,
        context: &RunContext<'_, H, B>,
        record: &CpuRecord,
    ) -> Result<(), StateError> {
        self.msrs.power_on::<H, B>();
        self.arch.power_on();
        self.init(&CpuState {
            rflags: record.state.rflags | rflags::FIXED,
            ..record.state
        });
        self.restore_page_directories(context, &record.state.control)?;
        for (index, value) in &record.msrs {
            self.restore_msr(*index, *value)?;
        }
        let places = self.component_places(context);
        self.arch.fpu().restore(&record.fpu, &places)?;
        self.activity = record.activity;
        self.apic = record.apic.clone();
        self.arch.set_cr8(self.apic.cr8());
        self.restore_events(&record.events);
        self.tsc = Tsc {
            ahead: record.tsc_ahead,
            ..self.tsc
        };
        self.pvclock = record.pvclock.clone();
        self.pvclock.count_from(context.shared.waited_ns());
        self.armed_ns = None;
        // No translation of another time is used.
        self.generation = 0;
        self.arch.flush_tlb();
        context.shared.set_filter(self.apic.filter());
        Ok(())
    }

    /// The VM's counter stood at `tsc` when the vCPU was written down, and ran at `khz`: a deadline of the guest's on it stays as far away in
    /// time, though the counter now runs at `new_khz`.
    pub(crate) fn count_tsc_from(&mut self, new_khz: u32, tsc: u64, khz: u32) {
        let now_tsc = tsc.wrapping_add(self.tsc.ahead);
        self.apic.change_tsc_rate(now_tsc, khz, new_khz);
    }

    fn restore_events(&mut self, events: &EventRecord) {
        self.fault = events.fault;
        self.interrupted = events.interrupted;
        self.held = events.held;
        self.waiting_nmis = events.waiting_nmis;
        self.arch.set_nmi_blocked(events.nmi_blocked);
        self.arch.set_interrupt_shadow(events.interrupt_shadow);
        self.waits_for = WaitsFor::empty();
        self.waits_for.set(WaitsFor::PIC, events.pic_waits);
    }

    /// As the guest's own write. What this processor does not have, the guest may not have used.
    fn restore_msr(&mut self, index: u32, value: u64) -> Result<(), StateError> {
        if index == MCG_STATUS && value & !MCG_STATUS_BITS == 0 {
            self.msrs.mcg_status = value;
            return Ok(());
        }
        match self.set_kept_msr(index, value) {
            Err(_) if value != 0 => Err(StateError::Value("cpu.msrs")),
            _ => Ok(()),
        }
    }

    /// Under PAE paging a processor keeps four entries in registers (SDM 3A: 4.4.1). They are looked up anew.
    fn restore_page_directories(
        &mut self,
        context: &RunContext<'_, H, B>,
        control: &Control,
    ) -> Result<(), StateError> {
        let pae = control.cr0 & cr0::PG != 0
            && control.cr4 & cr4::PAE != 0
            && control.efer & efer::LMA == 0;
        if !pae {
            return Ok(());
        }
        let mut tables = context.board.memory().resident();
        let mut entries = [0; 4];
        let table = Gpa(control.cr3 & 0xffff_ffe0);
        for (entry, offset) in entries.iter_mut().zip([0, 8, 16, 24]) {
            let read = tables.read_entry(table.wrapping_add(offset), 8);
            *entry = read.map_err(|_| StateError::Value("cpu.cr3"))?;
        }
        self.arch.set_page_directories(entries);
        Ok(())
    }
}

/// Control registers that go together, with no bit that the guest's features do not have (APM 2: 3.1, 14.6).
fn check_control(control: &Control, known_cr4: u64, known_efer: u64) -> Result<(), StateError> {
    let paging = control.cr0 & cr0::PG != 0;
    let long = control.efer & efer::LMA != 0;
    let checks = [
        (control.cr0 >> 32 == 0, "cpu.cr0"),
        (!paging || control.cr0 & cr0::PE != 0, "cpu.cr0"),
        (
            control.cr0 & cr0::NW == 0 || control.cr0 & cr0::CD != 0,
            "cpu.cr0",
        ),
        (control.cr4 & !known_cr4 == 0, "cpu.cr4"),
        (control.efer & !(known_efer | efer::LMA) == 0, "cpu.efer"),
        (
            long == (paging && control.efer & efer::LME != 0),
            "cpu.efer",
        ),
        (!long || control.cr4 & cr4::PAE != 0, "cpu.cr4"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some((_, what)) => Err(StateError::Value(what)),
        None => Ok(()),
    }
}
