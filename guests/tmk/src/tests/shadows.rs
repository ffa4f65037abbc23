// SPDX-License-Identifier: MIT OR Apache-2.0
//! The moments between instructions: when interrupts and NMIs come, and when they wait (APM 2: 8.2.3, 8.3; SDM 3A: 6.7, 6.8).

use super::interrupts::{pic_on, pit_once, timer_off};
use super::ioapic::set_pin;
use crate::apic::{self, let_in, LVT_TIMER, MASKED, TIMER_DIVIDE, TIMER_INITIAL, TPR};
use crate::{check_eq, paging, tests, trap, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

tests!(
    halt_with_one_waiting,
    halt_without_interrupts_and_nmi,
    shadow_of_sti,
    shadow_over_exits,
    shadow_over_a_fault,
    second_sti_has_no_shadow,
    sti_and_cli_let_nothing_in,
    nothing_behind_mov_ss,
    popf_and_iret_have_no_shadow,
    cli_is_at_once,
    nmi_to_self,
    nmi_comes_before_interrupts,
    iret_of_another_handler_lets_nmis_in,
    nmi_in_shadows
);

/// HLT does not wait when an interrupt is there already, and comes back behind itself.
fn halt_with_one_waiting() -> Outcome {
    apic::on();
    for n in 1..100 {
        apic::self_ipi(0x64);
        let behind: u64;
        // SAFETY: the interrupt waits.
        unsafe { asm!("sti", "hlt", "22: cli", "lea {}, [rip + 22b]", out(reg) behind) };
        check_eq!((trap::count(0x64), trap::last_interrupt()[1]), (n, behind));
    }
    Ok(())
}

fn halt_without_interrupts_and_nmi() -> Outcome {
    apic::on();
    // A timer interrupt, which must not wake it, and long behind it an NMI, which must.
    pic_on(0x20);
    apic::write(LVT_TIMER, 0x65);
    apic::write(TIMER_DIVIDE, 0b1011);
    set_pin(2, 4 << 8);
    pit_once(60_000); // 50 ms
    apic::write(TIMER_INITIAL, 100_000);
    // SAFETY: the NMI comes.
    unsafe { asm!("cli", "hlt") };
    let (nmis, timers) = (trap::count(2), trap::count(0x65));
    trap::on_interrupt(|_| apic::eoi());
    let_in();
    set_pin(2, MASKED);
    timer_off();
    check_eq!((nmis, timers), (1, 0));
    check_eq!(trap::count(0x65), 1, "it waited");
    Ok(())
}

/// An interrupt that waits comes after the instruction that follows STI, not before.
fn shadow_of_sti() -> Outcome {
    apic::on();
    apic::self_ipi(0x63);
    let seen: u64;
    let count = trap::count_address(0x63);
    // SAFETY: reads the count in the shadow.
    unsafe { asm!("sti", "mov {:e}, [{}]", "nop", "cli", lateout(reg) seen, in(reg) count) };
    check_eq!(seen, 0, "nothing in the shadow");
    check_eq!(trap::count(0x63), 1);
    Ok(())
}

/// Runs one instruction in STI's shadow, with an interrupt waiting: it must come right behind that instruction.
macro_rules! in_shadow {
    ($name:literal, $instruction:literal $(, $($operand:tt)*)?) => {{
        apic::self_ipi(0x66);
        let behind: u64;
        // SAFETY: the handler comes back.
        unsafe {
            asm!("push rbx", "sti", $instruction, "22: nop", "cli", "pop rbx", "lea {behind}, [rip + 22b]",
                behind = out(reg) behind, $($($operand)*)?)
        };
        check_eq!(trap::last_interrupt()[1], behind, $name);
    }};
}

fn shadow_over_exits() -> Outcome {
    apic::on();
    in_shadow!("NOP", "nop");
    in_shadow!("CPUID", "cpuid", inout("eax") 0 => _, out("ecx") _, out("edx") _);
    in_shadow!("OUT", "out 0x80, al");
    in_shadow!("IN", "in al, 0x80", out("al") _);
    in_shadow!("RDMSR", "rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _);
    in_shadow!("MMIO read", "mov {v:e}, [{a}]", a = in(reg) apic::XAPIC + TPR, v = out(reg) _);
    in_shadow!("MMIO write", "mov dword ptr [{a}], 0", a = in(reg) apic::XAPIC + TPR);
    in_shadow!("CR0", "mov cr0, {v}", v = in(reg) 0x8001_0033u64);
    in_shadow!("WBINVD", "wbinvd");
    Ok(())
}

fn nmi_to_self() -> Outcome {
    apic::on();
    for n in 1..20 {
        apic::self_nmi();
        // SAFETY: an instruction boundary.
        unsafe { asm!("nop", "nop") };
        check_eq!(trap::count(2), n);
    }
    Ok(())
}

/// In the shadow of STI an access to RAM that the VMM has not given yet: the interrupt comes behind it all the same.
fn shadow_over_a_fault() -> Outcome {
    apic::on();
    for _ in 0..4 {
        let at = paging::untouched_page()?;
        in_shadow!("RAM never touched", "mov [{at}], al", at = in(reg) at);
    }
    Ok(())
}

/// Of several in a row the first alone casts a shadow.
fn second_sti_has_no_shadow() -> Outcome {
    apic::on();
    apic::self_ipi(0x66);
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe { asm!("sti", "sti", "22: nop", "cli", "lea {}, [rip + 22b]", out(reg) behind) };
    check_eq!(trap::last_interrupt()[1], behind);
    Ok(())
}

fn sti_and_cli_let_nothing_in() -> Outcome {
    apic::on();
    apic::self_ipi(0x66);
    // SAFETY: nothing comes.
    unsafe { asm!("sti", "cli", "nop", "sti", "cli") };
    let came = trap::count(0x66);
    let_in();
    check_eq!((came, trap::count(0x66)), (0, 1));
    Ok(())
}

/// Where no interrupt may come, and how many did.
static FORBIDDEN: AtomicU64 = AtomicU64::new(0);
static THERE: AtomicU32 = AtomicU32::new(0);

/// Interrupts at any moment, but not between a load of SS and the next instruction, be it one that exits.
fn nothing_behind_mov_ss() -> Outcome {
    apic::on();
    THERE.store(0, Relaxed);
    trap::on_interrupt(|_| {
        let there = trap::last_interrupt()[1] == FORBIDDEN.load(Relaxed);
        THERE.fetch_add(there.into(), Relaxed);
        apic::eoi();
    });
    apic::write(TIMER_DIVIDE, 0b1011);
    apic::write(LVT_TIMER, 0x66);
    for n in 1..200 {
        apic::write(TIMER_INITIAL, 500_000 + 1001 * n);
        while trap::count(0x66) < n {
            // SAFETY: the handler comes back.
            unsafe {
                asm!("lea {t}, [rip + 22f]", "mov [{f}], {t}", "mov {t:e}, ss", "mov {n:e}, 20", "sti", "nop",
                    "21: mov ss, {t:e}", "22: out 0x80, al", "dec {n:e}", "jnz 21b", "cli",
                    t = out(reg) _, n = out(reg) _, f = in(reg) FORBIDDEN.as_ptr())
            };
        }
    }
    timer_off();
    check_eq!(THERE.load(Relaxed), 0);
    Ok(())
}

fn popf_and_iret_have_no_shadow() -> Outcome {
    apic::on();
    apic::self_ipi(0x66);
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x200", "popfq", "22: nop", "cli", "lea {}, [rip + 22b]", out(reg) behind)
    };
    check_eq!(trap::last_interrupt()[1], behind, "POPF");
    apic::self_ipi(0x66);
    let behind: u64;
    // SAFETY: as above; the frame leads to the label.
    unsafe {
        asm!("mov {s}, rsp", "mov {t:e}, ss", "push {t}", "push {s}", "pushfq", "or qword ptr [rsp], 0x200", "mov {t:e}, cs",
            "push {t}", "lea {t}, [rip + 22f]", "push {t}", "iretq", "22: nop", "cli", t = out(reg) behind, s = out(reg) _)
    };
    check_eq!(trap::last_interrupt()[1], behind, "IRET");
    Ok(())
}

/// One that is sent under CLI does not come before STI, whatever exits in between.
fn cli_is_at_once() -> Outcome {
    apic::on();
    apic::interrupts(true);
    for _ in 0..100 {
        // SAFETY: the handler comes back.
        unsafe {
            asm!("cli", "mov dword ptr [{a}], 0x40066", "out 0x80, al", "mov dword ptr [{a} - 0x280], 0", "sti", "nop", "nop",
                a = in(reg) apic::XAPIC + apic::ICR_LOW)
        };
    }
    apic::interrupts(false);
    check_eq!(trap::count(0x66), 100);
    Ok(())
}

/// Bits and counts that an NMI handler notes.
static NOTED: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

/// An NMI and an interrupt wait for the end of an NMI's handler: the NMI comes first.
fn nmi_comes_before_interrupts() -> Outcome {
    apic::on();
    trap::on_nmi(|| {
        if trap::count(2) == 1 {
            apic::self_ipi(0x66);
            apic::self_nmi();
        }
    });
    trap::on_interrupt(|_| {
        NOTED[0].store(trap::count(2), Relaxed);
        apic::eoi();
    });
    apic::interrupts(true);
    apic::self_nmi();
    apic::interrupts(false);
    check_eq!((trap::count(2), trap::count(0x66)), (2, 1));
    check_eq!(NOTED[0].load(Relaxed), 2);
    Ok(())
}

/// Any IRET lets NMIs in, also that of an exception within an NMI's handler (SDM 3A: 6.7.1).
fn iret_of_another_handler_lets_nmis_in() -> Outcome {
    apic::on();
    trap::on_nmi(|| {
        if trap::count(2) > 1 {
            return;
        }
        // Neither may come on the stack that is in use here.
        trap::use_stack(3, 2);
        trap::use_stack(2, 3);
        apic::self_nmi();
        NOTED[0].store(trap::count(2), Relaxed);
        // SAFETY: the handler comes back.
        unsafe { asm!("int3") };
        NOTED[1].store(trap::count(2), Relaxed);
    });
    trap::set_stack(2, paging::frame()? + paging::PAGE);
    trap::set_stack(3, paging::frame()? + paging::PAGE);
    apic::self_nmi();
    check_eq!(NOTED.each_ref().map(|noted| noted.load(Relaxed)), [1, 2]);
    Ok(())
}

/// An NMI that is sent in a shadow comes right behind the instruction that sent it; one that waits while RAM is given to
/// the instruction in the shadow of MOV SS comes behind that.
fn nmi_in_shadows() -> Outcome {
    apic::on();
    apic::send(apic::id(), 0x66);
    let_in();
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe {
        asm!("mov {t:e}, ss", "mov ss, {t:e}", "mov dword ptr [{a}], 0x4400", "22: nop", "lea {t}, [rip + 22b]",
            t = out(reg) behind, a = in(reg) apic::XAPIC + apic::ICR_LOW)
    };
    check_eq!((trap::count(2), trap::last().rip), (1, behind), "MOV SS");
    let behind: u64;
    // SAFETY: as above.
    unsafe {
        asm!("sti", "mov dword ptr [{a}], 0x4400", "22: nop", "cli", "lea {t}, [rip + 22b]",
            t = out(reg) behind, a = in(reg) apic::XAPIC + apic::ICR_LOW)
    };
    check_eq!((trap::count(2), trap::last().rip), (2, behind), "STI");
    Ok(())
}
