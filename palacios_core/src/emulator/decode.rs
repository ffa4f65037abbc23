// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine code to the few forms that the emulator executes. The decoder is `yaxpeax-x86`, one for each code size; this
//! file brings their answers to one type. Prefixes are read here, since the decoders do not tell a DS override from none.

use super::instruction::*;
use super::MAX_INSTRUCTION_BYTES;
use crate::state::{Reg, Seg};

/// Why bytes were not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// The instruction has more bytes than these.
    Incomplete,
    /// It would be longer than 15 bytes, which is #GP.
    TooLong,
    /// LOCK where it is not allowed, which is #UD.
    BadLock,
    /// Not an instruction that the emulator or the decoder knows.
    Unknown,
}

/// The prefixes of an instruction.
#[derive(Clone, Copy, Debug)]
struct Prefixes {
    operand_size: bool,
    address_size: bool,
    lock: bool,
    repeat: Repeat,
    segment: Option<Seg>,
    /// The REX prefix, which counts only right before the opcode.
    rex: u8,
    /// How many other REX prefixes there are.
    idle_rex: u8,
    /// How many bytes they all have.
    len: usize,
}

impl Prefixes {
    fn scan(bytes: &[u8], size: CodeSize) -> Prefixes {
        let mut found = Prefixes {
            operand_size: false,
            address_size: false,
            lock: false,
            repeat: Repeat::No,
            segment: None,
            rex: 0,
            idle_rex: 0,
            len: 0,
        };
        let long = size == CodeSize::Bits64;
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

    fn address_width(&self, size: CodeSize) -> u8 {
        match (size, self.address_size) {
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
            (CodeSize::Bits64, false) => 8,
            _ => 4,
        }
    }

    fn operand_width(&self, size: CodeSize) -> u8 {
        match (size, self.operand_size) {
            _ if self.rex & 8 != 0 => 8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32 | CodeSize::Bits64, true) => 2,
            _ => 4,
        }
    }
}

/// An instruction's bytes without what the decoders stumble over: REX prefixes that do not count, LOCK where it names CR8, and
/// opcode 0x82, which is 0x80 by another name outside of 64-bit mode.
struct Plain {
    bytes: [u8; MAX_INSTRUCTION_BYTES],
    len: usize,
    /// How many bytes were left out.
    dropped: u8,
    /// LOCK names CR8.
    cr8: bool,
}

impl Plain {
    fn new(bytes: &[u8], prefixes: &Prefixes, size: CodeSize) -> Plain {
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
            let alias = byte == 0x82 && i == prefixes.len && size != CodeSize::Bits64;
            if let Some(to) = plain.bytes.get_mut(plain.len) {
                *to = if alias { 0x80 } else { byte };
            }
            plain.len = plain.len.wrapping_add(1);
        }
        plain
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

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
        instruction.correct_widths(&prefixes, size);
        Ok(instruction)
    }

    /// Sets the widths that the decoders give wrongly or not at all (as of yaxpeax-x86 2.2).
    fn correct_widths(&mut self, prefixes: &Prefixes, size: CodeSize) {
        let width = prefixes.operand_width(size);
        let [first, second, _] = &mut self.operands;
        match (self.op, &second) {
            (Op::Bit(_), Operand::Immediate(_)) => {
                first.set_width(width);
                self.memory_width = width;
            }
            (Op::Mov, Operand::Segment(_)) | (Op::Lmsw | Op::Smsw, _) => first.set_width(width),
            (Op::MovSignExtend | Op::MovZeroExtend, _) => {
                first.set_width(width);
                // MOVSXD, whose source has 4 bytes unless its destination has fewer.
                if width == 2 && self.memory_width == 4 {
                    self.memory_width = 2;
                }
                if let Operand::Register(Register {
                    width: from @ 4, ..
                }) = second
                {
                    *from = width.min(4);
                }
            }
            (Op::String(StringOp::Ins | StringOp::Outs), _) if self.memory_width != 1 => {
                self.memory_width = width.min(4);
            }
            (Op::Push | Op::Pop, _) if size == CodeSize::Bits64 => {
                let width = if width == 2 { 2 } else { 8 };
                self.memory_width = width;
                first.set_width(width);
            }
            _ => {}
        }
    }
}

/// The length in bytes of the instruction at the start of `bytes`, whether the emulator knows it or not.
pub(super) fn length(bytes: &[u8], size: CodeSize) -> Result<u8, DecodeError> {
    let bytes = bytes.get(..MAX_INSTRUCTION_BYTES).unwrap_or(bytes);
    let prefixes = Prefixes::scan(bytes, size);
    if let Some(length) = length_of_common(bytes.get(prefixes.len..).unwrap_or(&[])) {
        return Ok(length.wrapping_add(prefixes.len as u8));
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
        registers: $($class:ident = $width:expr),*; bases: $($ip:ident),*; operands: $($wide:pat => $value:expr),*
    ) => {
        mod $module {
            use super::*;
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
                let mut operands = [Operand::None; 3];
                for (i, to) in (0..from.operand_count().min(3)).zip(operands.iter_mut()) {
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
                    address_width: prefixes.address_width($size),
                    segment: prefixes.segment,
                    lock: prefixes.lock,
                    repeat: prefixes.repeat,
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
                    // Vector operands.
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
                operations!(O, opcode)
            }
        }
    };
}

/// The instructions that the emulator executes. What is not here stops the VM with a report.
macro_rules! operations {
    ($O:ident, $opcode:expr) => {
        Some(match $opcode {
            $O::MOV | $O::MOVNTI => Op::Mov,
            $O::MOVZX => Op::MovZeroExtend,
            $O::MOVSX | $O::MOVSXD => Op::MovSignExtend,
            $O::MOVBE => Op::MovBigEndian,
            $O::ADD => Op::Binary(Binary::Add),
            $O::OR => Op::Binary(Binary::Or),
            $O::ADC => Op::Binary(Binary::Adc),
            $O::SBB => Op::Binary(Binary::Sbb),
            $O::AND => Op::Binary(Binary::And),
            $O::SUB => Op::Binary(Binary::Sub),
            $O::XOR => Op::Binary(Binary::Xor),
            $O::CMP => Op::Cmp,
            $O::TEST => Op::Test,
            $O::INC => Op::Inc,
            $O::DEC => Op::Dec,
            $O::NEG => Op::Neg,
            $O::NOT => Op::Not,
            $O::ROL => Op::Shift(Shift::Rol),
            $O::ROR => Op::Shift(Shift::Ror),
            $O::RCL => Op::Shift(Shift::Rcl),
            $O::RCR => Op::Shift(Shift::Rcr),
            $O::SHL | $O::SAL => Op::Shift(Shift::Shl),
            $O::SHR => Op::Shift(Shift::Shr),
            $O::SAR => Op::Shift(Shift::Sar),
            $O::SHLD => Op::ShiftLeftDouble,
            $O::SHRD => Op::ShiftRightDouble,
            $O::BT => Op::Bit(Bit::Test),
            $O::BTS => Op::Bit(Bit::Set),
            $O::BTR => Op::Bit(Bit::Reset),
            $O::BTC => Op::Bit(Bit::Complement),
            $O::XCHG => Op::Xchg,
            $O::XADD => Op::Xadd,
            $O::CMPXCHG => Op::Cmpxchg,
            $O::CMPXCHG8B | $O::CMPXCHG16B => Op::CmpxchgPair,
            $O::MUL => Op::Mul,
            $O::IMUL => Op::Imul,
            $O::DIV => Op::Div,
            $O::IDIV => Op::Idiv,
            $O::SETO => Op::Set(0),
            $O::SETNO => Op::Set(1),
            $O::SETB => Op::Set(2),
            $O::SETAE => Op::Set(3),
            $O::SETZ => Op::Set(4),
            $O::SETNZ => Op::Set(5),
            $O::SETBE => Op::Set(6),
            $O::SETA => Op::Set(7),
            $O::SETS => Op::Set(8),
            $O::SETNS => Op::Set(9),
            $O::SETP => Op::Set(10),
            $O::SETNP => Op::Set(11),
            $O::SETL => Op::Set(12),
            $O::SETGE => Op::Set(13),
            $O::SETLE => Op::Set(14),
            $O::SETG => Op::Set(15),
            $O::CMOVO => Op::MovIf(0),
            $O::CMOVNO => Op::MovIf(1),
            $O::CMOVB => Op::MovIf(2),
            $O::CMOVNB => Op::MovIf(3),
            $O::CMOVZ => Op::MovIf(4),
            $O::CMOVNZ => Op::MovIf(5),
            $O::CMOVNA => Op::MovIf(6),
            $O::CMOVA => Op::MovIf(7),
            $O::CMOVS => Op::MovIf(8),
            $O::CMOVNS => Op::MovIf(9),
            $O::CMOVP => Op::MovIf(10),
            $O::CMOVNP => Op::MovIf(11),
            $O::CMOVL => Op::MovIf(12),
            $O::CMOVGE => Op::MovIf(13),
            $O::CMOVLE => Op::MovIf(14),
            $O::CMOVG => Op::MovIf(15),
            $O::PUSH => Op::Push,
            $O::POP => Op::Pop,
            $O::XLAT => Op::Xlat,
            $O::MOVS => Op::String(StringOp::Movs),
            $O::STOS => Op::String(StringOp::Stos),
            $O::LODS => Op::String(StringOp::Lods),
            $O::CMPS => Op::String(StringOp::Cmps),
            $O::SCAS => Op::String(StringOp::Scas),
            $O::INS => Op::String(StringOp::Ins),
            $O::OUTS => Op::String(StringOp::Outs),
            $O::CLTS => Op::Clts,
            $O::LMSW => Op::Lmsw,
            $O::SMSW => Op::Smsw,
            $O::INVLPG => Op::Invlpg,
            $O::NOP | $O::PREFETCHW | $O::PREFETCH0 | $O::PREFETCH1 | $O::PREFETCH2 => Op::Hint,
            $O::PREFETCHNTA | $O::CLFLUSH | $O::CLFLUSHOPT | $O::CLWB => Op::Hint,
            _ => return None,
        })
    };
}

decoder!(
    bits16, real_mode, CodeSize::Bits16, MemDisp,
    registers: ; bases: ; operands:
        yaxpeax_x86::real_mode::Operand::AbsoluteU16 { addr } => absolute(addr.into())
);
decoder!(
    bits32, protected_mode, CodeSize::Bits32, Disp,
    registers: ; bases: ; operands:
        yaxpeax_x86::protected_mode::Operand::AbsoluteU16 { addr } => absolute(addr.into())
);
decoder!(
    bits64, long_mode, CodeSize::Bits64, Disp,
    registers: RB = 1, Q = 8; bases: RIP, EIP; operands:
        yaxpeax_x86::long_mode::Operand::ImmediateI64 { imm } => Operand::Immediate(imm as u64),
        yaxpeax_x86::long_mode::Operand::ImmediateU64 { imm } => Operand::Immediate(imm),
        yaxpeax_x86::long_mode::Operand::AbsoluteU64 { addr } => absolute(addr)
);

/// A memory operand that is its offset.
fn absolute(displacement: u64) -> Operand {
    Operand::Memory(Address {
        seg: Seg::Ds,
        base: Base::None,
        index: None,
        displacement,
    })
}
