// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU says of itself, and the faults it gives.

use crate::io::{cpuid, inb, rdmsr, wrmsr};
use crate::{check, fault, multiboot, println, tests, trap, Outcome};

tests!(
    multiboot_info,
    cpuid_signature,
    cpuid_hides,
    unknown_msr_faults,
    efer_rules,
    divide_error,
    invalid_opcode,
    general_protection,
    breakpoint,
    page_faults,
    vm_instructions_fault,
    hypercall_answers,
    avx_state_lasts,
    xcr0_rules,
    single_step,
    single_step_over_cpuid,
    data_breakpoint,
    mtrr_and_pat,
    apic_base
);

fn multiboot_info() -> Outcome {
    let info = multiboot::info();
    check!(info.flags & 1 != 0 && info.mem_upper_kib > 1024);
    if let Some(wanted) = multiboot::argument("module") {
        let module = info.modules().first().ok_or("no module")?;
        check!(module.cmdline().contains(wanted));
        println!(
            "module {} bytes: {}",
            module.data().len(),
            core::str::from_utf8(module.data()).unwrap_or("?").trim()
        );
    }
    Ok(())
}

fn cpuid_signature() -> Outcome {
    check!(cpuid(1, 0)[2] >> 31 == 1, "hypervisor bit");
    let [max, b, c, d] = cpuid(0x4000_0000, 0);
    check!(max >= 0x4000_0000);
    check!([b.to_le_bytes(), c.to_le_bytes(), d.to_le_bytes()].concat_eq(b"V3VEEV3VEE\0\0"));
    Ok(())
}

trait ConcatEq {
    fn concat_eq(&self, other: &[u8]) -> bool;
}
impl ConcatEq for [[u8; 4]; 3] {
    fn concat_eq(&self, other: &[u8]) -> bool {
        self.iter().flatten().eq(other.iter())
    }
}

fn cpuid_hides() -> Outcome {
    check!(cpuid(0x8000_0001, 0)[2] & 4 == 0, "SVM");
    check!(cpuid(1, 0)[2] & (1 << 5 | 1 << 3) == 0, "VMX, MONITOR");
    check!(cpuid(0x8000_000a, 0) == [0; 4]);
    let all = multiboot::number("cpus").unwrap_or(1);
    check!(u64::from(cpuid(0xb, 1)[1]) == all, "cores");
    Ok(())
}

fn unknown_msr_faults() -> Outcome {
    for index in [0x1234_5678u32, 0x4000_0000, 0xc001_ffff, 0x8000_0000] {
        let read = fault!("rdmsr", in("ecx") index, out("eax") _, out("edx") _)
            .ok_or("read went through")?;
        check!(read.vector == 13 && read.error == 0);
        let write = fault!("wrmsr", in("ecx") index, in("eax") 0, in("edx") 0)
            .ok_or("write went through")?;
        check!(write.vector == 13 && write.error == 0);
    }
    Ok(())
}

const EFER: u32 = 0xc000_0080;

fn efer_rules() -> Outcome {
    let efer = rdmsr(EFER);
    check!(efer & 1 << 12 == 0, "SVME is hidden");
    check!(efer & 0x500 == 0x500, "LME, LMA");
    for bad in [1u64 << 12, 1 << 40, 1 << 1] {
        let value = efer | bad;
        let seen =
            fault!("wrmsr", in("ecx") EFER, in("eax") value as u32, in("edx") (value >> 32) as u32);
        check!(seen.is_some_and(|f| f.vector == 13));
    }
    let value = efer & !0x100;
    let seen = fault!("wrmsr", in("ecx") EFER, in("eax") value as u32, in("edx") 0);
    check!(seen.is_some_and(|f| f.vector == 13), "LME off under paging");
    wrmsr(EFER, efer | 1);
    check!(rdmsr(EFER) == efer | 1, "SCE");
    Ok(())
}

fn divide_error() -> Outcome {
    let seen = fault!("xor edx, edx; xor eax, eax; div eax", out("eax") _, out("edx") _)
        .ok_or("no fault")?;
    check!(seen.vector == 0);
    Ok(())
}

fn invalid_opcode() -> Outcome {
    check!(fault!("ud2").is_some_and(|f| f.vector == 6));
    Ok(())
}

fn general_protection() -> Outcome {
    let seen = fault!("mov ax, 0x1000; mov ds, ax", out("eax") _).ok_or("no fault")?;
    check!(seen.vector == 13 && seen.error == 0x1000, "the selector");
    let seen = fault!("mov rax, 0x800000000000; mov rax, [rax]", out("rax") _).ok_or("no fault")?;
    check!(seen.vector == 13 && seen.error == 0, "not canonical");
    Ok(())
}

fn breakpoint() -> Outcome {
    trap::reset_counts();
    // SAFETY: the handler comes back.
    unsafe { core::arch::asm!("int3") };
    check!(trap::count(3) == 1);
    Ok(())
}

fn page_faults() -> Outcome {
    const UNMAPPED: u64 = 0x1_2345_6000;
    let seen = fault!("mov al, [{at}]", at = in(reg) UNMAPPED, out("al") _).ok_or("no fault")?;
    check!(seen.vector == 14 && seen.error == 0 && seen.cr2 == UNMAPPED);
    let seen = fault!("mov byte ptr [{at}], 1", at = in(reg) UNMAPPED).ok_or("no fault")?;
    check!(seen.vector == 14 && seen.error == 2 && seen.cr2 == UNMAPPED);
    Ok(())
}

fn vm_instructions_fault() -> Outcome {
    check!(
        fault!(".byte 0x0f, 0x01, 0xd8", in("rax") 0).is_some_and(|f| f.vector == 6),
        "VMRUN"
    );
    check!(
        fault!(".byte 0x0f, 0x01, 0xdd").is_some_and(|f| f.vector == 6),
        "CLGI"
    );
    check!(
        fault!("monitor", in("rax") 0x200000, in("ecx") 0, in("edx") 0)
            .is_some_and(|f| f.vector == 6)
    );
    check!(fault!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _).is_some_and(|f| f.vector == 13));
    Ok(())
}

fn hypercall_answers() -> Outcome {
    let answer: u64;
    // SAFETY: an unknown hypercall changes RAX only.
    unsafe { core::arch::asm!("vmmcall", inout("rax") 0x7777u64 => answer) };
    check!(answer == u64::MAX);
    Ok(())
}

fn has_avx() -> bool {
    cpuid(1, 0)[2] & (1 << 26 | 1 << 28) == 1 << 26 | 1 << 28
}

fn enable_avx() {
    // SAFETY: AVX is there.
    unsafe {
        core::arch::asm!("mov {t}, cr4", "or {t}, 0x40000", "mov cr4, {t}", t = out(reg) _);
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
    }
}

fn avx_state_lasts() -> Outcome {
    if !has_avx() {
        return Err("this CPU has no AVX to test");
    }
    enable_avx();
    check!(cpuid(1, 0)[2] & 1 << 27 != 0, "OSXSAVE follows CR4");
    check!(cpuid(0xd, 0)[1] >= 832, "the area for AVX");
    let pattern: [u64; 4] = [
        0x1111_2222_3333_4444,
        0x5555_6666_7777_8888,
        0x9999_aaaa_bbbb_cccc,
        0xdddd_eeee_ffff_0123,
    ];
    let mut after = [0u64; 4];
    // SAFETY: YMM7 and what CPUID and OUT change are named.
    unsafe {
        core::arch::asm!(
            "vmovdqu ymm7, [{from}]",
            "mov {n:e}, 2000",
            "2:",
            "mov {rbx}, rbx",
            "xor eax, eax",
            "cpuid",
            "mov rbx, {rbx}",
            "out 0x80, al",
            "dec {n:e}",
            "jnz 2b",
            "vmovdqu [{to}], ymm7",
            from = in(reg) &pattern,
            to = in(reg) &mut after,
            n = out(reg) _,
            rbx = out(reg) _,
            out("eax") _, out("ecx") _, out("edx") _, out("ymm7") _,
        )
    };
    check!(after == pattern);
    Ok(())
}

fn xcr0_rules() -> Outcome {
    if !has_avx() {
        return Err("this CPU has no XSAVE to test");
    }
    enable_avx();
    for bad in [0u32, 6, 5, 1 << 9 | 1 << 30] {
        let seen = fault!("xsetbv", in("ecx") 0, in("eax") bad, in("edx") 0);
        check!(seen.is_some_and(|f| f.vector == 13));
    }
    check!(fault!("xsetbv", in("ecx") 1, in("eax") 7, in("edx") 0).is_some_and(|f| f.vector == 13));
    Ok(())
}

/// DR6's bit for single-step.
const BS: u64 = 1 << 14;

fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, dr6", out(reg) value) };
    value
}

fn clear_dr6() {
    // SAFETY: clears what was seen.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64) };
}

fn single_step() -> Outcome {
    trap::reset_counts();
    clear_dr6();
    // SAFETY: the handler comes back, and the flag is cleared again.
    unsafe {
        core::arch::asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "nop",
            "pushfq",
            "and qword ptr [rsp], -257",
            "popfq"
        )
    };
    check!(trap::count(1) >= 4);
    check!(dr6() & BS != 0);
    Ok(())
}

fn single_step_over_cpuid() -> Outcome {
    trap::reset_counts();
    clear_dr6();
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "mov {rbx}, rbx", "xor eax, eax", "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "cpuid", "nop", "pushfq", "and qword ptr [rsp], -257", "popfq", "mov rbx, {rbx}",
            rbx = out(reg) _, out("eax") _, out("ecx") _, out("edx") _,
        )
    };
    check!(trap::count(1) == 5, "one trap an instruction");
    check!(dr6() & BS != 0);
    Ok(())
}

fn data_breakpoint() -> Outcome {
    static TARGET: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
    trap::reset_counts();
    clear_dr6();
    let at = TARGET.as_ptr() as u64;
    // SAFETY: a write breakpoint of 4 bytes on our own variable, with exits in between.
    unsafe {
        core::arch::asm!("mov dr0, {}", in(reg) at);
        core::arch::asm!("mov dr7, {}", in(reg) 0x000d_0402u64 | 1);
    }
    let _ = cpuid(0, 0);
    let _ = inb(0x80);
    TARGET.store(7, core::sync::atomic::Ordering::Relaxed);
    let hits = trap::count(1);
    // SAFETY: off again.
    unsafe { core::arch::asm!("mov dr7, {}", in(reg) 0x400u64) };
    check!(hits == 1);
    check!(dr6() & 1 != 0, "DR6 says which");
    let dr0: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, dr0", out(reg) dr0) };
    check!(dr0 == at);
    Ok(())
}

fn mtrr_and_pat() -> Outcome {
    check!(rdmsr(0xfe) & 0xff == 8);
    check!(rdmsr(0x2ff) & 0xcff == 0xc06, "enabled, write-back");
    let pat = rdmsr(0x277);
    wrmsr(0x277, 0x0007_0106_0007_0106);
    check!(rdmsr(0x277) == 0x0007_0106_0007_0106);
    wrmsr(0x277, pat);
    check!(
        fault!("wrmsr", in("ecx") 0x277, in("eax") 2, in("edx") 0).is_some_and(|f| f.vector == 13),
        "type 2"
    );
    Ok(())
}

fn apic_base() -> Outcome {
    let base = rdmsr(0x1b);
    check!(base & 0xf_ffff_f000 == 0xfee0_0000);
    check!(base & 0x900 == 0x900, "enabled, bootstrap processor");
    Ok(())
}
