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
mod decode;
mod execute;
mod far;
mod fpu;
mod instruction;
mod interrupt;
mod machine;
mod opcodes;
mod operand;
mod prefixes;
mod segments;
mod stack;
mod string;
mod system;
mod tables;
mod vector;
mod widths;

use instruction::{Instruction, Op};
use machine::Machine;

use crate::addr::{Gpa, Gva};
use crate::memory::walk::Access;
use crate::state::{rflags, DescriptorTable, Exception, Gprs, Seg, Segment, TableRegister};
use crate::xsave::XsaveArea;

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
    /// It leads to another task, by a task gate or a task-state segment: stop the VM with a report.
    TaskSwitch,
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

/// Where an event comes from that is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The program: INT n, INT3, INTO.
    Software,
    /// An instruction that could not be completed, or was.
    Exception,
    /// An interrupt or an NMI.
    Interrupt,
}

/// An event to be delivered through the interrupt descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// Its vector.
    pub vector: u8,
    /// What is pushed behind RIP.
    pub error_code: Option<u32>,
    /// Where it comes from.
    pub source: Source,
    /// The RIP that is pushed.
    pub rip: u64,
}

impl Interruption {
    fn is_fault(&self) -> bool {
        self.source == Source::Exception && Exception::plain(self.vector).is_fault()
    }
}

/// What differs between processors in instructions that all of them take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// LOCK before a move to or from CR0 makes it one of CR8 (APM 3: CPUID `Fn8000_0001_ECX[AltMovCr8]`).
    AltMovCr8,
    /// F3 0F BC is TZCNT, not BSF.
    Tzcnt,
    /// F3 0F BD is LZCNT, not BSR.
    Lzcnt,
    /// REX.W makes the offset in a far pointer 8 bytes long. Intel's do so.
    WideFarPointers,
    /// An operand-size prefix makes a near branch in 64-bit code one of 16 bits. AMD's do so; Intel's ignore it there.
    ShortNearBranches,
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
    /// Sets a segment register. With SS comes the privilege level, its DPL, but in real mode.
    fn set_segment(&mut self, seg: Seg, segment: Segment);
    /// GDTR or IDTR.
    fn table(&self, table: DescriptorTable) -> TableRegister;
    /// Sets GDTR or IDTR.
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// EFER.
    fn efer(&self) -> u64;

    /// The processor behaves so. Asked only where an instruction is met that shows it.
    fn has(&self, behaviour: Behaviour) -> bool;
    /// Keeps interrupts, NMIs and debug traps from the next instruction, which is the one at RIP.
    fn set_interrupt_shadow(&mut self);
    /// NMIs are held back until the next IRET, or no more.
    fn set_nmi_blocked(&mut self, blocked: bool);
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Floating-point and vector registers.
    fn fpu(&mut self) -> XsaveArea<'_>;
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
    /// Reads 1–32 bytes, all in one page, from RAM or from a device. Called once for an access of the guest; a device
    /// sees accesses of 1, 2, 4 or 8 bytes, in the order of their addresses.
    fn read(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
    /// Writes 1–32 bytes, all in one page; as [`Cpu::read`].
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
    let traced = cpu.rflags() & rflags::TF != 0;
    let mut machine = Machine::new(cpu);
    let mut instruction = machine.fetch(Instruction::decode, |instruction| instruction.length)?;
    if instruction.maybe_short && machine.cpu.has(Behaviour::ShortNearBranches) {
        instruction.shorten_near_branch();
    }
    let mut execution = Execution {
        next_rip: machine.rip_after(instruction.length),
        machine,
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
    let mut machine = Machine::new(cpu);
    machine.external = what.source != Source::Software;
    let rip = machine.deliver(what)?;
    cpu.set_rip(rip);
    Ok(())
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
    /// A debug trap follows.
    traps: bool,
    /// The next instruction comes without an interrupt or trap before it.
    shadow: bool,
    /// RFLAGS.RF is as the instruction set it.
    keeps_resume_flag: bool,
}

impl<C: Cpu> Execution<'_, C> {
    /// What is left to do behind an instruction that is complete.
    fn complete(&mut self) {
        let cpu = &mut self.machine.cpu;
        cpu.set_rip(self.next_rip);
        if !self.keeps_resume_flag {
            cpu.set_rflags(cpu.rflags() & !rflags::RF);
        }
        if self.shadow {
            cpu.set_interrupt_shadow();
        }
    }
}

#[cfg(test)]
mod decode_tests;
