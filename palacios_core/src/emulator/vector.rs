// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads and stores of vector registers: the moves of MMX, SSE and AVX (SDM 2; SDM 1: 9 to 14).
//!
//! A form with a VEX prefix clears what is above the bytes that it writes; one without leaves what is above an XMM register.

use super::access::{Bytes, CheckedMemory, MAX_OPERAND_BYTES};
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Address, Operand, Vector, VectorOp};
use crate::memory::walk::AccessKind;
use crate::state::{cr0, cr4, Exception, Reg, Seg};

/// The bytes of a vector register.
type Lanes = [u8; MAX_OPERAND_BYTES];
/// The most elements that a masked move has.
const MAX_ELEMENTS: usize = 8;

/// XCR0: SSE and AVX.
const XCR0_AVX: u64 = 0b110;
/// x87's status word: an exception that is not masked.
const STATUS_ERROR: u16 = 1 << 7;
/// MXCSR: operands need not be aligned, with AMD.
const MXCSR_MISALIGNED: u32 = 1 << 17;

/// Which registers an instruction uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    X87,
    Mmx,
    Sse,
    Avx,
}

impl<C: Cpu> Execution<'_, C> {
    /// Whether the guest's system lets it use these registers (SDM 2A: 2.4, 2.5; SDM 3A: 12.1).
    pub fn check_unit(&mut self, unit: Unit) -> Result<(), Fault> {
        let cpu = &mut self.processor.cpu;
        let (cr0, cr4) = (cpu.cr(0), cpu.cr(4));
        let undefined = match unit {
            Unit::X87 => false,
            Unit::Mmx => cr0 & cr0::EM != 0,
            Unit::Sse => cr0 & cr0::EM != 0 || cr4 & cr4::OSFXSR == 0,
            Unit::Avx => cr4 & cr4::OSXSAVE == 0 || cpu.xcr0() & XCR0_AVX != XCR0_AVX,
        };
        let absent = cr0 & cr0::TS != 0 || unit == Unit::X87 && cr0 & cr0::EM != 0;
        if undefined || unit == Unit::Avx && self.processor.has_plain_segments() {
            return Err(self.processor.fault(Exception::INVALID_OPCODE));
        }
        if absent {
            return Err(self.processor.fault(Exception::NO_FPU));
        }
        if unit == Unit::Mmx && self.processor.cpu.fpu().status_word() & STATUS_ERROR != 0 {
            return Err(self.processor.fault(Exception::X87));
        }
        Ok(())
    }

    /// Executes a load or store.
    pub fn vector(&mut self, op: VectorOp) -> Result<(), Fault> {
        let [first, second, ..] = self.instruction.operands;
        let register = match (first, second) {
            (Operand::Vector(register), _) | (_, Operand::Vector(register)) => register,
            _ => return Err(self.unsupported()),
        };
        let unit = match (self.instruction.vex, register.width) {
            (true, _) => Unit::Avx,
            (false, 8) => Unit::Mmx,
            (false, _) => Unit::Sse,
        };
        self.check_unit(unit)?;
        self.move_vector(op)?;
        if unit == Unit::Mmx {
            self.processor.cpu.fpu().enter_mmx();
        }
        Ok(())
    }

    fn move_vector(&mut self, op: VectorOp) -> Result<(), Fault> {
        let [first, second, third, _] = self.instruction.operands;
        use Operand::{Memory, Vector};
        match (op, first, second, third) {
            (VectorOp::MaskedBytes, Vector(from), Vector(mask), _) => {
                self.store_masked_bytes(from, mask)
            }
            (VectorOp::Masked(width), Memory(address), Vector(mask), Vector(from)) => {
                self.store_masked(width, &address, mask, from)
            }
            (VectorOp::Masked(width), Vector(to), Vector(mask), Memory(address)) => {
                self.load_masked(width, to, mask, &address)
            }
            (_, Memory(address), Vector(from), _) => self.store_vector(op, &address, from),
            (_, Vector(to), Memory(address), _) => self.load_vector(op, to, to, &address),
            (_, Vector(to), Vector(base), Memory(address)) => {
                self.load_vector(op, to, base, &address)
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Checks and translates the memory operand.
    fn check_vector(
        &mut self,
        op: VectorOp,
        address: &Address,
        kind: AccessKind,
    ) -> Result<CheckedMemory, Fault> {
        let width = self.instruction.memory_width;
        if usize::from(width) > MAX_OPERAND_BYTES || width == 0 {
            return Err(self.unsupported());
        }
        let offset = self.offset(address);
        let at = self.processor.linear(address.seg, offset, width, kind)?;
        let must_align = match op {
            VectorOp::MoveAligned => true,
            // Not a move to the processor, but an operand of a calculation.
            VectorOp::Duplicate { width: 4, .. } => {
                !self.instruction.vex && self.processor.cpu.fpu().mxcsr() & MXCSR_MISALIGNED == 0
            }
            _ => false,
        };
        if must_align && at.0 & u64::from(width.wrapping_sub(1)) != 0 {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        self.processor
            .check_memory(address.seg, offset, width, kind)
    }

    /// The element that the immediate numbers: its first byte in a register.
    fn element_at(&self, register: Vector) -> usize {
        let width = self.instruction.memory_width.max(1);
        let elements = register.width.checked_div(width).unwrap_or(1);
        let number = self.immediate() & elements.wrapping_sub(1);
        usize::from(number.wrapping_mul(width))
    }

    fn immediate(&self) -> u8 {
        let immediate = self
            .instruction
            .operands
            .iter()
            .find_map(|operand| match operand {
                Operand::Immediate(value) => Some(*value as u8),
                _ => None,
            });
        immediate.unwrap_or(0)
    }

    fn load_vector(
        &mut self,
        op: VectorOp,
        to: Vector,
        base: Vector,
        address: &Address,
    ) -> Result<(), Fault> {
        let memory = self.check_vector(op, address, AccessKind::Read)?;
        let old = self.lanes(base);
        let loaded = self.processor.load(&memory)?.all();
        let bytes = loaded.iter().take(memory.width.into());
        let mut value = old;
        match op {
            VectorOp::Move | VectorOp::MoveAligned => value = loaded,
            VectorOp::MoveHalf { high } => put(&mut value, if high { 8 } else { 0 }, bytes),
            VectorOp::Broadcast => put(&mut value, 0, bytes.cycle()),
            VectorOp::Duplicate { width, high } => {
                let whole = match memory.width {
                    // The form with 16 bytes reads the only element that it uses.
                    8 => repeated(&loaded, 8),
                    _ => loaded,
                };
                value = duplicated(&whole, width, high);
            }
            VectorOp::Element => put(&mut value, self.element_at(to), bytes),
            VectorOp::ElementAndClear => {
                let immediate = self.immediate();
                put(&mut value, usize::from(immediate >> 4 & 3) * 4, bytes);
                for number in 0..4 {
                    if immediate.wrapping_shr(number) & 1 != 0 {
                        put(&mut value, offset_of(number as u8, 4), [0; 4].iter());
                    }
                }
            }
            VectorOp::Masked(_) | VectorOp::MaskedBytes => return Err(self.unsupported()),
        }
        self.set_lanes(to, value);
        Ok(())
    }

    fn store_vector(&mut self, op: VectorOp, address: &Address, from: Vector) -> Result<(), Fault> {
        let memory = self.check_vector(op, address, AccessKind::Write)?;
        let lanes = self.lanes(from);
        let first = match op {
            VectorOp::MoveHalf { high: true } => 8,
            VectorOp::Element => self.element_at(from),
            VectorOp::Move | VectorOp::MoveAligned | VectorOp::MoveHalf { .. } => 0,
            _ => return Err(self.unsupported()),
        };
        let mut value = [0; MAX_OPERAND_BYTES];
        put(&mut value, 0, lanes.iter().skip(first));
        self.processor
            .store(&memory, &Bytes::of(value, memory.width))
    }

    /// Places the elements that a mask selects; the others may lie anywhere.
    fn check_masked(
        &mut self,
        width: u8,
        mask: &Lanes,
        address: &Address,
        kind: AccessKind,
    ) -> Result<[Option<CheckedMemory>; MAX_ELEMENTS], Fault> {
        let mut memories = [None; MAX_ELEMENTS];
        let mut offset = self.offset(address);
        for (memory, number) in memories.iter_mut().zip(0u8..) {
            if selects(mask, number, width) {
                let at = self.cut(offset);
                *memory = Some(self.processor.check_memory(address.seg, at, width, kind)?);
            }
            offset = offset.wrapping_add(width.into());
        }
        Ok(memories)
    }

    fn load_masked(
        &mut self,
        width: u8,
        to: Vector,
        mask: Vector,
        address: &Address,
    ) -> Result<(), Fault> {
        let mask = self.lanes(mask);
        let memories = self.check_masked(width, &mask, address, AccessKind::Read)?;
        let mut value = [0; MAX_OPERAND_BYTES];
        for (memory, number) in memories.iter().zip(0u8..) {
            if let Some(memory) = memory {
                let loaded = self.processor.load(memory)?.all();
                let element = loaded.iter().take(width.into());
                put(&mut value, offset_of(number, width), element);
            }
        }
        self.set_lanes(to, value);
        Ok(())
    }

    fn store_masked(
        &mut self,
        width: u8,
        address: &Address,
        mask: Vector,
        from: Vector,
    ) -> Result<(), Fault> {
        let (lanes, mask) = (self.lanes(from), self.lanes(mask));
        let memories = self.check_masked(width, &mask, address, AccessKind::Write)?;
        for (memory, number) in memories.iter().zip(0u8..) {
            if let Some(memory) = memory {
                let mut value = [0; MAX_OPERAND_BYTES];
                put(&mut value, 0, lanes.iter().skip(offset_of(number, width)));
                self.processor.store(memory, &Bytes::of(value, width))?;
            }
        }
        Ok(())
    }

    /// MASKMOVQ and MASKMOVDQU: to rDI, byte by byte, once all bytes are known to be writable.
    fn store_masked_bytes(&mut self, from: Vector, mask: Vector) -> Result<(), Fault> {
        let (lanes, mask) = (self.lanes(from), self.lanes(mask));
        let selected = |byte: &u8| byte & 0x80 != 0;
        if !mask.iter().take(from.width.into()).any(selected) {
            return Ok(());
        }
        let seg = self.instruction.segment.unwrap_or(Seg::Ds);
        let offset = self.part(Reg::Rdi, self.instruction.address_width);
        let memory = self
            .processor
            .check_memory(seg, offset, from.width, AccessKind::Write)?;
        for ((byte, mask), index) in lanes.iter().zip(mask).zip(0..from.width) {
            if selected(&mask) {
                let part = memory.part(index, 1);
                self.processor
                    .store(&part, &Bytes::new((*byte).into(), 1))?;
            }
        }
        Ok(())
    }

    /// What a vector register holds; zeroes above its width.
    fn lanes(&mut self, register: Vector) -> Lanes {
        let area = self.processor.cpu.fpu();
        let mut lanes = [0; MAX_OPERAND_BYTES];
        if register.width == 8 {
            put(
                &mut lanes,
                0,
                area.mmx(register.number).to_le_bytes().iter(),
            );
        } else {
            let whole = area.ymm(register.number);
            put(&mut lanes, 0, whole.iter().take(register.width.into()));
        }
        lanes
    }

    fn set_lanes(&mut self, register: Vector, mut value: Lanes) {
        value
            .iter_mut()
            .skip(register.width.into())
            .for_each(|byte| *byte = 0);
        let (vex, mut area) = (self.instruction.vex, self.processor.cpu.fpu());
        if register.width == 8 {
            let mut low = [0; 8];
            put(&mut low, 0, value.iter());
            area.set_mmx(register.number, u64::from_le_bytes(low));
        } else if vex {
            area.set_ymm(register.number, &value);
        } else {
            let mut low = [0; 16];
            put(&mut low, 0, value.iter());
            area.set_xmm(register.number, &low);
        }
    }
}

/// Overwrites bytes from `at` on.
fn put<'a>(to: &mut [u8], at: usize, from: impl Iterator<Item = &'a u8>) {
    to.iter_mut()
        .skip(at)
        .zip(from)
        .for_each(|(to, from)| *to = *from);
}

/// The first `width` bytes, again and again.
fn repeated(value: &Lanes, width: usize) -> Lanes {
    let mut all = *value;
    put(&mut all, 0, value.iter().take(width).cycle());
    all
}

/// In each pair of elements one is copied to the other.
fn duplicated(value: &Lanes, width: u8, high: bool) -> Lanes {
    let width = usize::from(width);
    let mut all = *value;
    for (to, at) in all.iter_mut().zip(0usize..) {
        // A width is a power of two: this bit of a byte's place says in which element of its pair the byte is.
        let from = if high { at | width } else { at & !width };
        *to = value.get(from).copied().unwrap_or(0);
    }
    all
}

/// Where element `number` begins in a register.
fn offset_of(number: u8, width: u8) -> usize {
    usize::from(number).wrapping_mul(width.into())
}

/// Whether a mask's element `number` has its sign bit set. Behind the end of the register none has.
fn selects(mask: &Lanes, number: u8, width: u8) -> bool {
    let last = offset_of(number, width).wrapping_add(usize::from(width).wrapping_sub(1));
    mask.get(last).is_some_and(|byte| byte & 0x80 != 0)
}
