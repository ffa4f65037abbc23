// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that load or store state of the floating-point unit: FNSTCW, FNSTSW, LDMXCSR, STMXCSR, FXSAVE, FXRSTOR (SDM 2A).

use super::access::Bytes;
use super::cpu::{Cpu, Fault};
use super::execution::Execution;
use super::instruction::{Address, FpuOp, Operand};
use super::vector::Unit;
use crate::memory::walk::AccessKind;
use crate::state::{cr4, efer, Exception};

/// Bytes of FXSAVE's memory; what it uses of them, in chunks of 16; and where the XMM registers begin.
const AREA: u16 = 512;
const CHUNKS: u8 = 26;
const FIRST_XMM: u8 = 10;
/// XMM registers outside of 64-bit mode.
const SMALL_XMM: u8 = 8;
/// Where MXCSR stands.
const MXCSR_CHUNK: u8 = 1;

impl<C: Cpu> Execution<'_, C> {
    /// Executes one of them.
    pub fn fpu(&mut self, op: FpuOp) -> Result<(), Fault> {
        self.check_unit(match op {
            FpuOp::StoreControlWord | FpuOp::StoreStatusWord | FpuOp::Save | FpuOp::Restore => {
                Unit::X87
            }
            FpuOp::LoadMxcsr | FpuOp::StoreMxcsr if self.instruction.vex => Unit::Avx,
            FpuOp::LoadMxcsr | FpuOp::StoreMxcsr => Unit::Sse,
        })?;
        let Operand::Memory(address) = self.operand(0) else {
            return Err(self.unsupported());
        };
        match op {
            FpuOp::StoreControlWord => {
                let value = self.processor.cpu.fpu().control_word();
                self.store_word(value.into())
            }
            FpuOp::StoreStatusWord => {
                let value = self.processor.cpu.fpu().status_word();
                self.store_word(value.into())
            }
            FpuOp::StoreMxcsr => {
                let value = self.processor.cpu.fpu().mxcsr();
                self.store_word(value.into())
            }
            FpuOp::LoadMxcsr => {
                let from = self.target(0, AccessKind::Read)?;
                let value = self.get(&from)? as u32;
                match self.processor.cpu.fpu().set_mxcsr(value) {
                    true => Ok(()),
                    false => Err(self.processor.fault(Exception::general_protection(0))),
                }
            }
            FpuOp::Save => self.save(&address),
            FpuOp::Restore => self.restore(&address),
        }
    }

    fn store_word(&mut self, value: u64) -> Result<(), Fault> {
        let to = self.target(0, AccessKind::Write)?;
        self.set(&to, value)
    }

    /// Checks all of FXSAVE's memory, which begins at a multiple of 16. Its first and last chunk are in all its pages.
    fn check_area(&mut self, address: &Address, kind: AccessKind) -> Result<u64, Fault> {
        let offset = self.offset(address);
        let at = self.processor.linear(address.seg, offset, 16, kind)?;
        if at.0 & 15 != 0 {
            return Err(self.processor.fault(Exception::general_protection(0)));
        }
        for chunk in [0, AREA.wrapping_sub(16)] {
            let at = self.cut(offset.wrapping_add(chunk.into()));
            self.processor.check_memory(address.seg, at, 16, kind)?;
        }
        Ok(offset)
    }

    /// How many chunks hold state: without EFER.FFXSR's effect all, but outside of 64-bit mode half of the registers
    /// (APM 2: 11.4.4).
    fn chunks(&self) -> u8 {
        let cpu = &self.processor.cpu;
        let fast = cpu.efer() & efer::FFXSR != 0 && self.processor.mode.long && cpu.cpl() == 0;
        match (
            fast || cpu.cr(4) & cr4::OSFXSR == 0,
            self.processor.mode.long,
        ) {
            (true, _) => FIRST_XMM,
            (false, true) => CHUNKS,
            (false, false) => FIRST_XMM + SMALL_XMM,
        }
    }

    fn save(&mut self, address: &Address) -> Result<(), Fault> {
        let first = self.check_area(address, AccessKind::Write)?;
        for chunk in 0..self.chunks() {
            let at = self.cut(first.wrapping_add(16 * u64::from(chunk)));
            let memory = self
                .processor
                .check_memory(address.seg, at, 16, AccessKind::Write)?;
            let value = u128::from_le_bytes(self.processor.cpu.fpu().legacy(chunk));
            let value = self.pointers(chunk, value);
            self.processor.store(&memory, &Bytes::new(value, 16))?;
        }
        Ok(())
    }

    fn restore(&mut self, address: &Address) -> Result<(), Fault> {
        let first = self.check_area(address, AccessKind::Read)?;
        let chunks = self.chunks();
        let mut head = [0; 2];
        for (value, chunk) in head.iter_mut().zip(0..2) {
            *value = self.load_chunk(address, first, chunk)?;
        }
        let [control, pointers] = head;
        if self.processor.cpu.cr(4) & cr4::OSFXSR != 0 {
            let mxcsr = (pointers >> 64) as u32;
            if !self.processor.cpu.fpu().set_mxcsr(mxcsr) {
                return Err(self.processor.fault(Exception::general_protection(0)));
            }
        }
        for (value, chunk) in [control, pointers].into_iter().zip(0..2) {
            let value = self.pointers(chunk, value).to_le_bytes();
            self.processor.cpu.fpu().set_legacy(chunk, &value);
        }
        for chunk in MXCSR_CHUNK + 1..chunks {
            let value = self.load_chunk(address, first, chunk)?.to_le_bytes();
            self.processor.cpu.fpu().set_legacy(chunk, &value);
        }
        Ok(())
    }

    fn load_chunk(&mut self, address: &Address, first: u64, chunk: u8) -> Result<u128, Fault> {
        let at = self.cut(first.wrapping_add(16 * u64::from(chunk)));
        let memory = self
            .processor
            .check_memory(address.seg, at, 16, AccessKind::Read)?;
        Ok(self.processor.load(&memory)?.value())
    }

    /// Without REX.W the last instruction's and operand's addresses have 32 bits, and a selector each, which processors no
    /// longer tell.
    fn pointers(&self, chunk: u8, value: u128) -> u128 {
        match (chunk, self.instruction.operand_width) {
            (_, 8) => value,
            (0, _) => value & !(0xffff_ffff << 96),
            (MXCSR_CHUNK, _) => value & !(0xffff_ffff << 32),
            _ => value,
        }
    }
}
