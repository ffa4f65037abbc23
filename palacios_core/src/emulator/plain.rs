// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions that exit most, in the forms that nearly all programs use. They are told by a look at a few bytes; all others are the decoder's.
//!
//! `byte` gives an instruction's bytes by their numbers, or `None` where it has no more.
#![forbid(unsafe_code)]

use crate::state::Reg;

/// The length in bytes of an instruction without prefixes, and without an operand in memory.
#[inline]
pub fn plain_length(byte: impl Fn(u8) -> Option<u8>) -> Option<u8> {
    match byte(0)? {
        0x0f => match byte(1)? {
            // INVD, WBINVD, WRMSR, RDMSR, CPUID.
            0x08 | 0x09 | 0x30 | 0x32 | 0xa2 => Some(2),
            // VMCALL, XSETBV, VMMCALL.
            0x01 => matches!(byte(2)?, 0xc1 | 0xd1 | 0xd9).then_some(3),
            _ => None,
        },
        // IN and OUT with a port's number.
        0xe4..=0xe7 => Some(2),
        // IN and OUT by DX, HLT.
        0xec..=0xef | 0xf4 => Some(1),
        // PAUSE.
        0xf3 => (byte(1)? == 0x90).then_some(2),
        _ => None,
    }
}

/// A MOV of a double word between memory and a register, or of a number to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainMove {
    /// Which way, and what.
    pub what: Moved,
    /// The instruction's length in bytes.
    pub length: u8,
}

/// What a [`PlainMove`] moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Memory to a register, whose upper half is cleared.
    ToRegister(Reg),
    /// A register's lower half to memory.
    FromRegister(Reg),
    /// A number to memory.
    Number(u32),
}

const REX_W: u8 = 1 << 3;
const REX_R: u8 = 1 << 2;
const REX_B: u8 = 1 << 0;

/// The REX prefix, which only 64-bit code has, or 0; and how long it is.
fn rex(is_64_bit: bool, first: u8) -> (u8, u8) {
    match is_64_bit && first & 0xf0 == 0x40 {
        true => (first, 1),
        false => (0, 0),
    }
}

/// A [`PlainMove`] in 32-bit or 64-bit code.
pub fn plain_move(is_64_bit: bool, byte: impl Fn(u8) -> Option<u8>) -> Option<PlainMove> {
    let (rex, at) = rex(is_64_bit, byte(0)?);
    let (opcode, form) = (byte(at)?, byte(at.wrapping_add(1))?);
    let (kind, base) = (form >> 6, form & 7);
    if rex & REX_W != 0 || kind == 3 {
        return None;
    }
    let has_index = base == 4;
    let base = match has_index {
        true => byte(at.wrapping_add(2))? & 7,
        false => base,
    };
    let displacement = match (kind, base) {
        (0, 5) | (2, _) => 4,
        (0, _) => 0,
        _ => 1,
    };
    let end = at
        .wrapping_add(2)
        .wrapping_add(has_index.into())
        .wrapping_add(displacement);
    let number = form >> 3 & 7 | (rex & REX_R) << 1;
    let (what, length) = match opcode {
        0x8b => (Moved::ToRegister(Reg::from_number(number)), end),
        0x89 => (Moved::FromRegister(Reg::from_number(number)), end),
        0xc7 if form & 0x38 == 0 => {
            let mut bytes = [0; 4];
            for (byte_at, to) in (end..).zip(&mut bytes) {
                *to = byte(byte_at)?;
            }
            (
                Moved::Number(u32::from_le_bytes(bytes)),
                end.wrapping_add(4),
            )
        }
        _ => return None,
    };
    Some(PlainMove { what, length })
}

/// A MOV to or from a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMove {
    /// Which control register.
    pub number: u8,
    /// The general register.
    pub register: Reg,
    /// To the control register.
    pub write: bool,
    /// The instruction's length in bytes.
    pub length: u8,
}

/// A [`ControlMove`] of CR0, CR3 or CR4.
pub fn plain_control_move(is_64_bit: bool, byte: impl Fn(u8) -> Option<u8>) -> Option<ControlMove> {
    let (rex, at) = rex(is_64_bit, byte(0)?);
    let opcode = byte(at.wrapping_add(1))?;
    if rex & REX_R != 0 || byte(at)? != 0x0f || !matches!(opcode, 0x20 | 0x22) {
        return None;
    }
    // Its two upper bits say nothing.
    let form = byte(at.wrapping_add(2))?;
    let number = form >> 3 & 7;
    matches!(number, 0 | 3 | 4).then(|| ControlMove {
        number,
        register: Reg::from_number(form & 7 | (rex & REX_B) << 3),
        write: opcode == 0x22,
        length: at.wrapping_add(3),
    })
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::super::instruction::{CodeSize, Instruction, Op, Operand};
    use super::*;
    use proptest::prelude::*;

    fn decoded(is_64_bit: bool, bytes: &[u8]) -> Instruction {
        let size = match is_64_bit {
            true => CodeSize::Bits64,
            false => CodeSize::Bits32,
        };
        Instruction::decode(bytes, size).expect("an instruction")
    }

    fn number_of(operand: Operand) -> u8 {
        match operand {
            Operand::Register(register) => register.reg as u8,
            other => panic!("{other:?} is no register"),
        }
    }

    proptest! {
        #[test]
        fn a_plain_move_is_what_the_decoder_says(is_64_bit: bool, mut bytes: [u8; 15], opcode in prop::sample::select(vec![0x89u8, 0x8b, 0xc7]), has_rex: bool) {
            if has_rex {
                (bytes[0], bytes[1]) = (bytes[0] & 0xf | 0x40, opcode);
            } else {
                bytes[0] = opcode;
            }
            let Some(mov) = plain_move(is_64_bit, |n| bytes.get(usize::from(n)).copied()) else {
                return Ok(());
            };
            let instruction = decoded(is_64_bit, &bytes);
            prop_assert_eq!((instruction.op, instruction.length), (Op::Mov, mov.length));
            prop_assert_eq!(instruction.memory_width, 4);
            let [first, second, ..] = instruction.operands;
            match mov.what {
                Moved::ToRegister(reg) => prop_assert_eq!(number_of(first), reg as u8),
                Moved::FromRegister(reg) => prop_assert_eq!(number_of(second), reg as u8),
                Moved::Number(number) => {
                    let is_it = matches!(second, Operand::Immediate(value) if value as u32 == number);
                    prop_assert!(is_it, "{:?}", second);
                }
            }
            // A byte less, and it may not be told any more, but it is not told wrongly.
            let short = usize::from(mov.length) - 1;
            let cut = plain_move(is_64_bit, |n| bytes[..short].get(usize::from(n)).copied());
            prop_assert!(cut.is_none_or(|cut| cut == mov));
        }

        #[test]
        fn a_move_of_a_control_register_is_what_the_decoder_says(is_64_bit: bool, mut bytes: [u8; 15], opcode in 0x20..0x24u8, has_rex: bool) {
            let at = usize::from(has_rex);
            bytes[0] = bytes[0] & 0xf | 0x40;
            (bytes[at], bytes[at + 1]) = (0x0f, opcode);
            let Some(mov) = plain_control_move(is_64_bit, |n| bytes.get(usize::from(n)).copied()) else {
                return Ok(());
            };
            let instruction = decoded(is_64_bit, &bytes);
            prop_assert_eq!(instruction.length, mov.length);
            let [first, second, ..] = instruction.operands;
            let (control, register) = match mov.write {
                true => (first, second),
                false => (second, first),
            };
            prop_assert!(matches!(control, Operand::Control(number) if number == mov.number), "{:?}", control);
            prop_assert_eq!(number_of(register), mov.register as u8);
        }
    }

    #[test]
    fn the_usual_forms_are_told() {
        let plain =
            |is_64_bit, bytes: &[u8]| plain_move(is_64_bit, |n| bytes.get(usize::from(n)).copied());
        let told = |what, length| Some(PlainMove { what, length });
        // mov eax, [rdi]; mov [rip + x], r9d; mov dword [rbx + 0x20], 7; mov eax, [esp + x].
        assert_eq!(
            plain(true, &[0x8b, 0x07]),
            told(Moved::ToRegister(Reg::Rax), 2)
        );
        assert_eq!(
            plain(true, &[0x44, 0x89, 0x0d, 1, 2, 3, 4]),
            told(Moved::FromRegister(Reg::R9), 7)
        );
        assert_eq!(
            plain(true, &[0xc7, 0x43, 0x20, 7, 0, 0, 0]),
            told(Moved::Number(7), 7)
        );
        assert_eq!(
            plain(false, &[0x8b, 0x84, 0x24, 0, 0, 0, 0]),
            told(Moved::ToRegister(Reg::Rax), 7)
        );
        // 64 bits wide, of registers alone, and INC EAX of 32-bit code.
        assert_eq!(plain(true, &[0x48, 0x8b, 0x07]), None);
        assert_eq!(plain(true, &[0x8b, 0xc7]), None);
        assert_eq!(plain(false, &[0x40, 0x8b, 0x07]), None);
        let control = |is_64_bit, bytes: &[u8]| {
            plain_control_move(is_64_bit, |n| bytes.get(usize::from(n)).copied())
        };
        let told = |number, register, write, length| {
            Some(ControlMove {
                number,
                register,
                write,
                length,
            })
        };
        assert_eq!(
            control(true, &[0x0f, 0x22, 0xe0]),
            told(4, Reg::Rax, true, 3)
        );
        assert_eq!(
            control(true, &[0x41, 0x0f, 0x20, 0xc1]),
            told(0, Reg::R9, false, 4)
        );
        assert_eq!(control(true, &[0x44, 0x0f, 0x22, 0xc0]), None, "CR8");
        assert_eq!(control(true, &[0x0f, 0x22, 0xd0]), None, "CR2");
    }

    #[test]
    fn it_is_what_the_decoder_says_wherever_it_says_something() {
        let mut plain = 0;
        for word in 0..=u32::from_le_bytes([0xff, 0xff, 0xff, 0]) {
            let mut bytes = [0; 15];
            bytes[..4].copy_from_slice(&word.to_le_bytes());
            let Some(length) = plain_length(|n| bytes.get(usize::from(n)).copied()) else {
                continue;
            };
            for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
                assert_eq!(decode::length(&bytes, size).ok(), Some(length), "{word:#x}");
            }
            plain += 1;
        }
        // Nine first bytes alone, five pairs and PAUSE, three triples.
        assert_eq!(plain, (9 << 16) + (6 << 8) + 3);
    }

    #[test]
    fn what_lies_in_the_next_page_is_not_known() {
        for (bytes, length) in [
            (&[0xec][..], Some(1)),
            (&[0x0f], None),
            (&[0x0f, 0x01], None),
            (&[0xf3], None),
            (&[0xe4], Some(2)),
            (&[0x66, 0xed], None),
            (&[], None),
        ] {
            let found = plain_length(|n| bytes.get(usize::from(n)).copied());
            assert_eq!(found, length, "{bytes:x?}");
        }
    }
}
