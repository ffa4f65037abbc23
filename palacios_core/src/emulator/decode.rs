// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine code to the forms that the emulator executes. The decoder is `yaxpeax-x86`, one for each code size; this file
//! brings their answers to one type.

use super::instruction::*;
use super::instruction_bytes::MAX_INSTRUCTION_BYTES;
use super::opcodes::operations;
use super::prefixes::{Plain, Prefixes};
use super::widths::NearBranch;
use crate::state::{DescriptorTable, Reg, Seg};

impl Instruction {
    /// Decodes the instruction at the start of `bytes`, of which at most 15 count.
    pub fn decode(bytes: &[u8], size: CodeSize) -> Result<Instruction, DecodeError> {
        let bytes = bytes.get(..MAX_INSTRUCTION_BYTES).unwrap_or(bytes);
        let prefixes = Prefixes::scan(bytes, size);
        let plain = Plain::new(bytes, &prefixes, size);
        let decoded = match size {
            CodeSize::Bits16 => bits16::decode(plain.bytes(), &prefixes),
            CodeSize::Bits32 => bits32::decode(plain.bytes(), &prefixes),
            CodeSize::Bits64 => bits64::decode(plain.bytes(), &prefixes),
        };
        let mut instruction = decoded.map_err(|error| match error {
            DecodeError::Incomplete if bytes.len() >= MAX_INSTRUCTION_BYTES => DecodeError::TooLong,
            DecodeError::Unknown if prefixes.lock => DecodeError::BadLock,
            other => other,
        })?;
        if plain.cr8 {
            instruction.name_cr8();
        } else if instruction.lock && !instruction.may_lock() {
            return Err(DecodeError::BadLock);
        }
        instruction.length = instruction.length.wrapping_add(plain.dropped);
        instruction.operand_width = prefixes.operand_width(size);
        let opcode = bytes.get(prefixes.len..).unwrap_or(&[]);
        instruction.correct(opcode, &prefixes, size)?;
        Ok(instruction)
    }
}

/// The length in bytes of the instruction at the start of `bytes`, whether the emulator knows it or not.
pub(super) fn length(bytes: &[u8], size: CodeSize) -> Result<u8, DecodeError> {
    let bytes = bytes.get(..MAX_INSTRUCTION_BYTES).unwrap_or(bytes);
    let prefixes = Prefixes::scan(bytes, size);
    let opcode = bytes.get(prefixes.len..).unwrap_or(&[]);
    if let Some(length) = length_of_common(opcode) {
        return Ok(length.wrapping_add(prefixes.len as u8));
    }
    let branch = NearBranch::find(opcode, prefixes.operand_width(size));
    if let Some(branch) = branch.filter(|_| !prefixes.long) {
        return length_of_branch(&branch, bytes, &prefixes);
    }
    let plain = Plain::new(bytes, &prefixes, size);
    let length = match size {
        CodeSize::Bits16 => bits16::length(plain.bytes()),
        CodeSize::Bits32 => bits32::length(plain.bytes()),
        CodeSize::Bits64 => bits64::length(plain.bytes()),
    };
    match length {
        Ok(length) => Ok(length.wrapping_add(plain.dropped)),
        Err(DecodeError::Incomplete) if bytes.len() >= MAX_INSTRUCTION_BYTES => {
            Err(DecodeError::TooLong)
        }
        Err(error) => Err(error),
    }
}

fn length_of_branch(
    branch: &NearBranch,
    bytes: &[u8],
    prefixes: &Prefixes,
) -> Result<u8, DecodeError> {
    let length = branch.length().wrapping_add(prefixes.len as u8);
    match bytes.len() {
        had if had >= length.into() => Ok(length),
        MAX_INSTRUCTION_BYTES => Err(DecodeError::TooLong),
        _ => Err(DecodeError::Incomplete),
    }
}

/// The length of the instructions that exit most often, from the opcode on. It needs no decoder.
fn length_of_common(opcode: &[u8]) -> Option<u8> {
    match opcode {
        // HLT.
        [0xf4, ..] => Some(1),
        // WRMSR, RDTSC, RDMSR, RDPMC; CPUID.
        [0x0f, 0x30..=0x33 | 0xa2, ..] => Some(2),
        // VMCALL, XGETBV, XSETBV, VMMCALL, RDTSCP.
        [0x0f, 0x01, 0xc1 | 0xd0 | 0xd1 | 0xd9 | 0xf9, ..] => Some(3),
        _ => None,
    }
}

/// One code size. The three decoders differ in types and in the name of one variant, not in shape.
macro_rules! decoder {
    (
        $module:ident, $yaxpeax:ident, $size:expr, $displaced:ident,
        registers: $($class:ident = $width:expr),*; bases: $($ip:ident),*;
        operations: $($name:ident => $op:expr),*; operands: $($wide:pat => $value:expr),*
    ) => {
        mod $module {
            use crate::emulator::decode::*;
            use y::register_class as class;
            use yaxpeax_arch::LengthedInstruction;
            use yaxpeax_x86::$yaxpeax as y;

            fn instruction(bytes: &[u8]) -> Result<y::Instruction, DecodeError> {
                let decoded = y::InstDecoder::default().decode_slice(bytes);
                decoded.map_err(|error| match error {
                    y::DecodeError::ExhaustedInput => DecodeError::Incomplete,
                    y::DecodeError::TooLong => DecodeError::TooLong,
                    _ => DecodeError::Unknown,
                })
            }

            pub fn length(bytes: &[u8]) -> Result<u8, DecodeError> {
                instruction(bytes).map(|instruction| instruction.len().to_const() as u8)
            }

            pub fn decode(bytes: &[u8], prefixes: &Prefixes) -> Result<Instruction, DecodeError> {
                let from = instruction(bytes)?;
                if from.prefixes.evex().is_some() {
                    return Err(DecodeError::Unknown);
                }
                let mut operands = [Operand::None; 4];
                for (i, to) in (0..from.operand_count().min(4)).zip(operands.iter_mut()) {
                    *to = operand(from.operand(i)).ok_or(DecodeError::Unknown)?;
                    if let (Operand::Memory(address), Some(seg)) = (to, prefixes.segment) {
                        address.seg = seg;
                    }
                }
                let memory_width = from.mem_size().and_then(|size| size.bytes_size());
                Ok(Instruction {
                    op: op(from.opcode()).ok_or(DecodeError::Unknown)?,
                    operands,
                    memory_width: memory_width.unwrap_or(0),
                    operand_width: 0,
                    address_width: prefixes.address_width($size),
                    segment: prefixes.segment,
                    lock: prefixes.lock,
                    repeat: prefixes.repeat,
                    vex: from.prefixes.vex().is_some(),
                    maybe_short: false,
                    length: from.len().to_const() as u8,
                })
            }

            fn operand(from: y::Operand) -> Option<Operand> {
                use y::Operand as O;
                Some(match from {
                    O::Nothing => Operand::None,
                    O::Register { reg } => match reg.class() {
                        class::S => Operand::Segment(segment(reg)?),
                        class::CR => Operand::Control(reg.num()),
                        class::DR => Operand::Debug(reg.num()),
                        class::MM => vector(reg.num(), 8),
                        class::X => vector(reg.num(), 16),
                        class::Y => vector(reg.num(), 32),
                        _ => Operand::Register(register(reg)?),
                    },
                    O::ImmediateI8 { imm } => Operand::Immediate(i64::from(imm) as u64),
                    O::ImmediateU8 { imm } => Operand::Immediate(u64::from(imm)),
                    O::ImmediateI16 { imm } => Operand::Immediate(i64::from(imm) as u64),
                    O::ImmediateU16 { imm } => Operand::Immediate(u64::from(imm)),
                    O::ImmediateI32 { imm } => Operand::Immediate(i64::from(imm) as u64),
                    O::ImmediateU32 { imm } => Operand::Immediate(u64::from(imm)),
                    O::AbsoluteU32 { addr } => address(None, None, addr as i32)?,
                    $($wide => $value,)*
                    O::MemDeref { base } => address(Some(base), None, 0)?,
                    O::$displaced { base, disp } => address(Some(base), None, disp)?,
                    O::MemIndexScale { index, scale } => address(None, Some((index, scale)), 0)?,
                    O::MemIndexScaleDisp { index, scale, disp } => {
                        address(None, Some((index, scale)), disp)?
                    }
                    O::MemBaseIndexScale { base, index, scale } => {
                        address(Some(base), Some((index, scale)), 0)?
                    }
                    O::MemBaseIndexScaleDisp { base, index, scale, disp } => {
                        address(Some(base), Some((index, scale)), disp)?
                    }
                    // Those of AVX-512.
                    _ => return None,
                })
            }

            fn address(
                base: Option<y::RegSpec>,
                index: Option<(y::RegSpec, u8)>,
                displacement: i32,
            ) -> Option<Operand> {
                let base = match base {
                    None => Base::None,
                    $(Some(reg) if reg.class() == class::$ip => Base::NextInstruction,)*
                    Some(reg) => Base::Register(register(reg)?.reg),
                };
                let index = match index {
                    None => None,
                    Some((reg, scale)) => Some((register(reg)?.reg, scale)),
                };
                let default = match base {
                    Base::Register(Reg::Rsp | Reg::Rbp) => Seg::Ss,
                    _ => Seg::Ds,
                };
                Some(Operand::Memory(Address {
                    seg: default,
                    base,
                    index,
                    displacement: i64::from(displacement) as u64,
                }))
            }

            fn register(reg: y::RegSpec) -> Option<Register> {
                let num = reg.num();
                let (num, width, high) = match reg.class() {
                    class::B if num >= 4 => (num & 3, 1, true),
                    class::B => (num, 1, false),
                    class::W => (num, 2, false),
                    class::D => (num, 4, false),
                    $(class::$class => (num, $width, false),)*
                    _ => return None,
                };
                Some(Register { reg: Reg::from_number(num), width, high })
            }

            fn segment(reg: y::RegSpec) -> Option<Seg> {
                let all = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];
                all.get(usize::from(reg.num())).copied()
            }

            fn op(opcode: y::Opcode) -> Option<Op> {
                use y::Opcode as O;
                operations!(O, opcode; $($name => $op,)*)
            }
        }
    };
}

decoder!(
    bits16, real_mode, CodeSize::Bits16, MemDisp,
    registers: ; bases: ;
    operations: PUSHA => Op::PushAll, PUSHAD => Op::PushAll, POPA => Op::PopAll, POPAD => Op::PopAll,
        LES => Op::LoadFarPointer(Seg::Es), LDS => Op::LoadFarPointer(Seg::Ds);
    operands:
        yaxpeax_x86::real_mode::Operand::AbsoluteU16 { addr } => absolute(addr.into()),
        yaxpeax_x86::real_mode::Operand::AbsoluteFarAddress { segment, address } => far(segment, address)
);
decoder!(
    bits32, protected_mode, CodeSize::Bits32, Disp,
    registers: ; bases: ;
    operations: PUSHA => Op::PushAll, PUSHAD => Op::PushAll, POPA => Op::PopAll, POPAD => Op::PopAll,
        LES => Op::LoadFarPointer(Seg::Es), LDS => Op::LoadFarPointer(Seg::Ds);
    operands:
        yaxpeax_x86::protected_mode::Operand::AbsoluteU16 { addr } => absolute(addr.into()),
        yaxpeax_x86::protected_mode::Operand::AbsoluteFarAddress { segment, address } => far(segment, address)
);
decoder!(
    bits64, long_mode, CodeSize::Bits64, Disp,
    registers: RB = 1, Q = 8; bases: RIP, EIP; operations: ; operands:
        yaxpeax_x86::long_mode::Operand::ImmediateI64 { imm } => Operand::Immediate(imm as u64),
        yaxpeax_x86::long_mode::Operand::ImmediateU64 { imm } => Operand::Immediate(imm),
        yaxpeax_x86::long_mode::Operand::AbsoluteU64 { addr } => absolute(addr)
);

fn far(selector: u16, offset: u32) -> Operand {
    Operand::Far { selector, offset }
}

fn vector(number: u8, width: u8) -> Operand {
    Operand::Vector(Vector { number, width })
}

/// A memory operand that is its offset.
fn absolute(displacement: u64) -> Operand {
    Operand::Memory(Address {
        seg: Seg::Ds,
        base: Base::None,
        index: None,
        displacement,
    })
}
