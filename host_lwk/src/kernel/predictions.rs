// SPDX-License-Identifier: MIT OR Apache-2.0
//! Branch prediction: a guest may have trained the processor's predictors, and the kernel must not follow what they learned.
//! The processor isolates predictions, if it can. If it cannot, only the returns of the kernel are protected: the return stack is
//! filled after each exit.

use super::cpuid::leaf;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use x86_64::registers::model_specific::Msr;

const SPEC_CTRL: u32 = 0x48;
const ARCH_CAPABILITIES: u32 = 0x10a;
const EFER: u32 = 0xc000_0080;

/// How many entries the largest return stack has.
const RETURN_STACK_ENTRIES: u32 = 32;

/// How many entries of the return stack are to be filled before the first return.
static TO_FILL: AtomicU32 = AtomicU32::new(RETURN_STACK_ENTRIES);

/// Has this CPU isolate predictions by privilege, if it can.
///
/// # Safety
/// On each CPU; all are alike.
pub unsafe fn isolate() {
    const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;
    const IBRS_ALL: u64 = 1 << 1;
    const IBRS: u64 = 1 << 0;
    const HAS_AUTOMATIC_IBRS: u32 = 1 << 8;
    const AUTOMATIC_IBRS: u64 = 1 << 21;
    let or = |register: u32, bits: u64| {
        let mut register = Msr::new(register);
        // SAFETY: the CPU says that it has the register and these bits, which the kernel does not depend on.
        unsafe { register.write(register.read() | bits) };
    };
    let has_capabilities = leaf(7)[3] & HAS_ARCH_CAPABILITIES != 0;
    // SAFETY: the CPU says that it has the register.
    if has_capabilities && unsafe { Msr::new(ARCH_CAPABILITIES).read() } & IBRS_ALL != 0 {
        or(SPEC_CTRL, IBRS);
        // The return stack is isolated, too, except for its first entry until a call has retired.
        TO_FILL.store(1, Ordering::Relaxed);
    } else if leaf(0x8000_0021)[0] & HAS_AUTOMATIC_IBRS != 0 {
        // The processor clears the return stack at each exit (APM 2: 3.1.7).
        or(EFER, AUTOMATIC_IBRS);
        TO_FILL.store(0, Ordering::Relaxed);
    }
}

/// After a guest has run, and before the first return: fills the return stack with entries that lead nowhere.
#[inline(always)]
pub fn fill_return_stack() {
    let entries = u64::from(TO_FILL.load(Ordering::Relaxed));
    // SAFETY: the stack is as it was. Only a prediction returns behind one of these calls, and it stays there.
    unsafe {
        asm!(
            "mov {left}, {entries}",
            "test {left}, {left}",
            "jz 6f",
            "3: call 5f",
            "4: lfence",
            "jmp 4b",
            "5: dec {left}",
            "jnz 3b",
            "lea rsp, [rsp + 8 * {entries}]",
            "6: lfence", // nothing goes on before all of this is done
            left = out(reg) _,
            entries = in(reg) entries,
        )
    };
}
