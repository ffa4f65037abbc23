// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers that say where descriptors are: GDTR, IDTR, LDTR and TR (SDM 3A: 2.4).

use super::access::{Bytes, Place};
use super::instruction::Operand;
use super::machine::Machine;
use super::segments::{kind, null_segment, Descriptor, INDEX, LOCAL};
use super::{Cpu, Execution, Fault};
use crate::memory::walk::AccessKind;
use crate::state::{cr4, DescriptorTable, Exception, Seg, SegmentAttributes as A, TableRegister};

/// Type bit of a TSS: it is in use.
const BUSY: u16 = 2;

impl<C: Cpu> Execution<'_, C> {
    /// LGDT, LIDT: a limit of 2 bytes, then a base, of which 16-bit operations take 3 bytes.
    pub fn load_table(&mut self, table: DescriptorTable) -> Result<(), Fault> {
        self.require_cpl0()?;
        let place = self.place_table(AccessKind::Read)?;
        let width = place.width.wrapping_sub(2);
        let limit = self.machine.load(&place.part(0, 2))?.value() as u16;
        let base = self.machine.load(&place.part(2, width))?.value() as u64;
        let base = match (self.machine.mode.long, self.instruction.operand_width) {
            (false, 2) => base & 0xff_ffff,
            _ => base,
        };
        if self.machine.mode.long && !self.machine.is_canonical(base) {
            return Err(self.machine.fault(Exception::general_protection(0)));
        }
        self.machine
            .cpu
            .set_table(table, TableRegister { base, limit });
        Ok(())
    }

    /// SGDT, SIDT. All bytes of the base are written, whatever the operand size.
    pub fn store_table(&mut self, table: DescriptorTable) -> Result<(), Fault> {
        self.check_user_mode_instruction_prevention()?;
        let place = self.place_table(AccessKind::Write)?;
        let width = place.width.wrapping_sub(2);
        let TableRegister { base, limit } = self.machine.cpu.table(table);
        self.machine
            .store(&place.part(0, 2), &Bytes::new(limit.into(), 2))?;
        self.machine
            .store(&place.part(2, width), &Bytes::new(base.into(), width))
    }

    fn place_table(&mut self, kind: AccessKind) -> Result<Place, Fault> {
        let Operand::Memory(address) = self.operand(0) else {
            return Err(self.unsupported());
        };
        let offset = self.offset(&address);
        let width = self.instruction.memory_width;
        let at = self.machine.linear(address.seg, offset, width, kind)?;
        let access = self.machine.access(kind);
        self.machine.place_linear(at, width, access)
    }

    /// LLDT, LTR (SDM 2A).
    pub fn load_system_segment(&mut self, seg: Seg) -> Result<(), Fault> {
        self.require_protected_mode()?;
        self.require_cpl0()?;
        let from = self.target(0, AccessKind::Read)?;
        let selector = self.get(&from)? as u16;
        let machine = &mut self.machine;
        if selector & INDEX == 0 {
            if seg == Seg::Tr {
                return Err(machine.fault(Exception::general_protection(0)));
            }
            machine.cpu.set_segment(seg, null_segment(selector));
            return Ok(());
        }
        let found = machine.system_segment(seg, selector)?;
        let mut segment = found.segment();
        if seg == Seg::Tr {
            let mark = machine.place_mark(&found, BUSY)?;
            machine.set_mark(&mark)?;
            segment.attributes.0 |= BUSY;
        }
        machine.cpu.set_segment(seg, segment);
        Ok(())
    }

    /// SLDT, STR.
    pub fn store_system_segment(&mut self, seg: Seg) -> Result<(), Fault> {
        self.require_protected_mode()?;
        self.check_user_mode_instruction_prevention()?;
        let to = self.target(0, AccessKind::Write)?;
        let selector = self.machine.cpu.segment(seg).selector;
        self.set(&to, selector.into())
    }

    fn require_protected_mode(&self) -> Result<(), Fault> {
        match self.machine.has_plain_segments() {
            true => Err(self.machine.fault(Exception::INVALID_OPCODE)),
            false => Ok(()),
        }
    }

    /// CR4.UMIP keeps from outer levels what tells where the system's tables are.
    pub fn check_user_mode_instruction_prevention(&self) -> Result<(), Fault> {
        match self.machine.cpu.cr(4) & cr4::UMIP {
            0 => Ok(()),
            _ => self.require_cpl0(),
        }
    }
}

impl<C: Cpu> Machine<'_, C> {
    /// Reads and checks the descriptor that LLDT or LTR loads.
    fn system_segment(&mut self, seg: Seg, selector: u16) -> Result<Descriptor, Fault> {
        let bad = self.fault(Exception::general_protection((selector & INDEX).into()));
        if selector & LOCAL != 0 {
            return Err(bad);
        }
        let found = self.descriptor(selector, Exception::general_protection)?;
        let long = self.long_mode();
        let fits = match found.system() {
            Some(kind::LDT) => seg == Seg::Ldtr,
            Some(kind::TSS) => seg == Seg::Tr,
            Some(kind::TSS_16) => seg == Seg::Tr && !long,
            _ => false,
        };
        if !fits || !found.is_well_formed() {
            return Err(bad);
        }
        if !found.attributes().has(A::P) {
            return Err(self.fault(Exception::not_present(found.error_code())));
        }
        if long && !self.is_canonical(found.segment().base) {
            return Err(bad);
        }
        Ok(found)
    }
}
