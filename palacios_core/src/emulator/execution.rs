// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of one instruction under way, and its end. What instructions do begins in `execute.rs`.

use super::cpu::Cpu;
use super::instruction::Instruction;
use super::processor::Processor;
use crate::state::rflags;

/// The execution of one instruction.
pub(super) struct Execution<'a, C> {
    pub processor: Processor<'a, C>,
    pub instruction: Instruction,
    pub next_rip: u64,
    /// A debug trap follows.
    pub traps: bool,
    /// The next instruction comes without an interrupt or trap before it.
    pub shadow: bool,
    /// RFLAGS.RF is as the instruction set it.
    pub keeps_resume_flag: bool,
}

impl<C: Cpu> Execution<'_, C> {
    /// What is left to do behind an instruction that is complete.
    pub fn complete(&mut self) {
        let cpu = &mut self.processor.cpu;
        cpu.set_rip(self.next_rip);
        if !self.keeps_resume_flag {
            cpu.set_rflags(cpu.rflags() & !rflags::RF);
        }
        if self.shadow {
            cpu.set_interrupt_shadow();
        }
    }
}
