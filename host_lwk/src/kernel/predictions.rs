// SPDX-License-Identifier: MIT OR Apache-2.0
//! Predictions: what ran on a CPU with fewer rights than the kernel may have trained them, and does not lead the kernel by that
//! where the processor sees to it. Where it does not, returns at least are safe.

use super::cpuid::leaf;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use x86_64::registers::model_specific::Msr;

const SPEC_CTRL: u32 = 0x48;
const ARCH_CAPABILITIES: u32 = 0x10a;
const EFER: u32 = 0xc000_0080;

/// How many entries the largest return stack has.
const ALL: u32 = 32;

/// How many entries of the return stack are to be replaced before the first return.
static REPLACED: AtomicU32 = AtomicU32::new(ALL);

/// Has this CPU keep predictions apart by the rights with which they came, if it can.
///
/// # Safety
/// On each CPU; all are alike.
pub unsafe fn keep_apart() {
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
    let told = leaf(7)[3] & HAS_ARCH_CAPABILITIES != 0;
    // SAFETY: the CPU says that it has the register.
    if told && unsafe { Msr::new(ARCH_CAPABILITIES).read() } & IBRS_ALL != 0 {
        or(SPEC_CTRL, IBRS);
        // The return stack is kept apart, too, but for its first entry until a call has retired.
        REPLACED.store(1, Ordering::Relaxed);
    } else if leaf(0x8000_0021)[0] & HAS_AUTOMATIC_IBRS != 0 {
        // The return stack is emptied on the way here (APM 2: 3.1.7).
        or(EFER, AUTOMATIC_IBRS);
        REPLACED.store(0, Ordering::Relaxed);
    }
}

/// Before the first return behind what had fewer rights: puts entries on the return stack that lead nowhere.
#[inline(always)]
pub fn forget_returns() {
    let replaced = u64::from(REPLACED.load(Ordering::Relaxed));
    // SAFETY: the stack is as it was; each call comes back behind itself only in a prediction, and stays there.
    unsafe {
        asm!(
            "mov {left}, {replaced}",
            "test {left}, {left}",
            "jz 6f",
            "3: call 5f",
            "4: lfence",
            "jmp 4b",
            "5: dec {left}",
            "jnz 3b",
            "lea rsp, [rsp + 8 * {replaced}]",
            "6: lfence", // nothing goes on before all of this is done
            left = out(reg) _,
            replaced = in(reg) replaced,
        )
    };
}
