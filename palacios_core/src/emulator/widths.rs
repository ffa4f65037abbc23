// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the decoders give wrongly or not at all (as of yaxpeax-x86 2.2), mostly widths.

use super::alu;
use super::instruction::*;
use super::prefixes::Prefixes;

impl Instruction {
    /// Corrects the instruction whose opcode and what follows it are in `opcode`.
    pub(super) fn correct(
        &mut self,
        opcode: &[u8],
        prefixes: &Prefixes,
        size: CodeSize,
    ) -> Result<(), DecodeError> {
        if self.vex && !prefixes.allow_vex() {
            return Err(DecodeError::Unknown);
        }
        match self.op {
            Op::Push | Op::Pop | Op::PushFlags | Op::PopFlags | Op::Enter | Op::Leave => {
                self.correct_stack(size);
            }
            Op::Call | Op::Jump | Op::Return => {
                self.maybe_short = prefixes.long && self.operand_width == 2;
                if self.maybe_short {
                    self.operand_width = 8;
                }
                self.correct_stack(size);
                self.correct_near_branch(opcode, prefixes)?;
            }
            Op::FarCall | Op::FarJump | Op::LoadFarPointer(_) => {
                if let [0xea, ..] = opcode {
                    self.op = Op::FarJump;
                }
                self.memory_width = self.operand_width.wrapping_add(2);
            }
            Op::Interrupt => match opcode {
                [0xcd, ..] => {}
                [0xcc, ..] => self.op = Op::Breakpoint,
                _ => return Err(DecodeError::Unknown),
            },
            Op::LoadTable(_) | Op::StoreTable(_) => {
                self.memory_width = if size == CodeSize::Bits64 { 10 } else { 6 };
            }
            // VEX prefixes that name a source where there is none.
            Op::Fpu(_)
                if self.vex
                    && !matches!(opcode, [_, 0x78..=0x7f | 0xf8..=0xff, ..] | [0xc4, _, 0x78..=0x7f | 0xf8..=0xff, ..]) =>
            {
                return Err(DecodeError::Unknown);
            }
            _ => self.correct_operands(opcode, prefixes),
        }
        Ok(())
    }

    /// In 64-bit code a stack has no elements of 4 bytes.
    fn correct_stack(&mut self, size: CodeSize) {
        if size == CodeSize::Bits64 && self.operand_width == 4 {
            self.operand_width = 8;
        }
        self.memory_width = self.operand_width;
        let [first, ..] = &mut self.operands;
        first.set_width(self.operand_width);
    }

    /// Makes a near branch that was decoded as Intel's processors do what AMD's make of it: one of 16 bits. Its distance is the
    /// first half of the other.
    pub fn shorten_near_branch(&mut self) {
        self.operand_width = 2;
        self.memory_width = 2;
        let [first, ..] = &mut self.operands;
        first.set_width(2);
        if let (Op::Call | Op::Jump, Operand::Immediate(distance)) = (self.op, first) {
            *distance = alu::sign_extend(*distance, 2);
            self.length = self.length.wrapping_sub(2);
        }
    }

    fn correct_near_branch(
        &mut self,
        opcode: &[u8],
        prefixes: &Prefixes,
    ) -> Result<(), DecodeError> {
        if let Some(branch) = NearBranch::find(opcode, self.operand_width) {
            let [first, ..] = &mut self.operands;
            *first = Operand::Immediate(branch.distance(opcode).ok_or(DecodeError::Incomplete)?);
            self.length = branch.length().wrapping_add(prefixes.len as u8);
        }
        Ok(())
    }

    fn correct_operands(&mut self, opcode: &[u8], prefixes: &Prefixes) {
        let width = self.operand_width;
        let [first, second, ..] = &mut self.operands;
        match (self.op, &second) {
            (Op::Bit(_), Operand::Immediate(_)) => {
                first.set_width(width);
                self.memory_width = width;
            }
            (Op::Mov, Operand::Segment(_)) | (Op::Lmsw | Op::Smsw, _) => first.set_width(width),
            (Op::StoreSystemSegment(_) | Op::LoadSystemSegment(_), _) => first.set_width(width),
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
            (Op::Crc32, _) => {
                let from = if matches!(opcode, [_, _, 0xf0, ..]) {
                    1
                } else {
                    width
                };
                first.set_width(width.max(4));
                second.set_width(from);
                self.memory_width = from;
            }
            (Op::Vector(op), _) => self.correct_vector(op, opcode, prefixes),
            _ => {}
        }
    }
}

impl Instruction {
    fn correct_vector(&mut self, op: VectorOp, opcode: &[u8], prefixes: &Prefixes) {
        match (op, opcode) {
            (VectorOp::MoveHalf { .. }, _) => self.memory_width = 8,
            (VectorOp::ElementAndClear, _) => self.memory_width = 4,
            // MOVD and MOVQ, as REX.W says; with REP it is always MOVQ.
            (_, [0x0f, 0x6e | 0x7e, ..]) if prefixes.repeat == Repeat::No => {
                self.memory_width = self.operand_width.max(4);
            }
            // VMOVQ.
            (_, [0xc5, _, 0x7e, ..] | [0xc4, _, _, 0x7e, ..]) => {
                self.memory_width = self.memory_width.min(8);
            }
            _ => {}
        }
    }
}

/// A relative branch whose distance has the operation's width. The decoders take no notice of an operand-size prefix there.
pub(super) struct NearBranch {
    opcode_bytes: u8,
    distance_bytes: u8,
}

impl NearBranch {
    pub fn find(opcode: &[u8], operand_width: u8) -> Option<NearBranch> {
        let opcode_bytes = match opcode {
            [0xe8 | 0xe9, ..] => 1,
            [0x0f, 0x80..=0x8f, ..] => 2,
            _ => return None,
        };
        Some(NearBranch {
            opcode_bytes,
            distance_bytes: operand_width.min(4),
        })
    }

    /// From the opcode on.
    pub fn length(&self) -> u8 {
        self.opcode_bytes.wrapping_add(self.distance_bytes)
    }

    fn distance(&self, opcode: &[u8]) -> Option<u64> {
        let bytes = opcode.get(self.opcode_bytes.into()..self.length().into())?;
        let value = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        Some(alu::sign_extend(value, self.distance_bytes))
    }
}
