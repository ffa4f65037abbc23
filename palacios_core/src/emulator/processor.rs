// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPU in its mode, and the fetch of instructions.

use super::cpu::{CodeReader, Fault};
use super::instruction::{CodeSize, DecodeError};
use super::instruction_bytes::{InstructionBytes, MAX_INSTRUCTION_BYTES};
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::memory::walk::{AccessKind, Privilege};
use crate::state::{cr0, is_64_bit_code, rflags, Exception, Seg, SegmentAttributes};

/// The operating mode (APM 2: 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// Not real mode.
    pub protected: bool,
    /// Virtual-8086 mode, where segments are as in real mode.
    pub virtual_8086: bool,
    /// 64-bit mode.
    pub long: bool,
    pub code: CodeSize,
}

impl Mode {
    fn of(cpu: &impl CodeReader) -> Mode {
        let protected = cpu.cr(0) & cr0::PE != 0;
        let virtual_8086 = protected && cpu.rflags() & rflags::VM != 0;
        let code = cpu.segment(Seg::Cs).attributes;
        let long = is_64_bit_code(cpu.efer(), code);
        let code = match (long, code.has(SegmentAttributes::DB)) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        };
        Mode {
            protected,
            virtual_8086,
            long,
            code,
        }
    }
}

/// A page that was translated: its linear address, its frame, for whom.
pub(super) type Translated = Option<(Gva, Gpa, Privilege)>;

/// A CPU, its mode, and the pages that its instruction used so far.
pub(super) struct Processor<'a, C> {
    pub cpu: &'a mut C,
    pub mode: Mode,
    pub last_read: Translated,
    pub last_written: Translated,
    /// An event from outside of the program is being delivered, which exceptions on the way must say (SDM 3A: 6.13).
    pub external: bool,
    /// The bytes of the instruction, for a report.
    pub bytes: InstructionBytes,
}

impl<'a, C: CodeReader> Processor<'a, C> {
    pub fn new(cpu: &'a mut C) -> Self {
        let mode = Mode::of(cpu);
        Processor {
            cpu,
            mode,
            last_read: None,
            last_written: None,
            external: false,
            bytes: InstructionBytes::new(&[]),
        }
    }

    /// RIP after an instruction of `length` bytes.
    pub fn rip_after(&self, length: u8) -> u64 {
        let next = self.cpu.rip().wrapping_add(length.into());
        if self.mode.long {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// Decodes the instruction at CS:RIP. A second page is touched only if the instruction reaches into it.
    pub fn fetch<T>(
        &mut self,
        decode: fn(&[u8], CodeSize) -> Result<T, DecodeError>,
        length: fn(&T) -> u8,
    ) -> Result<T, Fault> {
        self.bytes = InstructionBytes::new(self.cpu.fetched());
        let rip = self.rip_after(0);
        if self.bytes.len == 0 {
            self.fetch_more(rip)?;
        }
        loop {
            let error = match decode(self.bytes.get(), self.mode.code) {
                Ok(decoded) => {
                    self.linear(Seg::Cs, rip, length(&decoded), AccessKind::Execute)?;
                    return Ok(decoded);
                }
                Err(error) => error,
            };
            match error {
                DecodeError::Incomplete if self.bytes.get().len() < MAX_INSTRUCTION_BYTES => {}
                DecodeError::Incomplete | DecodeError::TooLong => {
                    return Err(self.fault(Exception::general_protection(0)));
                }
                DecodeError::BadLock => return Err(self.fault(Exception::INVALID_OPCODE)),
                DecodeError::Unknown => return Err(Fault::Unsupported(self.bytes)),
            }
            self.fetch_more(rip)?;
        }
    }

    /// Reads what this page, or the next, has of the instruction beyond what is there.
    fn fetch_more(&mut self, rip: u64) -> Result<(), Fault> {
        let rip = rip.wrapping_add(self.bytes.len.into());
        let at = self.linear(Seg::Cs, rip, 1, AccessKind::Execute)?;
        let access = self.access(AccessKind::Execute);
        let gpa = self.cpu.translate(at, access)?;
        let room = PAGE_SIZE.wrapping_sub(at.page_offset()) as usize;
        let rest = self.bytes.rest();
        let count = rest.len().min(room);
        self.cpu
            .fetch(gpa, rest.get_mut(..count).unwrap_or(&mut []))?;
        self.bytes.len = self.bytes.len.saturating_add(count as u8);
        Ok(())
    }
}
