// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves to and from control and debug registers, and who may use a port.
//!
//! Hardware checks privilege before it hands an instruction back. It is checked again here: another CPU may have changed
//! the instruction since.

use super::alu;
use super::cpu::{Behaviour, Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Op, Operand, Register};
use super::processor::Processor;
use crate::addr::Gva;
use crate::memory::walk::AccessKind;
use crate::state::{cr0, cr4, rflags, Exception, Reg, Seg, SegmentAttributes};

/// DR6: a debug register was accessed under general detect.
const DR6_BD: u64 = 1 << 13;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;
/// Offset of the I/O map's offset in a 32- or 64-bit TSS (SDM 3A: 8.2.1).
const TSS_IO_MAP: u64 = 0x66;

impl<C: Cpu> Execution<'_, C> {
    /// CLTS, LMSW, SMSW, INVLPG.
    pub fn system(&mut self) -> Result<(), Fault> {
        let cr0 = self.processor.cpu.cr(0);
        match self.instruction.op {
            Op::Smsw => {
                self.check_user_mode_instruction_prevention()?;
                let to = self.target(0, AccessKind::Write)?;
                self.set(&to, cr0)
            }
            Op::Lmsw => {
                self.require_cpl0()?;
                let from = self.target(0, AccessKind::Read)?;
                let value = self.get(&from)?;
                // PE can be set this way, but not cleared.
                let kept = cr0 & !(cr0::MP | cr0::EM | cr0::TS);
                self.processor.cpu.set_cr(0, kept | value & 0xf)
            }
            Op::Invlpg => {
                self.require_cpl0()?;
                let Operand::Memory(address) = self.operand(0) else {
                    return Err(self.unsupported());
                };
                let offset = self.offset(&address);
                let at = self.processor.base(address.seg).wrapping_add(offset);
                let at = if self.processor.mode.long {
                    at
                } else {
                    at & 0xffff_ffff
                };
                self.processor.cpu.invalidate_page(Gva(at));
                Ok(())
            }
            _ => {
                self.require_cpl0()?;
                self.processor.cpu.set_cr(0, cr0 & !cr0::TS)
            }
        }
    }

    /// IN. It comes here if the map of ports that guards it is a device's memory.
    pub fn port_in(&mut self) -> Result<(), Fault> {
        let (width, port) = (self.width()?, self.port_of(1)?);
        self.processor.check_port(port, width)?;
        let value = self.processor.cpu.port_in(port, width)?;
        self.set_part(Reg::Rax, width, value.into());
        Ok(())
    }

    /// OUT.
    pub fn port_out(&mut self) -> Result<(), Fault> {
        let Operand::Register(from) = self.operand(1) else {
            return Err(self.unsupported());
        };
        let port = self.port_of(0)?;
        self.processor.check_port(port, from.width)?;
        let value = self.register(from) as u32;
        self.processor.cpu.port_out(port, from.width, value)
    }

    /// The port that an operand names, by its number or as DX.
    fn port_of(&mut self, operand: usize) -> Result<u16, Fault> {
        match self.operand(operand) {
            Operand::Immediate(port) => Ok(port as u8 as u16),
            Operand::Register(_) => Ok(self.part(Reg::Rdx, 2) as u16),
            _ => Err(self.unsupported()),
        }
    }

    /// MOV to or from a control or debug register.
    pub fn mov_system(&mut self) -> Result<(), Fault> {
        match (self.operand(0), self.operand(1)) {
            (Operand::Control(number), Operand::Register(from)) => {
                self.check_control(number)?;
                let value = self.whole(from);
                self.processor.cpu.set_cr(number, value)
            }
            (Operand::Register(to), Operand::Control(number)) => {
                self.check_control(number)?;
                let value = self.processor.cpu.cr(number);
                self.set_whole(to, value);
                Ok(())
            }
            (Operand::Debug(number), Operand::Register(from)) => {
                let number = self.check_debug(number)?;
                let value = self.whole(from);
                self.processor.cpu.set_dr(number, value)
            }
            (Operand::Register(to), Operand::Debug(number)) => {
                let number = self.check_debug(number)?;
                let value = self.processor.cpu.dr(number);
                self.set_whole(to, value);
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Bytes that a move to or from a system register has, whatever the operand size says.
    fn system_width(&self) -> u8 {
        if self.processor.mode.long {
            8
        } else {
            4
        }
    }

    fn whole(&self, register: Register) -> u64 {
        self.part(register.reg, self.system_width())
    }

    fn set_whole(&mut self, register: Register, value: u64) {
        self.set_part(register.reg, self.system_width(), value);
    }

    fn check_control(&self, number: u8) -> Result<(), Fault> {
        let unknown = self.instruction.lock && !self.processor.cpu.has(Behaviour::AltMovCr8);
        if unknown || !matches!(number, 0 | 2 | 3 | 4 | 8) {
            return Err(self.processor.fault(Exception::INVALID_OPCODE));
        }
        self.require_cpl0()
    }

    /// The debug register that `number` names: 4 and 5 are old names of 6 and 7 (SDM 3B: 17.2.2).
    fn check_debug(&mut self, number: u8) -> Result<u8, Fault> {
        let number = match number {
            0..=3 | 6 | 7 => number,
            4 | 5 if self.processor.cpu.cr(4) & cr4::DE == 0 => number | 2,
            _ => return Err(self.processor.fault(Exception::INVALID_OPCODE)),
        };
        self.require_cpl0()?;
        let control = self.processor.cpu.dr(7);
        if control & DR7_GD != 0 {
            // Delivery through hardware would clear GD; an injected exception does not.
            let status = self.processor.cpu.dr(6);
            self.processor.cpu.set_dr(6, status | DR6_BD)?;
            self.processor.cpu.set_dr(7, control & !DR7_GD)?;
            return Err(self.processor.fault(Exception::DEBUG));
        }
        Ok(number)
    }

    pub fn require_cpl0(&self) -> Result<(), Fault> {
        if self.processor.cpu.cpl() != 0 {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        Ok(())
    }
}

impl<C: Cpu> Processor<'_, C> {
    /// Checks that the guest may access `width` ports at `port`: by IOPL, else by the map in its TSS (SDM 1: 19.5.2).
    pub fn check_port(&mut self, port: u16, width: u8) -> Result<(), Fault> {
        let iopl = (self.cpu.rflags() & rflags::IOPL) >> 12;
        if !self.mode.protected || !self.mode.virtual_8086 && u64::from(self.cpu.cpl()) <= iopl {
            return Ok(());
        }
        let denied = self.fault(Exception::general_protection(0));
        let task = self.cpu.segment(Seg::Tr);
        let limit = u64::from(task.limit);
        // Type 9 or 11: a 32- or 64-bit TSS, free or busy.
        let has_map = task.attributes.has(SegmentAttributes::P) && task.attributes.kind() & 13 == 9;
        if !has_map || limit < TSS_IO_MAP + 1 {
            return Err(denied);
        }
        let map = self.read_implicit(task.base.wrapping_add(TSS_IO_MAP), 2)?;
        let byte = map.wrapping_add(u64::from(port / 8));
        if byte.wrapping_add(1) > limit {
            return Err(denied);
        }
        let bits = self.read_implicit(task.base.wrapping_add(byte), 2)? >> (port % 8);
        let wanted = alu::mask(1) >> 8u8.saturating_sub(width);
        if bits & wanted != 0 {
            return Err(denied);
        }
        Ok(())
    }
}
