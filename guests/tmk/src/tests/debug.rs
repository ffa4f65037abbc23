// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single-stepping and breakpoints, also over instructions that a VMM executes (APM 2: 13.1).

use super::emulated::scratch;
use crate::apic;
use crate::io::{cpuid, inb};
use crate::{check, check_eq, fault, tests, trap, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

tests!(
    single_step,
    single_step_over_exits,
    single_step_after_mov_ss,
    single_step_over_strings,
    single_step_and_interrupts,
    single_step_over_software_interrupts,
    execution_breakpoint,
    execution_breakpoint_at_an_exit,
    execution_breakpoint_behind_an_exit,
    data_breakpoint,
    debug_registers_keep,
    general_detect,
    general_detect_behind_mov_ss,
    general_detect_is_no_step,
    icebp,
    icebp_under_single_step;
    ours: single_step_over_hlt, faults_push_the_resume_flag
);

/// Bits of DR6 (APM 2: 13.1.1.3).
const BD: u64 = 1 << 13;
const BS: u64 = 1 << 14;
const DR7_OFF: u64 = 0x400;

fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value) };
    value
}

fn begin() {
    trap::reset_counts();
    // SAFETY: clears what was seen.
    unsafe { asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64) };
}

fn set_dr7(value: u64) {
    // SAFETY: the handler comes back from every hit.
    unsafe { asm!("mov dr7, {}", in(reg) value) };
}

/// Runs the instructions with TF set. Traps come after each of them, and after the two that clear TF again.
macro_rules! stepped {
    ($instructions:literal $(, $($operand:tt)*)?) => {{
        begin();
        // SAFETY: the handler comes back.
        unsafe {
            asm!(
                "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                $instructions,
                "pushfq", "and qword ptr [rsp], -257", "popfq",
                $($($operand)*)?
            )
        };
        trap::count(1) - 3
    }};
}

fn single_step() -> Outcome {
    check_eq!(stepped!("nop; nop; nop"), 3);
    check_eq!(dr6() & (BS | 15), BS);
    check_eq!(trap::debug_at(1) - trap::debug_at(0), 1);
    Ok(())
}

fn single_step_over_exits() -> Outcome {
    let cpuids = stepped!("push rbx; xor eax, eax; cpuid; pop rbx",
        out("eax") _, out("ecx") _, out("edx") _);
    check_eq!(cpuids, 4, "CPUID");
    check_eq!(dr6() & BS, BS);
    check_eq!(stepped!("out 0x80, al"), 1, "OUT");
    check_eq!(stepped!("in al, 0x80", out("al") _), 1, "IN");
    check_eq!(
        stepped!("rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _),
        1,
        "RDMSR"
    );
    check_eq!(
        stepped!("wrmsr", in("ecx") 0x174, in("eax") 0x10, in("edx") 0),
        1,
        "WRMSR"
    );
    check_eq!(
        stepped!("mov {t}, cr0; mov cr0, {t}", t = out(reg) _),
        2,
        "CR0"
    );
    check_eq!(
        stepped!("mov {t}, cr8; mov cr8, {t}", t = out(reg) _),
        2,
        "CR8"
    );
    check_eq!(
        stepped!("mov {v:e}, [{a}]; mov [{a}], {v:e}", a = in(reg) 0xfee0_0080u64, v = out(reg) _),
        2,
        "MMIO"
    );
    check_eq!(stepped!("wbinvd"), 1, "WBINVD");
    check_eq!(dr6() & BS, BS);
    Ok(())
}

/// Nothing comes between a load of SS and the next instruction.
fn single_step_after_mov_ss() -> Outcome {
    check_eq!(
        stepped!("mov {t:e}, ss; mov ss, {t:e}; nop", t = out(reg) _),
        2
    );
    let over_cpuid = stepped!("push rbx; mov {t:e}, ss; xor eax, eax; mov ss, {t:e}; cpuid; pop rbx",
        t = out(reg) _, out("eax") _, out("ecx") _, out("edx") _);
    check_eq!(over_cpuid, 5, "CPUID in the shadow");
    Ok(())
}

/// An interrupt in between is not stepped through, and takes no step away.
fn single_step_and_interrupts() -> Outcome {
    apic::on();
    apic::self_ipi(0x66);
    check_eq!(stepped!("sti; nop; nop; cli"), 4);
    // The counts were forgotten as the steps began, and the interrupt came behind that.
    check_eq!(trap::count(0x66), 1);
    Ok(())
}

/// INT clears TF on its way, and IRET sets it again: the next trap comes behind the instruction that follows.
fn single_step_over_software_interrupts() -> Outcome {
    check_eq!(stepped!("int 0xa5; nop; nop"), 2);
    Ok(())
}

/// The trap behind HLT ends it, interrupt or not.
fn single_step_over_hlt() -> Outcome {
    check_eq!(stepped!("cli; hlt; nop"), 3);
    Ok(())
}

/// A repeated instruction traps after each of its rounds.
fn single_step_over_strings() -> Outcome {
    let (from, mut to) = ([1u32, 2, 3], [0u32; 3]);
    let moves = stepped!("rep movsd", inout("rsi") from.as_ptr() => _, inout("rdi") to.as_mut_ptr() => _, inout("ecx") 3 => _);
    // QEMU's interpreter takes the look at a count of zero for a round of its own.
    check_eq!(to, from);
    check!((3..=4).contains(&moves));
    let outs = stepped!("rep outsb", inout("rsi") from.as_ptr() => _, in("dx") 0x80u16, inout("ecx") 3 => _);
    check!((3..=4).contains(&outs), "OUTS");
    let none = stepped!("rep outsb", inout("rsi") from.as_ptr() => _, in("dx") 0x80u16, inout("ecx") 0 => _);
    check_eq!(none, 1, "no round is one instruction");
    Ok(())
}

/// Runs CPUID three times, then NOP, with breakpoints on some of them.
macro_rules! with_breakpoints {
    ($dr7:expr) => {{
        begin();
        let (first, second): (u64, u64);
        // SAFETY: the handler comes back, with the resume flag set.
        unsafe {
            asm!(
                "lea {first}, [rip + 44f]", "lea {second}, [rip + 45f]",
                "mov dr0, {first}", "mov dr1, {second}", "mov dr7, {dr7}",
                "mov {n:e}, 3",
                "43:", "xor eax, eax",
                "push rbx",
                "44:", "cpuid",
                "45:", "nop",
                "pop rbx",
                "dec {n:e}", "jnz 43b",
                "mov {dr7:e}, 0x400", "mov dr7, {dr7}",
                first = out(reg) first, second = out(reg) second, n = out(reg) _,
                dr7 = inout(reg) $dr7 => _, out("eax") _, out("ecx") _, out("edx") _,
            )
        };
        (first, second)
    }};
}

fn execution_breakpoint() -> Outcome {
    begin();
    let at: u64;
    // SAFETY: the handler comes back, with the resume flag set.
    unsafe {
        asm!("lea {at}, [rip + 44f]", "mov dr0, {at}", "mov dr7, {on}", "44: nop", "mov dr7, {off}",
            at = out(reg) at, on = in(reg) DR7_OFF | 2, off = in(reg) DR7_OFF)
    };
    check_eq!((trap::count(1), trap::debug_at(0)), (1, at));
    check_eq!(dr6() & (BS | 15), 1);
    Ok(())
}

/// A breakpoint on an instruction that exits comes before the exit, once a round.
fn execution_breakpoint_at_an_exit() -> Outcome {
    let (at, _) = with_breakpoints!(DR7_OFF | 2);
    check_eq!(
        (trap::count(1), trap::debug_at(0), trap::debug_at(2)),
        (3, at, at)
    );
    check_eq!(dr6() & 15, 1);
    Ok(())
}

/// The resume flag covers one instruction, also when a VMM executes it: the breakpoint behind it hits.
fn execution_breakpoint_behind_an_exit() -> Outcome {
    let (_, behind) = with_breakpoints!(DR7_OFF | 8);
    check_eq!((trap::count(1), trap::debug_at(0)), (3, behind));
    let (at, behind) = with_breakpoints!(DR7_OFF | 8 | 2);
    check_eq!(trap::count(1), 6);
    check_eq!(
        (trap::debug_at(0), trap::debug_at(1), trap::debug_at(5)),
        (at, behind, behind)
    );
    Ok(())
}

fn data_breakpoint() -> Outcome {
    static TARGET: AtomicU32 = AtomicU32::new(0);
    begin();
    let at = TARGET.as_ptr() as u64;
    // SAFETY: a breakpoint on writes of 4 bytes to our own variable.
    unsafe { asm!("mov dr0, {}", in(reg) at) };
    set_dr7(0x000d_0402);
    // Exits in between must not lose it.
    let _ = (cpuid(0, 0), inb(0x80));
    let before = trap::count(1);
    TARGET.store(7, Ordering::Relaxed);
    let hits = trap::count(1);
    set_dr7(DR7_OFF);
    check_eq!((before, hits), (0, 1));
    check_eq!(dr6() & 15, 1, "DR6 says which");
    Ok(())
}

fn debug_registers_keep() -> Outcome {
    let mut seen = [0u64; 4];
    // SAFETY: none is enabled.
    unsafe {
        asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}",
            in(reg) 0x1111u64, in(reg) 0x2222_0000_0000u64, in(reg) 0x3333u64, in(reg) 0x4444u64);
    }
    let _ = (cpuid(0, 0), inb(0x80));
    // SAFETY: reads.
    unsafe {
        asm!("mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
            out(reg) seen[0], out(reg) seen[1], out(reg) seen[2], out(reg) seen[3]);
    }
    check_eq!(seen, [0x1111, 0x2222_0000_0000, 0x3333, 0x4444]);
    let (dr4, dr5): (u64, u64);
    set_dr7(DR7_OFF);
    // SAFETY: without CR4.DE these are other names of DR6 and DR7.
    unsafe { asm!("mov {}, dr4", "mov {}, dr5", out(reg) dr4, out(reg) dr5) };
    check_eq!((dr4, dr5), (dr6(), DR7_OFF));
    Ok(())
}

/// ICEBP (0xf1) is a trap, and not masked by DR7.
fn icebp() -> Outcome {
    begin();
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe { asm!(".byte 0xf1", "22:", "lea {}, [rip + 22b]", out(reg) behind) };
    check_eq!((trap::count(1), trap::debug_at(0)), (1, behind));
    Ok(())
}

/// With DR7.GD set the next access to a debug register traps before it happens.
fn general_detect() -> Outcome {
    begin();
    set_dr7(DR7_OFF | 1 << 13);
    let value: u64;
    // SAFETY: the handler comes back; the exception has cleared GD.
    unsafe { asm!("mov {}, dr7", out(reg) value) };
    check_eq!((trap::count(1), dr6() & BD, value), (1, BD, DR7_OFF));
    check!(trap::last().vector == 1);
    Ok(())
}

/// In a program that is stepped through, accesses a debug register under general detect, behind these instructions. The steps
/// over the access itself and the three behind it follow. Gives the access's address.
macro_rules! detect_under_single_step {
    ($before:literal) => {{
        begin();
        let at: u64;
        // SAFETY: the handler comes back; the exception has cleared GD. SS keeps its selector.
        unsafe {
            asm!(
                "lea {at}, [rip + 22f]", "mov {t:e}, ss",
                "pushfq", "or qword ptr [rsp], 0x100", "mov dr7, {detect}", "popfq",
                $before,
                "22: mov {t}, dr0",
                "pushfq", "and qword ptr [rsp], -257", "popfq",
                at = out(reg) at, t = out(reg) _, detect = in(reg) DR7_OFF | 1 << 13,
            )
        };
        at
    }};
}

/// The shadow of MOV SS ends with a fault in it: no step comes before the handler.
fn general_detect_behind_mov_ss() -> Outcome {
    let at = detect_under_single_step!("mov ss, {t:e}");
    check_eq!((trap::debug_at(0), trap::debug_status(0) & BD), (at, BD));
    check_eq!((trap::count(1), trap::debug_status(1) & BS), (5, BS));
    Ok(())
}

/// DR6 says nothing of a step where the traced instruction faulted.
fn general_detect_is_no_step() -> Outcome {
    let at = detect_under_single_step!("");
    check_eq!(
        (trap::debug_at(0), trap::debug_status(0) & (BD | BS)),
        (at, BD)
    );
    let at = detect_under_single_step!("mov ss, {t:e}");
    check_eq!(
        (trap::debug_at(0), trap::debug_status(0) & (BD | BS)),
        (at, BD)
    );
    Ok(())
}

/// In a program that is stepped through INT1 has its own #DB alone, which says nothing. The next step is behind it.
fn icebp_under_single_step() -> Outcome {
    check_eq!(stepped!(".byte 0xf1; nop"), 2);
    check_eq!(trap::debug_status(0) & (BS | 15), 0);
    check_eq!(trap::debug_status(1) & (BS | 15), BS);
    Ok(())
}

/// RFLAGS.RF is in the frame of every fault, whoever raises it, and in that of no trap (SDM 3B: 18.3.1.1).
fn faults_push_the_resume_flag() -> Outcome {
    const RF: u64 = 1 << 16;
    const RESERVED: u64 = 1 << 31;
    let device = scratch(0xffe8);
    let faults = [
        ("UD2", 6, fault!("ud2")),
        (
            "CR4",
            13,
            fault!("mov cr4, {value}", value = in(reg) RESERVED),
        ),
        (
            "RDMSR",
            13,
            fault!("rdmsr", in("ecx") 0x4321, out("eax") _, out("edx") _),
        ),
        (
            "a selector on a device",
            13,
            fault!("mov fs, [{at}]", at = in(reg) device),
        ),
    ];
    scratch(0);
    for (what, vector, seen) in faults {
        let seen = seen.ok_or("no fault")?;
        check_eq!((what, seen.vector, seen.rflags & RF), (what, vector, RF));
    }
    // SAFETY: the handler comes back.
    unsafe { asm!("int3") };
    check_eq!((trap::last().vector, trap::last().rflags & RF), (3, 0));
    Ok(())
}
