// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMX operation, for the length of one window, and the state of the host that it costs.
//!
//! CR4 is the host's: a kernel may rewrite it from a copy of its own whenever it likes, and to clear CR4.VMXE in VMX operation
//! is a #GP (SDM 3C: 23.8). So VMXE is set, and VMX operation entered, inside the window, in which nothing of the host runs
//! but NMI handlers; both end with it. A host that keeps VMXE itself would save VMXON and VMXOFF, some hundred cycles each.
//!
//! An exit loads the host's state from the VMCS, but not all of it comes back (SDM 3C: 27.5.2, 27.5.3): GDTR and IDTR have the
//! largest limit, LDTR is null, the task-state segment the smallest limit, DR7 and IA32_DEBUGCTL are empty. What is lost is
//! put back when the window closes. DR7 is [`super::super::debug`]'s, the task-state segment the host's
//! ([`crate::host::Host::task_segment_cut`]).

use super::super::cpu::{self, MSR_EFER};
use super::caps::msr;
use super::field::*;
use super::instructions as vmx;
use super::vmcs::Vmcs;
use crate::host::Host;
use core::arch::asm;

/// VMX is on (SDM 3C: 23.7).
pub(super) const CR4_VMXE: u64 = 1 << 13;

/// GDTR or IDTR, as instructions store it.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default)]
struct Table {
    limit: u16,
    base: u64,
}

/// Why VMX operation was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Somebody else is in it.
    Busy,
    /// VMXON failed or faulted.
    Failed,
}

/// VMX operation on this CPU, and what the host is to find again.
#[derive(Debug, Default)]
pub(super) struct Operation {
    cr4: u64,
    gdt: Table,
    idt: Table,
    ldt: u16,
    debugctl: u64,
}

impl Operation {
    /// Enters it. `region` is the address of this CPU's VMXON region.
    ///
    /// # Safety
    /// With interrupts off until [`Operation::leave`], on the same CPU.
    pub(super) unsafe fn enter(&mut self, region: u64) -> Result<(), Refused> {
        self.cr4 = cpu::read_cr4();
        if self.cr4 & CR4_VMXE != 0 {
            return Err(Refused::Busy);
        }
        self.save();
        // SAFETY: only VMXE changes, and it is cleared again before the host can see it.
        unsafe {
            cpu::write_cr4(self.cr4 | CR4_VMXE);
            if vmx::vmxon(region).is_ok() {
                return Ok(());
            }
            cpu::write_cr4(self.cr4);
        }
        Err(Refused::Failed)
    }
    /// Leaves it; the host is as it was.
    ///
    /// # Safety
    /// Undoes the last [`Operation::enter`], which succeeded.
    pub(super) unsafe fn leave(&self) {
        // SAFETY: by the contract above; what is put back was there before.
        unsafe {
            vmx::vmxoff();
            cpu::write_cr4(self.cr4);
            self.restore();
        }
    }

    fn save(&mut self) {
        self.debugctl = cpu::read_msr(msr::DEBUGCTL).unwrap_or(0);
        // SAFETY: stores to fields of that size.
        unsafe {
            asm!("sgdt [{}]", "sidt [{}]", "sldt {:x}", in(reg) &raw mut self.gdt, in(reg) &raw mut self.idt,
                out(reg) self.ldt, options(nostack, preserves_flags));
        }
    }
    /// # Safety
    /// The values are this CPU's own.
    unsafe fn restore(&self) {
        // SAFETY: by the contract above.
        unsafe {
            asm!("lgdt [{}]", "lidt [{}]", in(reg) &raw const self.gdt, in(reg) &raw const self.idt,
                options(nostack, preserves_flags));
            if self.ldt != 0 {
                asm!("lldt {:x}", in(reg) self.ldt, options(nostack, preserves_flags));
            }
            if self.debugctl != 0 {
                let _ = cpu::write_msr(msr::DEBUGCTL, self.debugctl);
            }
        }
    }

    /// Writes the host's part of the VMCS: this CPU's state at this moment, as an exit loads it (SDM 3C: 24.5).
    ///
    /// # Safety
    /// In VMX operation.
    pub(super) unsafe fn fill_host<H: Host>(&self, vmcs: &mut Vmcs<H>) {
        let (code, stack, task): (u16, u16, u16);
        // SAFETY: reads selectors.
        unsafe {
            asm!("mov {:x}, cs", "mov {:x}, ss", "str {:x}", out(reg) code, out(reg) stack, out(reg) task,
                options(nomem, nostack, preserves_flags));
        }
        let (gdt, idt) = (self.gdt.base, self.idt.base);
        vmcs.set(HOST_CS, code);
        vmcs.set(HOST_SS, stack);
        vmcs.set(HOST_TR, task);
        // SAFETY: the descriptor that TR was loaded from lies in the GDT.
        vmcs.set(HOST_TR_BASE, Natural(unsafe { task_segment(gdt, task) }));
        vmcs.set(HOST_GDTR_BASE, Natural(gdt));
        vmcs.set(HOST_IDTR_BASE, Natural(idt));
        vmcs.set(HOST_CR0, Natural(cpu::read_cr0()));
        vmcs.set(HOST_CR3, Natural(cpu::read_cr3()));
        vmcs.set(HOST_CR4, Natural(self.cr4 | CR4_VMXE));
        let read = |index| cpu::read_msr(index).unwrap_or(0);
        vmcs.set(HOST_FS_BASE, Natural(read(msr::FS_BASE)));
        vmcs.set(HOST_GS_BASE, Natural(read(msr::GS_BASE)));
        vmcs.set(HOST_SYSENTER_CS, read(msr::SYSENTER_CS) as u32);
        vmcs.set(HOST_SYSENTER_ESP, Natural(read(msr::SYSENTER_ESP)));
        vmcs.set(HOST_SYSENTER_EIP, Natural(read(msr::SYSENTER_EIP)));
        vmcs.set(HOST_PAT, read(msr::PAT));
        vmcs.set(HOST_EFER, read(MSR_EFER));
    }
}

/// The host has null selectors in DS, ES, FS and GS: an exit loads them without their descriptors, and user ones would be
/// refused (SDM 3C: 26.2.3).
pub(super) fn data_selectors_are_null() -> bool {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads selectors.
    unsafe {
        asm!("mov {:x}, ds", "mov {:x}, es", "mov {:x}, fs", "mov {:x}, gs", out(reg) ds, out(reg) es, out(reg) fs,
            out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    ds | es | fs | gs == 0
}

/// The base of the task-state segment: its descriptor has 16 bytes (SDM 3A: 7.2.3).
///
/// # Safety
/// `gdt` is a GDT that can be read, and `selector` that of a task-state segment in it.
unsafe fn task_segment(gdt: u64, selector: u16) -> u64 {
    let at = gdt.wrapping_add(u64::from(selector & !7));
    let (low, high): (u64, u64);
    // SAFETY: by the contract above.
    unsafe {
        asm!("mov {low}, [{at}]", "mov {high}, [{at} + 8]", low = out(reg) low, high = out(reg) high, at = in(reg) at,
            options(readonly, nostack, preserves_flags));
    }
    (low >> 16 & 0xff_ffff) | (low >> 56 << 24) | high << 32
}
