// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU that the emulator works on, and the ways in which an instruction can fail there.

use super::instruction_bytes::InstructionBytes;
use crate::addr::{Gpa, Gva};
use crate::memory::walk::Access;
use crate::state::{DescriptorTable, Exception, Gprs, Seg, Segment, TableRegister};
use crate::xsave::XsaveArea;

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

/// What it takes to find the instruction at CS:RIP.
///
/// Registers are those of the guest at the exit. Where a method can fail, it has done nothing when it does.
pub trait CodeReader {
    /// RIP.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// A segment register. One that was loaded with a null selector has its P bit clear.
    fn segment(&self, seg: Seg) -> Segment;
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// EFER.
    fn efer(&self) -> u64;
    /// Control register 0, 2, 3, 4 or 8.
    fn cr(&self, number: u8) -> u64;

    /// Translates a canonical linear address; sets accessed and dirty bits.
    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Fault>;
    /// Instruction bytes at RIP that hardware gave with the exit (APM 2: 15.8.4), or none.
    fn fetched(&self) -> &[u8] {
        &[]
    }
    /// Reads instruction bytes, all in one page. Must not disturb a device: outside of RAM it fails.
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
}

/// What the emulator asks of a virtual CPU and its processor, to execute an instruction.
pub trait Cpu: CodeReader {
    /// The general registers.
    fn gprs(&self) -> &Gprs;
    /// The general registers, to change.
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// Sets RIP.
    fn set_rip(&mut self, rip: u64);
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// Sets a segment register. With SS comes the privilege level, its DPL, but in real mode.
    fn set_segment(&mut self, seg: Seg, segment: Segment);
    /// GDTR or IDTR.
    fn table(&self, table: DescriptorTable) -> TableRegister;
    /// Sets GDTR or IDTR.
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister);

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
    /// A move to control register 0, 2, 3, 4 or 8, with all that hangs on it: #GP(0) for values the guest's CPU refuses,
    /// a change of paging mode, TLB flushes. Privilege has been checked.
    fn set_cr(&mut self, number: u8, value: u64) -> Result<(), Fault>;
    /// Debug register 0–3, 6 or 7.
    fn dr(&self, number: u8) -> u64;
    /// A move to debug register 0–3, 6 or 7; #GP(0) where upper bits are set that must not be. Privilege has been checked.
    fn set_dr(&mut self, number: u8, value: u64) -> Result<(), Fault>;
    /// INVLPG: forgets what was cached of the page at `at`, which may be no canonical address.
    fn invalidate_page(&mut self, at: Gva);

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
