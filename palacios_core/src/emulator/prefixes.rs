// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands before an opcode, read here since the decoders do not tell a DS override from none; and what of it they must
//! not see.

use super::instruction::*;
use super::instruction_bytes::MAX_INSTRUCTION_BYTES;
use crate::state::Seg;

/// The prefixes of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefixes {
    /// They are those of 64-bit code.
    pub long: bool,
    operand_size: bool,
    address_size: bool,
    pub lock: bool,
    pub repeat: Repeat,
    pub segment: Option<Seg>,
    /// The REX prefix, which counts only right before the opcode.
    rex: u8,
    /// How many other REX prefixes there are.
    idle_rex: u8,
    /// How many bytes they all have.
    pub len: usize,
}

impl Prefixes {
    pub fn scan(bytes: &[u8], size: CodeSize) -> Prefixes {
        let long = size == CodeSize::Bits64;
        let mut found = Prefixes {
            long,
            operand_size: false,
            address_size: false,
            lock: false,
            repeat: Repeat::No,
            segment: None,
            rex: 0,
            idle_rex: 0,
            len: 0,
        };
        for &byte in bytes {
            let rex = core::mem::take(&mut found.rex);
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => found.segment = Some(Seg::Es),
                0x2e => found.segment = Some(Seg::Cs),
                0x36 => found.segment = Some(Seg::Ss),
                0x3e => found.segment = Some(Seg::Ds),
                0x64 => found.segment = Some(Seg::Fs),
                0x65 => found.segment = Some(Seg::Gs),
                0x66 => found.operand_size = true,
                0x67 => found.address_size = true,
                0xf0 => found.lock = true,
                0xf2 => found.repeat = Repeat::WhileNotEqual,
                0xf3 => found.repeat = Repeat::WhileEqual,
                0x40..=0x4f if long => found.rex = byte,
                _ => {
                    found.rex = rex;
                    break;
                }
            }
            found.idle_rex = found.idle_rex.wrapping_add(u8::from(rex != 0));
            found.len = found.len.wrapping_add(1);
        }
        found
    }

    /// LOCK makes a move to or from CR0 one of CR8, for code that has no REX (APM 3: MOV CRn). `bytes` are the prefixes' and what
    /// follows them.
    fn name_cr8(&self, bytes: &[u8]) -> bool {
        const REX_R: u8 = 4;
        const REG: u8 = 0x38;
        self.lock
            && self.rex & REX_R == 0
            && matches!(bytes.get(self.len..), Some([0x0f, 0x20 | 0x22, modrm, ..]) if modrm & REG == 0)
    }

    /// A VEX prefix may follow; behind others it is #UD (SDM 2A: 2.3.2 to 2.3.4).
    pub fn allow_vex(&self) -> bool {
        !self.operand_size && !self.lock && self.repeat == Repeat::No && self.rex == 0
    }

    pub fn address_width(&self, size: CodeSize) -> u8 {
        match (size, self.address_size) {
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
            (CodeSize::Bits64, false) => 8,
            _ => 4,
        }
    }

    pub fn operand_width(&self, size: CodeSize) -> u8 {
        match (size, self.operand_size) {
            _ if self.rex & 8 != 0 => 8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32 | CodeSize::Bits64, true) => 2,
            _ => 4,
        }
    }
}

/// An instruction's bytes without what the decoders stumble over: REX prefixes that do not count, LOCK where it names CR8, and
/// two opcodes outside of 64-bit mode: 0x82, which is 0x80 by another name, and 0xea, a far JMP in the form of the far CALL 0x9a.
pub(super) struct Plain {
    bytes: [u8; MAX_INSTRUCTION_BYTES],
    len: usize,
    /// How many bytes were left out.
    pub dropped: u8,
    /// LOCK names CR8.
    pub cr8: bool,
}

impl Plain {
    pub fn new(bytes: &[u8], prefixes: &Prefixes, size: CodeSize) -> Plain {
        let mut plain = Plain {
            bytes: [0; MAX_INSTRUCTION_BYTES],
            len: 0,
            dropped: 0,
            cr8: prefixes.name_cr8(bytes),
        };
        let last = prefixes.len.wrapping_sub(1);
        for (i, &byte) in (0..MAX_INSTRUCTION_BYTES).zip(bytes) {
            let idle_rex = prefixes.idle_rex != 0 && i < last && byte & 0xf0 == 0x40;
            if idle_rex || plain.cr8 && i < prefixes.len && byte == 0xf0 {
                plain.dropped = plain.dropped.wrapping_add(1);
                continue;
            }
            let first = i == prefixes.len && size != CodeSize::Bits64;
            if let Some(to) = plain.bytes.get_mut(plain.len) {
                *to = match byte {
                    0x82 if first => 0x80,
                    0xea if first => 0x9a,
                    _ => byte,
                };
            }
            plain.len = plain.len.wrapping_add(1);
        }
        plain
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}
