// SPDX-License-Identifier: MIT OR Apache-2.0
//! Far branches: to another code segment, through gates, to other privilege levels, and back (SDM 2: CALL, JMP, RET, IRET;
//! SDM 3A: 5.8).
//!
//! Registers change when nothing can fail any more.

use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::processor::Processor;
use super::segments::{kind, Descriptor, INDEX};
use super::stack::{Frame, Stack};
use crate::memory::walk::{AccessKind, Privilege};
use crate::state::{is_64_bit_code, rflags, Exception, Reg, Seg, Segment, SegmentAttributes as A};

/// Where a far branch leads.
#[derive(Clone, Copy, Debug)]
struct Destination {
    code: Descriptor,
    offset: u64,
    /// The privilege level there.
    cpl: u8,
    /// Bytes of what is pushed on the way.
    width: u8,
    /// What a call gate copies from the outer to the inner stack.
    parameters: u8,
}

/// Whether code may be reached: by its DPL, the selector's RPL, the CPL, and whether it conforms to its caller's level.
type Fits = fn(u8, u8, u8, bool) -> bool;

/// A stack that is to replace the present one.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewStack {
    pub stack: Stack,
    /// What SS holds then.
    segment: Segment,
    /// rSP before anything is pushed or popped.
    pointer: u64,
    /// The descriptor of SS, if it has a segment.
    descriptor: Option<Descriptor>,
}

impl<C: Cpu> Processor<'_, C> {
    /// Checks an offset in code that is not loaded yet.
    pub fn check_offset(&self, code: &Descriptor, offset: u64) -> Result<(), Fault> {
        let good = match self.is_64_bit(code) {
            true => self.is_canonical(offset),
            false => offset <= code.segment().limit.into(),
        };
        match good {
            true => Ok(()),
            false => Err(self.fault(Exception::general_protection(0))),
        }
    }

    pub fn is_64_bit(&self, code: &Descriptor) -> bool {
        is_64_bit_code(self.cpu.efer(), code.attributes())
    }

    /// Reads and checks the descriptor of code.
    fn code(&mut self, selector: u16, fits: Fits) -> Result<Descriptor, Fault> {
        if selector & INDEX == 0 {
            return Err(self.fault(Exception::general_protection(0)));
        }
        let code = self.descriptor(selector, Exception::general_protection)?;
        self.check_code(&code, fits)?;
        Ok(code)
    }

    fn check_code(&self, code: &Descriptor, fits: Fits) -> Result<(), Fault> {
        let attributes = code.attributes();
        let conforming = attributes.has(A::DOWN_OR_CONFORMING);
        let ambiguous = self.long_mode() && attributes.has(A::L | A::DB);
        let good = attributes.has(A::S | A::CODE)
            && !ambiguous
            && fits(attributes.dpl(), code.rpl(), self.cpu.cpl(), conforming);
        if !good {
            return Err(self.fault(Exception::general_protection(code.error_code())));
        }
        if !attributes.has(A::P) {
            return Err(self.fault(Exception::not_present(code.error_code())));
        }
        Ok(())
    }

    /// The code that a gate leads to: of this privilege level or an inner one; 64-bit code in long mode.
    pub fn code_behind_gate(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        let code = self.code(selector, |dpl, _, cpl, _| dpl <= cpl)?;
        if self.long_mode() && !self.is_64_bit(&code) {
            return Err(self.fault(Exception::general_protection(code.error_code())));
        }
        Ok(code)
    }

    /// Sets CS.
    pub fn set_code(&mut self, code: &Descriptor, cpl: u8) {
        let segment = code.segment();
        let selector = segment.selector & INDEX | u16::from(cpl);
        self.cpu.set_segment(
            Seg::Cs,
            Segment {
                selector,
                ..segment
            },
        );
    }

    /// The stack that the task has for an inner privilege level (SDM 3A: 5.8.5).
    pub fn inner_stack(&mut self, cpl: u8) -> Result<NewStack, Fault> {
        let number = u32::from(cpl);
        if self.long_mode() {
            let pointer = self.task_field(number.wrapping_mul(8).wrapping_add(4), 8)?;
            return Ok(self.new_stack(None, Self::null_stack_segment(cpl), pointer, true));
        }
        let small = matches!(
            self.cpu.segment(Seg::Tr).attributes.kind(),
            kind::TSS_16 | kind::TSS_16_BUSY
        );
        let (pointer, selector) = match small {
            true => {
                let at = number.wrapping_mul(4).wrapping_add(2);
                (
                    self.task_field(at, 2)?,
                    self.task_field(at.wrapping_add(2), 2)?,
                )
            }
            false => {
                let at = number.wrapping_mul(8).wrapping_add(4);
                (
                    self.task_field(at, 4)?,
                    self.task_field(at.wrapping_add(4), 2)?,
                )
            }
        };
        let selector = selector as u16;
        if selector & INDEX == 0 {
            return Err(self.fault(Exception::invalid_tss(0)));
        }
        let found = self.descriptor(selector, Exception::invalid_tss)?;
        self.check_stack_segment(&found, cpl, Exception::invalid_tss)?;
        Ok(self.new_stack(Some(found), found.segment(), pointer, false))
    }

    /// One of the interrupt stacks of a 64-bit task (SDM 3A: 6.14.5), for an inner level or this one.
    pub fn interrupt_stack(&mut self, number: u8, cpl: u8) -> Result<NewStack, Fault> {
        let at = u32::from(number).wrapping_mul(8).wrapping_add(0x1c);
        let pointer = self.task_field(at, 8)?;
        Ok(self.new_stack(None, Self::null_stack_segment(cpl), pointer, true))
    }

    fn new_stack(
        &self,
        descriptor: Option<Descriptor>,
        segment: Segment,
        pointer: u64,
        long: bool,
    ) -> NewStack {
        // The processor itself uses the stack of another level.
        let privilege = match segment.attributes.dpl() == self.cpu.cpl() {
            true => self.access(AccessKind::Write).privilege,
            false => Privilege::Implicit,
        };
        let mut stack = Stack {
            segment,
            long,
            privilege,
            top: pointer,
            error_code: descriptor.map_or(0, |found| found.error_code()),
        };
        stack.top &= super::alu::mask(stack.width());
        NewStack {
            stack,
            segment,
            pointer,
            descriptor,
        }
    }

    /// A field of the TSS.
    fn task_field(&mut self, offset: u32, width: u8) -> Result<u64, Fault> {
        let task = self.cpu.segment(Seg::Tr);
        let last = offset.wrapping_add(u32::from(width.wrapping_sub(1)));
        if last > task.limit {
            let code = u32::from(task.selector & INDEX);
            return Err(self.fault(Exception::invalid_tss(code)));
        }
        self.read_implicit(task.base.wrapping_add(offset.into()), width)
    }

    /// Notes in the tables that the segments are used.
    pub fn mark_used(&mut self, code: &Descriptor, stack: Option<&NewStack>) -> Result<(), Fault> {
        let descriptor = stack.and_then(|new| new.descriptor.as_ref());
        let stack = match descriptor {
            Some(descriptor) => Some(self.check_mark(descriptor, A::ACCESSED)?),
            None => None,
        };
        let code = self.check_mark(code, A::ACCESSED)?;
        if let Some(stack) = &stack {
            self.set_mark(stack)?;
        }
        self.set_mark(&code)
    }

    /// Sets SS and rSP.
    pub fn take_stack(&mut self, new: &NewStack) {
        self.cpu.set_segment(Seg::Ss, new.segment);
        self.cpu.gprs_mut()[Reg::Rsp] = new.pointer;
        self.set_stack_pointer(&new.stack);
    }
}

impl<C: Cpu> Execution<'_, C> {
    /// JMP to another segment.
    pub fn far_jump(&mut self) -> Result<(), Fault> {
        let (selector, offset) = self.far_pointer(0)?;
        if self.processor.has_plain_segments() {
            let code = self.plain_code(selector, offset)?;
            return self.branch_plain(code, offset);
        }
        let to = self.destination(selector, offset, false)?;
        self.processor.check_offset(&to.code, to.offset)?;
        self.processor.mark_used(&to.code, None)?;
        self.branch(&to);
        Ok(())
    }

    /// CALL to another segment.
    pub fn far_call(&mut self) -> Result<(), Fault> {
        let (selector, offset) = self.far_pointer(0)?;
        let cs = self.processor.cpu.segment(Seg::Cs).selector;
        let back = [cs.into(), self.next_rip];
        let mut stack = self.processor.stack();
        if self.processor.has_plain_segments() {
            let code = self.plain_code(selector, offset)?;
            let width = self.instruction.operand_width;
            let frame = self.processor.push_frame(&mut stack, width, 2)?;
            self.processor.fill(&frame, &back)?;
            self.processor.set_stack_pointer(&stack);
            return self.branch_plain(code, offset);
        }
        let to = self.destination(selector, offset, true)?;
        self.processor.check_offset(&to.code, to.offset)?;
        if to.cpl < self.processor.cpu.cpl() {
            return self.call_inner(&to, back);
        }
        if self.processor.is_64_bit(&to.code) {
            stack = stack.in_64_bit_mode(self.processor.cpu.gprs()[Reg::Rsp]);
        }
        let frame = self.processor.push_frame(&mut stack, to.width, 2)?;
        self.processor.mark_used(&to.code, None)?;
        self.processor.fill(&frame, &back)?;
        self.processor.set_stack_pointer(&stack);
        self.branch(&to);
        Ok(())
    }

    /// Calls code of an inner level, on its stack.
    fn call_inner(&mut self, to: &Destination, [cs, rip]: [u64; 2]) -> Result<(), Fault> {
        let processor = &mut self.processor;
        let mut new = processor.inner_stack(to.cpl)?;
        let mut old = processor.stack();
        let rsp = processor.cpu.gprs()[Reg::Rsp];
        let ss = processor.cpu.segment(Seg::Ss).selector;
        let outer = processor.push_frame(&mut new.stack, to.width, 2)?;
        let parameters = match to.parameters {
            0 => None,
            count => {
                let from = processor.pop_frame(&mut old, to.width, count)?;
                Some((from, processor.push_frame(&mut new.stack, to.width, count)?))
            }
        };
        let back = processor.push_frame(&mut new.stack, to.width, 2)?;
        processor.mark_used(&to.code, Some(&new))?;
        processor.fill(&outer, &[ss.into(), rsp])?;
        if let Some((from, copies)) = parameters {
            for index in (0..to.parameters).rev() {
                let value = processor.element(&from, index)?;
                processor.set_element(&copies, index, value)?;
            }
        }
        processor.fill(&back, &[cs, rip])?;
        self.branch(to);
        self.processor.take_stack(&new);
        Ok(())
    }

    fn branch(&mut self, to: &Destination) {
        self.processor.set_code(&to.code, to.cpl);
        self.next_rip = to.offset;
    }

    /// CS in real and virtual-8086 mode.
    fn plain_code(&self, selector: u16, offset: u64) -> Result<Segment, Fault> {
        let code = self.processor.plain_segment(Seg::Cs, selector);
        if offset > code.limit.into() {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        Ok(code)
    }

    fn branch_plain(&mut self, code: Segment, offset: u64) -> Result<(), Fault> {
        self.processor.cpu.set_segment(Seg::Cs, code);
        self.next_rip = offset;
        Ok(())
    }

    /// Where a far CALL or JMP leads: the code itself is named, or a call gate.
    fn destination(
        &mut self,
        selector: u16,
        offset: u64,
        call: bool,
    ) -> Result<Destination, Fault> {
        let processor = &mut self.processor;
        if selector & INDEX == 0 {
            return Err(processor.fault(Exception::general_protection(0)));
        }
        let named = processor.descriptor(selector, Exception::general_protection)?;
        if let Some(kind) = named.system() {
            return self.behind_call_gate(&named, kind, call);
        }
        processor.check_code(&named, |dpl, rpl, cpl, conforming| match conforming {
            true => dpl <= cpl,
            false => dpl == cpl && rpl <= cpl,
        })?;
        Ok(Destination {
            code: named,
            offset,
            cpl: processor.cpu.cpl(),
            width: self.instruction.operand_width,
            parameters: 0,
        })
    }

    fn behind_call_gate(
        &mut self,
        gate: &Descriptor,
        kind: u8,
        call: bool,
    ) -> Result<Destination, Fault> {
        let processor = &mut self.processor;
        let (cpl, long, attributes) = (
            processor.cpu.cpl(),
            processor.long_mode(),
            gate.attributes(),
        );
        let bad = processor.fault(Exception::general_protection(gate.error_code()));
        let width = match (kind, long) {
            (kind::CALL_GATE, true) if gate.is_well_formed() => 8,
            (kind::CALL_GATE, false) => 4,
            (kind::CALL_GATE_16, false) => 2,
            (kind::TASK_GATE | kind::TSS_16 | kind::TSS, false) => 0,
            _ => return Err(bad),
        };
        if attributes.dpl() < cpl.max(gate.rpl()) {
            return Err(bad);
        }
        if !attributes.has(A::P) {
            return Err(processor.fault(Exception::not_present(gate.error_code())));
        }
        if width == 0 {
            return Err(Fault::TaskSwitch);
        }
        let code = processor.code_behind_gate((gate.low >> 16) as u16)?;
        let (dpl, conforming) = (
            code.attributes().dpl(),
            code.attributes().has(A::DOWN_OR_CONFORMING),
        );
        if !call && !conforming && dpl != cpl {
            return Err(processor.fault(Exception::general_protection(code.error_code())));
        }
        let offset = gate.low & 0xffff | gate.low >> 32 & 0xffff_0000 | gate.high << 32;
        Ok(Destination {
            code,
            offset: if width == 2 { offset & 0xffff } else { offset },
            cpl: if conforming { cpl } else { dpl },
            width,
            parameters: if long { 0 } else { (gate.low >> 32 & 31) as u8 },
        })
    }

    /// RET to another segment.
    pub fn far_return(&mut self) -> Result<(), Fault> {
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self.processor.pop_frame(&mut stack, width, 2)?;
        let rip = self.processor.element(&frame, 0)?;
        let selector = self.processor.element(&frame, 1)? as u16;
        stack.release(self.released());
        if self.processor.has_plain_segments() {
            let code = self.plain_code(selector, rip)?;
            self.processor.set_stack_pointer(&stack);
            return self.branch_plain(code, rip);
        }
        let code = self.returned_code(selector)?;
        let outer = code.rpl() > self.processor.cpu.cpl();
        let mut new = match outer {
            true => {
                let frame = self.processor.pop_frame(&mut stack, width, 2)?;
                Some(self.returned_stack(&code, &frame, 0)?)
            }
            false => None,
        };
        self.processor.check_offset(&code, rip)?;
        self.processor.mark_used(&code, new.as_ref())?;
        if let Some(new) = &mut new {
            new.stack.release(self.released());
        }
        self.return_to(&code, rip, &stack, new.as_ref());
        Ok(())
    }

    /// The code that a return leads to: of this privilege level or an outer one.
    fn returned_code(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        self.processor.code(selector, |dpl, rpl, cpl, conforming| {
            rpl >= cpl && if conforming { dpl <= rpl } else { dpl == rpl }
        })
    }

    /// The stack that a return to `code` pops: elements `first` and the next of a frame.
    fn returned_stack(
        &mut self,
        code: &Descriptor,
        frame: &Frame,
        first: u8,
    ) -> Result<NewStack, Fault> {
        let processor = &mut self.processor;
        let pointer = processor.element(frame, first)?;
        let selector = processor.element(frame, first.wrapping_add(1))? as u16;
        let (long, cpl) = (processor.is_64_bit(code), code.rpl());
        if selector & INDEX == 0 {
            if !long || cpl == 3 || selector != u16::from(cpl) {
                return Err(processor.fault(Exception::general_protection(0)));
            }
            let segment = Processor::<C>::null_stack_segment(cpl);
            return Ok(processor.new_stack(None, segment, pointer, true));
        }
        let found = processor.descriptor(selector, Exception::general_protection)?;
        processor.check_stack_segment(&found, cpl, Exception::general_protection)?;
        let mut new = processor.new_stack(Some(found), found.segment(), pointer, long);
        if !long {
            // Of a small stack's pointer the upper half stays.
            new.pointer = processor.cpu.gprs()[Reg::Rsp];
        }
        Ok(new)
    }

    fn return_to(&mut self, code: &Descriptor, rip: u64, old: &Stack, new: Option<&NewStack>) {
        let outer = code.rpl() > self.processor.cpu.cpl();
        self.processor.set_code(code, code.rpl());
        match new {
            Some(new) => self.processor.take_stack(new),
            None => self.processor.set_stack_pointer(old),
        }
        if outer {
            self.processor.drop_inner_segments(code.rpl());
        }
        self.next_rip = rip;
    }

    /// IRET.
    pub fn interrupt_return(&mut self) -> Result<(), Fault> {
        self.check_interrupt_return()?;
        // 64-bit code always pops a stack too.
        let count = if self.processor.mode.long { 5 } else { 3 };
        let width = self.instruction.operand_width;
        let mut stack = self.processor.stack();
        let frame = self.processor.pop_frame(&mut stack, width, count)?;
        let rip = self.processor.element(&frame, 0)?;
        let selector = self.processor.element(&frame, 1)? as u16;
        let flags = self.processor.element(&frame, 2)?;
        if self.processor.has_plain_segments() {
            let code = self.plain_code(selector, rip)?;
            self.processor.set_stack_pointer(&stack);
            self.finish_interrupt(flags, rflags::RF);
            return self.branch_plain(code, rip);
        }
        let cpl = self.processor.cpu.cpl();
        if width == 4 && flags & rflags::VM != 0 && cpl == 0 && !self.processor.long_mode() {
            return self.return_to_8086(stack, rip, selector, flags);
        }
        let code = self.returned_code(selector)?;
        let new = match (self.processor.mode.long, code.rpl() > cpl) {
            (true, _) => Some(self.returned_stack(&code, &frame, 3)?),
            (false, true) => {
                let frame = self.processor.pop_frame(&mut stack, width, 2)?;
                Some(self.returned_stack(&code, &frame, 0)?)
            }
            (false, false) => None,
        };
        self.processor.check_offset(&code, rip)?;
        self.processor.mark_used(&code, new.as_ref())?;
        let privileged = match cpl {
            0 => rflags::VIF | rflags::VIP,
            _ => 0,
        };
        self.finish_interrupt(flags, rflags::RF | privileged);
        self.return_to(&code, rip, &stack, new.as_ref());
        Ok(())
    }

    /// Virtual-8086 mode needs IOPL 3; a nested task, which RFLAGS.NT says that this is, would go back to another task.
    fn check_interrupt_return(&self) -> Result<(), Fault> {
        if self.processor.has_plain_segments() {
            return self.check_flags_of_8086();
        }
        match (self.flags() & rflags::NT, self.processor.long_mode()) {
            (0, _) => Ok(()),
            (_, true) => Err(self.processor.fault(Exception::general_protection(0))),
            (_, false) => Err(Fault::TaskSwitch),
        }
    }

    /// Sets what IRET sets besides where to go on.
    fn finish_interrupt(&mut self, flags: u64, more: u64) {
        let width = self.instruction.operand_width;
        self.load_flags(flags, width, more);
        self.keeps_resume_flag = true;
        self.processor.cpu.set_nmi_blocked(false);
    }

    /// IRET to virtual-8086 mode (SDM 3B: 20.2.2).
    fn return_to_8086(
        &mut self,
        mut stack: Stack,
        rip: u64,
        cs: u16,
        flags: u64,
    ) -> Result<(), Fault> {
        let frame = self.processor.pop_frame(&mut stack, 4, 6)?;
        if rip > 0xffff {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        let rsp = self.processor.element(&frame, 0)?;
        let mut selectors = [0; 5];
        for (selector, index) in selectors.iter_mut().zip(1u8..6) {
            *selector = self.processor.element(&frame, index)? as u16;
        }
        use rflags::{RF, VIF, VIP, VM};
        self.finish_interrupt(flags, RF | VIF | VIP | VM);
        let segs = [Seg::Ss, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs];
        for (seg, selector) in segs.into_iter().zip(selectors).chain([(Seg::Cs, cs)]) {
            self.processor
                .cpu
                .set_segment(seg, Segment::of_8086(selector));
        }
        self.processor.cpu.gprs_mut()[Reg::Rsp] = rsp;
        self.next_rip = rip;
        Ok(())
    }
}
