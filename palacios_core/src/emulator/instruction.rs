// SPDX-License-Identifier: MIT OR Apache-2.0
//! An instruction in the form that the emulator executes, the same for all code sizes.

use crate::state::{DescriptorTable, Reg, Seg};

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

/// The size of code and addresses that a code segment sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// 16-bit code.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// A two-operand calculation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// A shift or rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// What is done to a bit after it was copied to CF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringOp {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

/// A load or store of a vector register (MMX, SSE, AVX), by what it makes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VectorOp {
    /// Bytes to the low end of a register, zeroes above them; or from the low end.
    Move,
    /// As [`VectorOp::Move`], of an operand that must be aligned to its width.
    MoveAligned,
    /// Eight bytes to one half of 16, or from it. The other half stays.
    MoveHalf {
        /// The upper half.
        high: bool,
    },
    /// One element of several to fill the register.
    Broadcast,
    /// In each pair of elements of this width one is copied to the other.
    Duplicate {
        width: u8,
        /// The upper element is copied to the lower.
        high: bool,
    },
    /// The element that the immediate numbers. The others stay.
    Element,
    /// INSERTPS: [`VectorOp::Element`], and the immediate says which elements to clear.
    ElementAndClear,
    /// The elements of this width whose sign bit is set in a mask register; others are not accessed, and load as zero.
    Masked(u8),
    /// The bytes that a mask register selects, to where rDI points (MASKMOVQ).
    MaskedBytes,
}

/// State of the floating-point unit that an instruction loads or stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FpuOp {
    StoreControlWord,
    StoreStatusWord,
    LoadMxcsr,
    StoreMxcsr,
    /// FXSAVE.
    Save,
    /// FXRSTOR.
    Restore,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Mov,
    MovZeroExtend,
    MovSignExtend,
    MovBigEndian,
    Binary(Binary),
    Cmp,
    Test,
    Inc,
    Dec,
    Neg,
    Not,
    Shift(Shift),
    ShiftLeftDouble,
    ShiftRightDouble,
    Bit(Bit),
    Xchg,
    Xadd,
    Cmpxchg,
    CmpxchgPair,
    Mul,
    Imul,
    Div,
    Idiv,
    /// SETcc, with the condition's number.
    Set(u8),
    /// CMOVcc, with the condition's number.
    MovIf(u8),
    /// BSF, or BSR.
    BitScan {
        reverse: bool,
    },
    /// TZCNT, or LZCNT.
    CountZeros {
        leading: bool,
    },
    CountOnes,
    Crc32,
    Push,
    Pop,
    PushAll,
    PopAll,
    PushFlags,
    PopFlags,
    Enter,
    Leave,
    Call,
    Jump,
    Return,
    FarCall,
    FarJump,
    FarReturn,
    InterruptReturn,
    /// INT n.
    Interrupt,
    /// INT3.
    Breakpoint,
    /// INTO.
    Overflow,
    /// LDS and its like.
    LoadFarPointer(Seg),
    Vector(VectorOp),
    Fpu(FpuOp),
    Xlat,
    String(StringOp),
    In,
    Out,
    Clts,
    Lmsw,
    Smsw,
    Invlpg,
    LoadTable(DescriptorTable),
    StoreTable(DescriptorTable),
    /// LLDT, or LTR.
    LoadSystemSegment(Seg),
    /// SLDT, or STR.
    StoreSystemSegment(Seg),
    /// A hint that has a memory operand and does not access it.
    Hint,
}

/// A general register, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    pub reg: Reg,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// Bits 8–15: AH, CH, DH, BH.
    pub high: bool,
}

/// A vector register, or its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vector {
    pub number: u8,
    /// Bytes: 8 of MMX, 16 of XMM, 32 of YMM.
    pub width: u8,
}

/// What a memory operand's address is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    None,
    Register(Reg),
    /// The address of the next instruction.
    NextInstruction,
}

/// A memory operand's address: base + index × scale + displacement in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub seg: Seg,
    pub base: Base,
    pub index: Option<(Reg, u8)>,
    pub displacement: u64,
}

/// An operand as encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    None,
    Register(Register),
    Memory(Address),
    /// Sign-extended where the instruction extends it.
    Immediate(u64),
    Segment(Seg),
    Control(u8),
    Debug(u8),
    Vector(Vector),
    /// The target of a far branch.
    Far {
        selector: u16,
        offset: u32,
    },
}

impl Operand {
    /// Sets the width of a general register.
    pub fn set_width(&mut self, width: u8) {
        if let Operand::Register(register) = self {
            register.width = width;
        }
    }
}

/// The last of the repeat prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    No,
    /// REP, or REPE where the instruction compares.
    WhileEqual,
    /// REPNE; like REP where the instruction does not compare.
    WhileNotEqual,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub op: Op,
    pub operands: [Operand; 4],
    /// Bytes of the memory operand, 0 if there is none.
    pub memory_width: u8,
    /// Bytes of the operation as prefixes and code size set them: 2, 4 or 8.
    pub operand_width: u8,
    /// Bytes of an address: 2, 4 or 8.
    pub address_width: u8,
    /// The segment that an override names.
    pub segment: Option<Seg>,
    pub lock: bool,
    pub repeat: Repeat,
    /// It has a VEX prefix: AVX's form of an instruction.
    pub vex: bool,
    /// A near branch of 64-bit code with an operand-size prefix, decoded as Intel's processors do; AMD's shorten it.
    pub maybe_short: bool,
    pub length: u8,
}

impl Instruction {
    /// Whether LOCK is allowed (SDM 2A: LOCK).
    pub(super) fn may_lock(&self) -> bool {
        let lockable = match self.op {
            Op::Binary(_) | Op::Inc | Op::Dec | Op::Neg | Op::Not => true,
            Op::Xchg | Op::Xadd | Op::Cmpxchg | Op::CmpxchgPair => true,
            Op::Bit(bit) => bit != Bit::Test,
            _ => false,
        };
        lockable && matches!(self.operands, [Operand::Memory(_), ..])
    }
    /// Its control register is CR8.
    pub(super) fn name_cr8(&mut self) {
        for operand in &mut self.operands {
            if let Operand::Control(number) = operand {
                *number = 8;
            }
        }
    }
}
