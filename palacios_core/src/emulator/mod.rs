// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executes, one at a time, the instructions that hardware hands back: those that touched emulated MMIO, string port
//! I/O, moves to and from control and debug registers. Safe code, no allocation, no loop without a bound.
//!
//! An instruction either happens as the processor would have done it, or leaves the guest as it was and says why not.
//! All of its memory operands are translated and checked before the first byte of any is read or written.
//!
//! Manuals: Intel SDM (September 2023), AMD APM (revision 3.41).
#![forbid(unsafe_code)]

mod access;
mod alu;
mod decode;
mod execute;
mod instruction;
mod machine;
mod operand;
mod string;
mod system;

use instruction::{Instruction, Op};
use machine::Machine;

use crate::addr::{Gpa, Gva};
use crate::memory::walk::Access;
use crate::state::{rflags, Exception, Gprs, Seg, Segment};

/// Length of the longest instruction, in bytes.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// The bytes of an instruction that was not executed, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionBytes {
    /// The bytes; zero from `len` on.
    pub bytes: [u8; MAX_INSTRUCTION_BYTES],
    /// How many of them were fetched.
    pub len: u8,
}

/// Why an instruction was not executed, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It faults: deliver this at the unmoved RIP.
    Exception(Exception),
    /// Another CPU changed the memory under it. Nothing happened: enter the guest again, which repeats it.
    Retry,
    /// The emulator does not know it: stop the VM with a report that shows the bytes.
    Unsupported(InstructionBytes),
    /// Guest memory that should be there could not be had from the host: stop the VM with a report.
    Memory(Gpa),
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Fault::Exception(exception)
    }
}

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The instruction is complete and RIP moved on; an interrupt shadow, if there was one, is over. Otherwise a
    /// repeated string instruction has iterations left, RIP stands on it, and an interrupt may be taken.
    pub complete: bool,
    /// RFLAGS.TF was set: deliver a #DB trap with DR6.BS, before any interrupt.
    pub single_step: bool,
}

/// What the emulator asks of a virtual CPU and its machine.
///
/// Registers are those of the guest at the exit. Where a method can fail, it has done nothing when it does.
pub trait Cpu {
    /// The general registers.
    fn gprs(&self) -> &Gprs;
    /// The general registers, to change.
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// A segment register. One that was loaded with a null selector has its P bit clear.
    fn segment(&self, seg: Seg) -> Segment;
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// EFER.
    fn efer(&self) -> u64;

    /// It takes LOCK before a move to or from CR0, and moves CR8 (APM 3: CPUID `Fn8000_0001_ECX[AltMovCr8]`). Asked where one is
    /// met.
    fn names_cr8_by_lock(&self) -> bool;
    /// Control register 0, 2, 3, 4 or 8.
    fn cr(&self, number: u8) -> u64;
    /// A move to control register 0, 2, 3, 4 or 8, with all that hangs on it: #GP(0) for values the guest's CPU refuses,
    /// a change of paging mode, TLB flushes. Privilege has been checked.
    fn set_cr(&mut self, number: u8, value: u64) -> Result<(), Fault>;
    /// Debug register 0–3, 6 or 7.
    fn dr(&self, number: u8) -> u64;
    /// A move to debug register 0–3, 6 or 7; #GP(0) where upper bits are set that must not be. Privilege has been checked.
    fn set_dr(&mut self, number: u8, value: u64) -> Result<(), Fault>;
    /// INVLPG: forgets what was cached of the page at `at`, which may be no canonical address.
    fn invalidate_page(&mut self, at: Gva);

    /// Translates a canonical linear address; sets accessed and dirty bits.
    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Fault>;
    /// Instruction bytes at RIP that hardware gave with the exit (APM 2: 15.8.4), or none.
    fn fetched(&self) -> &[u8] {
        &[]
    }
    /// Reads instruction bytes, all in one page. Must not disturb a device: outside of RAM it fails.
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
    /// Reads 1–16 bytes, all in one page, from RAM or from a device. Called once for an access of the guest; a device
    /// sees accesses of 1, 2, 4 or 8 bytes.
    fn read(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
    /// Writes 1–16 bytes, all in one page; as [`Cpu::read`].
    fn write(&mut self, at: Gpa, data: &[u8]) -> Result<(), Fault>;
    /// The write of a locked read-modify-write of 1, 2, 4, 8 or 16 bytes. RAM: replaces `old` by `new` in one atomic
    /// step, or answers `false` if it no longer holds `old`. A device: writes `new` and answers `true`.
    fn compare_exchange(&mut self, at: Gpa, old: &[u8], new: &[u8]) -> Result<bool, Fault>;

    /// Reads `size` (1, 2 or 4) bytes from a port.
    fn port_in(&mut self, port: u16, size: u8) -> Result<u32, Fault>;
    /// Writes the low `size` (1, 2 or 4) bytes of `value` to a port.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Fault>;
}

/// Executes the instruction at CS:RIP, or a bounded part of a repeated string instruction.
pub fn step(cpu: &mut impl Cpu) -> Result<Step, Fault> {
    let single_step = cpu.rflags() & rflags::TF != 0;
    let mut machine = Machine::new(cpu);
    let instruction = machine.fetch(Instruction::decode, |instruction| instruction.length)?;
    let mut execution = Execution {
        next_rip: machine.rip_after(instruction.length),
        machine,
        instruction,
    };
    let complete = match instruction.op {
        Op::String(op) => execution.string(op, single_step)?,
        _ => execution.execute().map(|()| true)?,
    };
    if complete {
        let next_rip = execution.next_rip;
        cpu.set_rip(next_rip);
        cpu.set_rflags(cpu.rflags() & !rflags::RF);
    }
    Ok(Step {
        complete,
        single_step,
    })
}

/// The length in bytes of the instruction at CS:RIP, for processors that do not tell (APM 2: 15.7.1).
pub fn length_at(cpu: &mut impl Cpu) -> Result<u8, Fault> {
    Machine::new(cpu).fetch(decode::length, |&length| length)
}

/// The execution of one instruction.
struct Execution<'a, C> {
    machine: Machine<'a, C>,
    instruction: Instruction,
    next_rip: u64,
}

#[cfg(test)]
mod decode_tests;
