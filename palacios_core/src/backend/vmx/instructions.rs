// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMX instructions (SDM 3C: 30), but for the entries.
//!
//! Each has an entry in the exception table (see [`super::super::cpu`]): where virtualization was switched off under us, it
//! is a #UD, and comes back as [`Error::Gone`].

use super::super::cpu::ex_table;
use core::arch::asm;

/// Why an instruction did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// VMfail (SDM 3C: 30.2).
    Failed,
    /// It faulted: virtualization is off.
    Gone,
}

impl Error {
    fn of(outcome: u32) -> Result<(), Self> {
        match outcome {
            0 => Ok(()),
            1 => Err(Self::Failed),
            _ => Err(Self::Gone),
        }
    }
}

/// One with a memory operand; CF or ZF say that it failed.
macro_rules! with_memory {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub(super) unsafe fn $name(operand: u64) -> Result<(), Error> {
            let outcome: u32;
            // SAFETY: by the contract above; a fault is caught.
            unsafe {
                asm!(
                    "mov {outcome:e}, 2",
                    concat!("2: ", $instruction, " qword ptr [{operand}]"),
                    "setbe {outcome:l}",
                    "3:",
                    ex_table!("2b", "3b"),
                    outcome = out(reg_abcd) outcome,
                    operand = in(reg) &operand,
                    options(nostack),
                )
            };
            Error::of(outcome)
        }
    };
}
with_memory!(
    /// Enters VMX operation.
    ///
    /// # Safety
    /// Interrupts are off, CR4.VMXE is set, and the operand is the address of a region for this CPU's use.
    vmxon, "vmxon"
);
with_memory!(
    /// Makes a VMCS clear, and writes back what the processor keeps of it.
    ///
    /// # Safety
    /// In VMX operation; the operand is the address of a VMCS that is in no other CPU's use.
    vmclear, "vmclear"
);
with_memory!(
    /// Makes a VMCS current.
    ///
    /// # Safety
    /// In VMX operation; the operand is the address of a clear VMCS.
    vmptrld, "vmptrld"
);

/// Leaves VMX operation.
///
/// # Safety
/// The caller entered it.
pub(super) unsafe fn vmxoff() {
    // SAFETY: by the contract above; a fault is caught.
    unsafe { asm!("2: vmxoff", "3:", ex_table!("2b", "3b"), options(nostack)) };
}

/// A field of the current VMCS; 0 if there is none.
///
/// # Safety
/// A VMCS is current.
pub(super) unsafe fn vmread(encoding: u16) -> u64 {
    let value: u64;
    // SAFETY: by the contract above; a fault is caught.
    unsafe {
        asm!(
            "xor {value:e}, {value:e}",
            "2: vmread {value}, {encoding}",
            "3:",
            ex_table!("2b", "3b"),
            value = out(reg) value,
            encoding = in(reg) u64::from(encoding),
            options(nostack),
        )
    };
    value
}

/// Sets a field of the current VMCS. A processor without it leaves all as it is.
///
/// # Safety
/// A VMCS is current.
pub(super) unsafe fn vmwrite(encoding: u16, value: u64) {
    // SAFETY: by the contract above; a fault is caught.
    unsafe {
        asm!(
            "2: vmwrite {encoding}, {value}",
            "3:",
            ex_table!("2b", "3b"),
            encoding = in(reg) u64::from(encoding),
            value = in(reg) value,
            options(nostack),
        )
    };
}

/// What is to be forgotten (SDM 3C: 30.3, INVEPT and INVVPID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Of one context.
    One = 1,
    /// Of all.
    All = 2,
}

macro_rules! forgets {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// In VMX operation; the processor has this instruction with this scope.
        pub(super) unsafe fn $name(scope: Scope, context: u64) {
            let descriptor = [context, 0];
            // SAFETY: by the contract above; only translations go. A fault is caught.
            unsafe {
                asm!(
                    concat!("2: ", $instruction, " {scope}, xmmword ptr [{descriptor}]"),
                    "3:",
                    ex_table!("2b", "3b"),
                    scope = in(reg) scope as u64,
                    descriptor = in(reg) &descriptor,
                    options(nostack),
                )
            };
        }
    };
}
forgets!(
    /// Forgets what was cached of nested tables, of the EPT pointer `context`.
    invept, "invept"
);
forgets!(
    /// Forgets what was cached under the tag `context`.
    invvpid, "invvpid"
);
