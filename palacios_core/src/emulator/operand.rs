// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operands: from their encoding to something that can be read and written.

use super::access::{Bytes, CheckedMemory};
use super::alu;
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Address, Base, Op, Operand, Register};
use crate::memory::walk::AccessKind;
use crate::state::Reg;

/// An operand: a register, or memory that has been checked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Register(Register),
    Memory(CheckedMemory),
    Value(u64),
}

impl<C: Cpu> Execution<'_, C> {
    /// Whether memory is read and written in one atomic step; XCHG does so unasked.
    pub fn locked(&self) -> bool {
        self.instruction.lock || self.instruction.op == Op::Xchg
    }

    /// The operand at `index` as encoded.
    pub fn operand(&self, index: usize) -> Operand {
        self.instruction
            .operands
            .get(index)
            .copied()
            .unwrap_or(Operand::None)
    }

    /// The offset that a memory operand's address comes to, cut to the address size.
    pub fn offset(&self, address: &Address) -> u64 {
        let gprs = self.processor.cpu.gprs();
        let base = match address.base {
            Base::None => 0,
            Base::Register(reg) => gprs[reg],
            Base::NextInstruction => self.next_rip,
        };
        let index = match address.index {
            None => 0,
            Some((reg, scale)) => gprs[reg].wrapping_mul(u64::from(scale)),
        };
        self.cut(base.wrapping_add(index).wrapping_add(address.displacement))
    }

    /// An offset cut to the address size.
    pub fn cut(&self, offset: u64) -> u64 {
        offset & alu::mask(self.instruction.address_width)
    }

    /// The operand at `index`, its memory checked for `kind`.
    pub fn target(&mut self, index: usize, kind: AccessKind) -> Result<Target, Fault> {
        match self.operand(index) {
            Operand::Register(register) => Ok(Target::Register(register)),
            Operand::Immediate(value) => Ok(Target::Value(value)),
            Operand::Segment(seg) => Ok(Target::Value(
                self.processor.cpu.segment(seg).selector.into(),
            )),
            Operand::Memory(address) => {
                let offset = self.offset(&address);
                let width = self.instruction.memory_width;
                if !matches!(width, 1 | 2 | 4 | 8) {
                    return Err(self.unsupported());
                }
                Ok(Target::Memory(self.processor.check_memory(
                    address.seg,
                    offset,
                    width,
                    kind,
                )?))
            }
            _ => Err(self.unsupported()),
        }
    }

    /// The value of a target; of an immediate, all of its 64 bits.
    pub fn get(&mut self, target: &Target) -> Result<u64, Fault> {
        match target {
            Target::Register(register) => Ok(self.register(*register)),
            Target::Memory(memory) => Ok(self.processor.load(memory)?.value() as u64),
            Target::Value(value) => Ok(*value),
        }
    }

    /// Overwrites a target.
    pub fn set(&mut self, target: &Target, value: u64) -> Result<(), Fault> {
        match target {
            Target::Register(register) => self.set_register(*register, value),
            Target::Memory(memory) => self
                .processor
                .store(memory, &Bytes::new(value.into(), memory.width))?,
            Target::Value(_) => return Err(self.unsupported()),
        }
        Ok(())
    }

    /// Overwrites a target that was read as `old`; atomically if the instruction is locked.
    pub fn replace(&mut self, target: &Target, old: u64, new: u64) -> Result<(), Fault> {
        match target {
            Target::Memory(memory) => {
                let (old, new) = (old.into(), new.into());
                let (old, new) = (Bytes::new(old, memory.width), Bytes::new(new, memory.width));
                if self.locked() {
                    self.processor.exchange(memory, &old, &new)
                } else {
                    self.processor.store(memory, &new)
                }
            }
            _ => self.set(target, new),
        }
    }

    /// The bytes of an operand that is a register or memory.
    pub fn width_of(&self, target: &Target) -> u8 {
        match target {
            Target::Register(register) => register.width,
            _ => self.instruction.memory_width,
        }
    }

    /// The bytes of the operation: those of its first operand.
    pub fn width(&self) -> Result<u8, Fault> {
        match self.operand(0) {
            Operand::Register(register) => Ok(register.width),
            Operand::Memory(_) => Ok(self.instruction.memory_width),
            _ => Err(self.unsupported()),
        }
    }

    /// The value of a register, or of its part.
    pub fn register(&self, register: Register) -> u64 {
        let whole = self.processor.cpu.gprs()[register.reg];
        let value = if register.high { whole >> 8 } else { whole };
        value & alu::mask(register.width)
    }

    /// Sets a register or its part. A write of 4 bytes clears the upper half.
    pub fn set_register(&mut self, register: Register, value: u64) {
        let slot = &mut self.processor.cpu.gprs_mut()[register.reg];
        let mask = alu::mask(register.width);
        *slot = match (register.high, register.width) {
            (true, _) => *slot & !0xff00 | (value & 0xff) << 8,
            (false, 4 | 8) => value & mask,
            (false, _) => *slot & !mask | value & mask,
        };
    }

    /// The low `width` bytes of a register.
    pub fn part(&self, reg: Reg, width: u8) -> u64 {
        self.register(Register {
            reg,
            width,
            high: false,
        })
    }

    /// Sets the low `width` bytes of a register.
    pub fn set_part(&mut self, reg: Reg, width: u8, value: u64) {
        self.set_register(
            Register {
                reg,
                width,
                high: false,
            },
            value,
        );
    }
}
