// SPDX-License-Identifier: MIT OR Apache-2.0
//! What instructions do (SDM 2): an arm for each [`Op`], and here the work of those that move and calculate. The others' work is in
//! the file of their kind: `stack.rs`, `far.rs`, `vector.rs` and so on. What all have in common, the state of an instruction
//! under way, is in `execution.rs`.
//!
//! An operand that is written is checked for writing before it is read, as the processor does. Memory is written before
//! registers and flags, so that a fault leaves them as they were.

use super::access::Bytes;
use super::alu;
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Binary, Op, Operand};
use super::operand::Target;
use crate::memory::walk::AccessKind::{Read, Write};
use crate::state::{rflags, Exception, Reg, Seg};

impl<C: Cpu> Execution<'_, C> {
    /// Executes the instruction, unless it is a string instruction.
    pub fn execute(&mut self) -> Result<(), Fault> {
        match self.instruction.op {
            Op::Mov => self.mov(),
            Op::MovZeroExtend => self.extend(|value, _| value),
            Op::MovSignExtend => self.extend(alu::sign_extend),
            Op::MovBigEndian => self.mov_big_endian(),
            Op::Binary(op) => self.binary(|width, a, b, flags| alu::binary(op, width, a, b, flags)),
            Op::Cmp => self.compare(alu::compare),
            Op::Test => {
                self.compare(|width, a, b, flags| alu::binary(Binary::And, width, a, b, flags).1)
            }
            Op::Inc => self.unary(alu::increment),
            Op::Dec => self.unary(alu::decrement),
            Op::Neg => self.unary(alu::negate),
            Op::Not => self.unary(|_, value, flags| (!value, flags)),
            Op::Shift(op) => {
                self.binary(|width, a, b, flags| alu::shift(op, width, a, b as u8, flags))
            }
            Op::ShiftLeftDouble => self.shift_double(alu::shift_left_double),
            Op::ShiftRightDouble => self.shift_double(alu::shift_right_double),
            Op::Bit(op) => self.bit(op),
            Op::Xchg => self.xchg(),
            Op::Xadd => self.xadd(),
            Op::Cmpxchg => self.cmpxchg(),
            Op::CmpxchgPair => self.cmpxchg_pair(),
            Op::Mul => self.multiply(alu::multiply),
            Op::Imul => self.multiply_signed(),
            Op::Div => self.divide(alu::divide),
            Op::Idiv => self.divide(alu::divide_signed),
            Op::Set(condition) => self.set_if(condition),
            Op::MovIf(condition) => self.mov_if(condition),
            Op::BitScan { reverse } => self.bit_scan(reverse),
            Op::CountZeros { leading } => self.count_zeros(leading),
            Op::CountOnes => self.count(alu::count_ones),
            Op::Crc32 => self.crc32(),
            Op::Push => self.push(),
            Op::Pop => self.pop(),
            Op::PushAll => self.push_all(),
            Op::PopAll => self.pop_all(),
            Op::PushFlags => self.push_flags(),
            Op::PopFlags => self.pop_flags(),
            Op::Enter => self.enter(),
            Op::Leave => self.leave(),
            Op::Call => self.call(),
            Op::Jump => self.jump(),
            Op::Return => self.return_near(),
            Op::FarCall => self.far_call(),
            Op::FarJump => self.far_jump(),
            Op::FarReturn => self.far_return(),
            Op::InterruptReturn => self.interrupt_return(),
            Op::Interrupt | Op::Breakpoint | Op::Overflow => self.software_interrupt(),
            Op::LoadFarPointer(seg) => self.load_far_pointer(seg),
            Op::Vector(op) => self.vector(op),
            Op::Fpu(op) => self.fpu(op),
            Op::Xlat => self.xlat(),
            Op::In => self.port_in(),
            Op::Out => self.port_out(),
            Op::Clts | Op::Lmsw | Op::Smsw | Op::Invlpg => self.system(),
            Op::LoadTable(table) => self.load_table(table),
            Op::StoreTable(table) => self.store_table(table),
            Op::LoadSystemSegment(seg) => self.load_system_segment(seg),
            Op::StoreSystemSegment(seg) => self.store_system_segment(seg),
            Op::Hint => Ok(()),
            Op::String(_) => Err(self.unsupported()),
        }
    }

    /// The report of an instruction that is decoded but not executed.
    pub fn unsupported(&self) -> Fault {
        Fault::Unsupported(self.processor.bytes)
    }

    pub fn flags(&self) -> u64 {
        self.processor.cpu.rflags()
    }

    pub fn set_flags(&mut self, flags: u64) {
        self.processor.cpu.set_rflags(flags);
    }

    fn mov(&mut self) -> Result<(), Fault> {
        match (self.operand(0), self.operand(1)) {
            (Operand::Segment(seg), _) => return self.mov_to_segment(seg),
            (Operand::Control(_) | Operand::Debug(_), _)
            | (_, Operand::Control(_) | Operand::Debug(_)) => return self.mov_system(),
            _ => {}
        }
        let from = self.target(1, Read)?;
        let to = self.target(0, Write)?;
        let value = self.get(&from)?;
        self.set(&to, value)
    }

    fn extend(&mut self, extended: fn(u64, u8) -> u64) -> Result<(), Fault> {
        let from = self.target(1, Read)?;
        let width = self.width_of(&from);
        let value = self.get(&from)?;
        let to = self.target(0, Write)?;
        self.set(&to, extended(value, width))
    }

    fn mov_big_endian(&mut self) -> Result<(), Fault> {
        let unused = 64u32.saturating_sub(8 * u32::from(self.width()?));
        let from = self.target(1, Read)?;
        let to = self.target(0, Write)?;
        let value = self.get(&from)?;
        self.set(&to, value.swap_bytes().wrapping_shr(unused))
    }

    /// A calculation whose result replaces its first operand.
    fn binary(&mut self, result: impl Fn(u8, u64, u64, u64) -> alu::Outcome) -> Result<(), Fault> {
        let width = self.width()?;
        let to = self.target(0, Write)?;
        let from = self.target(1, Read)?;
        let (a, b) = (self.get(&to)?, self.get(&from)?);
        let (value, flags) = result(width, a, b, self.flags());
        self.replace(&to, a, value)?;
        self.set_flags(flags);
        Ok(())
    }

    /// A calculation of which only the flags are kept.
    fn compare(&mut self, result: fn(u8, u64, u64, u64) -> u64) -> Result<(), Fault> {
        let width = self.width()?;
        let (a, b) = (self.target(0, Read)?, self.target(1, Read)?);
        let (a, b) = (self.get(&a)?, self.get(&b)?);
        self.set_flags(result(width, a, b, self.flags()));
        Ok(())
    }

    fn unary(&mut self, result: fn(u8, u64, u64) -> alu::Outcome) -> Result<(), Fault> {
        let width = self.width()?;
        let to = self.target(0, Write)?;
        let old = self.get(&to)?;
        let (value, flags) = result(width, old, self.flags());
        self.replace(&to, old, value)?;
        self.set_flags(flags);
        Ok(())
    }

    fn shift_double(
        &mut self,
        result: fn(u8, u64, u64, u8, u64) -> alu::Outcome,
    ) -> Result<(), Fault> {
        let width = self.width()?;
        let to = self.target(0, Write)?;
        let (from, count) = (self.target(1, Read)?, self.target(2, Read)?);
        let (from, count) = (self.get(&from)?, self.get(&count)?);
        let old = self.get(&to)?;
        let (value, flags) = result(width, old, from, count as u8, self.flags());
        self.set(&to, value)?;
        self.set_flags(flags);
        Ok(())
    }

    fn xchg(&mut self) -> Result<(), Fault> {
        let (a, b) = (self.target(0, Write)?, self.target(1, Write)?);
        let (old_a, old_b) = (self.get(&a)?, self.get(&b)?);
        // Whichever is in memory is written first.
        if matches!(b, Target::Memory(_)) {
            self.replace(&b, old_b, old_a)?;
            return self.set(&a, old_b);
        }
        self.replace(&a, old_a, old_b)?;
        self.set(&b, old_a)
    }

    fn xadd(&mut self) -> Result<(), Fault> {
        let width = self.width()?;
        let (to, from) = (self.target(0, Write)?, self.target(1, Write)?);
        let (a, b) = (self.get(&to)?, self.get(&from)?);
        let op = Binary::Add;
        let (sum, flags) = alu::binary(op, width, a, b, self.flags());
        if let Target::Register(_) = to {
            self.set(&from, a)?;
            self.set(&to, sum)?;
        } else {
            self.replace(&to, a, sum)?;
            self.set(&from, a)?;
        }
        self.set_flags(flags);
        Ok(())
    }

    fn cmpxchg(&mut self) -> Result<(), Fault> {
        let width = self.width()?;
        let (to, from) = (self.target(0, Write)?, self.target(1, Read)?);
        let (old, new) = (self.get(&to)?, self.get(&from)?);
        let expected = self.part(Reg::Rax, width);
        let flags = alu::compare(width, expected, old, self.flags());
        if expected == old {
            self.replace(&to, old, new)?;
        } else {
            // The processor writes in either case.
            if let Target::Memory(_) = to {
                self.replace(&to, old, old)?;
            }
            self.set_part(Reg::Rax, width, old);
        }
        self.set_flags(flags);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    fn cmpxchg_pair(&mut self) -> Result<(), Fault> {
        let Operand::Memory(address) = self.operand(0) else {
            return Err(self.unsupported());
        };
        let width = self.instruction.memory_width;
        let half = width / 2;
        let offset = self.offset(&address);
        let at = self.processor.linear(address.seg, offset, width, Write)?;
        if width == 16 && at.0 & 15 != 0 {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        let memory = self
            .processor
            .check_memory(address.seg, offset, width, Write)?;
        let old = self.processor.load(&memory)?;
        let pair = |run: &Self, high, low| {
            let low = u128::from(run.part(low, half));
            u128::from(run.part(high, half)).wrapping_shl(8 * u32::from(half)) | low
        };
        let equal = old.value() == pair(self, Reg::Rdx, Reg::Rax);
        let new = if equal {
            pair(self, Reg::Rcx, Reg::Rbx)
        } else {
            old.value()
        };
        let new = Bytes::new(new, width);
        if self.locked() {
            self.processor.exchange(&memory, &old, &new)?;
        } else {
            self.processor.store(&memory, &new)?;
        }
        if !equal {
            let high = old.value().wrapping_shr(8 * u32::from(half)) as u64;
            self.set_part(Reg::Rax, half, old.value() as u64);
            self.set_part(Reg::Rdx, half, high);
        }
        let zero = if equal { rflags::ZF } else { 0 };
        self.set_flags(self.flags() & !rflags::ZF | zero);
        Ok(())
    }

    /// The one-operand forms of MUL and IMUL: rDX:rAX, or AX, becomes rAX × operand.
    fn multiply(&mut self, product: fn(u8, u64, u64, u64) -> (u64, u64, u64)) -> Result<(), Fault> {
        let width = self.width()?;
        let from = self.target(0, Read)?;
        let by = self.get(&from)?;
        let (low, high, flags) = product(width, self.part(Reg::Rax, width), by, self.flags());
        self.set_pair(width, low, high);
        self.set_flags(flags);
        Ok(())
    }

    fn multiply_signed(&mut self) -> Result<(), Fault> {
        let (a, b) = match (self.operand(1), self.operand(2)) {
            (Operand::None, _) => return self.multiply(alu::multiply_signed),
            (_, Operand::None) => (0, 1),
            _ => (1, 2),
        };
        let width = self.width()?;
        let (a, b) = (self.target(a, Read)?, self.target(b, Read)?);
        let (a, b) = (self.get(&a)?, self.get(&b)?);
        let (low, _, flags) = alu::multiply_signed(width, a, b, self.flags());
        let to = self.target(0, Write)?;
        self.set(&to, low)?;
        self.set_flags(flags);
        Ok(())
    }

    fn divide(
        &mut self,
        quotient_and_rest: fn(u8, u64, u64, u64) -> alu::Division,
    ) -> Result<(), Fault> {
        let width = self.width()?;
        let from = self.target(0, Read)?;
        let divisor = self.get(&from)?;
        let low = self.part(Reg::Rax, width);
        let high = match width {
            1 => self.part(Reg::Rax, 2) >> 8,
            _ => self.part(Reg::Rdx, width),
        };
        let Some((quotient, rest)) = quotient_and_rest(width, high, low, divisor) else {
            return Err(self.processor.fault(Exception::DIVIDE));
        };
        self.set_pair(width, quotient, rest);
        Ok(())
    }

    /// Sets rDX:rAX, or AH:AL for bytes.
    fn set_pair(&mut self, width: u8, low: u64, high: u64) {
        if width == 1 {
            self.set_part(Reg::Rax, 2, high << 8 | low & 0xff);
        } else {
            self.set_part(Reg::Rax, width, low);
            self.set_part(Reg::Rdx, width, high);
        }
    }

    fn set_if(&mut self, condition: u8) -> Result<(), Fault> {
        let to = self.target(0, Write)?;
        let holds = alu::condition(condition, self.flags());
        self.set(&to, u64::from(holds))
    }

    /// CMOVcc, which reads its source and clears the upper half of a 32-bit destination in either case.
    fn mov_if(&mut self, condition: u8) -> Result<(), Fault> {
        let (to, from) = (self.target(0, Write)?, self.target(1, Read)?);
        let (old, new) = (self.get(&to)?, self.get(&from)?);
        let holds = alu::condition(condition, self.flags());
        self.set(&to, if holds { new } else { old })
    }

    fn xlat(&mut self) -> Result<(), Fault> {
        let al = self.part(Reg::Rax, 1);
        let offset = self.cut(self.processor.cpu.gprs()[Reg::Rbx].wrapping_add(al));
        let seg = self.instruction.segment.unwrap_or(Seg::Ds);
        let memory = self.processor.check_memory(seg, offset, 1, Read)?;
        let value = self.processor.load(&memory)?.value() as u64;
        self.set_part(Reg::Rax, 1, value);
        Ok(())
    }
}
