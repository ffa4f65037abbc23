// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that look for bits, count them, or change one, and CRC32 (SDM 2).

use super::alu;
use super::cpu::{Behaviour, Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Bit, Operand};
use super::operand::Target;
use crate::memory::walk::AccessKind::{Read, Write};
use crate::state::rflags;

impl<C: Cpu> Execution<'_, C> {
    /// BT, BTS, BTR, BTC.
    pub fn bit(&mut self, op: Bit) -> Result<(), Fault> {
        let width = self.width()?;
        let bits = 8 * u64::from(width);
        let index = self.target(1, Read)?;
        let index = self.get(&index)?;
        let kind = if op == Bit::Test { Read } else { Write };
        let to = match (self.operand(0), self.operand(1)) {
            // A register's bit index reaches beyond the operand, on both sides.
            (Operand::Memory(mut address), Operand::Register(_)) => {
                let byte = (alu::sign_extend(index, width) as i64).wrapping_shr(3) as u64;
                let step = byte & !u64::from(width.wrapping_sub(1));
                address.displacement = address.displacement.wrapping_add(step);
                let offset = self.offset(&address);
                Target::Memory(
                    self.processor
                        .check_memory(address.seg, offset, width, kind)?,
                )
            }
            _ => self.target(0, kind)?,
        };
        let old = self.get(&to)?;
        let bit = 1u64.wrapping_shl((index & bits.wrapping_sub(1)) as u32);
        let carry = if old & bit != 0 { rflags::CF } else { 0 };
        match op {
            Bit::Test => {}
            Bit::Set => self.replace(&to, old, old | bit)?,
            Bit::Reset => self.replace(&to, old, old & !bit)?,
            Bit::Complement => self.replace(&to, old, old ^ bit)?,
        }
        self.set_flags(self.flags() & !rflags::CF | carry);
        Ok(())
    }

    /// BSF and BSR. Of zero the destination stays as it was, which AMD promises and Intel keeps.
    pub fn bit_scan(&mut self, reverse: bool) -> Result<(), Fault> {
        let from = self.target(1, Read)?;
        let value = self.get(&from)?;
        let found = match reverse {
            true => value.checked_ilog2().map(u64::from),
            false if value == 0 => None,
            false => Some(value.trailing_zeros().into()),
        };
        let to = self.target(0, Write)?;
        let zero = match found {
            Some(index) => {
                self.set(&to, index)?;
                0
            }
            None => rflags::ZF,
        };
        self.set_flags(self.flags() & !rflags::ZF | zero);
        Ok(())
    }

    /// TZCNT and LZCNT, which are BSF and BSR where the processor does not know them.
    pub fn count_zeros(&mut self, leading: bool) -> Result<(), Fault> {
        let (known, result) = match leading {
            true => (Behaviour::Lzcnt, alu::leading_zeros as alu::Count),
            false => (Behaviour::Tzcnt, alu::trailing_zeros as alu::Count),
        };
        if !self.processor.cpu.has(known) {
            return self.bit_scan(leading);
        }
        self.count(result)
    }

    /// A count of the source's bits.
    pub fn count(&mut self, result: alu::Count) -> Result<(), Fault> {
        let width = self.width()?;
        let from = self.target(1, Read)?;
        let value = self.get(&from)?;
        let (count, flags) = result(width, value, self.flags());
        let to = self.target(0, Write)?;
        self.set(&to, count)?;
        self.set_flags(flags);
        Ok(())
    }

    pub fn crc32(&mut self) -> Result<(), Fault> {
        let from = self.target(1, Read)?;
        let width = self.width_of(&from);
        let value = self.get(&from)?;
        let to = self.target(0, Write)?;
        let before = self.get(&to)? as u32;
        self.set(&to, alu::crc32(width, before, value).into())
    }
}
