// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory as instructions see it: segments, page boundaries, and the checks before an access (SDM 3A: 5.3; APM 2: 4.12).

use super::cpu::{CodeReader, Cpu, Fault};
use super::processor::Processor;
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::memory::walk::{Access, AccessKind, Privilege};
use crate::state::{cr0, cr4, rflags, Exception, Seg, Segment, SegmentAttributes};

/// Bytes of the widest operand that is one access: a YMM register.
pub(super) const MAX_OPERAND_BYTES: usize = 32;

/// Memory that has been checked and translated: one run of bytes, or two where it crosses into another page.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedMemory {
    at: Gpa,
    /// Where the bytes from `split` on lie.
    rest: Gpa,
    split: u8,
    pub width: u8,
}

impl CheckedMemory {
    /// The `width` bytes from byte `from` on.
    pub fn part(&self, from: u8, width: u8) -> CheckedMemory {
        let split = self.split.saturating_sub(from);
        let at = match from.checked_sub(self.split) {
            Some(behind) if self.split < self.width => self.rest.wrapping_add(behind.into()),
            _ => self.at.wrapping_add(from.into()),
        };
        let split = if split == 0 { width } else { split.min(width) };
        CheckedMemory {
            at,
            rest: self.rest,
            split,
            width,
        }
    }
}

/// The bytes of an operand, of which `width` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes {
    bytes: [u8; MAX_OPERAND_BYTES],
    width: u8,
}

impl Bytes {
    /// The low `width` bytes of `value`.
    pub fn new(value: u128, width: u8) -> Bytes {
        let mut bytes = [0; MAX_OPERAND_BYTES];
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Bytes { bytes, width }
    }
    /// The first `width` of these bytes.
    pub fn of(bytes: [u8; MAX_OPERAND_BYTES], width: u8) -> Bytes {
        Bytes { bytes, width }
    }
    /// The bytes, and zeroes behind them.
    pub fn all(&self) -> [u8; MAX_OPERAND_BYTES] {
        let mut bytes = self.bytes;
        bytes
            .iter_mut()
            .skip(self.width.into())
            .for_each(|byte| *byte = 0);
        bytes
    }
    /// The first 16 of them at most, as a number.
    pub fn value(&self) -> u128 {
        let mut low = [0; 16];
        for (to, from) in low.iter_mut().zip(self.bytes).take(self.width.into()) {
            *to = from;
        }
        u128::from_le_bytes(low)
    }
    fn split(&self, at: u8) -> (&[u8], &[u8]) {
        let width = usize::from(self.width).min(MAX_OPERAND_BYTES);
        self.bytes
            .split_at(width)
            .0
            .split_at(usize::from(at).min(width))
    }
    fn split_mut(&mut self, at: u8) -> (&mut [u8], &mut [u8]) {
        let width = usize::from(self.width).min(MAX_OPERAND_BYTES);
        self.bytes
            .split_at_mut(width)
            .0
            .split_at_mut(usize::from(at).min(width))
    }
}

impl<C: CodeReader> Processor<'_, C> {
    /// The exception of a bad access through `seg`: #SS for the stack segment, #GP for others.
    fn segment_fault(&self, seg: Seg) -> Fault {
        self.fault(match seg {
            Seg::Ss => Exception::stack(0),
            _ => Exception::general_protection(0),
        })
    }

    /// An exception as it is in this mode: in real mode none has an error code.
    pub fn fault(&self, exception: Exception) -> Fault {
        let error_code = exception.error_code.filter(|_| self.mode.protected);
        let external = u32::from(self.external && matches!(exception.vector, 10..=13));
        let error_code = error_code.map(|code| code | external);
        Fault::Exception(Exception {
            error_code,
            ..exception
        })
    }

    /// What is added to an offset in a segment. In 64-bit mode only FS and GS have a base.
    pub fn base(&self, seg: Seg) -> u64 {
        if self.mode.long && !matches!(seg, Seg::Fs | Seg::Gs) {
            return 0;
        }
        self.cpu.segment(seg).base
    }

    /// The linear address of `width` bytes at `offset` in a segment, after the checks that segmentation makes.
    pub fn linear(&self, seg: Seg, offset: u64, width: u8, kind: AccessKind) -> Result<Gva, Fault> {
        let segment = match self.mode.long {
            true => Segment {
                base: self.base(seg),
                ..Segment::default()
            },
            false => self.cpu.segment(seg),
        };
        self.linear_in(&segment, self.mode.long, offset, width, kind)
            .ok_or_else(|| self.segment_fault(seg))
    }

    /// The same in a segment that no register need hold, in 64-bit mode or not. `None`: segmentation forbids it.
    pub fn linear_in(
        &self,
        segment: &Segment,
        long: bool,
        offset: u64,
        width: u8,
        kind: AccessKind,
    ) -> Option<Gva> {
        let last = offset.wrapping_add(u64::from(width.saturating_sub(1)));
        if long {
            let (first, last) = (
                segment.base.wrapping_add(offset),
                segment.base.wrapping_add(last),
            );
            let canonical = self.is_canonical(first) && self.is_canonical(last);
            return canonical.then_some(Gva(first));
        }
        let attributes = segment.attributes;
        if self.mode.protected && !self.mode.virtual_8086 {
            let allowed = match kind {
                AccessKind::Write => attributes.writable(),
                AccessKind::Read => attributes.readable(),
                AccessKind::Execute => true,
            };
            if !attributes.has(SegmentAttributes::P) || !allowed {
                return None;
            }
        }
        let limit = u64::from(segment.limit);
        let inside = if attributes.expands_down() {
            let top = if attributes.has(SegmentAttributes::DB) {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        inside.then_some(Gva(segment.base.wrapping_add(offset) & 0xffff_ffff))
    }

    pub fn is_canonical(&self, at: u64) -> bool {
        let unused = if self.cpu.cr(4) & cr4::LA57 != 0 {
            7
        } else {
            16
        };
        ((at << unused) as i64 >> unused) as u64 == at
    }

    /// An access of the instruction at its own privilege level.
    pub fn access(&self, kind: AccessKind) -> Access {
        let privilege = if self.cpu.cpl() == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        };
        Access { kind, privilege }
    }
}

impl<C: Cpu> Processor<'_, C> {
    /// Checks and translates an operand of `width` bytes at `offset` in a segment.
    pub fn check_memory(
        &mut self,
        seg: Seg,
        offset: u64,
        width: u8,
        kind: AccessKind,
    ) -> Result<CheckedMemory, Fault> {
        let at = self.linear(seg, offset, width, kind)?;
        self.check_alignment(at, width)?;
        let access = self.access(kind);
        self.check_linear(at, width, access)
    }

    /// Translates `width` bytes at a linear address. A page beyond the first is checked like the first.
    pub fn check_linear(
        &mut self,
        at: Gva,
        width: u8,
        access: Access,
    ) -> Result<CheckedMemory, Fault> {
        let first = self.translate(at, access)?;
        let room = PAGE_SIZE - at.page_offset();
        let mut memory = CheckedMemory {
            at: first,
            rest: Gpa(0),
            split: width,
            width,
        };
        if room < u64::from(width) {
            let next = at.wrapping_add(room);
            let next = if self.mode.long {
                next
            } else {
                Gva(next.0 & 0xffff_ffff)
            };
            memory.rest = self.translate(next, access)?;
            memory.split = room as u8;
        }
        Ok(memory)
    }

    /// #AC where the guest asked for it (SDM 3A: 6.15, interrupt 17). Of operands above 8 bytes a processor may let any pass.
    pub fn check_alignment(&self, at: Gva, width: u8) -> Result<(), Fault> {
        let wanted = self.cpu.cpl() == 3
            && self.cpu.cr(0) & cr0::AM != 0
            && self.cpu.rflags() & rflags::AC != 0;
        let aligned = width > 8 || at.0 & u64::from(width.saturating_sub(1)) == 0;
        if wanted && !aligned {
            return Err(self.fault(Exception::alignment()));
        }
        Ok(())
    }

    /// Translates, remembering the last page read and the last one written: a string instruction stays in its pages.
    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Fault> {
        let memory = match access.kind {
            AccessKind::Write => &mut self.last_written,
            _ => &mut self.last_read,
        };
        if let Some((page, frame, privilege)) = *memory {
            if page == at.page() && privilege == access.privilege {
                return Ok(Gpa(frame.0 | at.page_offset()));
            }
        }
        let found = self.cpu.translate(at, access)?;
        *memory = Some((at.page(), found.page(), access.privilege));
        Ok(found)
    }

    /// Reads an operand.
    pub fn load(&mut self, memory: &CheckedMemory) -> Result<Bytes, Fault> {
        let mut bytes = Bytes::new(0, memory.width);
        let (first, rest) = bytes.split_mut(memory.split);
        self.cpu.read(memory.at, first)?;
        if !rest.is_empty() {
            self.cpu.read(memory.rest, rest)?;
        }
        Ok(bytes)
    }

    /// Writes an operand.
    pub fn store(&mut self, memory: &CheckedMemory, bytes: &Bytes) -> Result<(), Fault> {
        let (first, rest) = bytes.split(memory.split);
        self.cpu.write(memory.at, first)?;
        if !rest.is_empty() {
            self.cpu.write(memory.rest, rest)?;
        }
        Ok(())
    }

    /// Writes an operand that was read as `old`, in one atomic step. Across two pages, where even a processor needs a bus
    /// lock, other CPUs may see half of it.
    pub fn exchange(
        &mut self,
        memory: &CheckedMemory,
        old: &Bytes,
        new: &Bytes,
    ) -> Result<(), Fault> {
        let (first, rest) = new.split(memory.split);
        if !rest.is_empty() {
            return self.store(memory, new);
        }
        let (old, _) = old.split(memory.split);
        match self.cpu.compare_exchange(memory.at, old, first)? {
            true => Ok(()),
            false => Err(Fault::Retry),
        }
    }
}
