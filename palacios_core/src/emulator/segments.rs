// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors, and the loading of segment registers (SDM 3A: 3.4, 5.5 to 5.8; APM 2: 4.7 to 4.10).
//!
//! A descriptor is read and checked before anything is written; that it was used is noted in it last.

use super::access::{Bytes, CheckedMemory};
use super::cpu::{Behaviour, Cpu, Fault};
use super::execution::Execution;
use super::instruction::Operand;
use super::processor::Processor;
use crate::addr::Gva;
use crate::memory::walk::{Access, AccessKind, Privilege};
use crate::state::{efer, DescriptorTable, Exception, Seg, Segment, SegmentAttributes as A};

/// The kind of exception that names a selector.
pub(super) type Blame = fn(u32) -> Exception;

/// A selector's bits that choose a descriptor: all but its privilege level.
pub(super) const INDEX: u16 = !3;
/// A selector into the local table.
pub(super) const LOCAL: u16 = 4;
/// The system descriptors' types (SDM 3A: table 3-2).
pub(super) mod kind {
    pub const TSS_16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS_16_BUSY: u8 = 3;
    pub const CALL_GATE_16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const TSS: u8 = 9;
    pub const CALL_GATE: u8 = 12;
}

/// An entry of a descriptor table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub selector: u16,
    /// Its eight bytes.
    pub low: u64,
    /// The eight bytes behind it, of a system descriptor in long mode.
    pub high: u64,
    at: Gva,
}

impl Descriptor {
    /// As a segment register holds it.
    pub fn segment(&self) -> Segment {
        let base = self.low >> 16 & 0xff_ffff | self.low >> 32 & 0xff00_0000;
        let limit = (self.low & 0xffff | self.low >> 32 & 0xf_0000) as u32;
        let attributes = A((self.low >> 40 & 0xff | self.low >> 44 & 0xf00) as u16);
        Segment {
            selector: self.selector,
            base: base | (self.high & 0xffff_ffff) << 32,
            limit: match attributes.has(A::G) {
                true => limit << 12 | 0xfff,
                false => limit,
            },
            attributes,
        }
    }
    pub fn attributes(&self) -> A {
        self.segment().attributes
    }
    /// The type of a system descriptor; `None` for one of code or data.
    pub fn system(&self) -> Option<u8> {
        let attributes = self.attributes();
        (!attributes.has(A::S)).then_some(attributes.kind())
    }
    /// Where the type stands in the first eight bytes, the second eight of a system descriptor have zeroes.
    pub fn is_well_formed(&self) -> bool {
        self.high >> 40 & 0x1f == 0
    }
    /// What an exception says of it.
    pub fn error_code(&self) -> u32 {
        (self.selector & INDEX).into()
    }
    /// The privilege level that asks for it.
    pub fn rpl(&self) -> u8 {
        self.selector as u8 & 3
    }
}

/// Type bits that are to be set in a descriptor.
pub(super) struct Mark {
    memory: Option<CheckedMemory>,
    old: u64,
    new: u64,
}

impl<C: Cpu> Processor<'_, C> {
    /// In long mode, be it in 64-bit or compatibility mode.
    pub fn long_mode(&self) -> bool {
        self.cpu.efer() & efer::LMA != 0
    }

    /// Segments are named by their address: in real and virtual-8086 mode.
    pub fn has_plain_segments(&self) -> bool {
        !self.mode.protected || self.mode.virtual_8086
    }

    /// Places what the processor itself accesses, in a table of its own.
    pub fn check_implicit(
        &mut self,
        at: u64,
        width: u8,
        kind: AccessKind,
    ) -> Result<CheckedMemory, Fault> {
        let last = at.wrapping_add(u64::from(width.saturating_sub(1)));
        let at = match self.long_mode() {
            true if !self.is_canonical(at) || !self.is_canonical(last) => {
                return Err(self.fault(Exception::general_protection(0)));
            }
            true => at,
            false => at & 0xffff_ffff,
        };
        let privilege = Privilege::Implicit;
        self.check_linear(Gva(at), width, Access { kind, privilege })
    }

    /// Reads from a table of the processor's own.
    pub fn read_implicit(&mut self, at: u64, width: u8) -> Result<u64, Fault> {
        let memory = self.check_implicit(at, width, AccessKind::Read)?;
        Ok(self.load(&memory)?.value() as u64)
    }

    /// The descriptor that a selector names. In long mode one of the system has 16 bytes.
    pub fn descriptor(&mut self, selector: u16, blame: Blame) -> Result<Descriptor, Fault> {
        let bad = self.fault(blame((selector & INDEX).into()));
        let (base, limit) = match selector & LOCAL {
            0 => {
                let table = self.cpu.table(DescriptorTable::Global);
                (table.base, table.limit.into())
            }
            _ => {
                let table = self.cpu.segment(Seg::Ldtr);
                if !table.attributes.has(A::P) {
                    return Err(bad);
                }
                (table.base, table.limit)
            }
        };
        let offset = u32::from(selector & !7);
        if offset | 7 > limit {
            return Err(bad);
        }
        let at = base.wrapping_add(offset.into());
        let mut descriptor = Descriptor {
            selector,
            low: self.read_implicit(at, 8)?,
            high: 0,
            at: Gva(at),
        };
        if self.long_mode() && descriptor.system().is_some() {
            if offset.saturating_add(15) > limit {
                return Err(bad);
            }
            descriptor.high = self.read_implicit(at.wrapping_add(8), 8)?;
        }
        Ok(descriptor)
    }

    /// Checks that type bits can be set in a descriptor, unless they are.
    pub fn check_mark(&mut self, descriptor: &Descriptor, kind: u16) -> Result<Mark, Fault> {
        let (old, new) = (descriptor.low, descriptor.low | u64::from(kind) << 40);
        let memory = match new == old {
            true => None,
            false => Some(self.check_implicit(descriptor.at.0, 8, AccessKind::Write)?),
        };
        Ok(Mark { memory, old, new })
    }

    /// Sets them, in one atomic step with respect to other processors.
    pub fn set_mark(&mut self, mark: &Mark) -> Result<(), Fault> {
        let (old, new) = (mark.old.into(), mark.new.into());
        match &mark.memory {
            Some(memory) => self.exchange(memory, &Bytes::new(old, 8), &Bytes::new(new, 8)),
            None => Ok(()),
        }
    }

    /// Checks a descriptor for SS at a privilege level (SDM 2B: MOV). `blame` is for what is wrong but its absence.
    pub fn check_stack_segment(
        &self,
        descriptor: &Descriptor,
        cpl: u8,
        blame: Blame,
    ) -> Result<(), Fault> {
        let (attributes, code) = (descriptor.attributes(), descriptor.error_code());
        let fits = attributes.has(A::S)
            && attributes.writable()
            && descriptor.rpl() == cpl
            && attributes.dpl() == cpl;
        match (fits, attributes.has(A::P)) {
            (false, _) => Err(self.fault(blame(code))),
            (true, false) => Err(self.fault(Exception::stack(code))),
            (true, true) => Ok(()),
        }
    }

    /// SS without a segment, as 64-bit code may have it.
    pub fn null_stack_segment(cpl: u8) -> Segment {
        Segment {
            selector: cpl.into(),
            attributes: A(u16::from(cpl) << 5),
            ..Segment::default()
        }
    }

    /// A segment register in real or virtual-8086 mode, with a selector there: real mode leaves limit and rights alone.
    pub fn plain_segment(&self, seg: Seg, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        match self.mode.virtual_8086 {
            true => Segment::of_8086(selector),
            false => Segment {
                selector,
                base,
                ..self.cpu.segment(seg)
            },
        }
    }

    /// Reads and checks what a data segment register is to hold (SDM 2B: MOV).
    fn data_segment(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        let descriptor = self.descriptor(selector, Exception::general_protection)?;
        let (attributes, code) = (descriptor.attributes(), descriptor.error_code());
        let conforming = attributes.has(A::CODE | A::DOWN_OR_CONFORMING);
        let privileged = attributes.dpl() >= descriptor.rpl().max(self.cpu.cpl());
        if !attributes.has(A::S) || !attributes.readable() || !(conforming || privileged) {
            return Err(self.fault(Exception::general_protection(code)));
        }
        if !attributes.has(A::P) {
            return Err(self.fault(Exception::not_present(code)));
        }
        Ok(descriptor)
    }

    /// Loads a data or stack segment register.
    pub fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Fault> {
        if self.has_plain_segments() {
            let segment = self.plain_segment(seg, selector);
            self.cpu.set_segment(seg, segment);
            return Ok(());
        }
        let cpl = self.cpu.cpl();
        let null = selector & INDEX == 0;
        if null && seg == Seg::Ss {
            // SDM 3A: 5.4.1.1.
            if !self.mode.long || cpl == 3 || selector != u16::from(cpl) {
                return Err(self.fault(Exception::general_protection(0)));
            }
            self.cpu.set_segment(seg, Self::null_stack_segment(cpl));
            return Ok(());
        }
        if null {
            self.cpu.set_segment(seg, null_segment(selector));
            return Ok(());
        }
        let descriptor = match seg {
            Seg::Ss => {
                let found = self.descriptor(selector, Exception::general_protection)?;
                self.check_stack_segment(&found, cpl, Exception::general_protection)?;
                found
            }
            _ => self.data_segment(selector)?,
        };
        let mark = self.check_mark(&descriptor, A::ACCESSED)?;
        self.set_mark(&mark)?;
        self.cpu.set_segment(seg, descriptor.segment());
        Ok(())
    }

    /// Empties the data segment registers that an outer level must not use (SDM 3A: 5.8.6).
    pub fn drop_inner_segments(&mut self, cpl: u8) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let attributes = self.cpu.segment(seg).attributes;
            let conforming = attributes.has(A::CODE | A::DOWN_OR_CONFORMING);
            if attributes.dpl() < cpl && !conforming {
                self.cpu.set_segment(seg, null_segment(0));
            }
        }
    }
}

/// A data segment register without a segment.
pub(super) fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        ..Segment::default()
    }
}

impl<C: Cpu> Execution<'_, C> {
    /// Loads a data or stack segment register; SS keeps interrupts and traps from what follows (SDM 3A: 6.8.3).
    pub fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Fault> {
        if seg == Seg::Cs {
            return Err(self.processor.fault(Exception::INVALID_OPCODE));
        }
        self.processor.load_segment(seg, selector)?;
        self.shadow = seg == Seg::Ss;
        Ok(())
    }

    /// MOV to a segment register.
    pub fn mov_to_segment(&mut self, seg: Seg) -> Result<(), Fault> {
        let from = self.target(1, AccessKind::Read)?;
        let selector = self.get(&from)? as u16;
        self.load_segment(seg, selector)
    }

    /// LDS, LES, LSS, LFS, LGS.
    pub fn load_far_pointer(&mut self, seg: Seg) -> Result<(), Fault> {
        let (selector, offset) = self.far_pointer(1)?;
        self.processor.load_segment(seg, selector)?;
        let to = self.target(0, AccessKind::Write)?;
        self.set(&to, offset)
    }

    /// Reads the far pointer that is operand `index`: selector and offset.
    pub fn far_pointer(&mut self, index: usize) -> Result<(u16, u64), Fault> {
        let address = match self.operand(index) {
            Operand::Memory(address) => address,
            Operand::Far { selector, offset } => return Ok((selector, offset.into())),
            _ => return Err(self.unsupported()),
        };
        let width = match self.instruction.operand_width {
            8 if !self.processor.cpu.has(Behaviour::WideFarPointers) => 4,
            width => width,
        };
        let offset = self.offset(&address);
        let bytes = width.wrapping_add(2);
        let seg = address.seg;
        let at = self
            .processor
            .linear(seg, offset, bytes, AccessKind::Read)?;
        self.processor.check_alignment(at, width)?;
        let access = self.processor.access(AccessKind::Read);
        let memory = self.processor.check_linear(at, bytes, access)?;
        let offset = self.processor.load(&memory.part(0, width))?.value() as u64;
        let selector = self.processor.load(&memory.part(width, 2))?.value() as u16;
        Ok((selector, offset))
    }
}
