// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest may write to its control registers, on every vendor's processor, and what goes with a write.
#![forbid(unsafe_code)]

use super::code::CodeMemory;
use super::owned::Vcpu;
use crate::addr::Gpa;
use crate::backend::{Backend, BackendVcpu};
use crate::emulator::Fault;
use crate::host::Host;
use crate::state::{cr0, cr4, efer, is_64_bit_code, Control, Exception, Seg, SegmentAttributes};

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Control register 0, 2, 3, 4 or 8.
    pub(super) fn control_register(&self, number: u8) -> u64 {
        let control = self.arch.control();
        match number {
            0 => control.cr0,
            2 => control.cr2,
            3 => control.cr3,
            4 => control.cr4,
            _ => u64::from(self.apic.cr8()),
        }
    }

    /// A move to one of them. On a fault nothing has happened. `tables` leads to what PAE paging looks up.
    pub(super) fn set_control_register(
        &mut self,
        tables: &mut impl CodeMemory,
        number: u8,
        value: u64,
    ) -> Result<(), Fault> {
        let mut control = self.arch.control();
        match number {
            0 => return self.set_cr0(tables, value),
            2 => control.cr2 = value,
            3 => return self.set_cr3(tables, value),
            4 => return self.set_cr4(tables, value),
            _ => return self.set_cr8(value),
        }
        self.arch.set_control(control);
        Ok(())
    }

    /// CR0 (APM 2: 3.1.1).
    fn set_cr0(&mut self, tables: &mut impl CodeMemory, value: u64) -> Result<(), Fault> {
        let arch = &mut self.arch;
        let mut control = arch.control();
        let paging = value & cr0::PG != 0;
        let bad = value >> 32 != 0
            || (paging && value & cr0::PE == 0)
            || (value & cr0::NW != 0 && value & cr0::CD == 0);
        let was_paging = control.cr0 & cr0::PG != 0;
        let long = control.efer & efer::LME != 0;
        let code = arch.segment(Seg::Cs).attributes;
        let enters_long = paging && !was_paging && long;
        if bad || (enters_long && (control.cr4 & cr4::PAE == 0 || code.has(SegmentAttributes::L))) {
            return Err(Exception::general_protection(0).into());
        }
        let from_64_bit_code = is_64_bit_code(control.efer, code);
        if !paging && was_paging && (from_64_bit_code || control.cr4 & cr4::PCIDE != 0) {
            return Err(Exception::general_protection(0).into());
        }
        if paging && long {
            control.efer |= efer::LMA;
        } else {
            control.efer &= !efer::LMA;
        }
        control.cr0 = value | cr0::ET;
        self.set_control(tables, control)
    }

    /// CR3 (SDM 3A: 4.5, 4.10.4.1). With PCIDs its last bit asks for no flush, and is not kept.
    fn set_cr3(&mut self, tables: &mut impl CodeMemory, value: u64) -> Result<(), Fault> {
        const NO_FLUSH: u64 = 1 << 63;
        let mut control = self.arch.control();
        let value = match control.cr4 & cr4::PCIDE {
            0 => value,
            _ => value & !NO_FLUSH,
        };
        let bits = self.msrs.backend().physical_bits;
        let too_high = u64::MAX.checked_shl(bits.into()).unwrap_or(0);
        if control.efer & efer::LMA != 0 && value & too_high != 0 {
            return Err(Exception::general_protection(0).into());
        }
        control.cr3 = value;
        self.set_control(tables, control)
    }

    /// CR4 (APM 2: 3.1.3; SDM 3A: 2.5). What CPUID does not offer cannot be set: nobody switches the state behind it.
    ///
    /// Which bits a guest has comes from `features/table.rs`, by way of `features/verdict.rs`. Which writes exit is decided in
    /// `backend/vmx/caps.rs` and `backend/svm/intercepts.rs`.
    fn set_cr4(&mut self, tables: &mut impl CodeMemory, value: u64) -> Result<(), Fault> {
        let there = self.msrs.guest().cr4();
        let arch = &mut self.arch;
        let mut control = arch.control();
        let long = control.efer & efer::LMA != 0;
        let (new, changed) = (value & !control.cr4, value ^ control.cr4);
        let bad = value & !there != 0
            || (long && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0))
            || (new & cr4::PCIDE != 0 && (!long || control.cr3 & 0xfff != 0));
        if bad {
            return Err(Exception::general_protection(0).into());
        }
        control.cr4 = value;
        self.set_control(tables, control)
    }

    /// CR8, the four upper bits of the local APIC's task priority (SDM 3A: 10.8.6.1; APM 2: 3.1.5).
    fn set_cr8(&mut self, value: u64) -> Result<(), Fault> {
        if value > 15 {
            return Err(Exception::general_protection(0).into());
        }
        self.apic.set_cr8(value as u8);
        self.arch.set_cr8(value as u8);
        Ok(())
    }

    /// Takes control registers over, with what PAE paging looks up at that moment (SDM 3A: 4.4.1).
    fn set_control(&mut self, tables: &mut impl CodeMemory, control: Control) -> Result<(), Fault> {
        let pae = control.cr0 & cr0::PG != 0
            && control.cr4 & cr4::PAE != 0
            && control.efer & efer::LMA == 0;
        if pae {
            let entries = self.page_directories(tables, control.cr3)?;
            self.arch.set_page_directories(entries);
        }
        self.arch.set_control(control);
        Ok(())
    }

    /// The four entries that `cr3` leads to under PAE paging. One that is present and has reserved bits set is a #GP.
    fn page_directories(&self, tables: &mut impl CodeMemory, cr3: u64) -> Result<[u64; 4], Fault> {
        const PRESENT: u64 = 1;
        // Bit 5 is reserved too, but QEMU's interpreter of SVM sets it, as an accessed bit.
        const RESERVED: u64 = 0b110 | 0b111 << 6;
        let bits = self.msrs.backend().physical_bits;
        let too_high = u64::MAX.checked_shl(bits.into()).unwrap_or(0);
        let mut entries = [0; 4];
        let table = Gpa(cr3 & 0xffff_ffe0);
        for (entry, offset) in entries.iter_mut().zip([0, 8, 16, 24]) {
            *entry = tables.read_table(table.wrapping_add(offset))?;
            if *entry & PRESENT != 0 && *entry & (RESERVED | too_high) != 0 {
                return Err(Exception::general_protection(0).into());
            }
        }
        Ok(entries)
    }
}
