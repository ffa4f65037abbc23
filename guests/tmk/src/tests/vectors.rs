// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vector registers that are loaded from a device, and stored there: MMX, SSE, AVX.

use super::emulated::{scratch, LAPIC, SCRATCH};
use crate::io::{cpuid, mmio_read, mmio_write};
use crate::{check_eq, fault, tests, Outcome};
use core::arch::asm;

// Other local APICs answer accesses of 4 bytes only.
tests!(; ours: mmio_mmx, mmio_sse, mmio_avx);

const OSXSAVE: u64 = 1 << 18;
const VERSION: u64 = LAPIC + 0x30;

/// Loads from the device that has RSI's address, with an instruction; gives the lowest four bytes.
macro_rules! load {
    ($at:expr, $instruction:literal, $back:literal) => {{
        let value: u32;
        // SAFETY: reads of a register, to one that nothing else uses.
        unsafe { asm!($instruction, $back, inout("rsi") $at => _, out("eax") value, clobber_abi("C")) };
        value
    }};
}

/// Stores EAX's value to the device that has RSI's address, by an instruction.
macro_rules! store {
    ($at:expr, $value:expr, $there:literal, $instruction:literal) => {{
        // SAFETY: the device takes what is written.
        unsafe { asm!($there, $instruction, inout("rsi") $at => _, inout("eax") $value => _, clobber_abi("C")) };
        mmio_read($at)
    }};
}

fn mmio_mmx() -> Outcome {
    let at = scratch(0x8234_5678);
    check_eq!(load!(at, "movd mm1, [rsi]", "movd eax, mm1"), 0x8234_5678);
    check_eq!(load!(at, "movq mm2, [rsi]", "movd eax, mm2"), 0x8234_5678);
    check_eq!(
        store!(at, 0x1122_3344, "movd mm3, eax", "movd [rsi], mm3"),
        0x1122_3344
    );
    let status: u16;
    // SAFETY: leaves MMX.
    unsafe { asm!("fnstsw ax", "emms", out("ax") status, clobber_abi("C")) };
    check_eq!(status >> 11 & 7, 0, "the top of the stack");
    mmio_write(SCRATCH, 0);
    Ok(())
}

fn mmio_sse() -> Outcome {
    let version = mmio_read(VERSION);
    let all = [
        load!(VERSION, "movd xmm1, [rsi]", "movd eax, xmm1"),
        load!(VERSION, "movss xmm2, [rsi]", "movd eax, xmm2"),
        load!(VERSION, "movq xmm3, [rsi]", "movd eax, xmm3"),
        load!(VERSION, "movsd xmm4, [rsi]", "movd eax, xmm4"),
        load!(VERSION, "movups xmm5, [rsi]", "movd eax, xmm5"),
        load!(VERSION, "movupd xmm6, [rsi]", "movd eax, xmm6"),
        load!(VERSION, "movdqu xmm7, [rsi]", "movd eax, xmm7"),
        load!(VERSION, "lddqu xmm8, [rsi]", "movd eax, xmm8"),
        load!(VERSION, "movaps xmm9, [rsi]", "movd eax, xmm9"),
        load!(VERSION, "movdqa xmm10, [rsi]", "movd eax, xmm10"),
        load!(VERSION, "movntdqa xmm11, [rsi]", "movd eax, xmm11"),
        load!(VERSION, "movlps xmm12, [rsi]", "movd eax, xmm12"),
        load!(VERSION, "movddup xmm13, [rsi]", "movd eax, xmm13"),
        load!(VERSION, "movhps xmm14, [rsi]", "pextrd eax, xmm14, 2"),
        load!(VERSION, "pinsrd xmm15, [rsi], 3", "pextrd eax, xmm15, 3"),
    ];
    check_eq!(all, [version; 15]);
    let at = scratch(0);
    check_eq!(
        store!(at, 0x1234_5678, "movd xmm1, eax", "movd [rsi], xmm1"),
        0x1234_5678
    );
    check_eq!(
        store!(at, 0x2345_6789, "movd xmm1, eax", "movss [rsi], xmm1"),
        0x2345_6789
    );
    let shifted = store!(
        at,
        0x3456_789a,
        "pinsrd xmm1, eax, 2",
        "pextrd [rsi], xmm1, 2"
    );
    check_eq!(shifted, 0x3456_789a);
    let shifted = store!(
        at,
        0x4567_89ab,
        "pinsrd xmm1, eax, 1",
        "extractps [rsi], xmm1, 1"
    );
    check_eq!(shifted, 0x4567_89ab);
    mmio_write(at, 0);
    // Those that want alignment say so before the device is read.
    let misaligned = fault!("movaps xmm1, [{at}]", at = in(reg) VERSION + 4);
    check_eq!(misaligned.map(|f| (f.vector, f.error)), Some((13, 0)));
    Ok(())
}

fn mmio_avx() -> Outcome {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    if cpuid(1, 0)[2] & XSAVE_AND_AVX != XSAVE_AND_AVX {
        return Ok(());
    }
    let (cr4, xcr0): (u64, u32);
    // SAFETY: AVX is there.
    unsafe {
        asm!("mov {0}, cr4", "or {1}, {0}", "mov cr4, {1}", out(reg) cr4, inout(reg) OSXSAVE => _);
        asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _);
        asm!("xsetbv", in("ecx") 0, in("eax") xcr0 | 7, in("edx") 0);
    }
    let outcome = avx();
    // SAFETY: as it was.
    unsafe {
        asm!("vzeroall", clobber_abi("C"));
        asm!("xsetbv", in("ecx") 0, in("eax") xcr0, in("edx") 0);
        asm!("mov cr4, {}", in(reg) cr4);
    }
    outcome
}

fn avx() -> Outcome {
    let version = mmio_read(VERSION);
    let all = [
        load!(VERSION, "vmovd xmm1, [rsi]", "vmovd eax, xmm1"),
        load!(VERSION, "vmovups ymm2, [rsi]", "vmovd eax, xmm2"),
        load!(
            VERSION - 16,
            "vmovdqu ymm3, [rsi]",
            "vextractf128 xmm4, ymm3, 1; vmovd eax, xmm4"
        ),
        load!(
            VERSION,
            "vbroadcastss ymm5, [rsi]",
            "vextractf128 xmm6, ymm5, 1; vpextrd eax, xmm6, 3"
        ),
        load!(VERSION, "vmovhps xmm7, xmm7, [rsi]", "vpextrd eax, xmm7, 2"),
    ];
    check_eq!(all, [version; 5]);
    // What is above an XMM register is clear.
    let above = load!(
        VERSION,
        "vbroadcastss ymm5, [rsi]; vmovss xmm5, [rsi]",
        "vextractf128 xmm6, ymm5, 1; vmovd eax, xmm6"
    );
    check_eq!(above, 0);
    let at = scratch(0);
    check_eq!(
        store!(at, 0x1234_5678, "vmovd xmm1, eax", "vmovss [rsi], xmm1"),
        0x1234_5678
    );
    mmio_write(at, 0);
    Ok(())
}
