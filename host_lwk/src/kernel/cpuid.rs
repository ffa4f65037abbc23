// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPUID instruction.

/// The bit that parts extended leaves from basic ones (SDM 2A: CPUID).
const EXTENDED: u32 = 1 << 31;

/// What `CPUID` answers: EAX, EBX, ECX, EDX. A leaf that the processor does not have may answer anything.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)] // Safe from Rust 1.94 on.
    // SAFETY: every x86-64 CPU has it.
    let r = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// A leaf of CPUID, its subleaf 0: EAX, EBX, ECX, EDX; zeroes if the processor does not have it.
pub fn leaf(number: u32) -> [u32; 4] {
    if number > cpuid(number & EXTENDED, 0)[0] {
        return [0; 4];
    }
    cpuid(number, 0)
}
