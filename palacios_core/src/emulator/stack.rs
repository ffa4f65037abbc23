// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pushes and pops, and the stack that they use (SDM 1: 6.2).
//!
//! What an instruction pushes together is checked together, as one run of memory, and then written element by element, from
//! the top down as the processor does.

use super::access::{Bytes, CheckedMemory};
use super::alu;
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::Operand;
use super::operand::Target;
use super::processor::Processor;
use crate::memory::walk::{Access, AccessKind, Privilege};
use crate::state::{cr4, rflags, Exception, Reg, Seg, Segment, SegmentAttributes};

/// ENTER's deepest level.
const MAX_LEVEL: u8 = 31;
/// PUSHA pushes so many registers, in the order of their numbers.
const PUSHED_BY_PUSHA: usize = 8;

/// A stack: where it lies, and how far it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub segment: Segment,
    /// That of 64-bit mode, where no segment counts.
    pub long: bool,
    /// Who uses it.
    pub privilege: Privilege,
    /// The stack pointer.
    pub top: u64,
    /// The error code of #SS: the selector of a stack that is not loaded yet.
    pub error_code: u32,
}

impl Stack {
    /// Bytes of the stack pointer (SDM 1: 6.2.3).
    pub fn width(&self) -> u8 {
        match (
            self.long,
            self.segment.attributes.has(SegmentAttributes::DB),
        ) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        }
    }

    /// The same stack as 64-bit code sees it.
    pub fn in_64_bit_mode(mut self, rsp: u64) -> Stack {
        (self.long, self.segment.base, self.top) = (true, 0, rsp);
        self
    }

    /// Takes bytes off without looking at them.
    pub fn release(&mut self, bytes: u64) {
        self.top = self.top.wrapping_add(bytes) & alu::mask(self.width());
    }
}

/// Elements of a stack that were checked. The first is the one with the lowest address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    memory: CheckedMemory,
    /// Where it goes on at the beginning of the segment, if the stack pointer wraps inside of it.
    wrapped: Option<CheckedMemory>,
    /// Bytes of an element.
    width: u8,
}

impl Frame {
    fn part(&self, index: u8) -> CheckedMemory {
        let from = index.saturating_mul(self.width);
        match (from.checked_sub(self.memory.width), self.wrapped) {
            (Some(behind), Some(wrapped)) => wrapped.part(behind, self.width),
            _ => self.memory.part(from, self.width),
        }
    }
}

impl<C: Cpu> Processor<'_, C> {
    /// The stack that SS and rSP name.
    pub fn stack(&self) -> Stack {
        let mut stack = Stack {
            segment: self.cpu.segment(Seg::Ss),
            long: self.mode.long,
            privilege: self.access(AccessKind::Read).privilege,
            top: 0,
            error_code: 0,
        };
        if stack.long {
            stack.segment.base = 0;
        }
        stack.top = self.cpu.gprs()[Reg::Rsp] & alu::mask(stack.width());
        stack
    }

    /// Sets rSP, or as much of it as `stack` has.
    pub fn set_stack_pointer(&mut self, stack: &Stack) {
        let mask = alu::mask(stack.width());
        let rsp = &mut self.cpu.gprs_mut()[Reg::Rsp];
        *rsp = match stack.width() {
            2 => *rsp & !mask | stack.top & mask,
            _ => stack.top & mask,
        };
    }

    /// Makes room for `count` elements of `width` bytes.
    pub fn push_frame(&mut self, stack: &mut Stack, width: u8, count: u8) -> Result<Frame, Fault> {
        let bytes = width.saturating_mul(count);
        let top = stack.top.wrapping_sub(bytes.into()) & alu::mask(stack.width());
        let frame = self.frame(stack, top, width, bytes, AccessKind::Write)?;
        stack.top = top;
        Ok(frame)
    }

    /// Passes `count` elements of `width` bytes, to be read.
    pub fn pop_frame(&mut self, stack: &mut Stack, width: u8, count: u8) -> Result<Frame, Fault> {
        let bytes = width.saturating_mul(count);
        let frame = self.frame(stack, stack.top, width, bytes, AccessKind::Read)?;
        stack.release(bytes.into());
        Ok(frame)
    }

    fn frame(
        &mut self,
        stack: &Stack,
        from: u64,
        width: u8,
        bytes: u8,
        kind: AccessKind,
    ) -> Result<Frame, Fault> {
        let room = alu::mask(stack.width()).wrapping_sub(from).wrapping_add(1);
        let elements_fit = room & u64::from(width.wrapping_sub(1)) == 0;
        if stack.long || room >= bytes.into() || !elements_fit {
            let memory = self.run(stack, from, width, bytes, kind)?;
            return Ok(Frame {
                memory,
                wrapped: None,
                width,
            });
        }
        let first = room as u8;
        let memory = self.run(stack, from, width, first, kind)?;
        let wrapped = self.run(stack, 0, width, bytes.wrapping_sub(first), kind)?;
        Ok(Frame {
            memory,
            wrapped: Some(wrapped),
            width,
        })
    }

    fn run(
        &mut self,
        stack: &Stack,
        from: u64,
        width: u8,
        bytes: u8,
        kind: AccessKind,
    ) -> Result<CheckedMemory, Fault> {
        let Some(at) = self.linear_in(&stack.segment, stack.long, from, bytes, kind) else {
            return Err(self.fault(Exception::stack(stack.error_code)));
        };
        if stack.privilege == Privilege::User {
            self.check_alignment(at, width)?;
        }
        let privilege = stack.privilege;
        self.check_linear(at, bytes, Access { kind, privilege })
    }

    /// Reads element `index`.
    pub fn element(&mut self, frame: &Frame, index: u8) -> Result<u64, Fault> {
        Ok(self.load(&frame.part(index))?.value() as u64)
    }

    /// Writes all elements in the order in which they are pushed: the first gets the highest address.
    pub fn fill(&mut self, frame: &Frame, pushed: &[u64]) -> Result<(), Fault> {
        let last = (pushed.len() as u8).wrapping_sub(1);
        for (value, before) in pushed.iter().zip(0..=last) {
            self.set_element(frame, last.wrapping_sub(before), *value)?;
        }
        Ok(())
    }

    /// Writes element `index`.
    pub fn set_element(&mut self, frame: &Frame, index: u8, value: u64) -> Result<(), Fault> {
        self.store(&frame.part(index), &Bytes::new(value.into(), frame.width))
    }
}

impl<C: Cpu> Execution<'_, C> {
    /// Pushes values of the operation's width that are known beforehand.
    fn push_values(&mut self, values: &[u64]) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self
            .processor
            .push_frame(&mut stack, width, values.len() as u8)?;
        self.processor.fill(&frame, values)?;
        self.processor.set_stack_pointer(&stack);
        Ok(())
    }

    /// PUSH of a register, of memory, of an immediate.
    pub fn push(&mut self) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let from = self.target(0, AccessKind::Read)?;
        let mut stack = self.processor.stack();
        let frame = self.processor.push_frame(&mut stack, width, 1)?;
        let value = self.get(&from)?;
        self.processor.fill(&frame, &[value])?;
        self.processor.set_stack_pointer(&stack);
        Ok(())
    }

    /// POP to a register or to memory. An address relative to rSP counts from the new top.
    pub fn pop(&mut self) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self.processor.pop_frame(&mut stack, width, 1)?;
        if let Operand::Segment(seg) = self.operand(0) {
            let selector = self.processor.element(&frame, 0)? as u16;
            self.load_segment(seg, selector)?;
            self.processor.set_stack_pointer(&stack);
            return Ok(());
        }
        let before = self.processor.cpu.gprs()[Reg::Rsp];
        self.processor.set_stack_pointer(&stack);
        let moved = self.pop_to(&frame);
        if moved.is_err() {
            self.processor.cpu.gprs_mut()[Reg::Rsp] = before;
        }
        moved
    }

    fn pop_to(&mut self, frame: &Frame) -> Result<(), Fault> {
        let to = self.target(0, AccessKind::Write)?;
        let value = self.processor.element(frame, 0)?;
        self.set(&to, value)
    }

    /// PUSHA.
    pub fn push_all(&mut self) -> Result<(), Fault> {
        let values = self.processor.cpu.gprs().0;
        self.push_values(values.get(..PUSHED_BY_PUSHA).unwrap_or_default())
    }

    /// POPA, which leaves out rSP.
    pub fn pop_all(&mut self) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self
            .processor
            .pop_frame(&mut stack, width, PUSHED_BY_PUSHA as u8)?;
        let mut values = [0; PUSHED_BY_PUSHA];
        for (value, index) in values.iter_mut().zip(0u8..) {
            *value = self.processor.element(&frame, index)?;
        }
        let pushed = Reg::ALL.into_iter().take(PUSHED_BY_PUSHA);
        for (reg, value) in pushed.rev().zip(values) {
            if reg != Reg::Rsp {
                self.set_part(reg, width, value);
            }
        }
        self.processor.set_stack_pointer(&stack);
        Ok(())
    }

    /// PUSHF.
    pub fn push_flags(&mut self) -> Result<(), Fault> {
        self.check_flags_of_8086()?;
        let flags = self.flags() & !(rflags::VM | rflags::RF);
        self.push_values(&[flags])
    }

    /// POPF.
    pub fn pop_flags(&mut self) -> Result<(), Fault> {
        self.check_flags_of_8086()?;
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self.processor.pop_frame(&mut stack, width, 1)?;
        let value = self.processor.element(&frame, 0)?;
        self.processor.set_stack_pointer(&stack);
        self.load_flags(value, width, 0);
        Ok(())
    }

    /// In virtual-8086 mode flags are guarded by IOPL. CR4.VME, under which they are not, is not known here.
    pub fn check_flags_of_8086(&self) -> Result<(), Fault> {
        if !self.processor.mode.virtual_8086 || self.flags() & rflags::IOPL == rflags::IOPL {
            return Ok(());
        }
        if self.processor.cpu.cr(4) & cr4::VME != 0 && self.instruction.operand_width == 2 {
            return Err(self.unsupported());
        }
        Err(self.processor.fault(Exception::general_protection(0)))
    }

    /// Sets flags from the low `width` bytes of a value: those that this privilege level may set, and `more`.
    pub fn load_flags(&mut self, value: u64, width: u8, more: u64) {
        use rflags::*;
        let (cpl, flags) = (self.processor.cpu.cpl(), self.flags());
        let iopl = (flags & IOPL) >> 12;
        let mut may = CF | PF | AF | ZF | SF | TF | DF | OF | NT | AC | ID | more;
        if self.processor.mode.virtual_8086 || u64::from(cpl) <= iopl {
            may |= IF;
        }
        if cpl == 0 {
            may |= IOPL;
        }
        let may = may & alu::mask(width);
        self.set_flags(flags & !(may | RF) | value & may);
    }

    /// ENTER, which copies the frame pointers of the levels above.
    pub fn enter(&mut self) -> Result<(), Fault> {
        let (Operand::Immediate(bytes), Operand::Immediate(level)) =
            (self.operand(0), self.operand(1))
        else {
            return Err(self.unsupported());
        };
        let (width, level) = (self.instruction.operand_width, level as u8 & MAX_LEVEL);
        let mut stack = self.processor.stack();
        let saved = self.processor.push_frame(&mut stack, width, 1)?;
        let frame_pointer = stack.top;
        let old = self.part(Reg::Rbp, 8);
        let levels = match level {
            0 => None,
            _ => Some(self.copy_of_levels(&mut stack, level)?),
        };
        stack.top = stack.top.wrapping_sub(bytes & 0xffff) & alu::mask(stack.width());
        // The processor looks whether the new top could be written.
        let mut above = Stack {
            top: stack.top.wrapping_add(width.into()),
            ..stack
        };
        self.processor.push_frame(&mut above, width, 1)?;
        self.processor.fill(&saved, &[old])?;
        if let Some((from, to)) = levels {
            for index in (1..level).rev() {
                let pointer = self.processor.element(&from, index.wrapping_sub(1))?;
                self.processor.set_element(&to, index, pointer)?;
            }
            self.processor.set_element(&to, 0, frame_pointer)?;
        }
        self.processor.set_stack_pointer(&stack);
        self.set_part(Reg::Rbp, width, frame_pointer);
        Ok(())
    }

    /// What ENTER reads below rBP, and where it goes: one element more, for the new frame pointer.
    fn copy_of_levels(&mut self, stack: &mut Stack, level: u8) -> Result<(Frame, Frame), Fault> {
        let width = self.instruction.operand_width;
        let copied = level.wrapping_sub(1);
        let bytes = u64::from(width.saturating_mul(copied));
        let mut old = Stack {
            top: self.part(Reg::Rbp, stack.width()).wrapping_sub(bytes) & alu::mask(stack.width()),
            ..*stack
        };
        let from = match copied {
            0 => None,
            _ => Some(self.processor.pop_frame(&mut old, width, copied)?),
        };
        let to = self.processor.push_frame(stack, width, level)?;
        Ok((from.unwrap_or(to), to))
    }

    /// LEAVE.
    pub fn leave(&mut self) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        stack.top = self.part(Reg::Rbp, stack.width());
        let frame = self.processor.pop_frame(&mut stack, width, 1)?;
        let value = self.processor.element(&frame, 0)?;
        self.processor.set_stack_pointer(&stack);
        self.set_part(Reg::Rbp, width, value);
        Ok(())
    }

    /// CALL, by a distance or to where a register or memory says.
    pub fn call(&mut self) -> Result<(), Fault> {
        let from = self.target(0, AccessKind::Read)?;
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self.processor.push_frame(&mut stack, width, 1)?;
        let target = self.near_target(&from)?;
        self.processor.fill(&frame, &[self.next_rip])?;
        self.processor.set_stack_pointer(&stack);
        self.next_rip = target;
        Ok(())
    }

    /// JMP, as [`Execution::call`].
    pub fn jump(&mut self) -> Result<(), Fault> {
        let from = self.target(0, AccessKind::Read)?;
        self.next_rip = self.near_target(&from)?;
        Ok(())
    }

    /// RET.
    pub fn return_near(&mut self) -> Result<(), Fault> {
        let mut stack = self.processor.stack();
        let frame = self
            .processor
            .pop_frame(&mut stack, self.instruction.operand_width, 1)?;
        let target = self.processor.element(&frame, 0)?;
        self.processor.check_branch(target)?;
        stack.release(self.released());
        self.processor.set_stack_pointer(&stack);
        self.next_rip = target;
        Ok(())
    }

    /// What a return takes off the stack besides the address.
    pub fn released(&self) -> u64 {
        match self.operand(0) {
            Operand::Immediate(bytes) => bytes & 0xffff,
            _ => 0,
        }
    }

    fn near_target(&mut self, from: &Target) -> Result<u64, Fault> {
        let target = match from {
            Target::Value(distance) => self.next_rip.wrapping_add(*distance),
            other => self.get(other)?,
        } & alu::mask(self.instruction.operand_width);
        self.processor.check_branch(target)?;
        Ok(target)
    }
}

impl<C: Cpu> Processor<'_, C> {
    /// Whether the next instruction may be at this offset in the code segment.
    pub fn check_branch(&self, rip: u64) -> Result<(), Fault> {
        let good = match self.mode.long {
            true => self.is_canonical(rip),
            false => rip <= self.cpu.segment(Seg::Cs).limit.into(),
        };
        match good {
            true => Ok(()),
            false => Err(self.fault(Exception::general_protection(0))),
        }
    }
}
