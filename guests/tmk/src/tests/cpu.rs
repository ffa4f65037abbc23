// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU says of itself, and what its control and model-specific registers take.

use crate::io::{cpuid, is_intel, rdmsr, wrmsr};
use crate::{boot_info, check, check_eq, fault, tests, Outcome};
use core::arch::asm;

tests!(
    cpuid_is_consistent,
    cpuid_tells_osxsave,
    control_registers_keep,
    lmsw_and_clts,
    cr8_keeps,
    efer_keeps,
    msrs_keep,
    syscall_registers,
    mtrr_and_pat,
    apic_base,
    avx_state_lasts,
    xcr0_rules,
    cache_instructions;
    ours: cpuid_signature, cpuid_hides, unknown_msr_faults, efer_refuses, vm_instructions_fault, hypercall_answers
);

const GP: u64 = 13;
const EFER: u32 = 0xc000_0080;

fn cpuid_signature() -> Outcome {
    check!(cpuid(1, 0)[2] >> 31 == 1, "hypervisor bit");
    let [max, b, c, d] = cpuid(0x4000_0000, 0);
    check!(max >= 0x4000_0000);
    let name = [b, c, d].map(u32::to_le_bytes);
    check!(name.iter().flatten().eq(b"V3VEEV3VEE\0\0"));
    Ok(())
}

fn cpuid_hides() -> Outcome {
    check_eq!(cpuid(0x8000_0001, 0)[2] & 4, 0, "SVM");
    check_eq!(cpuid(1, 0)[2] & (1 << 5 | 1 << 3), 0, "VMX, MONITOR");
    check_eq!(cpuid(0x8000_000a, 0), [0; 4]);
    let all = boot_info::number("cpus").unwrap_or(1);
    check_eq!(u64::from(cpuid(0xb, 1)[1]), all, "cores");
    Ok(())
}

/// The same facts told by several leaves.
fn cpuid_is_consistent() -> Outcome {
    let basic = cpuid(0, 0);
    check!(basic[0] >= 1);
    check!(cpuid(0x8000_0000, 0)[0] >= 0x8000_0008);
    // Bits that AMD repeats (APM 3: E.4.2) and Intel leaves zero.
    const SHARED: u32 = 0x0183_f3ff;
    let [.., features] = cpuid(1, 0);
    let extended = cpuid(0x8000_0001, 0)[3];
    if basic[1..] == [0x6874_7541, 0x444d_4163, 0x6974_6e65] {
        check_eq!(extended & SHARED, features & SHARED);
    }
    check!(extended & 1 << 29 != 0, "long mode");
    let physical_bits = cpuid(0x8000_0008, 0)[0] & 0xff;
    check!((36..=52).contains(&physical_bits));
    check_eq!(
        cpuid(1, 0)[1] >> 24,
        crate::io::mmio_read(0xfee0_0020) >> 24,
        "the APIC id"
    );
    Ok(())
}

pub fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value) };
    value
}

pub fn write_cr4(value: u64) {
    // SAFETY: the callers change bits that change nothing for this code.
    unsafe { asm!("mov cr4, {}", in(reg) value) };
}

fn cpuid_tells_osxsave() -> Outcome {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1, 0)[2] & 1 << 26 == 0 {
        return Err("this CPU has no XSAVE to test");
    }
    let before = read_cr4();
    write_cr4(before & !OSXSAVE);
    let off = cpuid(1, 0)[2] >> 27 & 1;
    let without = fault!("xgetbv", in("ecx") 0, out("eax") _, out("edx") _);
    write_cr4(before | OSXSAVE);
    let on = cpuid(1, 0)[2] >> 27 & 1;
    write_cr4(before);
    check_eq!((off, on), (0, 1));
    check!(without.is_some_and(|f| f.vector == 6), "XGETBV needs it");
    Ok(())
}

fn unknown_msr_faults() -> Outcome {
    for index in [0x1234_5678u32, 0x4000_0000, 0xc001_ffff, 0x8000_0000] {
        let read = fault!("rdmsr", in("ecx") index, out("eax") _, out("edx") _)
            .ok_or("read went through")?;
        check_eq!((read.vector, read.error), (GP, 0));
        let write = fault!("wrmsr", in("ecx") index, in("eax") 0, in("edx") 0)
            .ok_or("write went through")?;
        check_eq!((write.vector, write.error), (GP, 0));
    }
    Ok(())
}

fn read_cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value) };
    value
}

fn control_registers_keep() -> Outcome {
    const AM: u64 = 1 << 18;
    const TSD: u64 = 1 << 2;
    let (cr0, cr4) = (read_cr0(), read_cr4());
    let (kept, again): (u64, u64);
    // SAFETY: alignment checks matter to user mode alone; CR2 is ours.
    unsafe {
        asm!("mov cr0, r12", "mov r13, cr0", "mov cr0, {}", in(reg) cr0, in("r12") cr0 | AM, out("r13") kept);
        asm!("mov cr2, {0}", "mov {1}, cr2", in(reg) 0x1234_5678_9abcu64, out(reg) again);
        asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _);
    }
    check_eq!((kept, again), (cr0 | AM, 0x1234_5678_9abc));
    write_cr4(cr4 | TSD);
    let tsd = read_cr4();
    write_cr4(cr4);
    check_eq!(tsd, cr4 | TSD);
    Ok(())
}

fn lmsw_and_clts() -> Outcome {
    const TS: u64 = 1 << 3;
    let (set, word, clear): (u64, u64, u64);
    // SAFETY: the compiled code uses no FPU here.
    unsafe {
        asm!("smsw eax", "or eax, 8", "lmsw ax", "mov {}, cr0", "smsw {}", out(reg) set, out(reg) word, out("rax") _)
    };
    let used = fault!("fninit");
    // SAFETY: as above.
    unsafe { asm!("clts", "mov {}, cr0", out(reg) clear) };
    check!(set & TS != 0 && word & TS != 0);
    check!(used.is_some_and(|f| f.vector == 7), "#NM");
    check_eq!(clear, set & !TS);
    check!(fault!("fninit").is_none());
    // LMSW cannot leave protected mode.
    let pe: u64;
    // SAFETY: all bits but PE stay.
    unsafe {
        asm!("smsw eax", "and eax, 0xfffe", "lmsw ax", "mov {}, cr0", out(reg) pe, out("rax") _)
    };
    check!(pe & 1 != 0, "PE stays");
    Ok(())
}

fn cr8_keeps() -> Outcome {
    let value: u64;
    // SAFETY: interrupts are off.
    unsafe {
        asm!("mov cr8, {0}", "mov {1}, cr8", "mov cr8, {2}", in(reg) 5u64, out(reg) value, in(reg) 0u64)
    };
    check_eq!(value, 5);
    Ok(())
}

fn efer_keeps() -> Outcome {
    let efer = rdmsr(EFER);
    check_eq!(efer & 0x500, 0x500, "LME, LMA");
    wrmsr(EFER, efer | 1);
    let set = rdmsr(EFER);
    wrmsr(EFER, efer);
    check_eq!(set, efer | 1, "SCE");
    Ok(())
}

fn efer_refuses() -> Outcome {
    let efer = rdmsr(EFER);
    check_eq!(efer & 1 << 12, 0, "SVME is hidden");
    // Only a processor that says so has FFXSR.
    let ffxsr = match cpuid(0x8000_0001, 0)[3] & 1 << 25 {
        0 => 1 << 14,
        _ => 1 << 12,
    };
    for bad in [1u64 << 12, 1 << 40, 1 << 1, ffxsr] {
        let value = efer | bad;
        let seen =
            fault!("wrmsr", in("ecx") EFER, in("eax") value as u32, in("edx") (value >> 32) as u32);
        check!(seen.is_some_and(|f| f.vector == GP));
    }
    let value = efer & !0x100;
    let seen = fault!("wrmsr", in("ecx") EFER, in("eax") value as u32, in("edx") 0);
    check!(seen.is_some_and(|f| f.vector == GP), "LME off under paging");
    check_eq!(rdmsr(EFER), efer);
    Ok(())
}

/// Registers that a kernel sets once and relies on for ever.
fn msrs_keep() -> Outcome {
    const CANONICAL: u64 = 0xffff_8123_4567_89a0;
    let kept = [
        (0x174u32, 0x10), // SYSENTER
        (0x175, CANONICAL),
        (0x176, CANONICAL),
        (0xc000_0081, 0x0023_0010_0000_0000), // STAR
        (0xc000_0082, CANONICAL),             // LSTAR
        (0xc000_0083, CANONICAL),             // CSTAR
        (0xc000_0084, 0x4_7700),              // SFMASK
        (0xc000_0100, CANONICAL),             // FS
        (0xc000_0101, CANONICAL),             // GS
        (0xc000_0102, CANONICAL),             // kernel GS
    ];
    for (index, value) in kept {
        let before = rdmsr(index);
        wrmsr(index, value);
        // An exit in between must not lose it.
        cpuid(0, 0);
        let after = rdmsr(index);
        wrmsr(index, before);
        check_eq!((index, after), (index, value));
    }
    // SAFETY: the old kernel GS comes back.
    unsafe { asm!("swapgs", "swapgs") };
    Ok(())
}

core::arch::global_asm!(
    ".pushsection .text",
    ".globl syscall_target",
    "syscall_target: mov rax, cr8", // faults unless at CPL 0
    "pushfq",
    "pop rax",
    "sysretq",
    ".popsection",
);

extern "C" {
    static syscall_target: u8;
}

/// SYSCALL from user mode goes where LSTAR says, with the flags that SFMASK leaves.
fn syscall_registers() -> Outcome {
    use crate::{paging, trap, user};
    let code = paging::user_code(&[0x0f, 0x05, 0xcd, trap::USER_END])?; // syscall; int 0x2f
    wrmsr(0xc000_0081, 0x002b_0008_0000_0000);
    wrmsr(0xc000_0082, (&raw const syscall_target) as u64);
    wrmsr(0xc000_0084, 0x400);
    let efer = rdmsr(EFER);
    wrmsr(EFER, efer | 1);
    let frame = user::run(code, paging::user_stack()?, 0x402, 0);
    wrmsr(EFER, efer);
    let frame = frame?;
    check_eq!(
        (frame.vector, frame.rip),
        (u64::from(trap::USER_END), code + 4)
    );
    check_eq!(frame.rcx(), code + 2, "RCX is the way back");
    check_eq!(frame.rax() & 0x400, 0, "SFMASK cleared DF");
    check_eq!(frame.rflags & 0x400, 0x400, "SYSRET brought it back");
    Ok(())
}

fn mtrr_and_pat() -> Outcome {
    check_eq!(rdmsr(0xfe) & 0xff, 8);
    check_eq!(rdmsr(0x2ff) >> 11 & 1, 1, "enabled");
    let pat = rdmsr(0x277);
    wrmsr(0x277, 0x0007_0106_0007_0106);
    let kept = rdmsr(0x277);
    wrmsr(0x277, pat);
    check_eq!(kept, 0x0007_0106_0007_0106);
    Ok(())
}

fn apic_base() -> Outcome {
    let base = rdmsr(0x1b);
    check_eq!(base & 0xf_ffff_f000, 0xfee0_0000);
    check_eq!(base & 0x900, 0x900, "enabled, bootstrap processor");
    Ok(())
}

fn vm_instructions_fault() -> Outcome {
    let undefined = |fault: Option<crate::trap::Fault>| fault.is_some_and(|f| f.vector == 6);
    check!(
        undefined(fault!(".byte 0x0f, 0x01, 0xd8", in("rax") 0)),
        "VMRUN"
    );
    check!(
        undefined(fault!(".byte 0x0f, 0x01, 0xda", in("rax") 0)),
        "VMLOAD"
    );
    check!(
        undefined(fault!(".byte 0x0f, 0x01, 0xdb", in("rax") 0)),
        "VMSAVE"
    );
    check!(undefined(fault!(".byte 0x0f, 0x01, 0xdc")), "STGI");
    check!(undefined(fault!(".byte 0x0f, 0x01, 0xdd")), "CLGI");
    check!(
        undefined(fault!(".byte 0x0f, 0x01, 0xde", in("eax") 0)),
        "SKINIT"
    );
    check!(undefined(
        fault!("monitor", in("rax") 0x20_0000, in("ecx") 0, in("edx") 0)
    ));
    check!(undefined(fault!("mwait", in("eax") 0, in("ecx") 0)));
    let counter = fault!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _);
    check!(counter.is_some_and(|f| f.vector == GP));
    Ok(())
}

fn hypercall_answers() -> Outcome {
    let mut answer = 0x7777u64;
    // SAFETY: an unknown hypercall changes RAX only.
    unsafe {
        match is_intel() {
            true => asm!("vmcall", inout("rax") answer),
            false => asm!("vmmcall", inout("rax") answer),
        }
    }
    check_eq!(answer, u64::MAX);
    Ok(())
}

pub fn enable_avx() -> Outcome {
    if cpuid(1, 0)[2] & (1 << 26 | 1 << 28) != 1 << 26 | 1 << 28 {
        return Err("this CPU has no AVX to test");
    }
    write_cr4(read_cr4() | 1 << 18);
    // SAFETY: AVX is there.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0) };
    Ok(())
}

fn avx_state_lasts() -> Outcome {
    enable_avx()?;
    check!(cpuid(0xd, 0)[1] >= 832, "the area for AVX");
    let pattern: [u64; 4] = [
        0x1111_2222_3333_4444,
        0x5555_6666_7777_8888,
        0x9999_aaaa_bbbb_cccc,
        0xdddd_eeee_ffff_0123,
    ];
    let mut after = [0u64; 4];
    // SAFETY: YMM7 and what CPUID and OUT change are named, but RBX, which is saved.
    unsafe {
        asm!(
            "vmovdqu ymm7, [{from}]",
            "mov {n:e}, 2000",
            "2:",
            "push rbx",
            "xor eax, eax",
            "cpuid",
            "pop rbx",
            "out 0x80, al",
            "dec {n:e}",
            "jnz 2b",
            "vmovdqu [{to}], ymm7",
            from = in(reg) &pattern,
            to = in(reg) &mut after,
            n = out(reg) _,
            out("eax") _, out("ecx") _, out("edx") _, out("ymm7") _,
        )
    };
    check_eq!(after, pattern);
    Ok(())
}

fn xcr0_rules() -> Outcome {
    enable_avx()?;
    // x87 off; AVX without SSE; one AVX-512 component alone; a bit of the future (SDM 1: 13.3).
    for bad in [0u64, 6, 5, 7 | 1 << 5, 7 | 1 << 62] {
        let (low, high) = (bad as u32, (bad >> 32) as u32);
        let seen = fault!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high);
        check!(seen.is_some_and(|f| f.vector == GP));
    }
    check!(fault!("xsetbv", in("ecx") 1, in("eax") 7, in("edx") 0).is_some_and(|f| f.vector == GP));
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    check_eq!((low, high), (7, 0), "what was refused changed nothing");
    Ok(())
}

/// Instructions about caches and the TLB, which a VMM may have to skip.
fn cache_instructions() -> Outcome {
    let place = 0u64;
    // SAFETY: none changes memory.
    unsafe { asm!("wbinvd", "clflush [{0}]", "prefetchnta [{0}]", "invlpg [{0}]", in(reg) &place) };
    check_eq!(place, 0);
    Ok(())
}
