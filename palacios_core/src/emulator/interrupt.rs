// SPDX-License-Identifier: MIT OR Apache-2.0
//! Delivery of interrupts and exceptions through the interrupt descriptor table (SDM 3A: 6.12, 6.14, 20.1.4; APM 2: 8.7, 8.9).
//!
//! Processors do it by themselves. It is done here for INT and its like, and for an event that a processor could not deliver
//! because its stack, or a table that it needs, is a device's memory.

use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::far::NewStack;
use super::instruction::{Op, Operand};
use super::processor::Processor;
use super::segments::{kind, null_segment, Descriptor};
use super::stack::Stack;
use crate::state::{cr4, rflags, DescriptorTable, Exception, Reg, Seg, SegmentAttributes as A};

/// Where an event comes from that is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The program: INT n, INT3, INTO.
    Software,
    /// An instruction that could not be completed, or was.
    Exception,
    /// An interrupt or an NMI.
    Interrupt,
}

/// An event to be delivered through the interrupt descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// Its vector.
    pub vector: u8,
    /// What is pushed behind RIP.
    pub error_code: Option<u32>,
    /// Where it comes from.
    pub source: Source,
    /// The RIP that is pushed.
    pub rip: u64,
}

impl Interruption {
    fn is_fault(&self) -> bool {
        self.source == Source::Exception && Exception::plain(self.vector).is_fault()
    }
}

/// What delivery pushes at most: four data segments, SS, rSP, RFLAGS, CS, RIP, an error code.
const MAX_PUSHED: usize = 10;
/// Types of gates.
const INTERRUPT_GATE_16: u8 = 6;
const TRAP_GATE_16: u8 = 7;
const INTERRUPT_GATE: u8 = 14;
const TRAP_GATE: u8 = 15;
/// In an error code: it names an entry of the interrupt descriptor table.
const IN_INTERRUPT_TABLE: u32 = 2;

/// Values in the order in which they are pushed.
struct Pushed {
    values: [u64; MAX_PUSHED],
    count: u8,
}

impl Pushed {
    fn add(&mut self, values: &[u64]) {
        for value in values {
            if let Some(slot) = self.values.get_mut(usize::from(self.count)) {
                *slot = *value;
                self.count = self.count.wrapping_add(1);
            }
        }
    }
    fn values(&self) -> &[u64] {
        self.values.get(..self.count.into()).unwrap_or(&[])
    }
}

/// A gate of the interrupt descriptor table.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of what it pushes.
    width: u8,
    /// Which of the interrupt stacks; 0 is none.
    stack: u8,
    /// It keeps interrupts off.
    masks: bool,
}

impl<C: Cpu> Processor<'_, C> {
    /// Delivers; says where to go on.
    pub fn deliver(&mut self, what: &Interruption) -> Result<u64, Fault> {
        match self.mode.protected {
            true => self.deliver_through_gate(what),
            false => self.deliver_by_vector(what),
        }
    }

    /// Real mode: the table has far pointers.
    fn deliver_by_vector(&mut self, what: &Interruption) -> Result<u64, Fault> {
        let table = self.cpu.table(DescriptorTable::Interrupt);
        let offset = u16::from(what.vector).wrapping_mul(4);
        let bad = self.fault(Exception::general_protection(0));
        if offset | 3 > table.limit {
            return Err(bad);
        }
        let at = table.base.wrapping_add(offset.into());
        let rip = self.read_implicit(at, 2)?;
        let selector = self.read_implicit(at.wrapping_add(2), 2)? as u16;
        let code = self.plain_segment(Seg::Cs, selector);
        if rip > code.limit.into() {
            return Err(bad);
        }
        let (flags, cs) = (self.cpu.rflags(), self.cpu.segment(Seg::Cs).selector);
        let mut stack = self.stack();
        let frame = self.push_frame(&mut stack, 2, 3)?;
        self.fill(&frame, &[flags, cs.into(), what.rip])?;
        self.set_stack_pointer(&stack);
        self.cpu.set_segment(Seg::Cs, code);
        let cleared = rflags::IF | rflags::TF | rflags::AC | rflags::RF;
        self.cpu.set_rflags(flags & !cleared);
        Ok(rip)
    }

    fn deliver_through_gate(&mut self, what: &Interruption) -> Result<u64, Fault> {
        let gate = self.gate(what)?;
        let code = self.code_behind_gate(gate.selector)?;
        let old_cpl = self.cpu.cpl();
        let conforming = code.attributes().has(A::DOWN_OR_CONFORMING);
        let cpl = if conforming {
            old_cpl
        } else {
            code.attributes().dpl()
        };
        if self.mode.virtual_8086 && cpl != 0 {
            return Err(self.fault(Exception::general_protection(code.error_code())));
        }
        self.check_offset(&code, gate.offset)?;
        let new = match gate.stack {
            0 if cpl == old_cpl => None,
            0 => Some(self.inner_stack(cpl)?),
            number => Some(self.interrupt_stack(number, cpl)?),
        };
        let mut stack = match new {
            Some(new) => new.stack,
            None if self.long_mode() => self.stack().in_64_bit_mode(self.cpu.gprs()[Reg::Rsp]),
            None => self.stack(),
        };
        if self.long_mode() {
            stack.top &= !15;
        }
        let pushed = self.pushed(what, cpl != old_cpl);
        let frame = self.push_frame(&mut stack, gate.width, pushed.count)?;
        self.mark_used(&code, new.as_ref())?;
        self.fill(&frame, pushed.values())?;
        self.enter_handler(&gate, &code, cpl, new, stack);
        Ok(gate.offset)
    }

    /// What is pushed, to the same level or an inner one.
    fn pushed(&self, what: &Interruption, inner: bool) -> Pushed {
        let mut pushed = Pushed {
            values: [0; MAX_PUSHED],
            count: 0,
        };
        let selector = |seg| u64::from(self.cpu.segment(seg).selector);
        if self.mode.virtual_8086 {
            pushed.add(&[Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es].map(selector));
        }
        if inner || self.long_mode() {
            pushed.add(&[selector(Seg::Ss), self.cpu.gprs()[Reg::Rsp]]);
        }
        let resume = if what.is_fault() { rflags::RF } else { 0 };
        pushed.add(&[self.cpu.rflags() | resume, selector(Seg::Cs), what.rip]);
        if let Some(code) = what.error_code {
            pushed.add(&[code.into()]);
        }
        pushed
    }

    /// Sets the registers that a handler finds.
    fn enter_handler(
        &mut self,
        gate: &Gate,
        code: &Descriptor,
        cpl: u8,
        new: Option<NewStack>,
        stack: Stack,
    ) {
        let inner = cpl != self.cpu.cpl();
        // Flags first: what SS is loaded with is a privilege level only outside of virtual-8086 mode.
        let masked = if gate.masks { rflags::IF } else { 0 };
        let cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM | masked;
        self.cpu.set_rflags(self.cpu.rflags() & !cleared);
        self.set_code(code, cpl);
        match new {
            Some(mut new) if inner => {
                new.stack = stack;
                self.take_stack(&new);
            }
            _ => self.set_stack_pointer(&stack),
        }
        if self.mode.virtual_8086 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                self.cpu.set_segment(seg, null_segment(0));
            }
        }
    }

    /// Reads and checks the gate of a vector.
    fn gate(&mut self, what: &Interruption) -> Result<Gate, Fault> {
        let long = self.long_mode();
        let table = self.cpu.table(DescriptorTable::Interrupt);
        let code = u32::from(what.vector) << 3 | IN_INTERRUPT_TABLE;
        let bad = self.fault(Exception::general_protection(code));
        let size: u16 = if long { 16 } else { 8 };
        let offset = u16::from(what.vector).wrapping_mul(size);
        if offset | size.wrapping_sub(1) > table.limit {
            return Err(bad);
        }
        let at = table.base.wrapping_add(offset.into());
        let low = self.read_implicit(at, 8)?;
        let high = match long {
            true => self.read_implicit(at.wrapping_add(8), 8)?,
            false => 0,
        };
        let attributes = A((low >> 40 & 0xff) as u16);
        let width = match (attributes.kind(), long) {
            _ if attributes.has(A::S) => return Err(bad),
            (INTERRUPT_GATE | TRAP_GATE, true) => 8,
            (INTERRUPT_GATE | TRAP_GATE, false) => 4,
            (INTERRUPT_GATE_16 | TRAP_GATE_16, false) => 2,
            (kind::TASK_GATE, false) => 0,
            _ => return Err(bad),
        };
        if what.source == Source::Software && attributes.dpl() < self.cpu.cpl() {
            return Err(bad);
        }
        if !attributes.has(A::P) {
            return Err(self.fault(Exception::not_present(code)));
        }
        if width == 0 {
            return Err(Fault::TaskSwitch);
        }
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset: if width == 2 { offset & 0xffff } else { offset },
            width,
            stack: if long { (low >> 32 & 7) as u8 } else { 0 },
            masks: matches!(attributes.kind(), INTERRUPT_GATE | INTERRUPT_GATE_16),
        })
    }
}

impl<C: Cpu> Execution<'_, C> {
    /// INT n, INT3, INTO.
    pub fn software_interrupt(&mut self) -> Result<(), Fault> {
        let vector = match (self.instruction.op, self.operand(0)) {
            (Op::Interrupt, Operand::Immediate(vector)) => {
                self.check_interrupt_of_8086()?;
                vector as u8
            }
            (Op::Breakpoint, _) => 3,
            (Op::Overflow, _) if self.flags() & rflags::OF == 0 => return Ok(()),
            (Op::Overflow, _) => 4,
            _ => return Err(self.unsupported()),
        };
        let rip = self.next_rip;
        self.next_rip = self.processor.deliver(&Interruption {
            vector,
            error_code: None,
            source: Source::Software,
            rip,
        })?;
        self.traps = false;
        Ok(())
    }

    /// INT n in virtual-8086 mode is guarded by IOPL. CR4.VME, which sends some to handlers in that mode, is not known here.
    fn check_interrupt_of_8086(&self) -> Result<(), Fault> {
        if !self.processor.mode.virtual_8086 {
            return Ok(());
        }
        if self.processor.cpu.cr(4) & cr4::VME != 0 {
            return Err(self.unsupported());
        }
        match self.flags() & rflags::IOPL == rflags::IOPL {
            true => Ok(()),
            false => Err(self.processor.fault(Exception::general_protection(0))),
        }
    }
}
