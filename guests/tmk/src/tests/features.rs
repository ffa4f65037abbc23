// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU has is what CPUID says: control registers, model-specific registers, and the instructions that come with both.

use super::cpu::{read_cr4, write_cr4};
use crate::io::{cpuid, rdmsr, rdtsc, wrmsr};
use crate::paging::{self, PRESENT, USER, WRITE};
use crate::{check, check_eq, fault, tests, Outcome};
use core::arch::asm;

tests!(
    xsetbv_needs_osxsave,
    tsc_aux_is_shown,
    fs_and_gs_bases,
    process_contexts,
    protection_keys;
    ours: cr4_follows_cpuid, registers_follow_cpuid, registers_of_the_family, tsc_adjust_moves_the_counter, machine_checks_have_registers
);

const GP: u64 = 13;
const UD: u64 = 6;
const PCIDE: u64 = 1 << 17;
const OSXSAVE: u64 = 1 << 18;
const PKE: u64 = 1 << 22;
const MCE: u64 = 1 << 6;

/// Where CPUID tells of something: leaf, subleaf, register, bit.
type CpuidBit = (u32, u32, usize, u32);

fn has((leaf, subleaf, register, bit): CpuidBit) -> bool {
    let last = cpuid(leaf & 1 << 31, 0)[0];
    leaf <= last && cpuid(leaf, subleaf)[register] >> bit & 1 != 0
}

const PCID: CpuidBit = (1, 0, 2, 17);
const RDTSCP: CpuidBit = (0x8000_0001, 0, 3, 27);
const RDPID: CpuidBit = (7, 0, 2, 22);
const FSGSBASE: CpuidBit = (7, 0, 1, 0);
const INVPCID: CpuidBit = (7, 0, 1, 10);
const PKU: CpuidBit = (7, 0, 2, 3);

/// Bits of CR4, and the features that they are there with (SDM 3A: 2.5).
const CR4_BITS: [(u32, CpuidBit); 25] = [
    (0, (1, 0, 3, 1)),   // VME
    (1, (1, 0, 3, 1)),   // PVI
    (2, (1, 0, 3, 4)),   // TSD
    (3, (1, 0, 3, 2)),   // DE
    (4, (1, 0, 3, 3)),   // PSE
    (5, (1, 0, 3, 6)),   // PAE
    (6, (1, 0, 3, 7)),   // MCE
    (7, (1, 0, 3, 13)),  // PGE
    (9, (1, 0, 3, 24)),  // OSFXSR
    (10, (1, 0, 3, 25)), // OSXMMEXCPT
    (11, (7, 0, 2, 2)),  // UMIP
    (13, (1, 0, 2, 5)),  // VMXE
    (14, (1, 0, 2, 6)),  // SMXE
    (16, FSGSBASE),      //
    (17, PCID),          // PCIDE
    (18, (1, 0, 2, 26)), // OSXSAVE
    (20, (7, 0, 1, 7)),  // SMEP
    (21, (7, 0, 1, 20)), // SMAP
    (22, PKU),           // PKE
    (23, (7, 0, 2, 7)),  // CET
    (24, (7, 0, 2, 31)), // PKS
    (25, (7, 0, 3, 5)),  // UINTR
    (27, (7, 1, 0, 6)),  // LASS
    (28, (7, 1, 0, 26)), // LAM
    (32, (7, 1, 0, 17)), // FRED
];

/// Each bit of CR4 that is clear can be set if its feature is there, and is a #GP if not.
fn cr4_follows_cpuid() -> Outcome {
    const PCE: u32 = 8;
    let before = read_cr4();
    for bit in (0..64).filter(|bit| before >> bit & 1 == 0) {
        let known = CR4_BITS.iter().find(|(known, _)| *known == bit);
        // LA57 cannot change in long mode, whether it is there or not.
        let there = bit == PCE || known.is_some_and(|(_, place)| has(*place));
        let mut seen = 0u64;
        let fault = fault!("mov cr4, {new}; mov {seen}, cr4; mov cr4, {old}",
            new = in(reg) before | 1 << bit, old = in(reg) before, seen = inout(reg) seen);
        let taken = fault.is_none();
        if taken != there {
            crate::println!("  CR4 bit {bit}: taken {taken}, in CPUID {there}");
        }
        check_eq!(taken, there);
        match fault {
            Some(fault) => check_eq!((fault.vector, fault.error), (GP, 0)),
            // QEMU shows MCE as the host has it, not as the guest set it.
            None => check_eq!(seen | MCE, before | 1 << bit | MCE),
        }
    }
    check_eq!(read_cr4(), before);
    Ok(())
}

fn xsetbv_needs_osxsave() -> Outcome {
    let before = read_cr4();
    write_cr4(before & !OSXSAVE);
    let fault = fault!("xsetbv", in("ecx") 0, in("eax") 3, in("edx") 0);
    // Nor does a bad value or register come first.
    let bad = fault!("xsetbv", in("ecx") 7, in("eax") 0, in("edx") u32::MAX);
    write_cr4(before);
    check_eq!(fault.map(|fault| fault.vector), Some(UD));
    check_eq!(bad.map(|fault| fault.vector), Some(UD));
    Ok(())
}

fn tsc_aux_is_shown() -> Outcome {
    const TSC_AUX: u32 = 0xc000_0103;
    if !has(RDTSCP) {
        return Ok(());
    }
    let before = rdmsr(TSC_AUX);
    for value in [0u64, 1, 0x1234_5678, 0xffff_ffff] {
        wrmsr(TSC_AUX, value);
        // An exit in between must not lose it.
        cpuid(0, 0);
        let shown: u64;
        // SAFETY: reads the counter and the register.
        unsafe { asm!("rdtscp", out("rax") _, out("rdx") _, out("rcx") shown) };
        check_eq!((rdmsr(TSC_AUX), shown), (value, value));
        if has(RDPID) {
            let shown: u64;
            // SAFETY: reads the register.
            unsafe { asm!("rdpid rax", out("rax") shown) };
            check_eq!(shown, value);
        }
    }
    wrmsr(TSC_AUX, before);
    Ok(())
}

fn fs_and_gs_bases() -> Outcome {
    const GS_BASE: u32 = 0xc000_0101;
    if !has(FSGSBASE) {
        return Ok(());
    }
    let (cr4, gs) = (read_cr4(), rdmsr(GS_BASE));
    write_cr4(cr4 & !(1 << 16));
    let off = fault!("rdgsbase rax", out("rax") _);
    write_cr4(cr4 | 1 << 16);
    let value: u64;
    // SAFETY: nothing here uses GS.
    unsafe {
        asm!("wrgsbase {0}", "rdgsbase {1}", in(reg) 0xffff_8123_4567_89a0u64, out(reg) value)
    };
    let read = rdmsr(GS_BASE);
    write_cr4(cr4);
    wrmsr(GS_BASE, gs);
    check_eq!(off.map(|fault| fault.vector), Some(UD));
    check_eq!(
        (value, read),
        (0xffff_8123_4567_89a0, 0xffff_8123_4567_89a0)
    );
    Ok(())
}

/// Process-context identifiers: CR3 keeps them and not the bit that asks for no flush; what INVPCID names is forgotten.
fn process_contexts() -> Outcome {
    const NO_FLUSH: u64 = 1 << 63;
    if !has(PCID) {
        return Ok(());
    }
    let (cr4, at) = (read_cr4(), paging::window(1));
    let (first, second) = (paging::frame()?, paging::frame()?);
    // SAFETY: frames of this test's own, mapped one to one.
    unsafe {
        (first as *mut u64).write_volatile(1);
        (second as *mut u64).write_volatile(2);
    }
    paging::map(at, first, PRESENT | WRITE)?;
    let cr3: u64;
    // SAFETY: the tables stay.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    write_cr4(cr4 | PCIDE);
    let kept: u64;
    // SAFETY: the same tables under another identifier.
    unsafe { asm!("mov cr3, {0}", "mov {1}, cr3", in(reg) cr3 | 5 | NO_FLUSH, out(reg) kept) };
    let read = || {
        // SAFETY: the page that was mapped.
        unsafe { (at as *const u64).read_volatile() }
    };
    let before = read();
    let entry = paging::entry(at);
    if let Ok(entry) = entry {
        // SAFETY: our own tables.
        unsafe { entry.write_volatile(second | PRESENT | WRITE) };
    }
    let descriptor = [5u64, at];
    if has(INVPCID) {
        // SAFETY: forgets the address under this identifier.
        unsafe { asm!("invpcid {}, [{}]", in(reg) 0u64, in(reg) &descriptor) };
    } else {
        // SAFETY: forgets it under the current one.
        unsafe { asm!("invlpg [{}]", in(reg) at) };
    }
    let after = read();
    // SAFETY: back to the first identifier, without which PCIDE cannot be cleared to any use.
    unsafe { asm!("mov cr3, {}", in(reg) cr3) };
    write_cr4(cr4);
    entry?;
    check_eq!(kept, cr3 | 5, "the last bit is not kept");
    check_eq!((before, after), (1, 2));
    Ok(())
}

fn protection_keys() -> Outcome {
    const KEY_1: u64 = 1 << 59;
    const KEY_1_CLOSED: u32 = 0b01 << 2;
    /// A page fault by a key, of a page that is there.
    const BY_KEY: u64 = 1 | 1 << 5;
    if !has(PKU) {
        return Ok(());
    }
    let (cr4, at) = (read_cr4(), paging::window(1));
    paging::map(at, paging::frame()?, PRESENT | WRITE | USER | KEY_1)?;
    write_cr4(cr4 | PKE);
    let told = has((7, 0, 2, 4));
    let set = |pkru: u32| {
        // SAFETY: of pages with keys this test alone has one.
        unsafe { asm!("wrpkru", in("eax") pkru, in("ecx") 0, in("edx") 0) };
    };
    set(KEY_1_CLOSED);
    let closed = fault!("mov {v}, [{at}]", v = out(reg) _, at = in(reg) at);
    // By an instruction that a VMM executes: a device's register into that page.
    let stored = fault!("movsd", inout("rsi") 0xfee0_0080u64 => _, inout("rdi") at => _);
    cpuid(0, 0);
    let kept: u32;
    // SAFETY: reads the register.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") kept, out("edx") _) };
    set(0);
    let open = fault!("mov {v}, [{at}]", v = out(reg) _, at = in(reg) at);
    write_cr4(cr4);
    let error = |fault: Option<crate::trap::Fault>| fault.map(|f| (f.vector, f.error));
    check!(told, "OSPKE");
    check_eq!(error(closed), Some((14, BY_KEY)));
    check_eq!(error(stored), Some((14, BY_KEY | 1 << 1)));
    check_eq!(kept, KEY_1_CLOSED);
    check!(open.is_none());
    Ok(())
}

fn readable(index: u32) -> bool {
    fault!("rdmsr", in("ecx") index, out("eax") _, out("edx") _).is_none()
}

fn takes(index: u32, value: u64) -> bool {
    let (low, high) = (value as u32, (value >> 32) as u32);
    fault!("wrmsr", in("ecx") index, in("eax") low, in("edx") high).is_none()
}

fn registers_follow_cpuid() -> Outcome {
    let guarded: [(u32, &[CpuidBit]); 9] = [
        (0x3b, &[(7, 0, 1, 1)]),
        (
            0x48,
            &[
                (0x8000_0008, 0, 1, 14),
                (0x8000_0008, 0, 1, 15),
                (0x8000_0008, 0, 1, 24),
                (0x8000_0008, 0, 1, 28),
            ],
        ),
        (0xfe, &[(1, 0, 3, 12)]),
        (0x174, &[(1, 0, 3, 11)]),
        (0x179, &[(1, 0, 3, 14)]),
        (0x277, &[(1, 0, 3, 16)]),
        (0x6e0, &[(1, 0, 2, 24)]),
        (0xda0, &[(0xd, 1, 0, 3)]),
        (0xc000_0103, &[RDTSCP, RDPID]),
    ];
    for (index, places) in guarded {
        let there = places.iter().any(|place| has(*place));
        if readable(index) != there {
            crate::println!("  MSR {index:#x}: in CPUID {there}");
        }
        check_eq!(readable(index), there);
    }
    check_eq!(takes(0x49, 1), has((0x8000_0008, 0, 1, 12)), "PRED_CMD");
    check!(!readable(0x49));
    // Behind features that no guest has; and others' or nobody's.
    for index in [
        0xe7u32,
        0x10a,
        0x122,
        0x345,
        0x38d,
        0x38f,
        0x3f1,
        0x480,
        0x570,
        0x770,
        0xc80,
        0xd90,
        0x4000_0000,
        0x4000_0020,
        0xc000_0104,
        0xc001_0117,
        0xc001_0131,
        0xc001_0140,
        0xc001_0200,
        0xc001_100c,
        0xc001_1030,
        0x1234_5678,
    ] {
        if readable(index) || takes(index, 0) {
            crate::println!("  MSR {index:#x} is there");
            return Err("a register that CPUID does not tell of");
        }
    }
    Ok(())
}

/// Registers that kernels use without asking, since they know the family.
fn registers_of_the_family() -> Outcome {
    let amd: &[u32] = &[
        0x0,
        0x1,
        0x2a,
        0x1a0,
        0x1d9,
        0xc001_0000,
        0xc001_0003,
        0xc001_0004,
        0xc001_0007,
        0xc001_0010,
        0xc001_0015,
        0xc001_001a,
        0xc001_001d,
        0xc001_001f,
        0xc001_0055,
        0xc001_0058,
        0xc001_0112,
        0xc001_0114,
        0xc001_0115,
        0xc001_1004,
        0xc001_1005,
        0xc001_1020,
        0xc001_1022,
        0xc001_1023,
        0xc001_1029,
        0xc001_102a,
        0xc001_102c,
    ];
    let intel: &[u32] = &[
        0x0,
        0x1,
        0x2a,
        0x3a,
        0xc1,
        0xc2,
        0x11e,
        0x186,
        0x187,
        0x198,
        0x199,
        0x1a0,
        0x1d9,
        0x1fc,
        0xc001_0000,
        0xc001_0003,
        0xc001_0004,
        0xc001_0007,
    ];
    let (own, others) = match cpuid(0, 0)[1].to_le_bytes() == *b"Auth" {
        true => (amd, intel),
        false => (intel, amd),
    };
    for index in own {
        let before = match readable(*index) {
            true => rdmsr(*index),
            false => {
                crate::println!("  MSR {index:#x} faults");
                return Err("a register of the family is not there");
            }
        };
        for value in [0, before] {
            check!(takes(*index, value));
        }
    }
    let foreign = others.iter().find(|i| !own.contains(i) && readable(**i));
    check_eq!(foreign, None, "a register of the other vendor's");
    // One that is kept, where its read-only bits stay as they are.
    let misc_enable = rdmsr(0x1a0);
    wrmsr(0x1a0, misc_enable & !(1 << 11) | 1 << 16);
    let kept = rdmsr(0x1a0);
    wrmsr(0x1a0, misc_enable);
    check_eq!(kept, misc_enable | 1 << 16);
    Ok(())
}

fn tsc_adjust_moves_the_counter() -> Outcome {
    const TSC: u32 = 0x10;
    const TSC_ADJUST: u32 = 0x3b;
    const FAR: u64 = 1 << 50;
    if !has((7, 0, 1, 1)) {
        return Ok(());
    }
    let (adjust, before) = (rdmsr(TSC_ADJUST), rdtsc());
    wrmsr(TSC_ADJUST, adjust.wrapping_add(FAR));
    let moved = rdtsc().wrapping_sub(before);
    // What is written to the counter shows in the register.
    wrmsr(TSC, rdtsc().wrapping_add(FAR));
    let total = rdmsr(TSC_ADJUST).wrapping_sub(adjust);
    wrmsr(TSC_ADJUST, adjust);
    let back = rdtsc().wrapping_sub(before);
    check_eq!(rdmsr(TSC_ADJUST), adjust);
    check!((FAR..FAR + FAR / 2).contains(&moved));
    check!((2 * FAR - FAR / 2..2 * FAR + FAR / 2).contains(&total));
    check!(back < FAR / 2, "the counter came back");
    Ok(())
}

/// Machine checks are offered, of which there are no banks.
fn machine_checks_have_registers() -> Outcome {
    const MCG_CAP: u32 = 0x179;
    const MCG_STATUS: u32 = 0x17a;
    if !has((1, 0, 3, 14)) {
        return Ok(());
    }
    check!(has((1, 0, 3, 7)), "MCA is there with MCE alone");
    check_eq!(rdmsr(MCG_CAP), 0, "no banks, no MCG_CTL");
    check!(!takes(MCG_CAP, 0));
    check!(takes(MCG_STATUS, 4) && rdmsr(MCG_STATUS) == 4 && takes(MCG_STATUS, 0));
    check!(!takes(MCG_STATUS, 1 << 8), "a reserved bit");
    check!(
        !readable(0x17b) && !readable(0x400),
        "what MCG_CAP says is not there"
    );
    Ok(())
}
