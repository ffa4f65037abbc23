// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC: which interrupt comes when, its registers, and the ways between its modes (SDM 3A: chapter 10).

use crate::apic::{
    self, has, let_in, msr, Mode, ERROR, IRR, ISR, LDR, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_TIMER,
    MASKED, PPR, SPURIOUS, TPR,
};
use crate::io::{cpuid, rdmsr};
use crate::{check, check_eq, fault, tests, trap, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

tests!(
    priorities,
    all_classes_in_order,
    higher_interrupts_lower,
    one_waits_while_one_is_served,
    requests_and_services_show,
    end_without_service,
    task_priority_holds_back,
    task_priority_lets_in_by_steps,
    cr8_holds_back,
    cr8_has_another_name,
    cr8_and_tpr_are_one,
    self_ipi,
    spurious_vector_is_not_in_service,
    nmi_while_disabled,
    x2apic_mode;
    ours: cr8_has_four_bits, lvt_is_masked_while_disabled, illegal_register_is_an_error, x2apic_refuses, mode_changes, x2apic_register_rules, illegal_vector_is_an_error, error_interrupt,
    disabled_takes_no_vectors, registers_take_any_value, x2apic_registers_take_any_value
);

fn priorities() -> Outcome {
    apic::on();
    trap::record_order();
    [0x71, 0x91, 0x81].into_iter().for_each(apic::self_ipi);
    let_in();
    check_eq!(trap::order(), [0x91, 0x81, 0x71], "the highest first");
    Ok(())
}

/// Within a handler that lets interrupts in, only a higher class comes.
fn higher_interrupts_lower() -> Outcome {
    apic::on();
    trap::on_interrupt(|vector| {
        if vector == 0x81 {
            apic::self_ipi(0x75);
            apic::self_ipi(0x85);
            // The class is a vector's upper half: 0x85 is no higher than 0x81.
            let_in();
            SEEN[0].store(trap::count(0x75) + trap::count(0x85), Relaxed);
            apic::self_ipi(0x95);
            // The stack of 0x95 is another one.
            let_in();
            SEEN[1].store(trap::count(0x95), Relaxed);
        }
        apic::eoi();
    });
    static SEEN: [AtomicU32; 2] = [const { AtomicU32::new(9) }; 2];
    trap::set_stack(2, crate::paging::frame()? + 4096);
    trap::use_stack(0x95, 2);
    apic::self_ipi(0x81);
    let_in();
    let_in();
    check_eq!([SEEN[0].load(Relaxed), SEEN[1].load(Relaxed)], [0, 1]);
    check_eq!(
        (trap::count(0x75), trap::count(0x85), trap::count(0x95)),
        (1, 1, 1)
    );
    Ok(())
}

fn task_priority_holds_back() -> Outcome {
    apic::on();
    apic::write(TPR, 0x90);
    apic::self_ipi(0x8f);
    let_in();
    let (held, processor_priority) = (trap::count(0x8f), apic::read(0xa0));
    apic::write(TPR, 0x80);
    let_in();
    let same_class = trap::count(0x8f);
    apic::write(TPR, 0x70);
    let_in();
    let let_through = trap::count(0x8f);
    apic::write(TPR, 0);
    check_eq!((held, same_class, let_through), (0, 0, 1));
    check_eq!(processor_priority, 0x90);
    Ok(())
}

fn cr8_holds_back() -> Outcome {
    apic::on();
    let held;
    let tpr;
    // SAFETY: raises and lowers the task priority.
    unsafe {
        asm!("mov cr8, {}", in(reg) 9u64);
        tpr = apic::read(TPR);
        apic::self_ipi(0x8f);
        let_in();
        held = trap::count(0x8f);
        asm!("sti", "mov cr8, {}", "nop", "nop", "cli", in(reg) 0u64);
    }
    check_eq!(tpr, 0x90, "CR8 is the TPR");
    check_eq!((held, trap::count(0x8f)), (0, 1));
    Ok(())
}

/// Other bits are #GP (SDM 3A: 10.8.6.1), also while an interrupt waits for a lower priority, when a VMM may want to see the write.
/// QEMU alone takes them.
fn cr8_has_four_bits() -> Outcome {
    apic::on();
    // SAFETY: raises the task priority.
    unsafe { asm!("mov cr8, {}", in(reg) 9u64) };
    apic::self_ipi(0x8f);
    let_in();
    for value in [0x10u64, 0x19, 1 << 32, 1 << 63] {
        let seen = fault!("mov cr8, rax", in("rax") value);
        check!(seen.is_some_and(|f| (f.vector, f.error) == (13, 0)));
    }
    let kept: u64;
    // SAFETY: reads the task priority and lowers it.
    unsafe {
        asm!("mov {}, cr8", out(reg) kept);
        asm!("sti", "mov cr8, {}", "nop", "nop", "cli", in(reg) 0u64);
    }
    check_eq!((kept, trap::count(0x8f)), (9, 1));
    Ok(())
}

/// LOCK and CR0 are CR8 where the processor says so, and nothing where not: also while an interrupt waits for it, when a VMM may
/// want to see the write.
fn cr8_has_another_name() -> Outcome {
    if cpuid(0x8000_0001, 0)[2] & 1 << 4 == 0 {
        let seen = fault!(".byte 0xf0, 0x0f, 0x22, 0xc0", in("rax") 0u64);
        check!(seen.is_some_and(|f| f.vector == 6), "no such instruction");
        return Ok(());
    }
    apic::on();
    let (held, read): (u32, u64);
    // SAFETY: raises and lowers the task priority. `lock mov cr0, rax` and `lock mov rax, cr0`.
    unsafe {
        asm!(".byte 0xf0, 0x0f, 0x22, 0xc0", in("rax") 9u64);
        apic::self_ipi(0x8f);
        let_in();
        held = trap::count(0x8f);
        asm!(".byte 0xf0, 0x0f, 0x20, 0xc0", out("rax") read);
        asm!("sti", ".byte 0xf0, 0x0f, 0x22, 0xc0", "nop", "nop", "cli", in("rax") 0u64);
    }
    check_eq!((read, held, trap::count(0x8f)), (9, 0, 1));
    Ok(())
}

fn self_ipi() -> Outcome {
    apic::on();
    for n in 1..101 {
        apic::self_ipi(0x70);
        let_in();
        check_eq!(trap::count(0x70), n);
    }
    Ok(())
}

/// By way of "off", which forgets all registers; then as firmware had left them.
pub fn off_and_on() {
    apic::set_mode(Mode::Off);
    apic::set_mode(Mode::XApic);
    apic::write(SPURIOUS, 0x1ff);
    apic::write(LVT_LINT0, apic::EXT_INT);
    apic::write(LVT_LINT1, apic::NMI);
}

fn x2apic_mode() -> Outcome {
    if cpuid(1, 0)[2] & 1 << 21 == 0 {
        return Ok(());
    }
    apic::on();
    let base = rdmsr(0x1b);
    apic::write(TPR, 0x3c);
    apic::set_mode(Mode::X2Apic);
    let kept = apic::read(TPR);
    apic::write(TPR, 0);
    let (id, version, logical) = (apic::id(), apic::read(apic::VERSION), apic::read(LDR));
    apic::write(apic::SELF_IPI, 0x72);
    let_in();
    let count = trap::count(0x72);
    off_and_on();
    check_eq!((id, count, kept), (0, 1, 0x3c));
    check_eq!(logical, 1);
    check!(version & 0xff >= 0x10);
    check_eq!(rdmsr(0x1b), base);
    Ok(())
}

fn x2apic_refuses() -> Outcome {
    let base = rdmsr(0x1b);
    let before = refused(msr(apic::EOI), 0);
    apic::set_mode(Mode::X2Apic);
    let seen = (
        refused(msr(apic::EOI), 1),
        refused(0x1b, base),
        refused(msr(apic::ID), 1),
    );
    off_and_on();
    check!(before, "its registers are not there in xAPIC mode");
    check!(seen.0, "an end is zero");
    check!(seen.1, "not straight back to xAPIC mode");
    check!(seen.2, "not writable");
    Ok(())
}

/// From the highest class to the lowest that an APIC may deliver to a kernel.
fn all_classes_in_order() -> Outcome {
    apic::on();
    let vectors: [u32; 14] = core::array::from_fn(|n| 0x23 + 0x10 * n as u32);
    trap::record_order();
    vectors.into_iter().for_each(apic::self_ipi);
    let_in();
    let mut expected = vectors;
    expected.reverse();
    check_eq!(trap::order(), expected);
    Ok(())
}

/// Sent three times before it is served it comes once; sent while it is served it comes once more.
fn one_waits_while_one_is_served() -> Outcome {
    apic::on();
    trap::on_interrupt(|vector| {
        if trap::count(vector) == 1 {
            [0x74, 0x74].into_iter().for_each(apic::self_ipi);
        }
        apic::eoi();
    });
    [0x74, 0x74, 0x74].into_iter().for_each(apic::self_ipi);
    let_in();
    let_in();
    check_eq!(trap::count(0x74), 2);
    Ok(())
}

/// What the handler saw: requested, in service, and the processor's priority.
static IN_HANDLER: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

fn requests_and_services_show() -> Outcome {
    apic::on();
    trap::on_interrupt(|vector| {
        let seen = [
            has(IRR, vector).into(),
            has(ISR, vector).into(),
            apic::read(PPR),
        ];
        IN_HANDLER
            .iter()
            .zip(seen)
            .for_each(|(slot, value)| slot.store(value, Relaxed));
        apic::eoi();
    });
    apic::self_ipi(0x76);
    let waiting = (has(IRR, 0x76), has(ISR, 0x76), apic::read(PPR));
    let_in();
    let after = (has(IRR, 0x76), has(ISR, 0x76), apic::read(PPR));
    check_eq!(waiting, (true, false, 0));
    check_eq!(
        IN_HANDLER.each_ref().map(|seen| seen.load(Relaxed)),
        [0, 1, 0x70]
    );
    check_eq!(after, (false, false, 0));
    Ok(())
}

/// An end with nothing in service does nothing.
fn end_without_service() -> Outcome {
    apic::on();
    apic::self_ipi(0x77);
    (0..3).for_each(|_| apic::eoi());
    let_in();
    check_eq!(trap::count(0x77), 1);
    Ok(())
}

/// Three wait; each step down of the priority lets in what is above it. A class holds back itself.
fn task_priority_lets_in_by_steps() -> Outcome {
    apic::on();
    apic::write(TPR, 0xff);
    [0x43, 0x83, 0xc3].into_iter().for_each(apic::self_ipi);
    let came = || [0x43, 0x83, 0xc3].map(trap::count);
    let mut seen = [[9; 3]; 5];
    for (slot, priority) in seen.iter_mut().zip([0xff, 0xc0, 0xbf, 0x70, 0x0f]) {
        if priority & 0x0f == 0 {
            // SAFETY: the task priority is ours.
            unsafe { asm!("mov cr8, {}", in(reg) u64::from(priority >> 4)) };
        } else {
            apic::write(TPR, priority);
        }
        let_in();
        *slot = came();
    }
    apic::write(TPR, 0);
    check_eq!(
        seen,
        [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    );
    Ok(())
}

fn cr8_and_tpr_are_one() -> Outcome {
    let cr8: u64;
    // SAFETY: the task priority is ours.
    unsafe { asm!("mov cr8, {}", in(reg) 5u64) };
    let tpr = apic::read(TPR);
    apic::write(TPR, 0x6f);
    let (kept, priority) = (apic::read(TPR), apic::read(PPR));
    // SAFETY: as above.
    unsafe { asm!("mov {}, cr8", out(reg) cr8) };
    apic::write(TPR, 0);
    check_eq!((tpr, kept, priority, cr8), (0x50, 0x6f, 0x6f, 6));
    Ok(())
}

/// If the priority is raised when an interrupt is on its way, the spurious vector may come in its place: once, and not in
/// service. The interrupt itself comes when the priority lets it.
fn spurious_vector_is_not_in_service() -> Outcome {
    const VECTOR: u8 = 0x3f;
    apic::on();
    apic::write(SPURIOUS, 0x100 | u32::from(VECTOR));
    trap::on_interrupt(|vector| {
        if vector != VECTOR {
            apic::eoi();
        }
    });
    for _ in 0..100 {
        // SAFETY: handlers are in place; RAX is the APIC's page.
        unsafe {
            asm!("mov dword ptr [rax + 0x300], 0x40048", "sti", "mov dword ptr [rax + 0x80], 0xff", "nop", "cli",
                in("rax") apic::XAPIC)
        };
        check!(!has(ISR, VECTOR));
        apic::write(TPR, 0);
        let_in();
    }
    apic::write(SPURIOUS, 0x1ff);
    check_eq!(trap::count(0x48), 100);
    check!(trap::count(VECTOR) <= 100);
    Ok(())
}

/// Disabled by software all entries are masked, and stay so until they are written again (SDM 3A: 10.4.7.2).
fn lvt_is_masked_while_disabled() -> Outcome {
    apic::on();
    let entries = [LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR];
    let masked = || entries.map(|entry| apic::read(entry) & MASKED);
    let before = entries.map(apic::read);
    entries
        .into_iter()
        .for_each(|entry| apic::write(entry, 0x60));
    let open = masked();
    apic::write(SPURIOUS, 0xff);
    let disabled = masked();
    entries
        .into_iter()
        .for_each(|entry| apic::write(entry, 0x60));
    let written = masked();
    apic::write(SPURIOUS, 0x1ff);
    let enabled = masked();
    entries
        .into_iter()
        .zip(before)
        .for_each(|(entry, value)| apic::write(entry, value));
    check_eq!(
        (open, disabled, written, enabled),
        ([0; 4], [MASKED; 4], [MASKED; 4], [MASKED; 4])
    );
    Ok(())
}

/// Disabled by software it still takes NMIs.
fn nmi_while_disabled() -> Outcome {
    trap::reset_counts();
    apic::write(SPURIOUS, 0xff);
    apic::self_nmi();
    let came = trap::count(2);
    off_and_on();
    check_eq!(came, 1);
    Ok(())
}

/// ... but no vectors.
fn disabled_takes_no_vectors() -> Outcome {
    apic::on();
    apic::write(SPURIOUS, 0xff);
    apic::self_ipi(0x49);
    apic::send(apic::id(), 0x49);
    let waits = has(IRR, 0x49);
    off_and_on();
    let_in();
    check_eq!((waits, trap::count(0x49)), (false, 0));
    Ok(())
}

/// The error register shows what has come since it was last written, when it is written.
pub fn errors() -> u32 {
    apic::write(ERROR, 0);
    apic::read(ERROR)
}

const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

fn illegal_register_is_an_error() -> Outcome {
    apic::on();
    errors();
    apic::read(0x40);
    check_eq!(errors(), ILLEGAL_REGISTER);
    check_eq!(errors(), 0);
    Ok(())
}

fn illegal_vector_is_an_error() -> Outcome {
    apic::on();
    errors();
    apic::self_ipi(0x0f);
    let before_write = apic::read(ERROR);
    check_eq!((before_write, errors()), (0, SEND_ILLEGAL_VECTOR));
    apic::send(apic::id(), 3);
    check_eq!(errors(), SEND_ILLEGAL_VECTOR);
    apic::write(LVT_TIMER, 7);
    apic::write(apic::TIMER_INITIAL, 1);
    while apic::read(apic::TIMER_CURRENT) != 0 {}
    let received = errors();
    apic::write(LVT_TIMER, MASKED);
    check_eq!(received, RECEIVE_ILLEGAL_VECTOR);
    let_in();
    Ok(())
}

/// The first error since the register was written interrupts, if its entry is not masked.
fn error_interrupt() -> Outcome {
    apic::on();
    errors();
    apic::write(LVT_ERROR, MASKED | 0x4a);
    apic::self_ipi(1);
    let_in();
    let masked = trap::count(0x4a);
    errors();
    apic::write(LVT_ERROR, 0x4a);
    apic::self_ipi(1);
    apic::self_ipi(1);
    let_in();
    let once = trap::count(0x4a);
    errors();
    apic::read(0x40);
    let_in();
    let twice = trap::count(0x4a);
    errors();
    apic::write(LVT_ERROR, MASKED);
    check_eq!((masked, once, twice), (0, 1, 2));
    Ok(())
}

/// Writes IA32_APIC_BASE; whether it is refused.
fn base_refused(value: u64) -> bool {
    let (low, high) = (value as u32, (value >> 32) as u32);
    fault!("wrmsr", in("ecx") 0x1b, in("eax") low, in("edx") high)
        .is_some_and(|f| (f.vector, f.error) == (13, 0))
}

/// All ways between off, xAPIC, x2APIC, and the fourth that there is none of (SDM 3A: figure 10-27).
fn mode_changes() -> Outcome {
    const OFF: u64 = 0;
    const X: u64 = 1 << 11;
    const NONE: u64 = 1 << 10;
    const X2: u64 = X | NONE;
    let base = rdmsr(0x1b) & !X2;
    let ways = [
        (X, X, false),
        (X, NONE, true),
        (X, X2, false),
        (X2, X2, false),
        (X2, X, true),
        (X2, NONE, true),
        (X2, OFF, false),
        (OFF, OFF, false),
        (OFF, X2, true),
        (OFF, NONE, true),
        (OFF, X, false),
    ];
    let mut outcome = Ok(());
    for (n, (from, to, refused)) in ways.into_iter().enumerate() {
        let at = rdmsr(0x1b) & X2;
        if at != from
            || base_refused(base | to) != refused
            || rdmsr(0x1b) != base | if refused { from } else { to }
        {
            crate::println!("  way {n}: {at:#x}");
            outcome = Err("a way between the modes");
        }
    }
    let reserved = [
        base_refused(base | X | 1 << 9),
        base_refused(base | X | 1),
        base_refused(base | X | 1 << 63),
    ];
    off_and_on();
    outcome?;
    check_eq!(reserved, [true; 3], "reserved bits");
    Ok(())
}

/// Whether a WRMSR faults.
fn refused(register: u32, value: u64) -> bool {
    let (low, high) = (value as u32, (value >> 32) as u32);
    fault!("wrmsr", in("ecx") register, in("eax") low, in("edx") high)
        .is_some_and(|f| f.vector == 13)
}

fn unreadable(register: u32) -> bool {
    fault!("rdmsr", in("ecx") register, out("eax") _, out("edx") _).is_some_and(|f| f.vector == 13)
}

/// Which registers there are in x2APIC mode, which can be read, which written, and their reserved bits (SDM 3A: table
/// 10-6).
fn x2apic_register_rules() -> Outcome {
    const READ: [(u32, u32); 9] = [
        (0x802, 0x803),
        (0x808, 0x808),
        (0x80a, 0x80a),
        (0x80d, 0x80d),
        (0x80f, 0x828),
        (0x830, 0x830),
        (0x832, 0x837),
        (0x838, 0x839),
        (0x83e, 0x83e),
    ];
    const WRITE: [(u32, u32); 7] = [
        (0x808, 0x808),
        (0x80b, 0x80b),
        (0x80f, 0x80f),
        (0x828, 0x828),
        (0x832, 0x837),
        (0x838, 0x838),
        (0x83e, 0x83e),
    ];
    let among = |list: &[(u32, u32)], register| {
        list.iter()
            .any(|(first, last)| (*first..=*last).contains(&register))
    };
    apic::on();
    apic::set_mode(Mode::X2Apic);
    let mut wrong = 0;
    for register in 0x800..=0x8ff {
        if unreadable(register) == among(&READ, register) {
            wrong = register;
        }
        // The two that send are tried with what they must not take.
        let (value, sends) = match register {
            0x830 | 0x83f => (1 << 20, true),
            0x832..=0x837 => (u64::from(MASKED), false),
            _ => (0, false),
        };
        if refused(register, value) == (!sends && among(&WRITE, register)) {
            wrong = register;
        }
    }
    let reserved = [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 1 << 12),
        (0x828, 1),
        (0x832, 1 << 19),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83e, 4),
    ]
    .map(|(register, value)| refused(register, value));
    off_and_on();
    if wrong != 0 {
        crate::println!("  register {wrong:#x}");
    }
    check_eq!(wrong, 0);
    check_eq!(reserved, [true; 8]);
    Ok(())
}

/// Values that registers are written with.
const VALUES: [u32; 8] = [
    0,
    u32::MAX,
    0x5555_5555,
    0xaaaa_aaaa,
    0x100,
    0x1ff,
    0x2_0030,
    0x4_00f8,
];

/// An interrupt command that would start this machine anew, or stop its only CPU.
fn ends_the_run(command: u32) -> bool {
    command & 0x700 == apic::INIT || command & 0x700 == apic::STARTUP
}

/// Takes all that waits, and starts afresh.
fn settle() {
    off_and_on();
    trap::on_interrupt(|_| apic::eoi());
    let_in();
}

fn registers_take_any_value() -> Outcome {
    apic::on();
    for value in VALUES {
        for offset in (0..0x1000)
            .step_by(4)
            .filter(|offset| *offset != apic::ICR_LOW || !ends_the_run(value))
        {
            apic::write(offset, value);
            apic::read(offset);
        }
    }
    settle();
    self_ipi()
}

fn x2apic_registers_take_any_value() -> Outcome {
    apic::on();
    apic::set_mode(Mode::X2Apic);
    for low in VALUES {
        for high in VALUES {
            for register in 0x800..=0x8ff {
                if register != msr(apic::ICR_LOW) || !ends_the_run(low) {
                    refused(register, u64::from(high) << 32 | u64::from(low));
                }
            }
        }
    }
    settle();
    self_ipi()
}
