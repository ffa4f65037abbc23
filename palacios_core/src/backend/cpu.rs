// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that no Rust function stands for, shared by the backends.
//!
//! An instruction that faults when virtualization is switched off under us, or on an MSR that this CPU lacks, has an entry
//! in the section `__ex_table`: the address of the instruction, the address to go on at, both relative to their own place,
//! and a type, 32 bits each. A host whose fault handler consults that section survives the fault, as Linux does
//! (`EX_TYPE_DEFAULT` is 1); on another host such a fault is fatal, and nothing else changes.

use super::Exit;
use crate::host::{Host, MachineCheck};
use core::arch::asm;

/// An `__ex_table` entry: a fault at the label `$at` goes on at the label `$to`.
macro_rules! ex_table {
    ($at:literal, $to:literal) => {
        concat!(
            ".pushsection __ex_table, \"a\"\n.balign 4\n.long ",
            $at,
            " - .\n.long ",
            $to,
            " - .\n.long 1\n.popsection"
        )
    };
}
pub(super) use ex_table;

/// The instruction faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Faulted;

/// EFER.
pub(super) const MSR_EFER: u32 = 0xc000_0080;
/// What RDTSCP and RDPID give.
pub(super) const MSR_TSC_AUX: u32 = 0xc000_0103;
/// The supervisor state components that XSAVES and XRSTORS move.
pub(super) const MSR_XSS: u32 = 0xda0;
/// Takes commands to the branch predictors; write-only.
pub(super) const MSR_PRED_CMD: u32 = 0x49;
/// The command that makes indirect branches forget their past.
pub(super) const PRED_CMD_IBPB: u64 = 1;
/// Five levels of page tables.
pub(super) const CR4_LA57: u64 = 1 << 12;
/// Flexible return and event delivery.
pub(super) const CR4_FRED: u64 = 1 << 32;

/// What `CPUID` answers: EAX, EBX, ECX, EDX.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)] // Safe from Rust 1.94 on.
    // SAFETY: every x86-64 CPU has CPUID.
    let r = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The time stamp counter.
pub(super) fn tsc() -> u64 {
    // SAFETY: no effect; the host has not forbidden it to itself (CR4.TSD binds user code only).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads an MSR that may not be there.
pub(super) fn read_msr(index: u32) -> Result<u64, Faulted> {
    let (low, high): (u32, u32);
    let faulted: u32;
    // SAFETY: reading an MSR has no side effect on those named in this folder; a fault is caught.
    unsafe {
        asm!(
            "mov {faulted:e}, 1",
            "2: rdmsr",
            "xor {faulted:e}, {faulted:e}",
            "3:",
            ex_table!("2b", "3b"),
            faulted = out(reg) faulted,
            in("ecx") index, inout("eax") 0 => low, inout("edx") 0 => high,
            options(nomem, nostack),
        )
    };
    match faulted {
        0 => Ok(u64::from(high) << 32 | u64::from(low)),
        _ => Err(Faulted),
    }
}

/// Writes an MSR.
///
/// # Safety
/// The host can go on with that value in it.
pub(super) unsafe fn write_msr(index: u32, value: u64) -> Result<(), Faulted> {
    let faulted: u32;
    // SAFETY: by the contract above; a fault is caught.
    unsafe {
        asm!(
            "mov {faulted:e}, 1",
            "2: wrmsr",
            "xor {faulted:e}, {faulted:e}",
            "3:",
            ex_table!("2b", "3b"),
            faulted = out(reg) faulted,
            in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack),
        )
    };
    match faulted {
        0 => Ok(()),
        _ => Err(Faulted),
    }
}

macro_rules! readable {
    ($(#[$doc:meta])* $read:ident, $name:literal) => {
        $(#[$doc])*
        #[inline(always)] // Some are read where no return may be executed.
        pub(super) fn $read() -> u64 {
            let value: u64;
            // SAFETY: reads a register at CPL 0.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
    };
}
macro_rules! register {
    ($(#[$doc:meta])* $read:ident, $(#[$write_doc:meta])* $write:ident, $name:literal) => {
        readable!($(#[$doc])* $read, $name);
        register!($(#[$write_doc])* $write, $name);
    };
    ($(#[$doc:meta])* $write:ident, $name:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The caller owns the register, or puts back what the host had in it.
        #[inline(always)]
        pub(super) unsafe fn $write(value: u64) {
            // SAFETY: by the contract above.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}

register!(
    /// DR0.
    read_dr0,
    /// Sets DR0.
    write_dr0, "dr0"
);
register!(
    /// DR1.
    read_dr1,
    /// Sets DR1.
    write_dr1, "dr1"
);
register!(
    /// DR2.
    read_dr2,
    /// Sets DR2.
    write_dr2, "dr2"
);
register!(
    /// DR3.
    read_dr3,
    /// Sets DR3.
    write_dr3, "dr3"
);
register!(
    /// DR6.
    read_dr6,
    /// Sets DR6.
    write_dr6, "dr6"
);
register!(
    /// DR7.
    read_dr7,
    /// Sets DR7.
    write_dr7, "dr7"
);
register!(
    /// CR2.
    read_cr2,
    /// Sets CR2.
    write_cr2, "cr2"
);
register!(
    /// CR4.
    read_cr4,
    /// Sets CR4.
    write_cr4, "cr4"
);

readable!(
    /// CR0.
    read_cr0, "cr0"
);
readable!(
    /// CR3.
    read_cr3, "cr3"
);

/// A machine check ended the guest, which keeps the host's handler from running: the host sees to it now. FRED takes no
/// software interrupt from the kernel.
pub(super) fn machine_check<H: Host>(host: &H) -> Exit {
    match host.machine_check() {
        MachineCheck::Spared => Exit::HostInterrupt,
        MachineCheck::Raise if read_cr4() & CR4_FRED == 0 => {
            // SAFETY: vector 18 is the host's own handler; it finds the error in the machine-check banks and returns, or not.
            unsafe { asm!("int 18") };
            Exit::HostInterrupt
        }
        MachineCheck::Raise | MachineCheck::Hit => Exit::MachineCheck,
    }
}

/// Has the host's NMI handler run, for an NMI that ended a guest instead. Its IRET lets the next one in.
pub(super) fn raise_nmi() {
    // SAFETY: vector 2 is the host's own handler, and returns.
    unsafe { asm!("int 2") };
}
