// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executes, one at a time, the instructions that hardware hands back: those that touched emulated MMIO, string port
//! I/O, moves to and from control and debug registers. Delivers the events that hardware could not, since their frame is in
//! such memory. Safe code, no allocation, no loop without a bound.
//!
//! An instruction either happens as the processor would have done it, or leaves the guest as it was and says why not.
//! All of its memory operands are translated and checked before the first byte of any is read or written.
//!
//! Manuals: Intel SDM (September 2023), AMD APM (revision 3.41).
#![forbid(unsafe_code)]

mod access;
mod alu;
mod bits;
mod cpu;
mod decode;
mod execute;
mod execution;
mod far;
mod fpu;
mod instruction;
mod instruction_bytes;
mod interrupt;
mod opcodes;
mod operand;
mod plain;
mod prefixes;
mod processor;
mod segments;
mod stack;
mod string;
mod system;
mod tables;
mod vector;
mod widths;

use crate::state::rflags;
pub use cpu::{Behaviour, CodeReader, Cpu, Fault};
use execution::Execution;
use instruction::{Instruction, Op};
pub use instruction_bytes::{InstructionBytes, MAX_INSTRUCTION_BYTES};
pub use interrupt::{Interruption, Source};
pub use plain::{plain_control_move, plain_length, plain_move, ControlMove, Moved, PlainMove};
use processor::Processor;

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The instruction is complete and RIP moved on; an interrupt shadow, if there was one, is over. Otherwise a
    /// repeated string instruction has iterations left, RIP stands on it, and an interrupt may be taken.
    pub complete: bool,
    /// RFLAGS.TF was set: deliver a #DB trap with DR6.BS, before any interrupt.
    pub single_step: bool,
}

/// Executes the instruction at CS:RIP, or a bounded part of a repeated string instruction.
pub fn step(cpu: &mut impl Cpu) -> Result<Step, Fault> {
    let traced = cpu.rflags() & rflags::TF != 0;
    let mut processor = Processor::new(cpu);
    let mut instruction = processor.fetch(Instruction::decode, |instruction| instruction.length)?;
    if instruction.maybe_short && processor.cpu.has(Behaviour::ShortNearBranches) {
        instruction.shorten_near_branch();
    }
    let mut execution = Execution {
        next_rip: processor.rip_after(instruction.length),
        processor,
        instruction,
        traps: traced,
        shadow: false,
        keeps_resume_flag: false,
    };
    let complete = match instruction.op {
        Op::String(op) => execution.string(op, traced)?,
        _ => execution.execute().map(|()| true)?,
    };
    if complete {
        execution.complete();
    }
    Ok(Step {
        complete,
        single_step: execution.traps && !execution.shadow,
    })
}

/// Delivers an event that the processor could not deliver. On a fault nothing happened; it is one that arose on the way.
pub fn deliver(cpu: &mut impl Cpu, what: &Interruption) -> Result<(), Fault> {
    let mut processor = Processor::new(cpu);
    processor.external = what.source != Source::Software;
    let rip = processor.deliver(what)?;
    cpu.set_rip(rip);
    Ok(())
}

/// The length in bytes of the instruction at CS:RIP, for processors that do not tell (APM 2: 15.7.1).
pub fn length_at(cpu: &mut impl CodeReader) -> Result<u8, Fault> {
    Processor::new(cpu).fetch(decode::length, |&length| length)
}

#[cfg(test)]
mod decode_tests;
