// SPDX-License-Identifier: MIT OR Apache-2.0
//! String instructions. A repeated one is executed in parts of at most 4 KiB; after each iteration the registers say how
//! far it came, so that a fault or an interrupt may follow any of them (SDM 1: 7.3.9.2).

use super::access::{Bytes, CheckedMemory};
use super::alu;
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Repeat, StringOp};
use crate::memory::walk::AccessKind::{self, Read, Write};
use crate::state::{rflags, Reg, Seg};

/// The bytes that one call moves at most.
const MAX_BYTES: u32 = 4096;

impl<C: Cpu> Execution<'_, C> {
    /// Executes a string instruction, or a part of its iterations; one, if each is to trap. Says whether it is complete.
    pub fn string(&mut self, op: StringOp, one_only: bool) -> Result<bool, Fault> {
        let width = match op {
            StringOp::Ins | StringOp::Outs => self.instruction.memory_width.min(4),
            _ => self.instruction.memory_width,
        };
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(self.unsupported());
        }
        if self.instruction.repeat == Repeat::No {
            return self.string_once(op, width).map(|()| true);
        }
        let most = if one_only {
            1
        } else {
            MAX_BYTES / u32::from(width)
        };
        for _ in 0..most {
            let count = self.address_part(Reg::Rcx);
            if count == 0 {
                return Ok(true);
            }
            self.string_once(op, width)?;
            self.set_address_part(Reg::Rcx, count.wrapping_sub(1));
            if count == 1 || self.string_ends(op) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a comparison ends the repetition.
    fn string_ends(&self, op: StringOp) -> bool {
        let equal = self.processor.cpu.rflags() & rflags::ZF != 0;
        match (op, self.instruction.repeat) {
            (StringOp::Cmps | StringOp::Scas, Repeat::WhileEqual) => !equal,
            (StringOp::Cmps | StringOp::Scas, Repeat::WhileNotEqual) => equal,
            _ => false,
        }
    }

    /// One iteration.
    fn string_once(&mut self, op: StringOp, width: u8) -> Result<(), Fault> {
        match op {
            StringOp::Movs => {
                let from = self.string_source(width)?;
                let to = self.string_destination(width, Write)?;
                let bytes = self.processor.load(&from)?;
                self.processor.store(&to, &bytes)?;
            }
            StringOp::Stos => {
                let to = self.string_destination(width, Write)?;
                let value = self.part(Reg::Rax, width);
                self.processor
                    .store(&to, &Bytes::new(value.into(), width))?;
            }
            StringOp::Lods => {
                let from = self.string_source(width)?;
                let value = self.processor.load(&from)?.value() as u64;
                self.set_part(Reg::Rax, width, value);
            }
            StringOp::Cmps => {
                let (from, to) = (
                    self.string_source(width)?,
                    self.string_destination(width, Read)?,
                );
                let a = self.processor.load(&from)?.value() as u64;
                self.string_compare(width, a, &to)?;
            }
            StringOp::Scas => {
                let to = self.string_destination(width, Read)?;
                self.string_compare(width, self.part(Reg::Rax, width), &to)?;
            }
            StringOp::Ins => {
                let port = self.port(width)?;
                let to = self.string_destination(width, Write)?;
                let value = self.processor.cpu.port_in(port, width)?;
                self.processor
                    .store(&to, &Bytes::new(value.into(), width))?;
            }
            StringOp::Outs => {
                let port = self.port(width)?;
                let from = self.string_source(width)?;
                let value = self.processor.load(&from)?.value() as u32;
                self.processor.cpu.port_out(port, width, value)?;
            }
        }
        if !matches!(op, StringOp::Stos | StringOp::Scas | StringOp::Ins) {
            self.advance(Reg::Rsi, width);
        }
        if !matches!(op, StringOp::Lods | StringOp::Outs) {
            self.advance(Reg::Rdi, width);
        }
        Ok(())
    }

    fn string_compare(&mut self, width: u8, a: u64, with: &CheckedMemory) -> Result<(), Fault> {
        let b = self.processor.load(with)?.value() as u64;
        let flags = alu::compare(width, a, b, self.processor.cpu.rflags());
        self.processor.cpu.set_rflags(flags);
        Ok(())
    }

    /// The port in DX, if the guest may use it.
    fn port(&mut self, width: u8) -> Result<u16, Fault> {
        let port = self.part(Reg::Rdx, 2) as u16;
        self.processor.check_port(port, width)?;
        Ok(port)
    }

    /// The element at rSI, in DS or the segment that overrides it.
    fn string_source(&mut self, width: u8) -> Result<CheckedMemory, Fault> {
        let seg = self.instruction.segment.unwrap_or(Seg::Ds);
        let offset = self.address_part(Reg::Rsi);
        self.processor.check_memory(seg, offset, width, Read)
    }

    /// The element at rDI, always in ES.
    fn string_destination(&mut self, width: u8, kind: AccessKind) -> Result<CheckedMemory, Fault> {
        let offset = self.address_part(Reg::Rdi);
        self.processor.check_memory(Seg::Es, offset, width, kind)
    }

    fn advance(&mut self, reg: Reg, width: u8) {
        let at = self.address_part(reg);
        let down = self.processor.cpu.rflags() & rflags::DF != 0;
        let next = if down {
            at.wrapping_sub(width.into())
        } else {
            at.wrapping_add(width.into())
        };
        self.set_address_part(reg, next);
    }

    /// As much of a register as the address size takes.
    fn address_part(&self, reg: Reg) -> u64 {
        self.part(reg, self.instruction.address_width)
    }

    fn set_address_part(&mut self, reg: Reg, value: u64) {
        self.set_part(reg, self.instruction.address_width, value);
    }
}
