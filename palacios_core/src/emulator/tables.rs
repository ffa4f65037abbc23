// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers that say where descriptors are: GDTR, IDTR, LDTR and TR (SDM 3A: 2.4).

use super::access::{Bytes, CheckedMemory};
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::Operand;
use super::processor::Processor;
use super::segments::{kind, null_segment, Descriptor, INDEX, LOCAL};
use crate::memory::walk::AccessKind;
use crate::state::{cr4, DescriptorTable, Exception, Seg, SegmentAttributes as A, TableRegister};

/// Type bit of a TSS: it is in use.
const BUSY: u16 = 2;

impl<C: Cpu> Execution<'_, C> {
    /// LGDT, LIDT: a limit of 2 bytes, then a base, of which 16-bit operations take 3 bytes.
    pub fn load_table(&mut self, table: DescriptorTable) -> Result<(), Fault> {
        self.require_cpl0()?;
        let memory = self.check_table(AccessKind::Read)?;
        let width = memory.width.wrapping_sub(2);
        let limit = self.processor.load(&memory.part(0, 2))?.value() as u16;
        let base = self.processor.load(&memory.part(2, width))?.value() as u64;
        let base = match (self.processor.mode.long, self.instruction.operand_width) {
            (false, 2) => base & 0xff_ffff,
            _ => base,
        };
        if self.processor.mode.long && !self.processor.is_canonical(base) {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        self.processor
            .cpu
            .set_table(table, TableRegister { base, limit });
        Ok(())
    }

    /// SGDT, SIDT. All bytes of the base are written, whatever the operand size.
    pub fn store_table(&mut self, table: DescriptorTable) -> Result<(), Fault> {
        self.check_user_mode_instruction_prevention()?;
        let memory = self.check_table(AccessKind::Write)?;
        let width = memory.width.wrapping_sub(2);
        let TableRegister { base, limit } = self.processor.cpu.table(table);
        self.processor
            .store(&memory.part(0, 2), &Bytes::new(limit.into(), 2))?;
        self.processor
            .store(&memory.part(2, width), &Bytes::new(base.into(), width))
    }

    fn check_table(&mut self, kind: AccessKind) -> Result<CheckedMemory, Fault> {
        let Operand::Memory(address) = self.operand(0) else {
            return Err(self.unsupported());
        };
        let offset = self.offset(&address);
        let width = self.instruction.memory_width;
        let at = self.processor.linear(address.seg, offset, width, kind)?;
        let access = self.processor.access(kind);
        self.processor.check_linear(at, width, access)
    }

    /// LLDT, LTR (SDM 2A).
    pub fn load_system_segment(&mut self, seg: Seg) -> Result<(), Fault> {
        self.require_protected_mode()?;
        self.require_cpl0()?;
        let from = self.target(0, AccessKind::Read)?;
        let selector = self.get(&from)? as u16;
        let processor = &mut self.processor;
        if selector & INDEX == 0 {
            if seg == Seg::Tr {
                return Err(processor.fault(Exception::general_protection(0)));
            }
            processor.cpu.set_segment(seg, null_segment(selector));
            return Ok(());
        }
        let found = processor.system_segment(seg, selector)?;
        let mut segment = found.segment();
        if seg == Seg::Tr {
            let mark = processor.check_mark(&found, BUSY)?;
            processor.set_mark(&mark)?;
            segment.attributes.0 |= BUSY;
        }
        processor.cpu.set_segment(seg, segment);
        Ok(())
    }

    /// SLDT, STR.
    pub fn store_system_segment(&mut self, seg: Seg) -> Result<(), Fault> {
        self.require_protected_mode()?;
        self.check_user_mode_instruction_prevention()?;
        let to = self.target(0, AccessKind::Write)?;
        let selector = self.processor.cpu.segment(seg).selector;
        self.set(&to, selector.into())
    }

    fn require_protected_mode(&self) -> Result<(), Fault> {
        match self.processor.has_plain_segments() {
            true => Err(self.processor.fault(Exception::INVALID_OPCODE)),
            false => Ok(()),
        }
    }

    /// CR4.UMIP keeps from outer levels what tells where the system's tables are.
    pub fn check_user_mode_instruction_prevention(&self) -> Result<(), Fault> {
        match self.processor.cpu.cr(4) & cr4::UMIP {
            0 => Ok(()),
            _ => self.require_cpl0(),
        }
    }
}

impl<C: Cpu> Processor<'_, C> {
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
